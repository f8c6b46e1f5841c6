//! `/v1/vms/{name}/files/watch`: what changes among a guest's files, as JSON lines.
//!
//! Owns: reading what the agent says of them, line by line and within bounds. Refuses: a path that leaves the watched
//! one, since a reader may join it to one of its own. Nothing is kept: a reader that does not read stops the guest's
//! telling, whose kernel then counts what it loses.

use super::App;
use super::body::Name;
use super::guest::{Operation, QUEUE, begin, run_to_end};
use super::problem::{ApiError, guest_problem};
use crate::guest::printable;
use crate::guest::talk::{End, Piece};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use enisle_api::{Code, Problem, WatchEvent};
use enisle_guest_proto::{FileOp, Request, WatchLine};
use futures_util::stream;
use serde::Deserialize;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Longest line: two paths of 4 KiB, of which JSON may make six times as much.
const MAX_LINE: usize = 64 * 1024;
/// Time for the watches to be in place: a guest's disk may be slow, and a tree large.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WatchQuery {
    path: String,
    #[serde(default)]
    recursive: bool,
}

pub(super) async fn watch(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Result<Query<WatchQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(WatchQuery { path, recursive }) =
        asked.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    let operation = begin(&app, &name, Request::Files(FileOp::Watch { path, recursive })).await?;
    let mut telling = Telling::new(operation);
    // Only then it is known whether it works: a refusal has a status of its own.
    let first = timeout(PATIENCE, telling.next()).await.map_err(|_| {
        Problem::new(Code::Timeout, format!("VM {name} had no watch in place in {} s", PATIENCE.as_secs()))
    })??;
    let first = first.ok_or_else(|| Problem::new(Code::GuestFailed, "the guest said nothing"))?;
    let body = stream::unfold((Some(first), Some(telling)), |(first, telling)| async move {
        let mut telling = telling?;
        if let Some(first) = first {
            return Some((Ok(first), (None, Some(telling))));
        }
        match telling.next().await {
            Ok(text) => Some((Ok(text?), (None, Some(telling)))),
            Err(error) => Some((Err(broken(&error)), (None, None))),
        }
    });
    let head = [(header::CONTENT_TYPE, "application/jsonl"), (header::CACHE_CONTROL, "no-store")];
    Ok((head, Body::from_stream(body)).into_response())
}

/// Breaks the answer, so that it is not taken for the end of what is watched.
fn broken(error: &ApiError) -> io::Error {
    tracing::debug!("a watch of a guest's files breaks off: {error:?}");
    io::Error::other("the watch broke off")
}

/// A watch as it goes on.
struct Telling {
    pieces: mpsc::Receiver<Piece>,
    /// Dropped with the answer's body, when the client goes away: that ends the session, and the watch in the guest.
    task: Option<AbortOnDropHandle<Result<End, ApiError>>>,
    lines: Lines,
}

impl Telling {
    fn new(operation: Operation) -> Self {
        let (output, pieces) = mpsc::channel(QUEUE);
        let input = stream::empty::<Result<Bytes, io::Error>>();
        let task = AbortOnDropHandle::new(tokio::spawn(run_to_end(operation, input, output)));
        Self { pieces, task: Some(task), lines: Lines::default() }
    }

    /// The next lines, at least one; `None` when what was watched is gone.
    async fn next(&mut self) -> Result<Option<String>, ApiError> {
        while let Some((_, bytes)) = self.pieces.recv().await {
            let text = self.lines.take(&bytes)?;
            if !text.is_empty() {
                return Ok(Some(text));
            }
        }
        let Some(task) = self.task.take() else { return Ok(None) };
        match task.await {
            Ok(Ok(End::Exit { .. })) => self.lines.end().map(|()| None),
            Ok(Ok(End::Failed(failure))) => Err(guest_problem(&failure).into()),
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Problem::new(Code::Internal, "a defect; the daemon's log has more").into()),
        }
    }
}

/// What a guest tells, as it comes.
#[derive(Default)]
struct Lines {
    rest: Vec<u8>,
    /// The first line was there.
    begun: bool,
}

impl Lines {
    /// The whole lines among what came, as the API has them.
    fn take(&mut self, bytes: &[u8]) -> Result<String, ApiError> {
        let mut text = String::new();
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            if self.rest.len() + part.len() > MAX_LINE {
                return Err(broke("a line that does not end"));
            }
            self.rest.extend_from_slice(part);
            if self.rest.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.rest);
                let line = serde_json::from_slice(&line).map_err(|e| broke(&printable(&e.to_string())))?;
                if matches!(line, WatchLine::Watching {}) == self.begun {
                    return Err(broke("a watch begins once, with its first line"));
                }
                self.begun = true;
                // Text only: there is nothing in it that JSON could refuse.
                text.push_str(&serde_json::to_string(&shown(line)?).unwrap_or_default());
                text.push('\n');
            }
        }
        Ok(text)
    }

    fn end(&self) -> Result<(), ApiError> {
        if self.rest.is_empty() { Ok(()) } else { Err(broke("it ends in the middle of a line")) }
    }
}

