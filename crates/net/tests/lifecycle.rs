//! Slots come and go without a trace, on the real kernel, each test in a host of its own.

use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use enisle_net::plan::{Block, Range};
use enisle_net::policy::{CompiledPolicy, PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, NetError, Scope, Slot, SlotSpec, Step};
use enisle_testkit::listing::Listing;
use enisle_testkit::probe::Kind;
use enisle_testkit::tap::{Ident, TapGuest};
use enisle_testkit::world::{CANARY, ECHO, LAN, NEIGHBOUR, SERVER, UPLINK};
use enisle_testkit::{Netns, World};

const SCOPE: &str = "5eed0001";
const RANGE: &str = "169.254.100.0/22";
const LIMIT: Duration = Duration::from_secs(2);

fn config(scope: &str, ranges: &[&str]) -> EngineConfig {
    let ranges = ranges.iter().map(|r| r.parse().unwrap()).collect();
    EngineConfig { scope: scope.parse::<Scope>().unwrap(), ranges }
}

fn open(host: &Netns) -> Engine {
    host.run(|| Engine::open(config(SCOPE, &[RANGE]))).unwrap()
}

fn block(i: u32) -> Block {
    RANGE.parse::<Range>().unwrap().block(i).unwrap()
}

fn policy(allow: &[&str]) -> CompiledPolicy {
    let allow = allow.iter().map(|r| r.parse().unwrap()).collect();
    compile(&PolicySpec { drop: Vec::new(), allow }).unwrap()
}

fn spec<'a>(i: u32, policy: &'a CompiledPolicy) -> SlotSpec<'a> {
    SlotSpec {
        block: block(i),
        vm_name: "agents-1",
        mtu: 1500,
        policy,
        tap_owner: (0, 0),
        limits: Limits::default(),
    }
}

fn guest(slot: &Slot) -> TapGuest {
    let block = slot.block();
    let ident = Ident {
        mac: block.guest_mac().octets(),
        ip: block.guest(),
        gateway_mac: block.host_mac().octets(),
        gateway: block.gateway(),
    };
    TapGuest::new(slot.open_tap().unwrap(), ident).unwrap()
}

/// What is in the host's own namespace. BPF objects and namespaces of the machine are not looked
/// at here: other tests make some at the same time (`leaks.rs` does).
fn look(host: &Netns) -> Vec<String> {
    Listing::of_network(host).unwrap()
}

fn forwarding(host: &Netns, link: &str) -> String {
    host.sysctl(&format!("net/ipv4/conf/{link}/forwarding")).unwrap()
}

#[test]
fn nothing_is_left_of_slots_and_engine() {
    let world = World::new().unwrap();
    let before = look(&world.host);
    let engine = open(&world.host);
    let policy = policy(&["192.168.1.10"]);
    let slots: Vec<Slot> = (0..5).map(|i| engine.create(&spec(i, &policy)).unwrap()).collect();
    let during = look(&world.host);
    assert!(during.iter().any(|l| l.contains("en-a9fe6402")), "{during:#?}");
    assert!(during.iter().any(|l| l.contains("enisle_5eed0001")), "{during:#?}");

    let start = Instant::now();
    for slot in slots {
        engine.remove(slot).unwrap();
    }
    // Namespaces went by themselves; one that had to be cut off would have taken two seconds.
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
    engine.close().unwrap();
    assert_eq!(look(&world.host), before);
}

#[test]
fn a_slot_that_cannot_be_made_leaves_nothing_and_touches_nobody() {
    let world = World::new().unwrap();
    let engine = open(&world.host);
    let policy = policy(&[]);
    // Somebody has an interface of the very name.
    let name = block(0).host_veth();
    world
        .host
        .check("ip", &["link", "add", name.as_str(), "type", "veth", "peer", "name", "other"], "")
        .unwrap();
    let before = look(&world.host);
    let error = engine.create(&spec(0, &policy)).unwrap_err();
    match &error {
        NetError::Create { source, left, .. } => {
            assert_eq!(source.step, Step::Veth);
            assert!(left.is_empty(), "{error}");
        }
        other => panic!("{other}"),
    }
    assert_eq!(look(&world.host), before);
    world.host.check("ip", &["link", "del", name.as_str()], "").unwrap();
    let slot = engine.create(&spec(0, &policy)).unwrap();
    engine.remove(slot).unwrap();
}

