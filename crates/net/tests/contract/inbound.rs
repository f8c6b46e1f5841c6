//! Row 12: nothing reaches a guest but answers to what it was allowed to send.

use std::net::Ipv4Addr;

use enisle_testkit::frame::Seen;
use enisle_testkit::probe::{Kind, Target, ask};
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{ECHO, SERVER};
use enisle_testkit::{Netns, world};

use crate::rig::{KINDS, QUIET, Rig, asks, lists};

fn route(ns: &Netns, via: Ipv4Addr) {
    let via = via.to_string();
    ns.check("ip", &["route", "add", "169.254.100.0/22", "via", &via], "").unwrap();
}

/// The guest got nothing since `before` frames but what comes from the server it asked itself.
fn silence(rig: &mut Rig, before: usize) {
    std::thread::sleep(QUIET);
    let heard: Vec<_> = rig.vm().guest.received()[before..]
        .iter()
        .filter_map(|f| Seen::of(f))
        .filter(|s| s.src() != Some(SERVER))
        .collect();
    assert!(heard.is_empty(), "the guest heard {heard:?}");
}

#[test]
fn row_12_nobody_calls_a_guest() {
    // Even where the guest could call them: an `allow` opens one direction.
    for allow in [vec![], vec!["192.168.1.0/24", "10.20.0.0/24"]] {
        let mut rig = Rig::new(&[lists(&[], &allow)]);
        route(&rig.world.internet, world::UPLINK);
        let guest = rig.vm().guest.ident().ip;
        rig.vm().reaches(Kind::Ping, SERVER, 0);
        let before = rig.vm().guest.received().len();
        let mut host = Sniffer::open(&rig.world.host).unwrap();
        for (name, from) in rig.world.namespaces() {
            for kind in KINDS {
                let target = Target { kind, addr: guest, port: ECHO };
                let outcome = from.run(|| ask(target, QUIET));
                assert!(!outcome.reached(), "{kind:?} from {name}: {outcome}");
            }
        }
        assert!(host.count(|f| asks(f, guest)) >= 6, "the calls did come as far as the host");
        silence(&mut rig, before);
    }
}

#[test]
fn row_12_an_answer_reaches_only_who_asked() {
    let mut rig = Rig::new(&[lists(&[], &[]), lists(&[], &[])]);
    let quiet = rig.vms[1].guest.received().len();
    for kind in KINDS {
        rig.vm().reaches(kind, SERVER, ECHO);
    }
    std::thread::sleep(QUIET);
    assert_eq!(rig.vms[1].guest.received().len(), quiet);
}

/// Answers without a question, sent to the guest's address from the server's side of the uplink.
#[test]
fn row_12_packets_that_only_look_like_answers_are_dropped() {
    let mut rig = Rig::one();
    route(&rig.world.internet, world::UPLINK);
    rig.vm().reaches(Kind::Ping, SERVER, 0);
    let before = rig.vm().guest.received().len();
    let guest = rig.vm().guest.ident().ip;
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    // From the echo port of an allowed server, to a port the guest never used.
    rig.world.internet.run(|| {
        let socket = std::net::UdpSocket::bind((SERVER, 4567)).unwrap();
        socket.send_to(b"unasked", (guest, 40_777)).unwrap();
    });
    assert!(host.sees(QUIET, |f| asks(f, guest)), "it came as far as the host");
    std::thread::sleep(QUIET);
    assert_eq!(rig.vm().guest.received().len(), before);
}

/// The second layer by itself: with the host's firewall gone and forwarding on, a call from an
/// address that the guest itself may ask still ends at the judge on the veth.
#[test]
fn row_12_the_judge_alone_drops_calls() {
    let mut rig = Rig::one();
    rig.vm().reaches(Kind::Ping, SERVER, 0);
    let via = ["route", "add", "169.254.100.0/22", "via", "45.83.104.10", "src", "93.184.216.34"];
    rig.world.internet.check("ip", &via, "").unwrap();
    rig.world.host.check("nft", &["flush", "ruleset"], "").unwrap();
    rig.world.host.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    let before = (rig.vm().guest.received().len(), rig.stats(0).in_unsolicited);
    let guest = rig.vm().guest.ident().ip;
    for kind in [Kind::Tcp, Kind::Ping] {
        let target = Target { kind, addr: guest, port: ECHO };
        let outcome = rig.world.internet.run(|| ask(target, QUIET));
        assert!(!outcome.reached(), "{kind:?}: {outcome}");
    }
    assert!(rig.stats(0).in_unsolicited >= before.1 + 2, "both came as far as the judge");
    assert_eq!(rig.vm().guest.received().len(), before.0);
}
