//! A running process as a session's job: signals, time-out, exit status, and its end when the
//! daemon is gone.
//!
//! The process is not reaped before whoever holds it is done with it, so its id, and with it the id of its
//! group and session, cannot be another's meanwhile.

use super::exec::set_size;
use super::pump::Job;
use crate::sys;
use enisle_guest_proto::Control;
use rustix::process::{Pid, PidfdFlags, WaitId, WaitIdOptions, pidfd_open, waitid};
use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Instant;

pub(super) struct Process {
    pid: i32,
    pidfd: OwnedFd,
    deadline: Option<Instant>,
    terminal: Option<OwnedFd>,
    timed_out: bool,
}

impl Process {
    /// Watches a child that leads its own session.
    pub(super) fn adopt(pid: u32, deadline: Option<Instant>, terminal: Option<OwnedFd>) -> io::Result<Self> {
        let pid = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(rustix::io::Errno::SRCH)?;
        let pidfd = pidfd_open(pid, PidfdFlags::empty())?;
        Ok(Self { pid: pid.as_raw_nonzero().get(), pidfd, deadline, terminal, timed_out: false })
    }

    /// Signals the process group. Nobody there is no failure: it has just ended.
    pub(super) fn signal(&self, signal: i32) {
        let _ = sys::kill(-self.pid, signal);
    }

    /// Kills every process of the session, also those in groups a shell made for its jobs.
    pub(super) fn kill_session(&self) {
        self.signal(libc::SIGKILL);
        for pid in processes_of_session(self.pid) {
            // It may have ended since.
            let _ = sys::kill(pid, libc::SIGKILL);
        }
    }

    /// Waits for the end, which has come or was just ordered, and reaps.
    pub(super) fn reap(&self) -> Control {
        let timed_out = self.timed_out;
        loop {
            match waitid(WaitId::PidFd(self.pidfd.as_fd()), WaitIdOptions::EXITED) {
                Err(rustix::io::Errno::INTR) => {}
                Ok(Some(status)) if status.exited() => {
                    let code = status.exit_status().unwrap_or(0);
                    return Control::Exit { code, signal: None, timed_out };
                }
                Ok(Some(status)) => {
                    let signal = status.terminating_signal().unwrap_or(libc::SIGKILL);
                    return Control::Exit {
                        code: 128 + signal,
                        signal: u8::try_from(signal).ok(),
                        timed_out,
                    };
                }
                // Someone else reaped it: its status is lost, which a session must not hide.
                Ok(None) | Err(_) => return Control::Exit { code: 255, signal: None, timed_out },
            }
        }
    }
}

impl Job for Process {
    fn ended(&self) -> Option<BorrowedFd<'_>> {
        Some(self.pidfd.as_fd())
    }

    fn deadline(&self) -> Option<Instant> {
        self.deadline
    }

    fn expire(&mut self) {
        self.timed_out = true;
        self.kill_session();
    }

    fn control(&mut self, message: &Control) {
        match (message, &self.terminal) {
            (Control::Signal { signal }, _) => self.signal(i32::from(*signal)),
            // A size that cannot be set leaves the old one.
            (Control::Resize { rows, cols }, Some(terminal)) => drop(set_size(terminal, *rows, *cols)),
            _ => {}
        }
    }

    fn finish(&mut self, _broken: Option<io::Error>) -> Control {
        self.reap()
    }

    fn abandon(&mut self) {
        self.kill_session();
        self.reap();
    }
}

fn processes_of_session(session: i32) -> impl Iterator<Item = i32> {
    fs::read_dir("/proc").into_iter().flatten().flatten().filter_map(move |entry| {
        let pid = entry.file_name().to_str()?.parse().ok()?;
        let stat = fs::read_to_string(entry.path().join("stat")).ok()?;
        (session_of(&stat)? == session).then_some(pid)
    })
}

/// The session id in a line of `/proc/PID/stat`. The name may contain anything, parentheses too,
/// so fields are counted after the last one (proc(5)).
fn session_of(stat: &str) -> Option<i32> {
    let (_, fields) = stat.rsplit_once(')')?;
    fields.split_ascii_whitespace().nth(3)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_session_is_found_behind_any_name() {
        assert_eq!(session_of("7 (a) b) (c)) S 1 2 42 0 -1"), Some(42));
        assert_eq!(session_of("7 (sh"), None);
        assert_eq!(session_of("7 (sh) S 1"), None);
    }
}
