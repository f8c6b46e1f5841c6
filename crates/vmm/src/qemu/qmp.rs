//! Owns the control connection to one QEMU: the QEMU Machine Protocol over a unix socket.
//! Refuses to trust it: a QEMU taken over by its guest can send anything, so lines, time and
//! what is remembered are all bounded, and what is not understood is dropped.

use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::timeout;

use crate::BoxFuture;
use crate::error::Cause;
use crate::machine::Control;
use crate::pace::Pace;
use crate::supervise::{GuestEnd, GuestReport};

/// The longest line accepted; the answers used here are under 1 KiB.
const MAX_LINE: usize = 64 << 10;
/// How long a command may take. QEMU answers from its main loop, which a loaded machine or a
/// slow disk can hold up.
const COMMAND_LIMIT: Duration = Duration::from_secs(10);
/// Reading rate: a flood of events must not cost the daemon a CPU.
const BYTES_PER_SECOND: u32 = 256 << 10;
/// Commands waiting for their turn; callers beyond wait.
const QUEUE: usize = 8;
/// How much of a refusal is repeated to people.
const MAX_ANSWER: usize = 300;

/// A command and whom to tell.
struct Request {
    command: &'static str,
    reply: oneshot::Sender<Result<Value, Cause>>,
}

/// A client of one QEMU's control connection.
#[derive(Debug)]
pub(crate) struct Qmp {
    requests: mpsc::Sender<Request>,
}

/// Anything QEMU may send; one of the first four is set.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Message {
    #[serde(rename = "QMP")]
    greeting: Option<Value>,
    #[serde(rename = "return")]
    result: Option<Value>,
    error: Option<Refusal>,
    event: Option<String>,
    data: EventData,
    id: Option<u64>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Refusal {
    desc: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct EventData {
    reason: String,
}

impl Qmp {
    /// Starts the protocol. Returns when QEMU has been greeted and takes commands.
    ///
    /// Not bounded in time: QEMU greets when its machine is built. The caller knows how
    /// long that may take.
    pub(crate) async fn open(stream: UnixStream) -> Result<(Self, watch::Receiver<GuestReport>), Cause> {
        let (from, to) = stream.into_split();
        let mut session = Session {
            lines: Lines::new(from),
            to,
            report: watch::Sender::new(GuestReport::default()),
            last_id: 0,
        };
        match session.next().await? {
            Message { greeting: Some(_), .. } => {}
            other => return Err(Cause::Protocol(format!("no greeting but {other:?}"))),
        }
        let (requests, queue) = mpsc::channel(QUEUE);
        let report = session.report.subscribe();
        tokio::spawn(session.run(queue));
        let client = Self { requests };
        client.execute("qmp_capabilities").await?;
        Ok((client, report))
    }

    /// Runs a command without arguments.
    pub(crate) async fn execute(&self, command: &'static str) -> Result<Value, Cause> {
        let (reply, answer) = oneshot::channel();
        let asking = async {
            let request = Request { command, reply };
            self.requests.send(request).await.map_err(|_| Cause::Gone)?;
            answer.await.map_err(|_| Cause::Gone)?
        };
        timeout(COMMAND_LIMIT, asking)
            .await
            .unwrap_or(Err(Cause::TimedOut { what: command, limit: COMMAND_LIMIT }))
    }
}

impl Control for Qmp {
    fn start(&self) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(async { self.execute("cont").await.map(drop) })
    }

    fn power_button(&self) -> BoxFuture<'_, Result<(), Cause>> {
        Box::pin(async { self.execute("system_powerdown").await.map(drop) })
    }
}

/// The task behind a [`Qmp`]: one command at a time, events in between.
struct Session {
    lines: Lines,
    to: OwnedWriteHalf,
    report: watch::Sender<GuestReport>,
    last_id: u64,
}

