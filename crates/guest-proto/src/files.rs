//! Files of the guest: looked at, listed, made and removed.
//!
//! Owns: the types of one operation. [`FileOp::Stat`] and [`FileOp::List`] answer with one [`FileInfo`] as JSON
//! a line on [`crate::Kind::Stdout`], so that a directory of any size fits; [`FileOp::Watch`] tells
//! [`crate::WatchLine`]s; the others only end. Refuses: contents, which are archives' and raw files'.
//!
//! These came after the first agents of this version of the protocol: one that does not know them closes the session.

use serde::{Deserialize, Serialize};

/// What is to be done. Paths are absolute, or relative to `/root`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "file", rename_all = "snake_case", deny_unknown_fields)]
pub enum FileOp {
    /// Describe what is at `path`; a symbolic link itself.
    Stat {
        /// The path.
        path: String,
    },
    /// Describe what is in the directory at `path`, in no order.
    List {
        /// The path.
        path: String,
    },
    /// Make a directory.
    MakeDir {
        /// The path.
        path: String,
        /// Make the missing ones above it too; one that is there is fine.
        parents: bool,
    },
    /// Remove what is at `path`; a symbolic link itself.
    Remove {
        /// The path.
        path: String,
        /// A directory with everything in it; else only an empty one.
        recursive: bool,
    },
    /// Tell what changes at `path`, as [`crate::WatchLine`]s, until the daemon closes the session or it is gone.
    Watch {
        /// The path; a symbolic link at its end is followed, none below it is.
        path: String,
        /// In the directories below it too, at most [`crate::MAX_WATCHED`] with it; one file system.
        recursive: bool,
    },
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FileInfo {
    /// Last component of its path.
    pub name: String,
    /// True when the name is no UTF-8: what is not was replaced by U+FFFD.
    pub lossy: bool,
    /// What it is.
    pub kind: FileKind,
    /// Bytes.
    pub size: u64,
    /// Permission bits, with set-user-ID, set-group-ID and sticky.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last change of its content, milliseconds since the epoch.
    pub modified_ms: i64,
    /// Where a symbolic link points.
    pub target: Option<String>,
}

/// What a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory.
    Directory,
    /// A symbolic link.
    Symlink,
    /// A device, fifo or socket.
    Other,
}
