//! Frames that a guest is asked to send: honest ones and forged ones.
//!
//! Owns: building them, with right checksums wherever a kernel would look at one before it answers
//! (`nf_reject_verify_csum`). Refuses: sockets, what is expected of a frame.

use std::net::{Ipv4Addr, Ipv6Addr};

pub(super) const IPV4: u16 = 0x0800;
pub(super) const ARP: u16 = 0x0806;
pub(super) const IPV6: u16 = 0x86dd;
pub(super) const BROADCAST: [u8; 6] = [0xff; 6];
pub(super) const ICMP: u8 = 1;
pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;
/// TCP flags (RFC 9293 §3.1).
pub(super) const SYN: u8 = 0x02;
pub(super) const RST: u8 = 0x04;
pub(super) const ACK: u8 = 0x10;

const TTL: u8 = 64;

/// Who a frame says it is from and to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ends {
    pub(super) src_mac: [u8; 6],
    pub(super) dst_mac: [u8; 6],
    pub(super) src: Ipv4Addr,
    pub(super) dst: Ipv4Addr,
}

/// What is unusual about an IPv4 header.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Shape<'a> {
    /// A multiple of four bytes, at most 40.
    pub(super) options: &'a [u8],
    /// Flags and offset.
    pub(super) fragment: u16,
}

pub(super) fn ethernet(dst: [u8; 6], src: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = [&dst[..], &src, &kind.to_be_bytes(), payload].concat();
    // The shortest frame of Ethernet, so that nothing on the way has to pad it.
    frame.resize(frame.len().max(60), 0);
    frame
}

pub(super) fn ipv4(ends: &Ends, protocol: u8, payload: &[u8], shape: Shape<'_>) -> Vec<u8> {
    let header = 20 + shape.options.len();
    let length = (header + payload.len()) as u16;
    let mut ip = vec![0x40 | (header / 4) as u8, 0];
    ip.extend_from_slice(&length.to_be_bytes());
    ip.extend_from_slice(&[0, 0]);
    ip.extend_from_slice(&shape.fragment.to_be_bytes());
    ip.extend_from_slice(&[TTL, protocol, 0, 0]);
    ip.extend_from_slice(&ends.src.octets());
    ip.extend_from_slice(&ends.dst.octets());
    ip.extend_from_slice(shape.options);
    let sum = checksum(&ip);
    ip[10..12].copy_from_slice(&sum.to_be_bytes());
    ip.extend_from_slice(payload);
    ethernet(ends.dst_mac, ends.src_mac, IPV4, &ip)
}

/// A TCP segment with data behind its header, which a SYN may carry as well.
pub(super) fn tcp(ends: &Ends, (from, to): (u16, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    ipv4(ends, TCP, &tcp_segment(ends, (from, to), flags, data), Shape::default())
}

pub(super) fn tcp_segment(ends: &Ends, (from, to): (u16, u16), flags: u8, data: &[u8]) -> Vec<u8> {
    let mut segment = [from.to_be_bytes(), to.to_be_bytes()].concat();
    segment.extend_from_slice(&[0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xff, 0xff, 0, 0, 0, 0]);
    segment.extend_from_slice(data);
    with_sum(ends, TCP, segment, 16)
}

pub(super) fn udp(ends: &Ends, (from, to): (u16, u16), data: &[u8]) -> Vec<u8> {
    ipv4(ends, UDP, &udp_datagram(ends, (from, to), data), Shape::default())
}

pub(super) fn udp_datagram(ends: &Ends, (from, to): (u16, u16), data: &[u8]) -> Vec<u8> {
    let mut datagram =
        [from.to_be_bytes(), to.to_be_bytes(), ((8 + data.len()) as u16).to_be_bytes()].concat();
    datagram.extend_from_slice(&[0, 0]);
    datagram.extend_from_slice(data);
    with_sum(ends, UDP, datagram, 6)
}

/// An ICMP message of this type whose last four header bytes are 1 and 1.
pub(super) fn icmp(ends: &Ends, kind: u8, data: &[u8]) -> Vec<u8> {
    ipv4(ends, ICMP, &icmp_message(kind, data), Shape::default())
}

pub(super) fn icmp_message(kind: u8, data: &[u8]) -> Vec<u8> {
    let mut message = vec![kind, 0, 0, 0, 0, 1, 0, 1];
    message.extend_from_slice(data);
    let sum = checksum(&message);
    message[2..4].copy_from_slice(&sum.to_be_bytes());
    message
}

/// Any other protocol: the sum of its payload is right wherever that protocol keeps its own.
pub(super) fn other(ends: &Ends, protocol: u8, data: &[u8]) -> Vec<u8> {
    let mut payload = vec![0; 8];
    payload.extend_from_slice(data);
    payload.resize(payload.len().next_multiple_of(2), 0);
    let sum = checksum(&payload);
    payload.extend_from_slice(&sum.to_be_bytes());
    ipv4(ends, protocol, &payload, Shape::default())
}

/// An ARP packet (RFC 826) with data behind it, where Ethernet's padding is.
pub(super) fn arp(
    operation: u16,
    sender: ([u8; 6], Ipv4Addr),
    target: ([u8; 6], Ipv4Addr),
    data: &[u8],
) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend_from_slice(&operation.to_be_bytes());
    for (mac, address) in [sender, target] {
        body.extend_from_slice(&mac);
        body.extend_from_slice(&address.octets());
    }
    body.extend_from_slice(data);
    body
}

