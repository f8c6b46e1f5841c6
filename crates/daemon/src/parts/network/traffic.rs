//! Counts of slots as counts of groups, which never go down.
//!
//! ```text
//! a slot's counters ──measured──▶ what is more than the last time ──added──▶ its group's total
//! ```
//!
//! A slot is measured when somebody asks, before its rules get other numbers, and when its VM leaves it. What
//! its last packets do after that is counted nowhere. Owns: that arithmetic. Refuses: reading (the engine).

use crate::parts::meters::{RuleLabel, Traffic};
use enisle_net::plan::Block;
use enisle_net::policy::CompiledPolicy;
use enisle_net::{Measured, Refuser};
use std::collections::BTreeMap;

/// Rules of one policy that are told apart: the floor and the default are among the first.
pub(super) const RULES: u32 = 512;

/// One slot's.
#[derive(Debug)]
struct Meter {
    group: String,
    /// Labels of the policy's first rules, by number.
    labels: Box<[RuleLabel]>,
    last: Measured,
    last_refused: BTreeMap<Refuser, u64>,
}

/// All slots' and all groups'.
#[derive(Debug, Default)]
pub(super) struct Ledger {
    meters: BTreeMap<Block, Meter>,
    totals: BTreeMap<String, Traffic>,
}

impl Ledger {
    /// A slot begins, its counters at zero.
    pub(super) fn open(&mut self, block: Block, group: &str, policy: &CompiledPolicy) {
        self.totals.entry(group.to_owned()).or_default();
        let meter = Meter {
            group: group.to_owned(),
            labels: labels(policy),
            last: Measured::default(),
            last_refused: BTreeMap::new(),
        };
        self.meters.insert(block, meter);
    }

    /// Adds what is new. A count of the judge's below the last one was read at the same moment as others went on, and
    /// is made up for the next time.
    pub(super) fn settle(&mut self, block: Block, measured: &Measured) {
        let Some(meter) = self.meters.get_mut(&block) else { return };
        let Some(total) = self.totals.get_mut(&meter.group) else { return };
        let last = &mut meter.last;
        for i in 0..total.packets.len() {
            total.packets[i] += more(&mut last.packets[i], measured.packets[i]);
            total.bytes[i] += more(&mut last.bytes[i], measured.bytes[i]);
        }
        // One counter of the host's table, which begins anew with the table.
        if measured.flows_refused < last.flows_refused {
            last.flows_refused = 0;
        }
        total.flows_refused += more(&mut last.flows_refused, measured.flows_refused);
        for refused in &measured.refused {
            let label = match refused.by {
                Refuser::Rule(id) => usize::try_from(id.0).ok().and_then(|id| meter.labels.get(id)).copied(),
                Refuser::Form => Some(RuleLabel::Judge("form")),
                Refuser::Multicast => Some(RuleLabel::Judge("multicast")),
                Refuser::Gateway => Some(RuleLabel::Judge("gateway")),
                Refuser::Host => Some(RuleLabel::Judge("host")),
                Refuser::Nothing => Some(RuleLabel::Judge("nothing")),
                Refuser::OtherRules => None,
            };
            let last = meter.last_refused.entry(refused.by).or_default();
            *total.refused.entry(label.unwrap_or(RuleLabel::Other)).or_default() +=
                more(last, refused.packets);
        }
    }

    /// The slot, settled before, is judged by another policy: its refusals begin at zero.
    pub(super) fn switched(&mut self, block: Block, policy: &CompiledPolicy) {
        if let Some(meter) = self.meters.get_mut(&block) {
            meter.labels = labels(policy);
            meter.last_refused.clear();
        }
    }

    /// The slot, settled before, is nobody's.
    pub(super) fn close(&mut self, block: Block) {
        self.meters.remove(&block);
    }

    pub(super) fn totals(&self) -> BTreeMap<String, Traffic> {
        self.totals.clone()
    }
}

fn more(last: &mut u64, now: u64) -> u64 {
    let more = now.saturating_sub(*last);
    *last += more;
    more
}

