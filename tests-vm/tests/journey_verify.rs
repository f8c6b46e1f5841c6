//! `enisle net verify` with a real guest: green in a world with everything in it, and known to be
//! able to fail.

use enisle_testkit::world::{ECHO, HOST_DOCKER, HOST_LAN, SERVER, UPLINK};
use enisle_tests_vm::{Site, ok};
use serde_json::Value;
use std::collections::BTreeSet;
use std::process::Output;

/// A group with these lists and one VM, beside which the throw-away one is made.
fn group(lists: &str) -> String {
    format!(
        "- name: agents\n  count: 1\n  image: minimal\n  network: {{ mode: isolated, range: \"169.254.100.0/22\"{lists} }}"
    )
}

fn evidence(output: &Output) -> Value {
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text)
        .unwrap_or_else(|e| panic!("no JSON ({e}): {text}\n{}", String::from_utf8_lossy(&output.stderr)))
}

/// The probes with this verdict, as text.
fn with_verdict<'a>(verified: &'a Value, verdict: &str) -> Vec<&'a Value> {
    verified["rows"].as_array().unwrap().iter().filter(|row| row["verdict"] == verdict).collect()
}

fn control() -> String {
    format!("{SERVER}:{ECHO}")
}

#[test]
fn a_throw_away_guest_proves_the_contract_and_is_gone() {
    let site = Site::new();
    let daemon = site.up(&group(", drop: [\"151.101.1.69\"], dns: [\"8.8.8.8\"]"));
    assert_eq!(daemon.sh("agents-1", "echo up"), "up");
    let output = daemon.run(&["net", "verify", "--json", "--control", &control(), "--timeout", "240s"]);
    let verified = evidence(&output);
    let bad: Vec<&Value> =
        [with_verdict(&verified, "wrong"), with_verdict(&verified, "inconclusive")].concat();
    assert!(bad.is_empty(), "{bad:#?}\n{}\n{}", verified["problems"], daemon.log());
    assert_eq!((output.status.code(), &verified["ok"]), (Some(0), &Value::Bool(true)), "{verified:#}");
    let good = with_verdict(&verified, "ok");
    assert!(good.len() > 40, "{} probes", good.len());
    let numbers: BTreeSet<u64> = good.iter().filter_map(|row| row["row"].as_u64()).collect();
    assert_eq!(numbers, (1..=12).collect(), "every row of the contract but 13 to 15");
    for address in [UPLINK, HOST_LAN, HOST_DOCKER] {
        let asked = |row: &&&Value| row["asked"].as_str().unwrap().contains(&format!("{address}"));
        assert!(good.iter().filter(|row| row["row"] == 3).filter(asked).count() >= 4, "{address}");
    }
    let sibling = good.iter().filter(|row| row["target"] == "another live VM");
    assert!(sibling.count() >= 4, "agents-1 is there to be asked");
    let answered =
        good.iter().any(|row| row["row"] == 1 && row["oracle"].as_str().unwrap().contains("answer"));
    assert!(answered, "the world's server answers");
    assert_eq!(verified["throw_away"], true);
    let vms = daemon.json(&["vm", "list"]);
    assert_eq!(vms.as_array().unwrap().len(), 1, "the throw-away VM is gone: {vms}");

    // The table, and an existing VM.
    let said = ok(&daemon.run(&["net", "verify", "agents-1", "--control", &control()]));
    assert!(said.contains("0 wrong, 0 inconclusive") && said.contains("cloud metadata"), "{said}");
    assert_eq!(daemon.sh("agents-1", "echo still there"), "still there");
    assert!(daemon.stop().success());
}

/// The promise is broken behind the daemon's back: a machine on the way answers for everybody. What
/// passes the judge is what it let out, so the judge itself is sabotaged: its program is taken off the tap
/// and the namespace made a router.
#[test]
fn a_namespace_that_routes_everything_is_found_out() {
    let site = Site::new();
    let daemon = site.up(&group(""));
    assert_eq!(daemon.sh("agents-1", "echo up"), "up");
    let vms = daemon.json(&["vm", "list"]);
    let vmm = vms[0]["pid"].as_u64().expect("the VMM's process id");
    let inside = enisle_testkit::Netns::open(std::path::Path::new(&format!("/proc/{vmm}/ns/net"))).unwrap();
    inside.check("tc", &["qdisc", "del", "dev", "tap0", "ingress"], "").unwrap();
    inside.check("nft", &["flush", "ruleset"], "").unwrap();
    inside.set_sysctl("net/ipv4/conf/all/forwarding", "1").unwrap();
    inside
        .check(
            "ip",
            &["-batch", "-"],
            "route add default dev ve\n\
             link set ve arp off\n",
        )
        .unwrap();
    let output = daemon.run(&["net", "verify", "agents-1", "--json", "--control", &control()]);
    let verified = evidence(&output);
    assert_eq!((output.status.code(), &verified["ok"]), (Some(1), &Value::Bool(false)), "{verified:#}");
    let leaked = with_verdict(&verified, "wrong");
    let passed = |row: &u64| {
        leaked.iter().any(|l| l["row"] == *row && l["oracle"].as_str().unwrap().contains("passed the judge"))
    };
    let open: Vec<u64> = [3, 5, 6, 8].into_iter().filter(|row| !passed(row)).collect();
    assert!(open.is_empty(), "not seen to be open: {open:?}: {verified:#}");
    assert!(daemon.stop().success());
}
