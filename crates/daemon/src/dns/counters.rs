//! What became of one microVM's queries, in numbers.
//!
//! Owns: the counters. Refuses: rates, times and names; nothing a guest asked is kept.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// Counts of one microVM's queries since its DNS service began.
///
/// Every query is in exactly one of the other fields once it is done with, so `queries` less their
/// sum (without `connections_refused`) is what is under way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct DnsCounters {
    /// Messages taken from the guest.
    pub queries: u64,
    /// Answered with what an upstream said.
    pub answered: u64,
    /// Refused by policy, or of a kind that is never forwarded.
    pub refused: u64,
    /// Refused or dropped because of the rate or the number under way.
    pub limited: u64,
    /// Messages that were not one well-formed question.
    pub malformed: u64,
    /// Answered with SERVFAIL because no upstream answered.
    pub failed_upstream: u64,
    /// TCP connections closed at once because the guest has too many.
    pub connections_refused: u64,
}

/// The live form of [`DnsCounters`].
#[derive(Debug, Default)]
pub(super) struct Tally {
    queries: AtomicU64,
    answered: AtomicU64,
    refused: AtomicU64,
    limited: AtomicU64,
    malformed: AtomicU64,
    failed_upstream: AtomicU64,
    connections_refused: AtomicU64,
}

/// An event of a [`Tally`]; the names are the fields of [`DnsCounters`].
#[derive(Clone, Copy, Debug)]
pub(super) enum Event {
    Query,
    Answered,
    Refused,
    Limited,
    Malformed,
    FailedUpstream,
    ConnectionRefused,
}

impl Tally {
    pub(super) fn count(&self, event: Event) {
        let counter = match event {
            Event::Query => &self.queries,
            Event::Answered => &self.answered,
            Event::Refused => &self.refused,
            Event::Limited => &self.limited,
            Event::Malformed => &self.malformed,
            Event::FailedUpstream => &self.failed_upstream,
            Event::ConnectionRefused => &self.connections_refused,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn read(&self) -> DnsCounters {
        let value = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        DnsCounters {
            queries: value(&self.queries),
            answered: value(&self.answered),
            refused: value(&self.refused),
            limited: value(&self.limited),
            malformed: value(&self.malformed),
            failed_upstream: value(&self.failed_upstream),
            connections_refused: value(&self.connections_refused),
        }
    }
}