fn labels(policy: &CompiledPolicy) -> Box<[RuleLabel]> {
    policy.rules().iter().take(RULES as usize).map(|rule| rule.origin.into()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_net::Refused;
    use enisle_net::policy::{PolicySpec, RuleId, compile};
    use proptest::prelude::*;

    fn policy(drop: &str) -> CompiledPolicy {
        compile(&PolicySpec { drop: vec![drop.parse().unwrap()], allow: Vec::new() }).unwrap()
    }

    fn rule(policy: &CompiledPolicy) -> Refuser {
        let at = policy.rules().iter().position(|rule| rule.origin == enisle_net::policy::Origin::Drop(0));
        Refuser::Rule(RuleId(u32::try_from(at.unwrap()).unwrap()))
    }

    fn measured(packets: u64, refused: &[(Refuser, u64)]) -> Measured {
        let refused = refused.iter().map(|(by, packets)| Refused { by: *by, packets: *packets }).collect();
        let mut measured = Measured { refused, flows_refused: packets, ..Measured::default() };
        (measured.packets[0], measured.bytes[0]) = (packets, 100 * packets);
        measured
    }

    fn block(n: usize) -> Block {
        "10.9.0.0/24".parse::<enisle_net::plan::Range>().unwrap().blocks().nth(n).unwrap()
    }

    #[test]
    fn what_a_slot_counted_stays_when_it_goes_and_the_next_begins_at_zero() {
        let policy = policy("8.8.8.8");
        let mut ledger = Ledger::default();
        for round in 1..=3 {
            ledger.open(block(0), "a", &policy);
            ledger.settle(block(0), &measured(5, &[(rule(&policy), 2)]));
            ledger.settle(block(0), &measured(7, &[(rule(&policy), 2)]));
            ledger.close(block(0));
            ledger.settle(block(0), &measured(1000, &[]));
            let total = &ledger.totals()["a"];
            assert_eq!(
                (total.packets[0], total.bytes[0], total.flows_refused),
                (7 * round, 700 * round, 7 * round)
            );
            assert_eq!(total.refused.values().sum::<u64>(), 2 * round);
            assert_eq!(total.refused.keys().map(RuleLabel::to_string).collect::<Vec<_>>(), ["drop[0]"]);
        }
        assert!(ledger.meters.is_empty(), "what is gone is kept as sums only");
    }

    #[test]
    fn another_policy_begins_its_rules_at_zero_and_keeps_the_rest() {
        let (old, new) = (policy("8.8.8.8"), policy("9.9.9.9"));
        let mut ledger = Ledger::default();
        ledger.open(block(0), "a", &old);
        ledger.settle(block(0), &measured(5, &[(rule(&old), 4), (Refuser::Host, 1)]));
        ledger.switched(block(0), &new);
        ledger.settle(
            block(0),
            &measured(6, &[(rule(&new), 1), (Refuser::Host, 2), (Refuser::Rule(RuleId(9999)), 3)]),
        );
        let total = &ledger.totals()["a"];
        let shown: Vec<(String, u64)> = total.refused.iter().map(|(l, n)| (l.to_string(), *n)).collect();
        assert_eq!(total.packets[0], 6);
        assert_eq!(shown, [("drop[0]".into(), 5), ("host".into(), 3), ("other".into(), 3)]);
    }

    proptest! {
        /// Whatever is read in whatever order, no total goes down.
        #[test]
        fn totals_never_go_down(steps in prop::collection::vec((0..3usize, 0..4u8, 0..50u64), 1..60)) {
            let policy = policy("8.8.8.8");
            let mut ledger = Ledger::default();
            let mut before = Traffic::default();
            for (slot, what, count) in steps {
                match what {
                    0 => ledger.open(block(slot), "a", &policy),
                    1 => ledger.close(block(slot)),
                    2 => ledger.switched(block(slot), &policy),
                    _ => ledger.settle(block(slot), &measured(count, &[(rule(&policy), count), (Refuser::OtherRules, count / 2)])),
                }
                let Some(now) = ledger.totals().remove("a") else { continue };
                for i in 0..now.packets.len() {
                    prop_assert!(now.packets[i] >= before.packets[i] && now.bytes[i] >= before.bytes[i]);
                }
                for (label, count) in &before.refused {
                    prop_assert!(now.refused[label] >= *count);
                }
                before = now;
            }
        }
    }
}
