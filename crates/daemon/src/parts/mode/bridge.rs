//! Mode `bridge`: VMs are ports of a Linux bridge, see each other, and are reached from the network.
//!
//! Owns: what such a guest is told. Refuses: lists `drop` and `allow`, and what goes with them: the judge asks only whether a
//! guest speaks in its own name. The engine knows by the block which bridge a slot is joined to.

use super::slots::Slots;
use super::{Mode, PartError};
use crate::parts::policy::Observed;
use crate::vm::plan::{MTU, VmPlan};
use enisle_guest_proto::GuestNet;
use enisle_net::plan::Block;
use enisle_vmm::{BoxFuture, Nic};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// The mode.
pub(crate) struct Bridge(pub(crate) Arc<Slots>);

/// The name server is in the VM's own namespace, on the address before the guest's, which is nobody's on the bridge.
pub(super) fn guest_net(bridge: &enisle_net::Bridge, block: Block) -> GuestNet {
    GuestNet {
        mac: block.guest_mac().octets(),
        address: block.guest(),
        prefix_len: bridge.gateway.prefix_len(),
        gateway: bridge.gateway.addr(),
        dns: vec![block.gateway()],
        mtu: MTU,
    }
}

fn told(plan: &VmPlan) -> Result<GuestNet, PartError> {
    let network = &plan.group.config.network;
    let bridge = network.bridge.as_ref().ok_or(PartError::NoSlot(plan.block()))?;
    Ok(guest_net(bridge, plan.block()))
}

impl Mode for Bridge {
    fn name(&self) -> &'static str {
        "bridge"
    }

    fn make<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<GuestNet, PartError>> {
        Box::pin(async {
            self.0.make(plan).await?;
            told(plan)
        })
    }

    fn adopt<'a>(
        &'a self,
        plan: &'a Arc<VmPlan>,
        netns: OwnedFd,
    ) -> BoxFuture<'a, Result<GuestNet, PartError>> {
        Box::pin(async {
            self.0.adopt(plan, netns).await?;
            told(plan)
        })
    }

    fn remove<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(self.0.remove(plan.block()))
    }

    fn nic(&self, plan: &VmPlan) -> Result<(Nic, OwnedFd), PartError> {
        self.0.network.nic(plan.block())
    }

    fn observe(&self, plan: &VmPlan) -> Result<Observed, PartError> {
        self.0.network.observe(plan.block())
    }
}
