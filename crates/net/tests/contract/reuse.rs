//! A block that is used again, at once, after a removal and after everything that held it was
//! killed: nothing of the last tenant reaches the next.

use std::net::UdpSocket;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Duration;

use enisle_net::plan::{Block, Range};
use enisle_net::policy::PolicySpec;
use enisle_net::{Engine, Limits, NetError, SlotStats};
use enisle_testkit::flow::Flow;
use enisle_testkit::frame::{self, Seen};
use enisle_testkit::probe::Kind;
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{ECHO, OTHER_SERVER, SERVER, UPLINK};
use enisle_testkit::{Netns, World};
use etherparse::IpFragOffset;

use crate::limits::NOWHERE;
use crate::rig::{LIMIT, QUIET, Vm, carries, claimed, create_limited, lists, nobody_inside, open};

const LATE: &[u8] = b"an answer that was on its way";
const OLD: &[u8] = b"of the last tenant";
/// Lines of the kernel's lists that name the block's guest.
const GUEST: &str = "169.254.100.2";

/// How a tenant goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Removed,
    /// Its slot is the next one's.
    Recycled,
    /// Every descriptor of daemon and VMM is closed, and nothing is undone: what the kernel does
    /// when both are killed.
    Killed,
}

const ENDS: [End; 3] = [End::Removed, End::Recycled, End::Killed];

/// A world whose first block has one tenant after another.
struct House {
    world: World,
    engine: Option<Engine>,
    vm: Option<Vm>,
}

fn block() -> Block {
    "169.254.100.0/22".parse::<Range>().unwrap().block(0).unwrap()
}

impl House {
    fn new(first: (&PolicySpec, Limits)) -> House {
        let mut house = House { world: World::new().unwrap(), engine: None, vm: None };
        house.let_in(first);
        house
    }

    fn let_in(&mut self, tenant: (&PolicySpec, Limits)) {
        let engine = self.engine.get_or_insert_with(|| {
            let engine = open(&self.world, "0badcafe", "169.254.100.0/22");
            engine.reclaim().unwrap();
            engine
        });
        self.vm = Some(create_limited(&self.world, engine, block(), tenant));
    }

    fn vm(&mut self) -> &mut Vm {
        self.vm.as_mut().unwrap()
    }

    fn stats(&self) -> SlotStats {
        self.engine.as_ref().unwrap().stats(&self.vm.as_ref().unwrap().slot).unwrap()
    }

    /// The tenant goes, and the next one is there as soon as can be.
    fn replace(&mut self, end: End, next: (&PolicySpec, Limits)) {
        let Vm { slot, guest } = self.vm.take().unwrap();
        match end {
            End::Removed => {
                drop(guest);
                self.engine.as_ref().unwrap().remove(slot).unwrap();
            }
            End::Recycled => {
                drop(guest);
                nobody_inside(&slot);
                let engine = self.engine.as_ref().unwrap();
                let (tell, told) = mpsc::channel();
                match engine.recycle(slot, move |gone| tell.send(gone).unwrap()) {
                    Ok(warm) => {
                        assert_eq!(warm.spec().limits, next.1);
                        self.vm = Some(claimed(engine, warm, next.0));
                        return;
                    }
                    // On a host whose processors' queues never were empty it goes instead.
                    Err(NetError::Unclean { why, .. }) => {
                        assert!(why.source.to_string().starts_with("packets wait"), "{}", why.source);
                        while told.try_recv().map(Result::unwrap).is_err() {
                            assert!(engine.see_off());
                        }
                    }
                    Err(error) => panic!("{error}"),
                }
            }
            End::Killed => drop((guest, slot, self.engine.take())),
        }
        self.let_in(next);
    }
}

fn open_policy() -> PolicySpec {
    PolicySpec::default()
}

/// Lines of the host's connection-tracking table that name the guest.
fn tracked(host: &Netns) -> Vec<String> {
    let table = host.run(|| std::fs::read_to_string("/proc/thread-self/net/nf_conntrack")).unwrap();
    table.lines().filter(|line| line.contains(&format!("src={GUEST} "))).map(str::to_owned).collect()
}

/// Lines of the host's neighbours, routes and sets of the firewall that name the guest.
fn named(host: &Netns) -> Vec<String> {
    let mut all = Vec::new();
    for (program, args) in [
        ("ip", &["neigh", "show"][..]),
        ("ip", &["route", "show", "table", "all"]),
        ("nft", &["-s", "list", "table", "inet", "enisle_0badcafe"]),
    ] {
        let text = host.check(program, args, "").unwrap();
        all.extend(text.lines().filter(|line| line.contains(GUEST)).map(|line| line.trim().to_owned()));
    }
    all
}

