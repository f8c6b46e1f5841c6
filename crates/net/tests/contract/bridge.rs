//! Mode `bridge`: who sees whom, in whose name nobody speaks, and that row 4 holds towards isolated VMs.

mod life;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use enisle_net::plan::{Block, Range};
use enisle_net::policy::{CompiledPolicy, PolicySpec, compile};
use enisle_net::{Bridge, Engine, EngineConfig, Limits, Slot, SlotSpec};
use enisle_testkit::frame::{self, Body, Ends, Seen};
use enisle_testkit::listing::Listing;
use enisle_testkit::probe::{Kind, checksum};
use enisle_testkit::tap::{Ident, TapGuest};
use enisle_testkit::world::{ECHO, HOST_LAN, SERVER};
use enisle_testkit::{Netns, World};

use crate::rig::{KINDS, LIMIT, QUIET, Vm, create, lists};

const SCOPE: &str = "0badcafe";
const ISOLATED: &str = "169.254.100.0/22";

fn bridge(name: &str, gateway: &str, range: &str) -> Bridge {
    Bridge {
        name: name.into(),
        gateway: gateway.parse().unwrap(),
        range: range.parse().unwrap(),
        isolate_ports: false,
        uplink: None,
        route_between: false,
    }
}

fn lab() -> Bridge {
    bridge("lab0", "10.77.0.1/24", "10.77.0.128/25")
}

fn other() -> Bridge {
    bridge("lab1", "10.78.0.1/24", "10.78.0.128/25")
}

fn try_open(world: &World, bridges: &[Bridge], survivors: &[Block]) -> Result<Engine, enisle_net::NetError> {
    let mut ranges: Vec<Range> = vec![ISOLATED.parse().unwrap()];
    ranges.extend(bridges.iter().map(|bridge| bridge.range));
    let config = EngineConfig { scope: SCOPE.parse().unwrap(), ranges };
    let survivors: Vec<_> = survivors.iter().map(|block| (*block, Limits::default())).collect();
    world.host.run(|| Engine::open_with(config, bridges.to_vec(), &survivors))
}

fn open(world: &World, bridges: &[Bridge]) -> Engine {
    try_open(world, bridges, &[]).unwrap()
}

/// A VM on a bridge.
struct Port {
    slot: Slot,
    guest: TapGuest,
}

fn spec(block: Block, policy: &CompiledPolicy) -> SlotSpec<'_> {
    SlotSpec { block, vm_name: "lab-1", mtu: 1500, policy, tap_owner: (0, 0), limits: Limits::default() }
}

fn slot(world: &World, engine: &Engine, block: Block) -> Slot {
    let policy = compile(&PolicySpec::default()).unwrap();
    world.host.run(|| engine.create(&spec(block, &policy))).unwrap()
}

fn port(world: &World, engine: &Engine, bridge: &Bridge, i: u32) -> Port {
    let slot = slot(world, engine, bridge.range.block(i).unwrap());
    inhabited(slot, bridge)
}

fn inhabited(slot: Slot, bridge: &Bridge) -> Port {
    let (block, gateway) = (slot.block(), bridge.gateway.addr());
    let [a, b, c, d] = gateway.octets();
    let ident = Ident {
        mac: block.guest_mac().octets(),
        ip: block.guest(),
        gateway_mac: [0x02, 0xe5, a, b, c, d],
        gateway,
    };
    let guest = TapGuest::new(slot.open_tap().unwrap(), ident).unwrap();
    Port { slot, guest }
}

impl Port {
    fn ip(&self) -> Ipv4Addr {
        self.guest.ident().ip
    }

    fn mac(&self) -> [u8; 6] {
        self.guest.ident().mac
    }

    /// Ends on the bridge itself.
    fn beside(&self, other: &Port) -> Ends {
        Ends { src_mac: self.mac(), dst_mac: other.mac(), src: self.ip(), dst: other.ip() }
    }

    fn hears(&mut self, limit: Duration, from: Ipv4Addr) -> bool {
        self.guest.wait_for(limit, |seen| (seen.src() == Some(from)).then_some(())).is_some()
    }

