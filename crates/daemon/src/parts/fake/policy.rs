//! Policies of VMs that exist only as names.

use super::{FakeParts, Fault};
use crate::parts::PartError;
use crate::parts::meters::{MeterParts, Meters};
use crate::parts::policy::{Found, Observed, PolicyParts};
use crate::vm::plan::VmPlan;
use enisle_net::policy::CompiledPolicy;
use enisle_net::{LiveFlow, Question};
use std::sync::Arc;

impl PolicyParts for FakeParts {
    fn switch(&self, to: &[(Arc<VmPlan>, CompiledPolicy)]) -> Result<(), PartError> {
        let mut faults = self.faults.lock().unwrap();
        if let Some(index) = faults.iter().position(|fault| *fault == ("switch", Fault::Fail)) {
            faults.remove(index);
            return Err(PartError::Panicked("switching"));
        }
        let mut policies = self.policies.lock().unwrap();
        policies.extend(to.iter().map(|(plan, policy)| (plan.name().to_owned(), policy.clone())));
        Ok(())
    }

    fn observe(&self, plan: &VmPlan) -> Result<Observed, PartError> {
        Err(PartError::NoSlot(plan.block()))
    }

    fn why(&self, plan: &VmPlan, _: &CompiledPolicy, _: &Question) -> Result<Found, PartError> {
        Err(PartError::NoSlot(plan.block()))
    }

    fn cut_by(&self, _: &VmPlan, _: &CompiledPolicy, _: &CompiledPolicy) -> Result<Vec<LiveFlow>, PartError> {
        Ok(Vec::new())
    }
}

impl MeterParts for FakeParts {
    /// There is no slot here.
    fn meters(&self) -> Meters {
        Meters::default()
    }
}
