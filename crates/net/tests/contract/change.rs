//! Row 13 under load, and what a change of policy is: bulk both ways, idle connections, streams,
//! narrowing, several microVMs at once. Each with a flow to elsewhere that goes on.

use std::time::{Duration, Instant};

use enisle_net::policy::{PolicySpec, compile, compile_narrowed};
use enisle_testkit::flow::Flow;
use enisle_testkit::frame::{self, Body, Seen};
use enisle_testkit::probe::{Kind, TOKEN};
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{ECHO, OTHER_SERVER, SERVER, SOURCE, UPLINK};

use crate::rig::{KINDS, LIMIT, QUIET, Rig, lists};

/// Row 13's promise.
const SECOND: Duration = Duration::from_secs(1);

fn switch(rig: &Rig, vm: usize, policy: &PolicySpec) {
    rig.engine.set_policy(&rig.vms[vm].slot, &compile(policy).unwrap()).unwrap();
}

fn without_other() -> PolicySpec {
    lists(&["151.101.1.69"], &[])
}

/// Frames on the Internet's side that the guest's host sent to `OTHER_SERVER`, and those it got.
fn to_other(f: &[u8]) -> bool {
    Seen::of(f).is_some_and(|s| s.src() == Some(UPLINK) && s.dst() == Some(OTHER_SERVER))
}

fn data_of_other(seen: &Seen) -> bool {
    seen.src() == Some(OTHER_SERVER) && matches!(&seen.ip, Some((_, _, Body::Tcp(s))) if !s.data.is_empty())
}

#[test]
fn an_upload_stops_at_both_ends_and_another_goes_on() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let mut cut = Flow::open(guest, OTHER_SERVER, ECHO, LIMIT).unwrap();
    let mut kept = Flow::open(guest, SERVER, ECHO, LIMIT).unwrap();
    let bulk = vec![7; 1400];
    for _ in 0..50 {
        let sent = cut.echo(guest, &bulk, LIMIT);
        assert!(sent.reached(), "the upload runs: {sent}");
    }
    switch(&rig, 0, &without_other());
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    let guest = &mut rig.vm().guest;
    for _ in 0..20 {
        let told = cut.echo(guest, &bulk, SECOND);
        assert!(told.refused() && told.how == "reset", "{told}");
        assert!(kept.echo(guest, &bulk, LIMIT).reached(), "the control goes on");
    }
    assert_eq!(internet.count(to_other), 0, "at the far end");
    assert_eq!(host.count(to_other), 0, "behind the namespace");
    let control = |f: &[u8]| Seen::of(f).is_some_and(|s| s.dst() == Some(SERVER));
    assert!(internet.count(control) >= 20, "the sniffer sees what passes");
}

#[test]
fn a_download_stops_for_the_guest_although_the_server_goes_on_sending() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let mut cut = Flow::open(guest, OTHER_SERVER, SOURCE, LIMIT).unwrap();
    let (bytes, _) = cut.drain(guest, Duration::from_millis(200));
    assert!(bytes > 100_000, "the download runs: {bytes} bytes");
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    switch(&rig, 0, &without_other());
    // Its acknowledgments are answered with resets, and the server's retransmissions end here.
    cut.drain(&mut rig.vm().guest, SECOND);
    let heard = rig.vm().guest.received().len();
    assert!(internet.sees(Duration::from_secs(3), |f| Seen::of(f).is_some_and(|s| data_of_other(&s))));
    cut.drain(&mut rig.vm().guest, SECOND);
    let late = rig.vm().guest.received()[heard..].iter().filter_map(|f| Seen::of(f));
    assert_eq!(late.filter(data_of_other).count(), 0, "segments for the guest after a second");
    assert!(rig.stats(0).in_refused > 0, "what the server still sent was judged and counted");
    for kind in KINDS {
        rig.vm().reaches(kind, SERVER, ECHO);
    }
}

#[test]
fn an_idle_connection_is_told_when_it_speaks_and_answers_never_arrive() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let mut idle = Flow::open(guest, OTHER_SERVER, ECHO, LIMIT).unwrap();
    let mut kept = Flow::open(guest, SERVER, ECHO, LIMIT).unwrap();
    switch(&rig, 0, &without_other());
    std::thread::sleep(QUIET);
    let guest = &mut rig.vm().guest;
    let told = idle.echo(guest, b"still there?", SECOND);
    assert!(told.refused() && told.how == "reset", "{told}");
    assert!(kept.echo(guest, b"still there?", LIMIT).reached());
}

