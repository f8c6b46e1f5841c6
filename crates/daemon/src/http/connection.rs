//! One TCP connection: a stranger's until a good token came over it, and over as soon as a token that came
//! over it ends, streams included.
//!
//! Owns: its place among the connections, and cutting it. Refuses: accepting ([`super::tcp`]) and
//! judging tokens.

use crate::access::attempts::source;
use crate::access::tokens::Good;
use std::collections::{BTreeSet, HashMap};
use std::future::Future;
use std::io::{self, ErrorKind};
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::{CancellationToken, DropGuard, WaitForCancellationFutureOwned};

/// Connections over which no good token came yet, of all addresses.
const STRANGERS: usize = 256;
/// The same of one address.
const STRANGERS_OF_ONE: u32 = 32;
/// Connections of token holders. The unix socket has places of its own.
const HOLDERS: usize = 2048;
/// Tokens over one connection: a proxy before the daemon may bring those of several clients.
const TOKENS_OF_ONE: usize = 64;

/// Places for TCP connections.
#[derive(Debug, Clone)]
pub(super) struct Places {
    strangers: Arc<Semaphore>,
    holders: Arc<Semaphore>,
    of_address: Arc<Mutex<HashMap<IpAddr, u32>>>,
}

impl Places {
    pub(super) fn new() -> Self {
        Self {
            strangers: Arc::new(Semaphore::new(STRANGERS)),
            holders: Arc::new(Semaphore::new(HOLDERS)),
            of_address: Arc::default(),
        }
    }

    /// A stranger's place; waits until there is one.
    pub(super) async fn stranger(&self) -> Option<OwnedSemaphorePermit> {
        // The semaphore is never closed.
        Arc::clone(&self.strangers).acquire_owned().await.ok()
    }

    /// The place of a connection from this address; `None` when it has its share.
    pub(super) fn of(&self, from: IpAddr, place: Option<OwnedSemaphorePermit>) -> Option<Stranger> {
        let from = source(from);
        let mut table = self.of_address.lock().unwrap_or_else(PoisonError::into_inner);
        let count = table.entry(from).or_default();
        if *count >= STRANGERS_OF_ONE {
            return None;
        }
        *count += 1;
        drop(table);
        Some(Stranger { places: self.clone(), from, _place: place })
    }
}

/// A stranger's place, given back when dropped.
#[derive(Debug)]
pub(super) struct Stranger {
    places: Places,
    from: IpAddr,
    _place: Option<OwnedSemaphorePermit>,
}

impl Drop for Stranger {
    fn drop(&mut self) {
        let mut table = self.places.of_address.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = table.get_mut(&self.from) {
            *count -= 1;
            if *count == 0 {
                table.remove(&self.from);
            }
        }
    }
}

/// Which place a connection has.
#[derive(Debug)]
enum Place {
    Stranger { _place: Stranger },
    Holder { _place: OwnedSemaphorePermit },
}

/// One connection, as requests over it see it.
#[derive(Debug)]
pub(super) struct Connection {
    places: Places,
    place: Mutex<Place>,
    tokens: Mutex<BTreeSet<String>>,
    /// Cancelled to end it, and when it has ended.
    cut: CancellationToken,
}

impl Connection {
    pub(super) fn new(stranger: Stranger) -> Arc<Self> {
        Arc::new(Self {
            places: stranger.places.clone(),
            place: Mutex::new(Place::Stranger { _place: stranger }),
            tokens: Mutex::default(),
            cut: CancellationToken::new(),
        })
    }

    /// A good token came: the connection is a holder's from now on, and ends with the token. False when
    /// there is no place for it.
    pub(super) fn admit(&self, good: &Good) -> bool {
        let Some(id) = &good.caller.token else { return true };
        let mut tokens = self.tokens.lock().unwrap_or_else(PoisonError::into_inner);
        if tokens.contains(id) {
            return true;
        }
        if tokens.len() == TOKENS_OF_ONE {
            return false;
        }
        if tokens.is_empty() && !self.trust() {
            return false;
        }
        tokens.insert(id.clone());
        let (ended, left, cut) = (good.ended.clone(), good.left, self.cut.clone());
        tokio::spawn(async move {
            let expired = async {
                match left {
                    Some(left) => tokio::time::sleep(left).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = ended.cancelled() => cut.cancel(),
                () = expired => cut.cancel(),
                () = cut.cancelled() => {}
            }
        });
        true
    }

    /// Who may do everything without a token is no stranger. False when there is no place.
    pub(super) fn trust(&self) -> bool {
        let Ok(place) = Arc::clone(&self.places.holders).try_acquire_owned() else { return false };
        *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Place::Holder { _place: place };
        true
    }

    /// Whether a good token of this id came before.
    pub(super) fn knows(&self, id: &str) -> bool {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).contains(id)
    }

