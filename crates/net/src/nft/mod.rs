//! nf_tables as values: tables, chains, sets, rules and batches of changes.
//!
//! Owns: the vocabulary of our two tables and its encoding (`nf_tables.h`). Refuses: what the
//! tables say (`host_table`, `slot_table`), sockets (`kernel`). A batch is one transaction: the
//! kernel takes all of it or nothing.

mod encode;
mod rule;
mod seen;

use std::fmt;

#[cfg(test)]
pub(crate) use encode::note;
pub(crate) use encode::{element_request, elements_request, messages, parse_count, parse_elements};
pub(crate) use rule::{Expr, Rule, Verdict};
pub(crate) use seen::{
    Always, ChainSeen, RuleSeen, chains_request, parse_chain, parse_owned_table, parse_rule, rules_request,
    tables_request,
};

/// `NFPROTO_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Family {
    /// Only other people's: iptables-nft's tables, for example.
    Ip,
    Inet,
    Netdev,
}

/// A table's name within its family.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Table {
    pub(crate) family: Family,
    pub(crate) name: String,
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let family = match self.family {
            Family::Ip => "ip",
            Family::Inet => "inet",
            Family::Netdev => "netdev",
        };
        write!(f, "table {family} {}", self.name)
    }
}

/// `enum nf_inet_hooks`, and the ingress of one device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Hook {
    Prerouting,
    Input,
    Forward,
    Output,
    Postrouting,
    Ingress(&'static str),
}

/// What a base chain does with a packet no rule decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Policy {
    Accept,
    Drop,
}

/// Where a base chain is hooked in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Base {
    /// A `nat` chain; else `filter`.
    pub(crate) nat: bool,
    pub(crate) hook: Hook,
    pub(crate) priority: i32,
    pub(crate) policy: Policy,
}

/// A chain's name: a word, and a number where there is a chain for each of several.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct ChainName(pub(crate) &'static str, pub(crate) Option<u32>);

impl From<&'static str> for ChainName {
    fn from(word: &'static str) -> ChainName {
        ChainName(word, None)
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.1 {
            None => f.write_str(self.0),
            Some(number) => write!(f, "{}_{number}", self.0),
        }
    }
}

/// A chain; without `base` only jumps reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chain {
    pub(crate) name: ChainName,
    pub(crate) base: Option<Base>,
}

/// Key of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Key {
    /// `iface_index`, in the host's byte order unless in an interval set.
    Interface,
    /// `ipv4_addr`.
    Address,
    /// `iface_index . ipv4_addr`.
    InterfaceAddress,
}

/// How a set's elements come about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Contents {
    /// Single values put in by us.
    Values,
    /// Disjoint intervals put in by us.
    Intervals,
    /// Put in by rules, or by us with a [`State`] of their own; at most so many.
    Dynamic(u32),
    /// A map from a key to a verdict, put in by us with a [`State`]; at most so many.
    Verdicts(u32),
}

/// What an element remembers about the packets that were looked up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum State {
    /// `counter`
    Counter,
    /// `limit rate N/second burst N packets`: a lookup beyond it finds nothing.
    Limit { per_second: u64, burst: u32 },
}

/// A named set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Set {
    pub(crate) name: &'static str,
    pub(crate) key: Key,
    pub(crate) contents: Contents,
}

/// One element: a key, or one edge of an interval.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Element {
    pub(crate) key: Vec<u8>,
    /// The key is the first value after an interval.
    pub(crate) interval_end: bool,
    pub(crate) state: Option<State>,
    /// In a map.
    pub(crate) verdict: Option<Verdict>,
}

impl Element {
    pub(crate) fn value(key: &[u8]) -> Element {
        Element { key: key.to_vec(), interval_end: false, state: None, verdict: None }
    }

    pub(crate) fn with(self, state: State) -> Element {
        Element { state: Some(state), ..self }
    }

    pub(crate) fn leading_to(self, verdict: Verdict) -> Element {
        Element { verdict: Some(verdict), ..self }
    }

    /// Whether the kernel takes both for the same.
    #[cfg(test)]
    pub(crate) fn is(&self, other: &Element) -> bool {
        (&self.key, self.interval_end) == (&other.key, other.interval_end)
    }

    /// The edges of `first..=last`. An interval that ends at the highest value has no end edge:
    /// there is no value after it.
    pub(crate) fn interval(first: u32, last: u32) -> impl Iterator<Item = Element> {
        let end = last
            .checked_add(1)
            .map(|after| Element { interval_end: true, ..Element::value(&after.to_be_bytes()) });
        std::iter::once(Element::value(&first.to_be_bytes())).chain(end)
    }
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Command {
    /// No error when it exists.
    AddTable(Table),
    DeleteTable(Table),
    AddChain(Table, Chain),
    AddSet(Table, Set),
    /// Takes a chain's rules away.
    FlushChain(Table, ChainName),
    AddRule(Table, ChainName, Rule),
    AddElements(Table, &'static str, Vec<Element>),
    DeleteElements(Table, &'static str, Vec<Element>),
    FlushSet(Table, &'static str),
    /// At the head of somebody else's chain, marked by a comment.
    InsertRule(Table, String, Rule, String),
    /// By its handle, which is never used again in its table.
    DeleteRule(Table, String, u64),
}

/// One transaction.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Batch(pub(crate) Vec<Command>);

impl Batch {
    /// Starts with making `table` empty, whether or not it exists.
    pub(crate) fn replacing(table: &Table) -> Batch {
        Batch(vec![
            Command::AddTable(table.clone()),
            Command::DeleteTable(table.clone()),
            Command::AddTable(table.clone()),
        ])
    }

    /// Removes `table`, whether or not it exists.
    pub(crate) fn removing(table: &Table) -> Batch {
        Batch(vec![Command::AddTable(table.clone()), Command::DeleteTable(table.clone())])
    }
}
