//! Rows 9 and 10: frames that no honest guest sends, and IPv6 in every form.

use super::frames::{self, ARP, BROADCAST, Ends, IPV6, SYN};
use super::probe::Via;
use super::rows::{Row, Rows};
use enisle_api::verify::Expected;
use std::net::{Ipv4Addr, Ipv6Addr};

/// Somebody else's MAC.
const STRANGER: [u8; 6] = [2, 0, 0x5e, 0x10, 0, 0x63];

pub(super) fn add(rows: &mut Rows<'_>) {
    sources(rows);
    arp(rows);
    ethertypes(rows);
    ipv6(rows);
}

/// An otherwise allowed call from elsewhere.
fn sources(rows: &mut Rows<'_>) {
    let control = rows.subject.control;
    let honest = rows.to(*control.ip());
    let call =
        |ends: &Ends, token: &str| frames::tcp(ends, (Rows::from(), control.port()), SYN, token.as_bytes());
    let forged = Ends { src_mac: STRANGER, ..honest };
    let bytes = call(&forged, &rows.token());
    rows.frame((9, "forged source MAC"), format!("tcp {control}, frame"), bytes, Expected::Dropped);
    let forged = Ends { dst_mac: STRANGER, ..honest };
    let bytes = call(&forged, &rows.token());
    rows.frame((9, "to another MAC"), format!("tcp {control}, frame"), bytes, Expected::Dropped);
    let block = rows.subject.block;
    let other = rows
        .subject
        .siblings
        .first()
        .copied()
        .or_else(|| rows.subject.range().blocks().find(|b| *b != block));
    let host = rows.subject.own_addresses().next();
    let sources = [
        ("its gateway's", Some(block.gateway())),
        ("another VM's", other.map(enisle_net::plan::Block::guest)),
        ("the host's", host),
        ("a public one", Some(Ipv4Addr::new(8, 8, 4, 4))),
        ("none", Some(Ipv4Addr::UNSPECIFIED)),
    ];
    for (whose, source) in sources {
        let Some(src) = source else { continue };
        let bytes = call(&Ends { src, ..honest }, &rows.token());
        let asked = format!("tcp {control} from {src}, frame");
        rows.frame((9, &format!("forged source address: {whose}")), asked, bytes, Expected::Dropped);
    }
    for (name, kind) in [("VLAN tag", 0x8100), ("provider VLAN tag", 0x88a8)] {
        let shown = call(&honest, &rows.token());
        let via = Via::Frame { bytes: frames::tagged(&shown, kind), shown };
        rows.rows.push(Row {
            number: 9,
            target: name.to_owned(),
            asked: format!("tcp {control}, tagged frame"),
            via,
            flow: None,
            expected: Expected::Dropped,
            canary: false,
            dns_refused: None,
        });
    }
}

fn arp(rows: &mut Rows<'_>) {
    let block = rows.subject.block;
    let (own, guest) = (block.guest_mac().octets(), block.guest());
    let (gateway_mac, gateway) = (block.host_mac().octets(), block.gateway());
    let host = rows.subject.own_addresses().next().unwrap_or(gateway);
    for (what, operation, sender, target) in [
        ("ARP reply for the gateway", 2, (own, gateway), (gateway_mac, gateway)),
        ("gratuitous ARP for the gateway", 1, (own, gateway), ([0; 6], gateway)),
        ("gratuitous ARP for a host address", 1, (own, host), ([0; 6], host)),
        ("ARP with another MAC", 1, (STRANGER, guest), ([0; 6], gateway)),
        ("ARP question for another address", 1, (own, guest), ([0; 6], host)),
    ] {
        let body = frames::arp(operation, sender, target, rows.token().as_bytes());
        let bytes = frames::ethernet(BROADCAST, own, ARP, &body);
        rows.frame((9, what), "frame".to_owned(), bytes, Expected::Dropped);
    }
}

