//! The compiled form: what the kernel's maps hold, and the same lookup in Rust.
//!
//! Owns: entries, port entries, rule texts, judging over them, their golden text. Refuses: how
//! they came about (`compile`), how a map lays them out (the kernel side).

use std::fmt;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Verdict;
use super::ports::PortPrefix;
use super::rule::{Proto, Rule};

/// Index into [`CompiledPolicy::rules`]; travels through the kernel with every event.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RuleId(pub u32);

/// A table of port entries; never 0, so 0 can stand for "no table" in a map's value.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortsId(pub u32);

/// Where a rule was written. Indexes count from 0 in the list as given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Origin {
    /// What no rule and no floor row matches: the public Internet.
    Default,
    /// The floor, by row of the contract.
    Floor(u8),
    /// The group's `drop` list.
    Drop(usize),
    /// The group's `allow` list.
    Allow(usize),
    /// The VM's own `drop` list.
    VmDrop(usize),
    /// The VM's own `allow` list.
    VmAllow(usize),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Origin::Default => write!(f, "default"),
            Origin::Floor(row) => write!(f, "floor row {row}"),
            Origin::Drop(i) => write!(f, "drop[{i}]"),
            Origin::Allow(i) => write!(f, "allow[{i}]"),
            Origin::VmDrop(i) => write!(f, "vm drop[{i}]"),
            Origin::VmAllow(i) => write!(f, "vm allow[{i}]"),
        }
    }
}

/// A rule as people know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RuleInfo {
    /// The rule as written; for the floor what it protects.
    pub text: String,
    /// The network it is about. The default's is `0.0.0.0/0`.
    pub net: Ipv4Net,
    /// Where it was written.
    pub origin: Origin,
    /// The rule itself, for who asks which packets it is about.
    pub rule: Rule,
}

/// One network. The entry with the longest prefix that holds an address is the only one that
/// counts for it: every shorter rule is already folded in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Entry {
    /// Key of the lookup.
    pub net: Ipv4Net,
    /// For every packet that `ports` does not decide.
    pub verdict: Verdict,
    /// The rule that gave `verdict`.
    pub rule: RuleId,
    /// Where TCP and UDP have to be looked up by port first.
    pub ports: Option<PortsId>,
    /// For a TCP or UDP fragment that carries no port: refused unless every port would pass.
    pub fragments: Verdict,
}

/// One prefix of ports in one table. Prefixes of one table and protocol are disjoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PortEntry {
    /// The table, named by [`Entry::ports`].
    pub ports: PortsId,
    /// [`Proto::Tcp`] or [`Proto::Udp`].
    pub proto: Proto,
    /// Which ports.
    pub prefix: PortPrefix,
    /// What happens to them.
    pub verdict: Verdict,
    /// The rule that says so.
    pub rule: RuleId,
}

/// A policy ready for the kernel. Equal policies compare equal, so slots can share one copy.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct CompiledPolicy {
    pub(super) entries: Vec<Entry>,
    pub(super) port_entries: Vec<PortEntry>,
    pub(super) rules: Vec<RuleInfo>,
}

impl CompiledPolicy {
    /// One for each distinct network, sorted by address, then prefix length. Always holds
    /// `0.0.0.0/0`, so every address has an entry.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// All port tables, sorted by table, protocol and port.
    #[must_use]
    pub fn port_entries(&self) -> &[PortEntry] {
        &self.port_entries
    }

    /// Rule texts, indexed by [`RuleId`].
    #[must_use]
    pub fn rules(&self) -> &[RuleInfo] {
        &self.rules
    }

    /// The rule behind an id; `None` for an id of another policy.
    #[must_use]
    pub fn rule(&self, id: RuleId) -> Option<&RuleInfo> {
        self.rules.get(usize::try_from(id.0).ok()?)
    }

    /// Judges a packet to or from `addr` by the compiled form, as the kernel does. `port` is the
    /// port at `addr`'s end; `None` for ICMP and for a fragment that carries none.
    #[must_use]
    pub fn judge(&self, addr: Ipv4Addr, proto: Proto, port: Option<u16>) -> (Verdict, RuleId) {
        let entry = self.longest(addr);
        let by_ports = entry.ports.filter(|_| proto != Proto::Icmp);
        match (by_ports, port) {
            (Some(table), Some(port)) => self
                .port_entry(table, proto, port)
                .map_or((entry.verdict, entry.rule), |e| (e.verdict, e.rule)),
            (Some(_), None) => (entry.fragments, entry.rule),
            (None, _) => (entry.verdict, entry.rule),
        }
    }

    /// The entry with the longest prefix that holds `addr`.
    fn longest(&self, addr: Ipv4Addr) -> &Entry {
        let found = (0..=32u8).rev().find_map(|len| {
            let key = Ipv4Net::new_assert(addr, len).trunc();
            self.entries.binary_search_by_key(&key, |e| e.net).ok()
        });
        // The compiler always emits 0.0.0.0/0, which sorts first and matches at length 0.
        &self.entries[found.unwrap_or(0)]
    }

    fn port_entry(&self, table: PortsId, proto: Proto, port: u16) -> Option<&PortEntry> {
        let after =
            self.port_entries.partition_point(|e| (e.ports, e.proto, e.prefix.port) <= (table, proto, port));
        let entry = self.port_entries.get(after.checked_sub(1)?)?;
        let hit = entry.ports == table && entry.proto == proto && entry.prefix.contains(port);
        hit.then_some(entry)
    }
}

/// The golden text: one line an entry, its ports indented below it.
impl fmt::Display for CompiledPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for e in &self.entries {
            self.line(f, &e.net.to_string(), e.verdict, e.rule)?;
            let Some(table) = e.ports else { continue };
            if e.fragments != e.verdict {
                writeln!(f, "  fragments {:<8} {}", "", verdict_word(e.fragments))?;
            }
            let start = self.port_entries.partition_point(|p| p.ports < table);
            for p in self.port_entries[start..].iter().take_while(|p| p.ports == table) {
                let ports = format!("  {} {}-{}", p.proto, p.prefix.port, p.prefix.last());
                self.line(f, &ports, p.verdict, p.rule)?;
            }
        }
        Ok(())
    }
}

impl CompiledPolicy {
    fn line(&self, f: &mut fmt::Formatter<'_>, what: &str, verdict: Verdict, rule: RuleId) -> fmt::Result {
        write!(f, "{what:<20} {:<6}", verdict_word(verdict))?;
        match self.rule(rule) {
            Some(info) => writeln!(f, "  {} {}", info.origin, info.text),
            None => writeln!(f, "  rule {}", rule.0),
        }
    }
}

fn verdict_word(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::Allow => "allow",
        Verdict::Refuse => "refuse",
    }
}
