//! What happened, for whoever wants to follow it.
//!
//! ```text
//! owner tasks, policies ──tell──▶ ring (bounded) ─┐
//! refused packets ───────tell──▶ ring (bounded) ──┴─by number─▶ Reader (a place) ◀── GET /v1/events
//! ```
//!
//! Owns: numbers, the bounds, and saying how much a reader missed. A reader is a place and holds
//! nothing: one that is too slow finds its place overwritten and is told so; it never holds up who
//! tells. What guests can cause has a ring of its own, and pushes nothing else out. Refuses: keeping
//! events over a restart, and what they mean.

use crate::vm::lifetime::now_ms;
use enisle_api::{Event, EventFilter, EventKind};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Events that are kept: with reasons of [`MAX_REASON`] bytes at most 5 MiB, in practice below one; those of a file that
/// was read again hold names of its groups besides.
pub(crate) const KEPT: usize = 4096;
/// Refused flows that are kept beside them, below one MiB. Of each VM come at most some in a second.
pub(crate) const REFUSED_KEPT: usize = 2048;
/// Events that a reader takes at a time.
const BATCH: usize = 128;
/// Most bytes of a reason.
const MAX_REASON: usize = 1024;
/// The number of a run of the daemon is above these bits of an event's number: 2^53, which JSON's
/// readers can hold, leaves room for two million runs of four thousand million events.
const RUN_SHIFT: u32 = 32;

/// What readers wait for.
#[derive(Debug, Clone, Copy)]
struct News {
    newest: u64,
    closed: bool,
}

/// The newest events of one kind.
#[derive(Debug)]
struct Ring {
    limit: usize,
    kept: VecDeque<Event>,
    /// How many came before the oldest one that is kept.
    gone: u64,
}

impl Ring {
    fn new(limit: usize) -> Self {
        Self { limit, kept: VecDeque::new(), gone: 0 }
    }

    fn push(&mut self, event: Event) {
        if self.kept.len() == self.limit {
            self.kept.pop_front();
            self.gone += 1;
        }
        self.kept.push_back(event);
    }

    /// Events after a number, each with its place among all of this kind that there ever were, from 1.
    fn after(&self, seq: u64) -> impl Iterator<Item = (u64, &Event)> {
        let start = self.kept.partition_point(|event| event.seq <= seq);
        let place = self.gone + start as u64;
        self.kept.range(start..).enumerate().map(move |(i, event)| (place + i as u64 + 1, event))
    }

    /// How many of this kind there were up to a number; `None` for one before what is kept.
    fn up_to(&self, seq: u64) -> Option<u64> {
        let start = self.kept.partition_point(|event| event.seq <= seq) as u64;
        (start > 0 || self.gone == 0).then_some(self.gone + start)
    }
}

/// All that is kept.
#[derive(Debug)]
struct Rings {
    life: Ring,
    refused: Ring,
    /// How many there were, by type.
    told: BTreeMap<&'static str, u64>,
}

impl Rings {
    fn of(&self, only: EventFilter) -> &Ring {
        match only {
            EventFilter::Lifecycle => &self.life,
            EventFilter::Refused => &self.refused,
        }
    }

    /// How many of one kind there were up to the number `seq`, the numbers of this run being above `base`.
    /// One ring that reaches back so far is enough to know; else it is as few as may be.
    fn up_to(&self, only: EventFilter, seq: u64, base: u64) -> u64 {
        let (own, other) = match only {
            EventFilter::Lifecycle => (&self.life, &self.refused),
            EventFilter::Refused => (&self.refused, &self.life),
        };
        own.up_to(seq).or_else(|| other.up_to(seq).map(|other| seq - base - other)).unwrap_or_else(|| {
            let oldest = own.kept.front().map_or(seq + 1, |event| event.seq);
            own.gone.saturating_sub(oldest - 1 - seq)
        })
    }

    /// The number of the oldest event that is kept of these.
    fn oldest(&self, only: Option<EventFilter>) -> Option<u64> {
        let first = |ring: &Ring| ring.kept.front().map(|event| event.seq);
        match only {
            Some(only) => first(self.of(only)),
            None => first(&self.life).into_iter().chain(first(&self.refused)).min(),
        }
    }
}

/// What happened.
#[derive(Debug)]
pub(crate) struct Events {
    /// The number before the first event of this run.
    base: u64,
    rings: Mutex<Rings>,
    news: watch::Sender<News>,
    /// How many readers were told that they missed.
    missed: AtomicU64,
}

impl Events {
    /// Empty rings for this run of the daemon.
    pub(crate) fn new(run: u64) -> Self {
        let base = run << RUN_SHIFT;
        let news = watch::Sender::new(News { newest: base, closed: false });
        let (life, refused) = (Ring::new(KEPT), Ring::new(REFUSED_KEPT));
        let rings = Mutex::new(Rings { life, refused, told: BTreeMap::new() });
        Self { base, rings, news, missed: AtomicU64::new(0) }
    }

