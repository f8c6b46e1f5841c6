//! SIGTERM and Ctrl-C. Owns what the first and the second mean; refuses everything else a signal
//! could be for.

use std::io;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

/// What the operator wants.
pub(crate) struct Wishes {
    /// Set by the first signal: stop in an orderly way.
    pub(crate) stop: CancellationToken,
    /// Set by the second: kill what still runs. Everything is removed all the same.
    pub(crate) hurry: CancellationToken,
    _task: AbortOnDropHandle<()>,
}

/// Begins to listen; from here on signals do not end the process.
pub(crate) fn listen() -> io::Result<Wishes> {
    let signals = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let (stop, hurry) = (CancellationToken::new(), CancellationToken::new());
    let task = AbortOnDropHandle::new(tokio::spawn(take(signals, stop.clone(), hurry.clone())));
    Ok(Wishes { stop, hurry, _task: task })
}

async fn take([mut term, mut int]: [Signal; 2], stop: CancellationToken, hurry: CancellationToken) {
    loop {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
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
