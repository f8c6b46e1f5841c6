//! Moves files and trees between this machine and guests. Owns the order of ends and which of
//! two errors is the reason; refuses the archive format (`enisle-archive`) and the protocol
//! (`enisle-client`).
//!
//! A copy has up to three places that can fail: the reading side, the stream and the writing
//! side. When the stream breaks, the far side's reason is asked for and told instead.

use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::progress::{Counted, Progress, archive_size};
use crate::terminal;
use crate::tree::{self, Warnings};
use enisle_archive::ArchiveError;
use enisle_client::api::stream::GuestFailure;
use enisle_client::{ArchiveIn, ArchiveOut, Client, Error};
use std::fmt;
use std::io::{self, BufWriter, Write};
use std::path::{Component, Path, PathBuf};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio_util::io::SyncIoBridge;

/// Bytes moved at once.
const CHUNK: usize = 64 * 1024;

/// A path in a VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GuestPath {
    pub(crate) vm: String,
    pub(crate) path: String,
}

impl GuestPath {
    /// Whether a copy of this to `other` would land on this or in it, and so never end. By their
    /// letters: a guest that hides it behind a link of its own fills its own disk.
    pub(crate) fn is_over(&self, other: &Self) -> bool {
        let (from, to) = (absolute(&self.path), absolute(&other.path));
        // In the directory above, the copy would get the name of its source.
        self.vm == other.vm && (to.starts_with(&from) || from.parent() == Some(&to))
    }
}

/// The path without `.` and `..`; a relative one begins at the agent's `/root`.
fn absolute(path: &str) -> PathBuf {
    let mut whole = PathBuf::new();
    for part in Path::new("/root").join(path).components() {
        match part {
            Component::ParentDir => {
                whole.pop();
            }
            Component::CurDir => {}
            other => whole.push(other),
        }
    }
    whole
}

impl fmt::Display for GuestPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.vm, self.path)
    }
}

/// What was copied.
#[derive(Debug, Default)]
pub(crate) struct Copied {
    /// Bytes on the wire, headers of the archive included.
    pub(crate) bytes: u64,
    pub(crate) warnings: Warnings,
}

/// A local file or tree to a guest.
pub(crate) async fn upload(
    client: &Client,
    from: &Path,
    to: &GuestPath,
    quiet: bool,
) -> Result<Copied, Failure> {
    // Asked before anything is opened, so that a slip leaves nothing behind in the guest.
    std::fs::symlink_metadata(from)
        .map_err(|e| Failure::io(&format!("cannot read {}", from.display()), &e))?;
    let sink = open_in(client, to, false).await?;
    let shown = !quiet && terminal::stderr_is_terminal();
    let progress = Progress::new(&format!("to {to}"), shown.then(|| archive_size(from)), quiet);
    let (source, counter) = (from.to_owned(), progress.clone());
    let packed = blocking(move || pack(&source, sink, &counter)).await?;
    progress.clear();
    match packed {
        Packed::Whole(sink, warnings) => {
            sink.finish().await.map_err(|e| explain(&e, to))?;
            Ok(Copied { bytes: progress.bytes(), warnings })
        }
        Packed::StreamFailed(sink, error) => Err(reason(sink.finish().await, to, &error)),
        // Dropping the stream tells the guest that this was not the end.
        Packed::SourceFailed(failure) => Err(failure),
    }
}

enum Packed {
    Whole(ArchiveIn, Warnings),
    StreamFailed(ArchiveIn, ArchiveError),
    SourceFailed(Failure),
}