impl Session {
    async fn run(mut self, mut queue: mpsc::Receiver<Request>) {
        let mut pending: Option<Request> = None;
        let failure = loop {
            tokio::select! {
                request = queue.recv(), if pending.is_none() => match request {
                    Some(request) => {
                        if let Err(cause) = self.send(request.command).await {
                            break (Some(request), cause);
                        }
                        pending = Some(request);
                    }
                    // No client is left; events still tell the guest's end.
                    None => match self.drain().await {
                        Ok(never) => match never {},
                        Err(cause) => break (None, cause),
                    },
                },
                message = self.next() => match message {
                    Ok(message) => self.answer(message, &mut pending),
                    Err(cause) => break (pending, cause),
                },
            }
        };
        if let (Some(request), cause) = failure {
            // The caller may have given up.
            let _ = request.reply.send(Err(cause));
        }
        self.report.send_modify(|report| report.complete = true);
    }

    async fn drain(&mut self) -> Result<std::convert::Infallible, Cause> {
        loop {
            self.next().await?;
        }
    }

    async fn send(&mut self, command: &'static str) -> Result<(), Cause> {
        self.last_id += 1;
        let mut line = json!({ "execute": command, "id": self.last_id }).to_string();
        line.push('\n');
        let written = timeout(COMMAND_LIMIT, self.to.write_all(line.as_bytes())).await;
        match written {
            Ok(Ok(())) => Ok(()),
            Ok(Err(error)) => Err(Cause::Protocol(error.to_string())),
            Err(_) => Err(Cause::TimedOut { what: command, limit: COMMAND_LIMIT }),
        }
    }

    fn answer(&self, message: Message, pending: &mut Option<Request>) {
        // An answer to anything but the last command is one nobody waits for any more.
        if message.id != Some(self.last_id) {
            return;
        }
        let Some(request) = pending.take() else {
            return;
        };
        let outcome = match message.error {
            Some(refusal) => Err(Cause::Refused {
                command: request.command,
                answer: refusal.desc.chars().take(MAX_ANSWER).collect(),
            }),
            None => Ok(message.result.unwrap_or_default()),
        };
        let _ = request.reply.send(outcome);
    }

    /// The next message that is no event; events are noted on the way. Dropping the future
    /// loses nothing.
    async fn next(&mut self) -> Result<Message, Cause> {
        loop {
            let line = self.lines.next().await?;
            let message: Message = serde_json::from_slice(&line)
                .map_err(|error| Cause::Protocol(format!("not a message: {error}")))?;
            let Some(event) = &message.event else {
                return Ok(message);
            };
            if event == DISK_FAILED {
                // A guest can make as many of them as it likes.
                self.report.send_if_modified(|report| !std::mem::replace(&mut report.disk_failed, true));
            }
            if let Some(end) = guest_end(event, &message.data.reason) {
                // The first word counts: a panic is followed by a shutdown.
                self.report.send_modify(|report| report.end = report.end.or(Some(end)));
            }
        }
    }
}

/// `BLOCK_IO_ERROR` of QEMU's `qapi/block-core.json`.
const DISK_FAILED: &str = "BLOCK_IO_ERROR";

/// `ShutdownCause` and `GUEST_PANICKED` of QEMU's `qapi/run-state.json`.
fn guest_end(event: &str, reason: &str) -> Option<GuestEnd> {
    match (event, reason) {
        ("GUEST_PANICKED", _) | ("SHUTDOWN", "guest-panic") => Some(GuestEnd::Panicked),
        ("SHUTDOWN", "guest-shutdown") => Some(GuestEnd::PoweredOff),
        ("SHUTDOWN", "guest-reset") => Some(GuestEnd::Reset),
        ("SHUTDOWN", _) => Some(GuestEnd::HostRequest),
        _ => None,
    }
}

/// Bounded lines; [`Lines::next`] loses nothing when it is dropped.
struct Lines {
    from: OwnedReadHalf,
    buffer: Vec<u8>,
    pace: Pace,
    /// Bytes read and not yet paced for.
    unpaced: usize,
}

