//! The few rtnetlink(7) requests a guest needs, each acknowledged by the kernel.

use rustix::net::netlink::SocketAddrNetlink;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, sendto, socket_with};
use std::io;
use std::os::fd::OwnedFd;

const NLM_F_REQUEST: u16 = 0x1;
const NLM_F_ACK: u16 = 0x4;
/// Create what is not there, replace what is (`NLM_F_CREATE | NLM_F_REPLACE`).
pub(super) const ENSURE: u16 = 0x400 | 0x100;
const NLMSG_ERROR: u16 = 2;
/// `struct nlmsghdr`.
const HEADER: usize = 16;

/// A routing socket.
pub(super) struct Netlink(OwnedFd);

/// One request: a fixed part, then attributes, each padded to 4 bytes (netlink(7)).
pub(super) struct Request {
    kind: u16,
    flags: u16,
    body: Vec<u8>,
}

impl Request {
    /// `fixed` is the type's own structure (`ifinfomsg`, `ifaddrmsg`, `rtmsg`).
    pub(super) fn new(kind: u16, flags: u16, fixed: &[u8]) -> Self {
        Self { kind, flags, body: fixed.to_vec() }
    }

    /// Adds an attribute; `value` is a few bytes.
    pub(super) fn attribute(mut self, kind: u16, value: &[u8]) -> Self {
        let length = (4 + value.len()) as u16;
        self.body.extend_from_slice(&length.to_ne_bytes());
        self.body.extend_from_slice(&kind.to_ne_bytes());
        self.body.extend_from_slice(value);
        self.body.resize(self.body.len().next_multiple_of(4), 0);
        self
    }

    fn encode(&self) -> Vec<u8> {
        let length = (HEADER + self.body.len()) as u32;
        let mut wire = length.to_ne_bytes().to_vec();
        wire.extend_from_slice(&self.kind.to_ne_bytes());
        wire.extend_from_slice(&(NLM_F_REQUEST | NLM_F_ACK | self.flags).to_ne_bytes());
        wire.extend_from_slice(&[0; 8]);
        wire.extend_from_slice(&self.body);
        wire
    }
}

impl Netlink {
    pub(super) fn open() -> io::Result<Self> {
        // No protocol is protocol 0, NETLINK_ROUTE.
        Ok(Self(socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, None)?))
    }

    /// Sends a request and waits for the kernel's verdict on it.
    pub(super) fn ask(&self, request: &Request) -> io::Result<()> {
        sendto(&self.0, &request.encode(), SendFlags::empty(), &SocketAddrNetlink::new(0, 0))?;
        let mut answer = [0; 4096];
        let (length, _) = recv(&self.0, &mut answer[..], RecvFlags::empty())?;
        match verdict(answer.get(..length).unwrap_or_default()) {
            Some(0) => Ok(()),
            Some(errno) => Err(io::Error::from_raw_os_error(-errno)),
            None => Err(io::Error::new(io::ErrorKind::InvalidData, "not an acknowledgement")),
        }
    }
}

/// The error number of an `NLMSG_ERROR`, 0 for an acknowledgement.
fn verdict(answer: &[u8]) -> Option<i32> {
    let kind = u16::from_ne_bytes(answer.get(4..6)?.try_into().ok()?);
    let errno = i32::from_ne_bytes(answer.get(HEADER..HEADER + 4)?.try_into().ok()?);
    (kind == NLMSG_ERROR).then_some(errno)
}
