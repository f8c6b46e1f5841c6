//! For `bench/benches/micro.rs` alone, and no part of the interface.
//!
//! Owns: calling what is private here. Refuses: any kernel.

use crate::limits::Limits;
use crate::plan::Block;
use crate::scope::Scope;
use crate::slot::{WarmSpec, encoded};

/// Encodes every netlink request that making a slot sends; how many bytes that is.
#[must_use]
pub fn encode_a_slot(block: Block) -> usize {
    let spec = WarmSpec { block, mtu: 1500, tap_owner: (0, 0), limits: Limits::default() };
    encoded(&spec, Scope::new(1))
}
