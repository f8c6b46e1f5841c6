//! Between a client's WebSocket and a session in a guest.
//!
//! ```text
//! client ──▶ from_client ──▶ outbox (bounded, never waits) ──▶ to_guest ──▶ guest
//! client ◀───────────────────── from_guest (waits for the client) ◀──────── guest
//! ```
//!
//! Owns: passing data and credit on, and checking that neither end takes more than it was given.
//! The two directions never wait for each other. Refuses: what the bytes mean, and who may open
//! a stream.

use super::outbox::{Full, Outbox};
use super::printable;
use super::session::{Session, failure_class};
use super::window::{Window, WindowError};
use super::wire::{Arrived, FrameReader, WireError};
use axum::extract::ws::Message;
use enisle_api::stream::{FromDaemon, GuestFailure, STDERR, STDIN, STDOUT, ToDaemon};
use enisle_api::{Code, Problem};
use enisle_guest_proto::{Control, Failure, Kind, encode, encode_control};
use futures_util::{Sink, SinkExt, Stream, StreamExt};
use std::convert::Infallible;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// After this much silence towards the client a ping shows whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// A client takes the last message within this time.
const LAST_PATIENCE: Duration = Duration::from_secs(5);
/// When a VM ends its connections break first; its reason follows within this time.
const REASON_PATIENCE: Duration = Duration::from_secs(2);
/// Signals are 1 to 64 (signal(7)).
const SIGNALS: std::ops::RangeInclusive<u8> = 1..=64;

/// How a relay ended.
#[derive(Debug)]
enum End {
    /// The operation ended and the client was told.
    Done,
    /// The client went away.
    ClientGone,
    /// The client broke the protocol.
    ClientBroke(String),
    /// The guest's side is of no more use.
    Guest(WireError),
    /// The guest broke the rules of the stream.
    GuestBroke(String),
    /// The VM ended, with its reason.
    VmEnded(Problem),
}

/// Credit in both directions: one lock, held for a few instructions.
#[derive(Default)]
struct Flow {
    stdin: Window,
    stdout: Window,
    stderr: Window,
}

impl Flow {
    fn output(&mut self, stream: u8) -> Option<&mut Window> {
        match stream {
            STDOUT => Some(&mut self.stdout),
            STDERR => Some(&mut self.stderr),
            _ => None,
        }
    }
}

/// What both directions share.
#[derive(Default)]
struct Shared {
    flow: Mutex<Flow>,
    outbox: Outbox,
}

