//! Row 13: a policy switch stops what it no longer allows, both ways, and nothing else.

use std::time::{Duration, Instant};

use enisle_net::policy::{PolicySpec, compile};
use enisle_testkit::flow::Flow;
use enisle_testkit::frame::{self, Seen};
use enisle_testkit::probe::{Kind, TOKEN};
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{ECHO, OTHER_SERVER, SERVER, SOURCE, UPLINK};

use crate::rig::{KINDS, LIMIT, QUIET, Rig, lists};

fn switch(rig: &mut Rig, policy: &PolicySpec) {
    let policy = compile(policy).unwrap();
    rig.engine.set_policy(&rig.vms[0].slot, &policy).unwrap();
}

fn closed() -> PolicySpec {
    lists(&["151.101.1.69"], &[])
}

#[test]
fn row_13_an_established_flow_stops_and_its_neighbour_goes_on() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let mut cut = Flow::open(guest, OTHER_SERVER, ECHO, LIMIT).unwrap();
    let mut kept = Flow::open(guest, SERVER, ECHO, LIMIT).unwrap();
    assert!(cut.echo(guest, b"before", LIMIT).reached());
    assert!(kept.echo(guest, b"before", LIMIT).reached());

    switch(&mut rig, &closed());
    let guest = &mut rig.vm().guest;
    let told = cut.echo(guest, b"after", LIMIT);
    assert!(told.refused() && told.how == "reset", "{told}");
    assert!(kept.echo(guest, b"after", LIMIT).reached());
    for kind in KINDS {
        rig.vm().refused(kind, OTHER_SERVER, ECHO);
    }
}

#[test]
fn row_13_a_download_stops_in_both_directions_and_stays_stopped() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let mut flow = Flow::open(guest, OTHER_SERVER, SOURCE, LIMIT).unwrap();
    let (bytes, _) = flow.drain(guest, Duration::from_millis(100));
    assert!(bytes > 100_000, "the download runs: {bytes} bytes");

    switch(&mut rig, &closed());
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    flow.drain(&mut rig.vm().guest, Duration::from_secs(1));

    let quiet = rig.vm().guest.received().len();
    flow.drain(&mut rig.vm().guest, Duration::from_millis(500));
    let late: Vec<_> = rig.vm().guest.received()[quiet..]
        .iter()
        .filter_map(|f| Seen::of(f))
        .filter(|s| s.src() == Some(OTHER_SERVER) && is_data(s))
        .collect();
    assert!(late.is_empty(), "{} segments after the second", late.len());
    let sent = internet
        .count(|f| Seen::of(f).is_some_and(|s| s.src() == Some(UPLINK) && s.dst() == Some(OTHER_SERVER)));
    assert_eq!(sent, 0, "the guest's acknowledgments still leave");
    let told = flow.echo(&mut rig.vm().guest, b"anybody there?", LIMIT);
    assert!(told.refused() && told.how == "reset", "{told}");
}

fn is_data(seen: &Seen) -> bool {
    matches!(&seen.ip, Some((_, _, frame::Body::Tcp(s))) if !s.data.is_empty())
}

#[test]
fn row_13_udp_and_ping_stop_within_a_second() {
    let mut rig = Rig::one();
    for kind in [Kind::Udp, Kind::Ping] {
        rig.vm().reaches(kind, OTHER_SERVER, ECHO);
    }
    let to = rig.vm().guest.to(OTHER_SERVER);
    let stream = frame::udp(to, 41_000, ECHO, TOKEN);
    let echoes = |rig: &mut Rig| {
        let start = Instant::now();
        let before = rig.vm().guest.received().len();
        while start.elapsed() < QUIET {
            rig.vm().guest.send(&stream).unwrap();
            rig.vm().guest.receive(Duration::from_millis(5));
        }
        let from_server = |f: &Vec<u8>| {
            Seen::of(f).is_some_and(|s| {
                s.src() == Some(OTHER_SERVER) && matches!(s.ip, Some((_, _, frame::Body::Udp { .. })))
            })
        };
        rig.vm().guest.received()[before..].iter().filter(|f| from_server(f)).count()
    };
    assert!(echoes(&mut rig) > 5, "the stream runs");
    switch(&mut rig, &closed());
    rig.vm().guest.received();
    assert_eq!(echoes(&mut rig), 0, "the stream goes on after the switch");
    rig.vm().refused(Kind::Ping, OTHER_SERVER, 0);
}

#[test]
fn row_13_shrink_then_grow() {
    let mut rig = Rig::one();
    for _ in 0..20 {
        switch(&mut rig, &closed());
        rig.vm().refused(Kind::Tcp, OTHER_SERVER, ECHO);
        rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
        switch(&mut rig, &PolicySpec::default());
        rig.vm().reaches(Kind::Tcp, OTHER_SERVER, ECHO);
    }
}
