//! Changing policies while guests run.
//!
//! Owns: that a change of several slots happens to all or to none. Refuses: what the policies say.

use std::sync::MutexGuard;

use super::{Engine, look};
use crate::error::{NetError, Step, StepError};
use crate::judge::{PolicyId, SlotEntry};
use crate::policy::CompiledPolicy;
use crate::slot::{Slot, at};

/// One slot's part of a change. While it lives nobody else changes the slot's policy.
struct Switch<'a> {
    slot: &'a Slot,
    current: MutexGuard<'a, PolicyId>,
    new: PolicyId,
}

impl Engine {
    /// Replaces a slot's policy. The switch is atomic: every packet is judged by the old policy or
    /// by the new one, whole.
    ///
    /// # Errors
    /// [`NetError::SetPolicy`], or [`NetError::Host`] when the host cannot be made to forward what
    /// the policy opens; the old policy still holds.
    pub fn set_policy(&self, slot: &Slot, policy: &CompiledPolicy) -> Result<(), NetError> {
        self.set_policies(&[(slot, policy)])
    }

    /// Replaces the policies of several slots, each named once: of all, or of none. Each switch is
    /// atomic; between the first and the last some microseconds pass for each slot.
    ///
    /// # Errors
    /// As [`Engine::set_policy`]; the old policies still hold.
    pub fn set_policies(&self, changes: &[(&Slot, &CompiledPolicy)]) -> Result<(), NetError> {
        // In one order for all callers, so that two changes never wait for each other.
        let mut changes = changes.to_vec();
        changes.sort_by_key(|(slot, _)| slot.block());
        let opened_before = self.policies().opened().next().is_some();
        let mut switches = self.switches(&changes)?;
        let mut done = 0;
        if let Err(error) = self.switch(&switches, &mut done) {
            self.switch_back(&mut switches, done);
            return Err(error);
        }
        // Both the old policies and the new ones are known now, so nothing is closed too early.
        if let Err(error) = self.follow_policy() {
            self.switch_back(&mut switches, done);
            return Err(error);
        }
        for switch in &mut switches {
            let old = std::mem::replace(&mut *switch.current, switch.new);
            self.release(switch.slot, old);
        }
        drop(switches);
        if opened_before {
            self.close_what_nobody_opens();
        }
        Ok(())
    }

    /// Puts the rows of every new policy in. Nothing is in force yet.
    fn switches<'a>(&self, changes: &[(&'a Slot, &CompiledPolicy)]) -> Result<Vec<Switch<'a>>, NetError> {
        let mut switches: Vec<Switch<'a>> = Vec::with_capacity(changes.len());
        for (slot, policy) in changes {
            let current = slot.policy();
            let acquired = self.policies().acquire(&*self.kernel, policy);
            match at(Step::Policy, acquired) {
                Ok(new) => switches.push(Switch { slot, current, new }),
                Err(source) => {
                    for switch in &switches {
                        self.release(switch.slot, switch.new);
                    }
                    return Err(NetError::SetPolicy { block: slot.block(), source });
                }
            }
        }
        Ok(switches)
    }

    /// Points each slot at its new policy; counts those that do, for when one refuses.
    fn switch(&self, switches: &[Switch<'_>], done: &mut usize) -> Result<(), NetError> {
        for switch in switches {
            self.point(switch.slot, switch.new)
                .map_err(|source| NetError::SetPolicy { block: switch.slot.block(), source })?;
            *done += 1;
        }
        Ok(())
    }

    /// Undoes [`Engine::switch`] for the first `done`, and gives up what is not in force then.
    fn switch_back(&self, switches: &mut [Switch<'_>], done: usize) {
        for (i, switch) in switches.iter_mut().enumerate() {
            let unused = match self.point(switch.slot, *switch.current) {
                Err(error) if i < done => {
                    // The kernel judges by the new one; so must say who asks.
                    let block = switch.slot.block();
                    tracing::error!(%block, %error, "the new policy stays in force: the old one cannot be put back");
                    std::mem::replace(&mut *switch.current, switch.new)
                }
                _ => switch.new,
            };
            self.release(switch.slot, unused);
        }
        self.close_what_nobody_opens();
    }

    fn point(&self, slot: &Slot, policy: PolicyId) -> Result<(), StepError> {
        let block = slot.block();
        at(Step::Judge, self.kernel.set_slot(block.id(), &SlotEntry::new(block, policy, slot.terms())))
    }

    /// Rows nobody refers to only take room.
    fn release(&self, slot: &Slot, policy: PolicyId) {
        if let Err(error) = self.policies().release(&*self.kernel, policy) {
            let block = slot.block();
            tracing::warn!(%block, %error, "rows of an unused policy are left in the judge's maps");
        }
    }

    /// Forwarding that is on for nobody harms nobody: our table drops what would pass by it, and
    /// the next look at the host switches it off.
    fn close_what_nobody_opens(&self) {
        let closed = look(&*self.kernel).and_then(|around| {
            let done = self.forward(&mut self.lock(), &around);
            done.map_err(|e| NetError::Host("switch forwarding off", e))
        });
        if let Err(error) = closed {
            tracing::warn!(%error, "forwarding stays on where no policy needs it any more");
        }
    }
}
