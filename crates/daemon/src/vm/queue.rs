//! Who starts next: one queue for every launch, first come, first served.
//!
//! ```text
//! Queue::enter ──▶ Place ──turn──▶ Turn ──settled──▶ Turn, counted as living ──drop──▶ next
//! ```
//!
//! Owns: how many VMs start at the same time, and that the next one's memory is there before it
//! starts. Only the first in the queue is looked at, so nobody is overtaken. It is looked at
//! when somebody comes, is ready, or is gone: no timer. Refuses: taking memory from anybody. What a
//! running VM has not touched yet is not kept free for it.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::oneshot;

/// MiB that stay with the host whoever waits.
const RESERVE_MIB: u64 = 256;

/// MiB of the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Memory {
    pub(crate) total: u64,
    /// What could be had without swapping.
    pub(crate) available: u64,
}

/// Where the host's memory is read. `None` where that cannot be known: nobody waits for it then.
pub(crate) type Gauge = fn() -> Option<Memory>;

/// This machine's, from `/proc/meminfo`.
pub(crate) fn this_host() -> Option<Memory> {
    parse(&std::fs::read_to_string("/proc/meminfo").ok()?)
}

fn parse(meminfo: &str) -> Option<Memory> {
    let mib = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key))?;
        line.trim().strip_suffix(" kB")?.parse::<u64>().ok().map(|kib| kib / 1024)
    };
    Some(Memory { total: mib("MemTotal:")?, available: mib("MemAvailable:")? })
}

/// A VM that this host cannot hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{asked} MiB of memory are asked for; this host has {} MiB, {RESERVE_MIB} of them for itself", memory.total)]
pub(crate) struct TooLarge {
    asked: u64,
    memory: Memory,
}

/// Why a VM does not start yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Waiting {
    /// Others came before.
    Behind { before: usize, starting: usize },
    /// It is the next, once one that starts is ready.
    Next { starting: usize },
    /// It is the next, once there is memory.
    Memory { asked: u64, free: u64 },
}

impl fmt::Display for Waiting {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Behind { before, starting } => {
                write!(f, "queued: {before} wait before it, {starting} are starting")
            }
            Self::Next { starting } => write!(f, "queued: the next; {starting} are starting"),
            Self::Memory { asked, free } => write!(
                f,
                "queued: the next; {asked} MiB of memory are asked for, {free} MiB are free for microVMs: it starts \
                 when others are deleted"
            ),
        }
    }
}

/// The queue of one daemon.
pub(crate) struct Queue {
    at_once: usize,
    gauge: Gauge,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    next_number: u64,
    waiting: VecDeque<Waiter>,
    /// MiB of each VM that starts.
    starting: BTreeMap<u64, u64>,
    /// VMs that are ready, and whose end frees memory.
    living: usize,
}

struct Waiter {
    number: u64,
    mib: u64,
    turn: oneshot::Sender<Turn>,
}

impl Queue {
    /// A queue that lets `at_once` VMs start at the same time.
    pub(crate) fn new(at_once: usize, gauge: Gauge) -> Arc<Self> {
        Arc::new(Self { at_once: at_once.max(1), gauge, state: Mutex::default() })
    }

    /// The end of the queue, for a VM with this much memory.
    ///
    /// # Errors
    /// The host could not hold it if it were alone.
    pub(crate) fn enter(self: &Arc<Self>, mib: u64) -> Result<Place, TooLarge> {
        if let Some(memory) = (self.gauge)().filter(|memory| mib + RESERVE_MIB > memory.total) {
            return Err(TooLarge { asked: mib, memory });
        }
        let (turn, comes) = oneshot::channel();
        let number = {
            let mut state = self.lock();
            state.next_number += 1;
            let number = state.next_number;
            state.waiting.push_back(Waiter { number, mib, turn });
            number
        };
        self.advance();
        Ok(Place { ticket: Ticket { queue: Arc::clone(self), number }, comes: Some(comes) })
    }

