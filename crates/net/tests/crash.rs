//! A daemon that is killed: what goes by itself, and what the next one takes away.

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, SlotSpec};
use enisle_testkit::{Netns, World};

fn config() -> EngineConfig {
    EngineConfig { scope: "00c0de01".parse().unwrap(), ranges: vec!["169.254.100.0/22".parse().unwrap()] }
}

/// Starts `examples/hold_slots.rs` in `host`, in the daemon's place, and waits until its slots are
/// there. Cargo builds examples with the tests, beside them.
fn start(host: &Netns) -> Child {
    let own = std::env::current_exe().unwrap();
    let program = own.ancestors().nth(2).unwrap().join("examples/hold_slots");
    assert!(program.exists(), "{} is missing: cargo build -p enisle-net --examples", program.display());
    let mut child = host.run(|| Command::new(&program).stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    assert!(lines.any(|line| line.unwrap() == "slots: 3"), "the child did not get so far");
    child
}

fn ours(host: &Netns) -> usize {
    let links = host.check("ip", &["-o", "link"], "").unwrap();
    links.lines().filter(|l| l.contains("en-a9fe64")).count()
}

fn forwarding(host: &Netns) -> String {
    host.sysctl("net/ipv4/conf/eth0/forwarding").unwrap().trim().to_owned()
}

/// The namespaces a process holds.
fn namespaces(pid: u32) -> Vec<File> {
    let mut held = Vec::new();
    for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap() {
        let path = entry.unwrap().path();
        if fs::read_link(&path).is_ok_and(|to| to.to_string_lossy().starts_with("net:")) {
            held.push(File::open(path).unwrap());
        }
    }
    held
}

fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn slots_nobody_holds_go_by_themselves() {
    let world = World::new().unwrap();
    let child = start(&world.host);
    assert_eq!(ours(&world.host), 3);
    kill(child);
    let deadline = Instant::now() + Duration::from_secs(5);
    while ours(&world.host) > 0 {
        assert!(Instant::now() < deadline, "the dead daemon's interfaces are still there");
        std::thread::sleep(Duration::from_millis(5));
    }
    // Table and forwarding outlive a crash, and are the next run's to keep or to restore.
    assert_eq!(forwarding(&world.host), "1");
    let engine = world.host.run(|| Engine::open(config())).unwrap();
    assert_eq!(engine.reclaim().unwrap(), 0);
    engine.close().unwrap();
    assert_eq!(forwarding(&world.host), "0");
    assert!(!world.host.check("nft", &["list", "ruleset"], "").unwrap().contains("enisle"));
}

#[test]
fn slots_a_survivor_holds_are_reclaimed() {
    let world = World::new().unwrap();
    // Somebody else's, with a name like ours.
    world
        .host
        .check("ip", &["link", "add", "en-00000001", "type", "veth", "peer", "name", "other"], "")
        .unwrap();
    let child = start(&world.host);
    let survivors = namespaces(child.id());
    assert!(survivors.len() >= 3, "{survivors:?}");
    kill(child);
    assert_eq!(ours(&world.host), 3);
    let engine = world.host.run(|| Engine::open(config())).unwrap();
    assert_eq!(engine.reclaim().unwrap(), 3);
    assert_eq!(ours(&world.host), 0);
    let policy = compile(&PolicySpec::default()).unwrap();
    let block = config().ranges[0].block(0).unwrap();
    let spec = SlotSpec {
        block,
        vm_name: "next",
        mtu: 1500,
        policy: &policy,
        tap_owner: (0, 0),
        limits: Limits::default(),
    };
    let slot = engine.create(&spec).unwrap();
    engine.remove(slot).unwrap();
    engine.close().unwrap();
    world.host.check("ip", &["link", "show", "en-00000001"], "").unwrap();
}

#[test]
fn a_scope_is_reclaimed_without_its_configuration() {
    let world = World::new().unwrap();
    let child = start(&world.host);
    let survivors = namespaces(child.id());
    kill(child);
    let count = world.host.run(|| enisle_net::reclaim(config().scope)).unwrap();
    assert_eq!((count, ours(&world.host)), (3, 0));
    assert_eq!(forwarding(&world.host), "0");
    assert!(!world.host.check("nft", &["list", "ruleset"], "").unwrap().contains("enisle"));
    drop(survivors);
}
