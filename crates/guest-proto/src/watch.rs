//! What a watch of files tells: one [`WatchLine`] as JSON a line on [`crate::Kind::Stdout`].
//!
//! Owns: the lines and their bounds. Refuses: contents of files, and who changed them.
//!
//! [`WatchLine::Watching`] is the first line, and comes once. The session ends with exit status 0 when what is
//! watched is gone. A line of the daemon's peer may be a lie: paths are held against the root by the daemon.

use serde::{Deserialize, Serialize};

/// Most directories of one watch, the watched one included.
pub const MAX_WATCHED: usize = 4096;

/// Something that happened below the watched directory. Paths are relative to it; that of a watched file itself is
/// empty. `lossy` says that a path is no UTF-8: what is not was replaced by U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "watch", rename_all = "snake_case", deny_unknown_fields)]
pub enum WatchLine {
    /// Whatever happens from now on is told.
    Watching {},
    /// Something is there that was not, or was moved here from elsewhere.
    Created {
        /// Where.
        path: String,
        /// The path is no UTF-8.
        lossy: bool,
        /// It is a directory.
        directory: bool,
    },
    /// A file that was open for writing was closed.
    Modified {
        /// Where.
        path: String,
        /// The path is no UTF-8.
        lossy: bool,
        /// Always false: kept so that every line of one path looks alike.
        directory: bool,
    },
    /// Something is not there any more, or was moved elsewhere.
    Removed {
        /// Where it was.
        path: String,
        /// The path is no UTF-8.
        lossy: bool,
        /// It was a directory.
        directory: bool,
    },
    /// Something has another name, or is in another watched directory. What had that name is gone.
    Moved {
        /// Where it was.
        from: String,
        /// Where it is.
        to: String,
        /// One of the paths is no UTF-8.
        lossy: bool,
        /// It is a directory.
        directory: bool,
    },
    /// What happens in this directory is not told.
    Unwatched {
        /// The directory.
        path: String,
        /// The path is no UTF-8.
        lossy: bool,
        /// Why, for people; at most 4 KiB.
        reason: String,
    },
    /// Some of what happened before was not told. From now on it is again.
    Dropped {},
}
