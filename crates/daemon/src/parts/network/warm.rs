//! Slots made before their VMs: a few of each group, on the blocks that its next VMs will get.
//!
//! Owns: which warm slots there are, and that one hand at a time is on a block. Refuses: which
//! blocks come next (the store), and the slots themselves (the engine).

use enisle_net::plan::Block;
use enisle_net::{Engine, NetError, WarmSlot, WarmSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Who makes slots for nobody and takes them away again: the engine.
pub(super) trait Maker: Sync {
    type Slot: Send;
    fn prepare(&self, spec: &WarmSpec) -> Result<Self::Slot, NetError>;
    fn discard(&self, slot: Self::Slot) -> Result<(), NetError>;
}

impl Maker for Engine {
    type Slot = WarmSlot;

    fn prepare(&self, spec: &WarmSpec) -> Result<WarmSlot, NetError> {
        Engine::prepare(self, spec)
    }

    fn discard(&self, slot: WarmSlot) -> Result<(), NetError> {
        Engine::discard(self, slot)
    }
}

/// What slots there are to be.
#[derive(Debug, Default)]
pub(crate) struct Wanted {
    /// Those of the next VMs: made where they are not there.
    pub(crate) next: Vec<WarmSpec>,
    /// Those of the VMs after them: kept where they are there, since VMs that went have left them.
    pub(crate) later: Vec<WarmSpec>,
}

/// The warm slots.
#[derive(Debug)]
pub(super) struct Warm<S> {
    state: Mutex<State<S>>,
    /// A slot was made or has gone, a VM has its slot, a block was freed, or it is over.
    changed: Condvar,
}

#[derive(Debug)]
struct State<S> {
    ready: BTreeMap<Block, S>,
    /// Ready ones whose last VM still has the block: nobody gets it yet, nor is it in the way.
    returned: BTreeSet<Block>,
    /// As many as may be ready: as many as were wanted last.
    limit: usize,
    /// The one that is being made ahead of time, or taken away because others come first.
    at_work: Option<Block>,
    /// Blocks whose VMs are being given a slot at this moment.
    wanted: BTreeSet<Block>,
    /// Something happened since the last look.
    stale: bool,
    closed: bool,
}

/// A block that a VM is being given. Nobody else makes its slot until this goes.
pub(super) struct Claim<'a, S>(&'a Warm<S>, Block);

/// The block that is being worked on ahead of time, until this goes.
struct AtWork<'a, S>(&'a Warm<S>);

impl<S> Default for Warm<S> {
    fn default() -> Self {
        let state = State {
            ready: BTreeMap::new(),
            returned: BTreeSet::new(),
            limit: 0,
            at_work: None,
            wanted: BTreeSet::new(),
            stale: false,
            closed: false,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }
}

impl<S: Send> Warm<S> {
    /// Takes a block for a VM, with its slot if that is made already. Waits while that is just being
    /// made or taken away, milliseconds.
    pub(super) fn want(&self, block: Block) -> (Claim<'_, S>, Option<S>) {
        let mut state = self.lock();
        state.wanted.insert(block);
        let mut state = self.wait_while(state, |state| state.at_work == Some(block));
        let ready = state.ready.remove(&block);
        (Claim(self, block), ready)
    }

    /// A block may be free again.
    pub(super) fn nudge(&self) {
        let mut state = self.lock();
        state.stale = true;
        state.returned.clear();
        drop(state);
        self.changed.notify_all();
    }

    /// Whether a slot that a VM has left may be kept.
    pub(super) fn has_room(&self) -> bool {
        let state = self.lock();
        !state.closed && state.ready.len() < state.limit
    }

    /// How many slots wait for a VM, and how many may.
    pub(super) fn sizes(&self) -> (usize, usize) {
        let state = self.lock();
        (state.ready.len(), state.limit)
    }

