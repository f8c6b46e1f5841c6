//! Ethernet frames: well-formed ones, forged ones, and what was received.
//!
//! Owns: building by `etherparse` (or byte by byte where no library would agree to build it) and
//! the small view that tests match on. Refuses: sockets.

use std::net::Ipv4Addr;

use etherparse::{IpHeaders, IpNumber, Ipv4Header, NetSlice, PacketBuilder, SlicedPacket, TransportSlice};

/// EtherType of IPv4.
pub const IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ARP: u16 = 0x0806;
/// EtherType of IPv6.
pub const IPV6: u16 = 0x86dd;

/// Who a frame says it is from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ends {
    /// Source MAC.
    pub src_mac: [u8; 6],
    /// Destination MAC.
    pub dst_mac: [u8; 6],
    /// Source address.
    pub src: Ipv4Addr,
    /// Destination address.
    pub dst: Ipv4Addr,
}

/// TCP flags a test can set.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flags {
    /// Synchronise.
    pub syn: bool,
    /// Acknowledge.
    pub ack: bool,
    /// Reset.
    pub rst: bool,
    /// Finish.
    pub fin: bool,
}

/// A TCP segment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Segment {
    /// Source port.
    pub from: u16,
    /// Destination port.
    pub to: u16,
    /// Sequence number.
    pub seq: u32,
    /// Acknowledgment number; counts when the flag is set.
    pub ack: u32,
    /// Flags.
    pub flags: Flags,
    /// Data.
    pub data: Vec<u8>,
}

const TTL: u8 = 64;

/// A frame with a TCP segment, window 65535.
#[must_use]
pub fn tcp(ends: Ends, s: &Segment) -> Vec<u8> {
    let mut step = PacketBuilder::ethernet2(ends.src_mac, ends.dst_mac)
        .ipv4(ends.src.octets(), ends.dst.octets(), TTL)
        .tcp(s.from, s.to, s.seq, u16::MAX);
    if s.flags.syn {
        step = step.syn();
    }
    if s.flags.ack {
        step = step.ack(s.ack);
    }
    if s.flags.rst {
        step = step.rst();
    }
    if s.flags.fin {
        step = step.fin();
    }
    written(|frame| step.write(frame, &s.data))
}

/// A frame with a UDP datagram.
#[must_use]
pub fn udp(ends: Ends, from: u16, to: u16, data: &[u8]) -> Vec<u8> {
    let step = PacketBuilder::ethernet2(ends.src_mac, ends.dst_mac)
        .ipv4(ends.src.octets(), ends.dst.octets(), TTL)
        .udp(from, to);
    written(|frame| step.write(frame, data))
}

/// A frame with an ICMP echo request.
#[must_use]
pub fn ping(ends: Ends, id: u16, seq: u16) -> Vec<u8> {
    let step = PacketBuilder::ethernet2(ends.src_mac, ends.dst_mac)
        .ipv4(ends.src.octets(), ends.dst.octets(), TTL)
        .icmpv4_echo_request(id, seq);
    written(|frame| step.write(frame, b"enisle"))
}

/// A frame with any IPv4 header; `shape` may change what is there before checksums are made.
#[must_use]
pub fn ip(ends: Ends, protocol: u8, payload: &[u8], shape: impl FnOnce(&mut Ipv4Header)) -> Vec<u8> {
    let len = u16::try_from(payload.len()).expect("a payload of less than 64 KiB");
    let (src, dst) = (ends.src.octets(), ends.dst.octets());
    let mut header = Ipv4Header::new(len, TTL, IpNumber(protocol), src, dst).expect("a payload that fits");
    shape(&mut header);
    let step = PacketBuilder::ethernet2(ends.src_mac, ends.dst_mac)
        .ip(IpHeaders::Ipv4(header, etherparse::Ipv4Extensions::default()));
    written(|frame| step.write(frame, IpNumber(protocol), payload))
}

