//! The port: connections, their number, their deadlines and their end.
//!
//! Owns: who may be connected at the same time (strangers fewer than those who have logged in), how
//! long a stranger has, and how slow a wrong answer is. Refuses: who is a stranger, which is
//! `client`'s.

use super::client::Client;
use super::host_key::{self, HostKeyError};
use super::{Desk, Keys, keys};
use crate::vm::registry::Registry;
use russh::keys::{Algorithm, EcdsaCurve, HashAlg, PrivateKey};
use russh::server::{Config, Handle, RunningSession, run_stream};
use russh::{Disconnect, MethodKind, MethodSet, Preferred, SshId};
use std::borrow::Cow;
use std::collections::BTreeMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::JoinHandle;
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections at a time.
const MAX_CONNECTIONS: usize = 128;
/// Connections at a time that have not logged in, and of one address. Whoever comes beyond that is
/// sent away at once.
const MAX_STRANGERS: usize = 16;
const MAX_STRANGERS_OF_ONE: usize = 6;
/// Somebody logs in within this time, all attempts together.
const LOGIN_PATIENCE: Duration = Duration::from_secs(30);
/// Keys a client may try: agents that hold many offer one after the other.
const MAX_ATTEMPTS: usize = 8;
/// How long a refusal takes.
const REFUSAL_TIME: Duration = Duration::from_secs(1);
/// After this much silence a client is asked whether it is there, and this often in vain.
const KEEPALIVE: Duration = Duration::from_secs(30);
const KEEPALIVE_TRIES: usize = 3;
/// A connection on which nothing at all moves this long is dead: answers to the above are movement.
const STALLED: Duration = Duration::from_secs(120);
/// At the end sessions have this long to say good-bye, and their clients to go.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
const GOING_PATIENCE: Duration = Duration::from_secs(1);
/// When descriptors are short, some may be free again after this time.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// What a client may send before it has to wait for us to take it.
const WINDOW: u32 = 64 << 10;
/// Messages of a channel that its session has not taken.
const CHANNEL_BUFFER: usize = 16;

/// Consoles cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SshError {
    /// The port.
    #[error("cannot listen on {at} for SSH; free it, or change `bind` or `port` of `ssh`")]
    Bind {
        /// The address.
        at: SocketAddr,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The host key.
    #[error(transparent)]
    HostKey(#[from] HostKeyError),
}

/// The bound port and the key of the host.
pub(crate) struct Listener {
    socket: TcpListener,
    key: PrivateKey,
}

impl Listener {
    /// Binds the port; then the host key is read, or made on the first start.
    pub(crate) async fn bind(at: SocketAddr, state_dir: &Path) -> Result<Self, SshError> {
        let socket = TcpListener::bind(at).await.map_err(|source| SshError::Bind { at, source })?;
        let key = host_key::load_or_make(state_dir)?;
        Ok(Self { socket, key })
    }

    /// Where it listens.
    #[cfg(test)]
    pub(super) fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }
}

/// Consoles that are being served.
pub(crate) struct Server {
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Server {
    /// Ends all sessions with a message; returns when that is over, within a bound.
    pub(crate) async fn close(self) {
        self.stop.cancel();
        if self.task.await.is_err() {
            tracing::error!("a defect: the SSH server's task panicked");
        }
    }
}

/// Begins to serve.
pub(crate) fn serve(listener: Listener, keys: Arc<Keys>, registry: Arc<Registry>) -> Server {
    let fingerprint = keys::fingerprint(listener.key.public_key());
    if let Ok(at) = listener.socket.local_addr() {
        tracing::info!(%at, host_key = fingerprint, "serving consoles over SSH");
    }
    let stop = CancellationToken::new();
    let desk = Desk { registry, keys, stop: stop.clone() };
    let config = Arc::new(config(listener.key));
    let task = tokio::spawn(accept_all(listener.socket, config, desk));
    Server { stop, task }
}

fn config(key: PrivateKey) -> Config {
    let ecdsa = |curve| Algorithm::Ecdsa { curve };
    let rsa = |hash| Algorithm::Rsa { hash: Some(hash) };
    // Those by which users may sign; RSA without SHA-1.
    let algorithms = vec![
        Algorithm::Ed25519,
        ecdsa(EcdsaCurve::NistP256),
        ecdsa(EcdsaCurve::NistP384),
        ecdsa(EcdsaCurve::NistP521),
        rsa(HashAlg::Sha512),
        rsa(HashAlg::Sha256),
    ];
    Config {
        server_id: SshId::Standard(Cow::Borrowed("SSH-2.0-Enisle")),
        methods: MethodSet::from(&[MethodKind::PublicKey][..]),
        auth_rejection_time: REFUSAL_TIME,
        // Clients ask for the methods with an attempt that nobody means.
        auth_rejection_time_initial: Some(Duration::ZERO),
        keys: vec![key],
        window_size: WINDOW,
        channel_buffer_size: CHANNEL_BUFFER,
        preferred: Preferred { key: Cow::Owned(algorithms), ..Preferred::DEFAULT },
        max_auth_attempts: MAX_ATTEMPTS,
        inactivity_timeout: Some(STALLED),
        keepalive_interval: Some(KEEPALIVE),
        keepalive_max: KEEPALIVE_TRIES,
        nodelay: true,
        ..Config::default()
    }
}

/// A connection's place, until it has ended.
pub(super) struct ConnectionPlace {
    _permit: OwnedSemaphorePermit,
}

/// Who has not logged in yet, by address.
#[derive(Clone, Default)]
struct Strangers(Arc<Mutex<BTreeMap<IpAddr, usize>>>);

impl Strangers {
    /// A place for one more; `None` when there are too many, or too many of that address.
    fn place(&self, of: IpAddr) -> Option<StrangerPlace> {
        let mut all = self.lock();
        let mine = all.get(&of).copied().unwrap_or(0);
        if all.values().sum::<usize>() >= MAX_STRANGERS || mine >= MAX_STRANGERS_OF_ONE {
            return None;
        }
        all.insert(of, mine + 1);
        Some(StrangerPlace { strangers: self.clone(), of })
    }

