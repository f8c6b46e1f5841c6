//! Archives, in and out, by a worker thread behind a pipe.
//!
//! The pump never waits for a disk: the worker does, and ends when its pipe ends, also when the
//! daemon is gone. What arrived incomplete is removed again.

use super::exec::non_blocking;
use super::failure::{class, failure, from_chain, from_io};
use super::pump::{InputEnd, Job, Streams};
use super::{Running, success};
use enisle_archive::{ArchiveError, Owner, PackOptions, UnpackOptions, pack, unpack};
use enisle_guest_proto::{Control, Failure, FailureCode};
use std::io::{self, PipeReader, PipeWriter, Read};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};

/// Relative paths start here (guest-proto).
const HOME: &str = "/root";
/// Bytes between the worker and the pump, and of the worker's buffer: fewer turns of the two.
const PIPE: usize = 256 << 10;
const BUFFER: usize = 64 << 10;
/// Stack of a worker: a piece of a file is on the heap.
const STACK: usize = 256 << 10;

/// The worker as the pump sees it.
pub(super) struct Worker {
    thread: Option<JoinHandle<Result<(), Failure>>>,
    /// Hangs up when the worker ends.
    ended: PipeReader,
    /// Whether the end of the input is its real end.
    complete: Arc<AtomicBool>,
}

impl Job for Worker {
    fn ended(&self) -> Option<BorrowedFd<'_>> {
        Some(self.ended.as_fd())
    }

    fn input_complete(&mut self) {
        self.complete.store(true, Ordering::Release);
    }

    fn finish(&mut self, _broken: Option<io::Error>) -> Control {
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(Ok(()))) => success(),
            Some(Ok(Err(failure))) => Control::Failed(failure),
            Some(Err(_)) | None => {
                Control::Failed(failure(FailureCode::Failed, "the agent's worker died".to_owned()))
            }
        }
    }

    /// The pipe is the pump's and goes with it; the worker ends by that.
    fn abandon(&mut self) {}
}

/// Starts `task` and the pipe that tells of its end.
pub(super) fn start(
    complete: Arc<AtomicBool>,
    task: impl FnOnce() -> Result<(), Failure> + Send + 'static,
) -> io::Result<Worker> {
    let (ended, alive) = io::pipe()?;
    let body = move || {
        let outcome = task();
        drop(alive);
        outcome
    };
    let thread = thread::Builder::new().name("archive".to_owned()).stack_size(STACK).spawn(body)?;
    Ok(Worker { thread: Some(thread), ended, complete })
}

fn wide_pipe() -> io::Result<(PipeReader, PipeWriter)> {
    let (read, write) = io::pipe()?;
    // Refused by a user's limit on pipes: the usual one does as well.
    let _ = rustix::pipe::fcntl_setpipe_size(&write, PIPE);
    Ok((read, write))
}

pub(super) fn absolute(path: &str) -> Result<PathBuf, Failure> {
    if path.is_empty() || path.contains('\0') {
        return Err(failure(FailureCode::Invalid, format!("{path:?} is no path")));
    }
    Ok(Path::new(HOME).join(path))
}

/// Begins to send what is at `path`.
pub(super) fn begin_out(path: &str) -> Result<Running, Failure> {
    let path = absolute(path)?;
    // Asked now, so that a wrong path is refused and does not fail half-way.
    std::fs::metadata(&path).map_err(|e| from_io(&path.display().to_string(), &e))?;
    let begin = || -> io::Result<Running> {
        let (read, write) = wide_pipe()?;
        let task = move || {
            let options = PackOptions { one_file_system: true, progress: None };
            pack(&path, None, io::BufWriter::with_capacity(BUFFER, write), options)
                .map(drop)
                .map_err(|e| describe(&e))
        };
        let worker = start(Arc::default(), task)?;
        let streams = Streams { input: None, stdout: Some(non_blocking(read.into())?), stderr: None };
        Ok(Running { pid: None, streams, job: Box::new(worker) })
    };
    begin().map_err(|e| from_io("start the archive", &e))
}

/// Where something is to be received: `path`, if there is a directory for it.
pub(super) fn destination(path: &str) -> Result<PathBuf, Failure> {
    let path = absolute(path)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    if !path.is_dir() && !parent.is_dir() {
        let message = format!("{}: there is no directory {}", path.display(), parent.display());
        return Err(failure(FailureCode::NotFound, message));
    }
    Ok(path)
}

/// Begins to receive into `path`.
pub(super) fn begin_in(path: &str) -> Result<Running, Failure> {
    let path = destination(path)?;
    let begin = || -> io::Result<Running> {
        let (read, write) = wide_pipe()?;
        let complete = Arc::new(AtomicBool::new(false));
        let input = Whole { input: read, complete: Arc::clone(&complete) };
        let task = move || receive(input, &path).map_err(|e| describe(&e));
        let worker = start(complete, task)?;
        let streams = Streams {
            input: Some((non_blocking(write.into())?, InputEnd::Close)),
            stdout: None,
            stderr: None,
        };
        Ok(Running { pid: None, streams, job: Box::new(worker) })
    };
    begin().map_err(|e| from_io("start the archive", &e))
}

fn receive(input: Whole, path: &Path) -> Result<(), ArchiveError> {
    // The archive is the operator's and the guest is his too: it keeps what `cp -p` would keep.
    let options = UnpackOptions { keep_set_id: true, owner: Owner::Destination, progress: None };
    unpack(io::BufReader::with_capacity(BUFFER, input), path, options).map(drop)
}

/// Input whose end counts only when the daemon said it was the end.
struct Whole {
    input: PipeReader,
    complete: Arc<AtomicBool>,
}

impl Read for Whole {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self.input.read(buffer)? {
            0 if !buffer.is_empty() && !self.complete.load(Ordering::Acquire) => {
                Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the connection ended in the middle"))
            }
            length => Ok(length),
        }
    }
}

pub(super) fn describe(error: &ArchiveError) -> Failure {
    let code = match error {
        ArchiveError::NoSpace { .. } => FailureCode::NoSpace,
        // The input breaks off as `Input`; what was sent whole and ends too early is what the caller has.
        ArchiveError::Input(_) | ArchiveError::Output(_) => FailureCode::Failed,
        ArchiveError::File { source, .. } => class(source),
        _ => FailureCode::Invalid,
    };
    from_chain(code, error)
}
