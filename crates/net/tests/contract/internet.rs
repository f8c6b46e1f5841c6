//! Rows 1, 2 and 14: the Internet, the `drop` list, egress `none`.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use enisle_testkit::flow::Flow;
use enisle_testkit::frame::{self, Body, Seen};
use enisle_testkit::probe::Kind;
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{ECHO, LAN, OTHER_SERVER, RESOLVER, SERVER, SOURCE, UPLINK};

use crate::rig::{KINDS, LIMIT, QUIET, Rig, lists};

#[test]
fn row_1_public_addresses_are_reached_behind_the_hosts_address() {
    let mut rig = Rig::one();
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    let guest = rig.vm().guest.ident().ip;
    for kind in KINDS {
        rig.vm().reaches(kind, SERVER, ECHO);
        rig.vm().reaches(kind, RESOLVER, ECHO);
    }
    assert!(rig.stats(0).out_allowed > 0 && rig.stats(0).in_allowed > 0);
    let from = |address: Ipv4Addr| move |f: &[u8]| Seen::of(f).is_some_and(|s| s.src() == Some(address));
    assert!(internet.count(from(UPLINK)) > 0);
    assert_eq!(internet.count(from(guest)), 0, "an address of ours on the Internet");
}

#[test]
fn row_1_a_stream_arrives_whole() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let mut flow = Flow::open(guest, SERVER, SOURCE, LIMIT).unwrap();
    // 300 ms on an idle machine; how fast it is here is not the question.
    let start = Instant::now();
    let (mut bytes, mut reset) = (0, false);
    while bytes <= 1_000_000 && !reset && start.elapsed() < Duration::from_secs(20) {
        let (more, ended) = flow.drain(guest, Duration::from_millis(300));
        bytes += more;
        reset = ended;
    }
    assert!(bytes > 1_000_000 && !reset, "{bytes} bytes, reset: {reset}");
    flow.reset(guest);
}

#[test]
fn row_1_icmp_errors_about_its_own_packets_reach_the_guest() {
    let mut rig = Rig::one();
    let guest = &mut rig.vm().guest;
    let to = guest.to(SERVER);
    let short = frame::ip(to, 17, &[0x9c, 0x41, 0, 7, 0, 12, 0, 0, 1, 2, 3, 4], |h| h.time_to_live = 1);
    guest.send(&short).unwrap();
    let exceeded = guest.wait_for(LIMIT, |s| is_icmp(s, 11, 0));
    assert!(exceeded.is_some(), "time exceeded");

    // A narrow link behind the host: path MTU discovery has to be told.
    rig.world.host.check("ip", &["link", "set", "eth0", "mtu", "1300"], "").unwrap();
    let guest = &mut rig.vm().guest;
    let mut long = vec![0x9c, 0x42, 0, 7, 0x05, 0x78, 0, 0];
    long.resize(1400, 0);
    guest.send(&frame::ip(to, 17, &long, |h| h.dont_fragment = true)).unwrap();
    assert!(guest.wait_for(LIMIT, |s| is_icmp(s, 3, 4)).is_some(), "fragmentation needed");
}

fn is_icmp(seen: &Seen, want_kind: u8, want_code: u8) -> Option<()> {
    match &seen.ip {
        Some((_, _, Body::Icmp { kind, code, .. })) => {
            ((*kind, *code) == (want_kind, want_code)).then_some(())
        }
        _ => None,
    }
}

#[test]
fn row_2_the_drop_list_is_refused_before_the_veth() {
    let mut rig = Rig::new(&[lists(&["151.101.1.0/24", "192.168.1.0/24"], &[])]);
    for addr in [OTHER_SERVER, LAN] {
        for kind in KINDS {
            rig.control(&rig.world.host, kind, addr, ECHO);
            rig.judge_refuses(kind, addr, ECHO);
        }
    }
}

#[test]
fn row_2_ports_and_protocols_of_a_rule_are_its_own() {
    let mut rig = Rig::new(&[lists(&["151.101.1.69", "93.184.216.34:9/tcp"], &["151.101.1.69:7/udp"])]);
    for kind in KINDS {
        rig.control(&rig.world.host, kind, OTHER_SERVER, ECHO);
    }
    rig.vm().reaches(Kind::Udp, OTHER_SERVER, ECHO);
    rig.judge_refuses(Kind::Tcp, OTHER_SERVER, ECHO);
    rig.judge_refuses(Kind::Ping, OTHER_SERVER, 0);
    rig.judge_refuses(Kind::Tcp, SERVER, 9);
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
}

#[test]
fn row_14_egress_none_lets_nothing_leave() {
    let mut rig = Rig::new(&[lists(&["0.0.0.0/0"], &[]), lists(&[], &[])]);
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    let guest = rig.vm().guest.ident().ip;
    for addr in [SERVER, RESOLVER, OTHER_SERVER] {
        for kind in KINDS {
            rig.control(&rig.world.host, kind, addr, ECHO);
            rig.vm().refused(kind, addr, ECHO);
        }
    }
    rig.vm().refused(Kind::Udp, RESOLVER, 53);
    // The neighbour is the control: what leaves is seen.
    rig.vms[1].reaches(Kind::Ping, SERVER, 0);
    let other = rig.vms[1].guest.ident().ip;
    std::thread::sleep(QUIET);
    let from = |a: Ipv4Addr| move |f: &[u8]| Seen::of(f).is_some_and(|s| s.src() == Some(a));
    assert!(host.count(from(other)) > 0);
    assert_eq!(host.count(from(guest)), 0);
    assert_eq!(rig.stats(0).out_allowed, 0);
}
