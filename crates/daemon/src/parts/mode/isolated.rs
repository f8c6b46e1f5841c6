//! Mode `isolated`: each VM on a /30 of its own, judged by its group's policy and its own.
//!
//! Owns: what such a guest is told. Refuses: the rest, which is what the engine makes slots for.

use super::slots::Slots;
use super::{Mode, PartError, SlotView};
use crate::parts::policy::{Found, Observed};
use crate::vm::plan::{MTU, VmPlan};
use enisle_guest_proto::GuestNet;
use enisle_net::plan::Block;
use enisle_net::policy::CompiledPolicy;
use enisle_net::{LiveFlow, Question};
use enisle_vmm::{BoxFuture, Nic};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The mode.
pub(crate) struct Isolated(pub(crate) Arc<Slots>);

/// The gateway is the name server, too.
pub(super) fn guest_net(block: Block) -> GuestNet {
    GuestNet {
        mac: block.guest_mac().octets(),
        address: block.guest(),
        prefix_len: block.net().prefix_len(),
        gateway: block.gateway(),
        dns: vec![block.gateway()],
        mtu: MTU,
    }
}

impl Mode for Isolated {
    fn name(&self) -> &'static str {
        "isolated"
    }

    fn make<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<GuestNet, PartError>> {
        Box::pin(async { self.0.make(plan).await.map(|()| guest_net(plan.block())) })
    }

    fn adopt<'a>(
        &'a self,
        plan: &'a Arc<VmPlan>,
        netns: OwnedFd,
    ) -> BoxFuture<'a, Result<GuestNet, PartError>> {
        Box::pin(async { self.0.adopt(plan, netns).await.map(|()| guest_net(plan.block())) })
    }

    fn remove<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(self.0.remove(plan.block()))
    }

    fn nic(&self, plan: &VmPlan) -> Result<(Nic, OwnedFd), PartError> {
        self.0.network.nic(plan.block())
    }

    fn view(&self, plan: &VmPlan) -> Result<SlotView, PartError> {
        self.0.network.view(plan.block())
    }

    fn switch(&self, to: &[(Arc<VmPlan>, CompiledPolicy)]) -> Result<(), PartError> {
        self.0.switch(to)
    }

    fn observe(&self, plan: &VmPlan) -> Result<Observed, PartError> {
        self.0.network.observe(plan.block())
    }

    fn why(&self, plan: &VmPlan, policy: &CompiledPolicy, question: &Question) -> Result<Found, PartError> {
        self.0.network.why(plan.block(), policy, question)
    }

    fn cut_by(
        &self,
        plan: &VmPlan,
        old: &CompiledPolicy,
        new: &CompiledPolicy,
    ) -> Result<Vec<LiveFlow>, PartError> {
        self.0.network.cut_by(plan.block(), old, new)
    }
}
