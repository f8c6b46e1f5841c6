//! SIGTERM, Ctrl-C and SIGHUP. Owns what the first and the second of those that stop mean; refuses
//! everything else a signal could be for.

use std::io;
use std::sync::Arc;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// What the operator wants.
pub(crate) struct Wishes {
    /// Set by the first signal: stop in an orderly way.
    pub(crate) stop: CancellationToken,
    /// Set by the second: kill what still runs. Everything is removed all the same.
    pub(crate) hurry: CancellationToken,
    /// Told by SIGHUP: read the file anew. However many came, and whenever, it is told once more.
    pub(crate) reload: Arc<Notify>,
    _task: AbortOnDropHandle<()>,
}

/// Begins to listen; from here on signals do not end the process.
pub(crate) fn listen() -> io::Result<Wishes> {
    let signals =
        [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?, signal(SignalKind::hangup())?];
    let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
    let reload = Arc::new(Notify::new());
    let task = take(signals, stop.clone(), hurry.clone(), Arc::clone(&reload));
    Ok(Wishes { stop, hurry, reload, _task: AbortOnDropHandle::new(tokio::spawn(task)) })
}

async fn take(
    [mut term, mut int, mut hup]: [Signal; 3],
    stop: CancellationToken,
    hurry: CancellationToken,
    reload: Arc<Notify>,
) {
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
            _ = hup.recv() => {
                reload.notify_one();
                continue;
            }
        }
        if stop.is_cancelled() {
            tracing::warn!("asked a second time: killing what still runs");
            hurry.cancel();
        } else {
            tracing::info!("stopping; ask again to hurry");
            stop.cancel();
        }
    }
}
