//! `/v1/vms/{name}/processes/…`: background processes of a guest.
//!
//! Owns: reading what the agent says of them, with bounds. Refuses: keeping any of it, which the agent does; and
//! output as it comes, which is a stream.

use super::App;
use super::body::{Body, Name};
use super::guest::{Capture, Operation, QUEUE, begin, invalid, run_to_end};
use super::problem::{ApiError, guest_problem};
use crate::guest::printable;
use crate::guest::talk::{End, Piece};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{FromRequestParts, Path, Query, State};
use axum::http::StatusCode;
use axum::http::request::Parts;
use enisle_api::stream::STDERR;
use enisle_api::{
    Code, MAX_PROCESSES, PROCESS_OUTPUT, Problem, Process, ProcessOutput, ProcessSignal, ProcessState,
    RUN_DEFAULT_MS, RUN_MAX_MS, StartProcess,
};
use enisle_guest_proto::{self as proto, OutputHead, ProcessInfo, ProcessOp, Request};
use futures_util::stream;
use serde::Deserialize;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest line about one process: what it was started with fitted a frame of 32 KiB.
const MAX_LINE: usize = 64 * 1024;
/// Most bytes about all of them.
const MAX_LINES: usize = MAX_LINE * MAX_PROCESSES;
/// Both protocols say how many there are, and how much of an output is kept.
const _: () = assert!(MAX_PROCESSES == proto::MAX_PROCESSES && PROCESS_OUTPUT == proto::RING);
/// Longest first line of an output.
const MAX_HEAD: usize = 256;
/// A guest may be slow. A process that was killed ends within 10 s, or its removal fails.
const PATIENCE: Duration = Duration::from_secs(120);

/// The name of a VM and the number of one of its processes, in a request's path.
pub(super) struct Place {
    name: String,
    id: u32,
}

