//! One probe and how its traces are recognised on the wire.
//!
//! Owns: telling apart what was asked of the guest, what came out, and what came back. Refuses:
//! verdicts.
//!
//! A guest may lie, so recognising is lopsided on purpose. *Asked* is strict: only the very frame,
//! or for a socket a packet with nothing unusual about it, counts as sent; a guest that sends
//! something else, which may be refused for another reason, has sent nothing. *Crossed* is loose: anything
//! that carries the probe's token, or has its addresses, counts against the row.

use super::frames::{ICMP, IPV4, RST, SYN, TCP, UDP};
use std::net::{Ipv4Addr, SocketAddrV4};

/// Bytes of a token: `nv`, six hex digits of the run, four of the row.
const TOKEN: usize = 12;
/// Bytes of it that are the run's.
const RUN: usize = 8;

/// Marks everything of one run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Run([u8; RUN]);

impl Run {
    pub(super) fn new(random: [u8; 3]) -> Self {
        let mut run = *b"nv000000";
        run[2..].copy_from_slice(hex(u32::from_be_bytes([0, random[0], random[1], random[2]]), 6).as_bytes());
        Self(run)
    }

    /// The token of a row.
    pub(super) fn token(self, row: usize) -> String {
        format!("{}{}", String::from_utf8_lossy(&self.0), hex(row as u32, 4))
    }

    /// The row whose token a frame carries.
    pub(super) fn row_in(self, frame: &[u8]) -> Option<usize> {
        let found = frame.windows(TOKEN).find(|window| window.starts_with(&self.0))?;
        usize::from_str_radix(std::str::from_utf8(&found[RUN..]).ok()?, 16).ok()
    }
}

fn hex(number: u32, digits: usize) -> String {
    format!("{number:0digits$x}")
}

/// How a probe gets on its way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Via {
    /// A socket of the guest.
    Tcp(SocketAddrV4),
    /// A socket of the guest.
    Udp(SocketAddrV4, Vec<u8>),
    /// A frame past the guest's network stack.
    Frame {
        /// As the guest sends it.
        bytes: Vec<u8>,
        /// As a packet socket shows it: the kernel takes one VLAN tag off before.
        shown: Vec<u8>,
    },
    /// A frame put on the host's end of the veth by the daemon.
    Injected(Vec<u8>),
    /// A packet of the host's own stack to the guest.
    FromHost(u8, SocketAddrV4),
}

/// What tells a probe's packets from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Flow {
    pub(super) protocol: u8,
    pub(super) from: Option<u16>,
    pub(super) to: SocketAddrV4,
}

/// How the network said no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// TCP reset.
    Reset,
    /// ICMP "unreachable" with this code.
    Unreachable(u8),
}

/// What the guest was given about a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Back {
    Refused(Refusal),
    Answered(String),
}

/// An IPv4 packet, as far as this module looks.
pub(super) struct Packet<'a> {
    pub(super) header: usize,
    pub(super) fragment: u16,
    pub(super) protocol: u8,
    pub(super) src: Ipv4Addr,
    pub(super) dst: Ipv4Addr,
    pub(super) body: &'a [u8],
}

impl<'a> Packet<'a> {
    /// Reads a packet without its Ethernet header.
    fn read(bytes: &'a [u8]) -> Option<Self> {
        let header = usize::from(bytes.first()? & 15) * 4;
        if bytes[0] >> 4 != 4 || header < 20 {
            return None;
        }
        let address = |at: usize| Some(Ipv4Addr::from(<[u8; 4]>::try_from(bytes.get(at..at + 4)?).ok()?));
        Some(Self {
            header,
            fragment: word(bytes, 6)? & 0x3fff,
            protocol: *bytes.get(9)?,
            src: address(12)?,
            dst: address(16)?,
            body: bytes.get(header..)?,
        })
    }

    /// Reads the packet in a frame.
    pub(super) fn in_frame(frame: &'a [u8]) -> Option<Self> {
        if word(frame, 12)? == IPV4 { Self::read(&frame[14..]) } else { None }
    }

    fn ports(&self) -> Option<(u16, u16)> {
        Some((word(self.body, 0)?, word(self.body, 2)?))
    }

    /// Of TCP and UDP.
    pub(super) fn source_port(&self) -> Option<u16> {
        self.ports().map(|(from, _)| from)
    }

    fn flags(&self) -> u8 {
        self.body.get(13).copied().unwrap_or(0)
    }

