//! Why an archive could not be made or unpacked.

use rustix::io::Errno;
use std::io;
use std::path::{Path, PathBuf};

/// A failure of [`crate::pack`], [`crate::unpack`] or [`crate::NewFile`].
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    /// The archive could not be read from its source.
    #[error("read the archive")]
    Input(#[source] io::Error),
    /// The archive could not be written to its sink.
    #[error("write the archive")]
    Output(#[source] io::Error),
    /// The stream ended before the archive did.
    #[error("the archive is incomplete: it ends in the middle")]
    Truncated,
    /// The stream is no tar archive, or one with what is not supported here.
    #[error("not a usable archive: {0}")]
    Malformed(&'static str),
    /// An entry's name leads out of the destination.
    #[error("entry {name:?} of the archive leads out of the destination; nothing more was unpacked")]
    Escapes {
        /// The name as the archive has it.
        name: PathBuf,
    },
    /// A symlink of the destination is where the archive has a directory.
    #[error(
        "{path:?} is a symlink in the destination and the archive has a directory there; it is not followed"
    )]
    Symlink {
        /// Relative to the destination.
        path: PathBuf,
    },
    /// Something else than a directory is where the archive has one, or the other way round.
    #[error("{path:?} exists in the destination and is {is}; the archive has {wants} there")]
    InTheWay {
        /// Relative to the destination.
        path: PathBuf,
        /// What is there.
        is: &'static str,
        /// What should be there.
        wants: &'static str,
    },
    /// Hard links are refused.
    #[error(
        "entry {name:?} is a hard link, which is not supported; make the archive with hard links as files"
    )]
    HardLink {
        /// The name as the archive has it.
        name: PathBuf,
    },
    /// The archive has more than one root and the destination is the name of one.
    #[error(
        "the archive holds more than {first:?} and the destination is no directory to put {other:?} into"
    )]
    SeveralRoots {
        /// The root that took the destination's name.
        first: PathBuf,
        /// The other one.
        other: PathBuf,
    },
    /// More levels of directories than [`crate::MAX_DEPTH`].
    #[error("{path:?} is more than {} directories deep", crate::MAX_DEPTH)]
    TooDeep {
        /// The path.
        path: PathBuf,
    },
    /// The destination's disk is full, or its quota used up.
    #[error("no space left for {path:?}")]
    NoSpace {
        /// Relative to the destination.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// Any other answer of the kernel about a file.
    #[error("{action} {path:?}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
}

impl ArchiveError {
    pub(crate) fn file(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        let (path, source) = (path.as_ref().to_owned(), source.into());
        match source.raw_os_error().map(Errno::from_raw_os_error) {
            Some(Errno::NOSPC | Errno::DQUOT) => Self::NoSpace { path, source },
            _ => Self::File { action, path, source },
        }
    }

    /// The kernel's answer, where there is one.
    #[must_use]
    pub fn io_error(&self) -> Option<&io::Error> {
        match self {
            Self::Input(source) | Self::Output(source) => Some(source),
            Self::NoSpace { source, .. } | Self::File { source, .. } => Some(source),
            _ => None,
        }
    }
}
