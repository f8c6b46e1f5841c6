//! `/v1/vms/{name}/files/…`: files of a guest looked at, listed, made and removed.
//!
//! Owns: reading what the agent says of them, with bounds. Refuses: contents (`guest`).

use super::App;
use super::body::Name;
use super::guest::{Operation, QUEUE, begin, run_to_end};
use super::problem::{ApiError, guest_problem};
use crate::guest::printable;
use crate::guest::talk::{End, Piece};
use axum::Json;
use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use enisle_api::{Code, FileInfo, FileKind, FileList, MAX_ENTRIES, Problem};
use enisle_guest_proto::{self as proto, FileOp, Request};
use futures_util::stream;
use serde::Deserialize;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// Longest line about one file: two paths of 4 KiB, of which JSON may make six times as much.
const MAX_LINE: usize = 64 * 1024;
/// Most bytes of descriptions that are kept of one directory: ten thousand names of usual length take a
/// quarter of it. A guest says what it likes, and many may be asked at once.
const MAX_KEPT: usize = 8 * 1024 * 1024;
/// A guest's disk may be slow, and a tree large.
const PATIENCE: Duration = Duration::from_secs(300);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PathQuery {
    path: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MakeQuery {
    path: String,
    #[serde(default)]
    parents: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveQuery {
    path: String,
    #[serde(default)]
    recursive: bool,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

fn query<T>(asked: Asked<T>) -> Result<T, ApiError> {
    let Query(query) = asked.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    Ok(query)
}

pub(super) async fn stat(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked<PathQuery>,
) -> Result<Json<FileInfo>, ApiError> {
    let path = query(asked)?.path;
    let lines = ask(&app, &name, FileOp::Stat { path }, 1).await?;
    let first = lines.files.into_iter().next();
    first.map(Json).ok_or_else(|| Problem::new(Code::GuestFailed, "the guest said nothing").into())
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked<PathQuery>,
) -> Result<Json<FileList>, ApiError> {
    let path = query(asked)?.path;
    let Lines { mut files, truncated, .. } = ask(&app, &name, FileOp::List { path }, MAX_ENTRIES).await?;
    files.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(Json(FileList { entries: files, truncated }))
}

pub(super) async fn make_dir(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked<MakeQuery>,
) -> Result<StatusCode, ApiError> {
    let MakeQuery { path, parents } = query(asked)?;
    ask(&app, &name, FileOp::MakeDir { path, parents }, 0).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn remove(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked<RemoveQuery>,
) -> Result<StatusCode, ApiError> {
    let RemoveQuery { path, recursive } = query(asked)?;
    ask(&app, &name, FileOp::Remove { path, recursive }, 0).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Has it done; what the guest describes, at most `most` files.
async fn ask(app: &App, name: &str, op: FileOp, most: usize) -> Result<Lines, ApiError> {
    let operation = begin(app, name, Request::Files(op)).await?;
    let done = timeout(PATIENCE, described(operation, most)).await;
    done.map_err(|_| {
        Problem::new(Code::Timeout, format!("VM {name} did not answer in {} s", PATIENCE.as_secs()))
    })?
}

async fn described(operation: Operation, most: usize) -> Result<Lines, ApiError> {
    let (output, mut pieces) = mpsc::channel::<Piece>(QUEUE);
    let input = stream::empty::<Result<Bytes, io::Error>>();
    let mut lines = Lines { most, ..Lines::default() };
    let read = async {
        while let Some((_, bytes)) = pieces.recv().await {
            lines.take(&bytes)?;
        }
        Ok(())
    };
    let (end, ()) = tokio::try_join!(run_to_end(operation, input, output), read)?;
    match end {
        End::Exit { .. } => Ok(lines),
        End::Failed(failure) => Err(guest_problem(&failure).into()),
    }
}

/// What a guest describes, as it comes.
#[derive(Default)]
struct Lines {
    most: usize,
    files: Vec<FileInfo>,
    truncated: bool,
    kept: usize,
    rest: Vec<u8>,
}

impl Lines {
    fn take(&mut self, bytes: &[u8]) -> Result<(), ApiError> {
        let broke =
            |why: &str| Problem::new(Code::GuestFailed, format!("the guest broke the protocol: {why}"));
        for part in bytes.split_inclusive(|byte| *byte == b'\n') {
            self.rest.extend_from_slice(part);
            if self.rest.len() > MAX_LINE {
                return Err(broke("a line that does not end").into());
            }
            if self.rest.last() == Some(&b'\n') {
                let line = std::mem::take(&mut self.rest);
                if self.truncated || self.files.len() == self.most || self.kept + line.len() > MAX_KEPT {
                    // Read on, so that the guest comes to its end.
                    self.truncated = true;
                    continue;
                }
                let info: proto::FileInfo =
                    serde_json::from_slice(&line).map_err(|e| broke(&printable(&e.to_string())))?;
                self.kept += line.len();
                self.files.push(shown(info));
            }
        }
        Ok(())
    }
}

fn shown(info: proto::FileInfo) -> FileInfo {
    FileInfo {
        name: info.name,
        lossy: info.lossy,
        kind: match info.kind {
            proto::FileKind::File => FileKind::File,
            proto::FileKind::Directory => FileKind::Directory,
            proto::FileKind::Symlink => FileKind::Symlink,
            proto::FileKind::Other => FileKind::Other,
        },
        size: info.size,
        mode: info.mode,
        uid: info.uid,
        gid: info.gid,
        modified_ms: info.modified_ms,
        target: info.target,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str) -> Vec<u8> {
        let info = proto::FileInfo {
            name: name.to_owned(),
            lossy: false,
            kind: proto::FileKind::File,
            size: 0,
            mode: 0,
            uid: 0,
            gid: 0,
            modified_ms: 0,
            target: None,
        };
        let mut line = serde_json::to_vec(&info).unwrap();
        line.push(b'\n');
        line
    }

    #[test]
    fn long_names_are_kept_up_to_a_bound_and_the_cut_is_told() {
        let mut lines = Lines { most: MAX_ENTRIES, ..Lines::default() };
        let long = line(&"x".repeat(MAX_LINE / 2));
        for _ in 0..MAX_ENTRIES {
            lines.take(&long).unwrap();
        }
        assert_eq!(lines.files.len(), MAX_KEPT / long.len());
        assert!(lines.truncated);
        lines.take(&line("short")).unwrap();
        assert_eq!(lines.files.len(), MAX_KEPT / long.len(), "nothing after a gap");
        let mut usual = Lines { most: MAX_ENTRIES, ..Lines::default() };
        for i in 0..MAX_ENTRIES {
            usual.take(&line(&format!("a file of a usual name {i}"))).unwrap();
        }
        assert!(usual.files.len() == MAX_ENTRIES && !usual.truncated);
    }
}
