//! What changes among the files of a guest while they are watched.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Something that happened at or below a watched path. Paths are relative to it, without `.` and `..`; that of a
/// watched file itself is empty. `lossy`, when true, says that a path is no UTF-8: what is not was replaced by U+FFFD.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum WatchEvent {
    /// The first of all: whatever happens from now on is told.
    Watching {},
    /// Something is there that was not, or was moved here from elsewhere.
    Created {
        /// Where.
        path: String,
        /// It is a directory.
        directory: bool,
        /// The path is no UTF-8.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lossy: bool,
    },
    /// A file that was open for writing was closed.
    Modified {
        /// Where.
        path: String,
        /// It is a directory.
        directory: bool,
        /// The path is no UTF-8.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lossy: bool,
    },
    /// Something is not there any more, or was moved elsewhere.
    Removed {
        /// Where it was.
        path: String,
        /// It was a directory.
        directory: bool,
        /// The path is no UTF-8.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lossy: bool,
    },
    /// Something has another name, or is in another watched directory. What had that name is gone.
    Moved {
        /// Where it was.
        from: String,
        /// Where it is.
        to: String,
        /// It is a directory.
        directory: bool,
        /// One of the paths is no UTF-8.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lossy: bool,
    },
    /// What happens in this directory, which came after the watch, is not told.
    Unwatched {
        /// The directory.
        path: String,
        /// The path is no UTF-8.
        #[serde(default, skip_serializing_if = "std::ops::Not::not")]
        lossy: bool,
        /// Why: the watch has all the directories it may have, or the guest a limit.
        reason: String,
    },
    /// Some of what happened before was not told: there was too much of it, or it was read too slowly. From now on it
    /// is told again; what is there by now has to be looked at.
    Dropped {},
}