fn pack(source: &Path, sink: ArchiveIn, progress: &Progress) -> Packed {
    let mut stream = Counted::new(SyncIoBridge::new(sink), progress);
    let result = {
        let mut buffered = BufWriter::with_capacity(CHUNK, &mut stream);
        tree::pack(source, &mut buffered)
            .and_then(|warnings| buffered.flush().map(|()| warnings).map_err(ArchiveError::Output))
    };
    let failed = stream.failed;
    let sink = stream.into_inner().into_inner();
    match result {
        Ok(warnings) => Packed::Whole(sink, warnings),
        Err(error) if failed => Packed::StreamFailed(sink, error),
        Err(error) => {
            Packed::SourceFailed(tree::failure(&format!("cannot copy {}", source.display()), &error))
        }
    }
}

/// A file or tree of a guest to this machine.
pub(crate) async fn download(
    client: &Client,
    from: &GuestPath,
    to: &Path,
    quiet: bool,
) -> Result<Copied, Failure> {
    let source = open_out(client, from, false).await?;
    let progress = Progress::new(&format!("from {from}"), None, quiet);
    let (destination, counter) = (to.to_owned(), progress.clone());
    let unpacked = blocking(move || unpack(source, destination, &counter)).await?;
    progress.clear();
    match unpacked {
        Unpacked::Whole(source, warnings) => {
            source.finish().await.map_err(|e| explain(&e, from))?;
            Ok(Copied { bytes: progress.bytes(), warnings })
        }
        Unpacked::StreamFailed(source, error) => Err(reason(source.finish().await, from, &error)),
        Unpacked::DestinationFailed(failure) => Err(failure),
    }
}

enum Unpacked {
    Whole(ArchiveOut, Warnings),
    StreamFailed(ArchiveOut, ArchiveError),
    DestinationFailed(Failure),
}

fn unpack(source: ArchiveOut, destination: PathBuf, progress: &Progress) -> Unpacked {
    let mut stream = Counted::new(SyncIoBridge::new(source), progress);
    let result = tree::unpack(&mut stream, &destination).and_then(|warnings| {
        // Padding after the end of the archive (tar rounds up to 10 KiB) is not looked at.
        io::copy(&mut stream, &mut io::sink()).map(|_| warnings).map_err(ArchiveError::Input)
    });
    let failed = stream.failed || matches!(result, Err(ArchiveError::Truncated));
    let source = stream.into_inner().into_inner();
    match result {
        Ok(warnings) => Unpacked::Whole(source, warnings),
        Err(error) if failed => Unpacked::StreamFailed(source, error),
        Err(error) => Unpacked::DestinationFailed(tree::failure(
            &format!("cannot write {}", destination.display()),
            &error,
        )),
    }
}

/// From guest to guest; nothing touches this machine's files.
pub(crate) async fn between(
    client: &Client,
    from: &GuestPath,
    to: &GuestPath,
    quiet: bool,
) -> Result<Copied, Failure> {
    let mut source = open_out(client, from, false).await?;
    let mut sink = open_in(client, to, false).await?;
    let progress = Progress::new(&format!("{from} to {to}"), None, quiet);
    let copied = copy(&mut source, &mut sink, &progress).await;
    progress.clear();
    match copied {
        // The destination ends only when the source did so well: half a tree is not a tree.
        Ok(()) => source.finish().await.map_err(|e| explain(&e, from))?,
        Err(CopyError::Read(error)) => return Err(reason(source.finish().await, from, &error)),
        Err(CopyError::Write(error)) => return Err(reason(sink.finish().await, to, &error)),
    }
    sink.finish().await.map_err(|e| explain(&e, to))?;
    Ok(Copied { bytes: progress.bytes(), ..Copied::default() })
}

/// Standard input to one file in a guest.
pub(crate) async fn from_stdin(client: &Client, to: &GuestPath, quiet: bool) -> Result<Copied, Failure> {
    let mut sink = open_in(client, to, true).await?;
    let progress = Progress::new(&format!("to {to}"), None, quiet);
    let copied = copy(&mut tokio::io::stdin(), &mut sink, &progress).await;
    progress.clear();
    match copied {
        Ok(()) => sink.finish().await.map_err(|e| explain(&e, to))?,
        Err(CopyError::Read(error)) => return Err(Failure::io("cannot read standard input", &error)),
        Err(CopyError::Write(error)) => return Err(reason(sink.finish().await, to, &error)),
    }
    Ok(Copied { bytes: progress.bytes(), ..Copied::default() })
}

