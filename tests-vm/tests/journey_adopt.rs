//! The daemon dies, the VMs do not: their traffic never blinks, their policy never lapses, and the
//! next daemon has them whole. One test at a time: each is a busy machine of its own.

use enisle_testkit::listing::Listing;
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{CANARY, ECHO, LAN, RESOLVER, SERVER};
use enisle_tests_vm::{Daemon, Site, fails, ok};
use std::fs;
use std::process::{ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
const PATIENCE: Duration = Duration::from_secs(240);
/// Asks the gateway for a name.
const RESOLVE: &str = "nslookup www.example.com 2>&1 || true";
/// Longest silence of a stream in seconds, beyond the machine's own stutter.
const BLINK: f64 = 1.0;

fn alone() -> MutexGuard<'static, ()> {
    ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner)
}

fn group(count: u32) -> String {
    format!(
        "- name: agents\n  count: {count}\n  image: minimal\n  network: {{ mode: isolated, range: \"169.254.100.0/22\", dns: [\"{RESOLVER}\"] }}"
    )
}

fn up<'site>(site: &'site Site, groups: &str, flags: &[&str]) -> Daemon<'site> {
    Daemon::start_with(site, &site.config(groups), flags, &[]).expect("the daemon comes up")
}

fn boot_id(daemon: &Daemon<'_>, vm: &str) -> String {
    daemon.sh(vm, "cat /proc/sys/kernel/random/boot_id")
}

fn pid(daemon: &Daemon<'_>, vm: &str) -> u64 {
    let list = daemon.json(&["vm", "list"]);
    let found = list.as_array().unwrap().iter().find(|shown| shown["name"] == vm);
    found.and_then(|shown| shown["pid"].as_u64()).unwrap_or_else(|| panic!("{list}"))
}

