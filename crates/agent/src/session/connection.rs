//! A session's connection: frames in, frames out, never blocking where a pump could not.
//!
//! Owns: the buffer of what is to be sent, and cutting it into writes the guest's vsock can take.

use enisle_guest_proto::{Decoder, Frame, FrameError, Kind, MAX_FRAME, encode, encode_control};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use serde::Serialize;
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
    decoder: Decoder,
    unsent: Vec<u8>,
    sent: usize,
    /// Where bytes are read to; kept, because clearing it for each read costs more than reading.
    scratch: Box<[u8]>,
}

impl Connection {
    pub(super) fn new(fd: OwnedFd) -> Result<Self, ConnectionError> {
        rustix::io::ioctl_fionbio(&fd, true)?;
        Ok(Self {
            fd,
            decoder: Decoder::default(),
            unsent: Vec::new(),
            sent: 0,
            scratch: vec![0; 4 * MAX_FRAME].into(),
        })
    }

    /// Reads once what is there. [`ConnectionError::Closed`] at the end.
    pub(super) fn fill(&mut self) -> Result<(), ConnectionError> {
        match rustix::io::read(&self.fd, &mut *self.scratch) {
            Ok(0) => Err(ConnectionError::Closed),
            Ok(length) => {
                self.decoder.feed(self.scratch.get(..length).unwrap_or_default());
                Ok(())
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(()),
            Err(e) => Err(e.into()),
        }
    }

    pub(super) fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        self.decoder.next_frame()
    }

    /// Waits for one frame.
    pub(super) fn receive(&mut self, deadline: Instant) -> Result<Frame, ConnectionError> {
        loop {
            if let Some(frame) = self.next_frame()? {
                return Ok(frame);
            }
            self.wait(PollFlags::IN, deadline)?;
            self.fill()?;
        }
    }

    /// Puts a message in line.
    pub(super) fn queue<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        encode_control(message, &mut self.unsent)
    }

    /// Puts at most one frame's worth of data in line.
    pub(super) fn queue_data(&mut self, kind: Kind, bytes: &[u8]) {
        encode(kind, bytes, &mut self.unsent);
    }

    pub(super) fn unsent(&self) -> usize {
        self.unsent.len() - self.sent
    }

    /// Sends what the kernel takes without blocking.
    pub(super) fn flush(&mut self) -> Result<(), ConnectionError> {
        while let Some(rest) = self.unsent.get(self.sent..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(&self.fd, &rest[..rest.len().min(MAX_WRITE)]) {
                Ok(length) => self.sent += length,
                Err(Errno::AGAIN) => break,
                Err(Errno::INTR) => {}
                Err(e) => return Err(e.into()),
            }
        }
        if self.sent == self.unsent.len() || self.sent > CONGESTED {
            self.unsent.drain(..self.sent);
            self.sent = 0;
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
