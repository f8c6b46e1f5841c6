//! Refused packets as they happen, within a bound for each slot.
//!
//! ```text
//! judge ──8 a second and slot──▶ ring ──▶ Reports ──▶ whoever wants to know
//!   └─ the rest: counted, exactly
//! ```
//!
//! Owns: waiting for them, and naming who refused. Refuses: which VM a tenant is, and what its rules are called
//! (the daemon).

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::Errno;

use crate::engine::{Refuser, refuser};
use crate::kernel::told::{Record, Ring};

/// Who has a slot, from the moment it is given until it is left. A number is never used again while the process
/// runs, so that what a slot's last tenant did is never taken for what its next one does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Tenant(pub(crate) u64);

impl Tenant {
    /// A new one.
    pub(crate) fn next() -> Tenant {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        Tenant(NEXT.fetch_add(1, Ordering::Relaxed))
    }
}

/// A packet that the judge refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusedFlow {
    /// Whose slot it is.
    pub tenant: Tenant,
    /// How many packets of this tenant were refused without being told of, since it has the slot.
    pub untold: u64,
    /// Who refused.
    pub by: Refuser,
    /// The policy whose rule it is: as [`crate::Slot::policy_number`].
    pub policy: u32,
    /// To the guest; else from it.
    pub inward: bool,
    /// Protocol number of the IPv4 header.
    pub proto: u8,
    /// As the packet says.
    pub source: Ipv4Addr,
    /// As the packet says.
    pub destination: Ipv4Addr,
    /// Source and destination port, of TCP and UDP; not of a fragment other than the first.
    pub ports: Option<(u16, u16)>,
    /// Type and code, of ICMP.
    pub icmp: Option<(u8, u8)>,
}

impl From<Record> for RefusedFlow {
    fn from(record: Record) -> RefusedFlow {
        const ICMP: u8 = 1;
        let [first, second] = record.ports.unwrap_or_default();
        let [kind, code] = first.to_be_bytes();
        let is_icmp = record.proto == ICMP;
        RefusedFlow {
            tenant: Tenant(record.tenant),
            untold: record.untold,
            by: refuser(record.by),
            policy: record.policy,
            inward: record.inward,
            proto: record.proto,
            source: record.source,
            destination: record.destination,
            ports: (record.ports.is_some() && !is_icmp).then_some((first, second)),
            icmp: (record.ports.is_some() && is_icmp).then_some((kind, code)),
        }
    }
}

/// The reader of an engine's reports.
pub struct Reports {
    ring: Ring,
    bell: Bell,
}

/// Ends a reader's waiting, from any thread.
#[derive(Debug, Clone)]
pub struct Bell(Arc<OwnedFd>);

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// There may be reports.
    Reports,
    /// The time is over.
    TimeOver,
    /// The bell was rung.
    Bell,
}

impl Reports {
    pub(crate) fn new(ring: Ring) -> io::Result<Reports> {
        let bell = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Reports { ring, bell: Bell(Arc::new(bell)) })
    }

    /// What ends the waiting of this reader.
    #[must_use]
    pub fn bell(&self) -> Bell {
        self.bell.clone()
    }

    /// Waits for reports, `limit` at most, or for the bell. Blocks.
    ///
    /// # Errors
    /// As poll(2).
    pub fn wait(&self, limit: Option<Duration>) -> io::Result<Woken> {
        let limit = limit.map(Timespec::try_from).transpose().map_err(io::Error::other)?;
        loop {
            let ring = self.ring.as_fd();
            let mut fds = [PollFd::new(&ring, PollFlags::IN), PollFd::new(&*self.bell.0, PollFlags::IN)];
            return match poll(&mut fds, limit.as_ref()) {
                Ok(0) => Ok(Woken::TimeOver),
                Ok(_) if !fds[1].revents().is_empty() => Ok(Woken::Bell),
                Ok(_) => Ok(Woken::Reports),
                Err(Errno::INTR) => continue,
                Err(e) => Err(e.into()),
            };
        }
    }

    /// The oldest that was not read yet; `None` when there is none. Does not block.
    pub fn read(&mut self) -> Option<RefusedFlow> {
        self.ring.next().map(RefusedFlow::from)
    }
}

impl Bell {
    /// Rings it, for good.
    pub fn ring(&self) {
        // Full is rung as well.
        let _ = rustix::io::write(&*self.0, &1u64.to_ne_bytes());
    }
}

impl std::fmt::Debug for Reports {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reports").finish_non_exhaustive()
    }
}
