//! `/v1/vms/{name}/exec`, `/files` and `/archive`: what a guest does in one request and answer.
//!
//! Owns: opening a session for a request, and turning its bytes into bodies. Refuses: buffering more than
//! [`MAX_CAPTURED`] of an output. A client that goes away drops the session, which ends the operation in the
//! guest: processes are killed, unfinished files removed.

use super::App;
use super::body::{Body, Name};
use super::problem::{ApiError, guest_problem, open_problem};
use crate::guest::session::{self, Session};
use crate::guest::talk::{self, End, Piece, TalkError};
use crate::vm::lifetime::StreamPlace;
use crate::vm::{Handle, VmError};
use axum::Json;
use axum::body::{Body as RawBody, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use enisle_api::stream::{Exec, Open, STDERR};
use enisle_api::{
    Captured, Code, Encoding, MAX_CAPTURED, Problem, RUN_DEFAULT_MS, RUN_MAX_MS, RunExec, RunOutcome,
};
use enisle_guest_proto::Request;
use futures_util::stream;
use serde::Deserialize;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// A VM that still boots is waited for this long.
const READY_PATIENCE: Duration = Duration::from_secs(80);
/// The guest ends a process at its time-out; a guest that does not is left after so much more.
const TIMEOUT_MARGIN: Duration = Duration::from_secs(30);
/// Pieces of output on their way to a client.
pub(super) const QUEUE: usize = 8;

/// An operation in a guest: its session, and its place among the VM's streams.
pub(super) struct Operation {
    vm: Handle,
    session: Session,
    place: StreamPlace,
}

pub(super) async fn begin(app: &App, name: &str, request: Request) -> Result<Operation, ApiError> {
    let vm = app.registry.get(name)?;
    vm.answers()?;
    let place = vm.stream_place()?;
    vm.ready(READY_PATIENCE).await?;
    let machine = vm.machine_now().ok_or_else(|| VmError::Stopping { name: name.to_owned() })?;
    let opened = async {
        let _turn = vm.turn(&request).await?;
        session::open(&*machine, request).await.map_err(|e| ApiError::from(open_problem(&e)))
    };
    let session = tokio::select! {
        session = opened => session?,
        ended = vm.guest_ended() => return Err(ended.into()),
    };
    Ok(Operation { vm, session, place })
}

/// Runs an operation to its end, or the VM's.
pub(super) async fn run_to_end<E: std::fmt::Display>(
    operation: Operation,
    input: impl stream::Stream<Item = Result<Bytes, E>>,
    output: mpsc::Sender<Piece>,
) -> Result<End, ApiError> {
    let Operation { vm, session, place: _place } = operation;
    tokio::select! {
        end = talk::run(session, input, output) => end.map_err(|error| {
            let code = if matches!(error, TalkError::Input(_)) { Code::InvalidRequest } else { Code::GuestFailed };
            Problem::new(code, error.to_string()).into()
        }),
        ended = vm.guest_ended() => Err(ended.into()),
    }
}

pub(super) async fn exec(
    State(app): State<Arc<App>>,
    Name(name): Name,
    Body(run): Body<RunExec>,
) -> Result<Json<RunOutcome>, ApiError> {
    let stdin = stdin(&run)?;
    let limit = run.timeout_ms.unwrap_or(RUN_DEFAULT_MS);
    if !(1..=RUN_MAX_MS).contains(&limit) {
        return Err(invalid("/timeout_ms", "`timeout_ms` must be 1 to 3600000").into());
    }
    if run.argv.is_empty() {
        return Err(invalid("/argv", "`argv` must have at least the program").into());
    }
    let RunExec { argv, env, cwd, user, .. } = run;
    let exec = Exec { argv, env, cwd, user, tty: None, timeout_ms: Some(limit) };
    let operation = begin(&app, &name, session::request(Open::Exec(exec))).await?;
    let (output, mut pieces) = mpsc::channel::<Piece>(QUEUE);
    let input = stream::iter([Ok::<_, io::Error>(stdin)]);
    let (mut stdout, mut stderr) = (Capture::default(), Capture::default());
    let collect = async {
        while let Some((stream, bytes)) = pieces.recv().await {
            if stream == STDERR { stderr.take(&bytes) } else { stdout.take(&bytes) }
        }
    };
    let both = async { tokio::join!(run_to_end(operation, input, output), collect).0 };
    let patience = Duration::from_millis(limit) + TIMEOUT_MARGIN;
    let end = timeout(patience, both)
        .await
        .map_err(|_| Problem::new(Code::Timeout, format!("VM {name} did not end the process in time")))??;
    match end {
        End::Exit { code, signal, timed_out } => Ok(Json(RunOutcome {
            exit_code: code,
            signal,
            timed_out,
            stdout: stdout.finish(),
            stderr: stderr.finish(),
        })),
        End::Failed(failure) => Err(guest_problem(&failure).into()),
    }
}

pub(super) fn invalid(pointer: &str, detail: &str) -> Problem {
    Problem::new(Code::InvalidRequest, detail).pointer(pointer)
}

fn stdin(run: &RunExec) -> Result<Bytes, ApiError> {
    match (&run.stdin, &run.stdin_base64) {
        (Some(_), Some(_)) => Err(invalid("/stdin_base64", "there are `stdin` and `stdin_base64`").into()),
        (Some(text), None) => Ok(Bytes::from(text.clone())),
        (None, Some(text)) => STANDARD
            .decode(text)
            .map(Bytes::from)
            .map_err(|e| invalid("/stdin_base64", &format!("`stdin_base64` is no base64: {e}")).into()),
        (None, None) => Ok(Bytes::new()),
    }
}

/// The beginning of an output, and how much there was.
#[derive(Default)]
pub(super) struct Capture {
    kept: Vec<u8>,
    pub(super) bytes: u64,
}

impl Capture {
    pub(super) fn take(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        let room = MAX_CAPTURED - self.kept.len();
        self.kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    pub(super) fn finish(mut self) -> Captured {
        let truncated = self.bytes > self.kept.len() as u64;
        if truncated
            && let Err(error) = std::str::from_utf8(&self.kept)
            && error.error_len().is_none()
        {
            // The cut went through a character.
            self.kept.truncate(error.valid_up_to());
        }
        let (encoding, data) = match String::from_utf8(self.kept) {
            Ok(text) => (Encoding::Utf8, text),
            Err(error) => (Encoding::Base64, STANDARD.encode(error.as_bytes())),
        };
        Captured { encoding, data, truncated, bytes: self.bytes }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PathQuery {
    path: String,
}

type Asked = Result<Query<PathQuery>, QueryRejection>;

fn path(asked: Asked) -> Result<String, ApiError> {
    let Query(query) = asked.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    Ok(query.path)
}

pub(super) async fn read_file(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked,
) -> Result<Response, ApiError> {
    let open = Open::ArchiveOut { path: path(asked)?, raw: true };
    send("application/octet-stream", begin(&app, &name, session::request(open)).await?)
}

pub(super) async fn read_archive(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked,
) -> Result<Response, ApiError> {
    let open = Open::ArchiveOut { path: path(asked)?, raw: false };
    send("application/x-tar", begin(&app, &name, session::request(open)).await?)
}

pub(super) async fn write_file(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked,
    body: RawBody,
) -> Result<StatusCode, ApiError> {
    receive(&app, &name, Open::ArchiveIn { path: path(asked)?, raw: true }, body).await
}

pub(super) async fn write_archive(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked,
    body: RawBody,
) -> Result<StatusCode, ApiError> {
    receive(&app, &name, Open::ArchiveIn { path: path(asked)?, raw: false }, body).await
}

async fn receive(app: &App, name: &str, open: Open, body: RawBody) -> Result<StatusCode, ApiError> {
    let operation = begin(app, name, session::request(open)).await?;
    // Nothing comes back from a copy; what a guest sends all the same ends it.
    let (output, _) = mpsc::channel(1);
    match run_to_end(operation, body.into_data_stream(), output).await? {
        End::Exit { .. } => Ok(StatusCode::NO_CONTENT),
        End::Failed(failure) => Err(guest_problem(&failure).into()),
    }
}

/// A body that is being read from a guest.
struct Sending {
    pieces: mpsc::Receiver<Piece>,
    /// Dropped with the body, when the client goes away.
    task: AbortOnDropHandle<Result<End, ApiError>>,
}

/// The guest's bytes as they come. What breaks after the head was sent breaks the connection, so that
/// half a file is not taken for a whole one.
fn send(kind: &'static str, operation: Operation) -> Result<Response, ApiError> {
    let (output, pieces) = mpsc::channel(QUEUE);
    let input = stream::empty::<Result<Bytes, io::Error>>();
    let task = AbortOnDropHandle::new(tokio::spawn(run_to_end(operation, input, output)));
    let body = stream::unfold(Some(Sending { pieces, task }), |sending| async move {
        let mut sending = sending?;
        if let Some((_, bytes)) = sending.pieces.recv().await {
            return Some((Ok(Bytes::from(bytes)), Some(sending)));
        }
        match sending.task.await {
            Ok(Ok(End::Exit { .. })) => None,
            Ok(Ok(End::Failed(failure))) => Some((Err(broken(&guest_problem(&failure).detail)), None)),
            Ok(Err(error)) => Some((Err(broken(&format!("{error:?}"))), None)),
            Err(_) => Some((Err(broken("a defect")), None)),
        }
    });
    Ok(([(header::CONTENT_TYPE, kind)], RawBody::from_stream(body)).into_response())
}

fn broken(why: &str) -> io::Error {
    tracing::debug!("a file from a guest breaks off: {why}");
    io::Error::other(why.to_owned())
}
