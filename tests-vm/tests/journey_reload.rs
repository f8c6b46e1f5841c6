//! The file is read anew under a real guest: a broken one changes nothing, a good one changes the policy
//! of what runs and launches what is new; nothing is restarted.

use enisle_tests_vm::{Daemon, Site, fails, ok};
use rustix::process::Signal;
use serde_json::Value;
use std::fs;
use std::time::{Duration, Instant};

/// `SERVER` and `OTHER_SERVER` of the world.
const KEPT: &str = "93.184.216.34";
const CUT: &str = "151.101.1.69";
/// Emulated guests on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(240);

fn group(name: &str, count: u32, range: &str, drop: &str) -> String {
    format!(
        "- name: {name}\n  count: {count}\n  image: minimal\n  network: {{ mode: isolated, range: \"{range}\", drop: \
         [{drop}] }}\n"
    )
}

/// The daemon's events of this kind so far.
fn told(daemon: &Daemon<'_>, kind: &str) -> Vec<Value> {
    let text = ok(&daemon.run(&["--json", "events"]));
    let events = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    events.filter(|event| event["type"] == kind).collect()
}

/// Sends SIGHUP and waits until one more of these is told; the last one.
#[track_caller]
fn reload(daemon: &Daemon<'_>, kind: &str) -> Value {
    let before = told(daemon, kind).len();
    daemon.signal(Signal::HUP);
    let start = Instant::now();
    loop {
        let mut events = told(daemon, kind);
        if events.len() > before {
            return events.pop().unwrap();
        }
        assert!(start.elapsed() < PATIENCE, "no {kind}:\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

fn reaches(daemon: &Daemon<'_>, vm: &str, address: &str) -> bool {
    daemon.sh(vm, &format!("(echo yes; sleep 1) | timeout 20 nc {address} 7 | head -n 1")) == "yes"
}

#[track_caller]
fn running(daemon: &Daemon<'_>, vm: &str) -> Value {
    let start = Instant::now();
    loop {
        let all = daemon.json(&["vm", "list"]);
        let found = all.as_array().unwrap().iter().find(|found| found["name"] == vm).cloned();
        if let Some(found) = found.filter(|found| found["state"] == "running") {
            return found;
        }
        assert!(start.elapsed() < PATIENCE, "{vm} does not run: {all}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn what_runs_follows_the_file_and_a_broken_file_changes_nothing() {
    let site = Site::new();
    let (agents, others) = ("169.254.100.0/24", "169.254.110.0/24");
    // Told to read its file again before it has read it once.
    let config = site.config(&group("agents", 1, agents, ""));
    let pester = |daemon: &Daemon<'_>| daemon.signal(Signal::HUP);
    let daemon = Daemon::start_while(&site, &config, &[], &[], pester).unwrap();
    let before = running(&daemon, "agents-1");
    assert!(reaches(&daemon, "agents-1", CUT) && reaches(&daemon, "agents-1", KEPT), "the control");
    let _ = daemon.notified();

    let good = fs::read_to_string(&config).unwrap();
    let half = &good[..good.len() - 20];
    let moved = good.replacen("api.sock", "other.sock", 1);
    let typo = good.replace("count: 1", "coutn: 1").replace("drop: []", "drop: [151.101.1.69]");
    for (text, part) in [(half, "enisle.yaml"), (&moved, "`config.api`"), (&typo, "coutn")] {
        fs::write(&config, text).unwrap();
        let event = reload(&daemon, "reload_failed");
        assert!(event["reason"].as_str().unwrap().contains(part), "{event}");
    }
    fs::remove_file(&config).unwrap();
    let event = reload(&daemon, "reload_failed");
    assert!(event["reason"].as_str().unwrap().contains("enisle.yaml"), "{event}");
    assert!(daemon.log().contains("did you mean `count`"), "the snippet and its help are in the log");
    assert!(reaches(&daemon, "agents-1", CUT));
    assert_eq!(running(&daemon, "agents-1"), before);

    let _ = daemon.notified();
    let both = group("agents", 1, agents, CUT) + &group("others", 1, others, "");
    let _ = site.config(&both);
    // The second comes while the first is at work, or becomes one with it.
    daemon.signal(Signal::HUP);
    let event = reload(&daemon, "reloaded");
    assert!(event["notes"].is_array(), "{event}");
    let first = told(&daemon, "reloaded").into_iter().find(|event| event["added"][0] == "others");
    assert_eq!(first.expect("it was told")["policies"][0], "agents");
    let lines = daemon.notified();
    let at = |line: &str| lines.iter().position(|told| told.starts_with(line));
    assert!(at("RELOADING=1") < at("READY=1") && at("RELOADING=1").is_some(), "{lines:?}");
    assert!(at("MONOTONIC_USEC=").is_some(), "{lines:?}");
    running(&daemon, "others-1");
    assert!(reaches(&daemon, "others-1", CUT), "the other group's list is its own");
    assert!(!reaches(&daemon, "agents-1", CUT) && reaches(&daemon, "agents-1", KEPT));
    assert_eq!(running(&daemon, "agents-1")["pid"], before["pid"]);

    let _ = site.config(&group("others", 1, others, ""));
    let event = reload(&daemon, "reloaded");
    assert_eq!(event["removed"][0], "agents", "{event}");
    assert_eq!(running(&daemon, "agents-1")["pid"], before["pid"]);
    assert!(!reaches(&daemon, "agents-1", CUT) && reaches(&daemon, "agents-1", KEPT));
    let said = fails(&daemon.run(&["vm", "new", "agents"]));
    assert!(said.contains("others"), "{said}");
    ok(&daemon.run(&["vm", "delete", "agents-1"]));

    daemon.signal(Signal::TERM);
    daemon.signal(Signal::HUP);
    assert!(daemon.stop().success(), "a wish to read the file on the way down is harmless");
}
