//! Taking slots away, several at once.
//!
//! Owns: the order of undoing, which cuts the guest off first, and what remains where a step fails.
//! Refuses: how many go at a time (`engine`).

use super::{Builder, Parts, Unfinished, absent_is_fine, at};
use crate::error::{Step, StepError};
use crate::host_table;
use crate::kernel::{Answer, Place};
use crate::netlink::route::Change;
use crate::plan::Block;

/// A slot on its way out.
struct Leaving {
    block: Block,
    parts: Parts,
    left: Vec<StepError>,
}

impl Leaving {
    /// Remembers a step's failure; whether it was done.
    fn done(&mut self, step: Step, answer: Answer<()>) -> bool {
        let error = at(step, answer).err();
        let done = error.is_none();
        self.left.extend(error);
        done
    }

    fn outcome(self) -> Result<(), Box<Unfinished>> {
        let Leaving { parts, left, .. } = self;
        if left.is_empty() { Ok(()) } else { Err(Box::new(Unfinished { left, parts })) }
    }
}

impl Builder<'_> {
    /// Takes away what there is of one slot. Goes on after an error, and answers all of them.
    pub(crate) fn take_away(&self, block: Block, parts: Parts) -> Result<(), Box<Unfinished>> {
        self.take_all_away(vec![(block, parts)]).pop().map_or(Ok(()), |(_, outcome)| outcome)
    }

    /// The same for several: the kernel takes their namespaces away together, the host's table
    /// changes once. What fails of one leaves the others alone.
    pub(crate) fn take_all_away(
        &self,
        slots: Vec<(Block, Parts)>,
    ) -> Vec<(Block, Result<(), Box<Unfinished>>)> {
        let start = |(block, parts)| Leaving { block, parts, left: Vec::new() };
        let mut leaving: Vec<Leaving> = slots.into_iter().map(start).collect();
        for slot in &mut leaving {
            self.cut_off(slot);
        }
        self.retire(&mut leaving);
        self.expel(&mut leaving);
        self.forget(&mut leaving);
        for slot in &mut leaving {
            if let Some(policy) = slot.parts.policy.take() {
                // Rows that could not be removed are nobody's: their number is not used again soon,
                // and they go with the maps.
                let released = self.lock().release(&**self.kernel, policy);
                slot.done(Step::Policy, released);
            }
        }
        leaving.into_iter().map(|slot| (slot.block, slot.outcome())).collect()
    }

    /// Without a row in the judge's map nothing passes.
    fn cut_off(&self, slot: &mut Leaving) {
        if slot.parts.judged {
            let removed = self.kernel.remove_slot(slot.block.id());
            slot.parts.judged = !slot.done(Step::Judge, removed);
        }
    }

    fn retire(&self, leaving: &mut [Leaving]) {
        let mut with_namespace = Vec::new();
        let mut namespaces = Vec::new();
        for slot in leaving {
            let outer = slot.parts.veth.then(|| slot.block.host_ifindex());
            if let Some(netns) = slot.parts.netns.take() {
                namespaces.push((netns, outer));
                with_namespace.push(slot);
            } else if let Some(index) = outer {
                let deleted = self.kernel.change(Place::Host, &Change::DeleteLink(index));
                slot.parts.veth = !slot.done(Step::Retire, absent_is_fine(deleted));
            }
        }
        if namespaces.is_empty() {
            return;
        }
        for (slot, answer) in with_namespace.into_iter().zip(self.kernel.retire(namespaces)) {
            slot.parts.veth = !slot.done(Step::Retire, answer) && slot.parts.veth;
        }
    }

    /// Out of the host's table: all in one transaction, and one by one where one of them stops it.
    fn expel(&self, leaving: &mut [Leaving]) {
        let admitted: Vec<&mut Leaving> = leaving.iter_mut().filter(|slot| slot.parts.admitted).collect();
        let blocks: Vec<Block> = admitted.iter().map(|slot| slot.block).collect();
        let apply = |blocks: &[Block]| {
            let expel = host_table::expel(self.table, blocks);
            absent_is_fine(self.kernel.apply(Place::Host, &expel))
        };
        let together = blocks.len() > 1
            && self.kernel.apply(Place::Host, &host_table::expel(self.table, &blocks)).is_ok();
        for slot in admitted {
            let answer = if together { Ok(()) } else { apply(&[slot.block]) };
            slot.parts.admitted = !slot.done(Step::Admit, answer);
        }
    }

    fn forget(&self, leaving: &mut [Leaving]) {
        let known: Vec<&mut Leaving> = leaving.iter_mut().filter(|slot| slot.parts.flows).collect();
        let guests: Vec<_> = known.iter().map(|slot| slot.block.guest()).collect();
        let together = guests.len() > 1 && self.kernel.forget_flows(&guests).is_ok();
        for slot in known {
            let forgotten = if together { Ok(()) } else { self.kernel.forget_flows(&[slot.block.guest()]) };
            let forgotten = forgotten.and_then(|()| self.forget_count(slot.block));
            slot.parts.flows = !slot.done(Step::Flows, forgotten);
        }
    }

    /// Asks first: a transaction that fails costs an RCU wait, and the kernel may have forgotten by
    /// itself.
    pub(super) fn forget_count(&self, block: Block) -> Answer<()> {
        let element = host_table::guest(block);
        if self.kernel.count(self.table, host_table::FLOWS, &element)?.is_none() {
            return Ok(());
        }
        let forget = host_table::forget_flows(self.table, block);
        absent_is_fine(self.kernel.apply(Place::Host, &forget))
    }
}