    /// Answers pings until `done`, as any guest's kernel does.
    fn answer_pings(&mut self, done: impl Fn() -> bool) {
        while !done() {
            let Some(got) = self.guest.receive(Duration::from_millis(20)).map(<[u8]>::to_vec) else {
                continue;
            };
            let Some((src, dst, Body::Icmp { kind: 8, .. })) = Seen::of(&got).and_then(|seen| seen.ip) else {
                continue;
            };
            let mut echo = got[34..].to_vec();
            (echo[0], echo[2], echo[3]) = (0, 0, 0);
            let sum = checksum(&echo).to_be_bytes();
            echo[2..4].copy_from_slice(&sum);
            let ends =
                Ends { src_mac: self.mac(), dst_mac: got[6..12].try_into().unwrap(), src: dst, dst: src };
            self.guest.send(&frame::ip(ends, 1, &echo, |_| ())).unwrap();
        }
    }
}

/// Somebody in `from` pings the VM, which answers.
fn pinged(world: &World, from: &Netns, vm: &mut Port) -> bool {
    let addr = vm.ip();
    std::thread::scope(|scope| {
        // More than once: each waits two seconds, which may be short on a busy machine.
        let asked = scope.spawn(|| (0..3).any(|_| world.ask(from, Kind::Ping, addr, 0).reached()));
        vm.answer_pings(|| asked.is_finished());
        asked.join().unwrap()
    })
}

fn look(host: &Netns) -> Vec<String> {
    Listing::of_network(host).unwrap()
}

/// A route from the LAN, as an operator makes one.
fn lan_knows(world: &World, bridge: &Bridge) {
    let subnet = bridge.gateway.trunc().to_string();
    world.lan.check("ip", &["route", "add", &subnet, "via", &HOST_LAN.to_string()], "").unwrap();
}

#[test]
fn vms_on_a_bridge_see_each_other_and_are_seen_from_host_and_lan() {
    let world = World::new().unwrap();
    let before = look(&world.host);
    let engine = open(&world, &[lab()]);
    let (mut a, mut b) = (port(&world, &engine, &lab(), 0), port(&world, &engine, &lab(), 1));
    // Who asks for an address on the bridge is answered by whose it is.
    let who = frame::arp(1, (a.mac(), a.ip()), ([0; 6], b.ip()));
    a.guest.send(&frame::ethernet(a.mac(), [0xff; 6], 0x0806, &who)).unwrap();
    b.guest.receive(LIMIT).unwrap();
    let answered = |f: &Vec<u8>| f[12..14] == [8, 6] && f[20..22] == [0, 2] && f[22..28] == b.mac();
    let end = Instant::now() + LIMIT;
    while !a.guest.received().iter().any(answered) {
        assert!(Instant::now() < end, "no ARP answer from the other VM");
    }
    for (from, to) in [(0, 1), (1, 0)] {
        let both = [&mut a, &mut b];
        let ends = both[from].beside(both[to]);
        both[from].guest.send(&frame::ping(ends, 7, 1)).unwrap();
        let src = ends.src;
        assert!(both[to].hears(LIMIT, src), "{from} to {to}");
    }
    for kind in KINDS {
        let outcome = a.guest.ask(kind, SERVER, ECHO, LIMIT);
        assert!(outcome.reached(), "{kind:?} to the Internet: {outcome}");
        let outcome = a.guest.ask(kind, lab().gateway.addr(), 22, LIMIT);
        assert!(kind == Kind::Udp || outcome.reached(), "{kind:?} to the host: {outcome}");
    }
    assert!(pinged(&world, &world.host, &mut a), "from the host");
    lan_knows(&world, &lab());
    assert!(pinged(&world, &world.lan, &mut b), "from the LAN");
    world.host.run(|| {
        engine.remove(a.slot).unwrap();
        engine.remove(b.slot).unwrap();
        engine.close().unwrap();
    });
    drop((a.guest, b.guest));
    assert_eq!(look(&world.host), before);
}