fn running(daemon: &Daemon<'_>, count: usize) {
    let start = Instant::now();
    loop {
        let list = daemon.json(&["vm", "list"]);
        let vms = list.as_array().unwrap();
        if vms.len() == count && vms.iter().all(|vm| vm["state"] == "running") {
            return;
        }
        assert!(start.elapsed() < PATIENCE, "{list}\n{}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// What this site could leave: its namespace, its processes, its files. Whatever else the machine
/// does meanwhile is not looked at.
fn traces(site: &Site) -> Vec<String> {
    let listing: Listing = site.listing("no cgroup and no map is called this");
    let sections = ["links", "addresses", "routes", "rules", "nftables", "forwarding", "processes"];
    sections.iter().flat_map(|section| listing.section(section)).collect()
}

#[track_caller]
fn no_trace(site: &Site, before: &[String]) {
    let start = Instant::now();
    loop {
        let now = traces(site);
        if now == before {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(30), "{now:#?}\ninstead of\n{before:#?}");
        std::thread::sleep(Duration::from_millis(200));
    }
    for dir in ["run", "vms"] {
        let left: Vec<_> = fs::read_dir(site.state_dir().join(dir)).into_iter().flatten().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
    let gc = ok(&site.gc(&["--dry-run"]));
    assert_eq!(gc, "nothing is left\n");
}

/// Starts, in a guest, what notes the guest's uptime at each sign of life: a TCP flow that is held,
/// pings one after the other, and a heart that needs no network. And what knocks at what is refused.
fn start_streams(daemon: &Daemon<'_>, vm: &str) {
    let script = format!(
        "cd /root\n\
         note() {{ cut -d' ' -f1 /proc/uptime; }}\n\
         (while :; do echo beat; sleep 0.1; done | nc {SERVER} {ECHO} | while read line; do note; done) \
         >flow 2>flow.err </dev/null &\n\
         (while :; do ping -c 1 -W 1 {SERVER} >/dev/null && note; sleep 0.1; done) >pings 2>&1 </dev/null &\n\
         (while :; do note; sleep 0.1; done) >heart 2>&1 </dev/null &\n\
         (while :; do echo | nc -w 1 {LAN} {CANARY} && echo open; ping -c 1 -W 1 {LAN} && echo open; sleep 0.2; \
         done) >knocks 2>&1 </dev/null &\n\
         echo started"
    );
    assert_eq!(daemon.sh(vm, &script), "started");
}

/// The longest time between two notes of a stream, and how many there are.
fn longest_gap(daemon: &Daemon<'_>, vm: &str, stream: &str) -> (f64, usize) {
    let text = daemon.sh(vm, &format!("cat /root/{stream}"));
    let notes: Vec<f64> = text.lines().filter_map(|line| line.parse().ok()).collect();
    (notes.windows(2).map(|pair| pair[1] - pair[0]).fold(0.0, f64::max), notes.len())
}

#[test]
fn kill_nine_neither_blinks_nor_opens_and_the_next_daemon_has_the_vm_whole() {
    let _alone = alone();
    let site = Site::new();
    let before = traces(&site);
    let daemon = up(&site, &group(1), &[]);
    running(&daemon, 1);
    let vm = "agents-1";
    let (boot, process) = (boot_id(&daemon, vm), pid(&daemon, vm));
    assert!(daemon.sh(vm, RESOLVE).contains(&SERVER.to_string()), "the control");
    start_streams(&daemon, vm);
    std::thread::sleep(Duration::from_secs(3));
    let mut lan = Sniffer::open(&site.world.lan).unwrap();
    let mut internet = Sniffer::open(&site.world.internet).unwrap();
    daemon.kill();
    std::thread::sleep(Duration::from_secs(4));
    let alive = internet.frames().len();
    assert!(alive > 10, "the streams go on without a daemon: {alive} frames");

    let config = site.config(&group(1));
    let daemon =
        Daemon::start_with(&site, &config, &["--log-level", "info,enisle_daemon=debug"], &[]).unwrap();
    let log = daemon.log();
    assert!(log.contains("adopted"), "{log}");
    assert_eq!(boot_id(&daemon, vm), boot, "the same guest");
    assert_eq!(pid(&daemon, vm), process, "the same process");
    running(&daemon, 1);
    std::thread::sleep(Duration::from_secs(3));
    // What the machine itself was silent for is not the network's fault.
    let (stutter, beats) = longest_gap(&daemon, vm, "heart");
    for stream in ["flow", "pings"] {
        let (gap, notes) = longest_gap(&daemon, vm, stream);
        println!("{stream}: {notes} notes, longest gap {gap:.2} s; the heart: {beats}, {stutter:.2} s");
        assert!(notes > 20, "{stream}: {notes} notes, {}", daemon.sh(vm, "cat /root/flow.err /root/knocks"));
        assert!(gap <= BLINK + 2.0 * stutter, "{stream} was silent for {gap} s, the heart for {stutter} s");
    }
    let knocks = daemon.sh(vm, "cat /root/knocks");
    assert!(knocks.contains("nc: ") || knocks.contains("PING"), "it did knock: {knocks}");
    assert!(!knocks.contains("open"), "{knocks}");
    let knocked =
        lan.count(|frame| frame.len() > 34 && frame[12..14] == [8, 0] && frame[30..34] == LAN.octets());
    assert_eq!(knocked, 0, "a refused packet came through");
    let told = ok(&daemon.run(&["events", "--only", "refused", "--vm", vm]));
    assert!(told.contains(&format!("to {LAN}")), "the next daemon tells of an adopted VM's refusals: {told}");
    // Names and the console work again, and the agent has found the daemon by itself.
    assert!(daemon.sh(vm, RESOLVE).contains(&SERVER.to_string()));
    assert!(ok(&daemon.run(&["vm", "logs", vm])).contains("Linux version"));
    let begun = Instant::now();
    while !daemon.log().contains("the agent said hello") {
        assert!(begun.elapsed() < PATIENCE, "the agent does not come back: {}", daemon.log());
        std::thread::sleep(Duration::from_millis(100));
    }
    assert!(daemon.stop().success());
    no_trace(&site, &before);
}

#[test]
fn an_asked_for_stop_keeps_vms_only_if_told_to_and_a_start_removes_them_only_if_told_to() {
    let _alone = alone();
    let site = Site::new();
    let before = traces(&site);
    let daemon = up(&site, &group(1), &["--keep-vms"]);
    running(&daemon, 1);
    let boot = boot_id(&daemon, "agents-1");
    let status: ExitStatus = daemon.stop();
    assert!(status.success());
    assert!(!site.api().exists(), "the API's socket goes with the daemon");
    let listed = ok(&site.gc(&["--dry-run"]));
    for kind in ["process", "cgroup", "link", "table", "file", "vm "] {
        assert!(listed.contains(&format!("left  {kind}")), "{kind}: {listed}");
    }
    // One more is asked for: the adopted one counts.
    let daemon = up(&site, &group(2), &["--keep-vms"]);
    running(&daemon, 2);
    assert_eq!(boot_id(&daemon, "agents-1"), boot);
    let refused = fails(&site.gc(&["--dry-run"]));
    assert!(refused.contains("another daemon") || refused.contains("in use"), "{refused}");
    ok(&daemon.run(&["vm", "delete", "agents-2"]));
    daemon.kill();
    // Its group is gone from the file: removed, and said so.
    let other = group(0).replace("agents", "others");
    let daemon = up(&site, &other, &[]);
    assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([]));
    assert!(daemon.log().contains("its group `agents` is not in the file any more"), "{}", daemon.log());
    assert!(daemon.stop().success());
    no_trace(&site, &before);

    let daemon = up(&site, &group(1), &["--keep-vms"]);
    running(&daemon, 1);
    let boot = boot_id(&daemon, "agents-1");
    assert!(daemon.stop().success());
    let daemon = up(&site, &group(1), &["--stop-vms", "--keep-vms"]);
    running(&daemon, 1);
    assert_ne!(boot_id(&daemon, "agents-1"), boot, "--stop-vms begins anew");
    assert!(daemon.stop().success());
    let removed = ok(&site.gc(&[]));
    assert!(removed.contains("removed  process"), "{removed}");
    no_trace(&site, &before);
}

#[test]
fn a_daemon_killed_at_any_step_of_a_creation_leaves_nothing_half_made() {
    let _alone = alone();
    let site = Site::new();
    let before = traces(&site);
    let config = site.config(&group(0));
    for step in ["reserve", "slot", "channel", "disk", "launch", "start", "boot", "ready"] {
        let env = [("ENISLE_FAULT", format!("die:{step}"))];
        let env: Vec<(&str, &str)> = env.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let daemon = Daemon::start_with(&site, &config, &[], &env).unwrap();
        let said = fails(&daemon.run(&["vm", "new", "--wait"]));
        assert!(!said.is_empty(), "{step}");
        daemon.died();
        let daemon = up(&site, &group(0), &[]);
        assert_eq!(daemon.json(&["vm", "list"]), serde_json::json!([]), "{step}: {}", daemon.log());
        let left = fs::read_dir(site.state_dir().join("vms")).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{step}");
        assert!(daemon.stop().success(), "{step}");
        no_trace(&site, &before);
    }
    let daemon = up(&site, &group(0), &[]);
    assert_eq!(ok(&daemon.run(&["vm", "new", "--wait"])).trim(), "agents-1", "the positive control");
    assert!(daemon.stop().success());
}

#[test]
fn a_daemon_killed_at_any_moment_of_its_start_loses_no_vm() {
    let _alone = alone();
    let site = Site::new();
    let before = traces(&site);
    let daemon = up(&site, &group(1), &[]);
    running(&daemon, 1);
    let vm = "agents-1";
    let boot = boot_id(&daemon, vm);
    daemon.kill();
    let config = site.config(&group(1));
    for after in [0, 20, 50, 100, 200, 350, 600, 1000] {
        Daemon::start_and_kill(&site, &config, Duration::from_millis(after));
    }
    let daemon = up(&site, &group(1), &[]);
    assert_eq!(boot_id(&daemon, vm), boot, "{}", daemon.log());
    let reach = format!("echo ping | nc -w 5 {SERVER} {ECHO}");
    assert_eq!(daemon.sh(vm, &reach), "ping");
    assert!(daemon.stop().success());
    no_trace(&site, &before);
}

#[test]
fn a_daemon_killed_at_any_moment_of_a_deletion_leaves_a_whole_vm_or_none() {
    let _alone = alone();
    let site = Site::new();
    let before = traces(&site);
    for after in [0, 20, 100, 400, 1200] {
        let daemon = up(&site, &group(1), &[]);
        running(&daemon, 1);
        let mut deletes = site.enisle(&["vm", "delete", "agents-1"]);
        let mut deletes = deletes.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(after));
        daemon.kill();
        deletes.wait().unwrap();
        let daemon = up(&site, &group(0), &[]);
        let vms = daemon.json(&["vm", "list"]);
        match vms.as_array().unwrap().as_slice() {
            [] => {}
            [vm] => {
                assert_eq!(vm["state"], "running", "{after} ms: {vm}");
                assert_eq!(daemon.sh("agents-1", "echo whole"), "whole", "{after} ms");
            }
            more => panic!("{after} ms: {more:?}"),
        }
        assert!(daemon.stop().success(), "{after} ms");
        no_trace(&site, &before);
    }
}

/// Clock ticks that a process has had of processors.
fn ticks(pid: u64) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // proc_pid_stat(5): utime and stime are the 12th and 13th after the name, which may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}

/// How long a process takes for 20 more of them, which it is given up to a minute for.
fn takes_20_ticks(pid: u64) -> Duration {
    let (begun, before) = (Instant::now(), ticks(pid));
    while ticks(pid) < before + 20 {
        assert!(begun.elapsed() < Duration::from_secs(60), "it stands still");
        std::thread::sleep(Duration::from_millis(50));
    }
    begun.elapsed()
}

/// That it has next to none of them in this time.
fn stands_still(pid: u64, time: Duration) {
    let before = ticks(pid);
    std::thread::sleep(time.max(Duration::from_secs(1)));
    let had = ticks(pid) - before;
    assert!(had < 10, "{had} ticks in {time:?}");
}

#[test]
fn a_paused_vm_stands_still_over_a_restart_of_the_daemon_and_goes_on() {
    let _alone = alone();
    let site = Site::new();
    let before = traces(&site);
    let daemon = up(&site, &group(1), &[]);
    running(&daemon, 1);
    let vm = "agents-1";
    let (boot, process) = (boot_id(&daemon, vm), pid(&daemon, vm));
    // Behind the agent, which has to answer later.
    let spin = "nice -n 19 sh -c 'while :; do :; done' >/dev/null 2>&1 </dev/null & echo started";
    assert_eq!(daemon.sh(vm, spin), "started");
    let time = takes_20_ticks(process);
    assert_eq!(daemon.json(&["vm", "pause", vm])[0]["state"], "paused");
    stands_still(process, time);
    let refusal = fails(&daemon.run(&["vm", "exec", vm, "--", "true"]));
    assert!(refusal.contains("is paused") && refusal.contains("vm resume"), "{refusal}");

    daemon.kill();
    let daemon = up(&site, &group(1), &[]);
    assert_eq!(daemon.json(&["vm", "list"])[0]["state"], "paused");
    assert_eq!(pid(&daemon, vm), process, "the same process");
    stands_still(process, time);
    assert_eq!(ok(&daemon.run(&["vm", "resume", vm])), "agents-1\n");
    assert_eq!(boot_id(&daemon, vm), boot, "the same guest");
    // What ran in it goes on.
    takes_20_ticks(process);

    // Stopped in an orderly way, although it is paused.
    ok(&daemon.run(&["vm", "pause", vm]));
    ok(&daemon.run(&["vm", "delete", vm]));
    let events = ok(&daemon.run(&["events"]));
    assert!(events.contains("agents-1: stopped: guest powered off"), "{events}");
    assert!(daemon.stop().success());
    no_trace(&site, &before);
}
