//! Rows 9 and 10: forged MACs, ARP, ethertypes, VLAN tags, and IPv6 in any form.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

use enisle_testkit::frame::{self, ARP, Ends, IPV4, IPV6, Seen};
use enisle_testkit::probe::{Kind, checksum};
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::tap::Ident;
use enisle_testkit::world::{ECHO, SERVER, UPLINK};

use crate::rig::{LIMIT, Rig, carries, lists};

/// In every forgery, and in nothing else.
const MARK: &[u8] = b"forged by a guest";
const OTHER_MAC: [u8; 6] = [0x02, 0x66, 1, 2, 3, 4];

/// Sends forgeries and asserts, by counters and by sniffers everywhere, that none got out.
fn all_dropped(rig: &mut Rig, forgeries: &[(&str, Vec<u8>)]) {
    let mut sniffers = rig.world.namespaces().map(|(name, ns)| (name, Sniffer::open(ns).unwrap()));
    let before = rig.stats(0);
    for (name, forgery) in forgeries {
        let sent = rig.vm().guest.send(forgery);
        assert!(sent.is_ok(), "{name}: {sent:?}");
    }
    rig.sentinel(&mut sniffers[0].1);
    let after = rig.stats(0);
    let drops = |s: &enisle_net::SlotStats| s.out_frame + s.out_spoofed + s.out_malformed + s.out_refused;
    assert_eq!(drops(&after) - drops(&before), forgeries.len() as u64, "every one counted");
    assert_eq!(after.out_allowed - before.out_allowed, 1, "the sentinel alone was allowed");
    for (place, sniffer) in &mut sniffers {
        let leaked: Vec<_> = forgeries
            .iter()
            .filter(|(_, f)| sniffer.count(|seen| carries(seen, MARK) && seen.len() == f.len()) > 0)
            .map(|(name, _)| *name)
            .collect();
        assert_eq!(sniffer.count(|f| carries(f, MARK)), 0, "reached {place}, perhaps {leaked:?}");
    }
}

fn marked(ends: Ends) -> Vec<u8> {
    frame::udp(ends, 40_000, ECHO, MARK)
}

#[test]
fn an_honest_packet_with_the_mark_does_get_out() {
    let mut rig = Rig::one();
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    let guest = &rig.vm().guest;
    guest.send(&marked(guest.to(SERVER))).unwrap();
    assert!(internet.sees(LIMIT, |f| carries(f, MARK)), "else the tests below prove nothing");
}

#[test]
fn row_9_forged_sources_are_dropped() {
    let mut rig = Rig::new(&[lists(&[], &[]), lists(&[], &[]), lists(&[], &[])]);
    let stopped = rig.vms.pop().unwrap();
    let gone = stopped.guest.ident();
    rig.engine.remove(stopped.slot).unwrap();
    let sibling = rig.vms[1].guest.ident();
    let me = rig.vms[0].guest.ident();
    let honest = rig.vms[0].guest.to(SERVER);
    let from = |src: Ipv4Addr| marked(Ends { src, ..honest });
    let by = |src_mac: [u8; 6]| marked(Ends { src_mac, ..honest });
    all_dropped(
        &mut rig,
        &[
            ("a stranger's MAC", by(OTHER_MAC)),
            ("the sibling's MAC", by(sibling.mac)),
            ("the gateway's MAC", by(me.gateway_mac)),
            ("the broadcast MAC as a source", by([0xff; 6])),
            ("no MAC", by([0; 6])),
            ("the sibling's address", from(sibling.ip)),
            ("a stopped microVM's address", from(gone.ip)),
            (
                "the sibling's address and MAC",
                marked(Ends { src: sibling.ip, src_mac: sibling.mac, ..honest }),
            ),
            ("the gateway's address", from(me.gateway)),
            ("the host's address", from(UPLINK)),
            ("a server's address", from(Ipv4Addr::new(8, 8, 8, 8))),
            ("the destination's address", from(SERVER)),
            ("a private address", from(Ipv4Addr::new(192, 168, 1, 10))),
            ("its block's network address", from(Ipv4Addr::from(u32::from(me.ip) & !3))),
            ("its block's broadcast address", from(Ipv4Addr::from(u32::from(me.ip) | 3))),
            ("no address", from(Ipv4Addr::UNSPECIFIED)),
            ("loopback", from(Ipv4Addr::LOCALHOST)),
            ("broadcast", from(Ipv4Addr::BROADCAST)),
            ("multicast", from(Ipv4Addr::new(224, 0, 0, 1))),
            ("to a stranger's MAC", marked(Ends { dst_mac: OTHER_MAC, ..honest })),
            ("to the broadcast MAC", marked(Ends { dst_mac: [0xff; 6], ..honest })),
            ("to a multicast MAC", marked(Ends { dst_mac: [1, 0, 0x5e, 0, 0, 1], ..honest })),
        ],
    );
}

