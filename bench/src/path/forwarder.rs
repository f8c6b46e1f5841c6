//! The VM's place: whole frames with their `virtio_net_hdr` from one tap to another and back, as a
//! VMM hands them to its guest.
//!
//! Owns: one thread, bound to one CPU. Refuses: looking into frames.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context as _, Result};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::packets::pin;

/// Frames from one side before the other has its turn.
const TURN: usize = 64;
/// The largest segment and its headers.
const FRAME: usize = 1 << 17;

/// A running forwarder; it ends when dropped.
pub(super) struct Forwarder {
    stop: Arc<OwnedFd>,
    thread: Option<JoinHandle<()>>,
}

impl Forwarder {
    /// Starts between two non-blocking queues, on the `cpu`th CPU.
    pub(super) fn start(guest: File, network: File, cpu: usize) -> Result<Forwarder> {
        let stop = Arc::new(eventfd(0, EventfdFlags::CLOEXEC).context("make an eventfd")?);
        let stopped = Arc::clone(&stop);
        let run = move || {
            let done = pin(cpu).and_then(|()| forward(&guest, &network, &stopped));
            if let Err(error) = done {
                eprintln!("the forwarder stopped: {error:#}");
            }
        };
        let thread = std::thread::Builder::new().name("forwarder".into()).spawn(run)?;
        Ok(Forwarder { stop, thread: Some(thread) })
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // Neither can fail in a way that leaves anything to do.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn forward(guest: &File, network: &File, stop: &OwnedFd) -> Result<()> {
    let mut buffer = vec![0; FRAME];
    loop {
        let mut ready = [
            PollFd::new(guest, PollFlags::IN),
            PollFd::new(network, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        match poll(&mut ready, None) {
            Err(rustix::io::Errno::INTR) => continue,
            polled => polled.context("wait for frames")?,
        };
        let [from_guest, from_network, stopped] = ready.map(|fd| !fd.revents().is_empty());
        if stopped {
            return Ok(());
        }
        if from_guest {
            carry(guest, network, &mut buffer)?;
        }
        if from_network {
            carry(network, guest, &mut buffer)?;
        }
    }
}

/// Carries what waits, at most [`TURN`] frames.
fn carry(mut from: &File, mut to: &File, buffer: &mut [u8]) -> Result<()> {
    for _ in 0..TURN {
        let length = match from.read(buffer) {
            Ok(length) => length,
            Err(e) if e.kind() == ErrorKind::WouldBlock => return Ok(()),
            Err(e) => return Err(e).context("read a frame"),
        };
        match to.write(&buffer[..length]) {
            Ok(_) => {}
            // A full interface loses frames, as a wire does.
            Err(e) if e.kind() == ErrorKind::WouldBlock => {}
            Err(e) => return Err(e).context("write a frame"),
        }
    }
    Ok(())
}
