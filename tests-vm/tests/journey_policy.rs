//! A policy that changes under a real guest: what is cut, told, shown and explained. One boot.

use enisle_tests_vm::{Daemon, Site, fails, ok};
use serde_json::json;
use std::time::{Duration, Instant};

const GROUP: &str = "- name: agents\n  count: 0\n  image: minimal\n  network: { mode: isolated, range: \"169.254.100.0/22\", dns: [8.8.8.8] }";
/// `SERVER` and `OTHER_SERVER` of the world.
const KEPT: &str = "93.184.216.34";
const CUT: &str = "151.101.1.69";
/// Emulated guests on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the guest's answer is this.
#[track_caller]
fn until(daemon: &Daemon<'_>, script: &str, expected: &str) {
    let start = Instant::now();
    loop {
        let answer = daemon.sh("agents-1", script);
        if answer == expected {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{script}: {answer:?} instead of {expected:?}\n{}", daemon.log());
    }
}

/// Sends a line each tenth of a second over one TCP connection and keeps what is echoed, in the
/// background; the connection's end is written down as well.
fn talk(daemon: &Daemon<'_>, address: &str) {
    let script = format!(
        "cat > /root/talk-{address} <<'EOF'\n\
         (while true; do echo x; sleep 0.1; done) | nc {address} 7 > /root/echo-{address}\n\
         echo over > /root/end-{address}\n\
         EOF\n\
         setsid sh /root/talk-{address} </dev/null >/dev/null 2>&1 &\n\
         for i in $(seq 200); do [ -s /root/echo-{address} ] && break; sleep 0.1; done; head -n 1 /root/echo-{address}"
    );
    assert_eq!(daemon.sh("agents-1", &script), "x", "the connection to {address} runs");
}

/// Whether more comes back within two seconds.
fn progresses(daemon: &Daemon<'_>, address: &str) -> bool {
    let count = format!("wc -l < /root/echo-{address}");
    daemon.sh("agents-1", &format!("a=$({count}); sleep 2; b=$({count}); echo $((b-a))")) != "0"
}

#[test]
fn a_running_guest_feels_each_change_and_net_explains_it() {
    let site = Site::new();
    let daemon = site.up(GROUP);
    let said = fails(&daemon.run(&["vm", "new", "--drop", "8.8.8.8,8.8.8.8/8"]));
    assert!(said.contains("drop[1]") && said.contains("8.0.0.0/8"), "{said}");
    assert_eq!(daemon.json(&["vm", "list"]), json!([]), "refused before anything was made");
    ok(&daemon.run(&["vm", "new", "--wait", "--drop", "8.8.8.8"]));

    let why = |dest: &str| daemon.json(&["net", "why", "agents-1", dest]);
    let told = why("8.8.8.8:53/udp");
    assert_eq!((&told["verdict"], &told["rule"]["origin"]), (&json!("refuse"), &json!("vm drop[0]")));
    assert_eq!(told["beaten"][0]["origin"], "default");
    assert_eq!(told["mismatch"], json!(null));
    assert_eq!(why("192.168.1.10:22")["rule"]["origin"], "floor row 5");
    assert_eq!(why("45.83.104.10:22")["decided_by"], "host");
    assert_eq!(why("169.254.100.1:53/udp")["decided_by"], "dns");

    talk(&daemon, CUT);
    talk(&daemon, KEPT);
    let dry = daemon.json(&["net", "set", "agents-1", "--drop", CUT, "--dry-run"]);
    let cuts = dry["cuts"].as_array().unwrap();
    assert_eq!(cuts.len(), 1, "{dry}");
    assert_eq!((&cuts[0]["destination"], &cuts[0]["port"]), (&json!(CUT), &json!(7)));
    assert!(progresses(&daemon, CUT), "a dry run cuts nothing");

    ok(&daemon.run(&["net", "set", "agents-1", "--drop", CUT]));
    until(&daemon, &format!("cat /root/end-{CUT} 2>/dev/null || echo -"), "over");
    assert!(!progresses(&daemon, CUT));
    assert!(progresses(&daemon, KEPT), "the control goes on");
    let shown = daemon.json(&["net", "show", "agents-1"]);
    assert_eq!(shown["lists"], json!({ "drop": [CUT], "allow": [] }));
    let refused = shown["refused"].as_array().unwrap();
    assert!(
        refused.iter().any(|r| r["origin"] == "vm drop[0]" && r["packets"].as_u64() > Some(0)),
        "{shown}"
    );
    assert_eq!(why("8.8.8.8:53/udp")["verdict"], "allow", "the lists were replaced as a whole");

    // Everything, in two halves: DNS goes with it. Then all comes back.
    let resolve = "nslookup example.com 2>&1 | grep -q 93.184.216.34 && echo yes || echo no";
    until(&daemon, resolve, "yes");
    ok(&daemon.run(&["net", "set", "agents", "--drop", "0.0.0.0/1,128.0.0.0/1"]));
    assert_eq!(daemon.json(&["net", "show", "agents-1"])["egress_none"], true);
    assert_eq!(daemon.sh("agents-1", resolve), "no");
    assert!(why("169.254.100.1:53/udp")["reason"].as_str().unwrap().contains("REFUSED"));
    assert_eq!(why(&format!("{KEPT}:7"))["rule"]["origin"], "group drop[0]");
    ok(&daemon.run(&["net", "set", "agents", "--clear"]));
    ok(&daemon.run(&["net", "set", "agents-1", "--clear"]));
    let connect = format!("(echo yes; sleep 1) | timeout 10 nc {CUT} 7 | head -n 1");
    until(&daemon, &connect, "yes");
    until(&daemon, resolve, "yes");
    let text = ok(&daemon.run(&["net", "why", "agents-1", CUT]));
    assert!(text.starts_with("allow agents-1 to 151.101.1.69/icmp: default"), "{text}");
    assert!(daemon.stop().success());
}
