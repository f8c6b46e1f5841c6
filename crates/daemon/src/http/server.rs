//! The API's unix socket and the connections on it.
//!
//! Owns: the socket's file, how many connections there are, and their orderly end. Refuses: TCP
//! ([`super::tcp`]); who may use this socket is decided by the file's mode.

use crate::access::Peer;
use crate::group_file;
use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use std::fs::Permissions;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{UnixListener, UnixSocket, UnixStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Connections at a time: two for every stream that a few VMs may have.
const MAX_CONNECTIONS: usize = 4096;
/// A client sends the head of its request within this time.
pub(super) const HEADER_PATIENCE: Duration = Duration::from_secs(30);
/// Connections that are idle or in the middle of an answer get this long at the end.
pub(super) const CLOSE_PATIENCE: Duration = Duration::from_secs(5);
/// When descriptors are short, some may be free again after this time.
pub(super) const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Who may use the API without being root.
const GROUP: &str = "enisle";
/// Read and write for owner and group.
const MODE: u32 = 0o660;

/// The API's socket cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListenError {
    /// Somebody answers there.
    #[error("another daemon answers on {}; stop it, or give this one another `api`", .0.display())]
    InUse(PathBuf),
    /// Something that is no socket is in the way.
    #[error("{} exists and is no socket; move it away, or choose another `api`", .0.display())]
    NotASocket(PathBuf),
    /// The kernel refuses.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which path.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ListenError {
    let path = path.to_owned();
    move |source| ListenError::Io { action, path, source }
}

/// The bound socket. Dropping it removes the file.
#[derive(Debug)]
pub(crate) struct Listener {
    inner: UnixListener,
    path: PathBuf,
}

impl Listener {
    /// Binds the socket: its directory is made where it is missing, and a file that a daemon left
    /// which was killed is removed. Must be called in a tokio runtime.
    pub(crate) fn bind(path: &Path) -> Result<Self, ListenError> {
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(at("make", dir))?;
        }
        remove_stale(path)?;
        let hidden = path.with_extension(format!("{}", std::process::id()));
        remove(&hidden).map_err(at("remove", &hidden))?;
        let listening = || {
            let inner = closed(&hidden, path)?.listen(BACKLOG).map_err(at("listen on", path))?;
            std::fs::rename(&hidden, path).map_err(at("bind", path))?;
            Ok(inner)
        };
        let inner = listening().inspect_err(|_| {
            // The error is what counts.
            let _ = remove(&hidden);
        })?;
        Ok(Self { inner, path: path.to_owned() })
    }
}

/// A socket bound to `hidden` for `path`, with its mode and group, to which nobody can connect yet. Until it has them the
/// file has what the umask leaves, and who connected then would be in for good.
fn closed(hidden: &Path, path: &Path) -> Result<UnixSocket, ListenError> {
    let socket = UnixSocket::new_stream().map_err(at("open a socket for", path))?;
    socket.bind(hidden).map_err(at("bind", path))?;
    std::fs::set_permissions(hidden, Permissions::from_mode(MODE)).map_err(at("set the mode of", path))?;
    if let Some(gid) = group_file::gid(GROUP) {
        chown(hidden, None, Some(gid)).map_err(at("set the group of", path))?;
    }
    Ok(socket)
}

impl Drop for Listener {
    fn drop(&mut self) {
        // It is gone already when somebody cleaned up.
        let _ = remove(&self.path);
    }
}

fn remove(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Makes room: a socket nobody answers on was left behind.
fn remove_stale(path: &Path) -> Result<(), ListenError> {
    let found = match std::fs::symlink_metadata(path) {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(at("look at", path)(error)),
    };
    if !found.file_type().is_socket() {
        return Err(ListenError::NotASocket(path.to_owned()));
    }
    match std::os::unix::net::UnixStream::connect(path) {
        Ok(_) => Err(ListenError::InUse(path.to_owned())),
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            remove(path).map_err(at("remove", path))
        }
        Err(error) => Err(at("connect to", path)(error)),
    }
}

/// Serves connections until `stop`, then gives those there are a bounded time to end.
pub(crate) async fn serve(listener: Listener, router: Router, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let connections = TaskTracker::new();
    let abort = CancellationToken::new();
    loop {
        let (stream, place) = tokio::select! {
            () = stop.cancelled() => break,
            accepted = accept(&listener.inner, &places) => match accepted {
                Ok(accepted) => accepted,
                Err(error) => {
                    tracing::warn!("cannot accept a connection to the API: {error}");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            },
        };
        let service = Identified { peer: peer_of(&stream), router: router.clone() };
        let served = serve_connection(stream, service, stop.clone());
        let abort = abort.clone();
        connections.spawn(async move {
            let _place = place;
            abort.run_until_cancelled(served).await
        });
    }
    drop(listener);
    connections.close();
    if timeout(CLOSE_PATIENCE, connections.wait()).await.is_err() {
        abort.cancel();
        connections.wait().await;
    }
}

async fn accept(
    listener: &UnixListener,
    places: &Arc<Semaphore>,
) -> io::Result<(UnixStream, Option<OwnedSemaphorePermit>)> {
    // The semaphore is never closed.
    let place = Arc::clone(places).acquire_owned().await.ok();
    Ok((listener.accept().await?.0, place))
}

/// Who connected, as the kernel wrote it down at that moment (unix(7)).
fn peer_of(stream: &UnixStream) -> Peer {
    match stream.peer_cred() {
        Ok(cred) => Peer::Unix { uid: cred.uid(), gid: cred.gid(), pid: cred.pid() },
        // Who opened the socket may use it, whoever it is: the ids are for the log.
        Err(error) => {
            tracing::warn!("the kernel does not say who connected: {error}");
            Peer::Unix { uid: u32::MAX, gid: u32::MAX, pid: None }
        }
    }
}

/// What is known of the other end of a connection, for its requests.
pub(super) trait Mark: Clone + Send + Sync + 'static {
    /// Puts it into a request.
    fn mark(self, request: &mut Request<Incoming>);
}

impl Mark for Peer {
    fn mark(self, request: &mut Request<Incoming>) {
        request.extensions_mut().insert(self);
    }
}

/// The API for one connection: each request with what is known of the other end.
pub(super) struct Identified<P> {
    pub(super) peer: P,
    pub(super) router: Router,
}

/// Serves one connection to its end, or for a short while after `stop`.
pub(super) async fn serve_connection<P: Mark>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: Identified<P>,
    stop: CancellationToken,
) {
    let Identified { peer, router } = service;
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |mut request: Request<Incoming>| {
        peer.clone().mark(&mut request);
        router.call(request)
    });
    let mut builder = hyper::server::conn::http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEADER_PATIENCE);
    let connection = builder.serve_connection(TokioIo::new(stream), service).with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let served = tokio::select! {
        served = &mut connection => served,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = served {
        tracing::debug!("a connection to the API ended: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn nobody_gets_in_before_the_socket_has_its_mode_and_group() {
        let dir = tempfile::tempdir().unwrap();
        let (hidden, path) = (dir.path().join("api.1"), dir.path().join("api.sock"));
        let socket = closed(&hidden, &path).unwrap();
        assert_eq!(std::fs::metadata(&hidden).unwrap().permissions().mode() & 0o777, MODE);
        let refused = std::os::unix::net::UnixStream::connect(&hidden).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        let _listener = socket.listen(BACKLOG).unwrap();
        std::os::unix::net::UnixStream::connect(&hidden).unwrap();
    }
}
