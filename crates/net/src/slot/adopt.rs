//! Taking a living slot over: new maps first, then the programs, one hook after the other.
//!
//! Owns: that order, and that what is not a whole slot is taken away. Refuses: making what is
//! missing; a slot that was half made when its daemon died has no VM.

use std::os::fd::OwnedFd;

use super::warm::{shapes, unshaped};
use super::{Builder, Made, Parts, Slot, SlotSpec, Unfinished, absent_is_fine, at};
use crate::error::{Step, StepError};
use crate::judge::{SlotEntry, Terms};
use crate::kernel::{Netns, Place};
use crate::netlink::route::Change;
use crate::plan::Block;
use crate::reports::Tenant;

impl Builder<'_> {
    /// Takes a slot over, or takes it away.
    pub(crate) fn adopt(&self, spec: &SlotSpec<'_>, netns: OwnedFd) -> Made<Slot> {
        let mut parts = survivor();
        let opened = at(Step::Namespace, self.kernel.enter_netns(netns));
        let failed = match opened {
            Ok(mut netns) => match self.take_over(spec, &mut parts, &mut netns) {
                Ok(entry) => return Ok(self.slot(spec.block, netns, &entry, None)),
                Err(error) => {
                    // Not waited for: its VMM may hold the namespace for a while.
                    drop(netns);
                    error
                }
            },
            Err(error) => error,
        };
        Err((failed, self.take_away(spec.block, parts).err()))
    }

    fn take_over(
        &self,
        spec: &SlotSpec<'_>,
        parts: &mut Parts,
        netns: &mut Netns,
    ) -> Result<SlotEntry, StepError> {
        let kernel = &**self.kernel;
        let block = spec.block;
        let policy = at(Step::Policy, self.lock().acquire(kernel, spec.policy))?;
        parts.policy = Some(policy);
        // The rates may have changed meanwhile. Before the judge that sends packets this way.
        for change in shapes(&spec.warm()) {
            at(Step::Shape, kernel.change(Place::Inside(netns), &change))?;
        }
        for index in unshaped(&spec.warm()) {
            let removed = kernel.change(Place::Inside(netns), &Change::Unshape(index));
            at(Step::Shape, absent_is_fine(removed))?;
        }
        // Fragments that wait in the host are this tenant's own.
        let terms =
            Terms { shaped: spec.limits.mbit_up.is_some(), fragments_from: 0, tenant: Tenant::next() };
        let entry = SlotEntry::new(block, policy, terms);
        at(Step::Judge, kernel.set_slot(block.id(), &entry))?;
        parts.judged = true;
        // Refused where there is no such interface or no judge on it yet: a half-made slot.
        let [from, to] = self.join(block).programs();
        for (index, program) in [(block.tap_ifindex(), from), (block.peer_ifindex(), to)] {
            at(Step::Attach, kernel.reattach(netns, index, program))?;
        }
        kernel.seal(netns);
        Ok(entry)
    }

    /// Takes a slot of an earlier run away, cutting off whoever is in it.
    pub(crate) fn take_away_survivor(&self, block: Block) -> Result<(), Box<Unfinished>> {
        self.take_away(block, survivor())
    }
}

/// What there is of a living slot before this engine has touched it.
fn survivor() -> Parts {
    Parts { admitted: true, netns: None, veth: true, flows: true, policy: None, judged: false }
}
