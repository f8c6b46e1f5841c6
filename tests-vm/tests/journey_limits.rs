//! `network.limits` from the file to what a real guest meets.

use enisle_testkit::Netns;
use enisle_testkit::world::{ECHO, SERVER, SOURCE};
use enisle_tests_vm::{Daemon, Site, ok};
use std::path::Path;

const GROUP: &str = r#"- name: agents
  count: 0
  image: minimal
  network:
    mode: isolated
    range: "169.254.100.0/22"
    limits: {flows: 4, new_flows_per_s: 100, mbit_up: 50, mbit_down: 8}"#;

/// The namespace of a VM, by its VMM.
fn inside(daemon: &Daemon<'_>, vm: &str) -> Netns {
    let vms = daemon.json(&["vm", "list"]);
    let vm = vms.as_array().unwrap().iter().find(|row| row["name"] == vm).unwrap();
    Netns::open(Path::new(&format!("/proc/{}/ns/net", vm["pid"]))).unwrap()
}

#[test]
fn a_guest_is_kept_to_the_limits_of_its_group() {
    let site = Site::new();
    let daemon = site.up(GROUP);
    assert_eq!(ok(&daemon.run(&["vm", "new", "--wait"])).trim(), "agents-1");

    // Ten connections at a time, of which four may be.
    let script = format!(
        "for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 20 | nc {SERVER} {ECHO} || echo refused) & done; wait"
    );
    let said = daemon.sh("agents-1", &format!("({script}) 2>/dev/null"));
    assert_eq!(said.lines().filter(|line| *line == "refused").count(), 6, "{said}");
    // They are over, so there is room again.
    assert_eq!(daemon.sh("agents-1", &format!("echo hello | nc {SERVER} {ECHO}")), "hello");

    let length = daemon.sh("agents-1", &format!("nc {SERVER} {SOURCE} </dev/null | head -c 4000000 | wc -c"));
    assert_eq!(length, "4000000");
    let inside = inside(&daemon, "agents-1");
    let text = inside.check("tc", &["-s", "qdisc", "show"], "").unwrap();
    let shape = |dev: &str| {
        let from =
            text.find(&format!("qdisc tbf 1: dev {dev} root")).unwrap_or_else(|| panic!("{dev}: {text}"));
        &text[from..]
    };
    assert!(shape("ve").contains("rate 50Mbit"), "{text}");
    let down = shape("tap0");
    assert!(down.contains("rate 8Mbit"), "{text}");
    let held = down.split("overlimits ").nth(1).and_then(|rest| rest.split(' ').next()).unwrap();
    assert!(held.parse::<u64>().unwrap() > 0, "the download was never held up: {text}");

    ok(&daemon.run(&["vm", "delete", "agents-1"]));
    assert!(daemon.stop().success());
}
