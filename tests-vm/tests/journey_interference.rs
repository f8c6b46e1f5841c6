//! The real daemon beside other programs: what they break comes back without anybody's doing, and
//! `enisle doctor` says what it sees. No guests: what they feel is in `crates/net/tests/contract`.

use enisle_tests_vm::{Daemon, Site, program};
use serde_json::Value;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// The daemon reacts at once; this is for a machine that is busy otherwise.
const LIMIT: Duration = Duration::from_secs(60);

fn group() -> &'static str {
    "- name: agents\n  count: 0\n  image: minimal\n  network: { mode: isolated, range: \"169.254.100.0/22\" }"
}

fn host(site: &Site, program: &str, line: &str) -> String {
    let args: Vec<&str> = line.split(' ').collect();
    site.world.host.check(program, &args, "").unwrap()
}

fn until(daemon: &Daemon<'_>, what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < LIMIT, "{what}: not in time\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn a_running_daemon_puts_back_what_others_take() {
    let site = Site::new();
    let daemon = site.up(group());
    let pair = || host(&site, "iptables-nft", "-S FORWARD").matches("-m comment --comment").count();
    let table = || host(&site, "nft", "list ruleset").matches("masquerade").count();
    assert_eq!((pair(), table()), (0, 1));

    host(&site, "iptables-nft", "-P FORWARD DROP");
    until(&daemon, "the pair for Docker's policy", || pair() == 2);
    host(&site, "iptables-nft", "-F");
    until(&daemon, "the pair after iptables -F", || pair() == 2);
    host(&site, "nft", "flush ruleset");
    until(&daemon, "the table after nft flush ruleset", || table() == 1);
    let forwarding = || site.world.host.sysctl("net/ipv4/conf/eth0/forwarding").unwrap();
    assert_eq!(forwarding(), "1");
    site.world.host.set_sysctl("net/ipv4/conf/eth0/forwarding", "0").unwrap();
    until(&daemon, "the uplink's forwarding", || forwarding() == "1");

    // Somebody who never gives up does not keep the daemon busy, and is beaten when he does.
    for _ in 0..30 {
        host(&site, "nft", "flush ruleset");
        std::thread::sleep(Duration::from_millis(50));
    }
    until(&daemon, "the table after a fight", || table() == 1);
    host(&site, "iptables-nft", "-P FORWARD DROP");
    until(&daemon, "the pair before the end", || pair() == 2);
    assert!(daemon.stop().success());
    assert_eq!((pair(), table()), (0, 0), "the daemon leaves nothing in other programs' chains");
}

fn doctor(site: &Site, file: &Path) -> Vec<Value> {
    let mut command = Command::new(program("enisle"));
    command.arg("doctor").arg(file).args(["--quick", "--json"]).current_dir(site.dir());
    let output = site.world.host.output(&mut command).unwrap();
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(i32::from(report["ok"] == false)));
    report["findings"].as_array().unwrap().clone()
}

#[test]
fn the_doctor_knows_the_own_daemon_from_another_and_explains_dockers_policy() {
    let site = Site::new();
    let daemon = site.up(group());
    let file = site.dir().join("enisle.yaml");
    let text = std::fs::read_to_string(&file).unwrap();
    host(&site, "iptables-nft", "-P FORWARD DROP");
    let of = |all: &[Value], id: &str| all.iter().find(|f| f["id"] == id).unwrap().clone();

    let all = doctor(&site, &file);
    for id in ["configuration", "kernel", "hypervisor", "images", "uplink"] {
        assert_eq!(of(&all, id)["severity"], "ok", "{all:#?}");
    }
    let firewall = of(&all, "firewall");
    assert_eq!(firewall["severity"], "note", "{firewall}");
    assert!(firewall["what"].as_str().unwrap().contains("FORWARD of table ip filter"), "{firewall}");

    // The same file for a daemon that keeps its state elsewhere.
    let other = site.dir().join("other.yaml");
    let elsewhere = site.dir().join("elsewhere");
    let own = site.dir().join("state");
    let text = text.replace(own.to_str().unwrap(), elsewhere.to_str().unwrap());
    assert!(text.contains("elsewhere"), "{text}");
    std::fs::write(&other, text).unwrap();
    let wrong = of(&doctor(&site, &other), "configuration");
    assert_eq!(wrong["severity"], "failure");
    let what = wrong["what"].as_str().unwrap();
    let holder = format!("another daemon (process {})", daemon.pid());
    assert!(
        what.contains("other.yaml:") && what.contains(&holder) && what.contains("169.254.104.0/22"),
        "{what}"
    );
    assert!(daemon.stop().success());
}
