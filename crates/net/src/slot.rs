//! One slot: made step by step, undone in reverse by the same code that takes it away.
//!
//! ```text
//!  admit → namespace → tap → veth → refusals → policy → judge → attach → shape → inside → outside
//!    └ rules before links                        └ judged before anything is up
//! ```
//!
//! Owns: the order of steps and of their undoing. Refuses: which blocks are free, host-wide state
//! (`engine`).

mod adopt;

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use ipnet::Ipv4Net;

use crate::error::{NetError, Step, StepError};
use crate::host_table;
use crate::judge::{PolicyId, SlotEntry, Terms};
use crate::kernel::{Answer, Kernel, Netns, Place, Program, TapSpec};
use crate::limits::Limits;
use crate::netlink::route::{Change, LinkSettings, Veth};
use crate::netlink::shape::Shape;
use crate::nft::Table;
use crate::plan::Block;
use crate::policies::Policies;
use crate::policy::CompiledPolicy;
use crate::scope::Scope;
use crate::slot_table::{self, PEER, TAP};

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
    pub(crate) fn create(&self, spec: &SlotSpec<'_>) -> Result<Slot, (StepError, Option<Box<Unfinished>>)> {
        let mut parts = Parts::default();
        let (netns, entry) = match self.build(spec, &mut parts) {
            Ok(made) => made,
            Err(error) => return Err((error, self.take_away(spec.block, parts).err())),
        };
        Ok(self.slot(spec.block, netns, &entry))
    }

    fn slot(&self, block: Block, netns: Netns, entry: &SlotEntry) -> Slot {
        let kernel = Arc::clone(self.kernel);
        let terms = Terms { shaped: entry.shaped, fragments_from: entry.fragments_from };
        Slot { block, netns, kernel, policy: Mutex::new(entry.policy), terms }
    }

    fn build(&self, spec: &SlotSpec<'_>, parts: &mut Parts) -> Result<(Netns, SlotEntry), StepError> {
        let kernel = &**self.kernel;
        let block = spec.block;
        let admit = host_table::admit(self.table, block, &spec.limits);
        at(Step::Admit, kernel.apply(Place::Host, &admit))?;
        parts.admitted = true;

        let mut netns = at(Step::Namespace, kernel.new_netns())?;
        match self.furnish(spec, parts, &mut netns) {
            Ok(entry) => Ok((netns, entry)),
            Err(error) => {
                parts.netns = Some(netns);
                Err(error)
            }
        }
    }

    fn furnish(
        &self,
        spec: &SlotSpec<'_>,
        parts: &mut Parts,
        netns: &mut Netns,
    ) -> Result<SlotEntry, StepError> {
        let kernel = &**self.kernel;
        let block = spec.block;
        at(Step::Tap, kernel.create_tap(netns, &tap(spec)))?;
        at(Step::Veth, kernel.create_veth(netns, &veth(spec, self.scope)))?;
        parts.veth = true;

        let refusals = slot_table::render();
        at(Step::Refusals, kernel.apply(Place::Inside(netns), &refusals))?;
        let policy = self.lock().acquire(kernel, spec.policy);
        let policy = at(Step::Policy, policy)?;
        parts.policy = Some(policy);
        // What the last tenant left half sent must not become part of what this one sends.
        let fragments_from = at(Step::Judge, kernel.fragments_gone_by())?;
        let terms = Terms { shaped: spec.limits.mbit_up.is_some(), fragments_from };
        let entry = SlotEntry::new(block, policy, terms);
        at(Step::Judge, kernel.set_slot(block.id(), &entry))?;
        parts.judged = true;

        for (index, program) in
            [(block.tap_ifindex(), Program::FromGuest), (block.peer_ifindex(), Program::ToGuest)]
        {
            let clsact = Change::Clsact(index);
            at(Step::Attach, kernel.change(Place::Inside(netns), &clsact))?;
            at(Step::Attach, kernel.attach(netns, index, program))?;
        }
        for change in shapes(spec) {
            at(Step::Shape, kernel.change(Place::Inside(netns), &change))?;
        }
        for change in inside(block) {
            at(Step::Inside, kernel.change(Place::Inside(netns), &change))?;
        }
        for change in outside(block, self.scope.alias(spec.vm_name)) {
            at(Step::Outside, kernel.change(Place::Host, &change))?;
        }
        kernel.seal(netns);
        Ok(entry)
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

fn tap(spec: &SlotSpec<'_>) -> TapSpec {
    TapSpec {
        name: TAP,
        index: spec.block.tap_ifindex(),
        mac: spec.block.host_mac(),
        mtu: spec.mtu,
        owner: spec.tap_owner,
    }
}

fn veth(spec: &SlotSpec<'_>, scope: Scope) -> Veth {
    Veth {
        name: spec.block.host_veth().as_str().to_owned(),
        index: spec.block.host_ifindex(),
        // The same as the tap's: what the guest addresses to its gateway arrives unchanged.
        mac: spec.block.host_mac(),
        group: scope.group(),
        mtu: spec.mtu,
        peer_name: PEER,
        peer_index: spec.block.peer_ifindex(),
    }
}

/// Where a direction has a limit, a token bucket where its packets leave the namespace: by the tap
/// to the guest, by the veth's end from it. Without one there is no queue and the judge takes the
/// short way.
fn shapes(spec: &SlotSpec<'_>) -> impl Iterator<Item = Change> {
    let Limits { mbit_up, mbit_down, .. } = spec.limits;
    let mtu = spec.mtu;
    let on = move |index, mbit: Option<u32>| mbit.map(|mbit| Change::Shape(index, Shape::new(mbit, mtu)));
    [on(spec.block.tap_ifindex(), mbit_down), on(spec.block.peer_ifindex(), mbit_up)].into_iter().flatten()
}

/// The interfaces that [`shapes`] leaves alone.
fn unshaped(spec: &SlotSpec<'_>) -> impl Iterator<Item = u32> {
    let Limits { mbit_up, mbit_down, .. } = spec.limits;
    let off = |index, mbit: Option<u32>| mbit.is_none().then_some(index);
    [off(spec.block.tap_ifindex(), mbit_down), off(spec.block.peer_ifindex(), mbit_up)].into_iter().flatten()
}

/// Inside: nothing is routed (a new namespace inherits the host's `ip_forward`), no IPv6 address,
/// and a gateway that knows its guest.
fn inside(block: Block) -> [Change; 7] {
    let closed = LinkSettings { forwarding: Some(false), no_ipv6_address: true, ..LinkSettings::default() };
    let (tap, peer) = (block.tap_ifindex(), block.peer_ifindex());
    let gateway = Ipv4Net::new_assert(block.gateway(), block.net().prefix_len());
    [
        Change::Settings(tap, closed.clone()),
        Change::Settings(peer, closed),
        Change::Address(tap, gateway),
        Change::Neighbour(tap, block.guest(), block.guest_mac()),
        Change::Up(slot_table::LOOPBACK),
        Change::Up(peer),
        Change::Up(tap),
    ]
}

/// On the host: forwarding on this interface alone, no address at all, one route, one neighbour.
fn outside(block: Block, alias: String) -> [Change; 4] {
    let index = block.host_ifindex();
    let guest: Ipv4Addr = block.guest();
    let settings = LinkSettings {
        alias: Some(alias),
        forwarding: Some(true),
        strict_source: true,
        no_ipv6_address: true,
        ..LinkSettings::default()
    };
    [
        Change::Settings(index, settings),
        Change::Up(index),
        Change::Neighbour(index, guest, block.guest_mac()),
        Change::HostRoute(index, guest),
    ]
}