    /// Whether this goes where `flow` goes.
    fn goes_as(&self, flow: &Flow) -> bool {
        self.protocol == flow.protocol
            && self.dst == *flow.to.ip()
            && self
                .ports()
                .is_some_and(|(from, to)| to == flow.to.port() && flow.from.is_none_or(|port| port == from))
    }

    /// Whether this comes back from where `flow` goes.
    fn comes_as(&self, flow: &Flow) -> bool {
        self.protocol == flow.protocol
            && self.src == *flow.to.ip()
            && self
                .ports()
                .is_some_and(|(from, to)| from == flow.to.port() && flow.from.is_none_or(|port| port == to))
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_be_bytes([*bytes.get(at)?, *bytes.get(at + 1)?]))
}

/// An answer with the code REFUSED (RFC 1035 §4.1.1).
pub(super) const DNS_REFUSED: &str = "DNS, response code 5";

/// Who the guest is, as its honest frames say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Honest {
    pub(super) mac: [u8; 6],
    pub(super) gateway_mac: [u8; 6],
    pub(super) address: Ipv4Addr,
}

impl Via {
    /// Whether a frame that arrived at the tap is what the guest was asked to send.
    pub(super) fn is_asked(&self, guest: &Honest, frame: &[u8]) -> bool {
        let (protocol, to) = match self {
            Self::Tcp(to) => (TCP, to),
            Self::Udp(to, payload) if frame.windows(payload.len().max(1)).any(|w| w == payload) => (UDP, to),
            Self::Frame { shown, .. } => return starts_as(frame, shown),
            Self::Udp(..) | Self::Injected(_) | Self::FromHost(..) => return false,
        };
        let flow = Flow { protocol, from: None, to: *to };
        frame.starts_with(&guest.gateway_mac)
            && frame.get(6..12) == Some(&guest.mac[..])
            && Packet::in_frame(frame).is_some_and(|packet| {
                packet.header == 20
                    // "Don't fragment" is the only flag that an honest packet has.
                    && packet.fragment == 0
                    && packet.src == guest.address
                    && packet.goes_as(&flow)
                    && (protocol == UDP || packet.flags() & (SYN | RST) == SYN)
            })
    }

    /// Whether a frame that came in from the host is what the daemon put on the wire.
    pub(super) fn is_injected(&self, frame: &[u8]) -> bool {
        matches!(self, Self::Injected(bytes) if starts_as(frame, bytes))
    }
}

/// A frame may have been padded on its way.
fn starts_as(frame: &[u8], asked: &[u8]) -> bool {
    frame.strip_prefix(asked).is_some_and(|rest| rest.iter().all(|byte| *byte == 0))
}

/// Whether a frame belongs to a flow: how a probe without a token is recognised.
pub(super) fn is_of_flow(flow: &Flow, frame: &[u8]) -> bool {
    let any = Flow { from: None, ..*flow };
    Packet::in_frame(frame).is_some_and(|packet| packet.goes_as(&any))
}

