//! What of a scope is in the calling thread's namespace, without touching it.

use super::bridges::own_bridges;
use super::{look, own_links};
use crate::error::NetError;
use crate::host_table;
use crate::kernel::{Kernel as _, Linux};
use crate::scope::Scope;

/// What a daemon of a scope has left in a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetLeftovers {
    /// Names of interfaces.
    pub links: Vec<String>,
    /// Its table, as `nft list table` wants it.
    pub table: Option<String>,
}

/// Lists what [`crate::reclaim`] would remove from the calling thread's namespace.
///
/// # Errors
/// [`NetError::Open`] and [`NetError::Host`].
pub fn leftovers(scope: Scope) -> Result<NetLeftovers, NetError> {
    let kernel = Linux::open().map_err(NetError::Open)?;
    let around = look(&kernel)?;
    let links = own_links(&around, scope).chain(own_bridges(&around, scope));
    let links = links.map(|link| link.name.clone()).collect();
    let table = scope.table();
    let all = kernel.elements(&table, host_table::ALL_LINKS);
    let there = !all.map_err(|e| NetError::Host("read the host's table", e))?.is_empty();
    Ok(NetLeftovers { links, table: there.then(|| table.to_string()) })
}