fn ethertypes(rows: &mut Rows<'_>) {
    let own = rows.subject.block.guest_mac().octets();
    for (name, mac, kind) in [
        ("LLDP", [1, 0x80, 0xc2, 0, 0, 0x0e], 0x88cc),
        ("spanning tree (802.3)", [1, 0x80, 0xc2, 0, 0, 0], 0x0026),
        ("PPPoE discovery", BROADCAST, 0x8863),
        ("802.1X", [1, 0x80, 0xc2, 0, 0, 3], 0x888e),
        ("MPLS", rows.subject.block.host_mac().octets(), 0x8847),
        ("an experimental ethertype", BROADCAST, 0x88b5),
    ] {
        let bytes = frames::ethernet(mac, own, kind, rows.token().as_bytes());
        rows.frame((9, name), format!("frame of type {kind:#06x}"), bytes, Expected::Dropped);
    }
}

fn ipv6(rows: &mut Rows<'_>) {
    let block = rows.subject.block;
    let (own, gateway) = (block.guest_mac().octets(), block.host_mac().octets());
    let local = link_local(own);
    let all_nodes = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
    let multicast = [0x33, 0x33, 0, 0, 0, 1];
    let control = rows.subject.control.ip().octets();
    let embedded = |prefix: [u16; 6]| {
        let [a, b, c, d, e, f] = prefix;
        let low = |x, y| u16::from_be_bytes([x, y]);
        Ipv6Addr::new(a, b, c, d, e, f, low(control[0], control[1]), low(control[2], control[3]))
    };
    let hop_by_hop: &[u8] = &[58, 0, 5, 2, 0, 0, 1, 0, 143, 0, 0, 0, 0, 0, 0, 0];
    for (what, mac, dst, next, head) in [
        ("router advertisement", multicast, all_nodes, 58, &[134, 0, 0, 0, 64, 0, 7, 8][..]),
        ("neighbour solicitation", multicast, all_nodes, 58, &[135, 0, 0, 0, 0, 0, 0, 0][..]),
        (
            "ping to the gateway's fe80 address",
            gateway,
            link_local(gateway),
            58,
            &[128, 0, 0, 0, 0, 1, 0, 1][..],
        ),
        ("MLD behind a hop-by-hop header", multicast, all_nodes, 0, hop_by_hop),
        (
            "UDP to a global address",
            gateway,
            Ipv6Addr::new(0x2606, 0x4700, 0x4700, 0, 0, 0, 0, 0x1111),
            17,
            UDP_HEAD,
        ),
        ("UDP, v4-mapped", gateway, embedded([0, 0, 0, 0, 0, 0xffff]), 17, UDP_HEAD),
        ("UDP, 64:ff9b::/96", gateway, embedded([0x64, 0xff9b, 0, 0, 0, 0]), 17, UDP_HEAD),
        ("UDP, 2002::/16", gateway, Ipv6Addr::new(0x2002, 0x0101, 0x0101, 0, 0, 0, 0, 1), 17, UDP_HEAD),
    ] {
        let payload = [head, rows.token().as_bytes()].concat();
        let bytes = frames::ethernet(mac, own, IPV6, &frames::ipv6(local, dst, next, &payload));
        rows.frame((10, &format!("IPv6: {what}")), format!("frame to {dst}"), bytes, Expected::Dropped);
    }
}

/// UDP from port 1023 to 53 with twelve bytes of data.
const UDP_HEAD: &[u8] = &[3, 0xff, 0, 53, 0, 20, 0, 0];

/// The address an interface gives itself (RFC 4291, appendix A).
fn link_local(mac: [u8; 6]) -> Ipv6Addr {
    let [a, b, c, d, e, f] = mac;
    let word = |x, y| u16::from_be_bytes([x, y]);
    Ipv6Addr::new(0xfe80, 0, 0, 0, word(a ^ 2, b), word(c, 0xff), word(0xfe, d), word(e, f))
}
