//! Two daemons on one host: a range is one daemon's, their VMs are islands to each other, and what
//! happens to one daemon is nothing to the other.

use enisle_testkit::world::{ECHO, SERVER};
use enisle_tests_vm::{Daemon, Site, ok};

const PORT: u16 = 7000;

fn group(count: u32, range: &str) -> String {
    format!(
        "- name: agents\n  count: {count}\n  image: minimal\n  network: {{ mode: isolated, range: \"{range}\" }}"
    )
}

/// Whether a shell command in the VM succeeds.
fn tries(daemon: &Daemon<'_>, what: &str) -> String {
    daemon.sh("agents-1", &format!("{{ {what}; }} >/dev/null 2>&1 && echo reached || echo refused"))
}

/// The VM's address, where it now listens and answers with what it is told.
fn listens(daemon: &Daemon<'_>) -> String {
    let serve = format!("nc -ll -p {PORT} -e cat >/dev/null 2>&1 </dev/null & echo serves");
    assert_eq!(daemon.sh("agents-1", &serve), "serves");
    let list = daemon.json(&["vm", "list"]);
    let address = list[0]["address"].as_str().unwrap_or_else(|| panic!("{list}")).to_owned();
    let own = format!(
        "for i in $(seq 100); do echo hi | nc -w 2 {address} {PORT} | grep -q hi && exit 0; sleep 0.1; done; false"
    );
    assert_eq!(tries(daemon, &format!("({own})")), "reached", "the control: it listens at {address}");
    address
}

#[track_caller]
fn online(daemon: &Daemon<'_>) {
    assert_eq!(tries(daemon, &format!("echo hi | nc -w 10 {SERVER} {ECHO} | grep -q hi")), "reached");
}

#[track_caller]
fn cut_off(daemon: &Daemon<'_>, from: &str) {
    assert_eq!(tries(daemon, &format!("echo hi | nc -w 2 {from} {PORT} | grep -q hi")), "refused");
    assert_eq!(tries(daemon, &format!("ping -c 2 -W 1 {from}")), "refused");
}

fn tables(site: &Site) -> usize {
    site.world.host.check("nft", &["list", "tables"], "").unwrap().matches("enisle_").count()
}

#[test]
fn two_daemons_share_a_host_and_nothing_else() {
    let first = Site::new();
    let second = first.beside();
    let one = first.up(&group(1, "169.254.100.0/22"));
    let taken = second.config(&group(1, "169.254.102.0/23"));
    let refused = Daemon::start(&second, &taken, &[]).map(drop).unwrap_err().to_string();
    let holder = format!("another daemon (process {})", one.pid());
    assert!(refused.contains("enisle.yaml:") && refused.contains(&holder), "{refused}");
    assert!(refused.contains("169.254.104.0/23"), "the next free range: {refused}");

    let two = second.up(&group(1, "169.254.104.0/22"));
    let (at_one, at_two) = (listens(&one), listens(&two));
    online(&one);
    online(&two);
    cut_off(&one, &at_two);
    cut_off(&two, &at_one);

    // One dies: nobody's traffic notices, and its successor takes up its own VM and no other.
    one.kill();
    online(&two);
    let left = ok(&first.gc(&["--dry-run"]));
    assert!(left.contains(first.state_dir().to_str().unwrap()), "{left}");
    assert!(!left.contains(second.state_dir().to_str().unwrap()), "the other's is not its business: {left}");
    cut_off(&two, &at_one);
    let one = first.up(&group(1, "169.254.100.0/22"));
    assert_eq!(one.json(&["vm", "list"]).as_array().unwrap().len(), 1);
    online(&one);
    cut_off(&one, &at_two);
    cut_off(&two, &at_one);

    // One goes: the other stays as it was.
    assert_eq!(tables(&first), 2);
    assert!(two.stop().success());
    assert_eq!(tables(&first), 1);
    online(&one);
    assert!(one.stop().success());
    assert_eq!(tables(&first), 0);
}
