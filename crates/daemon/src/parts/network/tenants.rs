//! Which VM a refused packet is of, and what the rule that refused it is called.
//!
//! A tenant is known from before its slot is found by others until it is left. What comes later, of its last
//! moment, is of nobody; nothing is ever taken for the next VM's. Owns: that, and how much of what was only
//! counted has been told. Refuses: waiting for packets (`parts::refusals`).

use super::{Network, Slots};
use crate::chain::Chain;
use crate::vm::explain::{first_rules, refuser};
use crate::vm::plan::VmPlan;
use enisle_api::{EventKind, FlowDirection, RuleShown};
use enisle_net::plan::Block;
use enisle_net::policy::CompiledPolicy;
use enisle_net::{RefusedFlow, Refuser, Reports, Slot, Tenant};
use std::collections::BTreeMap;

/// Rules of one policy that are kept by name for this: some 30 KiB a VM at most.
const NAMED: usize = 512;

/// Who has a slot.
#[derive(Debug)]
struct Known {
    vm: String,
    group: String,
    block: Block,
    /// Whose rules these are.
    policy: u32,
    rules: Box<[RuleShown]>,
    /// Packets that were only counted, and have been told of.
    told: u64,
}

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Tenants(BTreeMap<Tenant, Known>);

impl Tenants {
    pub(super) fn begin(&mut self, plan: &VmPlan, slot: &Slot, policy: &CompiledPolicy) {
        let known = Known {
            vm: plan.name().to_owned(),
            group: plan.row.group.clone(),
            block: plan.block(),
            policy: slot.policy_number(),
            rules: first_rules(policy, NAMED),
            told: 0,
        };
        self.0.insert(slot.tenant(), known);
    }

    pub(super) fn switch(&mut self, slot: &Slot, policy: &CompiledPolicy) {
        if let Some(known) = self.0.get_mut(&slot.tenant()) {
            known.policy = slot.policy_number();
            known.rules = first_rules(policy, NAMED);
        }
    }

    pub(super) fn end(&mut self, tenant: Tenant) {
        self.0.remove(&tenant);
    }

    /// A refused packet as an event; `None` for one of a tenant that is gone.
    fn attribute(&mut self, flow: &RefusedFlow) -> Option<EventKind> {
        let known = self.0.get_mut(&flow.tenant)?;
        let RuleShown { origin, rule } = known.name(flow);
        let not_reported = flow.untold.saturating_sub(known.told);
        known.told += not_reported;
        let (source_port, destination_port) = flow.ports.unzip();
        Some(EventKind::FlowRefused {
            vm: known.vm.clone(),
            group: known.group.clone(),
            direction: if flow.inward { FlowDirection::In } else { FlowDirection::Out },
            protocol: protocol(flow.proto),
            source: flow.source,
            source_port,
            destination: flow.destination,
            destination_port,
            origin,
            rule,
            not_reported,
        })
    }

    /// What was only counted since the last time; `None` when that is nothing.
    fn rest(&mut self, tenant: Tenant, untold: u64) -> Option<EventKind> {
        let known = self.0.get_mut(&tenant)?;
        let count = untold.saturating_sub(known.told);
        known.told += count;
        let (vm, group) = (known.vm.clone(), known.group.clone());
        (count > 0).then_some(EventKind::FlowsNotReported { vm, group, count })
    }
}

impl Known {
    fn name(&self, flow: &RefusedFlow) -> RuleShown {
        let Refuser::Rule(id) = flow.by else {
            let (origin, rule) = refuser(flow.by).unwrap_or_default();
            return RuleShown { origin: origin.to_owned(), rule: rule.to_owned() };
        };
        if flow.policy != self.policy {
            let rule = format!("rule {} of the policy before the last change", id.0);
            return RuleShown { origin: "former policy".to_owned(), rule };
        }
        let named = usize::try_from(id.0).ok().and_then(|id| self.rules.get(id));
        named.cloned().unwrap_or_else(|| RuleShown {
            origin: "other rules".to_owned(),
            rule: format!("rule {}; `net why` names it", id.0),
        })
    }
}

