//! A session's connection: frames in, frames out, never blocking where a pump could not.
//!
//! Owns: reading into the buffer where frames are taken apart, and cutting what is to be sent into writes the
//! guest's vsock can take.

use super::outgoing::Outgoing;
use enisle_guest_proto::{FrameError, MAX_FRAME, Parts};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// With this much unsent, nothing more is read from anywhere, in bytes.
pub(super) const CONGESTED: usize = 256 << 10;
/// Some guest kernels hang on larger writes.
const MAX_WRITE: usize = 32 << 10;
/// The daemon takes the last message and closes within this time.
const CLOSE_PATIENCE: Duration = Duration::from_secs(20);

/// Why a session's connection is of no more use.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    /// The kernel's answer.
    #[error("the session's connection")]
    Io(#[from] io::Error),
    /// What came is no frame of this protocol.
    #[error("the daemon's frame")]
    Frame(#[from] FrameError),
    /// The daemon closed it.
    #[error("the daemon closed the session")]
    Closed,
    /// It sent more than its credit, or what only the agent may send.
    #[error("the daemon broke the protocol: {0}")]
    Protocol(&'static str),
    /// It sent nothing in time.
    #[error("the daemon sent nothing in time")]
    TimedOut,
}

impl From<Errno> for ConnectionError {
    fn from(errno: Errno) -> Self {
        Self::Io(errno.into())
    }
}

pub(super) struct Connection {
    fd: OwnedFd,
    /// What came.
    pub(super) parts: Parts,
    /// What is to be sent.
    pub(super) out: Outgoing,
}

impl Connection {
    pub(super) fn new(fd: OwnedFd) -> Result<Self, ConnectionError> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self { fd, parts: Parts::default(), out: Outgoing::new() })
    }

    /// Reads once what is there. [`ConnectionError::Closed`] at the end.
    pub(super) fn fill(&mut self) -> Result<(), ConnectionError> {
        let room = self.parts.room();
        if room.is_empty() {
            // What is there is to be taken first.
            return Ok(());
        }
        match rustix::io::read(&self.fd, room) {
            Ok(0) => Err(ConnectionError::Closed),
            Ok(length) => {
                self.parts.filled(length);
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    /// Waits for one message.
    pub(super) fn receive<T: DeserializeOwned>(&mut self, deadline: Instant) -> Result<T, ConnectionError> {
        loop {
            if let Some(part) = self.parts.next_part()? {
                return Ok(self.parts.message(&part)?);
            }
            self.wait(PollFlags::IN, deadline)?;
            self.fill()?;
        }
    }

    /// Puts a message in line.
    pub(super) fn queue<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        self.out.message(message)
    }

    pub(super) fn unsent(&self) -> usize {
        self.out.len()
    }

    /// Sends what the kernel takes without blocking.
    pub(super) fn flush(&mut self) -> Result<(), ConnectionError> {
        while self.unsent() > 0 {
            let rest = self.out.bytes();
            match rustix::io::write(&self.fd, &rest[..rest.len().min(MAX_WRITE)]) {
                Ok(length) => self.out.sent(length),
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    /// Sends the rest and waits until the daemon has closed its side: closing first could lose
    /// what is still on the way (a reset overtakes data).
    pub(super) fn close(mut self) -> Result<(), ConnectionError> {
        let deadline = Instant::now() + CLOSE_PATIENCE;
        loop {
            self.flush()?;
            if self.unsent() == 0 {
                break;
            }
            self.wait(PollFlags::OUT, deadline)?;
        }
        let mut ignored = [0; MAX_FRAME];
        loop {
            match rustix::io::read(&self.fd, &mut ignored) {
                Ok(0) => return Ok(()),
                Ok(_) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.wait(PollFlags::IN, deadline)?,
                Err(e) => return Err(e.into()),
            }
        }
    }

    fn wait(&self, flags: PollFlags, deadline: Instant) -> Result<(), ConnectionError> {
        match poll(&mut [PollFd::new(&self.fd, flags)], Some(&until(deadline))) {
            Ok(0) => Err(ConnectionError::TimedOut),
            Ok(_) | Err(Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// The time left, as `poll` wants it; zero when the deadline is past.
pub(super) fn until(deadline: Instant) -> Timespec {
    let left = deadline.saturating_duration_since(Instant::now());
    Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) }
}
