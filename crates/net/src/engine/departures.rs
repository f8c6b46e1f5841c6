//! Slots on their way out.
//!
//! Owns: the queue of slots that were handed over, and how many of them go at a time. Refuses: the
//! steps (`slot`).
//!
//! The kernel takes namespaces away in one thread. Each time it takes all that were given up so far,
//! in two RCU waits (40 ms together) and 0.5 ms for each, during which nobody can make an interface.
//! So slots go in batches: large enough to share the waits, small enough that nobody who makes a slot
//! meanwhile is held up for long.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError, mpsc};

use super::Engine;
use crate::error::NetError;
use crate::plan::Block;
use crate::slot::{Parts, Slot, WarmSlot};

/// Slots that go at a time while others may be made; each holds them up by 0.5 to 0.8 ms.
const AT_ONCE: usize = 16;

/// Told, once, that a slot is gone, or what is left of it.
type Told = Box<dyn FnOnce(Result<(), NetError>) + Send>;

/// The queue.
#[derive(Default)]
pub(super) struct Departures {
    state: Mutex<State>,
    /// Somebody was handed over, or it is over.
    changed: Condvar,
    /// Held by who takes slots away: one at a time, as the kernel does it.
    seat: Mutex<()>,
}

#[derive(Default)]
struct State {
    queue: VecDeque<Departing>,
    /// No slot will be made any more: nobody can be held up.
    hurry: bool,
    closed: bool,
}

struct Departing {
    block: Block,
    parts: Parts,
    told: Told,
}

impl Departures {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Engine {
    /// Takes a slot away and waits until it is gone. The VMM must be dead; where it is not, its
    /// interface is cut off all the same.
    ///
    /// # Errors
    /// [`NetError::Remove`] with every step that failed. The block stays taken then, so that
    /// nothing of this slot reaches another, until [`Engine::reclaim`] finishes the work.
    pub fn remove(&self, slot: Slot) -> Result<(), NetError> {
        self.take_away(slot.block(), slot.into_parts())
    }

    /// Cuts a slot's guest off, and leaves the rest to [`Engine::see_off`]: microseconds. `told` is
    /// called, by whatever thread, when the slot is gone, with what [`Engine::remove`] would answer.
    pub fn hand_over(&self, slot: Slot, told: impl FnOnce(Result<(), NetError>) + Send + 'static) {
        // Where this fails, it is tried again and told of.
        let _ = self.kernel.remove_slot(slot.block().id());
        self.depart(slot.block(), slot.into_parts(), Box::new(told));
    }

    /// Waits for slots that were handed over and takes a batch of them away; `false` when
    /// [`Engine::stop_waiting`] was called and none is left. For a thread that does nothing else.
    pub fn see_off(&self) -> bool {
        let idle = |state: &mut State| state.queue.is_empty() && !state.closed;
        let departures = &self.departures;
        let state = departures.changed.wait_while(departures.lock(), idle);
        let over = state.unwrap_or_else(PoisonError::into_inner).queue.is_empty();
        self.see_some_off();
        !over
    }

    /// Ends [`Engine::see_off`].
    pub fn stop_waiting(&self) {
        self.departures.lock().closed = true;
        self.departures.changed.notify_all();
    }

    /// No slot will be made any more: what is to go may go at once, however long that would hold up
    /// who makes one.
    pub fn hurry(&self) {
        self.departures.lock().hurry = true;
    }

    /// Takes a warm slot away that nobody wants.
    ///
    /// # Errors
    /// As [`Engine::remove`].
    pub fn discard(&self, warm: WarmSlot) -> Result<(), NetError> {
        self.take_away(warm.spec().block, warm.into_parts())
    }

    fn take_away(&self, block: Block, parts: Parts) -> Result<(), NetError> {
        let (tell, told) = mpsc::channel();
        // Nobody listens only when this call has panicked.
        self.depart(block, parts, Box::new(move |outcome| drop(tell.send(outcome))));
        loop {
            // Who waits may as well work; what others take with them is gone when they are done.
            self.see_some_off();
            if let Ok(outcome) = told.try_recv() {
                return outcome;
            }
        }
    }

    pub(super) fn depart(&self, block: Block, parts: Parts, told: Told) {
        self.lock().busy.insert(block);
        self.departures.lock().queue.push_back(Departing { block, parts, told });
        self.departures.changed.notify_all();
    }

    /// Takes a batch away, if anybody is waiting to go.
    fn see_some_off(&self) {
        let _seat = self.departures.seat.lock().unwrap_or_else(PoisonError::into_inner);
        let batch: Vec<Departing> = {
            let mut state = self.departures.lock();
            let count = state.queue.len().min(if state.hurry { usize::MAX } else { AT_ONCE });
            state.queue.drain(..count).collect()
        };
        if batch.is_empty() {
            return;
        }
        let (told, slots): (Vec<Told>, Vec<_>) =
            batch.into_iter().map(|going| (going.told, (going.block, going.parts))).unzip();
        for (told, (block, outcome)) in told.into_iter().zip(self.builder().take_all_away(slots)) {
            let left = self.free(block, outcome.err());
            told(if left.is_empty() { Ok(()) } else { Err(NetError::Remove { block, left }) });
        }
    }
}