/// The guest's port on the host's address, and a socket of the server it spoke with.
fn converse(house: &mut House) -> (UdpSocket, std::net::SocketAddr) {
    let server = house.world.internet.run(|| UdpSocket::bind((SERVER, 0))).unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let port = server.local_addr().unwrap().port();
    let guest = &house.vm().guest;
    guest.send(&frame::udp(guest.to(SERVER), 41_000, port, b"a question")).unwrap();
    let (_, from) = server.recv_from(&mut [0; 64]).unwrap();
    assert_eq!(from.ip(), UPLINK);
    (server, from)
}

#[test]
fn a_late_answer_does_not_reach_the_next_tenant() {
    for end in ENDS {
        let mut house = House::new((&open_policy(), Limits::default()));
        let (server, from) = converse(&mut house);
        // The control: the very same packet reaches who asked.
        server.send_to(LATE, from).unwrap();
        let guest = &mut house.vm().guest;
        assert!(guest.wait_for(LIMIT, |s| is_late(s).then_some(())).is_some(), "{end:?}");
        assert!(!tracked(&house.world.host).is_empty());

        house.replace(end, (&open_policy(), Limits::default()));
        assert_eq!(tracked(&house.world.host), [""; 0], "{end:?}");
        let mut host = Sniffer::open(&house.world.host).unwrap();
        server.send_to(LATE, from).unwrap();
        assert!(host.sees(LIMIT, |f| carries(f, LATE)), "{end:?}: it came as far as the host");
        std::thread::sleep(QUIET);
        let received = house.vm().guest.received();
        assert!(!received.iter().any(|f| carries(f, LATE)), "{end:?}: delivered to the next tenant");
        assert_eq!(received.len(), 0, "{end:?}");
        assert_eq!(house.stats().in_allowed, 0, "{end:?}");
        // And the next one's own conversations work, from the same port to the same server.
        let (server, from) = converse(&mut house);
        server.send_to(LATE, from).unwrap();
        let guest = &mut house.vm().guest;
        assert!(guest.wait_for(LIMIT, |s| is_late(s).then_some(())).is_some(), "{end:?}");
    }
}

fn is_late(seen: &Seen) -> bool {
    matches!(&seen.ip, Some((SERVER, _, frame::Body::Udp { data, .. })) if data == LATE)
}

/// Sends to the last tenant, without a pause, while one follows the other: what is in the queues of the
/// host's processors at that moment was for the one that is gone.
#[test]
fn what_is_on_its_way_to_the_last_tenant_does_not_reach_the_next() {
    const ROUNDS: usize = 12;
    for end in [End::Removed, End::Recycled] {
        let mut house = House::new((&open_policy(), Limits::default()));
        for round in 0..ROUNDS {
            let (server, from) = converse(&mut house);
            // The control: they arrive while there is somebody to have them.
            server.send_to(LATE, from).unwrap();
            let guest = &mut house.vm().guest;
            assert!(guest.wait_for(LIMIT, |s| is_late(s).then_some(())).is_some(), "{end:?} {round}");
            let stop = AtomicBool::new(false);
            std::thread::scope(|scope| {
                // Bounded in count; a full queue refuses some.
                scope.spawn(|| {
                    for _ in 0..50_000 {
                        if stop.load(Relaxed) {
                            break;
                        }
                        let _ = server.send_to(LATE, from);
                    }
                });
                house.replace(end, (&open_policy(), Limits::default()));
                stop.store(true, Relaxed);
            });
            std::thread::sleep(QUIET / 4);
            let received = house.vm().guest.received();
            assert_eq!(received.len(), 0, "{end:?} {round}: of the last tenant's stream");
            assert_eq!(house.stats().in_allowed, 0, "{end:?} {round}");
        }
    }
}

#[test]
fn counts_budgets_and_policy_begin_anew() {
    let tight = Limits { flows: 6, new_flows_per_s: 3, ..Limits::default() };
    for end in ENDS {
        let mut house = House::new((&lists(&["151.101.1.69"], &[]), tight));
        // Spends what it has: flows and their rate, fragments, refusals.
        let fresh = named(&house.world.host);
        let vm = house.vm();
        vm.refused(Kind::Tcp, OTHER_SERVER, ECHO);
        let _open: Vec<Flow> =
            (0..6).map_while(|_| Flow::open(&mut vm.guest, SERVER, ECHO, LIMIT).ok()).collect();
        vm.refused(Kind::Tcp, SERVER, ECHO);
        let spent = house.stats();
        assert!(spent.flows_refused > 0 && spent.out_refused > 0 && spent.in_allowed > 0, "{spent:?}");

        house.replace(end, (&open_policy(), tight));
        assert_eq!(house.stats(), SlotStats::default(), "{end:?}");
        // Nothing of an address but what a fresh slot has, the count of flows included.
        assert_eq!(named(&house.world.host), fresh, "{end:?}");
        // Six at once: more than the rate would give back by now.
        let guest = &mut house.vm().guest;
        for i in 0..6 {
            let flow = Flow::open(guest, OTHER_SERVER, ECHO, LIMIT);
            assert!(flow.is_ok(), "{end:?}: flow {i} of the next tenant: {}", flow.unwrap_err());
        }
        assert_eq!(house.stats().flows_refused, 0, "{end:?}");
    }
}

