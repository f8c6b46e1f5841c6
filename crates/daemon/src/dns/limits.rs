//! How much of the daemon one microVM's queries may take.
//!
//! Owns: the limits, the token bucket, and the places for queries under way.
//! Refuses: to share a bucket between microVMs. The places have a common bound, below which each
//! microVM keeps a few of its own, so that busy neighbours never take them all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::time::Instant;

/// Limits of a [`DnsService`](super::DnsService); each is per microVM but for `in_flight_total`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DnsLimits {
    /// Queries a second, over a longer time. At least 1.
    pub queries_per_s: u32,
    /// Queries at once after a pause. At least 1.
    pub burst: u32,
    /// Queries under way at once.
    pub in_flight: usize,
    /// Of these, the ones a microVM has even when `in_flight_total` is reached.
    pub in_flight_reserved: usize,
    /// Queries under way at once of all microVMs; each takes one socket, up to three while upstreams hang.
    pub in_flight_total: usize,
    /// TCP connections at once.
    pub tcp_connections: usize,
    /// Queries under way at once on one TCP connection.
    pub tcp_pipeline: usize,
    /// How long a TCP connection lives without a whole message in either direction.
    pub tcp_idle: Duration,
    /// How long an upstream has before the next one is asked as well.
    pub attempt: Duration,
    /// How long a query may take in all before it is answered with SERVFAIL.
    pub overall: Duration,
    /// How long the upstream that answered in another's stead is asked first.
    pub prefer: Duration,
}

impl Default for DnsLimits {
    fn default() -> Self {
        Self {
            queries_per_s: 200,
            burst: 400,
            in_flight: 64,
            in_flight_reserved: 4,
            in_flight_total: 2048,
            tcp_connections: 8,
            tcp_pipeline: 16,
            tcp_idle: Duration::from_secs(10),
            attempt: Duration::from_millis(1500),
            overall: Duration::from_secs(6),
            prefer: Duration::from_secs(60),
        }
    }
}

/// What the rate says to one message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Admission {
    /// Within the limit.
    Serve,
    /// Over the limit: to be refused.
    Refuse,
    /// So far over the limit that even refusals are rationed: read nothing for this long.
    Pause(Duration),
}

/// Two token buckets of the same size: one for queries, one for refusals once the first is empty.
/// When both are empty the socket is left unread, so a flood costs the kernel's queue and not the daemon.
#[derive(Debug)]
pub(super) struct Throttle {
    served: Bucket,
    refused: Bucket,
}

impl Throttle {
    pub(super) fn new(limits: &DnsLimits, now: Instant) -> Self {
        let bucket = Bucket::new(limits.queries_per_s, limits.burst, now);
        Self { served: bucket.clone(), refused: bucket }
    }

    /// Takes one token for one message that arrived at `now`.
    pub(super) fn admit(&mut self, now: Instant) -> Admission {
        if self.served.take(now) {
            return Admission::Serve;
        }
        if self.refused.take(now) {
            return Admission::Refuse;
        }
        Admission::Pause(self.refused.next_token().max(SHORTEST_PAUSE))
    }
}

/// A shorter pause would only wake the daemon more often for the same work.
const SHORTEST_PAUSE: Duration = Duration::from_millis(10);

#[derive(Clone, Debug)]
struct Bucket {
    /// The tokens, as the time in which they came: no floating point, nothing rounded away.
    filled: Duration,
    size: Duration,
    /// Time in which one token comes.
    period: Duration,
    at: Instant,
}

impl Bucket {
    fn new(per_second: u32, burst: u32, now: Instant) -> Self {
        let period = Duration::from_secs(1) / per_second.max(1);
        let size = period * burst.max(1);
        Self { filled: size, size, period, at: now }
    }

    fn take(&mut self, now: Instant) -> bool {
        let since = now.saturating_duration_since(self.at);
        self.filled = self.filled.saturating_add(since).min(self.size);
        self.at = now;
        let Some(left) = self.filled.checked_sub(self.period) else { return false };
        self.filled = left;
        true
    }

    fn next_token(&self) -> Duration {
        self.period.saturating_sub(self.filled)
    }
}

/// A count of queries under way; cloned handles share it.
#[derive(Clone, Debug, Default)]
pub(super) struct InFlight(Arc<AtomicUsize>);

impl InFlight {
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.0.load(Ordering::Acquire)
    }

    fn enter(&self, limit: usize) -> bool {
        self.0
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |count| (count < limit).then_some(count + 1))
            .is_ok()
    }

    fn leave(&self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// One query's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    own: InFlight,
    /// The common count, if the place was taken from it.
    total: Option<InFlight>,
}

impl Place {
    /// A place for a query of the microVM that counts in `own`, or `None` when it has its share.
    pub(super) fn take(own: &InFlight, total: &InFlight, limits: &DnsLimits) -> Option<Self> {
        if own.enter(limits.in_flight_reserved.min(limits.in_flight)) {
            return Some(Self { own: own.clone(), total: None });
        }
        if !total.enter(limits.in_flight_total) {
            return None;
        }
        if !own.enter(limits.in_flight) {
            total.leave();
            return None;
        }
        Some(Self { own: own.clone(), total: Some(total.clone()) })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.own.leave();
        if let Some(total) = &self.total {
            total.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits() -> DnsLimits {
        DnsLimits {
            queries_per_s: 10,
            burst: 5,
            in_flight: 4,
            in_flight_reserved: 1,
            in_flight_total: 4,
            ..DnsLimits::default()
        }
    }

    #[test]
    fn a_burst_is_served_then_refused_then_left_unread() {
        let start = Instant::now();
        let mut throttle = Throttle::new(&limits(), start);
        let seen: Vec<_> = (0..11).map(|_| throttle.admit(start)).collect();
        assert_eq!(seen[..5], [Admission::Serve; 5]);
        assert_eq!(seen[5..10], [Admission::Refuse; 5]);
        assert_eq!(seen[10], Admission::Pause(Duration::from_millis(100)));
    }

    #[test]
    fn tokens_come_back_at_the_rate_and_never_above_the_burst() {
        let start = Instant::now();
        let mut throttle = Throttle::new(&limits(), start);
        while throttle.admit(start) == Admission::Serve {}
        let later = start + Duration::from_millis(100);
        assert_eq!(throttle.admit(later), Admission::Serve);
        assert_eq!(throttle.admit(later), Admission::Refuse);
        let much_later = start + Duration::from_secs(3600);
        let served = (0..100).filter(|_| throttle.admit(much_later) == Admission::Serve).count();
        assert_eq!(served, 5);
    }

    #[test]
    fn a_busy_neighbour_leaves_the_reserved_places_alone() {
        let (limits, total) = (limits(), InFlight::default());
        let (greedy, modest) = (InFlight::default(), InFlight::default());
        let small = DnsLimits { in_flight_total: 3, ..limits };
        let held: Vec<_> = (0..9).filter_map(|_| Place::take(&greedy, &total, &small)).collect();
        assert_eq!(held.len(), 4);
        assert_eq!(total.count(), 3);
        let first = Place::take(&modest, &total, &small);
        assert!(first.is_some());
        assert!(Place::take(&modest, &total, &small).is_none());
        drop(held);
        assert!(Place::take(&modest, &total, &small).is_some());
        drop(first);
        assert_eq!((greedy.count(), modest.count(), total.count()), (0, 0, 0));
    }
}