/// An IPv6 packet, without an Ethernet header.
pub(super) fn ipv6(src: Ipv6Addr, dst: Ipv6Addr, next: u8, payload: &[u8]) -> Vec<u8> {
    let mut packet = vec![0x60, 0, 0, 0];
    packet.extend_from_slice(&(payload.len() as u16).to_be_bytes());
    packet.extend_from_slice(&[next, 255]);
    packet.extend_from_slice(&src.octets());
    packet.extend_from_slice(&dst.octets());
    packet.extend_from_slice(payload);
    packet
}

/// Puts a VLAN tag (802.1Q, or 802.1ad by its own type) into a frame.
pub(super) fn tagged(frame: &[u8], kind: u16) -> Vec<u8> {
    let (macs, rest) = frame.split_at(12);
    [macs, &kind.to_be_bytes(), &[0, 7], rest].concat()
}

/// The name's address record, asked of a resolver (RFC 1035 §4.1).
pub(super) fn dns_query(id: u16, labels: &[&str]) -> Vec<u8> {
    let mut query = id.to_be_bytes().to_vec();
    query.extend_from_slice(&[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]);
    for label in labels {
        query.push(label.len() as u8);
        query.extend_from_slice(label.as_bytes());
    }
    query.extend_from_slice(&[0, 0, 1, 0, 1]);
    query
}

fn with_sum(ends: &Ends, protocol: u8, mut body: Vec<u8>, at: usize) -> Vec<u8> {
    let length = body.len() as u16;
    let mut pseudo = [ends.src.octets(), ends.dst.octets()].concat();
    pseudo.extend_from_slice(&[0, protocol]);
    pseudo.extend_from_slice(&length.to_be_bytes());
    pseudo.extend_from_slice(&body);
    let sum = match checksum(&pseudo) {
        // For UDP, zero means that there is none (RFC 768).
        0 => 0xffff,
        sum => sum,
    };
    body[at..at + 2].copy_from_slice(&sum.to_be_bytes());
    body
}

/// The Internet's checksum (RFC 1071).
pub(super) fn checksum(bytes: &[u8]) -> u16 {
    let words = bytes.chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum();
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !(sum as u16)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENDS: Ends = Ends {
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: [2, 0, 0, 0, 0, 2],
        src: Ipv4Addr::new(169, 254, 100, 2),
        dst: Ipv4Addr::new(1, 1, 1, 1),
    };

    #[test]
    fn checksums_hold() {
        let frame = tcp(&ENDS, (40_000, 443), SYN, b"token-0001");
        assert_eq!(checksum(&frame[14..34]), 0, "the header's");
        let mut pseudo = [ENDS.src.octets(), ENDS.dst.octets()].concat();
        pseudo.extend_from_slice(&[0, TCP, 0, 30]);
        pseudo.extend_from_slice(&frame[34..64]);
        assert_eq!(checksum(&pseudo), 0, "the segment's");
        assert_eq!(checksum(&icmp_message(8, b"token-0001")), 0);
        assert_eq!(checksum(&other(&ENDS, 47, b"odd")[34..48]), 0);
    }

    #[test]
    fn a_tag_stands_where_the_type_was() {
        let plain = udp(&ENDS, (1, 2), b"token-0001");
        let tagged = tagged(&plain, 0x8100);
        assert_eq!(tagged[12..18], [0x81, 0, 0, 7, 8, 0]);
        assert_eq!([&tagged[..12], &tagged[16..]].concat(), plain);
    }
}
