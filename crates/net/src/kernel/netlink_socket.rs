//! One netlink socket: requests with their acknowledgement, dumps, transactions.
//!
//! Owns: sequence numbers, acknowledgements, the kernel's error texts, bounded waits. Refuses:
//! what is in the messages.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use rustix::time::Timespec;

use super::{Answer, KernelError};
use crate::netlink::route::DELLINK;
use crate::netlink::{HEADER, Message, Received, attributes, messages, u32_at};

const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
const NLM_F_CAPPED: u16 = 0x100;
const NLM_F_ACK_TLVS: u16 = 0x200;
const NLMSGERR_ATTR_MSG: u16 = 1;
/// The kernel answers before `send` returns; this only bounds a kernel that does not.
const PATIENCE: Duration = Duration::from_secs(10);
/// The kernel fills at most 32 KiB of a dump at a time (`NLMSG_GOODSIZE`).
const BUFFER: usize = 64 * 1024;
/// An acknowledgement is 36 bytes and a sentence.
const ANSWERS: usize = 4 * 1024;

/// A socket in the namespace it was opened in, for one user at a time.
#[derive(Debug)]
pub(crate) struct NetlinkSocket {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

/// An acknowledgement: what it is about, its error number (0 for success), the kernel's words.
struct Ack {
    sequence: u32,
    errno: i32,
    said: Option<String>,
}

impl NetlinkSocket {
    /// Opens one in the calling thread's namespace.
    pub(crate) fn open(protocol: isize) -> io::Result<NetlinkSocket> {
        NetlinkSocket::with_buffer(protocol, BUFFER)
    }

    /// The same for requests only, whose answers are small: no pages that a dump would need.
    pub(crate) fn for_requests(protocol: isize) -> io::Result<NetlinkSocket> {
        NetlinkSocket::with_buffer(protocol, ANSWERS)
    }

    fn with_buffer(protocol: isize, size: usize) -> io::Result<NetlinkSocket> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        set_socket_timeout(socket.as_fd(), Timeout::Recv, Some(PATIENCE))?;
        Ok(NetlinkSocket { socket, sequence: 0, buffer: vec![0; size] })
    }

    /// One request that the kernel acknowledges.
    pub(crate) fn request(&mut self, what: &str, message: Message) -> Answer<()> {
        self.transaction(what, vec![message.acknowledged()])
    }

