//! One slot: made step by step, undone in reverse by the same code that takes it away.
//!
//! ```text
//!  admit → namespace → tap → veth → refusals → attach → shape → inside → outside │ policy → judge
//!    └ rules before links                        └ nothing passes: no row in the judge  └ claimed
//! ```
//!
//! Up to the bar a slot is *warm*: whole, but for a tenant. Without a row in the judge's map every
//! packet is dropped.
//!
//! Owns: the order of steps and of their undoing. Refuses: which blocks are free, host-wide state
//! (`engine`).

mod adopt;
mod leave;
mod recycle;
mod warm;

pub(crate) use recycle::Unclean;
pub(crate) use warm::{Made, encoded};
pub use warm::{WarmSlot, WarmSpec};

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use crate::bridge::Placed;
use crate::error::{NetError, Step, StepError};
use crate::join::{self, Join};
use crate::judge::{PolicyId, SlotEntry, Terms};
use crate::kernel::{Answer, Kernel, Netns};
use crate::limits::Limits;
use crate::nft::Table;
use crate::plan::Block;
use crate::policies::Policies;
use crate::policy::CompiledPolicy;
use crate::reports::Tenant;
use crate::scope::Scope;
use crate::slot_table::TAP;

/// What a slot is to be.
#[derive(Debug, Clone, Copy)]
pub struct SlotSpec<'a> {
    /// Its addresses, and with them every number and name.
    pub block: Block,
    /// Shown as the host interface's alias; of any length.
    pub vm_name: &'a str,
    /// Bytes, 576 to 65535; 1500 unless the uplink's is smaller.
    pub mtu: u32,
    /// Who the guest may talk to.
    pub policy: &'a CompiledPolicy,
    /// User and group that may open the tap: the VMM's.
    pub tap_owner: (u32, u32),
    /// What it may use of what all slots share.
    pub limits: Limits,
}

/// A slot in force. Dropping it gives up its namespace but leaves the host's rows behind:
/// `Engine::remove` is the way.
pub struct Slot {
    block: Block,
    netns: Netns,
    kernel: Arc<dyn Kernel>,
    policy: Mutex<PolicyId>,
    terms: Terms,
    /// What it was made as; `None` where an earlier run made it.
    made_as: Option<WarmSpec>,
}

impl fmt::Debug for Slot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slot").field("block", &self.block).finish_non_exhaustive()
    }
}

impl Slot {
    /// The slot's addresses.
    #[must_use]
    pub fn block(&self) -> Block {
        self.block
    }

    /// The VM's network namespace, for the VMM to be started in.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }

    /// Who has the slot, as [`crate::RefusedFlow`] names it.
    #[must_use]
    pub fn tenant(&self) -> Tenant {
        self.terms.tenant
    }

    /// Names the policy in force, as [`crate::RefusedFlow`] does. Waits while it is being changed.
    #[must_use]
    pub fn policy_number(&self) -> u32 {
        self.policy().0
    }

    /// Opens the tap's one queue, with `IFF_VNET_HDR`: every frame is preceded by a
    /// `virtio_net_hdr` of 10 bytes unless the reader changes that (`TUNSETVNETHDRSZ`).
    ///
    /// # Errors
    /// [`NetError::Tap`]; `EBUSY` beneath it while another descriptor has the queue.
    pub fn open_tap(&self) -> Result<OwnedFd, NetError> {
        let opened = self.kernel.open_tap(&self.netns, TAP);
        opened.map_err(|source| NetError::Tap { block: self.block, source })
    }

    pub(crate) fn policy(&self) -> std::sync::MutexGuard<'_, PolicyId> {
        self.policy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn terms(&self) -> Terms {
        self.terms
    }

    pub(crate) fn into_parts(self) -> Parts {
        let policy = *self.policy();
        Parts {
            admitted: true,
            netns: Some(self.netns),
            veth: true,
            flows: true,
            policy: Some(policy),
            judged: true,
        }
    }
}

/// What of a slot exists. Taking it away is the same whether it was complete or not, and can be
/// tried again.
#[derive(Default)]
pub(crate) struct Parts {
    admitted: bool,
    netns: Option<Netns>,
    veth: bool,
    flows: bool,
    policy: Option<PolicyId>,
    judged: bool,
}

/// A slot that could not be made, or not be taken away: why, and what still exists.
pub(crate) struct Unfinished {
    pub(crate) left: Vec<StepError>,
    pub(crate) parts: Parts,
}

/// Makes and unmakes slots.
pub(crate) struct Builder<'a> {
    pub(crate) kernel: &'a Arc<dyn Kernel>,
    pub(crate) policies: &'a Mutex<Policies>,
    pub(crate) scope: Scope,
    pub(crate) table: &'a Table,
    pub(crate) bridges: Arc<[Placed]>,
}

/// Names the step of a failed call.
pub(crate) fn at<T>(step: Step, answer: Answer<T>) -> Result<T, StepError> {
    answer.map_err(|source| StepError { step, source })
}

impl Builder<'_> {
    /// Makes a slot, or nothing.
    pub(crate) fn create(&self, spec: &SlotSpec<'_>) -> Made<Slot> {
        let warm = self.prepare(&spec.warm(), self.scope.alias(spec.vm_name))?;
        self.occupy(warm, spec.policy)
    }

    fn slot(&self, block: Block, netns: Netns, entry: &SlotEntry, made_as: Option<WarmSpec>) -> Slot {
        let kernel = Arc::clone(self.kernel);
        let terms =
            Terms { shaped: entry.shaped, fragments_from: entry.fragments_from, tenant: entry.tenant };
        Slot { block, netns, kernel, policy: Mutex::new(entry.policy), terms, made_as }
    }

    /// How a block's slot is joined to the host's network.
    fn join(&self, block: Block) -> &dyn Join {
        join::of(&self.bridges, block)
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Policies> {
        self.policies.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn absent_is_fine(answer: Answer<()>) -> Answer<()> {
    match answer {
        Err(e) if e.is_absent() => Ok(()),
        other => other,
    }
}
