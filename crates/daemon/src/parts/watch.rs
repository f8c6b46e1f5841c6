//! Follows the host: when somebody flushes tables, adds addresses or renames an uplink, the engine
//! looks again. Owns the wait, which is an event, and a bound on how often; refuses the repair,
//! which is the engine's.

use super::network::Network;
use crate::chain::Chain;
use enisle_net::Monitor;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

/// Our own changes are told as well; many come at once when VMs start.
const PAUSE: Duration = Duration::from_millis(200);
/// After a look that failed.
const AGAIN: Duration = Duration::from_secs(5);
/// Nothing happens for this long on a quiet host; then the wait begins anew.
const QUIET: Duration = Duration::from_secs(24 * 3600);

/// Follows the host on a thread of its own until the network is closed, which is a change as well
/// and so ends the wait.
///
/// # Errors
/// When the kernel's notifications cannot be subscribed to.
pub(crate) fn follow(network: Arc<Network>) -> io::Result<()> {
    let monitor = Monitor::open()?;
    thread::Builder::new().name("follow".to_owned()).spawn(move || run(monitor, &network)).map(drop)
}

fn run(mut monitor: Monitor, network: &Network) {
    let mut failed = false;
    while !network.is_closed() {
        // What failed, or what another program kept undoing, is tried again also if nothing changes.
        let postponed = if failed { Some(AGAIN) } else { network.postponed() };
        match monitor.wait(postponed.unwrap_or(QUIET)) {
            Ok(Some(_)) => {}
            Ok(None) if postponed.is_some() => {}
            Ok(None) => continue,
            Err(error) => {
                tracing::error!("changes of the host's network are not followed any more: {error}");
                return;
            }
        }
        let done = network.refresh();
        failed = done.is_err();
        if let Err(error) = done {
            tracing::warn!("cannot follow a change of the host's network: {}", Chain(&error));
        }
        thread::sleep(PAUSE);
    }
}
