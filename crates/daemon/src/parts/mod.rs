//! What a VM is made of, as the owner task sees it.
//!
//! Owns: the seam between the life of a VM and the crates that make its parts (net, vmm, image).
//! Every part is keyed by the VM's plan, and removing what is not there is no error, so that one
//! way of removal serves a failed start, a deletion and a death. Refuses: order, which is
//! `vm::create`'s and `vm::remove`'s.

pub(crate) mod departures;
#[cfg(test)]
pub(crate) mod fake;
mod files;
pub(crate) mod meters;
pub(crate) mod mode;
pub(crate) mod names;
pub(crate) mod network;
pub(crate) mod policy;
pub(crate) mod real;
pub(crate) mod refusals;
pub(crate) mod warm_up;
pub(crate) mod watch;

use crate::fault::InjectedFault;
use crate::vm::plan::VmPlan;
use enisle_net::plan::{Block, Range};
use enisle_vmm::{BoxFuture, Exit};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use tokio::net::{UnixListener, UnixStream};

pub(crate) use files::{make_dir, remove_dir};

/// A part could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PartError {
    /// The network slot.
    #[error(transparent)]
    Net(Box<enisle_net::NetError>),
    /// The policy that its lists have become.
    #[error("its policy does not compile")]
    Policy(#[from] enisle_net::policy::CompileError),
    /// A slot that is needed is not there.
    #[error("block {0} has no slot")]
    NoSlot(Block),
    /// Its group's mode does not do that.
    #[error("a network of mode `{mode}` {what}")]
    NotInMode {
        /// The mode.
        mode: &'static str,
        /// What it lacks.
        what: &'static str,
    },
    /// A slot that could not be removed before.
    #[error("the slot of block {0} could not be removed; the next start of the daemon removes it")]
    StuckSlot(Block),
    /// The VMM.
    #[error(transparent)]
    Vmm(Box<enisle_vmm::VmmError>),
    /// Image or disk.
    #[error(transparent)]
    Image(Box<enisle_image::ImageError>),
    /// A file or directory.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which object.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The name server on its gateway address.
    #[error(transparent)]
    Dns(#[from] crate::dns::DnsError),
    /// The store.
    #[error("the daemon's state")]
    Store(#[from] crate::store::StoreError),
    /// A test asked for it.
    #[error(transparent)]
    Injected(#[from] InjectedFault),
    /// Work on a blocking thread panicked; the panic is in the log.
    #[error("a defect: {0} panicked")]
    Panicked(&'static str),
}

impl PartError {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { action, path, source }
    }
}

/// A VMM with its guest. Dropping the last handle kills it.
pub(crate) trait Machine: Send + Sync {
    /// The VMM's process id.
    fn pid(&self) -> u32;
    /// Lets the guest run its first instruction.
    fn start(&self) -> BoxFuture<'_, Result<(), PartError>>;
    /// Halts the guest's processors; its memory stays.
    fn pause(&self) -> Result<(), PartError>;
    /// Lets it run on. One that runs is left alone.
    fn resume(&self) -> Result<(), PartError>;
    /// Whether it is paused.
    fn is_paused(&self) -> bool;
    /// Presses the power button.
    fn power_button(&self) -> BoxFuture<'_, Result<(), PartError>>;
    /// Connects to the agent. Bounded in time.
    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, PartError>>;
    /// Kills it and waits until its processes are gone.
    fn kill(&self) -> BoxFuture<'_, Exit>;
    /// Waits for its end.
    fn wait(&self) -> BoxFuture<'_, Exit>;
    /// What the VMM itself said last.
    fn vmm_log(&self) -> String;
    /// Its serial console, if it has one.
    fn console(&self) -> Option<enisle_vmm::Console>;
}

/// What there is to see of a slot.
pub(crate) struct SlotView {
    /// Packet sockets before and behind the judge.
    pub(crate) wires: enisle_net::Wires,
    /// The host's own addresses with their subnets.
    pub(crate) addresses: Vec<ipnet::Ipv4Net>,
}

/// Makes and removes the parts of VMs.
pub(crate) trait Parts: meters::MeterParts + policy::PolicyParts + Send + Sync {
    /// Namespace, links, policy and name server.
    fn make_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// Takes them away.
    fn remove_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// Directories, and the socket the guest's boot connection arrives at.
    fn make_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<UnixListener, PartError>>;
    /// Takes the socket and its directory away.
    fn remove_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// Where everything between the guest and the world can be seen. It keeps the slot's namespace
    /// alive: to be dropped before the slot is removed.
    fn view_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<SlotView, PartError>>;
    /// Blocks come from these ranges from now on; those of VMs that live must be among them. Blocks for
    /// milliseconds. Where that fails they are as before.
    fn set_ranges(&self, ranges: &[Range]) -> Result<(), PartError>;
    /// Blocks of VMs are free again, or others are the next to be wanted.
    fn freed(&self);
    /// The writable layer over the image.
    fn make_disk<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// Takes it away.
    fn remove_disk<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// Takes away what a failed VM keeps: the console's log.
    fn remove_home<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// Takes over the slot of a VM of an earlier run, and opens its name server anew. Where that
    /// fails the slot is taken away, or left to [`Parts::remove_slot`].
    fn adopt_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// Binds the socket that the guest's boot connection arrives at once more.
    fn adopt_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<UnixListener, PartError>>;
    /// Takes over the VMM. Where that fails it runs on, until [`Parts::kill_survivor`].
    fn adopt<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<Arc<dyn Machine>, PartError>>;
    /// Kills the processes of a VM that could not be taken over; none is fine.
    fn kill_survivor<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>>;
    /// Starts the VMM inside the slot, its guest still halted. A dropped future undoes it.
    fn launch<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<Arc<dyn Machine>, PartError>>;
}
