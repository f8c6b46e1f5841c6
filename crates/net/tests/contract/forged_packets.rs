//! Row 8 and the L3 part of the probe bank: other protocols, IP options, fragments.

use std::time::Duration;

use enisle_testkit::frame::{self, Body, Seen};
use enisle_testkit::probe::{Kind, checksum};
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{ECHO, OTHER_SERVER, SERVER};
use etherparse::{IpFragOffset, Ipv4Options};

use crate::rig::{LIMIT, Rig, carries, lists};

const MARK: &[u8] = b"refused by the judge";
/// UDP from port 40000 to the echo port, with room for [`MARK`], checksum left out.
const UDP: [u8; 8] = [0x9c, 0x40, 0, 7, 0, 28, 0, 0];

fn udp() -> Vec<u8> {
    [&UDP[..], MARK].concat()
}

/// Whether a frame tells the guest that its packet with `protocol` was prohibited.
fn prohibited(seen: &Seen, protocol: u8) -> Option<()> {
    match &seen.ip {
        Some((_, _, Body::Icmp { kind: 3, code: 13, data, .. })) => {
            (data.get(9) == Some(&protocol)).then_some(())
        }
        _ => None,
    }
}

/// Sends a frame that must be refused with an answer, and not be seen outside.
fn refused(rig: &mut Rig, host: &mut Sniffer, name: &str, protocol: u8, frame: &[u8]) {
    let before = rig.stats(0).out_refused;
    rig.vm().guest.send(frame).unwrap();
    let answer = rig.vm().guest.wait_for(Duration::from_secs(1), |s| prohibited(s, protocol));
    assert!(answer.is_some(), "{name} was not answered");
    assert_eq!(rig.stats(0).out_refused - before, 1, "{name}");
    rig.sentinel(host);
    assert_eq!(host.count(|f| carries(f, MARK)), 0, "{name} left the namespace");
}

#[test]
fn row_8_other_protocols_are_refused() {
    let mut rig = Rig::one();
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    let to = rig.vm().guest.to(SERVER);
    let inner = frame::udp(to, 40_000, ECHO, MARK)[14..].to_vec();
    let plain = [&[0u8; 8][..], MARK].concat();
    for (name, protocol, mut payload) in [
        ("IGMP", 2, plain.clone()),
        ("IP in IP", 4, inner.clone()),
        ("DCCP", 33, plain.clone()),
        ("IPv6 in IP", 41, plain.clone()),
        ("GRE", 47, [&[0, 0, 8, 0][..], &inner].concat()),
        ("ESP", 50, plain.clone()),
        ("AH", 51, plain.clone()),
        ("ICMPv6", 58, plain.clone()),
        ("OSPF", 89, plain.clone()),
        ("VRRP", 112, plain.clone()),
        ("L2TP", 115, plain.clone()),
        ("SCTP", 132, plain.clone()),
        ("UDP-Lite", 136, udp()),
        ("nothing assigned", 253, plain.clone()),
        ("hop-by-hop", 0, plain.clone()),
        ("raw", 255, plain),
    ] {
        // The kernel answers nothing whose 16-bit checksum could be wrong (nf_reject_verify_csum),
        // so these carry one that makes the sum right, wherever their own would be.
        payload.resize(payload.len().next_multiple_of(2), 0);
        payload.extend(checksum(&payload).to_be_bytes());
        let frame = frame::ip(to, protocol, &payload, |_| ());
        refused(&mut rig, &mut host, name, protocol, &frame);
    }
}

#[test]
fn row_8_ip_options_are_refused() {
    let mut rig = Rig::one();
    let to = rig.vm().guest.to(SERVER);
    // The same packet without options passes, and its echo is back before anybody listens.
    rig.vm().guest.send(&frame::ip(to, 17, &udp(), |_| ())).unwrap();
    let echoed = |seen: &Seen| match &seen.ip {
        Some((_, _, Body::Udp { data, .. })) => (data == MARK).then_some(()),
        _ => None,
    };
    assert!(rig.vm().guest.wait_for(LIMIT, echoed).is_some());
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    for (name, options) in [
        ("no operation", [1, 1, 1, 1, 1, 1, 1, 0]),
        ("record route", [7, 7, 4, 0, 0, 0, 0, 0]),
        ("loose source route", [131, 7, 4, 192, 168, 1, 10, 0]),
        ("strict source route", [137, 7, 4, 192, 168, 1, 10, 0]),
        ("timestamp", [68, 8, 5, 0, 0, 0, 0, 0]),
        ("router alert", [148, 4, 0, 0, 0, 0, 0, 0]),
        ("stream id", [136, 4, 0, 1, 0, 0, 0, 0]),
    ] {
        let frame = frame::ip(to, 17, &udp(), |h| h.options = Ipv4Options::try_from(&options[..]).unwrap());
        let before = rig.stats(0).out_refused;
        rig.vm().guest.send(&frame).unwrap();
        rig.sentinel(&mut host);
        assert_eq!(rig.stats(0).out_refused - before, 1, "{name}");
        assert_eq!(host.count(|f| carries(f, MARK)), 0, "{name} left the namespace");
    }
}