    /// Keeps a slot that a VM has left; gives it back when it is over.
    pub(super) fn take_back(&self, block: Block, slot: S) -> Option<S> {
        let mut state = self.lock();
        if state.closed {
            return Some(slot);
        }
        state.returned.insert(block);
        state.ready.insert(block, slot)
    }

    /// Waits until there may be something to do, and no VM is waiting for its slot; `false` when it
    /// is over.
    pub(super) fn due(&self) -> bool {
        let idle = |state: &mut State<S>| !state.closed && (!state.stale || !state.wanted.is_empty());
        let mut state = self.wait_while(self.lock(), idle);
        state.stale = false;
        !state.closed
    }

    /// Makes the next slots that are not there, one after the other, and takes away those that are not
    /// wanted. Gives way to VMs that want theirs.
    ///
    /// # Errors
    /// The maker's, of the first slot that could not be made or taken away.
    pub(super) fn fill(&self, maker: &impl Maker<Slot = S>, wanted: &Wanted) -> Result<(), NetError> {
        self.lock().limit = wanted.next.len() + wanted.later.len();
        for spec in &wanted.next {
            let Some(_at_work) = self.begin(spec.block) else { continue };
            match maker.prepare(spec) {
                Ok(slot) => drop(self.lock().ready.insert(spec.block, slot)),
                // A VM was faster.
                Err(NetError::BlockTaken(_)) => {}
                Err(error) => return Err(error),
            }
        }
        while let Some((_at_work, slot)) = self.beyond(wanted) {
            maker.discard(slot)?;
        }
        Ok(())
    }

    /// Makes no more, waits until nothing is under way, and takes away what there is. Calling it
    /// again is a no-op.
    ///
    /// # Errors
    /// The maker's, of the first slot that could not be taken away; the others are.
    pub(super) fn close(&self, maker: &impl Maker<Slot = S>) -> Result<(), NetError> {
        self.lock().closed = true;
        self.changed.notify_all();
        let mut state = self.wait_while(self.lock(), |state| state.at_work.is_some());
        let ready = std::mem::take(&mut state.ready);
        drop(state);
        let gone: Vec<_> = std::thread::scope(|scope| {
            let discard = |slot| scope.spawn(|| maker.discard(slot));
            let threads: Vec<_> = ready.into_values().map(discard).collect();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(ended).collect()
        });
        gone.into_iter().collect()
    }

    /// Begins to make this block's slot, if it is to be made now.
    fn begin(&self, block: Block) -> Option<AtWork<'_, S>> {
        let mut state = self.wait_while(self.lock(), |state| !state.closed && !state.wanted.is_empty());
        if state.closed || state.ready.contains_key(&block) {
            return None;
        }
        state.at_work = Some(block);
        Some(AtWork(self))
    }

    /// Begins to take away one that is not among those that come next.
    fn beyond(&self, wanted: &Wanted) -> Option<(AtWork<'_, S>, S)> {
        let mut state = self.lock();
        let wanted = |block: &Block| wanted.next.iter().chain(&wanted.later).any(|spec| spec.block == *block);
        let spare = |block: &&Block| !wanted(block) && !state.returned.contains(block);
        let block = *state.ready.keys().rev().find(spare)?;
        let slot = state.ready.remove(&block)?;
        state.at_work = Some(block);
        Some((AtWork(self), slot))
    }
}

impl<S> Warm<S> {
    /// A panic elsewhere leaves a state that is whole: every change of it is one call.
    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &self,
        guard: MutexGuard<'a, State<S>>,
        condition: impl FnMut(&mut State<S>) -> bool,
    ) -> MutexGuard<'a, State<S>> {
        self.changed.wait_while(guard, condition).unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S> Drop for Claim<'_, S> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.wanted.remove(&self.1);
        state.stale = true;
        self.0.changed.notify_all();
    }
}

impl<S> Drop for AtWork<'_, S> {
    fn drop(&mut self) {
        self.0.lock().at_work = None;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests;
