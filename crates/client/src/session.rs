//! One stream over one WebSocket. Owns the protocol of [`enisle_api::stream`] from the client's
//! side: opening, framing, credit in both directions, and the end. Refuses to know what the
//! bytes mean.
//!
//! A task moves the messages. Its reading half never waits for anything but the socket, so two
//! peers that both send cannot block each other; its writing half waits for credit.

use crate::Error;
use crate::connection::{self, Socket};
use crate::output::{self, Inlet, Output};
use crate::remote::Remote;
use bytes::Bytes;
use enisle_api::stream::{FromDaemon, MAX_DATA, Open, STDERR, STDIN, STDOUT, ToDaemon, WINDOW};
use enisle_api::{Code, Problem, routes};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{FutureExt, SinkExt, StreamExt};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::io::{AsyncReadExt, DuplexStream};
use tokio::sync::Semaphore;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::task::AbortOnDropHandle;

/// How long the guest may take to start a process, find a file or connect.
const OPEN_LIMIT: Duration = Duration::from_secs(300);
/// Largest first message in bytes; the daemon hangs up on a larger one without an answer.
const MAX_OPEN: usize = 64 * 1024;
/// Bytes that a writer may be ahead of the socket.
const STDIN_BUFFER: usize = WINDOW as usize;

/// The bytes to the guest. Shutting it down or dropping it is the end of input.
pub type Stdin = DuplexStream;

/// How an operation in the guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// Exit status; 128 + signal when a signal ended the process.
    pub code: i32,
    /// The signal that ended it.
    pub signal: Option<u8>,
    /// True when the asked time-out ended it.
    pub timed_out: bool,
}

/// Sends signals and sizes to a process. Cheap to clone; outlives the process harmlessly.
#[derive(Debug, Clone)]
pub struct Controller {
    messages: UnboundedSender<ToDaemon>,
}

impl Controller {
    /// Sends a signal, 1 to 64, to the process group. Never waits behind data. A process that
    /// has ended gets nothing.
    pub fn signal(&self, signal: u8) {
        self.send(ToDaemon::Signal { signal });
    }

    /// Sets the size of the process's terminal; zero becomes 1.
    pub fn resize(&self, rows: u16, cols: u16) {
        self.send(ToDaemon::Resize { rows: rows.max(1), cols: cols.max(1) });
    }

    fn send(&self, message: ToDaemon) {
        // The session is over when nobody takes it.
        let _ = self.messages.send(message);
    }
}

/// An open stream. Dropping it closes the connection.
pub(crate) struct Session {
    pub(crate) stdin: Stdin,
    pub(crate) stdout: Output,
    pub(crate) stderr: Output,
    pub(crate) running: Running,
}

/// The moving part of a session.
#[derive(Debug)]
pub(crate) struct Running {
    pub(crate) vm: String,
    pub(crate) pid: Option<u32>,
    pub(crate) controller: Controller,
    dropped: Arc<AtomicU64>,
    task: AbortOnDropHandle<Result<ExitStatus, Error>>,
}

impl Running {
    /// Bytes the guest says it could not send any more.
    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Acquire)
    }

    /// Waits for the end. Dropping the future closes the connection.
    pub(crate) async fn wait(self) -> Result<ExitStatus, Error> {
        match self.task.await {
            Ok(result) => result,
            Err(_) => Err(Error::Broken { vm: self.vm }),
        }
    }
}

impl Session {
    /// Opens a stream and waits until the guest has done so too.
    pub(crate) async fn open(remote: &Remote, vm: &str, open: &Open) -> Result<Self, Error> {
        let path = routes::vm_stream(vm);
        let json = serde_json::to_string(open).map_err(|e| protocol(vm, e.to_string()))?;
        if json.len() > MAX_OPEN {
            return Err(too_large(json.len()));
        }
        let mut socket = connection::websocket(remote, &path).await?;
        let broken = || Error::Broken { vm: vm.to_owned() };
        socket.send(Message::text(json)).await.map_err(|_| broken())?;
        let pid = tokio::time::timeout(OPEN_LIMIT, opened(&mut socket, vm))
            .await
            .map_err(|_| Error::Timeout { request: path, limit: OPEN_LIMIT })??;
        Ok(Self::start(socket, vm, pid))
    }