    /// Resolves when it is cut.
    pub(super) async fn over(&self) {
        self.cut.cancelled().await;
    }

    /// Whether no good token came yet.
    pub(super) fn is_strange(&self) -> bool {
        self.tokens.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// Its bytes, which end when it is cut, also after an upgrade.
    pub(super) fn wrap<S>(self: &Arc<Self>, stream: S) -> Cut<S> {
        Cut {
            stream,
            over: Box::pin(self.cut.clone().cancelled_owned()),
            _connection: Arc::clone(self),
            _end: self.cut.clone().drop_guard(),
        }
    }
}

/// A stream that ends when its connection is cut.
pub(super) struct Cut<S> {
    stream: S,
    over: Pin<Box<WaitForCancellationFutureOwned>>,
    /// Keeps its place as long as there are bytes.
    _connection: Arc<Connection>,
    /// Ends the tasks that wait for the ends of its tokens.
    _end: DropGuard,
}

impl<S> Cut<S> {
    /// Fails once it is cut; until then the task is woken by that too.
    fn check(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        match self.over.as_mut().poll(context) {
            Poll::Ready(()) => Err(io::Error::new(ErrorKind::ConnectionAborted, "the token has ended")),
            Poll::Pending => Ok(()),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Cut<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Cut<S> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        pieces: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.check(context)?;
        Pin::new(&mut this.stream).poll_write_vectored(context, pieces)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::access::Caller;
    use std::time::Duration;
    use tokio::io::AsyncReadExt;
    use tokio::time::timeout;

    fn good(id: &str) -> Good {
        Good { caller: Caller::holder(id, Vec::new()), ended: CancellationToken::new(), left: None }
    }

    #[tokio::test]
    async fn an_address_has_its_share_and_a_holder_is_no_stranger() {
        let places = Places::new();
        let (bad, other): (IpAddr, IpAddr) = ("192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap());
        let mut held = Vec::new();
        for _ in 0..STRANGERS_OF_ONE {
            let place = places.stranger().await;
            held.push(Connection::new(places.of(bad, place).unwrap()));
        }
        assert!(places.of(bad, None).is_none() && places.of(other, None).is_some());
        assert!(held[0].is_strange() && held[0].admit(&good("a")) && !held[0].is_strange());
        assert_eq!(places.strangers.available_permits(), STRANGERS - held.len() + 1);
        assert!(places.of(bad, None).is_some(), "the holder's place among strangers is free");
        held.clear();
        assert!(places.of_address.lock().unwrap().is_empty());
        assert_eq!(places.holders.available_permits(), HOLDERS);
    }

    #[tokio::test]
    async fn a_stream_ends_with_any_token_that_came_over_it() {
        let places = Places::new();
        let connection = Connection::new(places.of("192.0.2.1".parse().unwrap(), None).unwrap());
        let (mut ours, _theirs) = tokio::io::duplex(64);
        let mut stream = connection.wrap(&mut ours);
        let (first, second) = (good("a"), good("b"));
        assert!(connection.admit(&first) && connection.admit(&second));
        let reading = async { stream.read_u8().await };
        let revoking = async {
            tokio::task::yield_now().await;
            second.ended.cancel();
        };
        let (read, ()) = tokio::join!(reading, revoking);
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionAborted);
        drop(stream);
        let connection = Connection::new(places.of("192.0.2.1".parse().unwrap(), None).unwrap());
        let mut stream = connection.wrap(&mut ours);
        assert!(connection.admit(&Good { left: Some(Duration::from_millis(20)), ..good("c") }));
        let read = timeout(Duration::from_secs(10), stream.read_u8()).await.expect("its time is over");
        assert_eq!(read.unwrap_err().kind(), ErrorKind::ConnectionAborted);
        for n in 1..TOKENS_OF_ONE {
            assert!(connection.admit(&good(&n.to_string())));
        }
        assert!(!connection.admit(&good("one too many")));
    }
}
