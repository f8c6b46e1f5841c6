//! Makes a VM, step by step, up to the guest's first instruction.
//!
//! Owns: the order. The slot is complete and judged before a VMM exists. Refuses: undoing; what
//! was begun is in [`Made`], and `vm::remove` takes it away, whatever the outcome.

use super::plan::VmPlan;
use crate::chain::Chain;
use crate::events::Events;
use crate::fault::{FaultPlan, Step};
use crate::guest::boot::{BootChannel, BootNews};
use crate::parts::{Machine, PartError, Parts};
use crate::store::{Store, VmmProcess};
use std::fmt;
use std::sync::Arc;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_util::sync::CancellationToken;

/// What a creation works with.
#[derive(Clone)]
pub(crate) struct Workshop {
    pub(crate) parts: Arc<dyn Parts>,
    pub(crate) store: Arc<Store>,
    pub(crate) faults: FaultPlan,
    pub(crate) events: Arc<Events>,
}

/// What there is of a VM beside its row.
#[derive(Default)]
pub(crate) struct Made {
    pub(crate) boot: Option<BootChannel>,
    pub(crate) machine: Option<Arc<dyn Machine>>,
    /// Its place among the VMs that start at the same time, kept until it is ready.
    pub(crate) turn: Option<OwnedSemaphorePermit>,
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
    /// A place among the VMs that are started at the same time.
    pub(crate) turn: Option<Arc<Semaphore>>,
}

impl Creation {
    /// Makes everything. Never dropped half-way: a step on a blocking thread would go on without
    /// anybody to undo it. [`Creation::called_off`] ends it between steps.
    pub(crate) async fn run(self) -> (Made, Result<(), CreateError>) {
        let mut made = Made::default();
        let outcome = self.steps(&mut made).await;
        (made, outcome)
    }

    async fn steps(&self, made: &mut Made) -> Result<(), CreateError> {
        let Workshop { parts, store, .. } = &self.workshop;
        let plan = &self.plan;
        made.turn = self.wait_for_turn().await?;
        self.step(Step::Slot, parts.make_slot(plan)).await?;
        let listener = parts.make_channel(plan);
        made.boot = Some(
            self.step(Step::Channel, async {
                let listener = listener.await?;
                Ok(BootChannel::serve(listener, Arc::clone(plan), self.news.clone()))
            })
            .await?,
        );
        self.step(Step::Disk, parts.make_disk(plan)).await?;
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

    async fn wait_for_turn(&self) -> Result<Option<OwnedSemaphorePermit>, CreateError> {
        let Some(turn) = &self.turn else { return Ok(None) };
        tokio::select! {
            () = self.called_off.cancelled() => Err(CreateError::CalledOff),
            // The semaphore is never closed.
            permit = Arc::clone(turn).acquire_owned() => Ok(permit.ok()),
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
        let done = work.await.map_err(|cause| failed(step, cause))?;
        self.end_of(step)?;
        Ok(done)
    }

    fn end_of(&self, step: Step) -> Result<(), CreateError> {
        self.workshop.faults.check(step).map_err(|fault| failed(step, fault.into()))
    }
}

fn failed(step: Step, cause: PartError) -> CreateError {
    CreateError::Failed { step, cause: Box::new(cause) }
}
