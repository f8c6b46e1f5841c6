//! Queries over TCP (RFC 7766): one task per microVM, one more per connection.
//!
//! Owns: the guest's listener and connections, and the length prefixes on them.
//! Refuses: more connections than the limit, frames no query fits, and guests that send or read slowly.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::limits::Admission;
use super::query::{HEADER, MAX_QUERY};
use super::vm::{Step, VmDns};

/// Rest after an error of `accept`, such as too many open files, which would come again at once.
const AFTER_ERROR: Duration = Duration::from_millis(250);
/// Largest message TCP carries, in bytes (RFC 1035 §4.2.2: a length of 16 bits).
const MAX_ANSWER: usize = u16::MAX as usize;

/// Answers until `stop`; afterwards nothing of it is left.
pub(super) async fn serve(vm: Arc<VmDns>, listener: TcpListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    stop.run_until_cancelled(accept(vm, listener, &mut connections)).await;
    connections.shutdown().await;
}

async fn accept(vm: Arc<VmDns>, listener: TcpListener, connections: &mut JoinSet<()>) {
    loop {
        let accepted = tokio::select! {
            biased;
            Some(_) = connections.join_next() => continue,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(_) if connections.len() >= vm.limits().tcp_connections => {
                // Closed rather than left in the backlog: the guest sees a refusal and no outage.
                vm.drop_connection();
                if let Admission::Pause(pause) = vm.admit() {
                    sleep(pause).await;
                }
            }
            Ok((stream, _)) => {
                connections.spawn(converse(Arc::clone(&vm), stream));
            }
            Err(error) => {
                tracing::debug!(vm = %vm.label(), %error, "DNS listener");
                sleep(AFTER_ERROR).await;
            }
        }
    }
}

async fn converse(vm: Arc<VmDns>, stream: TcpStream) {
    if let Err(error) = exchange(&vm, stream).await {
        tracing::trace!(vm = %vm.label(), %error, "DNS connection closed");
    }
}

/// Answers the queries of one connection, several at a time and in any order (RFC 7766 §6.2.1.1),
/// until the guest ends it or `tcp_idle` passes without a whole message.
async fn exchange(vm: &VmDns, mut stream: TcpStream) -> io::Result<()> {
    let limits = vm.limits();
    // Answers are written whole; waiting for more would only delay them.
    stream.set_nodelay(true)?;
    let mut buffer = BytesMut::new();
    let mut under_way = FuturesUnordered::new();
    let mut ended = false;
    let mut idle_at = Instant::now() + limits.tcp_idle;
    loop {
        while under_way.len() < limits.tcp_pipeline
            && let Some(message) = next_message(&mut buffer)?
        {
            idle_at = Instant::now() + limits.tcp_idle;
            match vm.take(&message, within_rate(vm).await) {
                Step::Silence => return Err(io::Error::new(io::ErrorKind::InvalidData, "not a query")),
                Step::Answer(answer) => write(&mut stream, &answer, limits.tcp_idle).await?,
                Step::Forward(forward) => under_way.push(vm.forward(forward, MAX_ANSWER)),
            }
        }
        if ended && under_way.is_empty() {
            return Ok(());
        }
        tokio::select! {
            Some(answer) = under_way.next() => {
                write(&mut stream, &answer, limits.tcp_idle).await?;
                idle_at = Instant::now() + limits.tcp_idle;
            }
            read = stream.read_buf(&mut buffer), if !ended && under_way.len() < limits.tcp_pipeline => {
                ended = read? == 0;
            }
            () = sleep_until(idle_at), if under_way.is_empty() => return Ok(()),
        }
    }
}

/// Takes a token for one message. What is far over the rate waits: TCP then slows the guest down.
async fn within_rate(vm: &VmDns) -> bool {
    match vm.admit() {
        Admission::Serve => true,
        Admission::Refuse => false,
        Admission::Pause(pause) => {
            sleep(pause).await;
            false
        }
    }
}

/// Takes one whole message off the front of what was read. An error ends the connection: after a
/// length no query has, nothing that follows can be trusted to be a frame.
fn next_message(buffer: &mut BytesMut) -> io::Result<Option<BytesMut>> {
    let Some(prefix) = buffer.first_chunk::<2>() else { return Ok(None) };
    let length = usize::from(u16::from_be_bytes(*prefix));
    if !(HEADER..=MAX_QUERY).contains(&length) {
        let message = format!("a frame of {length} bytes");
        return Err(io::Error::new(io::ErrorKind::InvalidData, message));
    }
    if buffer.len() < prefix.len() + length {
        return Ok(None);
    }
    buffer.advance(2);
    Ok(Some(buffer.split_to(length)))
}

/// Writes one answer whole, or fails when the guest does not take it `within` this time.
async fn write(stream: &mut TcpStream, answer: &[u8], within: Duration) -> io::Result<()> {
    let length = u16::try_from(answer.len()).map_err(io::Error::other)?;
    if length == 0 {
        return Ok(());
    }
    let mut framed = BytesMut::with_capacity(2 + answer.len());
    framed.extend_from_slice(&length.to_be_bytes());
    framed.extend_from_slice(answer);
    timeout(within, stream.write_all(&framed)).await.map_err(io::Error::from)?
}