#[test]
fn row_9_other_ethertypes_and_tags_are_dropped() {
    let mut rig = Rig::one();
    let me = rig.vm().guest.ident();
    let honest = marked(rig.vm().guest.to(SERVER));
    // A tagged frame: the tag goes between the addresses and the type of an honest one.
    let tagged = |tags: &[u8]| [&honest[..12], tags, &honest[12..]].concat();
    let typed = |ethertype: u16, dst: [u8; 6]| frame::ethernet(me.mac, dst, ethertype, &[MARK; 4].concat());
    all_dropped(
        &mut rig,
        &[
            ("802.1Q", tagged(&[0x81, 0, 0, 5])),
            ("802.1Q, VLAN 0", tagged(&[0x81, 0, 0, 0])),
            ("802.1ad", tagged(&[0x88, 0xa8, 0, 5])),
            ("two tags", tagged(&[0x88, 0xa8, 0, 5, 0x81, 0, 0, 6])),
            (
                "802.1Q around ARP",
                frame::ethernet(me.mac, [0xff; 6], 0x8100, &[&[0, 5, 8, 6][..], MARK].concat()),
            ),
            ("LLDP", typed(0x88cc, [1, 0x80, 0xc2, 0, 0, 0x0e])),
            ("STP, by length", typed(0x0026, [1, 0x80, 0xc2, 0, 0, 0])),
            ("EAPOL", typed(0x888e, [1, 0x80, 0xc2, 0, 0, 3])),
            ("MPLS", typed(0x8847, me.gateway_mac)),
            ("PPPoE discovery", typed(0x8863, [0xff; 6])),
            ("PPPoE session", typed(0x8864, me.gateway_mac)),
            ("RARP", typed(0x8035, [0xff; 6])),
            ("MACsec", typed(0x88e5, me.gateway_mac)),
            ("Ethernet in nothing known", typed(0xffff, me.gateway_mac)),
        ],
    );
}

#[test]
fn row_9_lying_lengths_and_jumbo_frames_are_dropped() {
    let mut rig = Rig::one();
    let me = rig.vm().guest.ident();
    let honest = rig.vm().guest.to(SERVER);
    let good = marked(honest);
    let patched = |at: usize, bytes: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + bytes.len()].copy_from_slice(bytes);
        let sum_at = 24;
        frame[sum_at..sum_at + 2].fill(0);
        let sum = checksum(&frame[14..34]).to_be_bytes();
        frame[sum_at..sum_at + 2].copy_from_slice(&sum);
        frame
    };
    let jumbo = frame::udp(Ends { src: UPLINK, ..honest }, 1, ECHO, &[MARK; 500].concat());
    all_dropped(
        &mut rig,
        &[
            ("longer than it is", patched(16, &[0x05, 0xdc])),
            ("shorter than its header", patched(16, &[0, 19])),
            ("shorter than UDP's header", patched(16, &[0, 24])),
            ("a header of 16 bytes", patched(14, &[0x44])),
            ("version 6 in an IPv4 frame", patched(14, &[0x65])),
            ("a forged jumbo frame", jumbo),
            ("half a header", frame::ethernet(me.mac, me.gateway_mac, IPV4, &MARK[..10])),
            ("no header at all", frame::ethernet(me.mac, me.gateway_mac, IPV4, &[])),
        ],
    );
    let runt = rig.vm().guest.send(&[0; 10]);
    assert!(runt.is_err(), "the tap takes no frame shorter than a header");
}

