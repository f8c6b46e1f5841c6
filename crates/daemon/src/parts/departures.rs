//! Takes slots away that VMs have left, on a thread of its own: whoever deletes a VM waits for nothing
//! but to be told.
//!
//! Owns: that thread. Refuses: how many go at a time (the engine).

use super::network::Network;
use std::io;
use std::sync::Arc;
use std::thread;

/// Sees slots off until the network is closed and none is left.
///
/// # Errors
/// When there can be no thread.
pub(crate) fn keep(network: Arc<Network>) -> io::Result<()> {
    let see_off = move || while network.see_off() {};
    thread::Builder::new().name("departures".to_owned()).spawn(see_off).map(drop)
}
