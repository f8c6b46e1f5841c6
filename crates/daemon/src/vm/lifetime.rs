//! When a VM goes by itself, and the streams that keep it.
//!
//! Owns: the two clocks (time to live, idleness), the count of streams that stop the second one, and the order in
//! which they start.
//! Refuses: removing anything, which is the owner task's. Nothing is polled: each wait ends with a
//! stream's beginning or end, or at the one deadline that holds.

use super::VmError;
use crate::store::{Lifetime, VmRow};
use enisle_api::Removal;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::{Instant, sleep_until, timeout};

/// Streams of one VM at a time.
pub(crate) const MAX_STREAMS: usize = 256;
/// Of these, those that the guest is starting at a time; the others wait for their turn. A guest that was asked for
/// hundreds of processes at once would share its time among all of them, and the first would be as late as the last.
const MAX_STARTING: usize = 8;
/// A turn comes within this time: a slow guest starts every stream it may have in it.
pub(crate) const TURN_PATIENCE: Duration = Duration::from_secs(120);

/// How a VM is used at the moment.
#[derive(Debug, Clone, Copy)]
struct Use {
    open: usize,
    /// When the last stream ended; at first, when the owner task began.
    last: Instant,
}

/// The streams of one VM.
#[derive(Clone)]
pub(crate) struct Streams {
    places: Arc<Semaphore>,
    /// First come, first served.
    turns: Arc<Semaphore>,
    used: watch::Sender<Use>,
}

impl Streams {
    pub(crate) fn new() -> Self {
        let used = watch::Sender::new(Use { open: 0, last: Instant::now() });
        let turns = Arc::new(Semaphore::new(MAX_STARTING));
        Self { places: Arc::new(Semaphore::new(MAX_STREAMS)), turns, used }
    }

    /// A turn to have the guest of the VM `name` start something, held until it has. Cancel-safe.
    pub(crate) async fn turn(&self, name: &str) -> Result<OwnedSemaphorePermit, VmError> {
        match timeout(TURN_PATIENCE, Arc::clone(&self.turns).acquire_owned()).await {
            Ok(Ok(turn)) => Ok(turn),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(VmError::Busy { name: name.to_owned() }),
        }
    }

    pub(crate) fn open(&self) -> usize {
        self.used.borrow().open
    }

    /// A place for one more stream of the VM `name`.
    pub(crate) fn place(&self, name: &str) -> Result<StreamPlace, VmError> {
        let permit = Arc::clone(&self.places)
            .try_acquire_owned()
            .map_err(|_| VmError::TooManyStreams { name: name.to_owned() })?;
        self.used.send_modify(|used| used.open += 1);
        Ok(StreamPlace { used: self.used.clone(), _permit: permit })
    }
}

/// A stream's place. While there is one the VM is not idle.
#[derive(Debug)]
pub(crate) struct StreamPlace {
    used: watch::Sender<Use>,
    _permit: OwnedSemaphorePermit,
}

impl Drop for StreamPlace {
    fn drop(&mut self) {
        self.used.send_modify(|used| {
            used.open -= 1;
            used.last = Instant::now();
        });
    }
}

/// The clocks of one VM.
pub(super) struct Clocks {
    /// The end of its time to live.
    expires: Option<Instant>,
    idle: Option<Duration>,
    used: watch::Receiver<Use>,
    /// Since when idleness counts: readiness. An adopted VM begins anew, its streams broke with the
    /// daemon that had them.
    ready: Option<Instant>,
}

impl Clocks {
    pub(super) fn new(row: &VmRow, streams: &Streams) -> Self {
        let Lifetime { idle_timeout_ms, .. } = row.lifetime;
        let left = expires_ms(row).map(|at| Duration::from_millis(at.saturating_sub(now_ms())));
        Self {
            // A year fits; what does not fit would never come.
            expires: left.and_then(|left| Instant::now().checked_add(left)),
            idle: idle_timeout_ms.map(Duration::from_millis),
            used: streams.used.subscribe(),
            ready: None,
        }
    }

    /// Exec works from now on.
    pub(super) fn set_ready(&mut self) {
        self.ready = Some(Instant::now());
    }

    /// It is being removed, or has failed: nobody uses it any more. A failed VM still expires.
    pub(super) fn set_unready(&mut self) {
        self.ready = None;
    }

    /// Waits until the VM's time is over, for ever where it has no bound; each clock strikes once.
    /// Cancel-safe.
    pub(super) async fn over(&mut self) -> Removal {
        loop {
            let idle_at = self.idle_at();
            let next = [self.expires, idle_at].into_iter().flatten().min();
            tokio::select! {
                // A stream that came at the last moment is seen before the deadline is believed.
                biased;
                Ok(()) = self.used.changed(), if self.idle.is_some() => {}
                () = at(next) => {
                    if self.expires == next {
                        self.expires = None;
                        return Removal::Ttl;
                    }
                    self.idle = None;
                    return Removal::Idle;
                }
            }
        }
    }

    fn idle_at(&mut self) -> Option<Instant> {
        let (idle, ready) = (self.idle?, self.ready?);
        let Use { open, last } = *self.used.borrow_and_update();
        if open > 0 { None } else { last.max(ready).checked_add(idle) }
    }
}

async fn at(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// When a VM's time to live is over, in milliseconds since the epoch.
pub(crate) fn expires_ms(row: &VmRow) -> Option<u64> {
    row.lifetime.ttl_ms.map(|ttl| row.created_ms.saturating_add(ttl))
}

/// Milliseconds since the epoch.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

/// Why it goes, for people.
pub(super) fn words(why: Removal, row: &VmRow) -> Option<String> {
    let seconds = |ms: Option<u64>| Duration::from_millis(ms.unwrap_or_default()).as_secs_f64();
    match why {
        Removal::Ttl => Some(format!("its time to live of {} s is over", seconds(row.lifetime.ttl_ms))),
        Removal::Idle => Some(format!("no stream was open for {} s", seconds(row.lifetime.idle_timeout_ms))),
        _ => None,
    }
}
