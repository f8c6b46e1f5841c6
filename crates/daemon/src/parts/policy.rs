//! Policies of VMs that live: changed, observed, explained.
//!
//! Owns: the seam to the network engine and the name servers. Refuses: lists and their meaning,
//! which are `vm`'s. Everything here blocks for milliseconds and belongs on a blocking thread.

use super::PartError;
use super::real::RealParts;
use crate::vm::plan::VmPlan;
use enisle_net::policy::CompiledPolicy;
use enisle_net::{Judgement, LiveFlow, Question, Refused, SlotStats};
use std::sync::Arc;

/// What the judge has counted for one VM.
#[derive(Debug)]
pub(crate) struct Observed {
    pub(crate) stats: SlotStats,
    pub(crate) refused: Vec<Refused>,
}

/// Two answers about one packet, which should be the same.
#[derive(Debug)]
pub(crate) struct Found {
    /// By the kernel's maps.
    pub(crate) kernel: Judgement,
    /// By the policy as compiled now.
    pub(crate) expected: Judgement,
}

/// What may be done about policies of VMs.
pub(crate) trait PolicyParts {
    /// Puts policies in force: all, or none. VMs without a network are passed over.
    fn switch(&self, to: &[(Arc<VmPlan>, CompiledPolicy)]) -> Result<(), PartError>;
    /// What the judge has counted.
    fn observe(&self, plan: &VmPlan) -> Result<Observed, PartError>;
    /// What becomes of a packet, asked of the kernel and of this policy.
    fn why(&self, plan: &VmPlan, policy: &CompiledPolicy, question: &Question) -> Result<Found, PartError>;
    /// Live flows that `old` lets pass and `new` would not.
    fn cut_by(
        &self,
        plan: &VmPlan,
        old: &CompiledPolicy,
        new: &CompiledPolicy,
    ) -> Result<Vec<LiveFlow>, PartError>;
}

impl PolicyParts for RealParts {
    fn switch(&self, to: &[(Arc<VmPlan>, CompiledPolicy)]) -> Result<(), PartError> {
        match to.first() {
            // Those of one group.
            Some((plan, _)) => self.modes.of(plan).switch(to),
            None => Ok(()),
        }
    }

    fn observe(&self, plan: &VmPlan) -> Result<Observed, PartError> {
        self.modes.of(plan).observe(plan)
    }

    fn why(&self, plan: &VmPlan, policy: &CompiledPolicy, question: &Question) -> Result<Found, PartError> {
        self.modes.of(plan).why(plan, policy, question)
    }

    fn cut_by(
        &self,
        plan: &VmPlan,
        old: &CompiledPolicy,
        new: &CompiledPolicy,
    ) -> Result<Vec<LiveFlow>, PartError> {
        self.modes.of(plan).cut_by(plan, old, new)
    }
}
