//! What happened, for whoever wants to follow it.
//!
//! ```text
//! owner tasks, policies ──tell──▶ ring (bounded) ◀──batch── Reader (a number) ◀── GET /v1/events
//! ```
//!
//! Owns: numbers, the bound, and saying how much a reader missed. A reader is a number and holds
//! nothing: one that is too slow finds its place overwritten and is told so; it never holds up who
//! tells. Refuses: keeping events over a restart, and what they mean.

use crate::vm::lifetime::now_ms;
use enisle_api::{Event, EventKind};
use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// Events that are kept: with reasons of [`MAX_REASON`] bytes at most 5 MiB, in practice below one.
pub(crate) const KEPT: usize = 4096;
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

/// All that is kept.
#[derive(Debug)]
pub(crate) struct Events {
    /// The number before the first event of this run.
    base: u64,
    ring: Mutex<VecDeque<Event>>,
    news: watch::Sender<News>,
    /// How many there were, by type.
    told: Mutex<BTreeMap<&'static str, u64>>,
    /// How many readers were told that they missed.
    missed: AtomicU64,
}

impl Events {
    /// An empty ring for this run of the daemon.
    pub(crate) fn new(run: u64) -> Self {
        let base = run << RUN_SHIFT;
        let news = watch::Sender::new(News { newest: base, closed: false });
        Self { base, ring: Mutex::default(), news, told: Mutex::default(), missed: AtomicU64::new(0) }
    }

    /// Adds an event. Never waits for a reader.
    pub(crate) fn tell(&self, what: EventKind) {
        *self.told().entry(what.name()).or_default() += 1;
        let mut ring = self.ring();
        let seq = self.news.borrow().newest + 1;
        if ring.len() == KEPT {
            ring.pop_front();
        }
        ring.push_back(Event { seq, time_ms: now_ms(), what: shortened(what) });
        // Under the lock, so that numbers are told in their order.
        self.news.send_modify(|news| news.newest = seq);
    }

    /// How many events there were, by type, and how many readers were told that they missed.
    pub(crate) fn counts(&self) -> (BTreeMap<&'static str, u64>, u64) {
        (self.told().clone(), self.missed.load(Ordering::Relaxed))
    }

