//! Files of the guest looked at, listed, made and removed, by a worker as for archives.
//!
//! A removal that has begun goes on to its end, also when the daemon is gone: half of a tree is of no use.

use super::Running;
use super::archive::{absolute, start};
use super::exec::non_blocking;
use super::failure::{failure, from_io};
use super::pump::Streams;
use super::watch;
use enisle_guest_proto::{Failure, FailureCode, FileInfo, FileKind, FileOp};
use serde::Serialize;
use std::ffi::OsStr;
use std::fs::{self, Metadata, ReadDir};
use std::io::{self, BufWriter, PipeWriter, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Begins an operation. What can be refused at once is.
pub(super) fn begin(op: FileOp) -> Result<Running, Failure> {
    match op {
        FileOp::Stat { path } => {
            let path = absolute(&path)?;
            let info = describe(&path, path.file_name()).map_err(|e| about(&path, &e))?;
            with_output(move |out| write_line(out, &info).map_err(|e| from_io("answer", &e)))
        }
        FileOp::List { path } => {
            let path = absolute(&path)?;
            let entries = fs::read_dir(&path).map_err(|e| about(&path, &e))?;
            with_output(move |out| list(out, entries, &path))
        }
        FileOp::MakeDir { path, parents } => {
            let path = absolute(&path)?;
            alone(move || {
                let made = if parents { fs::create_dir_all(&path) } else { fs::create_dir(&path) };
                made.map_err(|e| about(&path, &e))
            })
        }
        FileOp::Remove { path, recursive } => {
            let path = absolute(&path)?;
            let found = fs::symlink_metadata(&path).map_err(|e| about(&path, &e))?;
            if path.canonicalize().is_ok_and(|path| path == Path::new("/")) {
                return Err(failure(FailureCode::Invalid, "/ is not removed".to_owned()));
            }
            alone(move || remove(&path, &found, recursive).map_err(|e| about(&path, &e)))
        }
        FileOp::Watch { path, recursive } => watch::begin(&path, recursive),
    }
}

pub(super) fn about(path: &Path, error: &io::Error) -> Failure {
    from_io(&path.display().to_string(), error)
}

/// A worker that writes to standard output.
pub(super) fn with_output(
    task: impl FnOnce(&mut BufWriter<PipeWriter>) -> Result<(), Failure> + Send + 'static,
) -> Result<Running, Failure> {
    let begin = || -> io::Result<Running> {
        let (read, write) = io::pipe()?;
        let worker = start(Arc::default(), move || {
            let mut out = BufWriter::new(write);
            task(&mut out)?;
            out.flush().map_err(|e| from_io("answer", &e))
        })?;
        let streams = Streams { input: None, stdout: Some(non_blocking(read.into())?), stderr: None };
        Ok(Running { pid: None, streams, job: Box::new(worker) })
    };
    begin().map_err(|e| from_io("start the worker", &e))
}

/// A worker that only ends.
pub(super) fn alone(task: impl FnOnce() -> Result<(), Failure> + Send + 'static) -> Result<Running, Failure> {
    let worker = start(Arc::default(), task).map_err(|e| from_io("start the worker", &e))?;
    let streams = Streams { input: None, stdout: None, stderr: None };
    Ok(Running { pid: None, streams, job: Box::new(worker) })
}

fn list(out: &mut BufWriter<PipeWriter>, entries: ReadDir, path: &Path) -> Result<(), Failure> {
    for entry in entries {
        let entry = entry.map_err(|e| about(path, &e))?;
        match describe(&entry.path(), Some(&entry.file_name())) {
            Ok(info) => write_line(out, &info).map_err(|e| from_io("answer", &e))?,
            // It went while the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(about(&entry.path(), &error)),
        }
    }
    Ok(())
}

pub(super) fn write_line(out: &mut impl Write, info: &impl Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, info)?;
    out.write_all(b"\n")
}

fn describe(path: &Path, name: Option<&OsStr>) -> io::Result<FileInfo> {
    let found = fs::symlink_metadata(path)?;
    let kind = match found.file_type() {
        kind if kind.is_file() => FileKind::File,
        kind if kind.is_dir() => FileKind::Directory,
        kind if kind.is_symlink() => FileKind::Symlink,
        _ => FileKind::Other,
    };
    let target = (kind == FileKind::Symlink).then(|| fs::read_link(path)).transpose()?;
    // `/` and `..` have no name.
    let name = name.unwrap_or(path.as_os_str());
    Ok(FileInfo {
        name: name.to_string_lossy().into_owned(),
        lossy: name.to_str().is_none(),
        kind,
        size: found.size(),
        mode: found.mode() & 0o7777,
        uid: found.uid(),
        gid: found.gid(),
        modified_ms: found.mtime().saturating_mul(1000).saturating_add(found.mtime_nsec() / 1_000_000),
        target: target.map(|target: PathBuf| target.to_string_lossy().into_owned()),
    })
}

fn remove(path: &Path, found: &Metadata, recursive: bool) -> io::Result<()> {
    match (found.is_dir(), recursive) {
        (true, true) => fs::remove_dir_all(path),
        (true, false) => fs::remove_dir(path),
        (false, _) => fs::remove_file(path),
    }
}
