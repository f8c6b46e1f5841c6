//! The boot connection: who the guest is to be, and what it has to say about it.
//!
//! Owns: the listening socket, one connection at a time (a new one takes the old one's place),
//! the handshake, first-boot script, the request to shut down. Refuses: to be kept busy by a guest:
//! connections are taken at a bounded rate, each may say a bounded number of things, and what
//! breaks the protocol is closed and counted.

use super::printable;
use super::wire::{self, FrameReader, WireError};
use crate::chain::Chain;
use crate::vm::plan::VmPlan;
use enisle_guest_proto::{BootCommand, BootConfig, BootEvent, FrameError, Hello, VERSION};
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until};
use tokio_util::task::AbortOnDropHandle;

/// The agent says hello right after it connected.
const HELLO_PATIENCE: Duration = Duration::from_secs(10);
/// Shortest time between two connections that are taken.
const ACCEPT_INTERVAL: Duration = Duration::from_millis(100);
/// Most events of one connection: an honest agent has three.
const MAX_EVENTS: u32 = 64;
/// Bytes of script in one frame: JSON makes at most six of one.
const SCRIPT_PART: usize = 2048;
/// Complaints about one guest are logged at most this often.
const COMPLAINT_INTERVAL: Duration = Duration::from_secs(10);

/// What a guest told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BootNews {
    /// The agent said hello and was told who it is.
    Greeted {
        /// Its version, for people.
        agent: String,
    },
    /// Sessions are served.
    Ready,
    /// The agent speaks another version of the protocol.
    OtherVersion {
        /// Which.
        agent: u16,
    },
    /// A step of the set-up failed.
    SetupFailed {
        /// One line for people.
        reason: String,
    },
    /// The first-boot script ended.
    UserdataDone {
        /// Its exit status.
        code: i32,
    },
}

/// The boot connection of one VM. Dropping it closes socket and connection.
pub(crate) struct BootChannel {
    shutdown: mpsc::Sender<oneshot::Sender<bool>>,
    _task: AbortOnDropHandle<()>,
}

impl BootChannel {
    /// Serves `listener` until the value is dropped.
    pub(crate) fn serve(listener: UnixListener, plan: Arc<VmPlan>, news: mpsc::Sender<BootNews>) -> Self {
        let (shutdown, requests) = mpsc::channel(1);
        let guest = Arc::new(Guest { plan, news, script_sent: AtomicBool::new(false) });
        let task = AbortOnDropHandle::new(tokio::spawn(accept(listener, guest, requests)));
        Self { shutdown, _task: task }
    }

    /// A handle that can ask the guest to shut down.
    pub(crate) fn stopper(&self) -> Stopper {
        Stopper(self.shutdown.clone())
    }
}

/// Asks a guest to shut down.
#[derive(Clone)]
pub(crate) struct Stopper(mpsc::Sender<oneshot::Sender<bool>>);

impl Stopper {
    /// True when the agent was told. Bounded by a write's patience.
    pub(crate) async fn ask(&self) -> bool {
        let (done, told) = oneshot::channel();
        self.0.send(done).await.is_ok() && told.await.unwrap_or(false)
    }
}

struct Guest {
    plan: Arc<VmPlan>,
    news: mpsc::Sender<BootNews>,
    /// The whole first-boot script was written once.
    script_sent: AtomicBool,
}

type Requests = mpsc::Receiver<oneshot::Sender<bool>>;
type Served = Pin<Box<dyn Future<Output = WireError> + Send>>;

/// The connection of the moment.
struct Current {
    served: Served,
    shutdown: mpsc::Sender<oneshot::Sender<bool>>,
}

async fn accept(listener: UnixListener, guest: Arc<Guest>, mut requests: Requests) {
    let mut current: Option<Current> = None;
    let mut complaints = Complaints::default();
    let mut next_accept = Instant::now();
    loop {
        tokio::select! {
            accepted = accept_after(&listener, next_accept) => {
                next_accept = Instant::now() + ACCEPT_INTERVAL;
                match accepted {
                    Ok(stream) => {
                        let (shutdown, requests) = mpsc::channel(1);
                        let served = Box::pin(serve(stream, Arc::clone(&guest), requests));
                        current = Some(Current { served, shutdown });
                    }
                    Err(error) => complaints.count(guest.plan.name(), &WireError::Io(error)),
                }
            }
            error = ended(&mut current) => {
                current = None;
                if !matches!(error, WireError::Closed) {
                    complaints.count(guest.plan.name(), &error);
                }
            }
            Some(request) = requests.recv() => {
                // Without a connection, and when one is busy with an earlier request, the sender
                // is dropped, which is the answer no.
                if let Some(current) = &current {
                    let _ = current.shutdown.try_send(request);
                }
            }
        }
    }
}

async fn accept_after(listener: &UnixListener, earliest: Instant) -> std::io::Result<UnixStream> {
    sleep_until(earliest).await;
    listener.accept().await.map(|(stream, _)| stream)
}

