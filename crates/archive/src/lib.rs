//! Files and directories as tar streams, both ways, between machines that do not trust each other.
//!
//! Owns: [`pack`], [`unpack`] and [`NewFile`], blocking, on any `Read` and `Write`. Modes and
//! times (in nanoseconds) are kept; symlinks arrive as symlinks; devices, fifos and sockets are
//! left out and reported. Refuses: to write outside the destination, whatever an archive says; to
//! follow a symlink, but for the path the caller names himself; hard links, because one to a file
//! that was there before is a way out; owners, which mean nothing on another machine.
//!
//! # How writing stays inside
//!
//! The destination is opened once. From there every directory is entered by its single name, with
//! `O_NOFOLLOW`, from the descriptor of its parent ([`place`]); no path with a slash is ever given
//! to the kernel, so there is nothing it could resolve elsewhere, and a symlink put in the way at
//! any moment is refused, not followed. Files are filled under a temporary name and renamed: what
//! was there is replaced, never written through, and a failure leaves no half file.

mod error;
mod format;
mod new_file;
mod pack;
mod pax;
mod place;
mod unpack;

pub use error::ArchiveError;
pub use new_file::NewFile;
pub use pack::{PackOptions, pack};
pub use unpack::{Owner, UnpackOptions, unpack};

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Deepest directory below the root, in levels; each holds a descriptor.
pub const MAX_DEPTH: usize = 256;
/// Warnings that are kept with their names; more are only counted.
pub const MAX_WARNINGS: usize = 100;
/// File contents are moved in pieces of this size, in bytes.
const PIECE: usize = 64 << 10;

/// What was moved.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Regular files.
    pub files: u64,
    /// Directories.
    pub directories: u64,
    /// Symbolic links.
    pub symlinks: u64,
    /// Bytes of file contents.
    pub bytes: u64,
    /// What was left out or changed, at most [`MAX_WARNINGS`].
    pub warnings: Vec<Warning>,
    /// How many warnings there were in all.
    pub warning_count: u64,
}

impl Summary {
    fn warn(&mut self, path: PathBuf, reason: &'static str) {
        self.warning_count += 1;
        if self.warnings.len() < MAX_WARNINGS {
            self.warnings.push(Warning { path, reason });
        }
    }
}

/// An entry that did not arrive as it was.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Warning {
    /// Its name in the archive.
    pub path: PathBuf,
    /// Why, for people.
    pub reason: &'static str,
}

/// Called with the number of bytes of file contents moved since the last call.
pub type Progress<'a> = &'a mut dyn FnMut(u64);

fn to_path(bytes: &[u8]) -> PathBuf {
    Path::new(OsStr::from_bytes(bytes)).to_owned()
}