    /// How many wait, and how many start.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        let state = self.lock();
        (state.waiting.len(), state.starting.len())
    }

    /// The turn of a VM that is there already.
    pub(crate) fn of_living(self: &Arc<Self>) -> Turn {
        self.lock().living += 1;
        Turn { queue: Arc::clone(self), number: 0, settled: true }
    }

    /// Lets in who may start now.
    fn advance(self: &Arc<Self>) {
        loop {
            let mut state = self.lock();
            let free = state.waiting.front().is_some() && state.starting.len() < self.at_once;
            // Where nothing of ours lives or starts, waiting would have no end: its start is tried.
            let alone = state.starting.is_empty() && state.living == 0;
            if !free
                || !(alone
                    || state.waiting.front().is_some_and(|first| self.short_of(&state, first).is_none()))
            {
                return;
            }
            let Some(first) = state.waiting.pop_front() else { return };
            state.starting.insert(first.number, first.mib);
            drop(state);
            // Who has left meanwhile drops it, which gives it back.
            let turn = Turn { queue: Arc::clone(self), number: first.number, settled: false };
            drop(first.turn.send(turn));
        }
    }

    /// What the first in the queue lacks. What starts is counted whole beside what it uses
    /// already: for some seconds too much, never too little.
    fn short_of(&self, state: &State, first: &Waiter) -> Option<Waiting> {
        let memory = (self.gauge)()?;
        let promised: u64 = state.starting.values().sum();
        let free = memory.available.saturating_sub(promised + RESERVE_MIB);
        (first.mib > free).then_some(Waiting::Memory { asked: first.mib, free })
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic elsewhere leaves a state that is whole: every change of it is one call.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What one in the queue may be asked by others.
#[derive(Clone)]
pub(crate) struct Ticket {
    queue: Arc<Queue>,
    number: u64,
}

impl Ticket {
    /// Why it does not start yet; `None` when it does.
    pub(crate) fn waiting(&self) -> Option<Waiting> {
        let state = self.queue.lock();
        let before = state.waiting.iter().position(|waiter| waiter.number == self.number)?;
        let starting = state.starting.len();
        if before > 0 {
            return Some(Waiting::Behind { before, starting });
        }
        let short = state.waiting.front().filter(|_| starting < self.queue.at_once);
        let short = short.and_then(|first| self.queue.short_of(&state, first));
        Some(short.unwrap_or(Waiting::Next { starting }))
    }
}

/// A place in the queue. Dropping it leaves the queue.
pub(crate) struct Place {
    ticket: Ticket,
    comes: Option<oneshot::Receiver<Turn>>,
}

impl Place {
    pub(crate) fn ticket(&self) -> Ticket {
        self.ticket.clone()
    }

    /// Waits for the turn. `None` once it was taken.
    pub(crate) async fn turn(&mut self) -> Option<Turn> {
        let turn = self.comes.as_mut()?.await.ok();
        self.comes = None;
        turn
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // First: a turn that arrives now is dropped by its sender.
        drop(self.comes.take());
        let queue = &self.ticket.queue;
        let number = self.ticket.number;
        queue.lock().waiting.retain(|waiter| waiter.number != number);
        // It may have been what the others waited behind.
        queue.advance();
    }
}

/// A VM that starts, or lives. Dropped when nothing of it takes memory any more.
pub(crate) struct Turn {
    queue: Arc<Queue>,
    number: u64,
    settled: bool,
}

impl Turn {
    /// It is ready: the next may start.
    pub(crate) fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        {
            let mut state = self.queue.lock();
            state.starting.remove(&self.number);
            state.living += 1;
        }
        self.queue.advance();
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        {
            let mut state = self.queue.lock();
            if self.settled {
                state.living -= 1;
            } else {
                state.starting.remove(&self.number);
            }
        }
        self.queue.advance();
    }
}

#[cfg(test)]
mod tests;