#[test]
fn what_cannot_be_is_refused_before_anything_is_made() {
    let world = World::new().unwrap();
    let engine = open(&world.host);
    let policy = policy(&[]);
    let slot = engine.create(&spec(0, &policy)).unwrap();
    let before = look(&world.host);
    assert!(matches!(engine.create(&spec(0, &policy)), Err(NetError::BlockTaken(b)) if b == block(0)));
    let foreign = SlotSpec { block: Block::from_guest([10, 0, 0, 2].into()), ..spec(1, &policy) };
    assert!(matches!(engine.create(&foreign), Err(NetError::ForeignBlock(_))));
    let narrow = SlotSpec { mtu: 500, ..spec(1, &policy) };
    assert!(matches!(engine.create(&narrow), Err(NetError::Mtu(500))));
    assert_eq!(look(&world.host), before);
    engine.remove(slot).unwrap();
}

#[test]
fn a_block_is_free_again_at_once() {
    let world = World::new().unwrap();
    let engine = open(&world.host);
    let policy = policy(&[]);
    for _ in 0..10 {
        let slot = engine.create(&spec(0, &policy)).unwrap();
        let mut guest = guest(&slot);
        assert!(guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached());
        drop(guest);
        engine.remove(slot).unwrap();
    }
}

/// Lines of the host's connection-tracking table that name `text`.
fn flows(host: &Netns, text: &str) -> usize {
    let table = host.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")).unwrap();
    table.lines().filter(|line| line.contains(text)).count()
}

#[test]
fn the_next_tenant_inherits_no_flow() {
    let world = World::new().unwrap();
    let engine = open(&world.host);
    let policy = policy(&[]);
    let slots: Vec<Slot> = (0..4).map(|i| engine.create(&spec(i, &policy)).unwrap()).collect();
    for slot in &slots {
        let mut guest = guest(slot);
        for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
            assert!(guest.ask(kind, SERVER, ECHO, LIMIT).reached());
        }
    }
    for i in 0..4 {
        let source = format!("src={} ", block(i).guest());
        assert!(flows(&world.host, &source) >= 2, "the control: there are flows to forget");
    }
    // One alone, then three in one walk.
    let mut slots = slots.into_iter();
    engine.remove(slots.next().unwrap()).unwrap();
    assert_eq!(flows(&world.host, &format!("src={} ", block(0).guest())), 0);
    assert!(flows(&world.host, &format!("src={} ", block(1).guest())) >= 2, "a neighbour lost its flows");
    std::thread::scope(|scope| {
        for slot in slots {
            scope.spawn(|| engine.remove(slot).unwrap());
        }
    });
    assert_eq!(flows(&world.host, "src=169.254.100."), 0);
}

#[test]
fn a_namespace_somebody_still_holds_is_cut_off() {
    let world = World::new().unwrap();
    let engine = open(&world.host);
    let policy = policy(&[]);
    let slot = engine.create(&spec(0, &policy)).unwrap();
    let mut guest = guest(&slot);
    assert!(guest.ask(Kind::Udp, SERVER, ECHO, LIMIT).reached());
    let _held: OwnedFd = slot.netns().try_clone_to_owned().unwrap();
    engine.remove(slot).unwrap();
    assert!(!look(&world.host).iter().any(|l| l.contains("en-a9fe6402")));
    assert!(!guest.ask(Kind::Udp, SERVER, ECHO, Duration::from_millis(300)).reached());
}

#[test]
fn many_threads_make_and_unmake_slots() {
    let world = World::new().unwrap();
    let before = look(&world.host);
    let engine = open(&world.host);
    let policy = policy(&[]);
    std::thread::scope(|scope| {
        for t in 0..8 {
            let (engine, policy) = (&engine, &policy);
            scope.spawn(move || {
                for i in 0..4 {
                    let slot = engine.create(&spec(t * 4 + i, policy)).unwrap();
                    engine.remove(slot).unwrap();
                }
            });
        }
    });
    engine.close().unwrap();
    assert_eq!(look(&world.host), before);
}

#[test]
fn forwarding_is_switched_on_for_slots_only_and_restored() {
    let world = World::new().unwrap();
    let host = &world.host;
    // The Internet's router is told that the LAN is behind the host: nobody may get through.
    world.internet.check("ip", &["route", "add", "192.168.1.0/24", "via", "45.83.104.10"], "").unwrap();
    world.lan.check("ip", &["route", "replace", "default", "via", "192.168.1.1"], "").unwrap();
    let through = || world.ask(&world.internet, Kind::Tcp, LAN, ECHO).reached();
    assert!(!through());

    let engine = open(host);
    assert_eq!(host.sysctl("net/ipv4/ip_forward").unwrap().trim(), "0");
    assert_eq!(forwarding(host, "eth0").trim(), "1");
    assert_eq!(forwarding(host, "lan0").trim(), "0");
    let open_lan = policy(&["192.168.1.10"]);
    let slot = engine.create(&spec(0, &open_lan)).unwrap();
    assert_eq!(forwarding(host, "lan0").trim(), "1");
    assert!(guest(&slot).ask(Kind::Tcp, LAN, ECHO, LIMIT).reached());
    assert!(!through(), "the host routes between its own networks");

    // The control: an operator who makes the host a router gets one.
    host.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    engine.refresh().unwrap();
    assert!(through());

    host.set_sysctl("net/ipv4/ip_forward", "0").unwrap();
    engine.refresh().unwrap();
    assert_eq!(forwarding(host, "eth0").trim(), "1");
    engine.remove(slot).unwrap();
    engine.close().unwrap();
    for link in ["eth0", "lan0"] {
        assert_eq!(forwarding(host, link).trim(), "0", "{link}");
    }
}

