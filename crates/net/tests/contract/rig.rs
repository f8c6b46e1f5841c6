//! A world with an engine and guests in it, and the assertions all rows share.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use enisle_net::plan::{Block, Range};
use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, Scope, Slot, SlotSpec, SlotStats, WarmSlot};
use enisle_testkit::frame::{Body, Seen};
use enisle_testkit::probe::{Kind, Outcome};
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::tap::{Ident, TapGuest};
use enisle_testkit::{Netns, World};

/// How long an answer may take. A refusal later than a second fails as a refusal.
pub(crate) const LIMIT: Duration = Duration::from_millis(1500);
/// How long to listen for what must not come. Longer than anything takes in these worlds.
pub(crate) const QUIET: Duration = Duration::from_millis(200);
/// All three probes.
pub(crate) const KINDS: [Kind; 3] = [Kind::Tcp, Kind::Udp, Kind::Ping];

/// A policy by its two lists.
pub(crate) fn lists(drop: &[&str], allow: &[&str]) -> PolicySpec {
    let list = |l: &[&str]| l.iter().map(|s| s.parse().unwrap()).collect();
    PolicySpec { drop: list(drop), allow: list(allow) }
}

/// One microVM: its slot and who plays it.
pub(crate) struct Vm {
    pub(crate) slot: Slot,
    pub(crate) guest: TapGuest,
}

impl Vm {
    pub(crate) fn block(&self) -> Block {
        self.slot.block()
    }

    /// The VM's own namespace.
    pub(crate) fn inside(&self) -> Netns {
        Netns::from_fd(self.slot.netns()).unwrap()
    }

    /// Asks as an honest guest.
    pub(crate) fn ask(&mut self, kind: Kind, addr: Ipv4Addr, port: u16) -> Outcome {
        self.guest.ask(kind, addr, port, LIMIT)
    }

    /// The guest is answered by the listener.
    pub(crate) fn reaches(&mut self, kind: Kind, addr: Ipv4Addr, port: u16) {
        let outcome = self.ask(kind, addr, port);
        assert!(outcome.reached(), "{kind:?} {addr}:{port}: {outcome}");
    }

    /// The guest is told no, within a second, in the way the contract says.
    pub(crate) fn refused(&mut self, kind: Kind, addr: Ipv4Addr, port: u16) {
        let outcome = self.ask(kind, addr, port);
        assert!(outcome.refused(), "{kind:?} {addr}:{port}: {outcome}");
        let how = if kind == Kind::Tcp { "reset" } else { "icmp 3/13" };
        assert_eq!(outcome.how, how, "{kind:?} {addr}:{port}");
    }

    /// Not reached, and told so as far as the host's own kernel lets it: it sends a peer a burst of
    /// 6 ICMP errors and one a second then (icmp(7), `icmp_ratelimit`); resets know no limit.
    pub(crate) fn refused_by_host(&mut self, kind: Kind, addr: Ipv4Addr, port: u16) {
        let outcome = self.ask(kind, addr, port);
        let right = outcome.refused() || (kind != Kind::Tcp && outcome.silent());
        assert!(right, "{kind:?} {addr}:{port}: {outcome}");
    }
}

/// A world with one engine.
pub(crate) struct Rig {
    pub(crate) world: World,
    pub(crate) engine: Engine,
    pub(crate) vms: Vec<Vm>,
}

impl Rig {
    /// One microVM for each policy, in neighbouring blocks of 169.254.100.0/22.
    pub(crate) fn new(policies: &[PolicySpec]) -> Rig {
        Rig::within(World::new().unwrap(), policies)
    }

    /// The same in a world that a test has prepared.
    pub(crate) fn within(world: World, policies: &[PolicySpec]) -> Rig {
        let engine = open(&world, "0badcafe", "169.254.100.0/22");
        let mut rig = Rig { world, engine, vms: Vec::new() };
        let range: Range = "169.254.100.0/22".parse().unwrap();
        for (block, policy) in range.blocks().zip(policies) {
            let vm = create(&rig.world, &rig.engine, block, policy);
            rig.vms.push(vm);
        }
        rig
    }

    /// One microVM for each of these limits, each with an empty policy.
    pub(crate) fn limited(limits: &[Limits]) -> Rig {
        let mut rig = Rig::new(&[]);
        let range: Range = "169.254.100.0/22".parse().unwrap();
        for (block, limits) in range.blocks().zip(limits) {
            rig.vms.push(create_limited(&rig.world, &rig.engine, block, (&PolicySpec::default(), *limits)));
        }
        rig
    }

    /// One microVM with an empty policy.
    pub(crate) fn one() -> Rig {
        Rig::new(&[PolicySpec::default()])
    }

    /// The first microVM.
    pub(crate) fn vm(&mut self) -> &mut Vm {
        &mut self.vms[0]
    }

    pub(crate) fn stats(&self, vm: usize) -> SlotStats {
        self.engine.stats(&self.vms[vm].slot).unwrap()
    }

    /// The listener answers somebody who is permitted: the positive control.
    pub(crate) fn control(&self, from: &Netns, kind: Kind, addr: Ipv4Addr, port: u16) {
        let outcome = self.world.ask(from, kind, addr, port);
        assert!(outcome.reached(), "control {kind:?} {addr}:{port}: {outcome}");
    }

