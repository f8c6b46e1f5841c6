//! How the daemon goes down.
//!
//! Owns: the order of the way down, and that it goes on past what fails: sessions at consoles, warm
//! slots, then VMs, then the API, then the network engine, then files. Refuses: hurry before it is asked for twice.

use crate::boot::Up;
use crate::chain::Chain;
use crate::options::ExitCode;
use crate::parts::network::{Network, NetworkError};
use crate::parts::remove_dir;
use sd_notify::NotifyState;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinHandle;
use tokio::time::timeout;

/// A change of groups that has begun is over within this time.
const RELOAD_PATIENCE: Duration = Duration::from_secs(10);

/// Tells the service manager, where there is one.
pub(crate) fn notify(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!("cannot tell the service manager: {error}");
    }
}

/// Waits for a change of groups that has begun, so that none comes after. A file that cannot be read to
/// its end holds nobody up: the registry takes no groups any more.
async fn settled(reloads: JoinHandle<()>) {
    match timeout(RELOAD_PATIENCE, reloads).await {
        Ok(Ok(())) => {}
        Ok(Err(_)) => tracing::error!("a defect: the task that reads the file panicked"),
        Err(_) => tracing::warn!("the file is still being read; going down all the same"),
    }
}

/// Waits until the daemon is asked to stop, and ends this process, leaving its VMs to the next one.
///
/// The same as a crash, but for the API's socket: the next start has to cope with that anyway, and
/// what is being made or removed at this moment is finished or undone there.
pub(crate) async fn wait_and_leave(mut up: Up) -> ! {
    up.wishes.stop.cancelled().await;
    notify(&[NotifyState::Stopping]);
    close_ssh(&mut up).await;
    settled(up.reloads).await;
    up.registry.events().close();
    up.close_api.cancel();
    if up.api.await.is_err() {
        tracing::error!("a defect: the API's task panicked");
    }
    let running = up.registry.list().len();
    tracing::info!(running, "stopped; the microVMs run on for the next start to adopt");
    // Dropping a handle would kill its VM.
    std::process::exit(ExitCode::Stopped as i32)
}

/// Waits until the daemon is asked to stop, and stops it. Everything it made is gone afterwards,
/// or the exit code says that it is not.
pub(crate) async fn wait_and_stop(mut up: Up) -> ExitCode {
    up.wishes.stop.cancelled().await;
    notify(&[NotifyState::Stopping]);
    close_ssh(&mut up).await;
    settled(up.reloads).await;
    // Blocks become free now, and nobody comes after these VMs.
    let mut clean = on_network(&up.network, "take away slots made ahead of time", Network::cool_down).await;
    // The API answers meanwhile, so that `vm list` shows what is waited for; it makes no VM.
    for stuck in up.registry.stop_all(&up.wishes.hurry).await {
        tracing::error!("{}", Chain(&stuck));
        clean = false;
    }
    up.registry.events().close();
    up.close_api.cancel();
    if up.api.await.is_err() {
        tracing::error!("a defect: the API's task panicked");
        clean = false;
    }
    clean &= on_network(&up.network, "remove the network", Network::close).await;
    if clean {
        // What is stuck is kept, with its log; the next start tries again.
        for dir in [up.dirs.run(), up.dirs.vms()] {
            if let Err(error) = remove_dir(&dir) {
                tracing::error!("{}", Chain(&error));
                clean = false;
            }
        }
    }
    // What was changed while it ran ends with an orderly stop.
    if let Err(error) = up.store.forget_group_lists() {
        tracing::error!("cannot write the state: {}", Chain(&error));
        clean = false;
    }
    drop(up.store);
    if clean {
        tracing::info!("stopped; nothing is left");
        ExitCode::Stopped
    } else {
        tracing::error!("stopped; something is left, see above. The next start removes it");
        ExitCode::Failed
    }
}

/// Ends the sessions at consoles, each with a message, within a bound.
async fn close_ssh(up: &mut Up) {
    if let Some(ssh) = up.ssh.take() {
        ssh.close().await;
    }
}

/// Runs what blocks; whether it worked. Why it did not is in the log.
async fn on_network(
    network: &Arc<Network>,
    what: &'static str,
    work: impl FnOnce(&Network) -> Result<(), NetworkError> + Send + 'static,
) -> bool {
    let network = Arc::clone(network);
    match tokio::task::spawn_blocking(move || work(&network)).await {
        Ok(Ok(())) => return true,
        Ok(Err(error)) => tracing::error!("cannot {what}: {}", Chain(&error)),
        Err(_) => tracing::error!("a defect: to {what} panicked"),
    }
    false
}
