//! Netlink messages as bytes (RFC 3549, `include/uapi/linux/netlink.h`).
//!
//! Owns: headers, attributes and their alignment, written and read. Refuses: sockets (`kernel`),
//! and what the messages mean (`netlink::route`, `nft`). One encoder for rtnetlink and nfnetlink:
//! the setters used here (`IFLA_INET_CONF`, `TCA_BPF`, all of nf_tables) are not what the crates
//! looked at emit.

pub(crate) mod conntrack;
pub(crate) mod route;
pub(crate) mod shape;

/// `NLM_F_*` of `netlink.h`.
pub(crate) mod flags {
    pub(crate) const REQUEST: u16 = 0x1;
    pub(crate) const ACK: u16 = 0x4;
    pub(crate) const DUMP: u16 = 0x300;
    pub(crate) const EXCL: u16 = 0x200;
    pub(crate) const REPLACE: u16 = 0x100;
    pub(crate) const CREATE: u16 = 0x400;
    pub(crate) const APPEND: u16 = 0x800;
}

/// Bytes of `struct nlmsghdr`.
pub(crate) const HEADER: usize = 16;
const NESTED: u16 = 0x8000;
const TYPE_MASK: u16 = 0x3fff;

/// One message under construction. Its length and sequence number are written by
/// [`Message::finish`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Message(Vec<u8>);

impl Message {
    /// Starts a request of type `kind` with `flags` besides `NLM_F_REQUEST`.
    pub(crate) fn new(kind: u16, flags: u16) -> Message {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes[6..8].copy_from_slice(&(flags | flags::REQUEST).to_ne_bytes());
        Message(bytes)
    }

    /// Appends a fixed structure (the family's own header).
    pub(crate) fn put(mut self, bytes: &[u8]) -> Message {
        self.append(bytes);
        self
    }

    /// Appends a fixed structure inside an attribute.
    pub(crate) fn append(&mut self, bytes: &[u8]) -> &mut Message {
        self.0.extend_from_slice(bytes);
        self.pad();
        self
    }

    pub(crate) fn attr(&mut self, kind: u16, payload: &[u8]) -> &mut Message {
        self.open(kind, |m| m.0.extend_from_slice(payload))
    }

    /// In the host's byte order, as rtnetlink wants it.
    pub(crate) fn attr_u32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.attr(kind, &value.to_ne_bytes())
    }

    /// In network byte order, as nfnetlink wants it.
    pub(crate) fn attr_be32(&mut self, kind: u16, value: u32) -> &mut Message {
        self.attr(kind, &value.to_be_bytes())
    }

    /// With the NUL that the kernel expects.
    pub(crate) fn attr_str(&mut self, kind: u16, value: &str) -> &mut Message {
        self.open(kind, |m| {
            m.0.extend_from_slice(value.as_bytes());
            m.0.push(0);
        })
    }

    pub(crate) fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        self.open(kind | NESTED, fill)
    }

    fn open(&mut self, kind: u16, fill: impl FnOnce(&mut Message)) -> &mut Message {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; 4]);
        fill(self);
        // An attribute is at most 64 KiB by its header; callers split what may grow (sets).
        let len = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&len.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.pad();
        self
    }

    fn pad(&mut self) {
        self.0.resize(self.0.len().next_multiple_of(4), 0);
    }

    /// Asks for an acknowledgement.
    pub(crate) fn acknowledged(mut self) -> Message {
        let all = self.flags() | flags::ACK;
        self.0[6..8].copy_from_slice(&all.to_ne_bytes());
        self
    }

    pub(crate) fn wants_ack(&self) -> bool {
        self.flags() & flags::ACK != 0
    }

    pub(crate) fn wants_dump(&self) -> bool {
        self.flags() & flags::DUMP == flags::DUMP
    }

    fn flags(&self) -> u16 {
        u16_at(&self.0, 6).unwrap_or(0)
    }

    /// The bytes to send.
    pub(crate) fn finish(mut self, sequence: u32) -> Vec<u8> {
        let len = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[0..4].copy_from_slice(&len.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// One received message, without its header.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Received<'a> {
    pub(crate) kind: u16,
    pub(crate) flags: u16,
    pub(crate) sequence: u32,
    pub(crate) body: &'a [u8],
}

/// Splits a datagram into messages; ends at the first that lies about its length.
pub(crate) fn messages(mut datagram: &[u8]) -> impl Iterator<Item = Received<'_>> {
    std::iter::from_fn(move || {
        let len = usize::try_from(u32_at(datagram, 0)?).ok()?;
        let body = datagram.get(HEADER..len)?;
        let received = Received {
            kind: u16_at(datagram, 4)?,
            flags: u16_at(datagram, 6)?,
            sequence: u32_at(datagram, 8)?,
            body,
        };
        datagram = datagram.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some(received)
    })
}

/// Walks attributes as `(type, payload)`; ends at the first that lies about its length.
pub(crate) fn attributes(mut bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::from(u16_at(bytes, 0)?);
        let kind = u16_at(bytes, 2)? & TYPE_MASK;
        let payload = bytes.get(4..len)?;
        bytes = bytes.get(len.next_multiple_of(4)..).unwrap_or(&[]);
        Some((kind, payload))
    })
}

/// The payload of the first attribute of type `kind`.
pub(crate) fn attribute(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    attributes(bytes).find_map(|(k, payload)| (k == kind).then_some(payload))
}

pub(crate) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?))
}

pub(crate) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_read_back() {
        let mut m = Message::new(7, flags::ACK).put(&[1, 2, 3]);
        m.attr_str(1, "ab").nest(2, |m| {
            m.attr_u32(3, 9);
        });
        let bytes = m.finish(5);
        let got: Vec<_> = messages(&bytes).collect();
        assert_eq!(got.len(), 1);
        assert_eq!((got[0].kind, got[0].sequence), (7, 5));
        assert_eq!(got[0].flags, flags::ACK | flags::REQUEST);
        let attrs = &got[0].body[4..];
        assert_eq!(attribute(attrs, 1), Some(&b"ab\0"[..]));
        let inner = attribute(attrs, 2).unwrap();
        assert_eq!(attribute(inner, 3), Some(&9u32.to_ne_bytes()[..]));
    }

    #[test]
    fn lying_lengths_end_the_walk() {
        let mut bytes = Message::new(1, 0).put(&[0; 4]).finish(1);
        bytes[0] = 200;
        assert_eq!(messages(&bytes).count(), 0);
        assert_eq!(attributes(&[3, 0, 1, 0]).count(), 0);
        assert_eq!(attributes(&[9, 0, 1, 0, 5]).count(), 0);
    }
}
