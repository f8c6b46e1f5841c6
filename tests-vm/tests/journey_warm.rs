//! Slots that are made ahead of time: whose they are, that they are closed, that none is left.

use enisle_testkit::world::{ECHO, SERVER};
use enisle_tests_vm::{Daemon, Site, ok};
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

const LIMIT: Duration = Duration::from_secs(60);

/// The host's ends of slots: the guest's address in their names, and whose they are.
fn slots(site: &Site) -> BTreeSet<(String, String)> {
    let links = site.world.host.check("ip", &["-j", "link"], "").unwrap();
    let links: serde_json::Value = serde_json::from_str(&links).unwrap();
    let slot = |link: &serde_json::Value| {
        let name = link["ifname"].as_str()?.strip_prefix("en-")?.to_owned();
        Some((name, link["ifalias"].as_str()?.splitn(3, ' ').nth(2)?.to_owned()))
    };
    links.as_array().unwrap().iter().filter_map(slot).collect()
}

/// Packets that came out of a slot since it was made.
fn packets(site: &Site, link: &str) -> u64 {
    let shown = site.world.host.check("ip", &["-j", "-s", "link", "show", link], "").unwrap();
    let shown: serde_json::Value = serde_json::from_str(&shown).unwrap();
    shown[0]["stats64"]["rx"]["packets"].as_u64().unwrap()
}

#[track_caller]
fn until(site: &Site, daemon: &Daemon<'_>, expected: &[(&str, &str)]) {
    let expected: BTreeSet<_> =
        expected.iter().map(|(address, whose)| ((*address).to_owned(), (*whose).to_owned())).collect();
    let start = Instant::now();
    loop {
        let now = slots(site);
        if now == expected {
            return;
        }
        assert!(start.elapsed() < LIMIT, "{now:?} instead of {expected:?}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn warm_slots_are_the_next_vms_and_nobody_elses() {
    let site = Site::new();
    let daemon = site.up(
        "- name: agents\n  count: 0\n  image: minimal\n  network: { mode: isolated, range: \"169.254.100.0/22\", warm_slots: 2 }",
    );
    until(&site, &daemon, &[("a9fe6402", "(warm)"), ("a9fe6406", "(warm)")]);
    assert_eq!(ok(&daemon.run(&["vm", "new", "--wait"])).trim(), "agents-1");
    until(&site, &daemon, &[("a9fe6402", "agents-1"), ("a9fe6406", "(warm)"), ("a9fe640a", "(warm)")]);
    let reach = format!("echo hi | nc -w 10 {SERVER} {ECHO}");
    assert_eq!(daemon.sh("agents-1", &reach), "hi");
    let judged = daemon.json(&["net", "show", "agents-1"]);
    assert!(judged["counters"]["out_allowed"].as_u64() > Some(0), "{judged}");
    // The block of a VM that goes is the next one's, and so is its slot: the very same one, which has
    // carried packets, and carries the next one's.
    ok(&daemon.run(&["vm", "delete", "agents-1"]));
    until(&site, &daemon, &[("a9fe6402", "(warm)"), ("a9fe6406", "(warm)"), ("a9fe640a", "(warm)")]);
    assert!(packets(&site, "en-a9fe6402") > 0 && packets(&site, "en-a9fe6406") == 0);
    assert_eq!(ok(&daemon.run(&["vm", "new", "--wait"])).trim(), "agents-1");
    assert_eq!(daemon.sh("agents-1", &reach), "hi");
    let again = daemon.json(&["net", "show", "agents-1"]);
    assert!(
        again["counters"]["out_allowed"].as_u64() <= judged["counters"]["out_allowed"].as_u64(),
        "{again}"
    );
    ok(&daemon.run(&["vm", "delete", "agents-1"]));
    // A daemon that is killed leaves none that its successor has not.
    daemon.kill();
    let daemon = site.up(
        "- name: agents\n  count: 0\n  image: minimal\n  network: { mode: isolated, range: \"169.254.100.0/22\", warm_slots: 1 }",
    );
    until(&site, &daemon, &[("a9fe6402", "(warm)")]);
    assert!(daemon.stop().success());
    assert_eq!(slots(&site), BTreeSet::new());
    assert!(!site.world.host.check("nft", &["list", "ruleset"], "").unwrap().contains("enisle"));
}