#[test]
fn the_budget_of_icmp_errors_begins_anew() {
    /// Nobody listens there.
    const CLOSED: u16 = 4;
    for end in ENDS {
        let mut house = House::new((&open_policy(), Limits::default()));
        // The server may complain as often as it likes.
        house.world.internet.set_sysctl("net/ipv4/icmp_ratelimit", "0").unwrap();
        let vm = house.vm();
        for port in 0..600 {
            let question = frame::udp(vm.guest.to(SERVER), 42_000 + port, CLOSED, b"anybody?");
            vm.guest.send(&question).unwrap();
            // Not faster than the 1000 a second that its kernel sends in all.
            std::thread::sleep(Duration::from_millis(1));
        }
        assert!(house.stats().in_limited > 0, "{end:?}: the budget was not spent");
        house.replace(end, (&open_policy(), Limits::default()));
        for _ in 0..10 {
            let outcome = house.vm().ask(Kind::Udp, SERVER, CLOSED);
            assert!(outcome.refused(), "{end:?}: {outcome}");
        }
        assert_eq!(house.stats().in_limited, 0, "{end:?}");
    }
}

/// One half of a datagram to the echo port: 24 bytes, the header in the first 16.
fn half(vm: &Vm, first: bool) -> Vec<u8> {
    let to = vm.guest.to(SERVER);
    let head = [&[0x9e, 0x34, 0, 7, 0, 34, 0, 0][..], b"enisle: "].concat();
    if first {
        return frame::ip(to, 17, &head, |h| (h.identification, h.more_fragments) = (77, true));
    }
    let at = IpFragOffset::try_new(2).unwrap();
    frame::ip(to, 17, OLD, |h| (h.identification, h.fragment_offset) = (77, at))
}

#[test]
fn half_a_datagram_is_not_completed_by_the_next_tenant() {
    // On their way to the server, not in its echo.
    let words = |f: &[u8]| carries(f, OLD) && f.get(30..34) == Some(&SERVER.octets()[..]);
    for end in ENDS {
        let mut house = House::new((&open_policy(), Limits::default()));
        let mut internet = Sniffer::open(&house.world.internet).unwrap();
        // The control: one tenant's two halves, the second one first, become a datagram.
        let vm = house.vm();
        vm.guest.send(&half(vm, false)).unwrap();
        vm.guest.send(&half(vm, true)).unwrap();
        assert!(internet.sees(LIMIT, words), "{end:?}");

        let mut internet = Sniffer::open(&house.world.internet).unwrap();
        let vm = house.vm();
        vm.guest.send(&half(vm, false)).unwrap();
        vm.reaches(Kind::Ping, SERVER, 0);
        house.replace(end, (&open_policy(), Limits::default()));
        let vm = house.vm();
        vm.guest.send(&half(vm, true)).unwrap();
        // Refused, and told so; whatever the host would have made of it is there after this.
        vm.reaches(Kind::Ping, SERVER, 0);
        assert!(!internet.sees(QUIET, words), "{end:?}: words of the last tenant");
        assert_eq!(house.stats().out_limited, 1, "{end:?}");
    }
}

#[test]
fn fragments_that_wait_for_nothing_hinder_nobody() {
    let mut house = House::new((&open_policy(), Limits::default()));
    house.vm().reaches(Kind::Udp, SERVER, ECHO);
    house.replace(End::Removed, (&open_policy(), Limits::default()));
    let mut internet = Sniffer::open(&house.world.internet).unwrap();
    let vm = house.vm();
    vm.guest.send(&half(vm, true)).unwrap();
    vm.guest.send(&half(vm, false)).unwrap();
    assert!(internet.sees(LIMIT, |f| carries(f, OLD)));
}

#[test]
fn what_the_last_tenant_sent_is_gone_before_the_next_one_is_there() {
    for end in [End::Removed, End::Recycled] {
        let mut house = House::new((&open_policy(), Limits::default()));
        let stream = frame::udp(house.vm().guest.to(NOWHERE), 41_000, 5004, OLD);
        for _ in 0..20 {
            let mut internet = Sniffer::open(&house.world.internet).unwrap();
            for _ in 0..50 {
                house.vm().guest.send(&stream).unwrap();
            }
            house.replace(end, (&open_policy(), Limits::default()));
            let before = internet.count(|f| carries(f, OLD));
            assert!(before > 0, "{end:?}: the stream left");
            assert_eq!(tracked(&house.world.host), [""; 0], "{end:?}");
            std::thread::sleep(Duration::from_millis(20));
            let after = internet.count(|f| carries(f, OLD));
            assert_eq!(after, before, "{end:?}: sent after its sender was gone");
            assert_eq!(house.vm().guest.received().len(), 0, "{end:?}");
        }
    }
}
