//! Port ranges, and tables that give each TCP and UDP port at most one decision.
//!
//! Owns: interval arithmetic over 16-bit ports and its decomposition into prefixes, the form an
//! LPM map can hold. Refuses: addresses.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use super::Verdict;
use super::compiled::RuleId;
use super::rule::{ParseRuleError, Proto, Rule};

/// An inclusive range of ports, 1 to 65535.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortRange {
    first: u16,
    last: u16,
}

impl PortRange {
    /// `None` when `first` is 0 or above `last`.
    #[must_use]
    pub fn new(first: u16, last: u16) -> Option<PortRange> {
        (first > 0 && first <= last).then_some(PortRange { first, last })
    }

    /// Lowest port.
    #[must_use]
    pub fn first(self) -> u16 {
        self.first
    }

    /// Highest port, itself included.
    #[must_use]
    pub fn last(self) -> u16 {
        self.last
    }

    /// Whether `port` is in it.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.first..=self.last).contains(&port)
    }
}

impl FromStr for PortRange {
    type Err = ParseRuleError;

    fn from_str(s: &str) -> Result<Self, ParseRuleError> {
        let port = |p: &str| {
            let digits = !p.is_empty() && p.bytes().all(|b| b.is_ascii_digit());
            let value = digits.then(|| p.parse::<u16>().ok()).flatten().filter(|n| *n > 0);
            value.ok_or_else(|| ParseRuleError::BadPort(p.to_owned()))
        };
        let (first, last) = match s.split_once('-') {
            Some((a, b)) => (port(a)?, port(b)?),
            None => (port(s)?, port(s)?),
        };
        PortRange::new(first, last).ok_or(ParseRuleError::ReversedPorts { first, last })
    }
}

impl fmt::Display for PortRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            write!(f, "{}", self.first)
        } else {
            write!(f, "{}-{}", self.first, self.last)
        }
    }
}

/// The leading `len` bits of a port, 0 to 16; bits beyond are clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortPrefix {
    /// First port of the prefix.
    pub port: u16,
    /// How many leading bits count.
    pub len: u8,
}

impl PortPrefix {
    /// Last port of the prefix.
    #[must_use]
    pub fn last(self) -> u16 {
        let size = 1u32 << (16 - u32::from(self.len));
        u16::try_from(u32::from(self.port) + size - 1).unwrap_or(u16::MAX)
    }

    /// Whether `port` begins with it.
    #[must_use]
    pub fn contains(self, port: u16) -> bool {
        (self.port..=self.last()).contains(&port)
    }
}

/// What is decided, and by which rule.
pub(super) type Decision = (Verdict, RuleId);

/// One decision for an inclusive span of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Span {
    pub(super) first: u16,
    pub(super) last: u16,
    pub(super) decision: Decision,
}

/// Disjoint spans in ascending order, for TCP and for UDP. A port in no span is left to the
/// decision of the network itself.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub(super) struct PortTable {
    tcp: Vec<Span>,
    udp: Vec<Span>,
}

impl PortTable {
    /// From rules of one network: `drop` wins where two match, then the rule written first.
    /// Every rule passed has ports.
    pub(super) fn from_rules(rules: &[(Rule, Decision)]) -> PortTable {
        PortTable { tcp: sweep(rules, Proto::Tcp), udp: sweep(rules, Proto::Udp) }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tcp.is_empty() && self.udp.is_empty()
    }

    /// How many spans it holds.
    pub(super) fn spans(&self) -> usize {
        self.tcp.len() + self.udp.len()
    }

    /// Each protocol with its spans.
    pub(super) fn protocols(&self) -> [(Proto, &[Span]); 2] {
        [(Proto::Tcp, &self.tcp), (Proto::Udp, &self.udp)]
    }

    /// This table, and `under` wherever this one decides nothing.
    pub(super) fn over(&self, under: &PortTable) -> PortTable {
        let pick = |own: Option<Decision>, other: Option<Decision>| own.or(other);
        self.zip(under, pick)
    }

    /// `join` applied to the decisions of both for each port that either decides.
    pub(super) fn zip(
        &self,
        other: &PortTable,
        join: impl Fn(Option<Decision>, Option<Decision>) -> Option<Decision>,
    ) -> PortTable {
        PortTable {
            tcp: zip_spans(&self.tcp, &other.tcp, &join),
            udp: zip_spans(&self.udp, &other.udp, &join),
        }
    }

    /// Whether some port is decided otherwise than `base`: then a fragment without ports cannot
    /// be judged.
    pub(super) fn differs_from(&self, base: Verdict) -> bool {
        self.tcp.iter().chain(&self.udp).any(|s| s.decision.0 != base)
    }
}