    fn start(socket: Socket, vm: &str, pid: Option<u32>) -> Self {
        let (messages, control) = unbounded_channel();
        let (stdin, to_guest) = tokio::io::duplex(STDIN_BUFFER);
        let (stdout_in, stdout) = output::channel(STDOUT, &messages);
        let (stderr_in, stderr) = output::channel(STDERR, &messages);
        let (sink, source) = socket.split();
        let dropped = Arc::default();
        let pump = Pump {
            vm: vm.to_owned(),
            dropped: Arc::clone(&dropped),
            stdout: stdout_in,
            stderr: stderr_in,
            credit: Semaphore::new(WINDOW as usize),
        };
        let task = AbortOnDropHandle::new(tokio::spawn(pump.run(source, sink, control, to_guest)));
        let running = Running { vm: vm.to_owned(), pid, controller: Controller { messages }, dropped, task };
        Self { stdin, stdout, stderr, running }
    }
}

fn protocol(vm: &str, why: impl Into<String>) -> Error {
    Error::Protocol { request: format!("the stream to {vm}"), why: why.into() }
}

fn too_large(bytes: usize) -> Error {
    let detail = format!("the request has {bytes} bytes, at most {MAX_OPEN} are taken");
    Problem::new(Code::InvalidRequest, detail)
        .hint("pass long arguments by standard input or in a file")
        .into()
}

fn failed(guest: Option<enisle_api::stream::GuestFailure>, problem: Problem) -> Error {
    match guest {
        Some(failure) => Error::Guest { failure, problem: Box::new(problem) },
        None => problem.into(),
    }
}

