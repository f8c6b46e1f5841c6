//! Connection tracking over ctnetlink (`nfnetlink_conntrack.h`): finding and deleting the flows of
//! guests.
//!
//! Owns: the filter, reading a flow's original direction, deleting by it. Refuses: sockets.

use std::net::Ipv4Addr;

use super::{Message, Received, attribute, flags};

const SUBSYS_CTNETLINK: u16 = 1;
const CT_NEW: u16 = SUBSYS_CTNETLINK << 8;
const CT_GET: u16 = SUBSYS_CTNETLINK << 8 | 1;
const CT_DELETE: u16 = SUBSYS_CTNETLINK << 8 | 2;
const AF_INET: u8 = 2;
const CTA_TUPLE_ORIG: u16 = 1;
const CTA_ZONE: u16 = 18;
const CTA_ID: u16 = 12;
const CTA_FILTER: u16 = 25;
const CTA_FILTER_ORIG_FLAGS: u16 = 1;
/// `CTA_FILTER_FLAG(CTA_IP_SRC)`.
const FILTER_IP_SRC: u32 = 1;
const CTA_TUPLE_IP: u16 = 1;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_SRC_PORT: u16 = 2;
const CTA_PROTO_DST_PORT: u16 = 3;

/// A flow that a guest has begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct LiveFlow {
    /// Protocol number of the IPv4 header.
    pub proto: u8,
    /// Whom the guest talks to.
    pub destination: Ipv4Addr,
    /// The port at that end; `None` for ICMP.
    pub port: Option<u16>,
    /// The guest's own port; `None` for ICMP.
    pub source_port: Option<u16>,
}

/// A flow, named as the kernel needs it to delete exactly this one.
pub(crate) struct Flow {
    original: Vec<u8>,
    zone: Option<Vec<u8>>,
    id: Option<Vec<u8>>,
}

/// All flows that `guest` started, and maybe others; the kernel picks them by their source (since
/// 5.8). Without a guest, all there are.
pub(crate) fn dump_request(guest: Option<Ipv4Addr>) -> Message {
    let mut m = Message::new(CT_GET, flags::DUMP).put(&[AF_INET, 0, 0, 0]);
    if let Some(guest) = guest {
        started_by(&mut m, guest);
    }
    m
}

/// Deletes every flow that `guest` started, in one walk that passes over empty buckets without a lock
/// (since 6.9). Older kernels do not know the filter here, take the half tuple for a whole one, and
/// answer `EINVAL`.
pub(crate) fn delete_all_request(guest: Ipv4Addr) -> Message {
    let mut m = Message::new(CT_DELETE, 0).put(&[AF_INET, 0, 0, 0]);
    started_by(&mut m, guest);
    m
}

/// The filter: the original direction's source.
fn started_by(m: &mut Message, guest: Ipv4Addr) {
    m.nest(CTA_TUPLE_ORIG, |m| {
        m.nest(CTA_TUPLE_IP, |m| {
            m.attr(CTA_IP_V4_SRC, &guest.octets());
        });
    })
    .nest(CTA_FILTER, |m| {
        m.attr_u32(CTA_FILTER_ORIG_FLAGS, FILTER_IP_SRC);
    });
}

/// The flow in a message, when who started it is one of those.
pub(crate) fn parse_flow(m: &Received<'_>, of: impl Fn(Ipv4Addr) -> bool) -> Option<Flow> {
    if m.kind != CT_NEW {
        return None;
    }
    let attrs = m.body.get(4..)?;
    let original = attribute(attrs, CTA_TUPLE_ORIG)?;
    let source = attribute(attribute(original, CTA_TUPLE_IP)?, CTA_IP_V4_SRC)?;
    let source = Ipv4Addr::from(<[u8; 4]>::try_from(source).ok()?);
    of(source).then(|| Flow {
        original: original.to_vec(),
        zone: attribute(attrs, CTA_ZONE).map(<[u8]>::to_vec),
        id: attribute(attrs, CTA_ID).map(<[u8]>::to_vec),
    })
}

/// The flow in a message, by its ends, when `guest` has begun it.
pub(crate) fn parse_live(m: &Received<'_>, guest: Ipv4Addr) -> Option<LiveFlow> {
    if m.kind != CT_NEW {
        return None;
    }
    let original = attribute(m.body.get(4..)?, CTA_TUPLE_ORIG)?;
    let ends = attribute(original, CTA_TUPLE_IP)?;
    let address = |kind| Some(Ipv4Addr::from(<[u8; 4]>::try_from(attribute(ends, kind)?).ok()?));
    if address(CTA_IP_V4_SRC)? != guest {
        return None;
    }
    let proto = attribute(original, CTA_TUPLE_PROTO)?;
    let port = |kind| Some(u16::from_be_bytes(<[u8; 2]>::try_from(attribute(proto, kind)?).ok()?));
    Some(LiveFlow {
        proto: *attribute(proto, CTA_PROTO_NUM)?.first()?,
        destination: address(CTA_IP_V4_DST)?,
        port: port(CTA_PROTO_DST_PORT),
        source_port: port(CTA_PROTO_SRC_PORT),
    })
}

impl Flow {
    /// Deletes this flow; `ENOENT` when it has ended meanwhile.
    pub(crate) fn delete_request(&self) -> Message {
        let mut m = Message::new(CT_DELETE, 0).put(&[AF_INET, 0, 0, 0]);
        m.nest(CTA_TUPLE_ORIG, |m| {
            m.append(&self.original);
        });
        if let Some(zone) = &self.zone {
            m.attr(CTA_ZONE, zone);
        }
        if let Some(id) = &self.id {
            m.attr(CTA_ID, id);
        }
        m
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;

    fn message(source: [u8; 4]) -> Vec<u8> {
        let mut m = Message::new(CT_NEW, 0).put(&[AF_INET, 0, 0, 0]);
        m.nest(CTA_TUPLE_ORIG, |m| {
            m.nest(CTA_TUPLE_IP, |m| {
                m.attr(CTA_IP_V4_SRC, &source).attr(CTA_IP_V4_DST, &[8, 8, 8, 8]);
            })
            .nest(CTA_TUPLE_PROTO, |m| {
                m.attr(CTA_PROTO_NUM, &[6]);
                m.attr(CTA_PROTO_SRC_PORT, &[0x80, 0]).attr(CTA_PROTO_DST_PORT, &[1, 187]);
            });
        });
        m.finish(1)
    }

    #[test]
    fn a_live_flow_is_read_by_its_ends() {
        let guest = Ipv4Addr::new(169, 254, 100, 2);
        let bytes = message(guest.octets());
        let received = messages(&bytes).next().unwrap();
        let flow = parse_live(&received, guest).unwrap();
        let expected = LiveFlow {
            proto: 6,
            destination: Ipv4Addr::new(8, 8, 8, 8),
            port: Some(443),
            source_port: Some(32768),
        };
        assert_eq!(flow, expected);
        assert_eq!(parse_live(&received, Ipv4Addr::new(169, 254, 100, 6)), None, "another guest's");
        let cut = &bytes[..bytes.len() - 4];
        assert!(messages(cut).next().is_none_or(|m| parse_live(&m, guest).is_none()));
    }
}