    /// Adds an event. Never waits for a reader.
    pub(crate) fn tell(&self, what: EventKind) {
        let mut rings = self.rings();
        *rings.told.entry(what.name()).or_default() += 1;
        let seq = self.news.borrow().newest + 1;
        let event = Event { seq, time_ms: now_ms(), what: shortened(what) };
        match event.what.filter() {
            Some(EventFilter::Refused) => rings.refused.push(event),
            _ => rings.life.push(event),
        }
        // Under the lock, so that numbers are told in their order.
        self.news.send_modify(|news| news.newest = seq);
    }

    /// How many events there were, by type, and how many readers were told that they missed.
    pub(crate) fn counts(&self) -> (BTreeMap<&'static str, u64>, u64) {
        (self.rings().told.clone(), self.missed.load(Ordering::Relaxed))
    }

    /// No more events come: readers that follow end.
    pub(crate) fn close(&self) {
        self.news.send_modify(|news| news.closed = true);
    }

    /// A reader of what came after the number `since`, or of everything that is kept; of one kind, or of
    /// all.
    pub(crate) fn reader(self: &Arc<Self>, since: Option<u64>, only: Option<EventFilter>) -> Reader {
        let news = self.news.subscribe();
        let rings = self.rings();
        let newest = news.borrow().newest;
        let (after, other_run) = match since {
            None => (rings.oldest(only).map_or(newest, |oldest| oldest - 1), false),
            Some(0) => (self.base, false),
            // Of another run, or of another state directory.
            Some(since) if since < self.base || since > newest => (self.base, true),
            Some(since) => (since, false),
        };
        let seen = match (only, since) {
            (None, _) => 0,
            // What is not kept any more is not missed by who asks for what is kept.
            (Some(only), None) => rings.of(only).gone,
            (Some(only), Some(_)) => rings.up_to(only, after, self.base),
        };
        drop(rings);
        Reader { events: Arc::clone(self), only, after, seen, other_run, news }
    }

    /// A panic elsewhere leaves rings that are whole: every change of them is one call.
    fn rings(&self) -> MutexGuard<'_, Rings> {
        self.rings.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shortened(mut what: EventKind) -> EventKind {
    if let EventKind::VmStopped { reason, .. }
    | EventKind::VmCrashed { reason, .. }
    | EventKind::VmFailed { reason, .. }
    | EventKind::ReloadFailed { reason } = &mut what
        && reason.len() > MAX_REASON
    {
        let end = reason.floor_char_boundary(MAX_REASON);
        reason.truncate(end);
        reason.push('…');
    }
    what
}

/// A place in the events.
pub(crate) struct Reader {
    events: Arc<Events>,
    only: Option<EventFilter>,
    /// The last number that was read.
    after: u64,
    /// How many of its kind there were up to there; of one kind only.
    seen: u64,
    other_run: bool,
    news: watch::Receiver<News>,
}

impl Reader {
    /// What there is after the last one, at most some; before what comes after a gap, how much was
    /// missed there.
    pub(crate) fn batch(&mut self) -> Vec<Event> {
        let events = Arc::clone(&self.events);
        let rings = events.rings();
        let mut batch = Vec::new();
        match self.only {
            Some(only) => {
                for (place, event) in rings.of(only).after(self.after).take(BATCH) {
                    self.take(&mut batch, event, place - self.seen - 1);
                    self.seen = place;
                }
            }
            // Numbers of all together have no gaps.
            None => {
                for event in merged(&rings, self.after).take(BATCH) {
                    self.take(&mut batch, event, event.seq - self.after - 1);
                }
            }
        }
        if self.other_run {
            self.note(&mut batch, self.after, 0);
        }
        batch
    }

    fn take(&mut self, batch: &mut Vec<Event>, event: &Event, missed: u64) {
        if missed > 0 || self.other_run {
            self.note(batch, event.seq - 1, missed);
        }
        batch.push(event.clone());
        self.after = event.seq;
    }

    /// Says that so many were missed before the number after `seq`.
    fn note(&mut self, batch: &mut Vec<Event>, seq: u64, count: u64) {
        let what = EventKind::Dropped { count, other_run: std::mem::take(&mut self.other_run) };
        batch.push(Event { seq, time_ms: now_ms(), what });
        self.events.missed.fetch_add(count, Ordering::Relaxed);
    }

    /// The next events, as soon as there are some; `None` when no more will come. Cancel-safe.
    pub(crate) async fn next(&mut self) -> Option<Vec<Event>> {
        loop {
            let closed = self.news.borrow_and_update().closed;
            let batch = self.batch();
            if !batch.is_empty() {
                return Some(batch);
            }
            if closed || self.news.changed().await.is_err() {
                return None;
            }
        }
    }
}

/// Both kinds after a number, by number.
fn merged(rings: &Rings, after: u64) -> impl Iterator<Item = &Event> {
    let mut life = rings.life.after(after).peekable();
    let mut refused = rings.refused.after(after).peekable();
    std::iter::from_fn(move || {
        let next = |ring: Option<&(u64, &Event)>| ring.map_or(u64::MAX, |(_, event)| event.seq);
        let first = if next(life.peek()) < next(refused.peek()) { life.next() } else { refused.next() };
        first.map(|(_, event)| event)
    })
}

#[cfg(test)]
mod tests;
