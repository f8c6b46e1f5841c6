//! Row 15, one guest by itself: how many flows it may begin and have.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use enisle_net::Limits;
use enisle_testkit::flow::Flow;
use enisle_testkit::frame::{self, Body, Seen};
use enisle_testkit::probe::{Kind, TOKEN};
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{ECHO, SERVER};

use crate::rig::{LIMIT, QUIET, Rig};

/// On the Internet, and nobody's: packets to it leave and nothing comes back.
pub(crate) const NOWHERE: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 35);

/// Ports from which the guest's datagrams came back.
fn echoed(rig: &mut Rig, vm: usize) -> usize {
    let echoes = rig.vms[vm].guest.received().iter().filter_map(|f| Seen::of(f));
    echoes.filter(|s| matches!(&s.ip, Some((SERVER, _, Body::Udp { data, .. })) if data == TOKEN)).count()
}

/// Sends one datagram from each of `count` ports that were not used before.
fn begin_flows(rig: &mut Rig, vm: usize, count: u16) {
    let guest = &mut rig.vms[vm].guest;
    for _ in 0..count {
        let port = guest.fresh_port();
        guest.send(&frame::udp(guest.to(SERVER), port, ECHO, TOKEN)).unwrap();
    }
}

#[test]
fn row_15_flows_begin_no_faster_than_the_limit() {
    let slow = Limits { new_flows_per_s: 10, ..Limits::default() };
    let mut rig = Rig::limited(&[slow, Limits::default()]);
    let start = Instant::now();
    let mut old = Flow::open(&mut rig.vm().guest, SERVER, ECHO, LIMIT).unwrap();
    begin_flows(&mut rig, 0, 200);
    // TCP is told at once, and what runs goes on.
    rig.vm().refused(Kind::Tcp, SERVER, ECHO);
    assert!(old.echo(&mut rig.vm().guest, b"still here", LIMIT).reached());
    // What was let through is back by then.
    std::thread::sleep(QUIET);
    let most = slow.burst() as usize + start.elapsed().as_millis() as usize / 100 + 1;
    let passed = echoed(&mut rig, 0);
    assert!((10..=most).contains(&passed), "{passed} flows began, at most {most} may");
    let refused = rig.stats(0).flows_refused as usize;
    assert!(refused >= 200 - most, "{refused} counted, {passed} passed");
    // A neighbour has a bucket of its own.
    begin_flows(&mut rig, 1, 200);
    std::thread::sleep(QUIET);
    assert_eq!(echoed(&mut rig, 1), 200);
    assert_eq!(rig.stats(1).flows_refused, 0);
    // And the bucket fills again.
    std::thread::sleep(Duration::from_millis(500));
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
}

#[test]
fn row_15_a_stream_that_nobody_answers_is_one_flow() {
    let mut rig = Rig::limited(&[Limits { new_flows_per_s: 1, flows: 3, ..Limits::default() }]);
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    let datagram = frame::udp(rig.vm().guest.to(NOWHERE), 41_000, 5004, b"a frame of a film");
    for _ in 0..2000 {
        rig.vm().guest.send(&datagram).unwrap();
    }
    let arrived =
        |f: &[u8]| Seen::of(f).is_some_and(|s| matches!(&s.ip, Some((_, NOWHERE, Body::Udp { .. }))));
    rig.sentinel(&mut internet);
    // All of them, but for what the world's own queues may lose on a busy machine.
    let arrived = internet.count(arrived);
    assert!(arrived > 1500, "{arrived} of 2000");
    assert_eq!(rig.stats(0).flows_refused, 0);
}

#[test]
fn row_15_a_guest_has_no_more_flows_than_its_limit() {
    let few = Limits { flows: 8, new_flows_per_s: 1000, ..Limits::default() };
    let more = Limits { flows: 40, ..few };
    let mut rig = Rig::limited(&[few, more]);
    let open = |rig: &mut Rig, vm: usize, count: usize| -> Vec<Flow> {
        let guest = &mut rig.vms[vm].guest;
        (0..count).map(|_| Flow::open(guest, SERVER, ECHO, LIMIT).unwrap()).collect()
    };
    let mut flows = open(&mut rig, 0, 8);
    for _ in 0..3 {
        rig.vm().refused(Kind::Tcp, SERVER, ECHO);
    }
    for kind in [Kind::Udp, Kind::Ping] {
        rig.vm().refused_by_host(kind, SERVER, ECHO);
    }
    assert_eq!(rig.stats(0).flows_refused, 5);
    assert!(flows[0].echo(&mut rig.vm().guest, b"still here", LIMIT).reached());
    // The neighbour's limit is its own, in another chain.
    open(&mut rig, 1, 40);
    rig.vms[1].refused(Kind::Tcp, SERVER, ECHO);
    // One that ends makes room for one, once the kernel looks: `nf_conncount` counts a guest's flows
    // anew no more than once a tick of its clock.
    flows[0].reset(&rig.vms[0].guest);
    std::thread::sleep(QUIET);
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
    let text = rig.world.host.check("nft", &["list", "set", "inet", "enisle_0badcafe", "flows"], "").unwrap();
    assert!(text.contains("169.254.100.2 ct count over 8"), "{text}");
    assert!(text.contains("169.254.100.6 ct count over 40"), "{text}");
}

#[test]
fn a_guest_without_a_row_begins_nothing_and_a_table_put_back_has_its_rows() {
    let slow = Limits { flows: 5, new_flows_per_s: 50, ..Limits::default() };
    let mut rig = Rig::limited(&[slow, Limits::default()]);
    let mut old = Flow::open(&mut rig.vm().guest, SERVER, ECHO, LIMIT).unwrap();
    let table = "enisle_0badcafe";
    let element = "{ 169.254.100.2 }";
    rig.world.host.check("nft", &["delete", "element", "inet", table, "new_flows", element], "").unwrap();
    rig.vm().refused(Kind::Tcp, SERVER, ECHO);
    assert!(old.echo(&mut rig.vm().guest, b"still here", LIMIT).reached());
    rig.vms[1].reaches(Kind::Tcp, SERVER, ECHO);

    rig.world.host.check("nft", &["flush", "ruleset"], "").unwrap();
    rig.engine.refresh().unwrap();
    let text = rig.world.host.check("nft", &["list", "map", "inet", table, "new_flows"], "").unwrap();
    assert!(text.contains("169.254.100.2 limit rate 50/second burst 100 packets : goto flows_5"), "{text}");
    assert!(
        text.contains("169.254.100.6 limit rate 500/second burst 1000 packets : goto flows_4096"),
        "{text}"
    );
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
}