fn broke(why: &str) -> ApiError {
    Problem::new(Code::GuestFailed, format!("the guest broke the protocol: {why}")).into()
}

/// A path below the watched one, or the watched one itself.
fn below(path: String) -> Result<String, ApiError> {
    let leaves = |part: &str| matches!(part, "" | "." | "..") || part.contains('\0');
    if !path.is_empty() && path.split('/').any(leaves) {
        return Err(broke("a path that is not below the watched one"));
    }
    Ok(path)
}

fn shown(line: WatchLine) -> Result<WatchEvent, ApiError> {
    Ok(match line {
        WatchLine::Watching {} => WatchEvent::Watching {},
        WatchLine::Created { path, lossy, directory } => {
            WatchEvent::Created { path: below(path)?, directory, lossy }
        }
        WatchLine::Modified { path, lossy, directory } => {
            WatchEvent::Modified { path: below(path)?, directory, lossy }
        }
        WatchLine::Removed { path, lossy, directory } => {
            WatchEvent::Removed { path: below(path)?, directory, lossy }
        }
        WatchLine::Moved { from, to, lossy, directory } => {
            WatchEvent::Moved { from: below(from)?, to: below(to)?, directory, lossy }
        }
        WatchLine::Unwatched { path, lossy, reason } => {
            WatchEvent::Unwatched { path: below(path)?, lossy, reason: printable(&reason).to_string() }
        }
        WatchLine::Dropped {} => WatchEvent::Dropped {},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const BEGIN: &[u8] = b"{\"watch\":\"watching\"}\n";

    fn begun() -> Lines {
        let mut lines = Lines::default();
        assert_eq!(lines.take(BEGIN).unwrap(), "{\"type\":\"watching\"}\n");
        lines
    }

    fn refused(lines: &mut Lines, bytes: &[u8]) -> String {
        format!("{:?}", lines.take(bytes).expect_err("it is taken"))
    }

    #[test]
    fn lines_are_taken_in_any_pieces() {
        let told = b"{\"watch\":\"created\",\"path\":\"a/b\",\"lossy\":false,\"directory\":true}\n{\"watch\":\"dropped\"}\n";
        let expected = "{\"type\":\"created\",\"path\":\"a/b\",\"directory\":true}\n{\"type\":\"dropped\"}\n";
        for step in [1, 7, 1000] {
            let mut lines = begun();
            let text: String = told.chunks(step).map(|piece| lines.take(piece).unwrap()).collect();
            assert_eq!(text, expected);
            lines.end().unwrap();
        }
        let mut half = begun();
        half.take(b"{\"watch\"").unwrap();
        assert!(half.end().is_err());
    }

    #[test]
    fn a_lying_guest_is_refused() {
        let created = |path: &str| {
            let line = WatchLine::Created { path: path.to_owned(), lossy: false, directory: false };
            let mut line = serde_json::to_vec(&line).unwrap();
            line.push(b'\n');
            line
        };
        for path in ["", "a", "a/b..", "...", "a\u{1b}b"] {
            assert!(begun().take(&created(path)).is_ok(), "{path:?}");
        }
        for path in ["/etc/passwd", "..", "a/../../b", "a//b", "a/", "./a", "a\0b"] {
            assert!(refused(&mut begun(), &created(path)).contains("not below"), "{path:?}");
        }
        let moved =
            b"{\"watch\":\"moved\",\"from\":\"a\",\"to\":\"../b\",\"lossy\":false,\"directory\":false}\n";
        assert!(refused(&mut begun(), moved).contains("not below"));
        assert!(refused(&mut Lines::default(), &created("a")).contains("first line"));
        assert!(refused(&mut begun(), BEGIN).contains("first line"));
        for line in
            ["\n", "{}\n", "{\"watch\":\"eaten\"}\n", "{\"watch\":\"dropped\",\"more\":1}\n", "\u{fffd}\n"]
        {
            assert!(refused(&mut begun(), line.as_bytes()).contains("broke the protocol"), "{line:?}");
        }
        let mut endless = begun();
        let mut taken = 0;
        while endless.take(&[b'x'; 1000]).is_ok() {
            taken += 1000;
            assert!(endless.rest.len() <= MAX_LINE && taken <= MAX_LINE);
        }
        assert!(taken > MAX_LINE - 2000, "{taken}: a long line is not refused early");
    }
}
