//! Policies of slots that live. The map of slots is held meanwhile, so a slot that is being removed
//! is either changed before or not there any more.

use super::{Network, net};
use crate::parts::PartError;
use crate::parts::policy::{Found, Observed};
use enisle_net::plan::Block;
use enisle_net::policy::{CompiledPolicy, Proto, Verdict};
use enisle_net::{LiveFlow, Question, Slot};

impl Network {
    /// Puts policies in force: all, or none. Blocks without a slot are passed over.
    pub(crate) fn switch(&self, to: &[(Block, &CompiledPolicy)]) -> Result<(), PartError> {
        let mut slots = self.slots();
        // A rule's number is its place in one policy: what the old rules counted is kept first.
        for (block, _) in to {
            slots.settle(&self.engine, *block);
        }
        let changes: Vec<(&Slot, &CompiledPolicy)> = to
            .iter()
            .filter_map(|(block, policy)| slots.live.get(block).map(|slot| (slot, *policy)))
            .collect();
        self.engine.set_policies(&changes).map_err(net)?;
        slots.switched(to);
        Ok(())
    }

    /// What the judge has counted for a slot.
    pub(crate) fn observe(&self, block: Block) -> Result<Observed, PartError> {
        let slots = self.slots();
        let slot = slots.live.get(&block).ok_or(PartError::NoSlot(block))?;
        let stats = self.engine.stats(slot).map_err(net)?;
        Ok(Observed { stats, refused: self.engine.refusals(slot).map_err(net)? })
    }

    /// What the kernel says about a packet, and what this policy would.
    pub(crate) fn why(
        &self,
        block: Block,
        policy: &CompiledPolicy,
        question: &Question,
    ) -> Result<Found, PartError> {
        let slots = self.slots();
        let slot = slots.live.get(&block).ok_or(PartError::NoSlot(block))?;
        let kernel = self.engine.look_up(slot, question).map_err(net)?;
        Ok(Found { kernel, expected: self.engine.expect(slot, policy, question) })
    }

    /// Flows of a slot's guest that `old` lets pass and `new` would not; none without a slot.
    pub(crate) fn cut_by(
        &self,
        block: Block,
        old: &CompiledPolicy,
        new: &CompiledPolicy,
    ) -> Result<Vec<LiveFlow>, PartError> {
        let slots = self.slots();
        let Some(slot) = slots.live.get(&block) else { return Ok(Vec::new()) };
        let mut flows = self.engine.flows(slot).map_err(net)?;
        flows.retain(|flow| {
            let Some(question) = question_of(flow) else { return false };
            let passes = |policy| self.engine.expect(slot, policy, &question).verdict == Verdict::Allow;
            passes(old) && !passes(new)
        });
        Ok(flows)
    }
}

/// `None` for a protocol that no guest may speak.
fn question_of(flow: &LiveFlow) -> Option<Question> {
    let proto = [Proto::Tcp, Proto::Udp, Proto::Icmp].into_iter().find(|p| p.number() == flow.proto)?;
    Some(Question { destination: flow.destination, proto, port: flow.port })
}