/// What a frame to the guest says about the probe with this flow, or (`marked`) with a token that
/// the frame carries.
pub(super) fn back(flow: Option<&Flow>, marked: bool, frame: &[u8]) -> Option<Back> {
    let packet = Packet::in_frame(frame)?;
    match packet.protocol {
        TCP => {
            flow.filter(|flow| flow.from.is_some() && packet.comes_as(flow))?;
            match packet.flags() {
                flags if flags & RST != 0 => Some(Back::Refused(Refusal::Reset)),
                flags if flags & SYN != 0 => Some(Back::Answered("accepted".to_owned())),
                _ => None,
            }
        }
        UDP => {
            let flow = flow.filter(|flow| packet.comes_as(flow))?;
            if flow.to.port() == 53 && flow.protocol == UDP && marked {
                let code = packet.body.get(8 + 3)? & 15;
                return Some(Back::Answered(format!("DNS, response code {code}")));
            }
            Some(Back::Answered("a datagram".to_owned()))
        }
        ICMP => match packet.body.first()? {
            0 if marked => Some(Back::Answered("echo reply".to_owned())),
            3 => {
                let quoted = Packet::read(packet.body.get(8..)?)?;
                let about = marked || flow.is_some_and(|flow| quoted.goes_as(flow));
                about.then(|| Back::Refused(Refusal::Unreachable(packet.body[1])))
            }
            _ => None,
        },
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::frames::{self, Ends, Shape};
    use super::*;

    const GUEST: Honest = Honest {
        mac: [2, 0, 0, 0, 0, 1],
        gateway_mac: [2, 0, 0, 0, 0, 2],
        address: Ipv4Addr::new(169, 254, 100, 2),
    };
    const TO: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 0, 0, 1), 80);

    fn ends() -> Ends {
        Ends { src_mac: GUEST.mac, dst_mac: GUEST.gateway_mac, src: GUEST.address, dst: *TO.ip() }
    }

    #[test]
    fn tokens_name_their_row() {
        let run = Run::new([0xab, 1, 2]);
        let frame = frames::udp(&ends(), (1, 2), run.token(0x1f2).as_bytes());
        assert_eq!(run.row_in(&frame), Some(0x1f2));
        assert_eq!(Run::new([0xab, 1, 3]).row_in(&frame), None);
        assert_eq!(run.row_in(&frame[..50]), None, "cut off");
    }

    #[test]
    fn only_an_honest_packet_counts_as_sent_through_a_socket() {
        let (tcp, udp) = (Via::Tcp(TO), Via::Udp(TO, b"nvabcdef0001".to_vec()));
        let syn = frames::tcp(&ends(), (40_000, 80), frames::SYN, b"");
        let datagram = frames::udp(&ends(), (40_000, 80), b"nvabcdef0001");
        assert!(tcp.is_asked(&GUEST, &syn) && udp.is_asked(&GUEST, &datagram));
        let segment = frames::tcp_segment(&ends(), (40_000, 80), frames::SYN, b"");
        let options = Shape { options: &[1, 1, 1, 0], ..Shape::default() };
        let fragment = Shape { fragment: 0x2000, ..Shape::default() };
        let forged = Ends { src_mac: [2, 9, 9, 9, 9, 9], ..ends() };
        let sibling = Ends { src: Ipv4Addr::new(169, 254, 100, 6), ..ends() };
        for lie in [
            frames::ipv4(&ends(), TCP, &segment, options),
            frames::ipv4(&ends(), TCP, &segment, fragment),
            frames::tcp(&forged, (40_000, 80), frames::SYN, b""),
            frames::tcp(&sibling, (40_000, 80), frames::SYN, b""),
            frames::tcp(&ends(), (40_000, 81), frames::SYN, b""),
            frames::tcp(&ends(), (40_000, 80), frames::ACK, b""),
            datagram.clone(),
        ] {
            assert!(!tcp.is_asked(&GUEST, &lie), "{lie:02x?}");
        }
        assert!(!udp.is_asked(&GUEST, &frames::udp(&ends(), (40_000, 80), b"nvabcdef0002")));
    }

    #[test]
    fn a_frame_is_asked_only_byte_for_byte() {
        let bytes = frames::icmp(&ends(), 8, b"nvabcdef0001");
        let via = Via::Frame { shown: bytes.clone(), bytes: bytes.clone() };
        let mut padded = bytes.clone();
        padded.resize(80, 0);
        assert!(via.is_asked(&GUEST, &bytes) && via.is_asked(&GUEST, &padded));
        // The token alone does not make a probe: this one would be refused for another reason.
        assert!(!via.is_asked(&GUEST, &frames::other(&ends(), 47, b"nvabcdef0001")));
    }

    #[test]
    fn answers_are_told_from_refusals() {
        let flow = Flow { protocol: TCP, from: Some(40_000), to: TO };
        let to_guest = Ends { src: *TO.ip(), dst: GUEST.address, ..ends() };
        let reset = frames::tcp(&to_guest, (80, 40_000), RST | frames::ACK, b"");
        assert_eq!(back(Some(&flow), false, &reset), Some(Back::Refused(Refusal::Reset)));
        let accepted = frames::tcp(&to_guest, (80, 40_000), SYN | frames::ACK, b"");
        assert!(matches!(back(Some(&flow), false, &accepted), Some(Back::Answered(_))));
        let strange = frames::tcp(&to_guest, (80, 40_001), RST, b"");
        assert_eq!(back(Some(&flow), false, &strange), None);
        let asked = frames::udp(&ends(), (40_000, 80), b"nvabcdef0001");
        let error = frames::icmp(&to_guest, 3, &asked[14..]);
        let udp = Flow { protocol: UDP, ..flow };
        assert_eq!(back(Some(&udp), false, &error), Some(Back::Refused(Refusal::Unreachable(0))));
        assert_eq!(back(Some(&flow), false, &error), None, "about another protocol");
        assert_eq!(back(None, true, &error), Some(Back::Refused(Refusal::Unreachable(0))));
    }
}