fn protocol(number: u8) -> String {
    match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        number => number.to_string(),
    }
}

impl Slots {
    fn slot_of(&self, tenant: Tenant) -> Option<&Slot> {
        let block = self.tenants.0.get(&tenant)?.block;
        self.live.get(&block).filter(|slot| slot.tenant() == tenant)
    }
}

impl Network {
    /// The reader of refused packets. There is one.
    pub(crate) fn reports(&self) -> Result<Reports, super::NetworkError> {
        let reports = self.engine.reports()?;
        // Set once, since there is one reader.
        let _ = self.bell.set(reports.bell());
        Ok(reports)
    }

    /// A refused packet as an event; `None` for one of a VM that has left its slot.
    pub(crate) fn attribute(&self, flow: &RefusedFlow) -> Option<EventKind> {
        self.slots().tenants.attribute(flow)
    }

    /// What of a tenant was only counted and has not been told of; `None` when that is nothing.
    pub(crate) fn not_reported(&self, tenant: Tenant) -> Option<EventKind> {
        let mut slots = self.slots();
        let untold = match self.engine.untold(slots.slot_of(tenant)?) {
            Ok(untold) => untold,
            Err(error) => {
                tracing::debug!("{}", Chain(&error));
                return None;
            }
        };
        slots.tenants.rest(tenant, untold)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_net::policy::RuleId;

    fn flow(by: Refuser, policy: u32, untold: u64) -> RefusedFlow {
        RefusedFlow {
            tenant: Tenant::default(),
            untold,
            by,
            policy,
            inward: false,
            proto: 6,
            source: [169, 254, 100, 2].into(),
            destination: [8, 8, 8, 8].into(),
            ports: Some((4000, 25)),
            icmp: None,
        }
    }

    fn tenants() -> Tenants {
        let rules = [RuleShown { origin: "default".into(), rule: "all".into() }].into();
        let block = "10.9.0.0/24".parse::<enisle_net::plan::Range>().unwrap().block(0).unwrap();
        let known = Known { vm: "a-1".into(), group: "a".into(), block, policy: 7, rules, told: 0 };
        Tenants(BTreeMap::from([(Tenant::default(), known)]))
    }

    #[test]
    fn rules_are_named_by_the_policy_they_are_of() {
        let mut tenants = tenants();
        let mut origin = |by, policy| match tenants.attribute(&flow(by, policy, 0)).unwrap() {
            EventKind::FlowRefused { origin, .. } => origin,
            other => panic!("{other:?}"),
        };
        assert_eq!(origin(Refuser::Rule(RuleId(0)), 7), "default");
        assert_eq!(origin(Refuser::Rule(RuleId(0)), 6), "former policy");
        assert_eq!(origin(Refuser::Rule(RuleId(1)), 7), "other rules");
        assert_eq!(origin(Refuser::Gateway, 6), "gateway");
    }

    #[test]
    fn what_was_only_counted_is_told_once_and_of_who_is_gone_nothing() {
        let mut tenants = tenants();
        let mut seen = Vec::new();
        for untold in [0, 5, 5, 9] {
            match tenants.attribute(&flow(Refuser::Host, 7, untold)).unwrap() {
                EventKind::FlowRefused { not_reported, .. } => seen.push(not_reported),
                other => panic!("{other:?}"),
            }
        }
        assert_eq!(seen, [0, 5, 0, 4]);
        let rest = tenants.rest(Tenant::default(), 12);
        assert!(matches!(rest, Some(EventKind::FlowsNotReported { count: 3, .. })), "{rest:?}");
        assert_eq!(tenants.rest(Tenant::default(), 12), None);
        tenants.end(Tenant::default());
        assert_eq!(tenants.attribute(&flow(Refuser::Host, 7, 20)), None);
        assert_eq!(tenants.rest(Tenant::default(), 20), None);
    }
}