#[test]
fn nobody_on_a_bridge_speaks_in_anothers_name() {
    let world = World::new().unwrap();
    let engine = open(&world, &[lab()]);
    let (a, mut b) = (port(&world, &engine, &lab(), 0), port(&world, &engine, &lab(), 1));
    let c = port(&world, &engine, &lab(), 2);
    let honest = a.beside(&b);
    let stats = || engine.stats(&a.slot).unwrap();
    let dropped = |what: &str, bytes: Vec<u8>| {
        let before = stats();
        a.guest.send(&bytes).unwrap();
        // On a busy machine the judge may come to it a moment later.
        let end = Instant::now() + LIMIT;
        let counted = loop {
            let after = stats();
            let count = (after.out_frame + after.out_spoofed) - (before.out_frame + before.out_spoofed);
            if count > 0 || Instant::now() > end {
                break (count, after.out_allowed - before.out_allowed);
            }
            std::thread::sleep(Duration::from_millis(2));
        };
        assert_eq!(counted, (1, 0), "{what}");
    };
    let arp = |operation, sender, target| {
        frame::ethernet(a.mac(), [0xff; 6], 0x0806, &frame::arp(operation, sender, target))
    };
    let gateway = lab().gateway.addr();
    dropped("another's MAC", frame::ping(Ends { src_mac: c.mac(), ..honest }, 1, 1));
    dropped("another's address", frame::ping(Ends { src: c.ip(), ..honest }, 2, 1));
    dropped("the gateway's address", frame::ping(Ends { src: gateway, ..honest }, 3, 1));
    dropped("an address of nobody", frame::ping(Ends { src: Ipv4Addr::UNSPECIFIED, ..honest }, 4, 1));
    dropped("ARP for the gateway", arp(2, (a.mac(), gateway), (b.mac(), b.ip())));
    dropped("ARP for another", arp(2, (a.mac(), c.ip()), (b.mac(), b.ip())));
    dropped("ARP with another's MAC", arp(2, (c.mac(), a.ip()), (b.mac(), b.ip())));
    dropped("an ARP probe", arp(1, (a.mac(), Ipv4Addr::UNSPECIFIED), ([0; 6], c.ip())));
    dropped("IPv6", frame::ethernet(a.mac(), [0x33, 0x33, 0, 0, 0, 1], 0x86dd, &[0x60; 40]));
    dropped("a VLAN tag", frame::ethernet(a.mac(), b.mac(), 0x8100, &[0; 46]));
    dropped(
        "a frame of the bridge's own protocol",
        frame::ethernet(a.mac(), [1, 0x80, 0xc2, 0, 0, 0], 38, &[0; 46]),
    );
    // The control: what is honest arrives, and it is the first that does.
    a.guest.send(&frame::ping(honest, 9, 1)).unwrap();
    assert!(b.hears(LIMIT, a.ip()));
    // The bridge itself may ask for group members (IGMP).
    let of_a = |f: &&Vec<u8>| f.get(6..12) != Some(&[0x02, 0xe5, 10, 77, 0, 1]);
    let pings: Vec<&Vec<u8>> =
        b.guest.received().iter().filter(of_a).filter(|f| f.get(12..14) == Some(&[8, 0])).collect();
    assert_eq!(pings.len(), 1, "{pings:x?}");
    world.host.run(|| [a.slot, b.slot, c.slot].into_iter().for_each(|slot| engine.remove(slot).unwrap()));
    world.host.run(|| engine.close()).unwrap();
}

