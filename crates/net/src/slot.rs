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
mod warm;

pub(crate) use warm::Made;
pub use warm::{WarmSlot, WarmSpec};

use std::fmt;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::error::{NetError, Step, StepError};
use crate::host_table;
use crate::judge::{PolicyId, SlotEntry, Terms};
use crate::kernel::{Answer, Kernel, Netns, Place};
use crate::limits::Limits;
use crate::netlink::route::Change;
use crate::nft::Table;
use crate::plan::Block;
use crate::policies::Policies;
use crate::policy::CompiledPolicy;
use crate::scope::Scope;
use crate::slot_table::TAP;

/// How long a namespace may take to go. Measured 1 ms, 20 ms when many go at once.
const PATIENCE: Duration = Duration::from_secs(2);

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
}

/// Names the step of a failed call.
pub(crate) fn at<T>(step: Step, answer: Answer<T>) -> Result<T, StepError> {
    answer.map_err(|source| StepError { step, source })
}

impl Builder<'_> {
    /// Makes a slot, or nothing.
    pub(crate) fn create(&self, spec: &SlotSpec<'_>) -> Made<Slot> {
        let warm = self.prepare(&spec.warm(), self.scope.alias(spec.vm_name))?;
        self.occupy(warm, spec.policy, None)
    }

    fn slot(&self, block: Block, netns: Netns, entry: &SlotEntry) -> Slot {
        let kernel = Arc::clone(self.kernel);
        let terms = Terms { shaped: entry.shaped, fragments_from: entry.fragments_from };
        Slot { block, netns, kernel, policy: Mutex::new(entry.policy), terms }
    }

    /// Takes away what there is, in the order that cuts the guest off first. Goes on after an
    /// error, and answers all of them.
    pub(crate) fn take_away(&self, block: Block, mut parts: Parts) -> Result<(), Box<Unfinished>> {
        let kernel = &**self.kernel;
        let mut left = Vec::new();
        let mut done = |step, answer| {
            let error = at(step, answer).err();
            let gone = error.is_none();
            left.extend(error);
            gone
        };
        if parts.judged {
            parts.judged = !done(Step::Judge, kernel.remove_slot(block.id()));
        }
        let outer = parts.veth.then(|| block.host_ifindex());
        if let Some(netns) = parts.netns.take() {
            parts.veth = !done(Step::Retire, kernel.retire(netns, outer, PATIENCE)) && parts.veth;
        } else if let Some(index) = outer {
            let deleted = kernel.change(Place::Host, &Change::DeleteLink(index));
            parts.veth = !done(Step::Retire, absent_is_fine(deleted));
        }
        if parts.admitted {
            let expel = host_table::expel(self.table, block);
            parts.admitted = !done(Step::Admit, absent_is_fine(kernel.apply(Place::Host, &expel)));
        }
        if parts.flows {
            let forgotten = kernel.forget_flows(block.guest());
            parts.flows = !done(Step::Flows, forgotten.and_then(|()| self.forget_count(block)));
        }
        if let Some(policy) = parts.policy.take() {
            // Rows that could not be removed are nobody's: their number is not used again soon, and
            // they go with the maps.
            done(Step::Policy, self.lock().release(kernel, policy));
        }
        if left.is_empty() { Ok(()) } else { Err(Box::new(Unfinished { left, parts })) }
    }

    /// Asks first: a transaction that fails costs an RCU wait, and the kernel may have forgotten by
    /// itself.
    fn forget_count(&self, block: Block) -> Answer<()> {
        let element = host_table::guest(block);
        if self.kernel.count(self.table, host_table::FLOWS, &element)?.is_none() {
            return Ok(());
        }
        let forget = host_table::forget_flows(self.table, block);
        absent_is_fine(self.kernel.apply(Place::Host, &forget))
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
