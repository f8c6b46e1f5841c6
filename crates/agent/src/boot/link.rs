//! The boot connection: the agent's side of `Hello`, `BootConfig`, events and commands.
//!
//! Owns: connecting with a bounded back-off, and reading exactly one frame at a time, so that the
//! descriptor can be handed to the server without bytes left behind. Refuses: what the messages
//! make the guest do.

use enisle_guest_proto::frame::HEADER;
use enisle_guest_proto::{
    BOOT_PORT, BootConfig, Decoder, Frame, FrameError, HOST_CID, Hello, MAX_PAYLOAD, VERSION, encode_control,
};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// First and longest pause between two attempts to reach the daemon.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));
/// A daemon that accepted answers `Hello` within this time.
const ANSWER_PATIENCE: Duration = Duration::from_secs(20);

/// Why the boot connection is of no use.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The kernel's answer.
    #[error("vsock connection to the host, port {BOOT_PORT}")]
    Io(#[from] io::Error),
    /// What came is no frame of this protocol.
    #[error("the daemon's message")]
    Frame(#[from] FrameError),
    /// Another protocol.
    #[error(
        "the daemon speaks protocol {0}, this agent {VERSION}: rebuild the boot files with `enisle image build`"
    )]
    Version(u16),
}

/// An open boot connection.
#[derive(Debug)]
pub struct Link(File);

impl Link {
    /// Takes over a connection that has had its `Hello`.
    #[must_use]
    pub fn from_fd(fd: OwnedFd) -> Self {
        Self(File::from(fd))
    }

    /// Connects, says `Hello` and waits for the answer; tries again for as long as `patience`.
    ///
    /// # Errors
    /// The last attempt's failure, or at once a daemon of another version.
    pub fn open(booted: bool, patience: Duration) -> Result<(Self, BootConfig), LinkError> {
        let start = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            match Self::greet(booted) {
                Err(e) if !matches!(e, LinkError::Version(_)) && start.elapsed() + pause < patience => {
                    std::thread::sleep(pause);
                    pause = (pause * 2).min(PAUSES.1);
                }
                outcome => return outcome,
            }
        }
    }

    fn greet(booted: bool) -> Result<(Self, BootConfig), LinkError> {
        let mut link = Self::from_fd(crate::sys::vsock_connect(HOST_CID, BOOT_PORT)?);
        link.send(&Hello { version: VERSION, agent: env!("CARGO_PKG_VERSION").to_owned(), booted })?;
        rustix::net::sockopt::set_socket_timeout(
            &link.0,
            rustix::net::sockopt::Timeout::Recv,
            Some(ANSWER_PATIENCE),
        )
        .map_err(io::Error::from)?;
        let config: BootConfig = link.receive()?.control()?;
        if config.version != VERSION {
            return Err(LinkError::Version(config.version));
        }
        rustix::net::sockopt::set_socket_timeout(&link.0, rustix::net::sockopt::Timeout::Recv, None)
            .map_err(io::Error::from)?;
        Ok((link, config))
    }

    /// A second handle of the same connection, for a thread that only sends.
    ///
    /// # Errors
    /// `EMFILE`.
    pub fn try_clone(&self) -> io::Result<Self> {
        self.0.try_clone().map(Self)
    }

    /// Sends one message, blocking.
    ///
    /// # Errors
    /// The connection broke.
    pub fn send<T: Serialize>(&mut self, message: &T) -> Result<(), LinkError> {
        let mut wire = Vec::new();
        encode_control(message, &mut wire)?;
        Ok(self.0.write_all(&wire)?)
    }

    /// Waits for one frame and takes not a byte more from the connection.
    ///
    /// # Errors
    /// The connection broke or what came is no frame.
    pub fn receive(&mut self) -> Result<Frame, LinkError> {
        let mut decoder = Decoder::default();
        let mut header = [0; HEADER];
        self.0.read_exact(&mut header)?;
        decoder.feed(&header);
        if let Some(frame) = decoder.next_frame()? {
            return Ok(frame);
        }
        let [l0, l1, l2, l3, _] = header;
        // The decoder has judged the length already.
        let mut payload = vec![0; (u32::from_le_bytes([l0, l1, l2, l3]) as usize).min(MAX_PAYLOAD)];
        self.0.read_exact(&mut payload)?;
        decoder.feed(&payload);
        decoder.next_frame()?.ok_or(LinkError::Frame(FrameError::TooLong(payload.len())))
    }
}

impl AsFd for Link {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
