//! How the host's end of a slot is joined to the host's network: the trait that modes differ by, below the daemon.
//!
//! Owns: which programs judge, what is done on the host, and what puts it right again. Refuses: everything inside the VM's
//! namespace, which is the same in every mode.

mod port;
mod routed;

pub(crate) use routed::Routed;

use crate::bridge::{self, Placed};
use crate::kernel::Program;
use crate::netlink::route::{Change, Link};
use crate::plan::Block;
use crate::surroundings::Surroundings;

/// One way of joining.
pub(crate) trait Join {
    /// The judge's programs: on the tap, and on the veth's end inside.
    fn programs(&self) -> [Program; 2];
    /// Changes on the host that make a new veth the slot's. The last ones let packets pass.
    fn outside(&self, block: Block, alias: String) -> Vec<Change>;
    /// Changes that make `link` what [`Join::outside`] made of it. None when nothing is wrong.
    fn mend(&self, block: Block, link: &Link, around: &Surroundings) -> Vec<Change>;
}

/// How a block's slot is joined.
pub(crate) fn of(placed: &[Placed], block: Block) -> &dyn Join {
    match bridge::of(placed, block) {
        Some(placed) => placed,
        None => &Routed,
    }
}
