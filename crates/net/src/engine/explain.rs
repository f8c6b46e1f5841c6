//! Why a packet passes or not, asked of the kernel's own maps.
//!
//! Owns: following the judge's lookups one by one, what the host's map means, comparing a policy
//! with what is installed. Refuses: wording for people beyond the names of refusers, and reading
//! lists (`policy`).

use std::collections::BTreeSet;
use std::fmt;
use std::net::Ipv4Addr;

use super::Engine;
use crate::error::NetError;
use crate::judge::{
    self, BY_FORM, BY_GATEWAY, BY_HOST, BY_MULTICAST, BY_NOTHING, NEVER, VerdictValue, address_entries,
    port_rows,
};
use crate::kernel::Answer;
use crate::kernel::lookup::{PortQuestion, longest};
use crate::netlink::conntrack::LiveFlow;
use crate::policy::{CompiledPolicy, Proto, RuleId, Verdict};
use crate::slot::Slot;

/// The one port on the gateway, `PORT_DNS` of `judge.c`.
const PORT_DNS: u16 = 53;

/// A packet from a guest, as far as it matters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Question {
    /// Whom it is for.
    pub destination: Ipv4Addr,
    /// Its protocol.
    pub proto: Proto,
    /// The port there; `None` for ICMP.
    pub port: Option<u16>,
}

/// What only this host knows about an address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostFact {
    /// In one of this daemon's ranges: some microVM, or a gateway.
    Sibling,
    /// An address of this host, or a microVM of another daemon.
    Own,
    /// In a network that is on-link here; an `allow` of at least its length opens it.
    OnLink(u8),
}

impl fmt::Display for HostFact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            HostFact::Sibling => f.write_str("an address of this daemon's microVMs, which nothing opens"),
            HostFact::Own => {
                f.write_str("an address of this host or of another daemon's microVM, which nothing opens")
            }
            HostFact::OnLink(len) => {
                write!(f, "an on-link network of this host; only an `allow` of /{len} or longer opens it")
            }
        }
    }
}

/// Who decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decider {
    /// The policy's rule.
    Policy,
    /// The map of this host, against the policy.
    Host(HostFact),
    /// The gateway, which has no such service.
    Gateway,
    /// The gateway's DNS; whether it forwards is the daemon's business.
    Service,
    /// The judge knows no such slot, or the policy not this address: refused.
    Nothing,
}

/// What becomes of a packet, and why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Judgement {
    /// Whether it passes.
    pub verdict: Verdict,
    /// Who said so.
    pub decider: Decider,
    /// The policy's rule for it; `None` where the policy was not asked or has none.
    pub rule: Option<RuleId>,
}

impl Judgement {
    fn refused(decider: Decider, rule: Option<RuleId>) -> Judgement {
        Judgement { verdict: Verdict::Refuse, decider, rule }
    }
}

/// Packets of one guest that somebody refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refused {
    /// Who.
    pub by: Refuser,
    /// How many packets, since the slot was made or its policy changed last.
    pub packets: u64,
}

/// Who refuses packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Refuser {
    /// A rule of the policy.
    Rule(RuleId),
    /// Row 8: protocol, IP options, kind of ICMP.
    Form,
    /// Row 7, by the frame's address.
    Multicast,
    /// Row 11.
    Gateway,
    /// Rows 3 to 5, from the map of this host.
    Host,
    /// No policy holds the address.
    Nothing,
    /// Rules beyond the 256 that get a count of their own on each CPU.
    OtherRules,
}

impl Engine {
    /// What the judge would do with a packet from a slot's guest, by the lookups that the judge
    /// does, in the maps it does them in.
    ///
    /// # Errors
    /// [`NetError::Host`] when a map cannot be read.
    pub fn look_up(&self, slot: &Slot, question: &Question) -> Result<Judgement, NetError> {
        if let Some(judgement) = at_gateway(slot, question) {
            return Ok(judgement);
        }
        self.follow(slot, question).map_err(|e| NetError::Host("read the judge's maps", e))
    }

    fn follow(&self, slot: &Slot, q: &Question) -> Answer<Judgement> {
        let nothing = Judgement::refused(Decider::Nothing, None);
        let Some(policy) = self.kernel.slot_policy(slot.block().id())? else { return Ok(nothing) };
        let Some(row) = self.kernel.find_address(policy, q.destination)? else { return Ok(nothing) };
        let mut found = row;
        if let (true, Some(port)) = (row.table != 0, q.port.filter(|_| q.proto != Proto::Icmp)) {
            let asked = PortQuestion { table: row.table, proto: q.proto.number(), port };
            found = self.kernel.find_port(policy, asked)?.unwrap_or(row);
        }
        self.with_host(found, q.destination)
    }

    /// What the map of this host says to a row of the policy.
    fn with_host(&self, row: VerdictValue, address: Ipv4Addr) -> Answer<Judgement> {
        let rule = Some(row.rule);
        if !row.allow {
            return Ok(Judgement::refused(Decider::Policy, rule));
        }
        match self.kernel.find_host(address)? {
            Some(needed) if u32::from(row.opens) < needed => {
                Ok(Judgement::refused(Decider::Host(self.host_fact(address, needed)), rule))
            }
            _ => Ok(Judgement { verdict: Verdict::Allow, decider: Decider::Policy, rule }),
        }
    }

