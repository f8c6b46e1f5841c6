//! Slots that are made before anybody wants one, and those that are taken back.
//!
//! Owns: that a block is taken from the first step on, also while its slot is nobody's. Refuses: how
//! many are kept, and for whom (the daemon).

use std::collections::btree_map::Entry;

use super::{Engine, MTU};
use crate::error::{NetError, Step};
use crate::kernel::Place;
use crate::netlink::route::{Change, LinkSettings};
use crate::policy::CompiledPolicy;
use crate::slot::{Made, Slot, Unclean, WarmSlot, WarmSpec};

/// The alias of a slot's interface while it is nobody's.
const NOBODY: &str = "(warm)";

impl Engine {
    /// Makes a slot for whoever will claim it: as [`Engine::create`], but for policy and VM. Every
    /// packet of it is dropped.
    ///
    /// # Errors
    /// [`NetError::ForeignBlock`], [`NetError::BlockTaken`], [`NetError::Mtu`], [`NetError::Limit`], or
    /// [`NetError::Prepare`] with the step that failed; then everything done before is undone.
    pub fn prepare(&self, spec: &WarmSpec) -> Result<WarmSlot, NetError> {
        self.take(spec)?;
        let block = spec.block;
        match self.make(|| self.builder().prepare(spec, self.scope.alias(NOBODY)))? {
            Ok(warm) => {
                self.lock().busy.remove(&block);
                Ok(warm)
            }
            Err((source, unfinished)) => {
                let left = self.free(block, unfinished);
                Err(NetError::Prepare { block, source, left })
            }
        }
    }

    /// Gives a warm slot to a VM, in two changes of the judge's maps: from then on its packets are
    /// judged by `policy`. [`Engine::name`] says whose it is.
    ///
    /// # Errors
    /// [`NetError::Create`] with the step that failed; the slot is taken away then.
    pub fn claim(&self, warm: WarmSlot, vm_name: &str, policy: &CompiledPolicy) -> Result<Slot, NetError> {
        let block = warm.spec().block;
        self.lock().busy.insert(block);
        match self.builder().occupy(warm, policy) {
            Ok(slot) => self.complete(slot),
            Err((source, unfinished)) => {
                let left = self.free(block, unfinished);
                Err(NetError::Create { vm_name: vm_name.to_owned(), block, source, left })
            }
        }
    }

    /// Writes on a slot's interface whose it is (`ip link show`, `alias`), which nothing depends on.
    /// Apart from [`Engine::claim`] because it waits for who changes another interface.
    ///
    /// # Errors
    /// [`NetError::Host`], also where the interface is gone.
    pub fn name(&self, slot: &Slot, vm_name: &str) -> Result<(), NetError> {
        let named = LinkSettings { alias: Some(self.scope.alias(vm_name)), ..LinkSettings::default() };
        let change = Change::Settings(slot.block().host_ifindex(), named);
        let done = self.kernel.change(Place::Host, &change);
        done.map_err(|e| NetError::Host("write whose an interface is", e))
    }

    /// Takes a slot back for the next VM on its block, instead of taking it away: nobody's from its
    /// first step on, proven to be as it was made, in a fraction of a millisecond. The VMM must be
    /// dead.
    ///
    /// A slot that is not clean, or has a rate (its packets may wait in a queue), or was made by an
    /// earlier run, goes as by [`Engine::hand_over`]: `told` is called then, and only then.
    ///
    /// # Errors
    /// [`NetError::Unclean`] when it goes.
    pub fn recycle(
        &self,
        slot: Slot,
        told: impl FnOnce(Result<(), NetError>) + Send + 'static,
    ) -> Result<WarmSlot, NetError> {
        let block = slot.block();
        self.lock().busy.insert(block);
        match self.builder().recycle(slot, self.scope.alias(NOBODY)) {
            Ok(warm) => {
                self.lock().busy.remove(&block);
                Ok(warm)
            }
            Err(unclean) => {
                let Unclean { parts, why } = *unclean;
                self.depart(block, parts, Box::new(told));
                Err(NetError::Unclean { block, why })
            }
        }
    }

    /// Takes the block of a slot that is about to be made.
    pub(super) fn take(&self, spec: &WarmSpec) -> Result<(), NetError> {
        let block = spec.block;
        if !MTU.contains(&spec.mtu) {
            return Err(NetError::Mtu(spec.mtu));
        }
        if let Some((key, number)) = spec.limits.mistake() {
            return Err(NetError::Limit(key, number));
        }
        let mut state = self.lock();
        // Asked now: the ranges change under this lock.
        if !self.ranges().iter().any(|range| range.contains(block)) {
            return Err(NetError::ForeignBlock(block));
        }
        match state.sets.slots.entry(block) {
            Entry::Occupied(_) => return Err(NetError::BlockTaken(block)),
            Entry::Vacant(free) => free.insert(spec.limits),
        };
        state.busy.insert(block);
        Ok(())
    }

    /// Makes something, also where somebody flushed the host's table just now: it is put back, as the
    /// monitor is about to.
    pub(super) fn make<T>(&self, make: impl Fn() -> Made<T>) -> Result<Made<T>, NetError> {
        match make() {
            Err((e, None)) if e.step == Step::Admit && e.source.is_absent() => {
                self.refresh()?;
                Ok(make())
            }
            made => Ok(made),
        }
    }
}