/// Sweeps over the ports where some rule starts or ends, keeping the set of rules that match.
fn sweep(rules: &[(Rule, Decision)], proto: Proto) -> Vec<Span> {
    // (port at which it takes effect, as u32 because a range may end at 65535; starts?; rank; rule)
    let mut edges = Vec::with_capacity(rules.len() * 2);
    for (rule, decision) in rules {
        let Some(ports) = rule.ports().filter(|_| rule.proto().is_none_or(|p| p == proto)) else {
            continue;
        };
        edges.push((u32::from(ports.first), *decision, true));
        edges.push((u32::from(ports.last) + 1, *decision, false));
    }
    edges.sort_unstable_by_key(|(at, decision, starts)| (*at, rank(*decision), *starts));
    let mut spans = Vec::new();
    let mut active = BTreeSet::new();
    let mut edges = edges.into_iter().peekable();
    while let Some((at, decision, starts)) = edges.next() {
        if starts {
            active.insert(rank(decision));
        } else {
            active.remove(&rank(decision));
        }
        let next = edges.peek().map_or(at, |e| e.0);
        if let Some(&(_, rule, verdict)) = active.first()
            && next > at
        {
            push(&mut spans, at, next - 1, (verdict, rule));
        }
    }
    spans
}

/// Sort key: `drop` before `allow`, then the rule's number.
fn rank((verdict, rule): Decision) -> (bool, RuleId, Verdict) {
    (verdict == Verdict::Allow, rule, verdict)
}

/// Appends a span, joining it to the last one where they touch and decide alike.
fn push(spans: &mut Vec<Span>, first: u32, last: u32, decision: Decision) {
    let (Ok(first), Ok(last)) = (u16::try_from(first), u16::try_from(last)) else {
        return;
    };
    match spans.last_mut() {
        Some(s) if s.decision == decision && u32::from(s.last) + 1 == u32::from(first) => {
            s.last = last;
        }
        _ => spans.push(Span { first, last, decision }),
    }
}

fn zip_spans(
    a: &[Span],
    b: &[Span],
    join: &impl Fn(Option<Decision>, Option<Decision>) -> Option<Decision>,
) -> Vec<Span> {
    let mut cuts: Vec<u32> =
        a.iter().chain(b).flat_map(|s| [u32::from(s.first), u32::from(s.last) + 1]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let (mut a, mut b) = (Cursor(a), Cursor(b));
    let mut spans = Vec::new();
    for pair in cuts.windows(2) {
        let (left, right) = (a.at(pair[0]), b.at(pair[0]));
        if (left.is_some() || right.is_some())
            && let Some(decision) = join(left, right)
        {
            push(&mut spans, pair[0], pair[1] - 1, decision);
        }
    }
    spans
}

/// Walks a span list forward.
struct Cursor<'a>(&'a [Span]);

impl Cursor<'_> {
    /// Decision at `port`; ports must be asked in ascending order.
    fn at(&mut self, port: u32) -> Option<Decision> {
        while let [head, rest @ ..] = self.0 {
            if u32::from(head.last) >= port {
                return (u32::from(head.first) <= port).then_some(head.decision);
            }
            self.0 = rest;
        }
        None
    }
}

/// The fewest prefixes that cover a span exactly, ascending; at most 30.
pub(super) fn prefixes(span: &Span) -> impl Iterator<Item = PortPrefix> + use<> {
    let end = u32::from(span.last) + 1;
    let mut at = u32::from(span.first);
    std::iter::from_fn(move || {
        let left = end - at;
        if left == 0 {
            return None;
        }
        let aligned = if at == 0 { 16 } else { at.trailing_zeros() };
        let bits = aligned.min(left.ilog2());
        let prefix = PortPrefix { port: u16::try_from(at).ok()?, len: u8::try_from(16 - bits).ok()? };
        at += 1 << bits;
        Some(prefix)
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn prefixes_cover_a_span_exactly(a in any::<u16>(), b in any::<u16>()) {
            let span = Span {
                first: a.min(b), last: a.max(b), decision: (Verdict::Allow, RuleId(0)),
            };
            let mut next = u32::from(span.first);
            let mut count = 0;
            for p in prefixes(&span) {
                prop_assert_eq!(u32::from(p.port), next);
                prop_assert_eq!(u32::from(p.port) % (1 << (16 - p.len)), 0);
                next = u32::from(p.last()) + 1;
                count += 1;
            }
            prop_assert_eq!(next, u32::from(span.last) + 1);
            prop_assert!(count <= 30);
        }
    }

    #[test]
    fn the_ends_of_the_port_space() {
        let all = Span { first: 0, last: 65535, decision: (Verdict::Allow, RuleId(0)) };
        let list: Vec<_> = prefixes(&all).collect();
        assert_eq!(list, [PortPrefix { port: 0, len: 0 }]);
        assert_eq!(list[0].last(), 65535);
        let top = Span { first: 65535, ..all };
        assert_eq!(prefixes(&top).collect::<Vec<_>>(), [PortPrefix { port: 65535, len: 16 }]);
    }
}