#[test]
fn a_stream_and_a_ping_stop_and_come_back_with_the_policy() {
    let mut rig = Rig::one();
    for round in 0..3 {
        for kind in [Kind::Udp, Kind::Ping] {
            rig.vm().reaches(kind, OTHER_SERVER, ECHO);
        }
        switch(&rig, 0, &without_other());
        let to = rig.vm().guest.to(OTHER_SERVER);
        let stream = frame::udp(to, 41_000, ECHO, TOKEN);
        let mut internet = Sniffer::open(&rig.world.internet).unwrap();
        let start = Instant::now();
        while start.elapsed() < QUIET {
            rig.vm().guest.send(&stream).unwrap();
            rig.vm().guest.receive(Duration::from_millis(2));
        }
        rig.sentinel(&mut internet);
        assert_eq!(internet.count(to_other), 0, "round {round}");
        rig.vm().refused(Kind::Ping, OTHER_SERVER, 0);
        switch(&rig, 0, &PolicySpec::default());
    }
}

#[test]
fn a_dropped_port_stops_its_flow_and_no_other_of_the_same_address() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let mut cut = Flow::open(guest, OTHER_SERVER, 443, LIMIT).unwrap();
    let mut kept = Flow::open(guest, OTHER_SERVER, ECHO, LIMIT).unwrap();
    switch(&rig, 0, &lists(&["151.101.1.69:443/tcp"], &[]));
    let guest = &mut rig.vm().guest;
    let told = cut.echo(guest, b"after", SECOND);
    assert!(told.refused() && told.how == "reset", "{told}");
    assert!(kept.echo(guest, b"after", LIMIT).reached(), "the other port");
    rig.vm().reaches(Kind::Ping, OTHER_SERVER, 0);
}

#[test]
fn a_vms_own_lists_narrow_it_and_not_its_sibling() {
    let mut rig = Rig::new(&[PolicySpec::default(), PolicySpec::default()]);
    let group = lists(&["8.8.8.8"], &["192.168.1.10"]);
    let own = lists(&["151.101.1.0/24", "192.168.1.10:443"], &["151.101.1.69:7", "8.8.8.8"]);
    let narrowed = compile_narrowed(&group, &own).unwrap();
    let wide = compile(&group).unwrap();
    let changes = [(&rig.vms[0].slot, &narrowed), (&rig.vms[1].slot, &wide)];
    rig.engine.set_policies(&changes).unwrap();
    rig.vms[0].reaches(Kind::Tcp, OTHER_SERVER, ECHO);
    rig.vms[0].refused(Kind::Tcp, OTHER_SERVER, 443);
    rig.vms[0].refused(Kind::Ping, OTHER_SERVER, 0);
    // What the group drops, a VM's own `allow` does not open.
    rig.vms[0].refused(Kind::Udp, enisle_testkit::world::RESOLVER, ECHO);
    rig.vms[0].reaches(Kind::Tcp, enisle_testkit::world::LAN, ECHO);
    rig.vms[0].refused(Kind::Tcp, enisle_testkit::world::LAN, 443);
    rig.vms[1].reaches(Kind::Tcp, OTHER_SERVER, 443);
    rig.vms[1].reaches(Kind::Tcp, enisle_testkit::world::LAN, 443);
    assert_eq!(rig.engine.compare(&rig.vms[0].slot, &narrowed).unwrap(), Vec::<String>::new());
    assert_ne!(rig.engine.compare(&rig.vms[0].slot, &wide).unwrap(), Vec::<String>::new());
}

#[test]
fn live_flows_are_listed_by_where_they_go() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let flow = Flow::open(guest, OTHER_SERVER, 443, LIMIT).unwrap();
    rig.vm().reaches(Kind::Ping, SERVER, 0);
    let flows = rig.engine.flows(&rig.vms[0].slot).unwrap();
    let tcp = flows.iter().find(|f| f.proto == 6).unwrap();
    assert_eq!((tcp.destination, tcp.port), (OTHER_SERVER, Some(443)));
    assert_eq!(tcp.source_port, Some(flow.port()));
    let ping = flows.iter().find(|f| f.proto == 1).unwrap();
    assert_eq!((ping.destination, ping.port), (SERVER, None));
}