#[test]
fn row_9_ten_thousand_macs_change_nothing() {
    let mut rig = Rig::one();
    let before = rig.stats(0).out_frame;
    let honest = rig.vm().guest.to(SERVER);
    for i in 0..10_000u32 {
        let [a, b, c, d] = i.to_be_bytes();
        rig.vm().guest.send(&marked(Ends { src_mac: [0x02, 0x77, a, b, c, d], ..honest })).unwrap();
    }
    assert_eq!(rig.stats(0).out_frame - before, 10_000);
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
}

#[test]
fn row_9_arp_is_answered_for_the_gateway_and_for_nothing_else() {
    let mut rig = Rig::one();
    let Ident { mac, ip, gateway_mac, gateway } = rig.vm().guest.ident();
    let ask =
        |target: Ipv4Addr| frame::ethernet(mac, [0xff; 6], ARP, &frame::arp(1, (mac, ip), ([0; 6], target)));
    let answered = |rig: &mut Rig, frame: &[u8]| {
        rig.vm().guest.send(frame).unwrap();
        let is_arp = |s: &Seen| (s.ethertype == ARP).then_some(s.src_mac);
        rig.vm().guest.wait_for(Duration::from_millis(150), is_arp)
    };
    assert_eq!(answered(&mut rig, &ask(gateway)), Some(gateway_mac));
    let block = rig.vm().block();
    for target in [SERVER, UPLINK, block.network(), block.broadcast(), Ipv4Addr::new(169, 254, 100, 6)] {
        assert_eq!(answered(&mut rig, &ask(target)), None, "for {target}");
    }
}

#[test]
fn row_9_forged_arp_moves_no_neighbour() {
    let mut rig = Rig::one();
    let Ident { mac, ip, gateway_mac, gateway } = rig.vm().guest.ident();
    rig.vm().reaches(Kind::Ping, SERVER, 0);
    let before = neighbours(&rig);
    assert!(before.iter().any(|n| n.contains("en-")), "{before:?}");
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    let spoofed = rig.stats(0).out_spoofed;
    let say = |src: [u8; 6], dst: [u8; 6], body: Vec<u8>| frame::ethernet(src, dst, ARP, &body);
    let forgeries = [
        say(mac, [0xff; 6], frame::arp(2, (mac, gateway), ([0xff; 6], gateway))),
        say(mac, gateway_mac, frame::arp(2, (mac, gateway), (gateway_mac, gateway))),
        say(mac, [0xff; 6], frame::arp(1, (mac, gateway), ([0; 6], gateway))),
        say(mac, [0xff; 6], frame::arp(2, (OTHER_MAC, ip), ([0xff; 6], ip))),
        say(mac, gateway_mac, frame::arp(2, (OTHER_MAC, ip), (gateway_mac, gateway))),
        say(mac, [0xff; 6], frame::arp(1, (OTHER_MAC, ip), ([0; 6], gateway))),
        say(mac, [0xff; 6], frame::arp(2, (mac, UPLINK), ([0xff; 6], UPLINK))),
        say(mac, gateway_mac, frame::arp(2, (mac, SERVER), (gateway_mac, gateway))),
        say(mac, gateway_mac, MARK.to_vec()),
    ];
    for forgery in &forgeries {
        rig.vm().guest.send(forgery).unwrap();
    }
    rig.sentinel(&mut host);
    assert_eq!(rig.stats(0).out_spoofed - spoofed, forgeries.len() as u64);
    assert_eq!(host.count(|f| f.get(12..14) == Some(&ARP.to_be_bytes()) && f.get(6..12) == Some(&mac)), 0);
    assert_eq!(neighbours(&rig), before);
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
}

/// Who the host and the VM's namespace think is behind the slot's interfaces.
fn neighbours(rig: &Rig) -> Vec<String> {
    let mut known = Vec::new();
    for ns in [&rig.world.host, &rig.vms[0].inside()] {
        let text = ns.check("ip", &["-j", "-4", "neigh"], "").unwrap();
        let list: Vec<serde_json::Value> = serde_json::from_str(&text).unwrap();
        let ours =
            list.iter().filter(|n| n["dev"] == "tap0" || n["dev"].as_str().unwrap().starts_with("en-"));
        known.extend(ours.map(|n| format!("{} {} {}", n["dev"], n["dst"], n["lladdr"])));
    }
    known
}