impl Lines {
    fn new(from: OwnedReadHalf) -> Self {
        Self { from, buffer: Vec::new(), pace: Pace::new(BYTES_PER_SECOND, BYTES_PER_SECOND), unpaced: 0 }
    }

    async fn next(&mut self) -> Result<Vec<u8>, Cause> {
        loop {
            if let Some(end) = self.buffer.iter().position(|&byte| byte == b'\n') {
                return Ok(self.buffer.drain(..=end).collect());
            }
            if self.buffer.len() >= MAX_LINE {
                return Err(Cause::Protocol("a line is too long".into()));
            }
            self.pace.spent(std::mem::take(&mut self.unpaced)).await;
            let read = self.from.read_buf(&mut self.buffer).await;
            match read {
                Ok(0) => return Err(Cause::Gone),
                Ok(bytes) => self.unpaced = bytes,
                Err(error) => return Err(Cause::Protocol(error.to_string())),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncBufReadExt, BufReader};

    use super::*;

    const GREETING: &str = "{\"QMP\": {\"version\": {}, \"capabilities\": []}}\n";

    /// A QEMU that greets, accepts the negotiation, and then says `script` after the next
    /// command.
    fn fake(script: &'static str) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (from, mut to) = theirs.into_split();
            let mut lines = BufReader::new(from).lines();
            to.write_all(GREETING.as_bytes()).await.unwrap();
            lines.next_line().await.unwrap();
            to.write_all(b"{\"return\": {}, \"id\": 1}\n").await.unwrap();
            if lines.next_line().await.unwrap().is_some() {
                to.write_all(script.as_bytes()).await.unwrap();
            }
        });
        ours
    }

    #[tokio::test]
    async fn an_answer_is_matched_by_its_number_with_events_in_between() {
        let script = "{\"event\": \"STOP\", \"timestamp\": {}}\n\
                      {\"return\": {}, \"id\": 1}\n\
                      {\"error\": {\"class\": \"GenericError\", \"desc\": \"no\"}, \"id\": 2}\n";
        let (client, _) = Qmp::open(fake(script)).await.unwrap();
        let refused = client.execute("cont").await.unwrap_err();
        assert_eq!(refused.to_string(), "the VMM refused `cont`: no");
    }

    #[tokio::test]
    async fn the_first_reported_end_stays_and_the_end_of_the_stream_completes_it() {
        let script = "{\"event\": \"GUEST_PANICKED\", \"data\": {\"action\": \"pause\"}}\n\
                      {\"event\": \"SHUTDOWN\", \"data\": {\"reason\": \"guest-reset\"}}\n\
                      {\"event\": \"BLOCK_IO_ERROR\", \"data\": {\"reason\": \"No space left\"}}\n\
                      {\"return\": {}, \"id\": 2}\n";
        let (client, mut report) = Qmp::open(fake(script)).await.unwrap();
        client.execute("cont").await.unwrap();
        let last = *report.wait_for(|report| report.complete).await.unwrap();
        assert_eq!(last.end, Some(GuestEnd::Panicked));
        assert!(last.disk_failed);
        assert!(matches!(client.execute("stop").await, Err(Cause::Gone)));
    }

    #[tokio::test]
    async fn endless_lines_and_garbage_end_the_session() {
        for bytes in [vec![b'x'; 2 * MAX_LINE], b"not json\n".to_vec()] {
            let (ours, mut theirs) = UnixStream::pair().unwrap();
            let writer = tokio::spawn(async move { theirs.write_all(&bytes).await });
            let failed = Qmp::open(ours).await.unwrap_err();
            assert!(matches!(failed, Cause::Protocol(_)), "{failed}");
            writer.abort();
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_bounded() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (from, mut to) = theirs.into_split();
        to.write_all(GREETING.as_bytes()).await.unwrap();
        let failed = Qmp::open(ours).await.unwrap_err();
        assert!(matches!(failed, Cause::TimedOut { .. }), "{failed}");
        drop((from, to));
    }
}