impl<S: Send + Sync> FromRequestParts<S> for Place {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path((name, id)) = Path::from_request_parts(parts, state)
            .await
            .map_err(|e| Problem::new(Code::InvalidRequest, format!("the path: {}", e.body_text())))?;
        Ok(Self { name, id })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OutputQuery {
    #[serde(default)]
    since: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WaitQuery {
    timeout_ms: Option<u64>,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

fn query<T>(asked: Asked<T>) -> Result<T, ApiError> {
    let Query(query) = asked.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    Ok(query)
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Name(name): Name,
) -> Result<Json<Vec<Process>>, ApiError> {
    let lines = heard_lines(&app, &name, ProcessOp::List {}, Bounds { bytes: MAX_LINES, ..ONE }).await?;
    processes(&lines).map(Json)
}

pub(super) async fn start(
    State(app): State<Arc<App>>,
    Name(name): Name,
    Body(start): Body<StartProcess>,
) -> Result<(StatusCode, Json<Process>), ApiError> {
    if start.argv.is_empty() {
        return Err(invalid("/argv", "`argv` must have at least the program").into());
    }
    if start.timeout_ms == Some(0) {
        return Err(invalid("/timeout_ms", "`timeout_ms` must be at least 1").into());
    }
    let StartProcess { argv, env, cwd, user, timeout_ms } = start;
    let exec = proto::Exec { argv, env, cwd, user, tty: None, timeout_ms };
    let process = ask(&app, &name, ProcessOp::Start(exec), ONE).await?;
    Ok((StatusCode::CREATED, Json(process)))
}

pub(super) async fn show(State(app): State<Arc<App>>, place: Place) -> Result<Json<Process>, ApiError> {
    let Place { name, id } = place;
    Ok(Json(numbered(ask(&app, &name, ProcessOp::Show { id }, ONE).await?, id)?))
}

pub(super) async fn signal(
    State(app): State<Arc<App>>,
    place: Place,
    Body(ProcessSignal { signal }): Body<ProcessSignal>,
) -> Result<StatusCode, ApiError> {
    if !(1..=64).contains(&signal) {
        return Err(invalid("/signal", "`signal` must be 1 to 64").into());
    }
    let Place { name, id } = place;
    heard_lines(&app, &name, ProcessOp::Signal { id, signal }, ONE).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn wait(
    State(app): State<Arc<App>>,
    place: Place,
    asked: Asked<WaitQuery>,
) -> Result<Json<Process>, ApiError> {
    let timeout_ms = query(asked)?.timeout_ms.unwrap_or(RUN_DEFAULT_MS);
    if !(1..=RUN_MAX_MS).contains(&timeout_ms) {
        let said = format!("`timeout_ms` must be 1 to {RUN_MAX_MS}");
        return Err(Problem::new(Code::InvalidRequest, said).into());
    }
    let Place { name, id } = place;
    let asked = Duration::from_millis(timeout_ms);
    let (bounds, begun) = (Bounds { patience: PATIENCE + asked, ..ONE }, Instant::now());
    let process = numbered(ask(&app, &name, ProcessOp::Wait { id, timeout_ms }, bounds).await?, id)?;
    if process.state == ProcessState::Running {
        // Whoever waits asks again at once: a guest that does not wait would keep everybody busy.
        if begun.elapsed() < asked / 2 {
            return Err(broke("it did not wait as long as it was asked to"));
        }
        let said = format!("process {id} of VM {name} did not end in {timeout_ms} ms");
        return Err(Problem::new(Code::Timeout, said).into());
    }
    Ok(Json(process))
}

pub(super) async fn remove(State(app): State<Arc<App>>, place: Place) -> Result<StatusCode, ApiError> {
    let Place { name, id } = place;
    heard_lines(&app, &name, ProcessOp::Remove { id }, ONE).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn output(
    State(app): State<Arc<App>>,
    place: Place,
    asked: Asked<OutputQuery>,
) -> Result<Json<ProcessOutput>, ApiError> {
    let since = query(asked)?.since;
    let Place { name, id } = place;
    let operation = begin(&app, &name, Request::Process(ProcessOp::Output { id, since })).await?;
    let mut output = Output::default();
    heard(&name, operation, PATIENCE, |stream, bytes| output.take(stream, bytes)).await?;
    output.finish(since).map(Json)
}

/// How much a guest may say, and for how long.
#[derive(Clone, Copy)]
struct Bounds {
    bytes: usize,
    patience: Duration,
}

/// About one process.
const ONE: Bounds = Bounds { bytes: MAX_LINE, patience: PATIENCE };

/// Has it done; the one process that the guest tells of.
async fn ask(app: &App, name: &str, op: ProcessOp, bounds: Bounds) -> Result<Process, ApiError> {
    one(processes(&heard_lines(app, name, op, bounds).await?)?)
}

/// Has it done; what the guest says.
async fn heard_lines(app: &App, name: &str, op: ProcessOp, bounds: Bounds) -> Result<Vec<u8>, ApiError> {
    let operation = begin(app, name, Request::Process(op)).await?;
    let mut said = Vec::new();
    heard(name, operation, bounds.patience, |stream, bytes| {
        if stream == STDERR || said.len() + bytes.len() > bounds.bytes {
            return Err(broke("more than there can be about processes"));
        }
        said.extend_from_slice(bytes);
        Ok(())
    })
    .await?;
    Ok(said)
}

/// Takes what the guest says until it has ended the operation.
async fn heard(
    name: &str,
    operation: Operation,
    patience: Duration,
    mut take: impl FnMut(u8, &[u8]) -> Result<(), ApiError>,
) -> Result<(), ApiError> {
    let (output, mut pieces) = mpsc::channel::<Piece>(QUEUE);
    let input = stream::empty::<Result<Bytes, io::Error>>();
    let read = async {
        while let Some((stream, bytes)) = pieces.recv().await {
            take(stream, &bytes)?;
        }
        Ok(())
    };
    let both = async { tokio::try_join!(run_to_end(operation, input, output), read) };
    let (end, ()) = timeout(patience, both).await.map_err(|_| {
        Problem::new(Code::Timeout, format!("VM {name} did not answer in {} s", patience.as_secs()))
    })??;
    match end {
        End::Exit { .. } => Ok(()),
        End::Failed(failure) => Err(guest_problem(&failure).into()),
    }
}

fn broke(why: &str) -> ApiError {
    Problem::new(Code::GuestFailed, format!("the guest broke the protocol: {why}")).into()
}

fn processes(said: &[u8]) -> Result<Vec<Process>, ApiError> {
    let lines: Vec<&[u8]> = said.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    if lines.len() > MAX_PROCESSES || lines.iter().any(|line| line.len() > MAX_LINE) {
        return Err(broke("more processes than it keeps, or more about one than it was told"));
    }
    let read =
        |line: &&[u8]| serde_json::from_slice(line).map(shown).map_err(|e| broke(&printable(&e.to_string())));
    lines.iter().map(read).collect()
}

/// The only one.
fn one(processes: Vec<Process>) -> Result<Process, ApiError> {
    let only = <[Process; 1]>::try_from(processes);
    only.map(|[process]| process).map_err(|_| broke("not one process"))
}

/// The one that was asked for.
fn numbered(process: Process, id: u32) -> Result<Process, ApiError> {
    if process.id == id { Ok(process) } else { Err(broke("not the process that was asked for")) }
}

fn shown(info: ProcessInfo) -> Process {
    let (state, exit_code, signal, timed_out) = match info.state {
        proto::ProcessState::Running {} => (ProcessState::Running, None, None, false),
        proto::ProcessState::Ended { code, signal: None, timed_out } => {
            (ProcessState::Exited, Some(code), None, timed_out)
        }
        proto::ProcessState::Ended { code, signal, timed_out } => {
            (ProcessState::Killed, Some(code), signal, timed_out)
        }
    };
    Process {
        id: info.id,
        pid: info.pid,
        argv: info.argv,
        cwd: info.cwd,
        user: info.user,
        started_ms: info.started_ms,
        state,
        exit_code,
        signal,
        timed_out,
        output_bytes: info.written,
        dropped_bytes: info.dropped,
    }
}

/// The output of a process as it comes: a line about it, then what the process wrote.
#[derive(Default)]
struct Output {
    line: Vec<u8>,
    head: Option<OutputHead>,
    stdout: Capture,
    stderr: Capture,
}

impl Output {
    fn take(&mut self, stream: u8, mut bytes: &[u8]) -> Result<(), ApiError> {
        if stream == STDERR {
            self.stderr.take(bytes);
        } else {
            if self.head.is_none() {
                let end = bytes.iter().position(|byte| *byte == b'\n');
                let (line, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
                self.line.extend_from_slice(line);
                if self.line.len() > MAX_HEAD {
                    return Err(broke("a line that does not end"));
                }
                let Some((_, rest)) = rest.split_first() else { return Ok(()) };
                let head =
                    serde_json::from_slice(&self.line).map_err(|e| broke(&printable(&e.to_string())))?;
                self.head = Some(head);
                bytes = rest;
            }
            self.stdout.take(bytes);
        }
        if self.stdout.bytes + self.stderr.bytes > PROCESS_OUTPUT as u64 {
            return Err(broke("more output than it keeps"));
        }
        Ok(())
    }

    fn finish(self, since: u64) -> Result<ProcessOutput, ApiError> {
        let OutputHead { dropped, running } = self.head.ok_or_else(|| broke("an output without its head"))?;
        let next =
            since.checked_add(dropped).and_then(|at| at.checked_add(self.stdout.bytes + self.stderr.bytes));
        Ok(ProcessOutput {
            stdout: self.stdout.finish(),
            stderr: self.stderr.finish(),
            next: next.ok_or_else(|| broke("more output than can be counted"))?,
            dropped,
            running,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_api::stream::STDOUT;

    fn info(id: u32) -> ProcessInfo {
        ProcessInfo {
            id,
            pid: 7,
            argv: vec!["a\n\"b".into()],
            cwd: "/".into(),
            user: "root".into(),
            started_ms: 1,
            state: proto::ProcessState::Ended { code: 137, signal: Some(9), timed_out: true },
            written: 10,
            dropped: 3,
        }
    }

    fn lines(count: u32) -> Vec<u8> {
        (1..=count).flat_map(|id| [serde_json::to_vec(&info(id)).unwrap(), vec![b'\n']].concat()).collect()
    }

    #[test]
    fn no_more_processes_than_there_can_be_and_only_the_one_asked_for() {
        let all = processes(&lines(64)).unwrap();
        assert_eq!((all.len(), all[63].id, all[0].argv[0].as_str()), (64, 64, "a\n\"b"));
        assert_eq!(
            (all[0].state, all[0].exit_code, all[0].timed_out),
            (ProcessState::Killed, Some(137), true)
        );
        for bad in [lines(65), b"{}\n".to_vec(), b"x".to_vec()] {
            assert_eq!(processes(&bad).unwrap_err().problem().code, Code::GuestFailed);
        }
        let long = ProcessInfo { argv: vec!["x".repeat(MAX_LINE)], ..info(1) };
        assert!(processes(&serde_json::to_vec(&long).unwrap()).is_err());
        let only = |count| one(processes(&lines(count)).unwrap());
        assert!(numbered(only(1).unwrap(), 1).is_ok() && numbered(only(1).unwrap(), 2).is_err());
        assert!(only(2).is_err() && only(0).is_err());
    }

    #[test]
    fn an_output_is_read_in_any_pieces_and_counted() {
        let whole = b"{\"dropped\":5,\"running\":true}\nout\nput".as_slice();
        for size in 1..=whole.len() {
            let mut output = Output::default();
            output.take(STDERR, b"err").unwrap();
            whole.chunks(size).for_each(|piece| output.take(STDOUT, piece).unwrap());
            let output = output.finish(100).unwrap();
            assert_eq!((output.next, output.dropped, output.running), (100 + 5 + 10, 5, true), "{size}");
            assert_eq!((output.stdout.data.as_str(), output.stderr.data.as_str()), ("out\nput", "err"));
        }
    }

    #[test]
    fn what_a_guest_makes_up_is_bounded() {
        let head = b"{\"dropped\":18446744073709551615,\"running\":false}\n";
        let mut output = Output::default();
        output.take(STDOUT, head).unwrap();
        output.take(STDOUT, &vec![b'x'; PROCESS_OUTPUT]).unwrap();
        assert!(output.take(STDERR, b"x").is_err(), "more than a ring");
        assert!(output.finish(0).is_err(), "a sum that overflows");
        assert!(Output::default().finish(0).is_err());
        assert!(Output::default().take(STDOUT, &[b'x'; MAX_HEAD + 1]).is_err());
        assert!(Output::default().take(STDOUT, b"{\"dropped\":-1,\"running\":false}\n").is_err());
    }
}
