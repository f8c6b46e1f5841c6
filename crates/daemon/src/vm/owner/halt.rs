//! Pausing a VM and letting it run on.
//!
//! Owns: what callers wish for, one at a time and in their order, and what each wish comes to. Refuses: to touch a
//! VM that does not run or is not paused. One that is removed is resumed for it (`owner`).

use super::{Event, Owner, State};
use crate::vm::{Command, Handle, VmError};
use enisle_api::EventKind;
use tokio::sync::oneshot;
use tracing::Span;

/// Who asked, and hears what came of it.
pub(super) type Reply = oneshot::Sender<Result<(), VmError>>;

/// What a caller wants.
pub(crate) struct Wish {
    /// Halted, or not.
    paused: bool,
    reply: Reply,
    /// The request it is done for.
    span: Span,
}

impl Handle {
    /// Halts the guest's processors; resolves when they are. Who goes away before that has it done all the same.
    pub(crate) async fn pause(&self) -> Result<(), VmError> {
        self.halt(true).await
    }

    /// Lets a paused guest run on; resolves when it does. As [`Handle::pause`].
    pub(crate) async fn resume(&self) -> Result<(), VmError> {
        self.halt(false).await
    }

    async fn halt(&self, paused: bool) -> Result<(), VmError> {
        let (reply, outcome) = oneshot::channel();
        let wish = Wish { paused, reply, span: Span::current() };
        // An owner that has ended, or ends before it comes to this, drops the wish.
        let _ = self.mailbox.send(Command::Halt(wish)).await;
        match outcome.await {
            Ok(done) => done,
            Err(_) => Err(VmError::Stopping { name: self.name().to_owned() }),
        }
    }
}

impl Owner {
    /// Fulfils a wish, which the kernel does at once. What is so already, or cannot be, is answered here; who
    /// wished for a change hears of it when it has been applied.
    pub(super) fn take_wish(&mut self, wish: Wish) -> Option<Event> {
        let Wish { paused, reply, span } = wish;
        let outcome = span.in_scope(|| self.fulfil(paused));
        match outcome {
            Ok(Some(event)) => {
                self.fulfilled = Some(reply);
                Some(event)
            }
            // Who asked may have gone away.
            Ok(None) => {
                let _ = reply.send(Ok(()));
                None
            }
            Err(error) => {
                let _ = reply.send(Err(error));
                None
            }
        }
    }

    /// Nothing for a VM that is so already.
    fn fulfil(&self, paused: bool) -> Result<Option<Event>, VmError> {
        let name = self.plan.name().to_owned();
        let machine = match (self.state(), &self.made.machine) {
            (State::Running, _) if !paused => return Ok(None),
            (State::Paused, _) if paused => return Ok(None),
            (State::Running | State::Paused, Some(machine)) => machine,
            (state, _) => return Err(VmError::NotRunning { name, state: state.shown() }),
        };
        let done = if paused { "paused" } else { "resumed" };
        let asked = if paused { machine.pause() } else { machine.resume() };
        asked.map_err(|source| VmError::NotHalted { name: name.clone(), done, source: Box::new(source) })?;
        tracing::info!(vm = name, "{done}");
        self.tell(|vm, group| match paused {
            true => EventKind::VmPaused { vm, group },
            false => EventKind::VmResumed { vm, group },
        });
        Ok(Some(if paused { Event::Halted } else { Event::Resumed }))
    }

    /// The state is what somebody wished for.
    pub(super) fn settle_wish(&mut self) {
        if let Some(reply) = self.fulfilled.take() {
            // Who asked may have gone away.
            let _ = reply.send(Ok(()));
        }
    }
}