    fn told(&self) -> MutexGuard<'_, BTreeMap<&'static str, u64>> {
        self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more events come: readers that follow end.
    pub(crate) fn close(&self) {
        self.news.send_modify(|news| news.closed = true);
    }

    /// A reader of what came after the number `since`, or of everything that is kept.
    pub(crate) fn reader(self: &Arc<Self>, since: Option<u64>) -> Reader {
        let news = self.news.subscribe();
        let newest = news.borrow().newest;
        let (after, other_run) = match since {
            None => (self.oldest() - 1, false),
            Some(0) => (self.base, false),
            // Of another run, or of another state directory.
            Some(since) if since < self.base || since > newest => (self.base, true),
            Some(since) => (since, false),
        };
        Reader { events: Arc::clone(self), after, other_run, news }
    }

    /// The number of the oldest event that is kept, or of the next one.
    fn oldest(&self) -> u64 {
        let ring = self.ring();
        ring.front().map_or_else(|| self.news.borrow().newest + 1, |event| event.seq)
    }

    /// A panic elsewhere leaves a ring that is whole: every change of it is one call.
    fn ring(&self) -> MutexGuard<'_, VecDeque<Event>> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn shortened(mut what: EventKind) -> EventKind {
    if let EventKind::VmStopped { reason, .. }
    | EventKind::VmCrashed { reason, .. }
    | EventKind::VmFailed { reason, .. } = &mut what
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
    /// The last number that was read.
    after: u64,
    other_run: bool,
    news: watch::Receiver<News>,
}

impl Reader {
    /// What there is after the last one, at most some; first of all, how much was missed.
    pub(crate) fn batch(&mut self) -> Vec<Event> {
        let ring = self.events.ring();
        let newest = self.events.news.borrow().newest;
        let oldest = ring.front().map_or(newest + 1, |event| event.seq);
        let mut batch = Vec::new();
        let missed = oldest.saturating_sub(self.after + 1);
        if missed > 0 || self.other_run {
            let what = EventKind::Dropped { count: missed, other_run: std::mem::take(&mut self.other_run) };
            batch.push(Event { seq: oldest - 1, time_ms: now_ms(), what });
            self.after = oldest - 1;
            self.events.missed.fetch_add(missed, Ordering::Relaxed);
        }
        // Numbers have no gaps: the place of the next one in the ring follows from it.
        let skip = usize::try_from(self.after + 1 - oldest).unwrap_or(usize::MAX);
        batch.extend(ring.iter().skip(skip).take(BATCH).cloned());
        self.after = batch.last().map_or(self.after, |event| event.seq);
        batch
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

#[cfg(test)]
mod tests {
    use super::*;

    fn adopted(vm: usize) -> EventKind {
        EventKind::VmAdopted { vm: vm.to_string(), group: "g".into() }
    }

    fn numbers(batch: &[Event]) -> Vec<u64> {
        batch.iter().map(|event| event.seq).collect()
    }

    fn all(mut reader: Reader) -> Vec<Event> {
        std::iter::from_fn(|| Some(reader.batch()).filter(|batch| !batch.is_empty())).flatten().collect()
    }

    #[test]
    fn a_reader_gets_what_came_after_its_number() {
        let events = Arc::new(Events::new(3));
        let base = 3 << 32;
        assert_eq!(all(events.reader(None)), []);
        assert_eq!(all(events.reader(Some(0))), []);
        for n in 0..3 {
            events.tell(adopted(n));
        }
        assert_eq!(numbers(&all(events.reader(None))), [base + 1, base + 2, base + 3]);
        assert_eq!(numbers(&all(events.reader(Some(0)))), [base + 1, base + 2, base + 3]);
        assert_eq!(numbers(&all(events.reader(Some(base + 2)))), [base + 3]);
        assert_eq!(all(events.reader(Some(base + 3))), []);
    }

    #[test]
    fn what_a_reader_missed_is_counted_exactly_and_each_is_missed_or_read() {
        let events = Arc::new(Events::new(1));
        let base = 1u64 << 32;
        let mut slow = events.reader(None);
        for n in 0..KEPT + 10 {
            events.tell(adopted(n));
        }
        let first = slow.batch();
        assert_eq!(first[0].what, EventKind::Dropped { count: 10, other_run: false });
        assert_eq!(first[0].seq, base + 10, "going on from there misses no more");
        let read = first.len() - 1 + all(slow).len();
        assert_eq!(read, KEPT);
        assert_eq!(events.counts(), (BTreeMap::from([("vm_adopted", KEPT as u64 + 10)]), 10));
        let old = all(events.reader(Some(base + 4)));
        assert_eq!(old[0].what, EventKind::Dropped { count: 6, other_run: false });
        assert_eq!(old.len(), 1 + KEPT);
        assert_eq!(all(events.reader(None)).len(), KEPT, "who asks for what is kept misses nothing");
    }

    #[test]
    fn a_number_of_another_run_is_noticed_also_when_nothing_has_happened_since() {
        let events = Arc::new(Events::new(2));
        let dropped = EventKind::Dropped { count: 0, other_run: true };
        for since in [(1 << 32) + 5, (9 << 32) + 1] {
            let batch = all(events.reader(Some(since)));
            assert_eq!((batch.len(), &batch[0].what), (1, &dropped));
            assert_eq!(all(events.reader(Some(batch[0].seq))), []);
        }
    }

    #[test]
    fn a_long_reason_is_cut_between_characters() {
        let events = Arc::new(Events::new(1));
        let reason = "ü".repeat(2000);
        events.tell(EventKind::VmFailed { vm: "a".into(), group: "g".into(), reason });
        let EventKind::VmFailed { reason, .. } = &all(events.reader(None))[0].what else { panic!("another") };
        assert_eq!(reason.chars().count(), 513);
    }

    #[tokio::test]
    async fn who_follows_is_woken_and_ends_with_the_daemon() {
        let events = Arc::new(Events::new(1));
        let mut reader = events.reader(None);
        let waiting = tokio::spawn(async move {
            let first = reader.next().await;
            (first, reader.next().await)
        });
        tokio::task::yield_now().await;
        events.tell(adopted(1));
        tokio::task::yield_now().await;
        events.close();
        let (first, last) = waiting.await.unwrap();
        assert_eq!((first.unwrap().len(), last), (1, None));
    }
}
