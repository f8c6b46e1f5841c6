//! A slot without a tenant: made ahead of time, claimed in microseconds.
//!
//! Owns: what of a slot depends on its block and its limits alone, and the two steps that give it to
//! a VM. Refuses: how many are kept ready, and when they are made (the daemon).

use std::fmt;

use ipnet::Ipv4Net;

use super::{Builder, Parts, Slot, SlotSpec, Unfinished, at};
use crate::error::{Step, StepError};
use crate::host_table;
use crate::join::{Join as _, Routed};
use crate::judge::{SlotEntry, Terms};
use crate::kernel::{Netns, Place, TapSpec};
use crate::limits::Limits;
use crate::netlink::route::{self, Change, LinkSettings, Veth};
use crate::netlink::shape::Shape;
use crate::nft;
use crate::plan::Block;
use crate::policy::CompiledPolicy;
use crate::reports::Tenant;
use crate::scope::Scope;
use crate::slot_table::{self, PEER, TAP};

/// What a slot is, whoever it will be for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WarmSpec {
    /// Its addresses, and with them every number and name.
    pub block: Block,
    /// Bytes, 576 to 65535; 1500 unless the uplink's is smaller.
    pub mtu: u32,
    /// User and group that may open the tap: the VMM's.
    pub tap_owner: (u32, u32),
    /// What it may use of what all slots share.
    pub limits: Limits,
}

impl SlotSpec<'_> {
    /// What of it does not depend on the VM.
    #[must_use]
    pub fn warm(&self) -> WarmSpec {
        WarmSpec { block: self.block, mtu: self.mtu, tap_owner: self.tap_owner, limits: self.limits }
    }
}

/// A whole slot that is nobody's: the judge has no row for it and drops every packet. Dropping it
/// leaves the host's rows behind: [`crate::Engine::discard`] is the way.
pub struct WarmSlot {
    pub(super) spec: WarmSpec,
    pub(super) netns: Netns,
    /// When what the block's last tenant left half sent is gone from the host; 0 when nothing is there.
    /// Nothing comes after it: nobody can send from this block while its slot is warm.
    pub(super) fragments_from: u64,
}

impl fmt::Debug for WarmSlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WarmSlot").field("spec", &self.spec).finish_non_exhaustive()
    }
}

impl WarmSlot {
    /// What it was made as.
    #[must_use]
    pub fn spec(&self) -> WarmSpec {
        self.spec
    }

    pub(crate) fn into_parts(self) -> Parts {
        // Nobody has used it: there are no flows to forget.
        Parts {
            admitted: true,
            netns: Some(self.netns),
            veth: true,
            flows: false,
            policy: None,
            judged: false,
        }
    }
}

/// A thing, or the step that failed and what could not be undone.
pub(crate) type Made<T> = Result<T, (StepError, Option<Box<Unfinished>>)>;

impl Builder<'_> {
    /// Makes a slot that is nobody's, or nothing.
    pub(crate) fn prepare(&self, spec: &WarmSpec, alias: String) -> Made<WarmSlot> {
        let mut parts = Parts::default();
        match self.build(spec, alias, &mut parts) {
            Ok((netns, fragments_from)) => Ok(WarmSlot { spec: *spec, netns, fragments_from }),
            Err(error) => Err((error, self.take_away(spec.block, parts).err())),
        }
    }

    /// Gives a slot to a VM: from the last call on, its packets are judged by `policy`. Where that
    /// fails, the slot is taken away.
    pub(crate) fn occupy(&self, warm: WarmSlot, policy: &CompiledPolicy) -> Made<Slot> {
        let (spec, fragments_from) = (warm.spec, warm.fragments_from);
        let mut parts = warm.into_parts();
        match (self.seat(&spec, fragments_from, policy, &mut parts), parts.netns.take()) {
            (Ok(entry), Some(netns)) => Ok(self.slot(spec.block, netns, &entry, Some(spec))),
            (Ok(_), None) => unreachable!("a warm slot has its namespace"),
            (Err(error), netns) => {
                parts.netns = netns;
                Err((error, self.take_away(spec.block, parts).err()))
            }
        }
    }

    fn seat(
        &self,
        spec: &WarmSpec,
        fragments_from: u64,
        policy: &CompiledPolicy,
        parts: &mut Parts,
    ) -> Result<SlotEntry, StepError> {
        let kernel = &**self.kernel;
        let policy = at(Step::Policy, self.lock().acquire(kernel, policy))?;
        parts.policy = Some(policy);
        let terms = Terms { shaped: spec.limits.mbit_up.is_some(), fragments_from, tenant: Tenant::next() };
        let entry = SlotEntry::new(spec.block, policy, terms);
        at(Step::Judge, kernel.set_slot(spec.block.id(), &entry))?;
        parts.judged = true;
        Ok(entry)
    }

    fn build(&self, spec: &WarmSpec, alias: String, parts: &mut Parts) -> Result<(Netns, u64), StepError> {
        let kernel = &**self.kernel;
        let admit = host_table::admit(self.table, spec.block, &spec.limits);
        at(Step::Admit, kernel.apply(Place::Host, &admit))?;
        parts.admitted = true;

        let mut netns = at(Step::Namespace, kernel.new_netns())?;
        let furnished = self.furnish(spec, alias, parts, &mut netns).and_then(|()| {
            // What the last tenant left half sent must not become part of what the next one sends.
            at(Step::Judge, kernel.fragments_gone_by())
        });
        match furnished {
            Ok(fragments_from) => Ok((netns, fragments_from)),
            Err(error) => {
                parts.netns = Some(netns);
                Err(error)
            }
        }
    }

    fn furnish(
        &self,
        spec: &WarmSpec,
        alias: String,
        parts: &mut Parts,
        netns: &mut Netns,
    ) -> Result<(), StepError> {
        let kernel = &**self.kernel;
        let block = spec.block;
        at(Step::Tap, kernel.create_tap(netns, &tap(spec)))?;
        at(Step::Veth, kernel.create_veth(netns, &veth(spec, self.scope)))?;
        parts.veth = true;

        let refusals = slot_table::render();
        at(Step::Refusals, kernel.apply(Place::Inside(netns), &refusals))?;
        let join = self.join(block);
        let [from, to] = join.programs();
        for (index, program) in [(block.tap_ifindex(), from), (block.peer_ifindex(), to)] {
            let hook = Change::Ingress(index);
            at(Step::Attach, kernel.change(Place::Inside(netns), &hook))?;
            at(Step::Attach, kernel.attach(netns, index, program))?;
        }
        for change in shapes(spec) {
            at(Step::Shape, kernel.change(Place::Inside(netns), &change))?;
        }
        at(Step::Inside, kernel.change_all(Place::Inside(netns), &inside(spec)))?;
        at(Step::Outside, kernel.change_all(Place::Host, &join.outside(block, alias)))?;
        kernel.seal(netns);
        Ok(())
    }
}

