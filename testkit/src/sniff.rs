//! A sniffer on every interface of a namespace (packet(7)).
//!
//! Owns: the proof that something did or did not arrive. A sniffer sees packets before any
//! firewall does, so what it has not seen was stopped earlier.

use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth};
use std::os::fd::OwnedFd;

use crate::Netns;

/// Everything that arrives at or leaves a namespace, from the moment it was opened.
#[derive(Debug)]
pub struct Sniffer {
    socket: OwnedFd,
    frames: Vec<Vec<u8>>,
}

impl Sniffer {
    /// Starts to listen.
    ///
    /// # Errors
    /// Without `CAP_NET_RAW`.
    pub fn open(ns: &Netns) -> anyhow::Result<Sniffer> {
        let open = || {
            rustix::net::socket_with(
                AddressFamily::PACKET,
                SocketType::RAW,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                Some(eth::ALL),
            )
        };
        let socket = ns.run(open).context("cannot open a packet socket; run as root")?;
        // A flood in a test must not push out the frame the test is about.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&socket, 16 << 20).ok();
        Ok(Sniffer { socket, frames: Vec::new() })
    }

    /// All frames so far, oldest first.
    pub fn frames(&mut self) -> &[Vec<u8>] {
        let mut buffer = vec![0; 1 << 17];
        while let Ok((got, _)) = rustix::net::recv(&self.socket, &mut buffer[..], RecvFlags::empty()) {
            self.frames.push(buffer[..got].to_vec());
        }
        &self.frames
    }

    /// How many frames so far are as `matches` says.
    pub fn count(&mut self, matches: impl Fn(&[u8]) -> bool) -> usize {
        self.frames().iter().filter(|f| matches(f)).count()
    }

    /// Whether a frame as `matches` says has come or comes within `limit`.
    pub fn sees(&mut self, limit: Duration, matches: impl Fn(&[u8]) -> bool) -> bool {
        let end = Instant::now() + limit;
        loop {
            if self.count(&matches) > 0 {
                return true;
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            wait_readable(&self.socket, left);
        }
    }
}

/// Waits until a descriptor can be read, or the time is over.
pub(crate) fn wait_readable(fd: &OwnedFd, limit: Duration) {
    let timeout = Timespec::try_from(limit).ok();
    let mut polled = [PollFd::new(fd, PollFlags::IN)];
    // A signal or an error only makes the caller look once more and wait again.
    rustix::event::poll(&mut polled, timeout.as_ref()).ok();
}
