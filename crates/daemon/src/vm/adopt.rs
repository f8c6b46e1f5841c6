//! Takes a VM over that an earlier run of the daemon has made: the same parts as `vm::create`
//! makes, found instead.
//!
//! Owns: the order, and that a VM which cannot be taken over does not run on. Refuses: choosing who
//! is to be adopted (`boot`).

use super::create::{Made, Workshop};
use super::plan::VmPlan;
use crate::chain::Chain;
use crate::guest::boot::{BootChannel, BootNews};
use crate::parts::PartError;
use std::sync::Arc;
use tokio::sync::mpsc;

/// How a VM was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    Running,
    Paused,
}

/// One adoption.
pub(crate) struct Adoption {
    pub(crate) plan: Arc<VmPlan>,
    pub(crate) workshop: Workshop,
    pub(crate) news: mpsc::Sender<BootNews>,
}

impl Adoption {
    /// Takes everything over. What failed half-way is in [`Made`] for `vm::remove`; a VMM that
    /// nobody owns then is killed here.
    pub(crate) async fn run(self) -> (Made, Result<Found, PartError>) {
        let mut made = Made { turn: Some(self.workshop.queue.of_living()), ..Made::default() };
        let outcome = self.steps(&mut made).await;
        if outcome.is_err()
            && made.machine.is_none()
            && let Err(error) = self.workshop.parts.kill_survivor(&self.plan).await
        {
            tracing::error!(vm = self.plan.name(), "it could not be killed: {}", Chain(&error));
        }
        (made, outcome)
    }

    async fn steps(&self, made: &mut Made) -> Result<Found, PartError> {
        let Workshop { parts, store, .. } = &self.workshop;
        let plan = &self.plan;
        // First, what decides about its packets.
        parts.adopt_slot(plan).await?;
        let machine = parts.adopt(plan).await?;
        made.machine = Some(Arc::clone(&machine));
        let found = if machine.is_paused() { Found::Paused } else { Found::Running };
        let listener = parts.adopt_channel(plan).await?;
        made.boot = Some(BootChannel::serve(listener, Arc::clone(plan), self.news.clone()));
        store.adopt(plan.name())?;
        Ok(found)
    }
}
