//! What a compiled policy comes to, for people: the networks and ports it decides about, whether
//! it lets anything out at all, and which rules have a say about one packet.
//!
//! Owns: these answers over the compiled form. Refuses: judging (`compiled`), formatting tables.

use std::cmp::Reverse;
use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Verdict;
use super::compiled::{CompiledPolicy, Entry, Origin, PortEntry, RuleId};
use super::rule::Proto;

/// One line of a policy's effect. Of those that hold an address and port, the one with the longest
/// network, and of these the one with ports, is the only one that counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Effect {
    /// Which addresses.
    pub net: Ipv4Net,
    /// Which ports of which protocol; `None` for every packet that no line with ports is about.
    pub ports: Option<(Proto, u16, u16)>,
    /// What happens.
    pub verdict: Verdict,
    /// The rule that says so.
    pub rule: RuleId,
}

impl CompiledPolicy {
    /// Whether no packet at all is let out: egress `none`, row 14 of the contract, however it was
    /// written. What only a live host refuses (its own addresses) does not count.
    #[must_use]
    pub fn reaches_nothing(&self) -> bool {
        self.uncovered().all(|entry| entry.verdict == Verdict::Refuse && !self.has_open_port(entry))
    }

    /// The policy as lines, by address; networks that longer ones hide completely are left out.
    #[must_use]
    pub fn effects(&self) -> Vec<Effect> {
        let mut effects = Vec::new();
        for entry in self.uncovered() {
            let (verdict, rule) = (entry.verdict, entry.rule);
            effects.push(Effect { net: entry.net, ports: None, verdict, rule });
            let first = effects.len();
            for port in self.ports_of(entry) {
                let (first_port, last_port) = (port.prefix.port, port.prefix.last());
                let joined = effects[first..].last_mut().and_then(|last| match &mut last.ports {
                    Some((proto, _, last_port))
                        if (*proto, last.verdict, last.rule) == (port.proto, port.verdict, port.rule)
                            && last_port.checked_add(1) == Some(port.prefix.port) =>
                    {
                        Some(last_port)
                    }
                    _ => None,
                });
                match joined {
                    Some(last) => *last = last_port,
                    None => effects.push(Effect {
                        net: entry.net,
                        ports: Some((port.proto, first_port, last_port)),
                        verdict: port.verdict,
                        rule: port.rule,
                    }),
                }
            }
        }
        effects
    }

    /// Every rule that is about such a packet, the default included, the most specific first; so the
    /// first of the group's rules decides, unless a rule of the VM's own refuses.
    #[must_use]
    pub fn rules_about(&self, addr: Ipv4Addr, proto: Proto, port: Option<u16>) -> Vec<RuleId> {
        let mut found: Vec<(usize, RuleId)> = self
            .rules()
            .iter()
            .enumerate()
            .filter(|(_, info)| info.rule.matches(addr, proto, port))
            .filter_map(|(i, _)| Some((i, RuleId(u32::try_from(i).ok()?))))
            .collect();
        found.sort_by_key(|(i, _)| {
            let info = &self.rules()[*i];
            let class = match info.origin {
                Origin::VmDrop(_) | Origin::Drop(_) => 0,
                Origin::VmAllow(_) | Origin::Allow(_) => 1,
                Origin::Floor(_) => 2,
                Origin::Default => 3,
            };
            (Reverse(info.net.prefix_len()), info.rule.ports().is_none(), class, *i)
        });
        found.into_iter().map(|(_, id)| id).collect()
    }

    fn has_open_port(&self, entry: &Entry) -> bool {
        self.ports_of(entry).any(|port| port.verdict == Verdict::Allow)
    }

    fn ports_of(&self, entry: &Entry) -> impl Iterator<Item = &PortEntry> {
        let table = entry.ports;
        let all = self.port_entries();
        let start = table.map_or(all.len(), |table| all.partition_point(|p| p.ports < table));
        all[start..].iter().take_while(move |p| Some(p.ports) == table)
    }

    /// The entries that decide about at least one address: those whose longer neighbours do not
    /// fill them.
    fn uncovered(&self) -> impl Iterator<Item = &Entry> {
        let entries = self.entries();
        let mut free: Vec<u64> = entries.iter().map(|e| size(e.net)).collect();
        // Sorted by address, then length: a parent precedes its children, and the stack holds the
        // entries around the present one.
        let mut around: Vec<usize> = Vec::new();
        for (i, entry) in entries.iter().enumerate() {
            while around.last().is_some_and(|top| !entries[*top].net.contains(&entry.net)) {
                around.pop();
            }
            if let Some(parent) = around.last() {
                free[*parent] -= size(entry.net);
            }
            around.push(i);
        }
        entries.iter().zip(free).filter(|(_, free)| *free > 0).map(|(entry, _)| entry)
    }
}

fn size(net: Ipv4Net) -> u64 {
    1 << (32 - u32::from(net.prefix_len()))
}