/// Every netlink request that making a slot sends, encoded; how many bytes that is.
pub(crate) fn encoded(spec: &WarmSpec, scope: Scope) -> usize {
    let index = spec.block.tap_ifindex();
    let hooks = [spec.block.tap_ifindex(), spec.block.peer_ifindex()];
    let batches = [host_table::admit(&scope.table(), spec.block, &spec.limits), slot_table::render()];
    let changes = hooks.map(Change::Ingress).into_iter().chain(shapes(spec)).chain(inside(spec));
    let changes = changes.chain(Routed.outside(spec.block, scope.alias("agents-1")));
    let links = [route::veth(&veth(spec, scope), 3), route::classifier(index, 3, "from_guest")];
    let messages = batches.iter().flat_map(nft::messages).chain(changes.map(|change| change.message()));
    messages.chain(links).map(|message| message.finish(1).len()).sum()
}

pub(super) fn tap(spec: &WarmSpec) -> TapSpec {
    TapSpec { name: TAP, index: spec.block.tap_ifindex(), mac: spec.block.host_mac(), owner: spec.tap_owner }
}

fn veth(spec: &WarmSpec, scope: Scope) -> Veth {
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
pub(super) fn shapes(spec: &WarmSpec) -> impl Iterator<Item = Change> {
    let Limits { mbit_up, mbit_down, .. } = spec.limits;
    let mtu = spec.mtu;
    let on = move |index, mbit: Option<u32>| mbit.map(|mbit| Change::Shape(index, Shape::new(mbit, mtu)));
    [on(spec.block.tap_ifindex(), mbit_down), on(spec.block.peer_ifindex(), mbit_up)].into_iter().flatten()
}

/// The interfaces that [`shapes`] leaves alone.
pub(super) fn unshaped(spec: &WarmSpec) -> impl Iterator<Item = u32> {
    let Limits { mbit_up, mbit_down, .. } = spec.limits;
    let off = |index, mbit: Option<u32>| mbit.is_none().then_some(index);
    [off(spec.block.tap_ifindex(), mbit_down), off(spec.block.peer_ifindex(), mbit_up)].into_iter().flatten()
}

/// Inside: nothing is routed (a new namespace inherits the host's `ip_forward`), no IPv6 address,
/// and a gateway that knows its guest.
fn inside(spec: &WarmSpec) -> [Change; 7] {
    let block = spec.block;
    let closed = LinkSettings { forwarding: Some(false), no_ipv6_address: true, ..LinkSettings::default() };
    let new = LinkSettings { mac: Some(block.host_mac()), mtu: Some(spec.mtu), ..closed.clone() };
    let (tap, peer) = (block.tap_ifindex(), block.peer_ifindex());
    let gateway = Ipv4Net::new_assert(block.gateway(), block.net().prefix_len());
    [
        Change::Settings(tap, new),
        Change::Settings(peer, closed),
        Change::Address(tap, gateway),
        Change::Neighbour(tap, block.guest(), block.guest_mac()),
        Change::Up(slot_table::LOOPBACK),
        Change::Up(peer),
        Change::Up(tap),
    ]
}
