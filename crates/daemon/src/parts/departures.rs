//! Takes slots away that VMs have left, on a thread of its own: whoever deletes a VM waits for nothing
//! but to be told.
//!
//! Owns: that thread. Refuses: how many go at a time (the engine).

use super::network::Network;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

/// Sees slots off until the network is closed and none is left.
///
/// # Errors
/// When there can be no thread.
pub(crate) fn keep(network: Arc<Network>) -> io::Result<()> {
    let see_off = move || while survives(|| network.see_off()) {};
    thread::Builder::new().name("departures".to_owned()).spawn(see_off).map(drop)
}

/// What `work` says. A defect in it costs the slots that it was at, whose removers are told, and not
/// those that come after them.
fn survives(work: impl FnOnce() -> bool) -> bool {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!("a defect: taking slots away panicked; the next start removes what is left");
        true
    })
}

#[cfg(test)]
mod tests {
    use super::survives;

    #[test]
    fn a_defect_does_not_end_the_thread() {
        assert!(survives(|| true) && !survives(|| false));
        assert!(survives(|| panic!("a defect")));
    }
}
