//! Rows 5, 6 and 7: private networks, on-link networks, metadata, special addresses.

use std::net::Ipv4Addr;

use enisle_testkit::probe::Kind;
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{ECHO, LAN, LAN_2, METADATA, NEIGHBOUR, SERVER};

use crate::rig::{KINDS, Rig, asks, lists};

fn addresses(list: &[&str]) -> Vec<Ipv4Addr> {
    list.iter().map(|a| a.parse().unwrap()).collect()
}

/// Gives `lan` an address that the host can reach, with a UDP echo; TCP echoes everywhere.
fn place(rig: &Rig, addr: Ipv4Addr) {
    let lan = &rig.world.lan;
    lan.check("ip", &["addr", "add", &format!("{addr}/32"), "dev", "lo"], "").unwrap();
    let via = ["route", "replace", &format!("{addr}/32"), "via", "192.168.1.10", "dev", "lan0"];
    rig.world.host.check("ip", &via, "").unwrap();
    rig.world.servers.udp_echo(lan, addr, ECHO).unwrap();
}

#[test]
fn row_5_private_networks_are_refused() {
    let mut rig = Rig::one();
    let samples = addresses(&[
        "10.0.0.1",
        "10.255.255.254",
        "172.16.0.1",
        "172.31.255.254",
        "192.168.0.1",
        "192.168.255.254",
        "100.64.0.1",
        "100.127.255.254",
        "169.254.1.1",
        "169.254.254.254",
    ]);
    for addr in &samples {
        place(&rig, *addr);
    }
    for addr in samples.into_iter().chain([LAN, LAN_2]) {
        for kind in KINDS {
            rig.control(&rig.world.host, kind, addr, ECHO);
            rig.judge_refuses(kind, addr, ECHO);
        }
    }
}

#[test]
fn row_5_on_link_subnets_are_refused_even_with_public_addresses() {
    let mut rig = Rig::one();
    // A second public subnet that appears while the microVM runs.
    let late = Ipv4Addr::new(5, 9, 0, 2);
    for kind in KINDS {
        rig.control(&rig.world.host, kind, NEIGHBOUR, ECHO);
        rig.vm().refused(kind, NEIGHBOUR, ECHO);
    }
    rig.world.lan.check("ip", &["addr", "add", "5.9.0.2/24", "dev", "lan1"], "").unwrap();
    rig.world.servers.udp_echo(&rig.world.lan, late, ECHO).unwrap();
    rig.world.host.check("ip", &["addr", "add", "5.9.0.1/24", "dev", "lan1"], "").unwrap();
    // What the daemon does when the kernel tells it of an address.
    rig.engine.refresh().unwrap();
    let mut lan = Sniffer::open(&rig.world.lan).unwrap();
    for kind in KINDS {
        rig.vm().refused_by_host(kind, late, ECHO);
    }
    assert_eq!(lan.count(|f| asks(f, late)), 0);
    for kind in KINDS {
        rig.control(&rig.world.host, kind, late, ECHO);
    }
    assert!(lan.count(|f| asks(f, late)) > 0, "the sniffer sees the control");
}

#[test]
fn row_5_the_operator_may_open_one_service_on_one_host() {
    let mut rig = Rig::new(&[lists(&[], &["192.168.1.10:7/tcp", "10.20.0.0/24", "45.83.104.77"])]);
    rig.vm().reaches(Kind::Tcp, LAN, ECHO);
    for (kind, port) in [(Kind::Tcp, 443), (Kind::Udp, ECHO), (Kind::Ping, 0)] {
        rig.control(&rig.world.host, kind, LAN, port);
        rig.judge_refuses(kind, LAN, port);
    }
    for kind in KINDS {
        rig.vm().reaches(kind, LAN_2, ECHO);
        rig.vm().reaches(kind, NEIGHBOUR, ECHO);
    }
}

#[test]
fn row_5_opening_the_internet_opens_no_lan() {
    let mut rig = Rig::new(&[lists(&[], &["0.0.0.0/0"])]);
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
    for addr in [LAN, LAN_2, METADATA] {
        rig.control(&rig.world.host, Kind::Tcp, addr, ECHO);
        rig.judge_refuses(Kind::Tcp, addr, ECHO);
    }
    rig.control(&rig.world.host, Kind::Tcp, NEIGHBOUR, ECHO);
    rig.vm().refused(Kind::Tcp, NEIGHBOUR, ECHO);
}

#[test]
fn row_6_cloud_metadata_is_refused() {
    let mut rig = Rig::one();
    let others =
        addresses(&["169.254.169.253", "169.254.170.2", "168.63.129.16", "100.100.100.200", "192.0.0.192"]);
    for addr in &others {
        place(&rig, *addr);
    }
    for addr in others.into_iter().chain([METADATA]) {
        for kind in KINDS {
            rig.control(&rig.world.host, kind, addr, ECHO);
            rig.judge_refuses(kind, addr, ECHO);
        }
    }
}

#[test]
fn row_7_special_addresses_are_refused() {
    let mut rig = Rig::one();
    let routable = addresses(&[
        "192.0.0.8",
        "192.0.2.1",
        "198.51.100.1",
        "203.0.113.1",
        "198.18.0.1",
        "198.19.255.254",
        "240.0.0.1",
    ]);
    for addr in &routable {
        place(&rig, *addr);
    }
    for addr in routable {
        for kind in KINDS {
            rig.control(&rig.world.host, kind, addr, ECHO);
            rig.judge_refuses(kind, addr, ECHO);
        }
    }
}

/// Nothing can answer on these for a control; that they do not leave is seen from outside, and
/// RFC 1122 3.2.2 forbids to answer a packet to many.
#[test]
fn row_7_what_nobody_may_answer_does_not_leave() {
    let mut rig = Rig::one();
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    let list = addresses(&[
        "0.0.0.1",
        "127.0.0.1",
        "224.0.0.1",
        "239.255.255.250",
        "255.255.255.255",
        "224.0.0.251",
    ]);
    for addr in &list {
        for kind in KINDS {
            let outcome = rig.vm().guest.ask(kind, *addr, ECHO, std::time::Duration::from_millis(50));
            assert!(!outcome.reached(), "{kind:?} {addr}: {outcome}");
        }
    }
    rig.sentinel(&mut host);
    for addr in list {
        let guest = rig.vm().guest.ident().mac;
        let leaked = host.count(|f| asks(f, addr) && f.get(6..12) == Some(&guest[..]));
        assert_eq!(leaked, 0, "{addr}");
    }
}
