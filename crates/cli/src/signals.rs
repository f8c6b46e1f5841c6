//! Signals to this program. Owns which are caught and when a user who repeats one is let go;
//! refuses to decide what a signal does.

use crate::Failure;
use std::collections::VecDeque;
use std::time::{Duration, Instant};
use tokio::signal::unix::{Signal, SignalKind, signal};

pub(crate) const SIGPIPE: u8 = 13;
const SIGHUP: u8 = 1;
const SIGINT: u8 = 2;
const SIGQUIT: u8 = 3;
const SIGTERM: u8 = 15;
/// Not among tokio's named kinds; signal(7), the same number on every architecture we build for.
const SIGTSTP: i32 = 20;
const SIGCONT: i32 = 18;

/// Signals that ask this program to end: a process in a guest gets them instead.
pub(crate) struct Endings {
    hangup: Signal,
    interrupt: Signal,
    quit: Signal,
    terminate: Signal,
}

impl Endings {
    /// Catches them from now on; until then each ends this program.
    pub(crate) fn catch() -> Result<Self, Failure> {
        Ok(Self {
            hangup: catch(SignalKind::hangup())?,
            interrupt: catch(SignalKind::interrupt())?,
            quit: catch(SignalKind::quit())?,
            terminate: catch(SignalKind::terminate())?,
        })
    }

    /// The number of the next one. Cancel-safe.
    pub(crate) async fn next(&mut self) -> u8 {
        tokio::select! {
            _ = self.hangup.recv() => SIGHUP,
            _ = self.interrupt.recv() => SIGINT,
            _ = self.quit.recv() => SIGQUIT,
            _ = self.terminate.recv() => SIGTERM,
        }
    }
}

/// True for the signals that mean "this terminal or this session ends", not "stop that command".
pub(crate) fn ends_session(signal: u8) -> bool {
    matches!(signal, SIGHUP | SIGTERM)
}

/// What happens to the terminal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TerminalEvent {
    Resized,
    /// Somebody asks us to stop; nothing has happened yet.
    Stop,
    /// We run again after a stop.
    Continued,
}

/// Signals about the terminal.
pub(crate) struct TerminalSignals {
    resized: Signal,
    stop: Signal,
    continued: Signal,
}

impl TerminalSignals {
    pub(crate) fn catch() -> Result<Self, Failure> {
        Ok(Self {
            resized: catch(SignalKind::window_change())?,
            stop: catch(SignalKind::from_raw(SIGTSTP))?,
            continued: catch(SignalKind::from_raw(SIGCONT))?,
        })
    }

    /// The next event. Cancel-safe.
    pub(crate) async fn next(&mut self) -> TerminalEvent {
        tokio::select! {
            _ = self.resized.recv() => TerminalEvent::Resized,
            _ = self.stop.recv() => TerminalEvent::Stop,
            _ = self.continued.recv() => TerminalEvent::Continued,
        }
    }
}

fn catch(kind: SignalKind) -> Result<Signal, Failure> {
    signal(kind).map_err(|e| Failure::io("cannot catch signals", &e))
}

/// Notices a user who wants out whatever the process does: three signals within a second.
#[derive(Debug, Default)]
pub(crate) struct Impatience {
    recent: VecDeque<Instant>,
}

impl Impatience {
    const COUNT: usize = 3;
    const WITHIN: Duration = Duration::from_secs(1);

    /// Counts a signal at `now`; true when it is time to leave.
    pub(crate) fn count(&mut self, now: Instant) -> bool {
        self.recent.push_back(now);
        if self.recent.len() > Self::COUNT {
            self.recent.pop_front();
        }
        let first = self.recent.front().copied().unwrap_or(now);
        self.recent.len() == Self::COUNT && now.duration_since(first) <= Self::WITHIN
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_signals_in_a_second_let_the_user_out_and_slower_ones_do_not() {
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        let mut impatience = Impatience::default();
        assert!(!impatience.count(at(0)));
        assert!(!impatience.count(at(600)));
        assert!(!impatience.count(at(1200)));
        assert!(impatience.count(at(1500)));
    }
}