    /// Refused by the judge: the guest is told, the judge counted, the host saw nothing of it.
    pub(crate) fn judge_refuses(&mut self, kind: Kind, addr: Ipv4Addr, port: u16) {
        let before = self.stats(0).out_refused;
        let mut host = Sniffer::open(&self.world.host).unwrap();
        let guest = self.vm().guest.ident().ip;
        self.vm().refused(kind, addr, port);
        assert!(self.stats(0).out_refused > before, "{kind:?} {addr} was not counted");
        self.sentinel(&mut host);
        let leaked = host.count(|f| {
            let from_guest = Seen::of(f).is_some_and(|s| s.src() == Some(guest));
            from_guest && asks(f, addr) && is_of(f, kind)
        });
        assert_eq!(leaked, 0, "{kind:?} {addr} left the namespace");
    }

    /// An honest packet through the same path: once the sniffer has seen it, it has seen all that
    /// was sent before.
    pub(crate) fn sentinel(&mut self, sniffer: &mut Sniffer) {
        let server = enisle_testkit::world::SERVER;
        let seen = |s: &Seen| matches!(&s.ip, Some((_, dst, Body::Icmp { kind: 8, .. })) if *dst == server);
        let before = sniffer.count(|f| Seen::of(f).as_ref().is_some_and(seen));
        self.vm().reaches(Kind::Ping, server, 0);
        let after = sniffer.count(|f| Seen::of(f).as_ref().is_some_and(seen));
        assert!(after > before, "the sniffer did not even see an allowed packet");
    }

    /// Opens another engine in the same host, as a second daemon would.
    pub(crate) fn second_engine(&self) -> Engine {
        open(&self.world, "00c0ffee", "10.99.0.0/24")
    }
}

/// Opens an engine in the world's host, as a daemon does.
pub(crate) fn open(world: &World, scope: &str, range: &str) -> Engine {
    let config =
        EngineConfig { scope: scope.parse::<Scope>().unwrap(), ranges: vec![range.parse().unwrap()] };
    world.host.run(|| Engine::open(config)).unwrap()
}

/// Makes a slot and takes the tap's queue as its guest.
pub(crate) fn create(world: &World, engine: &Engine, block: Block, policy: &PolicySpec) -> Vm {
    create_limited(world, engine, block, (policy, Limits::default()))
}

/// The same with limits of its own.
pub(crate) fn create_limited(
    world: &World,
    engine: &Engine,
    block: Block,
    (policy, limits): (&PolicySpec, Limits),
) -> Vm {
    let policy = compile(policy).unwrap();
    let name = format!("vm-{}", block.id());
    let spec = SlotSpec { block, vm_name: &name, mtu: 1500, policy: &policy, tap_owner: (0, 0), limits };
    // One way or the other, a slot is the same: every second one was nobody's before it was a VM's.
    let slot = match block.id() % 2 {
        0 => world.host.run(|| engine.create(&spec)),
        _ => world.host.run(|| engine.claim(engine.prepare(&spec.warm())?, &name, &policy)),
    };
    inhabited(slot.unwrap())
}

/// The same in a slot that was nobody's.
pub(crate) fn claimed(engine: &Engine, warm: WarmSlot, policy: &PolicySpec) -> Vm {
    inhabited(engine.claim(warm, "vm-again", &compile(policy).unwrap()).unwrap())
}

/// Takes the tap's queue as the slot's guest.
fn inhabited(slot: Slot) -> Vm {
    let block = slot.block();
    let tap = slot.open_tap().unwrap();
    let ident = Ident {
        mac: block.guest_mac().octets(),
        ip: block.guest(),
        gateway_mac: block.host_mac().octets(),
        gateway: block.gateway(),
    };
    Vm { slot, guest: TapGuest::new(tap, ident).unwrap() }
}

/// Waits until the kernel counts no socket in a slot's namespace any more: those that the slot was made
/// through are let go after a grace period.
pub(crate) fn nobody_inside(slot: &Slot) {
    let inside = Netns::from_fd(slot.netns()).unwrap();
    let deadline = Instant::now() + 4 * LIMIT;
    loop {
        let text = inside.run(|| std::fs::read_to_string("/proc/thread-self/net/sockstat")).unwrap();
        if text.starts_with("sockets: used 0\n") {
            return;
        }
        assert!(Instant::now() < deadline, "{text}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// Whether a frame asks something of `addr`: the first packet of a probe, not the rest of one.
pub(crate) fn asks(frame: &[u8], addr: Ipv4Addr) -> bool {
    match Seen::of(frame).and_then(|s| s.ip) {
        Some((_, dst, body)) if dst == addr => match body {
            Body::Tcp(s) => s.flags.syn && !s.flags.ack,
            Body::Icmp { kind, .. } => kind == 8,
            Body::Udp { .. } | Body::Other(_) => true,
        },
        _ => false,
    }
}

/// Whether a frame is of the protocol that a probe uses.
fn is_of(frame: &[u8], kind: Kind) -> bool {
    let protocol = match kind {
        Kind::Tcp | Kind::Connect => 6,
        Kind::Udp => 17,
        Kind::Ping => 1,
    };
    frame.get(23) == Some(&protocol)
}

/// Whether a frame carries `mark` anywhere.
pub(crate) fn carries(frame: &[u8], mark: &[u8]) -> bool {
    frame.windows(mark.len()).any(|w| w == mark)
}
