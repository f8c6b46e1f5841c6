//! Taking a slot back for the next tenant of its block, instead of taking it away.
//!
//! Owns: what has to be found in it, and what is put back, before it counts as nobody's. Refuses: to
//! guess: where anything differs from what was made, the slot goes.
//!
//! Its VMM ran in the namespace without a capability: it could open sockets there, and do to the tap
//! whatever a descriptor of it allows. Everything else in there is root's. So it is proven that no
//! socket and no fragment is left, that no packet of the last tenant's flows is still on its way in
//! there, and that the interfaces are those that were made; the tap is put back to what it was
//! ([`Kernel::retake`](crate::kernel::Kernel::retake)), and the host's rows are made anew, with what
//! they have counted.

use std::io;

use super::warm::tap;
use super::{Builder, Parts, Slot, WarmSlot, WarmSpec, at};
use crate::error::{Step, StepError};
use crate::host_table;
use crate::kernel::{Interior, KernelError, Place};
use crate::netlink::route::{Change, Link, LinkSettings, Neighbour};
use crate::nft::Batch;
use crate::slot_table::{LOOPBACK, PEER, TAP};

/// A slot that cannot be used again: what there is of it, and why.
pub(crate) struct Unclean {
    pub(crate) parts: Parts,
    pub(crate) why: StepError,
}

impl Builder<'_> {
    /// Makes a slot nobody's again, or gives back what is to be taken away.
    pub(crate) fn recycle(&self, slot: Slot, alias: String) -> Result<WarmSlot, Box<Unclean>> {
        let cleaned = self.clean(&slot, alias);
        let mut parts = slot.into_parts();
        let (spec, fragments_from) = match cleaned {
            Ok(cleaned) => cleaned,
            Err(why) => return Err(Box::new(Unclean { parts, why })),
        };
        parts.judged = false;
        parts.flows = false;
        if let Some(policy) = parts.policy.take()
            && let Err(why) = at(Step::Policy, self.lock().release(&**self.kernel, policy))
        {
            return Err(Box::new(Unclean { parts, why }));
        }
        match parts.netns.take() {
            Some(netns) => Ok(WarmSlot { spec, netns, fragments_from }),
            None => unreachable!("a slot has its namespace"),
        }
    }

    fn clean(&self, slot: &Slot, alias: String) -> Result<(WarmSpec, u64), StepError> {
        let kernel = &**self.kernel;
        let block = slot.block;
        // Nothing passes from here on.
        at(Step::Judge, kernel.remove_slot(block.id()))?;
        let spec = slot.made_as.ok_or_else(|| unfit("an earlier run of the daemon made it"))?;
        if spec.limits.mbit_up.is_some() || spec.limits.mbit_down.is_some() {
            return Err(unfit("packets may wait in the queue of its rate"));
        }
        // Before it is waited for what is on its way: an answer that finds no flow goes no further.
        at(Step::Flows, kernel.forget_flows(&[block.guest()]).and_then(|()| self.forget_count(block)))?;
        let found = at(Step::Tap, kernel.retake(&slot.netns, &tap(&spec)))?;
        as_made(&spec, &found)?;
        let Batch(mut anew) = host_table::expel(self.table, &[block]);
        anew.extend(host_table::admit(self.table, block, &spec.limits).0);
        at(Step::Admit, kernel.apply(Place::Host, &Batch(anew)))?;
        let nobody = LinkSettings { alias: Some(alias), ..LinkSettings::default() };
        at(Step::Outside, kernel.change(Place::Host, &Change::Settings(block.host_ifindex(), nobody)))?;
        let fragments_from = at(Step::Judge, kernel.fragments_gone_by())?;
        Ok((spec, fragments_from))
    }
}

/// Whether a namespace is as `warm` made it.
fn as_made(spec: &WarmSpec, found: &Interior) -> Result<(), StepError> {
    let block = spec.block;
    let made = |link: &Link| match link.index {
        LOOPBACK => link.up,
        index => {
            let name = if index == block.tap_ifindex() { TAP } else { PEER };
            let known = index == block.tap_ifindex() || index == block.peer_ifindex();
            known && link.name == name && link.up && !link.forwarding && link.no_ipv6_address
        }
    };
    if found.links.len() != 3 || !found.links.iter().all(made) {
        return Err(unfit("its interfaces are not those that were made"));
    }
    let mut addresses = found.addresses.iter().filter(|address| address.index != LOOPBACK);
    let gateway = addresses.next().filter(|address| {
        address.index == block.tap_ifindex()
            && address.net.addr() == block.gateway()
            && address.net.prefix_len() == block.net().prefix_len()
    });
    if gateway.is_none() || addresses.next().is_some() {
        return Err(unfit("its addresses are not those that were made"));
    }
    let guest = Neighbour { index: block.tap_ifindex(), ip: block.guest(), mac: block.guest_mac() };
    if found.neighbours != [guest] {
        return Err(unfit("its neighbours are not those that were made"));
    }
    Ok(())
}

/// Something about the slot itself.
fn unfit(why: &'static str) -> StepError {
    let source = KernelError::new(why, io::Error::from_raw_os_error(libc::EINVAL));
    StepError { step: Step::Inside, source }
}