impl Shared {
    fn flow<T>(&self, act: impl FnOnce(&mut Flow) -> T) -> T {
        act(&mut self.flow.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Relays until the operation, the client, the guest or the VM ends. `vm_end` resolves with the
/// reason when the VM is no longer there. Returning drops the session, which ends it in the guest.
pub(crate) async fn run<R, W, E>(
    client: R,
    mut to_client: W,
    session: Session,
    vm_end: impl Future<Output = Problem>,
) where
    R: Stream<Item = Result<Message, E>> + Unpin,
    W: Sink<Message> + Unpin,
{
    let Session { reader, writer, pid } = session;
    let mut client = client.fuse();
    let shared = Shared::default();
    let mut vm_end = std::pin::pin!(vm_end);
    let end = if to_client.send(text(&FromDaemon::Opened { pid })).await.is_err() {
        End::ClientGone
    } else {
        tokio::select! {
            end = from_client(&mut client, &shared) => end,
            end = from_guest(reader, &mut to_client, &shared) => end,
            never = to_guest(writer, &shared.outbox) => match never {},
            problem = &mut vm_end => End::VmEnded(problem),
        }
    };
    let end = match end {
        End::Guest(error) => match timeout(REASON_PATIENCE, vm_end).await {
            Ok(problem) => End::VmEnded(problem),
            Err(_) => End::Guest(error),
        },
        end => end,
    };
    if let Some(last) = last_message(&end) {
        fail(&mut to_client, last).await;
    }
    if matches!(end, End::GuestBroke(_) | End::ClientBroke(_)) {
        tracing::warn!("closed a stream: {end:?}");
    }
    close(&mut client, &mut to_client).await;
}

/// Closes a client's stream and waits, within a bound, until the client has closed its side.
/// Closing with messages unread would reset the connection, which overtakes the last message.
pub(crate) async fn close<R, W, E>(client: &mut R, to_client: &mut W)
where
    R: Stream<Item = Result<Message, E>> + Unpin,
    W: Sink<Message> + Unpin,
{
    // A client that reads no more need not be waited for.
    let _ = timeout(LAST_PATIENCE, async {
        if to_client.close().await.is_ok() {
            while let Some(Ok(_)) = client.next().await {}
        }
    })
    .await;
}

/// Sends a last message to a client, if it takes it in time.
pub(crate) async fn fail<W: Sink<Message> + Unpin>(to_client: &mut W, message: FromDaemon) {
    let _ = timeout(LAST_PATIENCE, to_client.send(text(&message))).await;
}

fn last_message(end: &End) -> Option<FromDaemon> {
    let problem = match end {
        End::Done | End::ClientGone => return None,
        End::ClientBroke(why) => Problem::new(Code::InvalidRequest, why.clone()),
        End::Guest(error) => Problem::new(Code::GuestFailed, error.to_string()),
        End::GuestBroke(why) => {
            Problem::new(Code::GuestFailed, format!("the guest broke the protocol: {why}"))
        }
        End::VmEnded(problem) => problem.clone(),
    };
    Some(FromDaemon::Failed { guest: None, problem })
}

fn text(message: &FromDaemon) -> Message {
    // Numbers and text only: there is nothing in it that JSON could refuse.
    Message::text(serde_json::to_string(message).unwrap_or_default())
}

/// Takes a client's messages in as they come. It never waits for the guest.
async fn from_client<R, E>(client: &mut R, shared: &Shared) -> End
where
    R: Stream<Item = Result<Message, E>> + Unpin,
{
    while let Some(Ok(message)) = client.next().await {
        let taken = match message {
            Message::Binary(data) => take_input(&data, shared),
            Message::Text(control) => match serde_json::from_str(&control) {
                Ok(control) => take_control(&control, shared),
                Err(error) => Err(format!("a message that is none: {error}")),
            },
            Message::Ping(_) | Message::Pong(_) => Ok(()),
            Message::Close(_) => break,
        };
        if let Err(why) = taken {
            return End::ClientBroke(why);
        }
    }
    End::ClientGone
}

fn take_input(data: &[u8], shared: &Shared) -> Result<(), String> {
    let Some((&STDIN, bytes)) = data.split_first() else {
        return Err(format!("data on stream {:?}, which is not the client's", data.first()));
    };
    shared.flow(|flow| flow.stdin.sent(bytes.len())).map_err(|e| format!("stream 1: {e}"))?;
    // The window is larger than a message may be, so that credit alone does not bound one.
    if bytes.len() > enisle_guest_proto::MAX_PAYLOAD {
        return Err(format!("a message with {} bytes of data", bytes.len()));
    }
    put(shared, |out| {
        encode(Kind::Stdin, bytes, out);
        Ok(())
    })
}

fn take_control(control: &ToDaemon, shared: &Shared) -> Result<(), String> {
    let message = match control {
        &ToDaemon::Window { stream, bytes } => {
            let returned = shared.flow(|flow| flow.output(stream).map(|window| window.returned(bytes)));
            returned
                .ok_or(format!("credit for stream {stream}"))?
                .map_err(|e| format!("stream {stream}: {e}"))?;
            Control::Window { stream, bytes }
        }
        ToDaemon::Eof {} => {
            shared.flow(|flow| flow.stdin.end()).map_err(|e| format!("stream 1: {e}"))?;
            Control::Eof { stream: STDIN }
        }
        &ToDaemon::Resize { rows, cols } if rows > 0 && cols > 0 => Control::Resize { rows, cols },
        ToDaemon::Resize { .. } => return Err("a terminal without rows or columns".to_owned()),
        &ToDaemon::Signal { signal } if SIGNALS.contains(&signal) => Control::Signal { signal },
        ToDaemon::Signal { signal } => return Err(format!("signal {signal}, which is none")),
    };
    put(shared, |out| encode_control(&message, out).map_err(|e| e.to_string()))
}

fn put(shared: &Shared, write: impl FnOnce(&mut Vec<u8>) -> Result<(), String>) -> Result<(), String> {
    shared.outbox.put(write)?.map_err(|Full| "more messages than the guest takes".to_owned())
}

/// Writes what is in the outbox. A guest that takes nothing more may still have something to say:
/// the other direction sees the end.
async fn to_guest<W: AsyncWrite + Unpin>(mut guest: W, outbox: &Outbox) -> Infallible {
    while guest.write_all(&outbox.take().await).await.is_ok() {}
    std::future::pending().await
}

/// Passes a guest's frames on, at the pace the client takes them: what came together goes together.
async fn from_guest<R, W>(mut guest: FrameReader<R>, to_client: &mut W, shared: &Shared) -> End
where
    R: AsyncRead + Unpin,
    W: Sink<Message> + Unpin,
{
    loop {
        let (message, last) = match guest.ready() {
            Err(error) => return End::Guest(error.into()),
            Ok(Some(frame)) => match translate(frame, shared) {
                Ok(translated) => translated,
                Err(why) => return End::GuestBroke(why),
            },
            Ok(None) => {
                if to_client.flush().await.is_err() {
                    return End::ClientGone;
                }
                match timeout(PING_INTERVAL, guest.fill()).await {
                    Err(_) => (Message::Ping(Vec::new().into()), false),
                    Ok(Err(error)) => return End::Guest(error),
                    Ok(Ok(())) => continue,
                }
            }
        };
        if to_client.feed(message).await.is_err() {
            return End::ClientGone;
        }
        if last {
            return if to_client.flush().await.is_err() { End::ClientGone } else { End::Done };
        }
    }
}

/// A guest's frame as a message for the client, and whether it is the last one.
fn translate(frame: Arrived, shared: &Shared) -> Result<(Message, bool), String> {
    let stream = match frame.kind {
        Kind::Stdout => STDOUT,
        Kind::Stderr => STDERR,
        Kind::Stdin => return Err("data on the client's stream".to_owned()),
        Kind::Control => return translate_control(frame.control().map_err(|e| e.to_string())?, shared),
    };
    on_output(shared, stream, |window| window.sent(frame.payload().len()))?;
    // Both protocols write the stream's number before its bytes.
    const { assert!(Kind::Stdout as u8 == STDOUT && Kind::Stderr as u8 == STDERR) };
    Ok((Message::Binary(frame.into_wire()), false))
}

fn translate_control(control: Control, shared: &Shared) -> Result<(Message, bool), String> {
    let (message, last) = match control {
        Control::Window { stream: STDIN, bytes } => {
            shared.flow(|flow| flow.stdin.returned(bytes)).map_err(|e| format!("stream 1: {e}"))?;
            (FromDaemon::Window { stream: STDIN, bytes }, false)
        }
        Control::Eof { stream } => {
            on_output(shared, stream, Window::end)?;
            (FromDaemon::Eof { stream }, false)
        }
        Control::Exit { code, signal, timed_out } => (FromDaemon::Exit { code, signal, timed_out }, true),
        Control::Dropped { bytes } => (FromDaemon::Dropped { bytes }, false),
        Control::Failed(failure) => (guest_failed(&failure), true),
        Control::Window { stream, .. } => return Err(format!("credit for stream {stream}")),
        Control::Resize { .. } | Control::Signal { .. } => return Err("a message of the daemon's".to_owned()),
    };
    Ok((text(&message), last))
}

fn on_output(
    shared: &Shared,
    stream: u8,
    act: impl FnOnce(&mut Window) -> Result<(), WindowError>,
) -> Result<(), String> {
    let done = shared.flow(|flow| flow.output(stream).map(act));
    done.ok_or(format!("a message about stream {stream}"))?.map_err(|e| format!("stream {stream}: {e}"))
}

/// The agent's failure for the client.
fn guest_failed(failure: &Failure) -> FromDaemon {
    let guest: GuestFailure = failure_class(failure.code);
    FromDaemon::Failed {
        guest: Some(guest),
        problem: Problem::new(Code::GuestFailed, printable(&failure.message)),
    }
}

#[cfg(test)]
mod tests;