#[test]
fn a_flushed_firewall_and_new_neighbours_are_followed() {
    let world = World::new().unwrap();
    let engine = open(&world.host);
    let policy = policy(&["0.0.0.0/0"]);
    let slot = engine.create(&spec(0, &policy)).unwrap();
    let mut guest = guest(&slot);
    assert!(guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached());
    world.host.check("nft", &["flush", "ruleset"], "").unwrap();
    assert!(!guest.ask(Kind::Tcp, SERVER, ECHO, Duration::from_millis(300)).reached());
    // A new slot is made all the same, table and all.
    let other = engine.create(&spec(1, &policy)).unwrap();
    engine.refresh().unwrap();
    assert!(guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached());
    assert!(guest.ask(Kind::Tcp, UPLINK, CANARY, LIMIT).refused());

    // The server's network becomes the host's neighbour.
    world.host.check("ip", &["route", "add", "93.184.216.0/24", "dev", "eth0"], "").unwrap();
    engine.refresh().unwrap();
    assert!(guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).refused());
    assert!(guest.ask(Kind::Tcp, NEIGHBOUR, ECHO, LIMIT).refused());
    world.host.check("ip", &["route", "del", "93.184.216.0/24", "dev", "eth0"], "").unwrap();
    engine.refresh().unwrap();
    assert!(guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached());
    engine.remove(other).unwrap();
    engine.remove(slot).unwrap();
}

#[test]
fn the_monitor_tells_of_what_refresh_follows() {
    use enisle_net::{Change, Monitor};
    let world = World::new().unwrap();
    let mut monitor = world.host.run(Monitor::open).unwrap();
    assert_eq!(monitor.wait(Duration::ZERO).unwrap(), None);
    world.host.check("ip", &["addr", "add", "10.77.0.1/24", "dev", "eth0"], "").unwrap();
    assert_eq!(monitor.wait(LIMIT).unwrap(), Some(Change::Routing));
    while monitor.wait(Duration::from_millis(50)).unwrap().is_some() {}
    world.host.check("nft", &["add", "table", "inet", "somebody"], "").unwrap();
    assert_eq!(monitor.wait(LIMIT).unwrap(), Some(Change::Firewall));
}

#[test]
fn a_range_in_use_is_refused_with_a_free_one() {
    let world = World::new().unwrap();
    world.host.check("ip", &["addr", "add", "169.254.101.9/30", "dev", "lan0"], "").unwrap();
    let before = look(&world.host);
    let error = world.host.run(|| Engine::open(config(SCOPE, &[RANGE]))).unwrap_err().to_string();
    assert_eq!(
        error,
        "range 169.254.100.0/22 is in use: interface lan0 has the address 169.254.101.9/30; \
         the next free range is 169.254.104.0/22"
    );
    let error = world.host.run(|| Engine::open(config(SCOPE, &["10.20.0.0/25"]))).unwrap_err();
    assert!(error.to_string().contains("interface lan1 has the address 10.20.0.1/24"), "{error}");
    assert_eq!(look(&world.host), before);
}

#[test]
fn ranges_are_leased_for_a_life() {
    let world = World::new().unwrap();
    let first = open(&world.host);
    let try_open = |scope: &str, range: &str| world.host.run(|| Engine::open(config(scope, &[range])));
    for range in [RANGE, "169.254.102.0/23", "169.254.96.0/20"] {
        match try_open("0000000b", range) {
            Err(NetError::RangeLeased { by, next, .. }) => {
                assert_eq!(by.to_string(), RANGE);
                assert!(!next.unwrap().overlaps(&by));
            }
            other => panic!("{range}: {other:?}"),
        }
    }
    let second = try_open("0000000b", "169.254.104.0/22").unwrap();
    second.close().unwrap();
    drop(second);
    first.close().unwrap();
    drop(first);
    try_open("0000000b", "169.254.96.0/20").unwrap().close().unwrap();
    // Another host is another world.
    let elsewhere = World::new().unwrap();
    open(&elsewhere.host).close().unwrap();
}