#[test]
fn icmp_that_no_host_sends_is_refused() {
    let mut rig = Rig::one();
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    let to = rig.vm().guest.to(SERVER);
    for (name, kind) in [("redirect", 5u8), ("router advertisement", 9), ("timestamp", 13), ("mask", 17)] {
        let mut payload = [&[kind, 0, 0, 0, 0, 0, 0, 0][..], MARK].concat();
        let sum = checksum(&payload).to_be_bytes();
        payload[2..4].copy_from_slice(&sum);
        rig.vm().guest.send(&frame::ip(to, 1, &payload, |_| ())).unwrap();
        rig.sentinel(&mut host);
        assert_eq!(host.count(|f| carries(f, MARK)), 0, "{name} left the namespace");
    }
}

fn offset(eights: u16) -> IpFragOffset {
    IpFragOffset::try_new(eights).unwrap()
}

#[test]
fn fragments_pass_where_no_port_decides() {
    let mut rig = Rig::one();
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    let to = rig.vm().guest.to(SERVER);
    let whole = udp();
    let guest = &rig.vm().guest;
    let first = frame::ip(to, 17, &whole[..16], |h| (h.identification, h.more_fragments) = (77, true));
    let rest = frame::ip(to, 17, &whole[16..], |h| (h.identification, h.fragment_offset) = (77, offset(2)));
    guest.send(&first).unwrap();
    guest.send(&rest).unwrap();
    assert!(internet.sees(LIMIT, |f| carries(f, &MARK[8..])));
}

#[test]
fn fragments_are_refused_where_a_port_decides() {
    let policy = lists(&["151.101.1.69"], &["151.101.1.69:7/udp"]);
    let mut rig = Rig::new(&[policy]);
    rig.vm().reaches(Kind::Udp, OTHER_SERVER, ECHO);
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    let to = rig.vm().guest.to(OTHER_SERVER);
    let before = rig.stats(0);
    let whole = udp();
    // A first fragment that shows an open port, then one that writes over it (RFC 3128).
    let guest = &rig.vm().guest;
    guest
        .send(&frame::ip(to, 17, &whole[..16], |h| (h.identification, h.more_fragments) = (78, true)))
        .unwrap();
    for at in [1, 2] {
        let late =
            frame::ip(to, 17, &whole[8..], |h| (h.identification, h.fragment_offset) = (78, offset(at)));
        guest.send(&late).unwrap();
    }
    rig.sentinel(&mut host);
    assert_eq!(rig.stats(0).out_refused - before.out_refused, 2);
    assert_eq!(host.count(|f| carries(f, MARK)), 0);
}

#[test]
fn a_first_fragment_too_short_for_its_ports_is_dropped() {
    let mut rig = Rig::one();
    let mut host = Sniffer::open(&rig.world.host).unwrap();
    let to = rig.vm().guest.to(SERVER);
    let before = rig.stats(0).out_malformed;
    let guest = &rig.vm().guest;
    for (protocol, len) in [(6, 8), (6, 16), (17, 4), (1, 4)] {
        guest.send(&frame::ip(to, protocol, &[7; 16][..len], |h| h.more_fragments = true)).unwrap();
    }
    let (src, dst) = (to.src.octets(), to.dst.octets());
    rig.sentinel(&mut host);
    assert_eq!(rig.stats(0).out_malformed - before, 4);
    let fragments = |f: &[u8]| {
        f.get(26..30) == Some(&src) && f.get(30..34) == Some(&dst) && f.get(20).is_some_and(|b| b & 0x20 != 0)
    };
    assert_eq!(host.count(fragments), 0);
}
