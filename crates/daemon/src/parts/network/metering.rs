//! When slots are measured: beside each thing that ends a count.
//!
//! Owns: that a slot begins and ends with its meter. Refuses: the sums (`traffic`). For a scrape the
//! map of slots is held for one slot at a time, so that nobody who makes or removes one waits for all of them to be read;
//! a change of policies holds it for all that it changes.

use super::traffic::{Ledger, RULES};
use super::{Network, Slots};
use crate::chain::Chain;
use crate::parts::meters::{Meters, SlotCounts};
use crate::vm::plan::VmPlan;
use enisle_net::plan::Block;
use enisle_net::policy::CompiledPolicy;
use enisle_net::{Engine, Slot};

/// Sums, and counts of slots.
#[derive(Debug, Default)]
pub(super) struct Metering {
    ledger: Ledger,
    counts: SlotCounts,
}

/// Where a VM's slot comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Given {
    Made,
    Claimed,
    Adopted,
}

impl Given {
    pub(super) fn of(claimed: bool) -> Self {
        if claimed { Self::Claimed } else { Self::Made }
    }
}

impl Metering {
    /// A VM has left its slot.
    pub(super) fn count_left(&mut self, recycled: bool) {
        match recycled {
            true => self.counts.recycled += 1,
            false => self.counts.removed += 1,
        }
    }
}

impl Slots {
    /// A VM has a slot.
    pub(super) fn begin(&mut self, plan: &VmPlan, slot: Slot, policy: &CompiledPolicy, given: Given) {
        match given {
            Given::Made => self.metering.counts.made += 1,
            Given::Claimed => self.metering.counts.claimed += 1,
            Given::Adopted => {}
        }
        self.metering.ledger.open(plan.block(), &plan.row.group, policy);
        self.tenants.begin(plan, &slot, policy);
        self.live.insert(plan.block(), slot);
    }

    /// A VM leaves its slot: counted to the end.
    pub(super) fn end(&mut self, engine: &Engine, block: Block) -> Option<Slot> {
        self.settle(engine, block);
        self.metering.ledger.close(block);
        let slot = self.live.remove(&block)?;
        self.tenants.end(slot.tenant());
        Some(slot)
    }

    /// Adds what a slot has counted since the last time; nothing without a slot.
    pub(super) fn settle(&mut self, engine: &Engine, block: Block) {
        let Some(slot) = self.live.get(&block) else { return };
        match engine.measure(slot, RULES) {
            Ok(measured) => self.metering.ledger.settle(block, &measured),
            Err(error) => tracing::warn!(%block, "its counters are not read: {}", Chain(&error)),
        }
    }

    /// Slots that were settled are judged by other policies.
    pub(super) fn switched(&mut self, to: &[(Block, &CompiledPolicy)]) {
        for (block, policy) in to {
            self.metering.ledger.switched(*block, policy);
            if let Some(slot) = self.live.get(block) {
                self.tenants.switch(slot, policy);
            }
        }
    }
}

impl Network {
    /// Every count there is.
    pub(crate) fn meters(&self) -> Meters {
        let blocks: Vec<Block> = self.slots().live.keys().copied().collect();
        for block in blocks {
            self.slots().settle(&self.engine, block);
        }
        let (warm, warm_limit) = self.warm.sizes();
        let slots = self.slots();
        let counts = SlotCounts { stuck: slots.stuck.len(), warm, warm_limit, ..slots.metering.counts };
        Meters { traffic: slots.metering.ledger.totals(), slots: counts }
    }
}
