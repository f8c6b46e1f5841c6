//! The API on TCP: TLS, then tokens; or, for who insists, neither, on loopback only.
//!
//! ```text
//! accept ─▶ a stranger's place ─▶ first byte ─┬ TLS ─▶ handshake ─▶ requests ─▶ a token ─▶ a holder's place
//!                                             └ HTTP ─▶ told that this is TLS
//! ```
//!
//! Owns: listening, the handshake and its bounds. A stranger who brings no token in time is cut, so that his
//! place is another's. Refuses: certificates ([`super::tls`]), tokens ([`super::access`]).

use super::connection::{Connection, Places};
use super::server::{ACCEPT_PAUSE, CLOSE_PATIENCE, Identified, Mark, serve_connection};
use super::tls::Certificates;
use crate::access::Peer;
use axum::Router;
use axum::extract::Request;
use enisle_api::{Code, Problem};
use hyper::body::Incoming;
use rustix::net::sockopt;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// From the first packet to the end of the handshake.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);
/// From there to a good token.
const STRANGER_PATIENCE: Duration = Duration::from_secs(30);
/// After this much silence a peer is asked whether it is still there.
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// Without an answer again after this,
const KEEP_ALIVE_AGAIN: Duration = Duration::from_secs(15);
/// so often; then the connection is broken.
const KEEP_ALIVE_TRIES: u32 = 4;
/// The first byte of TLS: a record of the type handshake (RFC 8446 §5.1).
const HANDSHAKE: u8 = 22;

/// An address cannot be listened on.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}; is it this host's, and is nothing else there?")]
pub(crate) struct BindError {
    address: SocketAddr,
    #[source]
    source: io::Error,
}

/// The TCP addresses on which the API answers.
#[derive(Debug, Default)]
pub(crate) struct Entrances {
    certificates: Option<Arc<Certificates>>,
    secure: Vec<SocketAddr>,
    loopback: Option<SocketAddr>,
}

/// Sockets that listen already.
#[derive(Debug)]
pub(crate) struct Bound {
    secure: Vec<TcpListener>,
    loopback: Option<TcpListener>,
    /// How long a stranger may stay one.
    pub(super) patience: Duration,
}

impl Bound {
    /// Listens on all of them; nobody is answered yet. Must be called in a tokio runtime.
    pub(crate) fn bind(secure: &[SocketAddr], loopback: Option<SocketAddr>) -> Result<Self, BindError> {
        Ok(Self {
            secure: secure.iter().copied().map(bind).collect::<Result<_, _>>()?,
            loopback: loopback.map(bind).transpose()?,
            patience: STRANGER_PATIENCE,
        })
    }

