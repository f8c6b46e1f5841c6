//! Owns halting a VMM's process and letting it run on: SIGSTOP and SIGCONT through a pidfd, which every VMM
//! understands, and which the kernel does at once.
//!
//! Refuses QEMU's own `stop`: that takes the queues of the vsock device away, and vhost-device-vsock 0.3 ends
//! the thread that serves them when anything comes from the host meanwhile, as the end of a client or of a daemon
//! does (`process_tx` fails with `IterateQueue`). No session would ever reach that guest again.

use std::os::fd::AsFd;
use std::sync::atomic::{AtomicBool, Ordering};

use rustix::process::{Signal, pidfd_send_signal};

use crate::error::{Cause, OnPath};
use crate::survivor::{Pinned, state};

/// A VMM's process, to be halted.
#[derive(Debug)]
pub(crate) struct Halt {
    process: Pinned,
    paused: AtomicBool,
}

impl Halt {
    /// Of a process that is pinned already.
    pub(crate) fn of(process: &Pinned) -> Result<Self, Cause> {
        let fd =
            process.fd.try_clone().on("duplicate the descriptor of", format!("/proc/{}", process.pid))?;
        Ok(Self::new(Pinned { pid: process.pid, fd }))
    }

    /// Of a child that nobody has waited for, so that its number is its own.
    pub(crate) fn of_child(pid: u32) -> Result<Self, Cause> {
        crate::survivor::pin(pid).map(Self::new)
    }

    fn new(process: Pinned) -> Self {
        let paused = AtomicBool::new(state(process.pid) == Some('T'));
        Self { process, paused }
    }

    /// Halts all its threads, at their next entry into the kernel or the next interrupt: microseconds.
    pub(crate) fn pause(&self) -> Result<(), Cause> {
        self.send(Signal::STOP)?;
        self.paused.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets it run on. One that runs is left alone.
    pub(crate) fn resume(&self) -> Result<(), Cause> {
        self.send(Signal::CONT)?;
        self.paused.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// Whether it is halted: what was done to it last, at first what it was found as.
    pub(crate) fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    fn send(&self, signal: Signal) -> Result<(), Cause> {
        match pidfd_send_signal(self.process.fd.as_fd(), signal) {
            Err(rustix::io::Errno::SRCH) => Err(Cause::Gone),
            sent => sent.on("signal process", format!("/proc/{}", self.process.pid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_halted_and_goes_on_and_one_that_is_gone_is_an_error() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let halt = Halt::of_child(child.id()).unwrap();
        let id = child.id();
        let reaches = |paused: bool| {
            let begun = std::time::Instant::now();
            while (state(id) == Some('T')) != paused {
                assert!(begun.elapsed() < std::time::Duration::from_secs(60), "not {paused}");
                std::thread::yield_now();
            }
            assert_eq!(halt.is_paused(), paused);
            assert_eq!(Halt::of(&halt.process).unwrap().is_paused(), paused, "as another finds it");
        };
        reaches(false);
        for _ in 0..2 {
            halt.pause().unwrap();
            reaches(true);
        }
        for _ in 0..2 {
            halt.resume().unwrap();
            reaches(false);
        }
        halt.pause().unwrap();
        reaches(true);
        child.kill().unwrap();
        child.wait().unwrap();
        assert!(matches!(halt.resume(), Err(Cause::Gone)));
    }
}
