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
    const DEFECT: &str = "taking slots away panicked; the next start removes what is left";
    let see_off = move || while survives(DEFECT, || network.see_off()) {};
    thread::Builder::new().name("departures".to_owned()).spawn(see_off).map(drop)
}

/// What `work` says. A defect in it costs what it was at (of slots: their removers are told), and not
/// what comes after it.
pub(super) fn survives(defect: &str, work: impl FnOnce() -> bool) -> bool {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        tracing::error!("a defect: {defect}");
        true
    })
}

#[cfg(test)]
mod tests {
    use super::survives;

    #[test]
    fn a_defect_does_not_end_the_thread() {
        assert!(survives("of a test", || true) && !survives("of a test", || false));
        assert!(survives("of a test", || panic!("asked to")));
    }
}
