//! The groups of this moment.
//!
//! Owns: that nobody makes a VM by a group while the groups change. Refuses: what a group says
//! (`plan`), what a change comes to (`registry::reload`).
//!
//! Whoever holds them may wait for a group's lists, never the other way round.

use super::plan::GroupPlan;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

/// The groups of the file, in its order.
#[derive(Debug)]
pub(crate) struct Groups(RwLock<Vec<Arc<GroupPlan>>>);

impl Groups {
    pub(crate) fn new(groups: Vec<Arc<GroupPlan>>) -> Arc<Self> {
        Arc::new(Self(RwLock::new(groups)))
    }

    /// To make a VM by one. Blocks while the groups change, some milliseconds; not to be asked for
    /// twice by one thread.
    pub(crate) fn hold(&self) -> RwLockReadGuard<'_, Vec<Arc<GroupPlan>>> {
        // A panic elsewhere leaves groups that are whole: they are replaced at once.
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// To look at them.
    pub(crate) fn all(&self) -> Vec<Arc<GroupPlan>> {
        self.hold().clone()
    }

    /// To change them.
    pub(super) fn change(&self) -> RwLockWriteGuard<'_, Vec<Arc<GroupPlan>>> {
        self.0.write().unwrap_or_else(PoisonError::into_inner)
    }
}
