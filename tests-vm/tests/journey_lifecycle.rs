//! How VMs come and go with their daemon, and that nothing of them stays. One test at a time:
//! what is compared includes BPF objects and namespaces of the whole machine.

use enisle_tests_vm::{Daemon, Site, fails, ok};
use std::fs;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn group(count: u32) -> String {
    format!(
        "- name: agents\n  count: {count}\n  image: minimal\n  network: {{ mode: isolated, range: \"169.254.100.0/22\" }}"
    )
}

/// Running VMs by name, once there are `count` of them.
fn running(daemon: &Daemon<'_>, count: usize) -> Vec<String> {
    let start = Instant::now();
    loop {
        let list = daemon.json(&["vm", "list"]);
        let vms = list.as_array().unwrap();
        let names: Vec<String> = vms
            .iter()
            .filter(|vm| vm["state"] == "running")
            .map(|vm| vm["name"].as_str().unwrap().to_owned())
            .collect();
        if names.len() == count && vms.len() == count {
            return names;
        }
        assert!(start.elapsed() < Duration::from_secs(240), "{list}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn three_come_with_the_daemon_and_all_is_gone_after_stop_and_after_a_crash() {
    let _alone = alone();
    let site = Site::new();
    let before = site.listing("");
    let daemon = site.up(&group(3));
    assert_eq!(running(&daemon, 3), ["agents-1", "agents-2", "agents-3"]);
    let first = &daemon.json(&["vm", "list"])[0];
    assert_eq!(first["address"], "169.254.100.2");
    let made = site.listing("").since(&before);
    assert!(made.iter().any(|l| l.starts_with("+ bpf maps")), "the listing sees what is made: {made:?}");
    assert!(made.iter().any(|l| l.starts_with("+ cgroups")), "{made:?}");
    assert!(daemon.stop().success());
    no_trace(&site, &before, "after stop");

    let daemon = site.up(&group(2));
    running(&daemon, 2);
    daemon.kill();
    // Both live on (`adopt.rs` has more of it), and are this daemon's to remove.
    let daemon = site.up(&group(1));
    assert_eq!(running(&daemon, 2), ["agents-1", "agents-2"]);
    assert_eq!(daemon.sh("agents-1", "echo again"), "again");
    assert!(daemon.stop().success());
    no_trace(&site, &before, "after kill -9, start and stop");
    assert_eq!(fs::read_dir(site.dir().join("state/vms")).map_or(0, Iterator::count), 0);
}

/// Compares with the listing before; files of the state directory that outlive VMs are not a trace.
#[track_caller]
fn no_trace(site: &Site, before: &enisle_testkit::listing::Listing, when: &str) {
    let start = Instant::now();
    loop {
        let changes: Vec<String> =
            site.listing("").since(before).into_iter().filter(|line| !line.contains(" files: ")).collect();
        if changes.is_empty() {
            return;
        }
        // The kernel frees BPF objects and namespaces from work queues (cleanup_net).
        assert!(start.elapsed() < Duration::from_secs(20), "{when}: {changes:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn count_zero_launches_none_and_vm_new_makes_them() {
    let _alone = alone();
    let site = Site::new();
    let daemon = site.up(&group(0));
    assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([]));
    assert_eq!(ok(&daemon.run(&["vm", "new", "--wait"])).trim(), "agents-1");
    let long = format!("isolated-agents-{}", "1000".repeat(11));
    assert_eq!(long.len(), 60);
    assert_eq!(ok(&daemon.run(&["vm", "new", "agents", "--wait", "--name", &long])).trim(), long);
    assert_eq!(daemon.sh(&long, "hostname"), long);
    assert!(fails(&daemon.run(&["vm", "new", "--name", &long])).contains("exists"));
    assert!(fails(&daemon.run(&["vm", "new", "nonsense"])).contains("nonsense"));
    assert!(fails(&daemon.run(&["vm", "new", "--name", "Bad_Name!"])).contains("name"));
    ok(&daemon.run(&["vm", "delete", "agents-1"]));
    assert_eq!(ok(&daemon.run(&["vm", "new", "--wait", "--ram", "256M", "--cpus", "2"])).trim(), "agents-1");
    assert_eq!(daemon.sh("agents-1", "grep -c ^processor /proc/cpuinfo"), "2");
    let log = ok(&daemon.run(&["vm", "logs", "agents-1"]));
    assert!(log.contains("Linux version"), "the console is kept: {log}");
    // A VMM that dies is noticed.
    let vms = daemon.json(&["vm", "list"]);
    let vm = vms.as_array().unwrap().iter().find(|vm| vm["name"] == "agents-1").unwrap();
    let pid = i32::try_from(vm["pid"].as_u64().unwrap()).unwrap();
    rustix::process::kill_process(
        rustix::process::Pid::from_raw(pid).unwrap(),
        rustix::process::Signal::TERM,
    )
    .unwrap();
    let start = Instant::now();
    while daemon
        .json(&["vm", "list"])
        .as_array()
        .unwrap()
        .iter()
        .any(|vm| vm["name"] == "agents-1" && vm["state"] == "running")
    {
        assert!(start.elapsed() < Duration::from_secs(20), "a dead VMM still counts as running");
        std::thread::sleep(Duration::from_millis(50));
    }
    let said = ok(&daemon.run(&["vm", "logs", "agents-1", "--vmm"]));
    assert!(
        said.contains("qemu-system-x86_64: terminating on signal 15"),
        "its last words are kept: {said:?}"
    );
    assert!(daemon.stop().success());
}

#[test]
fn a_start_that_fails_at_any_step_leaves_nothing_and_names_the_step() {
    let _alone = alone();
    let site = Site::new();
    // Nothing comes and goes by itself while the traces of a start are compared.
    let config = site.config(&group(0).replace(" }", ", warm_slots: 0 }"));
    let daemon = Daemon::start(&site, &config, &[("ENISLE_FAULT", "list")]).unwrap();
    let steps = fault_points(&daemon);
    assert!(steps.len() >= 5, "{steps:?}\n{}", daemon.log());
    assert!(daemon.stop().success());
    for step in &steps {
        let daemon = Daemon::start(&site, &config, &[("ENISLE_FAULT", step)]).unwrap();
        let before = site.listing("");
        let said = fails(&daemon.run(&["vm", "new", "--wait"]));
        assert!(said.contains(step.as_str()), "{step}: {said}");
        if daemon.json(&["vm", "list"]) != serde_json::json!([]) {
            ok(&daemon.run(&["vm", "delete", "agents-1"]));
        }
        no_trace(&site, &before, step);
        assert!(daemon.stop().success());
    }
    let daemon = Daemon::start(&site, &config, &[]).unwrap();
    assert_eq!(ok(&daemon.run(&["vm", "new", "--wait"])).trim(), "agents-1", "positive control");
    assert!(daemon.stop().success());
}

/// The steps that can be made to fail, as the daemon logs them under `ENISLE_FAULT=list`.
fn fault_points(daemon: &Daemon<'_>) -> Vec<String> {
    let log = daemon.log();
    let line = log.lines().find(|l| l.contains("fault points:")).unwrap_or_default();
    let list = line.split("fault points:").nth(1).unwrap_or_default();
    list.split_whitespace().map(|s| s.trim_matches(',').to_owned()).collect()
}
