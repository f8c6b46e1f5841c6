//! Asking the upstream resolvers: one question, up to three servers, one answer.
//!
//! Owns: the sockets towards the upstreams, which are of the daemon's own namespace, and who is
//! asked when. Refuses: to know who asks; nothing here is shared between questions, so a server
//! that hangs delays only the question it was asked.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep_until};

use super::answer::{Answer, Reply, read_reply};
use super::query::Question;

/// Buffer for an answer over UDP, in bytes: more than was asked for, because some servers send more.
const UDP_BUFFER: usize = 4096;
/// TC in the third byte of the header (RFC 1035 §4.1.1).
const TRUNCATED: u8 = 2;
/// Messages on a connected socket that are not the answer, after which the server is given up.
const MAX_STRAYS: u32 = 64;

/// When the next server is asked, and when the question is given up.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timing {
    /// How long one server is waited for alone; also when its datagram is sent again.
    pub(super) attempt: Duration,
    /// When the question is given up.
    pub(super) deadline: Instant,
}

/// An answer and the server that gave it.
#[derive(Debug)]
pub(super) struct Answered {
    pub(super) answer: Answer,
    pub(super) by: SocketAddr,
}

/// Asks `servers` in their order until one answers.
///
/// The next one is asked when the last one failed, or said it cannot, or was silent for
/// `timing.attempt`; those asked before stay welcome to answer. An upstream's own error is the
/// answer only if nobody knows better. `None` at the deadline, or when all failed.
pub(super) async fn ask(question: &Question, servers: &[SocketAddr], timing: Timing) -> Option<Answered> {
    let mut waiting = servers.iter().copied();
    let mut asked = FuturesUnordered::new();
    let mut lame = None;
    loop {
        if let Some(server) = waiting.next() {
            asked.push(async move { (server, exchange(server, question, timing.attempt).await) });
        } else if asked.is_empty() {
            return lame;
        }
        match next_event(&mut asked, waiting.len() > 0, timing).await {
            Event::Done(by, Ok(answer)) if answer.is_lame() => {
                lame.get_or_insert(Answered { answer, by });
            }
            Event::Done(by, Ok(answer)) => return Some(Answered { answer, by }),
            Event::Done(_, Err(error)) => {
                tracing::debug!(%error, cause = ?std::error::Error::source(&error), "DNS upstream");
            }
            Event::Silence => {}
            Event::Deadline => return lame,
        }
    }
}

enum Event {
    Done(SocketAddr, Result<Answer, ExchangeError>),
    /// Nobody answered within one attempt.
    Silence,
    Deadline,
}

async fn next_event<F>(asked: &mut FuturesUnordered<F>, more: bool, timing: Timing) -> Event
where
    F: Future<Output = (SocketAddr, Result<Answer, ExchangeError>)>,
{
    tokio::select! {
        biased;
        Some((server, outcome)) = asked.next() => Event::Done(server, outcome),
        () = sleep_until(timing.deadline) => Event::Deadline,
        () = tokio::time::sleep(timing.attempt), if more => Event::Silence,
    }
}

/// Why one server gave no answer.
#[derive(Debug, Error)]
enum ExchangeError {
    #[error("cannot ask {server} over {transport}")]
    Io { server: SocketAddr, transport: &'static str, source: io::Error },
    #[error("{server} did not understand the question: {code}")]
    Failed { server: SocketAddr, code: ResponseCode },
    #[error("{server} sent what is no answer to the question")]
    Stray { server: SocketAddr },
    #[error("no random id for a question")]
    Random { source: getrandom::Error },
    #[error("the question cannot be encoded")]
    Encode,
}

/// A question as it was sent.
struct Sent<'q> {
    id: u16,
    packet: Vec<u8>,
    question: &'q Question,
}

/// Asks one server over UDP, and over TCP if its answer was too long. Bounded by the caller.
async fn exchange(
    server: SocketAddr,
    question: &Question,
    resend: Duration,
) -> Result<Answer, ExchangeError> {
    let random = getrandom::u32().map_err(|source| ExchangeError::Random { source })?;
    let [high, low, ..] = random.to_be_bytes();
    let id = u16::from_be_bytes([high, low]);
    let packet = question.encode_upstream(id).ok_or(ExchangeError::Encode)?;
    let sent = Sent { id, packet, question };
    let failed = |transport| move |source| ExchangeError::Io { server, transport, source };
    let (reply, transport) = match over_udp(server, &sent, resend).await.map_err(failed("UDP"))? {
        Reply::Truncated => (over_tcp(server, &sent).await.map_err(failed("TCP"))?, "TCP"),
        reply => (reply, "UDP"),
    };
    tracing::trace!(%server, transport, "DNS upstream replied");
    match reply {
        Reply::Answer(answer) => Ok(answer),
        Reply::Failed(code) => Err(ExchangeError::Failed { server, code }),
        Reply::Truncated | Reply::Stray => Err(ExchangeError::Stray { server }),
    }
}

/// A socket of its own for each question: a random port, and connected, so that the kernel drops
/// what anyone but the server sends.
async fn over_udp(server: SocketAddr, sent: &Sent<'_>, resend: Duration) -> io::Result<Reply> {
    let any: SocketAddr = match server {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(server).await?;
    let mut again = interval(resend.max(Duration::from_millis(1)));
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut buffer = vec![0; UDP_BUFFER];
    let mut strays = 0;
    while strays < MAX_STRAYS {
        let length = tokio::select! {
            // The first tick comes at once and is the first sending.
            _ = again.tick() => {
                socket.send(&sent.packet).await?;
                continue;
            }
            received = socket.recv(&mut buffer) => received?,
        };
        if length == buffer.len() {
            // The kernel may have cut it: as good as cut by the server.
            buffer[2] |= TRUNCATED;
        }
        match read_reply(&buffer[..length], sent.id, sent.question) {
            Reply::Stray => strays += 1,
            reply => return Ok(reply),
        }
    }
    Ok(Reply::Stray)
}

async fn over_tcp(server: SocketAddr, sent: &Sent<'_>) -> io::Result<Reply> {
    let mut stream = TcpStream::connect(server).await?;
    let length = u16::try_from(sent.packet.len()).map_err(io::Error::other)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(&sent.packet);
    stream.write_all(&framed).await?;
    let mut bytes = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut bytes).await?;
    Ok(read_reply(&bytes, sent.id, sent.question))
}