async fn opened(socket: &mut Socket, vm: &str) -> Result<Option<u32>, Error> {
    while let Some(message) = socket.next().await {
        match message {
            Ok(Message::Text(text)) => {
                return match serde_json::from_str(&text).map_err(|e| protocol(vm, e.to_string()))? {
                    FromDaemon::Opened { pid } => Ok(pid),
                    FromDaemon::Failed { guest, problem } => Err(failed(guest, problem)),
                    _ => Err(protocol(vm, "a message before `opened`")),
                };
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => {}
            Ok(Message::Binary(_)) => return Err(protocol(vm, "data before `opened`")),
            Ok(Message::Close(_) | Message::Frame(_)) | Err(_) => break,
        }
    }
    Err(Error::Broken { vm: vm.to_owned() })
}

/// State of the task that moves messages.
struct Pump {
    vm: String,
    stdout: Inlet,
    stderr: Inlet,
    /// Bytes that may be sent to the guest.
    credit: Semaphore,
    dropped: Arc<AtomicU64>,
}

impl Pump {
    async fn run(
        self,
        source: SplitStream<Socket>,
        sink: SplitSink<Socket, Message>,
        control: UnboundedReceiver<ToDaemon>,
        stdin: DuplexStream,
    ) -> Result<ExitStatus, Error> {
        let Self { vm, mut stdout, mut stderr, credit, dropped } = self;
        let result = tokio::select! {
            result = receive(source, &vm, (&credit, &dropped), [&mut stdout, &mut stderr]) => result,
            never = transmit(sink, control, stdin, &credit) => match never {},
        };
        if let Err(error) = &result {
            stdout.fail(error.to_io());
            stderr.fail(error.to_io());
        }
        result
    }
}

async fn receive(
    mut source: SplitStream<Socket>,
    vm: &str,
    (credit, dropped): (&Semaphore, &AtomicU64),
    [stdout, stderr]: [&mut Inlet; 2],
) -> Result<ExitStatus, Error> {
    while let Some(message) = source.next().await {
        let text = match message {
            Ok(Message::Text(text)) => text,
            Ok(Message::Binary(data)) => {
                accept_data(vm, data, stdout, stderr)?;
                continue;
            }
            Ok(Message::Ping(_) | Message::Pong(_)) => continue,
            Ok(Message::Close(_) | Message::Frame(_)) | Err(_) => break,
        };
        match serde_json::from_str(&text).map_err(|e| protocol(vm, e.to_string()))? {
            FromDaemon::Window { stream: STDIN, bytes } => accept_credit(vm, credit, bytes)?,
            FromDaemon::Eof { stream: STDOUT } => stdout.end(),
            FromDaemon::Eof { stream: STDERR } => stderr.end(),
            FromDaemon::Dropped { bytes } => {
                let total = dropped.load(Ordering::Acquire).saturating_add(bytes);
                dropped.store(total, Ordering::Release);
            }
            FromDaemon::Exit { code, signal, timed_out } => {
                return Ok(ExitStatus { code, signal, timed_out });
            }
            FromDaemon::Failed { guest, problem } => return Err(failed(guest, problem)),
            FromDaemon::Window { stream, .. } | FromDaemon::Eof { stream } => {
                return Err(protocol(vm, format!("a message about stream {stream}")));
            }
            FromDaemon::Opened { .. } => return Err(protocol(vm, "a second `opened`")),
        }
    }
    Err(Error::Broken { vm: vm.to_owned() })
}

fn accept_data(vm: &str, data: Bytes, stdout: &mut Inlet, stderr: &mut Inlet) -> Result<(), Error> {
    let inlet = match data.first() {
        Some(&STDOUT) => stdout,
        Some(&STDERR) => stderr,
        other => return Err(protocol(vm, format!("data on stream {other:?}"))),
    };
    inlet.push(data.slice(1..)).map_err(|_| protocol(vm, "data beyond its credit or its end"))
}

fn accept_credit(vm: &str, credit: &Semaphore, bytes: u32) -> Result<(), Error> {
    // More than one window cannot be outstanding, so more cannot come back.
    if credit.available_permits().saturating_add(bytes as usize) > WINDOW as usize {
        return Err(protocol(vm, "more credit than one window"));
    }
    credit.add_permits(bytes as usize);
    Ok(())
}

/// Sends control messages and input until the receiving side ends the session: a socket that
/// takes nothing more may still hold the reason, so failing to send is no verdict. What is there
/// together goes together.
async fn transmit(
    mut sink: SplitSink<Socket, Message>,
    mut control: UnboundedReceiver<ToDaemon>,
    mut stdin: DuplexStream,
    credit: &Semaphore,
) -> std::convert::Infallible {
    let mut buffer = vec![0; MAX_DATA];
    let mut input_open = true;
    loop {
        let message = {
            let next = next_message(&mut control, &mut stdin, credit, (&mut buffer, &mut input_open));
            let mut next = std::pin::pin!(next);
            match next.as_mut().now_or_never() {
                Some(message) => message,
                None if sink.flush().await.is_err() => break,
                None => next.await,
            }
        };
        if sink.feed(message).await.is_err() {
            break;
        }
    }
    std::future::pending().await
}

/// The next thing to be sent. Cancel-safe.
async fn next_message(
    control: &mut UnboundedReceiver<ToDaemon>,
    stdin: &mut DuplexStream,
    credit: &Semaphore,
    (buffer, input_open): (&mut [u8], &mut bool),
) -> Message {
    tokio::select! {
        biased;
        // A signal goes before data. `None` cannot come: the session's inlets hold senders.
        Some(message) = control.recv() => text(&message),
        bytes = next_input(stdin, credit, buffer), if *input_open => match bytes {
            0 => {
                *input_open = false;
                text(&ToDaemon::Eof {})
            }
            bytes => data(&buffer[..bytes]),
        },
    }
}

fn text(message: &ToDaemon) -> Message {
    // Numbers and names only: there is nothing in it that JSON could refuse.
    Message::text(serde_json::to_string(message).unwrap_or_default())
}

fn data(bytes: &[u8]) -> Message {
    let mut message = Vec::with_capacity(bytes.len() + 1);
    message.push(STDIN);
    message.extend_from_slice(bytes);
    Message::binary(message)
}

/// Reads as much input as there is credit for; 0 is the end. Cancel-safe: the credit is taken
/// only with bytes in hand.
async fn next_input(stdin: &mut DuplexStream, credit: &Semaphore, buffer: &mut [u8]) -> usize {
    // The semaphore is never closed.
    let Ok(first) = credit.acquire().await else { return 0 };
    let most = buffer.len().min(credit.available_permits() + 1);
    // Reading a duplex stream does not fail; its writer's end is its end.
    let bytes = stdin.read(&mut buffer[..most]).await.unwrap_or(0);
    if let Some(more) = bytes.checked_sub(1) {
        first.forget();
        if let Ok(rest) = credit.try_acquire_many(u32::try_from(more).unwrap_or(0)) {
            rest.forget();
        }
    }
    bytes
}