    /// The same with the certificates to show.
    pub(crate) fn entrances(&self, certificates: Option<Arc<Certificates>>) -> Entrances {
        let address = |listener: &TcpListener| listener.local_addr().ok();
        Entrances {
            certificates,
            secure: self.secure.iter().filter_map(address).collect(),
            loopback: self.loopback.as_ref().and_then(address),
        }
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, BindError> {
    let listen = || {
        let listener = std::net::TcpListener::bind(address)?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    listen().map_err(|source| BindError { address, source })
}

impl Entrances {
    /// What clients pin.
    pub(crate) fn pin(&self) -> Option<String> {
        self.certificates.as_ref().map(|certificates| certificates.pin())
    }

    /// Each address as a client writes it.
    pub(crate) fn listens(&self) -> Vec<String> {
        let secure = self.secure.iter().map(|address| format!("https://{address}"));
        secure.chain(self.loopback.iter().map(|address| format!("http://{address}"))).collect()
    }
}

/// The other end of a TCP connection.
#[derive(Clone)]
struct Remote {
    peer: Peer,
    connection: Arc<Connection>,
}

impl Mark for Remote {
    fn mark(self, request: &mut Request<Incoming>) {
        request.extensions_mut().insert(self.peer);
        request.extensions_mut().insert(self.connection);
    }
}

/// Serves all entrances until `stop`, then gives those there are a bounded time to end.
pub(crate) async fn serve_tcp(
    bound: Bound,
    entrances: Arc<Entrances>,
    router: Router,
    stop: CancellationToken,
) {
    let hall = Hall {
        patience: bound.patience,
        places: Places::new(),
        router,
        stop: stop.clone(),
        abort: CancellationToken::new(),
        connections: TaskTracker::new(),
    };
    let acceptor = entrances.certificates.as_ref().map(|certificates| certificates.acceptor());
    let listeners = TaskTracker::new();
    for listener in bound.secure {
        // Without certificates there is no such listener.
        if let Some(acceptor) = acceptor.clone() {
            listeners.spawn(hall.clone().listen(listener, Some(acceptor)));
        }
    }
    if let Some(listener) = bound.loopback {
        listeners.spawn(hall.clone().listen(listener, None));
    }
    listeners.close();
    listeners.wait().await;
    hall.connections.close();
    if timeout(CLOSE_PATIENCE, hall.connections.wait()).await.is_err() {
        hall.abort.cancel();
        hall.connections.wait().await;
    }
}

/// What all entrances share.
#[derive(Clone)]
struct Hall {
    patience: Duration,
    places: Places,
    router: Router,
    stop: CancellationToken,
    abort: CancellationToken,
    connections: TaskTracker,
}

impl Hall {
    async fn listen(self, listener: TcpListener, acceptor: Option<TlsAcceptor>) {
        loop {
            let accepted = async {
                let place = self.places.stranger().await;
                listener.accept().await.map(|(stream, from)| (stream, from, place))
            };
            let (stream, from, place) = tokio::select! {
                () = self.stop.cancelled() => return,
                accepted = accepted => match accepted {
                    Ok(accepted) => accepted,
                    Err(error) => {
                        tracing::warn!("cannot accept a connection to the API: {error}");
                        sleep(ACCEPT_PAUSE).await;
                        continue;
                    }
                },
            };
            let Some(stranger) = self.places.of(from.ip(), place) else {
                tracing::debug!(%from, "too many connections of this address wait for a token");
                continue;
            };
            let connection = Connection::new(stranger);
            let served = self.clone().serve(stream, from, connection, acceptor.clone());
            let abort = self.abort.clone();
            self.connections.spawn(async move { abort.run_until_cancelled(served).await });
        }
    }

    async fn serve(
        self,
        stream: TcpStream,
        from: SocketAddr,
        connection: Arc<Connection>,
        acceptor: Option<TlsAcceptor>,
    ) {
        // Answers are written whole; waiting for more would only delay them.
        let _ = stream.set_nodelay(true);
        if let Err(error) = keep_alive(&stream) {
            return tracing::debug!(%from, "a connection is gone already: {error}");
        }
        let Some(acceptor) = acceptor else {
            if !connection.trust() {
                return tracing::debug!(%from, "too many connections");
            }
            let remote = Remote { peer: Peer::Loopback(from), connection: Arc::clone(&connection) };
            let service = Identified { peer: remote, router: self.router };
            return serve_connection(connection.wrap(stream), service, self.stop).await;
        };
        let stream = match timeout(HANDSHAKE_PATIENCE, handshake(stream, &acceptor)).await {
            Ok(Ok(Some(stream))) => stream,
            Ok(Ok(None)) => return tracing::debug!(%from, "a client spoke no TLS"),
            Ok(Err(error)) => return tracing::debug!(%from, "a TLS handshake failed: {error}"),
            Err(_) => return tracing::debug!(%from, "a TLS handshake took too long"),
        };
        let remote = Remote { peer: Peer::Tcp(from), connection: Arc::clone(&connection) };
        let service = Identified { peer: remote, router: self.router };
        let served = serve_connection(connection.wrap(stream), service, self.stop);
        let strange = async {
            sleep(self.patience).await;
            if !connection.is_strange() {
                std::future::pending::<()>().await;
            }
        };
        tokio::select! {
            () = served => {}
            // A request that waits for something else than its client's bytes does not look at them.
            () = connection.over() => {}
            () = strange => tracing::debug!(%from, "no token came in time"),
        }
    }
}

/// Has the kernel find out that the other end is gone without a word, as when its machine lost its power: what
/// it began would go on, and a VM never be idle.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_AGAIN)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_TRIES)?;
    Ok(())
}

/// The TLS stream; `None` for who speaks HTTP, and was told so.
async fn handshake(
    mut stream: TcpStream,
    acceptor: &TlsAcceptor,
) -> io::Result<Option<tokio_rustls::server::TlsStream<TcpStream>>> {
    let mut first = [0; 1];
    stream.peek(&mut first).await?;
    if first[0] == HANDSHAKE {
        return acceptor.accept(stream).await.map(Some);
    }
    if first[0].is_ascii_alphabetic() {
        let problem = Problem::new(Code::InvalidRequest, "this port speaks TLS, the request came without");
        let body =
            serde_json::to_string(&problem.hint("write https:// instead of http://")).unwrap_or_default();
        let head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/problem+json\r\nconnection: close";
        stream
            .write_all(format!("{head}\r\ncontent-length: {}\r\n\r\n{body}", body.len()).as_bytes())
            .await?;
        stream.shutdown().await?;
        // Closing with the request unread would reset the connection before the answer is.
        let mut rest = [0; 4096];
        while tokio::io::AsyncReadExt::read(&mut stream, &mut rest).await? > 0 {}
    }
    Ok(None)
}
