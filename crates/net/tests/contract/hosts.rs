//! Row 3: no address of the host, on any interface, however it is reached.

use std::net::Ipv4Addr;

use enisle_testkit::probe::Kind;
use enisle_testkit::world::{
    CANARY, ECHO, HOST_DOCKER, HOST_LAN, HOST_LAN_2, LAN, NEIGHBOUR, SERVER, UPLINK,
};
use enisle_testkit::{Netns, World};

use crate::rig::{KINDS, Rig, asks, lists};
use enisle_testkit::sniff::Sniffer;

/// Every address of the host with a place from where it may be asked.
fn own(rig: &Rig) -> [(Ipv4Addr, &Netns); 4] {
    [
        (UPLINK, &rig.world.internet),
        (HOST_LAN, &rig.world.lan),
        (HOST_LAN_2, &rig.world.lan),
        (HOST_DOCKER, &rig.world.host),
    ]
}

fn refuses_the_host(rig: &mut Rig) {
    for kind in KINDS {
        rig.vm().refused(kind, UPLINK, CANARY);
    }
    for addr in own(rig).map(|(addr, _)| addr) {
        for kind in KINDS {
            rig.vm().refused_by_host(kind, addr, CANARY);
        }
        rig.vm().refused(Kind::Tcp, addr, 22);
    }
}

fn controls(rig: &Rig) {
    for (addr, from) in own(rig) {
        for kind in KINDS {
            rig.control(from, kind, addr, CANARY);
        }
        rig.control(from, Kind::Tcp, addr, 22);
    }
}

#[test]
fn row_3_every_address_of_the_host_is_refused() {
    let mut rig = Rig::one();
    controls(&rig);
    refuses_the_host(&mut rig);
}

#[test]
fn row_3_an_address_that_appears_later_is_refused_at_once() {
    let mut rig = Rig::one();
    let new = Ipv4Addr::new(5, 9, 1, 1);
    rig.world.host.check("ip", &["addr", "add", "5.9.1.1/32", "dev", "docker0"], "").unwrap();
    rig.world.servers.udp_echo(&rig.world.host, new, CANARY).unwrap();
    for kind in KINDS {
        rig.control(&rig.world.host, kind, new, CANARY);
        rig.vm().refused(kind, new, CANARY);
    }
}

#[test]
fn row_3_opening_a_lan_does_not_open_the_host_in_it() {
    let mut rig =
        Rig::new(&[lists(&[], &["192.168.1.0/24", "45.83.104.0/24", "172.17.0.0/16", "10.0.0.0/8"])]);
    rig.vm().reaches(Kind::Tcp, LAN, ECHO);
    rig.vm().reaches(Kind::Tcp, NEIGHBOUR, ECHO);
    controls(&rig);
    refuses_the_host(&mut rig);
}

#[test]
fn row_3_published_ports_are_refused() {
    let world = World::new().unwrap();
    // As Docker publishes a container's port: on the host's own address, and to a machine behind.
    let docker = "table ip docker {
        chain prerouting {
            type nat hook prerouting priority dstnat
            fib daddr type local tcp dport 8080 dnat to 172.17.0.1:7777
            fib daddr type local tcp dport 8081 dnat to 192.168.1.10:7
        }
        chain postrouting {
            type nat hook postrouting priority srcnat
            oifname lan0 masquerade
        }
    }";
    world.host.check("nft", &["-f", "-"], docker).unwrap();
    world.host.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    let mut rig = Rig::within(world, &[lists(&[], &[])]);
    let mut lan = Sniffer::open(&rig.world.lan).unwrap();
    for port in [8080, 8081] {
        let outcome = rig.vm().ask(Kind::Tcp, UPLINK, port);
        assert!(outcome.refused(), "port {port}: {outcome}");
    }
    assert_eq!(lan.count(|f| asks(f, LAN)), 0);
    for port in [8080, 8081] {
        rig.control(&rig.world.internet, Kind::Tcp, UPLINK, port);
    }
    assert!(lan.count(|f| asks(f, LAN)) > 0, "the sniffer sees the control");
}

/// Must-be-shown 6: whatever happens to the host's firewall, nothing new becomes reachable.
#[test]
fn flushing_the_hosts_firewall_opens_nothing() {
    let mut rig = Rig::new(&[lists(&[], &[]), lists(&[], &[])]);
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
    rig.world.host.check("nft", &["flush", "ruleset"], "").unwrap();
    let mut lan = Sniffer::open(&rig.world.lan).unwrap();
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    let sibling = rig.vms[1].guest.ident().ip;
    let mut reached = Vec::new();
    for (addr, port) in [
        (UPLINK, CANARY),
        (HOST_LAN, CANARY),
        (HOST_DOCKER, CANARY),
        (LAN, ECHO),
        (NEIGHBOUR, ECHO),
        (sibling, ECHO),
    ] {
        for kind in KINDS {
            if rig.vm().ask(kind, addr, port).reached() {
                reached.push(format!("{kind:?} {addr}"));
            }
        }
    }
    assert_eq!(reached, Vec::<String>::new());
    assert_eq!(lan.count(|f| asks(f, LAN)), 0);
    let guest = rig.vm().guest.ident().ip.octets();
    let leaked = internet.count(|f| f.get(26..30) == Some(&guest[..]));
    assert_eq!(leaked, 0, "packets with the guest's own address on the Internet");
    assert_eq!(rig.vms[1].guest.received().len(), 0, "the sibling received something");
    controls(&rig);
    rig.control(&rig.world.host, Kind::Tcp, LAN, ECHO);
}