/// A frame with any payload.
#[must_use]
pub fn ethernet(src_mac: [u8; 6], dst_mac: [u8; 6], ethertype: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = Vec::with_capacity(14 + payload.len());
    frame.extend_from_slice(&dst_mac);
    frame.extend_from_slice(&src_mac);
    frame.extend_from_slice(&ethertype.to_be_bytes());
    frame.extend_from_slice(payload);
    frame
}

/// An ARP packet for Ethernet and IPv4 (RFC 826), without the Ethernet header. `operation` is 1
/// for a request, 2 for a reply.
#[must_use]
pub fn arp(operation: u16, sender: ([u8; 6], Ipv4Addr), target: ([u8; 6], Ipv4Addr)) -> Vec<u8> {
    let mut body = vec![0, 1, 8, 0, 6, 4];
    body.extend_from_slice(&operation.to_be_bytes());
    for (mac, ip) in [sender, target] {
        body.extend_from_slice(&mac);
        body.extend_from_slice(&ip.octets());
    }
    body
}

fn written<E: std::fmt::Debug>(write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Vec<u8> {
    let mut frame = Vec::new();
    write(&mut frame).expect("a frame that fits");
    frame
}

/// What a received frame carries.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Body {
    /// TCP.
    Tcp(Segment),
    /// UDP.
    Udp {
        /// Source port.
        from: u16,
        /// Destination port.
        to: u16,
        /// Data.
        data: Vec<u8>,
    },
    /// ICMP.
    Icmp {
        /// Type.
        kind: u8,
        /// Code.
        code: u8,
        /// Bytes 4 to 8 of the header: id and sequence number of an echo.
        rest: [u8; 4],
        /// What follows; for errors the packet they are about.
        data: Vec<u8>,
    },
    /// Another protocol, or a fragment.
    Other(u8),
}

/// A received frame, as far as tests look.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// Source MAC.
    pub src_mac: [u8; 6],
    /// EtherType.
    pub ethertype: u16,
    /// Addresses and body of IPv4.
    pub ip: Option<(Ipv4Addr, Ipv4Addr, Body)>,
}

impl Seen {
    /// Looks at a frame; `None` if it is not even Ethernet.
    #[must_use]
    pub fn of(frame: &[u8]) -> Option<Seen> {
        let src_mac = frame.get(6..12)?.try_into().ok()?;
        let ethertype = u16::from_be_bytes(frame.get(12..14)?.try_into().ok()?);
        Some(Seen { src_mac, ethertype, ip: ip_of(frame) })
    }

    /// Source address of IPv4.
    #[must_use]
    pub fn src(&self) -> Option<Ipv4Addr> {
        self.ip.as_ref().map(|(src, _, _)| *src)
    }

    /// Destination address of IPv4.
    #[must_use]
    pub fn dst(&self) -> Option<Ipv4Addr> {
        self.ip.as_ref().map(|(_, dst, _)| *dst)
    }
}

fn ip_of(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, Body)> {
    let packet = SlicedPacket::from_ethernet(frame).ok()?;
    let Some(NetSlice::Ipv4(ip)) = &packet.net else {
        return None;
    };
    let header = ip.header();
    let body = match &packet.transport {
        Some(TransportSlice::Tcp(t)) => Body::Tcp(Segment {
            from: t.source_port(),
            to: t.destination_port(),
            seq: t.sequence_number(),
            ack: t.acknowledgment_number(),
            flags: Flags { syn: t.syn(), ack: t.ack(), rst: t.rst(), fin: t.fin() },
            data: t.payload().to_vec(),
        }),
        Some(TransportSlice::Udp(u)) => {
            Body::Udp { from: u.source_port(), to: u.destination_port(), data: u.payload().to_vec() }
        }
        Some(TransportSlice::Icmpv4(i)) => Body::Icmp {
            kind: i.type_u8(),
            code: i.code_u8(),
            rest: i.bytes5to8(),
            data: i.payload().to_vec(),
        },
        _ => Body::Other(header.protocol().0),
    };
    Some((header.source_addr(), header.destination_addr(), body))
}