async fn ended(current: &mut Option<Current>) -> WireError {
    match current {
        Some(current) => (&mut current.served).await,
        None => std::future::pending().await,
    }
}

/// Serves one connection until it is of no more use.
async fn serve(stream: UnixStream, guest: Arc<Guest>, requests: Requests) -> WireError {
    let (read, write) = stream.into_split();
    let mut connection = Connection { reader: FrameReader::new(read), write, guest, requests };
    match connection.run().await {
        Ok(never) => match never {},
        Err(error) => error,
    }
}

struct Connection {
    reader: FrameReader<OwnedReadHalf>,
    write: OwnedWriteHalf,
    guest: Arc<Guest>,
    requests: Requests,
}

impl Connection {
    async fn run(&mut self) -> Result<std::convert::Infallible, WireError> {
        let hello: Hello = self.reader.message(HELLO_PATIENCE, "say hello").await?;
        match wire::send(&mut self.write, &boot_config(&self.guest.plan)).await {
            Err(WireError::Frame(FrameError::TooLong(bytes))) => {
                let reason =
                    format!("its `ssh_keys` are too many: {bytes} bytes of identity, 16 KiB are possible");
                self.tell(BootNews::SetupFailed { reason }).await;
                return Err(WireError::Frame(FrameError::TooLong(bytes)));
            }
            sent => sent?,
        }
        if hello.version != VERSION {
            self.tell(BootNews::OtherVersion { agent: hello.version }).await;
            return Err(WireError::Protocol("another version"));
        }
        self.tell(BootNews::Greeted { agent: printable(&hello.agent) }).await;
        for _ in 0..MAX_EVENTS {
            let event = self.next_event().await?;
            self.take(event).await?;
        }
        Err(WireError::Protocol("too many events"))
    }

    /// The next event; requests to shut down are served meanwhile.
    async fn next_event(&mut self) -> Result<BootEvent, WireError> {
        loop {
            tokio::select! {
                frame = self.reader.next() => return Ok(frame?.control()?),
                Some(done) = self.requests.recv() => {
                    let sent = wire::send(&mut self.write, &BootCommand::Shutdown {}).await;
                    // Who asked may have given up waiting.
                    let _ = done.send(sent.is_ok());
                    sent?;
                }
            }
        }
    }

    async fn take(&mut self, event: BootEvent) -> Result<(), WireError> {
        match event {
            BootEvent::Ready {} => {
                self.tell(BootNews::Ready).await;
                self.send_script().await?;
            }
            BootEvent::Failed { step, error } => {
                let reason = format!("{}: {}", printable(&step), printable(&error));
                self.tell(BootNews::SetupFailed { reason }).await;
            }
            BootEvent::UserdataDone { code } => self.tell(BootNews::UserdataDone { code }).await,
        }
        Ok(())
    }

    async fn send_script(&mut self) -> Result<(), WireError> {
        let guest = Arc::clone(&self.guest);
        let Some(script) = &guest.plan.userdata else { return Ok(()) };
        if guest.script_sent.load(Ordering::Relaxed) {
            return Ok(());
        }
        let mut rest = script.as_str();
        loop {
            let (part, after) = rest.split_at(rest.floor_char_boundary(SCRIPT_PART));
            let last = after.is_empty();
            wire::send(&mut self.write, &BootCommand::Userdata { part: part.to_owned(), last }).await?;
            if last {
                break;
            }
            rest = after;
        }
        guest.script_sent.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn tell(&self, news: BootNews) {
        // The owner drops its end before it drops this task.
        let _ = self.guest.news.send(news).await;
    }
}

fn boot_config(plan: &VmPlan) -> BootConfig {
    BootConfig {
        version: VERSION,
        hostname: plan.name().to_owned(),
        net: plan.guest_net(),
        // 64 bits of nanoseconds last until the year 2554; a clock before 1970 is no clock.
        unix_time_ns: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .ok()
            .and_then(|time| u64::try_from(time.as_nanos()).ok())
            .unwrap_or(0),
        ssh_keys: plan.group.config.ssh_keys.iter().map(|key| key.as_str().to_owned()).collect(),
    }
}

/// Counts what a guest did wrong, and says so now and then.
#[derive(Default)]
struct Complaints {
    unsaid: u64,
    silent_until: Option<Instant>,
}

impl Complaints {
    fn count(&mut self, vm: &str, error: &WireError) {
        self.unsaid += 1;
        let now = Instant::now();
        if self.silent_until.is_some_and(|until| now < until) {
            return;
        }
        tracing::warn!(vm, count = self.unsaid, "closed the boot connection: {}", Chain(error));
        self.unsaid = 0;
        self.silent_until = Some(now + COMPLAINT_INTERVAL);
    }
}

#[cfg(test)]
mod tests;
