//! What the modes have in common that connect a VM by a slot of the engine: the slot, and the name server in it.
//!
//! Owns: their order. Refuses: what differs between modes.

use super::PartError;
use crate::parts::names::NameServers;
use crate::parts::network::Network;
use crate::parts::real::blocking;
use crate::vm::plan::VmPlan;
use enisle_net::plan::Block;
use enisle_net::policy::CompiledPolicy;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::sync::mpsc;

/// The engine's slots, and their name servers.
pub(crate) struct Slots {
    pub(crate) network: Arc<Network>,
    pub(crate) names: NameServers,
}

impl Slots {
    pub(super) async fn make(&self, plan: &Arc<VmPlan>) -> Result<(), PartError> {
        let (network, of_slot) = (Arc::clone(&self.network), Arc::clone(plan));
        let make = move || {
            network.make(&of_slot)?;
            network.open_name_server(of_slot.block())
        };
        let sockets = blocking("making a slot", make).await?;
        self.names.start(plan, sockets)
    }

    pub(super) async fn adopt(&self, plan: &Arc<VmPlan>, netns: OwnedFd) -> Result<(), PartError> {
        let (network, of_slot) = (Arc::clone(&self.network), Arc::clone(plan));
        let adopt = move || {
            network.adopt(&of_slot, netns)?;
            network.open_name_server(of_slot.block())
        };
        let sockets = blocking("adopting a slot", adopt).await?;
        self.names.start(plan, sockets)
    }

    pub(super) async fn remove(&self, block: Block) -> Result<(), PartError> {
        // First: its sockets hold the namespace.
        self.names.stop(block).await;
        let (tell, mut told) = mpsc::unbounded_channel();
        let network = Arc::clone(&self.network);
        let give_back = move || {
            network.give_back(block, tell);
            Ok(())
        };
        blocking("taking a slot back", give_back).await?;
        told.recv().await.unwrap_or(Err(PartError::Panicked("removing a slot")))
    }

    pub(super) fn switch(&self, to: &[(Arc<VmPlan>, CompiledPolicy)]) -> Result<(), PartError> {
        let policies: Vec<_> = to.iter().map(|(plan, policy)| (plan.block(), policy)).collect();
        self.network.switch(&policies)?;
        for (plan, policy) in to {
            self.names.follow(plan, policy.reaches_nothing());
        }
        Ok(())
    }
}