    /// A panic elsewhere leaves counts that are whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<IpAddr, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A place among those who have not logged in.
struct StrangerPlace {
    strangers: Strangers,
    of: IpAddr,
}

impl Drop for StrangerPlace {
    fn drop(&mut self) {
        let mut all = self.strangers.lock();
        match all.get_mut(&self.of) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                all.remove(&self.of);
            }
        }
    }
}

/// Accepts until the end, then gives those there are a bounded time to end.
async fn accept_all(socket: TcpListener, config: Arc<Config>, desk: Desk) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let strangers = Strangers::default();
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = desk.stop.cancelled() => break,
            accepted = socket.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok((stream, peer)) => (stream, peer.ip().to_canonical()),
            Err(error) => {
                tracing::warn!("cannot accept an SSH connection: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let place = Arc::clone(&places).try_acquire_owned().ok();
        let (Some(permit), Some(stranger)) = (place, strangers.place(peer)) else {
            tracing::debug!(%peer, "SSH: too many connections; sent away");
            continue;
        };
        let place = ConnectionPlace { _permit: permit };
        connections.spawn(connection(stream, peer, Arc::clone(&config), desk.clone(), (place, stranger)));
    }
    drop(socket);
    connections.close();
    connections.wait().await;
}

/// One connection, to its end.
async fn connection(
    stream: TcpStream,
    peer: IpAddr,
    config: Arc<Config>,
    desk: Desk,
    (place, stranger): (ConnectionPlace, StrangerPlace),
) {
    // The library's own task holds the connection: this is the way to end it whatever it does.
    let Ok(line) = stream.as_fd().try_clone_to_owned() else {
        return;
    };
    // As `nodelay`, which the library sets only on connections that it has accepted itself.
    let _ = stream.set_nodelay(true);
    let (known, mut logged_in) = watch::channel(false);
    let sessions = TaskTracker::new();
    let stop = desk.stop.clone();
    let client = Client::new(desk, peer, known, sessions.clone(), place);
    let begun = timeout(LOGIN_PATIENCE, async {
        let session = run_stream(config, stream, client).await?;
        // The sender goes with the connection.
        let logged_in = logged_in.wait_for(|known| *known).await.is_ok();
        Ok::<_, russh::Error>((session, logged_in))
    });
    let begun = tokio::select! {
        begun = begun => begun,
        () = stop.cancelled() => return cut(&line),
    };
    drop(stranger);
    let (session, _) = match begun {
        Ok(Ok(begun @ (_, true))) => begun,
        Ok(Ok((_, false))) => return cut(&line),
        Ok(Err(error)) => {
            tracing::debug!(%peer, "SSH: a connection that came to nothing: {error}");
            return cut(&line);
        }
        Err(_) => {
            tracing::warn!(%peer, "SSH: nobody logged in within {} s", LOGIN_PATIENCE.as_secs());
            return cut(&line);
        }
    };
    let handle = session.handle();
    run(session, handle, &sessions, &stop, &line).await;
}

/// A connection that has logged in.
async fn run(
    mut session: RunningSession<Client>,
    handle: Handle,
    sessions: &TaskTracker,
    stop: &CancellationToken,
    line: &OwnedFd,
) {
    tokio::select! {
        ended = &mut session => {
            if let Err(error) = ended {
                tracing::debug!("SSH: a connection broke: {error}");
            }
            return;
        }
        () = stop.cancelled() => {}
    }
    sessions.close();
    let over = async {
        sessions.wait().await;
        // A client whose sessions have ended goes by itself; told to, it would call that an error.
        tokio::select! {
            _ = &mut session => return,
            () = sleep(GOING_PATIENCE) => {}
        }
        let words = "the daemon stops".to_owned();
        if handle.disconnect(Disconnect::ByApplication, words, String::new()).await.is_ok() {
            // What it says at its end does not matter any more.
            let _ = (&mut session).await;
        }
    };
    if timeout(CLOSE_PATIENCE, over).await.is_err() {
        cut(line);
    }
}

/// Ends a connection for whoever holds it.
fn cut(line: &OwnedFd) {
    // It has ended already when this fails.
    let _ = rustix::net::shutdown(line, rustix::net::Shutdown::Both);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn strangers_are_few_and_of_one_address_fewer() {
        let strangers = Strangers::default();
        let address = |n: u8| IpAddr::from([10, 0, 0, n]);
        let mut held: Vec<_> =
            (0..MAX_STRANGERS_OF_ONE).map(|_| strangers.place(address(1)).unwrap()).collect();
        assert!(strangers.place(address(1)).is_none(), "one address takes no more");
        held.extend(
            (0..MAX_STRANGERS - MAX_STRANGERS_OF_ONE)
                .map(|n| strangers.place(address(u8::try_from(n).unwrap() + 2)).unwrap()),
        );
        assert!(strangers.place(address(200)).is_none(), "all places are taken");
        held.pop();
        assert!(strangers.place(address(200)).is_some());
        held.clear();
        assert!(strangers.lock().is_empty());
    }
}