/// One file of a guest to standard output.
pub(crate) async fn to_stdout(client: &Client, from: &GuestPath, quiet: bool) -> Result<Copied, Failure> {
    let mut source = open_out(client, from, true).await?;
    // A bar between the lines of a file that is shown on the same terminal helps nobody.
    let progress = Progress::new(&format!("from {from}"), None, quiet || terminal::stdout_is_terminal());
    let copied = copy(&mut source, &mut tokio::io::stdout(), &progress).await;
    progress.clear();
    match copied {
        Ok(()) => source.finish().await.map_err(|e| explain(&e, from))?,
        Err(CopyError::Read(error)) => return Err(reason(source.finish().await, from, &error)),
        Err(CopyError::Write(error)) => return Err(Failure::io("cannot write to standard output", &error)),
    }
    Ok(Copied { bytes: progress.bytes(), ..Copied::default() })
}

enum CopyError {
    Read(io::Error),
    Write(io::Error),
}

async fn copy(
    from: &mut (impl AsyncRead + Unpin),
    to: &mut (impl AsyncWrite + Unpin),
    progress: &Progress,
) -> Result<(), CopyError> {
    let mut buffer = vec![0; CHUNK];
    loop {
        let bytes = from.read(&mut buffer).await.map_err(CopyError::Read)?;
        if bytes == 0 {
            return to.flush().await.map_err(CopyError::Write);
        }
        to.write_all(&buffer[..bytes]).await.map_err(CopyError::Write)?;
        progress.add(bytes);
    }
}

async fn open_in(client: &Client, to: &GuestPath, raw: bool) -> Result<ArchiveIn, Failure> {
    client.archive_in(&to.vm, &to.path, raw).await.map_err(|e| explain(&e, to))
}

async fn open_out(client: &Client, from: &GuestPath, raw: bool) -> Result<ArchiveOut, Failure> {
    client.archive_out(&from.vm, &from.path, raw).await.map_err(|e| explain(&e, from))
}

/// Archive code is synchronous: it runs on a thread that may block.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|e| Failure::new("internal", ExitCode::Failed, format!("the copy broke off: {e}")))
}

/// Why a stream that failed did so: the far side's reason, where it gave one.
fn reason(finished: Result<(), Error>, place: &GuestPath, error: &dyn std::error::Error) -> Failure {
    match finished {
        Err(told) => explain(&told, place),
        // It called itself done, but not everything was taken.
        Ok(()) => Failure::new("io", ExitCode::Failed, format!("the copy of {place} broke off: {error}")),
    }
}

fn explain(error: &Error, place: &GuestPath) -> Failure {
    let failure = Failure::from(error);
    match error {
        Error::Guest { failure: GuestFailure::NoSpace, .. } => failure.hint(format!(
            "the disk of {} is full: free space there, or give its group a larger `disk`",
            place.vm
        )),
        Error::Guest { failure: GuestFailure::Invalid, .. } => {
            failure.hint("- stands for one regular file; name a local directory to copy a directory")
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_onto_or_into_itself_is_seen() {
        let place = |vm: &str, path: &str| GuestPath { vm: vm.into(), path: path.into() };
        for (from, to, over) in [
            ("data", "data", true),
            ("/root/data", "data/copy", true),
            ("data", ".", true),
            ("data", "data/../data/", true),
            ("/", "tmp", true),
            ("data", "data2", false),
            ("data", "/tmp", false),
            ("data/a", "data/b", false),
        ] {
            assert_eq!(place("a-1", from).is_over(&place("a-1", to)), over, "{from} to {to}");
        }
        assert!(!place("a-1", "data").is_over(&place("a-2", "data")));
    }
}