    fn host_fact(&self, address: Ipv4Addr, needed: u32) -> HostFact {
        if self.ranges().iter().any(|range| range.net().contains(&address)) {
            return HostFact::Sibling;
        }
        if needed == NEVER {
            return HostFact::Own;
        }
        HostFact::OnLink(u8::try_from(needed).unwrap_or(u8::MAX))
    }

    /// What a policy says about a packet from a slot's guest, and what this host adds, without the
    /// judge's maps: for a policy that is not in force, or to compare with [`Engine::look_up`].
    #[must_use]
    pub fn expect(&self, slot: &Slot, policy: &CompiledPolicy, question: &Question) -> Judgement {
        if let Some(judgement) = at_gateway(slot, question) {
            return judgement;
        }
        let (verdict, rule) = policy.judge(question.destination, question.proto, question.port);
        if verdict == Verdict::Refuse {
            return Judgement::refused(Decider::Policy, Some(rule));
        }
        let state = self.lock();
        let found = longest(state.hosts.iter().map(|(net, needed)| (*net, *needed)), question.destination);
        drop(state);
        match found {
            Some((_, needed)) if u32::from(judge::opens(policy, rule)) < needed => {
                let fact = self.host_fact(question.destination, needed);
                Judgement::refused(Decider::Host(fact), Some(rule))
            }
            _ => Judgement { verdict, decider: Decider::Policy, rule: Some(rule) },
        }
    }

    /// Compares a policy with the rows that the kernel holds for a slot: what is missing or
    /// different (`-`) and what is too much (`+`), a line each; none when they are the same. Walks
    /// the whole maps.
    ///
    /// # Errors
    /// [`NetError::Host`] when a map cannot be read.
    pub fn compare(&self, slot: &Slot, policy: &CompiledPolicy) -> Result<Vec<String>, NetError> {
        let failed = |e| NetError::Host("read the judge's maps", e);
        // Held: nobody takes the rows away meanwhile.
        let current = slot.policy();
        let Some(id) = self.kernel.slot_policy(slot.block().id()).map_err(failed)? else {
            return Ok(vec!["- the slot itself".to_owned()]);
        };
        let there: BTreeSet<_> = self.kernel.address_rows(id).map_err(failed)?.into_iter().collect();
        let wanted: BTreeSet<_> = address_entries(policy).collect();
        let mut lines: Vec<String> = wanted.difference(&there).map(|row| format!("- {row:?}")).collect();
        lines.extend(there.difference(&wanted).map(|row| format!("+ {row:?}")));
        let there: BTreeSet<_> = self.kernel.port_rows(id).map_err(failed)?.into_iter().collect();
        let wanted: BTreeSet<_> = port_rows(policy).collect();
        lines.extend(wanted.difference(&there).map(|row| format!("- {row:?}")));
        lines.extend(there.difference(&wanted).map(|row| format!("+ {row:?}")));
        drop(current);
        Ok(lines)
    }

    /// The flows a slot's guest has begun, as connection tracking knows them. May take 20 ms.
    ///
    /// # Errors
    /// [`NetError::Host`] when they cannot be listed.
    pub fn flows(&self, slot: &Slot) -> Result<Vec<LiveFlow>, NetError> {
        let flows = self.kernel.flows(slot.block().guest());
        let mut flows = flows.map_err(|e| NetError::Host("list the guest's flows", e))?;
        flows.sort_unstable();
        Ok(flows)
    }

    /// Packets of a slot's guest that were refused, by who refused them, since the slot was made or
    /// its policy changed last.
    ///
    /// # Errors
    /// [`NetError::Host`] when the map cannot be read.
    pub fn refusals(&self, slot: &Slot) -> Result<Vec<Refused>, NetError> {
        let counts = self.kernel.refusals(slot.block().id());
        let counts = counts.map_err(|e| NetError::Host("read a slot's refusals", e))?;
        let refused = |(by, packets)| Refused { by: refuser(by), packets };
        Ok(counts.into_iter().map(refused).collect())
    }
}

/// The gateway is the namespace's own; no policy is asked about it.
fn at_gateway(slot: &Slot, question: &Question) -> Option<Judgement> {
    if question.destination != slot.block().gateway() {
        return None;
    }
    let dns = question.proto != Proto::Icmp && question.port == Some(PORT_DNS);
    Some(match dns {
        true => Judgement { verdict: Verdict::Allow, decider: Decider::Service, rule: None },
        false => Judgement::refused(Decider::Gateway, None),
    })
}

pub(crate) fn refuser(by: u32) -> Refuser {
    match by {
        BY_FORM => Refuser::Form,
        BY_MULTICAST => Refuser::Multicast,
        BY_GATEWAY => Refuser::Gateway,
        BY_HOST => Refuser::Host,
        BY_NOTHING => Refuser::Nothing,
        rule if rule < BY_FORM => Refuser::Rule(RuleId(rule)),
        _ => Refuser::OtherRules,
    }
}
