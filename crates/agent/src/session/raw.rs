//! One regular file, in or out, by the session's own thread: from the frame into the file, from the file into the
//! frame, with nothing between.
//!
//! A disk may keep this thread waiting, and with it this session, which has nothing else to do. What arrived
//! incomplete is removed again.

use super::archive::{absolute, describe, destination};
use super::failure::{failure, from_io};
use super::pump::{InputEnd, Job, Streams};
use super::{Running, success};
use enisle_archive::{ArchiveError, NewFile, Owner};
use enisle_guest_proto::{Control, Failure, FailureCode};
use rustix::fs::{FileType, Mode, OFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

/// A file that is sent.
struct Sending {
    path: PathBuf,
}

impl Job for Sending {
    fn ended(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn output_is_a_file(&self) -> bool {
        true
    }

    fn finish(&mut self, broken: Option<io::Error>) -> Control {
        let failed = |e| Control::Failed(from_io(&self.path.display().to_string(), &e));
        broken.map_or_else(success, failed)
    }

    /// Closing the descriptor, which is the pump's, is all there is to do.
    fn abandon(&mut self) {}
}

/// Begins to send the regular file `path`.
pub(super) fn begin_out(path: &str) -> Result<Running, Failure> {
    let path = absolute(path)?;
    let streams = Streams { input: None, stdout: Some(open(&path)?), stderr: None };
    Ok(Running { pid: None, streams, job: Box::new(Sending { path }) })
}

fn open(path: &Path) -> Result<OwnedFd, Failure> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let name = path.display();
    let fd =
        rustix::fs::open(path, flags, Mode::empty()).map_err(|e| from_io(&name.to_string(), &e.into()))?;
    let stat = rustix::fs::fstat(&fd).map_err(|e| from_io(&name.to_string(), &e.into()))?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok(fd),
        FileType::Directory => {
            Err(failure(FailureCode::Invalid, format!("{name} is a directory, not a file")))
        }
        _ => Err(failure(FailureCode::Invalid, format!("{name} is no regular file"))),
    }
}

/// A file that is received.
struct Receiving {
    /// Not there any more once it has its name; not at all where it could not be begun.
    file: Result<Option<NewFile>, ArchiveError>,
    /// The end of the input was its real end.
    complete: bool,
}

impl Receiving {
    fn end(&mut self, broken: Option<io::Error>) -> Result<(), Failure> {
        match std::mem::replace(&mut self.file, Ok(None)) {
            Err(error) => Err(describe(&error)),
            Ok(Some(file)) => match broken {
                Some(error) => Err(describe(&file.failed(error))),
                None if self.complete => file.finish().map_err(|e| describe(&e)),
                None => Err(incomplete()),
            },
            Ok(None) => Err(incomplete()),
        }
    }
}

fn incomplete() -> Failure {
    failure(FailureCode::Failed, "the file ended in the middle".to_owned())
}

impl Job for Receiving {
    fn ended(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn input_complete(&mut self) {
        self.complete = true;
    }

    fn finish(&mut self, broken: Option<io::Error>) -> Control {
        self.end(broken).map_or_else(Control::Failed, |()| success())
    }

    fn abandon(&mut self) {
        // It removes itself.
        self.file = Ok(None);
    }
}

/// Begins to receive the regular file `path`.
pub(super) fn begin_in(path: &str) -> Result<Running, Failure> {
    let path = destination(path)?;
    let file = NewFile::begin(&path, Owner::Destination);
    let input = match &file {
        Ok(file) => {
            let fd = file.as_fd().try_clone_to_owned();
            Some((fd.map_err(|e| from_io(&path.display().to_string(), &e))?, InputEnd::File))
        }
        // Told as the end of a session that was opened: only then is it known what came.
        Err(_) => None,
    };
    let streams = Streams { input, stdout: None, stderr: None };
    Ok(Running { pid: None, streams, job: Box::new(Receiving { file: file.map(Some), complete: false }) })
}
