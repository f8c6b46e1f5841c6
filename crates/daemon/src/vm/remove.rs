//! Takes a VM away, in the reverse order of `vm::create`.
//!
//! Owns: the order, and that one failure does not stop the rest. Each removal may be repeated, so
//! the same way serves a failed start, a deletion and a death.

use super::create::{Made, Workshop};
use super::plan::VmPlan;
use crate::chain::Chain;
use crate::parts::PartError;
use std::fmt;
use std::sync::Arc;

/// What could not be removed.
#[derive(Debug, Default)]
pub(crate) struct Leftovers(Vec<String>);

impl fmt::Display for Leftovers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "could not be removed entirely: {}", self.0.join("; "))
    }
}

impl Leftovers {
    fn note(&mut self, outcome: Result<(), PartError>) {
        if let Err(error) = outcome {
            self.0.push(Chain(&error).to_string());
        }
    }

    fn into_result(self) -> Result<(), Self> {
        if self.0.is_empty() { Ok(()) } else { Err(self) }
    }
}

/// Kills what runs and removes all but the row and the console's log.
pub(crate) async fn clear(workshop: &Workshop, plan: &Arc<VmPlan>, made: Made) -> Result<(), Leftovers> {
    let mut left = Leftovers::default();
    // First the VMM: from here on no packet is sent and nothing holds the rest.
    if let Some(machine) = made.machine {
        left.0.extend(machine.kill().await.leftovers);
    }
    drop(made.boot);
    left.note(workshop.parts.remove_disk(plan).await);
    left.note(workshop.parts.remove_channel(plan).await);
    left.note(workshop.parts.remove_slot(plan).await);
    // Only now: what the next one needs is free.
    drop(made.turn);
    left.into_result()
}

/// Removes what [`clear`] has left: the console's log, then the row. Name and block are free
/// afterwards.
pub(crate) async fn forget(workshop: &Workshop, plan: &Arc<VmPlan>) -> Result<(), Leftovers> {
    let mut left = Leftovers::default();
    left.note(workshop.parts.remove_home(plan).await);
    if left.0.is_empty() {
        left.note(workshop.store.remove(plan.name()).map_err(PartError::from));
        workshop.parts.freed();
    }
    left.into_result()
}
