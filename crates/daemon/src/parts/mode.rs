//! The seam between a VM and the mode of its group's network.
//!
//! ```text
//! vm ──▶ Parts ──▶ Mode ┬ isolated ┐
//!                       └ bridge   ┴──▶ Network (the engine and its slots)
//! ```
//!
//! Owns: the [`Mode`] trait, which is all that the rest of the daemon knows of a mode, and which group has which.
//! Refuses: anything that only one mode does, which is in that mode's file.

mod bridge;
mod isolated;
pub(crate) mod slots;

pub(crate) use bridge::Bridge;
pub(crate) use isolated::Isolated;

use super::policy::{Found, Observed};
use super::{PartError, SlotView};
use crate::config;
use crate::vm::plan::VmPlan;
use enisle_guest_proto::GuestNet;
use enisle_net::plan::Block;
use enisle_net::policy::CompiledPolicy;
use enisle_net::{LiveFlow, Question};
use enisle_vmm::{BoxFuture, Nic};
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// How the VMs of some groups are connected. A VM's number is its block, in every mode: it is nobody else's on
/// this host, and names what the mode makes.
///
/// A future that has begun is run to its end. Each of [`Mode::make`] and [`Mode::adopt`] either makes everything or
/// leaves to [`Mode::remove`] what it could not undo.
pub(crate) trait Mode: Send + Sync {
    /// As the file calls it.
    fn name(&self) -> &'static str;
    /// Makes a VM's network namespace with the tap in it, and all that leads there. Before it returns, every packet that
    /// the guest could send is judged. Answers what the guest is to be told. May take seconds.
    fn make<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<GuestNet, PartError>>;
    /// Takes over the network of a VM of an earlier run, whose VMM lives in `netns`. Answers as [`Mode::make`] did then.
    fn adopt<'a>(
        &'a self,
        plan: &'a Arc<VmPlan>,
        netns: OwnedFd,
    ) -> BoxFuture<'a, Result<GuestNet, PartError>>;
    /// Takes away what there is, also of one that was never whole; none is fine. The VMM is dead. Can be repeated.
    fn remove<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// What a VMM needs: the queue of its tap, and the namespace to run in.
    fn nic(&self, plan: &VmPlan) -> Result<(Nic, OwnedFd), PartError>;

    /// Where everything between the guest and the world can be seen, for `net verify`. Blocks.
    fn view(&self, _: &VmPlan) -> Result<SlotView, PartError> {
        Err(self.without("is not verified"))
    }

    /// Puts policies in force: of all, or of none. VMs without a network are passed over. Blocks, as all that follows.
    fn switch(&self, _: &[(Arc<VmPlan>, CompiledPolicy)]) -> Result<(), PartError> {
        Err(self.without("has no lists `drop` and `allow`"))
    }

    /// What was counted for a VM.
    fn observe(&self, _: &VmPlan) -> Result<Observed, PartError> {
        Err(self.without("counts no packets"))
    }

    /// What becomes of a packet.
    fn why(&self, _: &VmPlan, _: &CompiledPolicy, _: &Question) -> Result<Found, PartError> {
        Err(self.without(
            "has no policy to ask: whoever a packet is for, it passes if it bears the VM's own addresses",
        ))
    }

    /// Live flows that `old` lets pass and `new` would not.
    fn cut_by(
        &self,
        _: &VmPlan,
        _old: &CompiledPolicy,
        _new: &CompiledPolicy,
    ) -> Result<Vec<LiveFlow>, PartError> {
        Err(self.without("has no lists `drop` and `allow`"))
    }

    /// What this mode does not do.
    fn without(&self, what: &'static str) -> PartError {
        PartError::NotInMode { mode: self.name(), what }
    }
}

/// Every mode.
pub(crate) struct Modes {
    pub(crate) isolated: Isolated,
    pub(crate) bridge: Bridge,
}

impl Modes {
    /// That of a VM's group.
    pub(crate) fn of(&self, plan: &VmPlan) -> &dyn Mode {
        match plan.group.config.network.mode {
            config::Mode::Isolated => &self.isolated,
            config::Mode::Bridge => &self.bridge,
        }
    }
}

/// What a guest with this block will be told, where that is known before its network is made.
pub(crate) fn planned(network: &config::Network, block: Block) -> Option<GuestNet> {
    match network.mode {
        config::Mode::Isolated => Some(isolated::guest_net(block)),
        config::Mode::Bridge => network.bridge.as_ref().map(|bridge| bridge::guest_net(bridge, block)),
    }
}
