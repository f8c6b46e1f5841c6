//! Makes a VM, step by step, up to the guest's first instruction.
//!
//! Owns: the order. Slot, channel and disk are made at the same time; the slot is complete and
//! judged before a VMM exists. Refuses: undoing; what
//! was begun is in [`Made`], and `vm::remove` takes it away, whatever the outcome.

use super::plan::VmPlan;
use super::queue::{Place, Queue, Turn};
use crate::chain::Chain;
use crate::events::Events;
use crate::fault::{FaultPlan, Step};
use crate::guest::boot::{BootChannel, BootNews};
use crate::metrics::Metrics;
use crate::parts::{Machine, PartError, Parts};
use crate::store::{Store, VmmProcess};
use futures_util::FutureExt;
use std::fmt;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::Instant;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// What a creation works with.
#[derive(Clone)]
pub(crate) struct Workshop {
    pub(crate) parts: Arc<dyn Parts>,
    pub(crate) store: Arc<Store>,
    pub(crate) faults: FaultPlan,
    /// Who starts next.
    pub(crate) queue: Arc<Queue>,
    pub(crate) events: Arc<Events>,
    pub(crate) metrics: Arc<Metrics>,
}

/// What there is of a VM beside its row.
#[derive(Default)]
pub(crate) struct Made {
    pub(crate) boot: Option<BootChannel>,
    pub(crate) machine: Option<Arc<dyn Machine>>,
    /// Its turn in the queue, kept for as long as anything of it takes memory.
    pub(crate) turn: Option<Turn>,
}

/// Why a VM could not be made.
#[derive(Debug)]
pub(crate) enum CreateError {
    /// A step failed.
    Failed {
        /// Which.
        step: Step,
        /// Why.
        cause: Box<PartError>,
    },
    /// It was called off between two steps.
    CalledOff,
}

impl fmt::Display for CreateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Failed { step, cause } => {
                write!(f, "step `{step}` of its creation failed: {}", Chain(cause))
            }
            Self::CalledOff => f.write_str("its creation was called off"),
        }
    }
}

/// One creation.
pub(crate) struct Creation {
    pub(crate) plan: Arc<VmPlan>,
    pub(crate) workshop: Workshop,
    pub(crate) news: mpsc::Sender<BootNews>,
    pub(crate) called_off: CancellationToken,
    /// Its place in the queue of those that are to start.
    pub(crate) place: Place,
}

impl Creation {
    /// Makes everything. Never dropped half-way: a step on a blocking thread would go on without
    /// anybody to undo it. [`Creation::called_off`] ends it between steps.
    pub(crate) async fn run(mut self) -> (Made, Result<(), CreateError>) {
        let mut made = Made::default();
        let outcome = match self.wait_for_turn().await {
            Ok(turn) => {
                made.turn = turn;
                self.steps(&mut made).await
            }
            Err(called_off) => Err(called_off),
        };
        (made, outcome)
    }

    async fn steps(&self, made: &mut Made) -> Result<(), CreateError> {
        let Workshop { parts, store, .. } = &self.workshop;
        let plan = &self.plan;
        // Neither needs another. All are waited for, also when one has failed: a step that goes on
        // by itself would make what has been undone.
        let (slot, boot, disk) = tokio::join!(
            self.step(Step::Slot, to_its_end("making a slot", parts.make_slot(plan))),
            self.step(Step::Channel, to_its_end("making a channel", self.channel())),
            self.step(Step::Disk, to_its_end("making a disk", parts.make_disk(plan))),
        );
        // First what must be taken away, then what went wrong.
        let boot = boot.map(|boot| made.boot = Some(boot));
        slot.and(boot).and(disk)?;
        let machine = self.launch().await?;
        let pid = machine.pid();
        made.machine = Some(Arc::clone(&machine));
        self.end_of(Step::Launch)?;
        self.step(Step::Start, async {
            store.set_vmm(plan.name(), VmmProcess { pid, start_ticks: enisle_vmm::start_ticks(pid) })?;
            machine.start().await
        })
        .await
    }

    async fn channel(&self) -> Result<BootChannel, PartError> {
        let listener = self.workshop.parts.make_channel(&self.plan).await?;
        Ok(BootChannel::serve(listener, Arc::clone(&self.plan), self.news.clone()))
    }

    async fn wait_for_turn(&mut self) -> Result<Option<Turn>, CreateError> {
        tokio::select! {
            () = self.called_off.cancelled() => Err(CreateError::CalledOff),
            // The queue lives longer than who waits in it.
            turn = self.place.turn() => Ok(turn),
        }
    }

    /// The one step that may take seconds, and that undoes itself when it is dropped.
    async fn launch(&self) -> Result<Arc<dyn Machine>, CreateError> {
        tokio::select! {
            () = self.called_off.cancelled() => Err(CreateError::CalledOff),
            machine = self.workshop.parts.launch(&self.plan) => machine.map_err(|cause| failed(Step::Launch, cause)),
        }
    }

    async fn step<T>(
        &self,
        step: Step,
        work: impl Future<Output = Result<T, PartError>>,
    ) -> Result<T, CreateError> {
        if self.called_off.is_cancelled() {
            return Err(CreateError::CalledOff);
        }
        let begun = Instant::now();
        let done = work.await.map_err(|cause| failed(step, cause))?;
        tracing::debug!(vm = self.plan.name(), %step, took = ?begun.elapsed(), "made");
        self.end_of(step)?;
        Ok(done)
    }

    fn end_of(&self, step: Step) -> Result<(), CreateError> {
        self.workshop.faults.check(step).map_err(|fault| failed(step, fault.into()))
    }
}

/// A defect in one part must not cut the others off.
async fn to_its_end<T>(
    what: &'static str,
    work: impl Future<Output = Result<T, PartError>>,
) -> Result<T, PartError> {
    AssertUnwindSafe(work).catch_unwind().await.unwrap_or(Err(PartError::Panicked(what)))
}

fn failed(step: Step, cause: PartError) -> CreateError {
    CreateError::Failed { step, cause: Box::new(cause) }
}