/// Both see the Internet, neither sees the other, whatever the isolated one is allowed.
#[test]
fn row_4_an_isolated_vm_and_one_on_a_bridge_never_meet() {
    let world = World::new().unwrap();
    let engine = open(&world, &[lab()]);
    let foreign = crate::rig::open(&world, "00c0ffee", "10.99.0.0/24");
    let wide = lists(&[], &["10.0.0.0/8", "10.77.0.0/24", "10.77.0.130/32", "169.254.0.0/16"]);
    let own = create(&world, &engine, ISOLATED.parse::<Range>().unwrap().block(0).unwrap(), &wide);
    let theirs = create(&world, &foreign, "10.99.0.0/24".parse::<Range>().unwrap().block(0).unwrap(), &wide);
    let mut ported = port(&world, &engine, &lab(), 0);
    assert_eq!(ported.ip(), Ipv4Addr::new(10, 77, 0, 130));
    let mut isolated: [Vm; 2] = [own, theirs];
    for vm in &mut isolated {
        vm.reaches(Kind::Tcp, SERVER, ECHO);
        for kind in KINDS {
            let outcome = vm.ask(kind, ported.ip(), ECHO);
            assert!(outcome.refused() || outcome.silent(), "{kind:?} from {}: {outcome}", vm.block());
            let outcome = ported.guest.ask(kind, vm.block().guest(), ECHO, QUIET);
            assert!(!outcome.reached(), "{kind:?} to {}: {outcome}", vm.block());
        }
    }
    // The control: both receive, and the bridge's VM is reached by whom it may be.
    assert!(pinged(&world, &world.host, &mut ported));
    assert!(ported.guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached());
    for vm in &mut isolated {
        let ip = vm.block().guest();
        let asked = |f: &Vec<u8>| Seen::of(f).is_some_and(|seen| seen.src() == Some(ip));
        assert!(!ported.guest.received().iter().any(asked), "{ip} was heard");
        vm.reaches(Kind::Ping, SERVER, 0);
        let from = ported.ip();
        let asked =
            |f: &Vec<u8>| crate::rig::asks(f, ip) && Seen::of(f).is_some_and(|s| s.src() == Some(from));
        assert!(!vm.guest.received().iter().any(asked), "{from} was heard");
    }
    let [own, theirs] = isolated;
    world.host.run(|| {
        engine.remove(own.slot).unwrap();
        engine.remove(ported.slot).unwrap();
        engine.close().unwrap();
        foreign.remove(theirs.slot).unwrap();
        foreign.close().unwrap();
    });
}

#[test]
fn nothing_passes_between_two_bridges_unless_both_are_routed_between() {
    for routed in [false, true] {
        let world = World::new().unwrap();
        let bridges =
            [Bridge { route_between: routed, ..lab() }, Bridge { route_between: routed, ..other() }];
        let engine = open(&world, &bridges);
        let mut a = port(&world, &engine, &bridges[0], 0);
        let mut b = port(&world, &engine, &bridges[1], 0);
        assert!(a.guest.ask(Kind::Ping, SERVER, 0, LIMIT).reached(), "the control");
        let (to, from) = (b.ip(), a.ip());
        a.guest.send(&frame::ping(a.guest.to(to), 5, 1)).unwrap();
        let limit = if routed { LIMIT } else { QUIET };
        // With its own address: nothing is translated on the way.
        assert_eq!(b.hears(limit, from), routed);
        if !routed {
            for kind in KINDS {
                let outcome = a.guest.ask(kind, to, ECHO, LIMIT);
                assert!(outcome.refused(), "{kind:?}: {outcome}");
            }
        }
        assert!(pinged(&world, &world.host, &mut b), "the control");
        world.host.run(|| {
            engine.remove(a.slot).unwrap();
            engine.remove(b.slot).unwrap();
            engine.close().unwrap();
        });
    }
}

#[test]
fn isolated_ports_reach_the_host_and_not_each_other() {
    let world = World::new().unwrap();
    let bridge = Bridge { isolate_ports: true, ..lab() };
    let engine = open(&world, std::slice::from_ref(&bridge));
    let mut a = port(&world, &engine, &bridge, 0);
    let mut b = port(&world, &engine, &bridge, 1);
    a.guest.send(&frame::ping(a.beside(&b), 7, 1)).unwrap();
    assert!(!b.hears(QUIET, a.ip()));
    assert!(pinged(&world, &world.host, &mut b), "the control");
    assert!(a.guest.ask(Kind::Tcp, SERVER, ECHO, LIMIT).reached(), "the control");
    world.host.run(|| {
        engine.remove(a.slot).unwrap();
        engine.remove(b.slot).unwrap();
        engine.close().unwrap();
    });
}