/// An IPv6 packet with [`MARK`] at its end.
fn v6(next: u8, dst: &str, src: &str, payload: &[u8]) -> Vec<u8> {
    let body = [payload, MARK].concat();
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&u16::try_from(body.len()).unwrap().to_be_bytes());
    packet.extend_from_slice(&[next, 255]);
    for address in [src, dst] {
        packet.extend_from_slice(&address.parse::<Ipv6Addr>().unwrap().octets());
    }
    packet.extend_from_slice(&body);
    packet
}

#[test]
fn row_10_ipv6_is_dropped_in_any_form() {
    let mut rig = Rig::one();
    let Ident { mac, gateway_mac, .. } = rig.vm().guest.ident();
    let own = "fe80::e5ff:fea9:fe64:6402";
    let icmp6 = |kind: u8| [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &[0; 16]].concat();
    // MLDv2 report behind a hop-by-hop header with router alert (RFC 3810, lxc/incus #4025).
    let mld = [&[58, 0, 5, 2, 0, 0, 1, 0][..], &[143, 0, 0, 0, 0, 0, 0, 1]].concat();
    let udp = [0x9c, 0x40, 0, 7, 0, 25, 0, 0];
    let many = [0x33, 0x33, 0, 0, 0, 1];
    let cases = [
        ("router advertisement", many, v6(58, "ff02::1", own, &icmp6(134))),
        ("router solicitation", many, v6(58, "ff02::2", own, &icmp6(133))),
        ("neighbour solicitation", many, v6(58, "ff02::1:ff00:1", own, &icmp6(135))),
        ("unsolicited neighbour advertisement", many, v6(58, "ff02::1", own, &icmp6(136))),
        ("redirect", gateway_mac, v6(58, "fe80::1", own, &icmp6(137))),
        ("echo to all nodes", many, v6(58, "ff02::1", own, &icmp6(128))),
        ("echo to a link-local address", gateway_mac, v6(58, "fe80::e5ff:fea9:fe64:6401", own, &icmp6(128))),
        ("MLD behind hop-by-hop", many, v6(0, "ff02::16", own, &mld)),
        ("UDP to the Internet", gateway_mac, v6(17, "2606:2800:220:1::1", "2606:2800::2", &udp)),
        ("v4-mapped", gateway_mac, v6(17, "::ffff:93.184.216.34", "::ffff:169.254.100.2", &udp)),
        ("v4-compatible", gateway_mac, v6(17, "::93.184.216.34", own, &udp)),
        ("NAT64", gateway_mac, v6(17, "64:ff9b::93.184.216.34", own, &udp)),
        ("local NAT64", gateway_mac, v6(17, "64:ff9b:1::93.184.216.34", own, &udp)),
        ("6to4", gateway_mac, v6(17, "2002:5db8:d822::1", own, &udp)),
        ("mDNS", many, v6(17, "ff02::fb", own, &udp)),
        ("DHCPv6", many, v6(17, "ff02::1:2", own, &udp)),
        ("IPv4 in IPv6", gateway_mac, v6(4, "2606:2800:220:1::1", own, &[])),
        ("a fragment", gateway_mac, v6(44, "2606:2800:220:1::1", own, &[17, 0, 0, 0, 0, 0, 0, 1])),
        ("no next header", gateway_mac, v6(59, "ff02::1", own, &[])),
        ("loopback", gateway_mac, v6(17, "::1", own, &udp)),
    ];
    let forgeries: Vec<(&str, Vec<u8>)> = cases
        .into_iter()
        .map(|(name, dst, packet)| (name, frame::ethernet(mac, dst, IPV6, &packet)))
        .collect();
    let before = rig.stats(0).out_frame;
    all_dropped(&mut rig, &forgeries);
    assert_eq!(rig.stats(0).out_frame - before, forgeries.len() as u64);
    let answers = rig.vm().guest.received().iter().filter(|f| f.get(12..14) == Some(&IPV6.to_be_bytes()));
    assert_eq!(answers.count(), 0, "IPv6 reached the guest");
}
