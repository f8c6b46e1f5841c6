//! Slots made before their VMs: a few of each group, on the blocks that its next VMs will get.
//!
//! Owns: which warm slots there are, and that a block is never made twice at once. Refuses: which
//! blocks come next (the store), and the slots themselves (the engine).

use enisle_net::plan::Block;
use enisle_net::{Engine, NetError, WarmSlot, WarmSpec};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// The warm slots.
#[derive(Debug, Default)]
pub(super) struct Warm {
    state: Mutex<State>,
    /// A slot was made, a VM has its slot, a block was freed, or it is over.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    ready: BTreeMap<Block, WarmSlot>,
    /// The one that is being made ahead of time.
    making: Option<Block>,
    /// Blocks whose VMs are being given a slot at this moment.
    wanted: BTreeSet<Block>,
    /// Something happened since the last look.
    stale: bool,
    closed: bool,
}

/// A block that a VM is being given. Nobody else makes its slot until this goes.
pub(super) struct Wanted<'a>(&'a Warm, Block);

impl Warm {
    /// Takes a block for a VM, with its slot if that is made already. Waits for one that is just
    /// being made, milliseconds.
    pub(super) fn want(&self, block: Block) -> (Wanted<'_>, Option<WarmSlot>) {
        let mut state = self.lock();
        state.wanted.insert(block);
        let mut state = self.wait_while(state, |state| state.making == Some(block));
        let ready = state.ready.remove(&block);
        (Wanted(self, block), ready)
    }

    /// A block may be free again.
    pub(super) fn nudge(&self) {
        self.lock().stale = true;
        self.changed.notify_all();
    }

    /// Waits until there may be something to do, and no VM is waiting for its slot; `false` when it
    /// is over.
    pub(super) fn due(&self) -> bool {
        let idle = |state: &mut State| !state.closed && (!state.stale || !state.wanted.is_empty());
        let mut state = self.wait_while(self.lock(), idle);
        state.stale = false;
        !state.closed
    }

    /// Makes the slots of `specs` that are not there, one after the other, and takes away those that
    /// are not in it. Gives way to VMs that want theirs.
    ///
    /// # Errors
    /// The engine's, of the first slot that could not be made.
    pub(super) fn fill(&self, engine: &Engine, specs: &[WarmSpec]) -> Result<(), NetError> {
        for spec in specs {
            if self.begin(spec.block) {
                let made = engine.prepare(spec);
                self.end(spec.block, made)?;
            }
        }
        while let Some(slot) = self.beyond(specs) {
            engine.discard(slot)?;
        }
        Ok(())
    }

    /// Makes no more, and takes away what there is.
    ///
    /// # Errors
    /// The engine's, of the first slot that could not be taken away; the others are.
    pub(super) fn close(&self, engine: &Engine) -> Result<(), NetError> {
        self.lock().closed = true;
        self.changed.notify_all();
        let mut state = self.wait_while(self.lock(), |state| state.making.is_some());
        let ready = std::mem::take(&mut state.ready);
        drop(state);
        let gone: Vec<_> = std::thread::scope(|scope| {
            let discard = |slot| scope.spawn(|| engine.discard(slot));
            let threads: Vec<_> = ready.into_values().map(discard).collect();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, _>| {
                thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
            };
            threads.into_iter().map(ended).collect()
        });
        gone.into_iter().collect()
    }

    /// Whether this block is to be made now.
    fn begin(&self, block: Block) -> bool {
        let mut state = self.wait_while(self.lock(), |state| !state.closed && !state.wanted.is_empty());
        if state.closed || state.ready.contains_key(&block) {
            return false;
        }
        state.making = Some(block);
        true
    }

    fn end(&self, block: Block, made: Result<WarmSlot, NetError>) -> Result<(), NetError> {
        let mut state = self.lock();
        state.making = None;
        self.changed.notify_all();
        match made {
            Ok(slot) => drop(state.ready.insert(block, slot)),
            // A VM was faster.
            Err(NetError::BlockTaken(_)) => {}
            Err(error) => return Err(error),
        }
        Ok(())
    }

    /// One that is not among those that come next.
    fn beyond(&self, specs: &[WarmSpec]) -> Option<WarmSlot> {
        let mut state = self.lock();
        let block =
            *state.ready.keys().rev().find(|block| !specs.iter().any(|spec| spec.block == **block))?;
        state.ready.remove(&block)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait_while<'a>(
        &self,
        guard: MutexGuard<'a, State>,
        condition: impl FnMut(&mut State) -> bool,
    ) -> MutexGuard<'a, State> {
        self.changed.wait_while(guard, condition).unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Wanted<'_> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.wanted.remove(&self.1);
        state.stale = true;
        self.0.changed.notify_all();
    }
}
