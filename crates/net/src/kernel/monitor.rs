//! Told by the kernel when something changed that the engine follows.
//!
//! Owns: the subscriptions, and telling what matters from what does not. Refuses: reacting
//! (`Engine::refresh` does, when the daemon calls it).

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use netlink_sys::{Socket, SocketAddr};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, recv};
use rustix::time::Timespec;

use crate::netlink::{messages, route};
use crate::plan;

/// Notifications that are read at a time.
const BUFFER: usize = 64 * 1024;

/// What changed, as far as one look tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Interfaces, addresses, routes or their settings.
    Routing,
    /// Somebody changed an nf_tables ruleset.
    Firewall,
}

/// Listens in the namespace it was opened in.
#[derive(Debug)]
pub struct Monitor {
    routing: Socket,
    firewall: Socket,
    buffer: Vec<u8>,
}

impl Monitor {
    /// Subscribes, in the calling thread's network namespace.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN`, `EMFILE`.
    pub fn open() -> io::Result<Monitor> {
        // RTNLGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV4_NETCONF; NFNLGRP_NFTABLES.
        Ok(Monitor {
            routing: subscribe(NETLINK_ROUTE, &[1, 3, 5, 7, 24])?,
            firewall: subscribe(NETLINK_NETFILTER, &[7])?,
            buffer: vec![0; BUFFER],
        })
    }

    /// Waits for a change, at most `limit`; `None` when nothing changed. Changes that come in
    /// between two calls are kept; several count as one.
    ///
    /// # Errors
    /// As poll(2) and recv(2).
    pub fn wait(&mut self, limit: Duration) -> io::Result<Option<Change>> {
        let deadline = Instant::now() + limit;
        loop {
            let Some(change) = self.first_before(deadline)? else {
                return Ok(None);
            };
            let socket = match change {
                Change::Routing => &self.routing,
                Change::Firewall => &self.firewall,
            };
            if drain(socket, &mut self.buffer)? {
                return Ok(Some(change));
            }
        }
    }

    fn first_before(&self, deadline: Instant) -> io::Result<Option<Change>> {
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let timeout = Timespec::try_from(left).map_err(io::Error::other)?;
            let mut fds =
                [PollFd::new(&self.routing, PollFlags::IN), PollFd::new(&self.firewall, PollFlags::IN)];
            match poll(&mut fds, Some(&timeout)) {
                Ok(0) => return Ok(None),
                Ok(_) if fds[0].revents().is_empty() => return Ok(Some(Change::Firewall)),
                Ok(_) => return Ok(Some(Change::Routing)),
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Both descriptors, for an event loop: readable when [`Monitor::wait`] would not block.
    #[must_use]
    pub fn descriptors(&self) -> [BorrowedFd<'_>; 2] {
        [self.routing.as_fd(), self.firewall.as_fd()]
    }
}

fn subscribe(protocol: isize, groups: &[u32]) -> io::Result<Socket> {
    let mut socket = Socket::new(protocol)?;
    socket.bind(&SocketAddr::new(0, 0))?;
    for group in groups {
        socket.add_membership(*group)?;
    }
    Ok(socket)
}

/// Reads what there is; whether any of it matters. Lost notifications are as good as read ones:
/// the reader looks anew.
fn drain(socket: &Socket, buffer: &mut [u8]) -> io::Result<bool> {
    let mut matters = false;
    loop {
        match recv(socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Ok((len, _)) => {
                let told = buffer.get(..len).unwrap_or(&[]);
                matters |= messages(told).any(|m| route::neighbour_link(&m).is_none_or(plan::is_slot_link));
            }
            Err(Errno::NOBUFS) => matters = true,
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => return Ok(matters),
            Err(e) => return Err(e.into()),
        }
    }
}