    /// Several requests in one `send`, which the kernel goes through in order (`netlink_rcv_skb`): it
    /// answers each that it refuses, and the last one in any case. The first refusal is the answer,
    /// under its own name.
    pub(crate) fn requests(&mut self, list: Vec<(&'static str, Message)>) -> Answer<()> {
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let (count, mut names) = (list.len(), Vec::with_capacity(list.len()));
        for (i, (what, message)) in list.into_iter().enumerate() {
            self.sequence = self.sequence.wrapping_add(1);
            let message = if i + 1 == count { message.acknowledged() } else { message };
            bytes.extend(message.finish(self.sequence));
            names.push(what);
        }
        let Some(last) = names.last() else { return Ok(()) };
        let error = |e: io::Error| KernelError::new(*last, e);
        send(&self.socket, &bytes, SendFlags::empty()).map_err(|e| error(e.into()))?;
        let mut refused: Option<KernelError> = None;
        loop {
            for ack in self.acks().map_err(error)? {
                let Some(what) = names.get(ack.sequence.wrapping_sub(first) as usize) else { continue };
                if ack.errno != 0 {
                    let errno = io::Error::from_raw_os_error(ack.errno);
                    refused.get_or_insert_with(|| KernelError::new(*what, errno).with_message(ack.said));
                }
                if ack.sequence == self.sequence {
                    return refused.map_or(Ok(()), Err);
                }
            }
        }
    }

    /// Several messages in one `send`; the first refusal is the answer. All are waited for.
    pub(crate) fn transaction(&mut self, what: &str, list: Vec<Message>) -> Answer<()> {
        let error = |e: io::Error| KernelError::new(what, e);
        let first = self.sequence.wrapping_add(1);
        let mut bytes = Vec::new();
        let mut open = Vec::new();
        for message in list {
            self.sequence = self.sequence.wrapping_add(1);
            if message.wants_ack() {
                open.push(self.sequence);
            }
            bytes.extend(message.finish(self.sequence));
        }
        send(&self.socket, &bytes, SendFlags::empty()).map_err(|e| error(e.into()))?;
        let mut refused: Option<KernelError> = None;
        while !open.is_empty() {
            for ack in self.acks().map_err(error)? {
                let ours = ack.sequence.wrapping_sub(first) <= self.sequence.wrapping_sub(first);
                if !ours {
                    continue;
                }
                open.retain(|s| *s != ack.sequence);
                if ack.errno != 0 {
                    let errno = io::Error::from_raw_os_error(ack.errno);
                    refused.get_or_insert_with(|| KernelError::new(what, errno).with_message(ack.said));
                    // A refused transaction is aborted; what follows is not acknowledged when the
                    // kernel gave up on the whole batch.
                    if is_batch_edge(ack.sequence, first, self.sequence) {
                        open.clear();
                    }
                }
            }
        }
        refused.map_or(Ok(()), Err)
    }

    fn acks(&mut self) -> io::Result<Vec<Ack>> {
        let len = self.receive()?;
        Ok(messages(&self.buffer[..len]).filter_map(|m| ack(&m)).collect())
    }

    fn receive(&mut self) -> io::Result<usize> {
        let (len, _) = recv(&self.socket, &mut self.buffer[..], RecvFlags::empty())?;
        Ok(len)
    }

    /// A dump, or a request answered by one message. `read` sees every message of the answer.
    pub(crate) fn dump(
        &mut self,
        what: &str,
        message: Message,
        mut read: impl FnMut(&Received<'_>),
    ) -> Answer<()> {
        let error = |e: io::Error| KernelError::new(what, e);
        let whole = message.wants_dump();
        self.sequence = self.sequence.wrapping_add(1);
        let bytes = message.finish(self.sequence);
        send(&self.socket, &bytes, SendFlags::empty()).map_err(|e| error(e.into()))?;
        loop {
            let len = self.receive().map_err(error)?;
            for m in messages(&self.buffer[..len]) {
                if m.sequence != self.sequence {
                    continue;
                }
                if m.kind == NLMSG_DONE {
                    return Ok(());
                }
                if let Some(ack) = ack(&m) {
                    if ack.errno == 0 {
                        return Ok(());
                    }
                    let errno = io::Error::from_raw_os_error(ack.errno);
                    return Err(KernelError::new(what, errno).with_message(ack.said));
                }
                read(&m);
                if !whole {
                    return Ok(());
                }
            }
        }
    }
}

/// The kernel reports a batch it gave up on under the sequence number of its first message.
fn is_batch_edge(sequence: u32, first: u32, last: u32) -> bool {
    first != last && sequence == first
}

/// `struct nlmsgerr` and what follows it.
fn ack(m: &Received<'_>) -> Option<Ack> {
    if m.kind != NLMSG_ERROR {
        return None;
    }
    let errno = u32_at(m.body, 0)?.cast_signed().wrapping_neg();
    let quoted = usize::try_from(u32_at(m.body, 4)?).ok()?;
    let said = (m.flags & NLM_F_ACK_TLVS != 0).then(|| {
        let skip = if m.flags & NLM_F_CAPPED != 0 { HEADER } else { quoted.next_multiple_of(4) };
        let attrs = m.body.get(4 + skip..).unwrap_or(&[]);
        attributes(attrs)
            .find(|(kind, _)| *kind == NLMSGERR_ATTR_MSG)
            .map(|(_, text)| String::from_utf8_lossy(text).trim_end_matches('\0').to_owned())
    });
    Some(Ack { sequence: m.sequence, errno, said: said.flatten() })
}

/// Told by the kernel of every interface that goes away in the namespace it was opened in.
pub(crate) struct LinkWatch {
    socket: Socket,
    buffer: Vec<u8>,
}

impl LinkWatch {
    /// Subscribes, in the calling thread's namespace.
    pub(crate) fn open() -> io::Result<LinkWatch> {
        const RTMGRP_LINK: u32 = 1;
        let mut socket = Socket::new(netlink_sys::protocols::NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, RTMGRP_LINK))?;
        Ok(LinkWatch { socket, buffer: vec![0; BUFFER] })
    }

    /// Forgets what came so far.
    pub(crate) fn drain(&mut self) -> io::Result<()> {
        loop {
            match recv(&self.socket, &mut self.buffer[..], RecvFlags::DONTWAIT) {
                Ok(_) | Err(Errno::NOBUFS | Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(()),
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Waits until some interface is gone; false when `deadline` has come first. Lost
    /// notifications count as one: the caller looks again in any case.
    pub(crate) fn next_deleted(&mut self, deadline: Instant) -> io::Result<bool> {
        loop {
            if !readable_before(self.socket.as_fd(), deadline)? {
                return Ok(false);
            }
            let len = match recv(&self.socket, &mut self.buffer[..], RecvFlags::empty()) {
                Ok((len, _)) => len,
                Err(Errno::NOBUFS) => return Ok(true),
                Err(e) => return Err(e.into()),
            };
            if messages(&self.buffer[..len]).any(|m| m.kind == DELLINK) {
                return Ok(true);
            }
        }
    }
}

/// Waits until `fd` has something to read; false when `deadline` has come first.
pub(crate) fn readable_before(fd: BorrowedFd<'_>, deadline: Instant) -> io::Result<bool> {
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
        match poll(&mut [PollFd::new(&fd, PollFlags::IN)], Some(&timeout)) {
            Ok(n) => return Ok(n > 0),
            Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
    }
}
