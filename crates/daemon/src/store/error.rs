//! What can go wrong with the daemon's state, and what to do about it.
//!
//! Owns: the translation of SQLite's codes. Refuses: strings as errors.

use std::io;
use std::path::{Path, PathBuf};

use enisle_net::plan::Range;
use rusqlite::ErrorCode;

/// Why the store could not be opened, or did not do what was asked. A failed call changed nothing.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another daemon works on this state directory.
    #[error(
        "another daemon{} uses {}; stop it, or give this one another `state_dir`",
        owner.map(|pid| format!(" (pid {pid})")).unwrap_or_default(),
        state_dir.display()
    )]
    Locked {
        /// The directory.
        state_dir: PathBuf,
        /// The other daemon, if it has written its process id yet.
        owner: Option<u32>,
    },
    /// A VM of that name exists.
    #[error("a VM named {name} exists already; delete it or choose another name")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Not 1 to 63 of `a-z`, `0-9` and `-`, or `-` at an end.
    #[error(
        "{name:?} cannot be the name of a VM; use 1 to 63 of a-z, 0-9 and `-`, \
         without `-` at either end"
    )]
    BadName {
        /// The name.
        name: String,
    },
    /// Every block of the range is taken.
    #[error(
        "group {group} is full: its range {range} holds {} VMs; \
         delete one, or give the group a larger range",
        range.capacity()
    )]
    RangeFull {
        /// The group.
        group: String,
        /// Its range.
        range: Range,
    },
    /// No VM of that name.
    #[error("there is no VM named {name}")]
    NoSuchVm {
        /// The name.
        name: String,
    },
    /// Written by a later version.
    #[error(
        "{} was written by a newer enisle (schema {found}, this one knows {known}); \
         use that version, or move the file away once nothing runs",
        path.display()
    )]
    TooNew {
        /// The database.
        path: PathBuf,
        /// Its schema.
        found: u32,
        /// The newest schema of this version.
        known: u32,
    },
    /// Not a database, or one with broken pages.
    #[error("{} is damaged ({detail}); move it away and start again with no VMs", path.display())]
    Corrupt {
        /// The database.
        path: PathBuf,
        /// What SQLite found.
        detail: String,
    },
    /// No room.
    #[error("no room left to write {}; free some on its file system", path.display())]
    Full {
        /// The database.
        path: PathBuf,
    },
    /// Not writable.
    #[error("{} cannot be written; its file system or its mode is read-only", path.display())]
    ReadOnly {
        /// The database.
        path: PathBuf,
    },
    /// A file beside the database.
    #[error("cannot {action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// Anything else of SQLite.
    #[error("cannot use the database {}", path.display())]
    Sqlite {
        /// The database.
        path: PathBuf,
        /// Why not.
        #[source]
        source: rusqlite::Error,
    },
}

impl StoreError {
    pub(super) fn io(action: &'static str, path: &Path, source: io::Error) -> StoreError {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => StoreError::Full { path },
            io::ErrorKind::ReadOnlyFilesystem => StoreError::ReadOnly { path },
            _ => StoreError::Io { action, path, source },
        }
    }

    pub(super) fn sqlite(path: &Path, source: rusqlite::Error) -> StoreError {
        let path = path.to_owned();
        match source.sqlite_error_code() {
            Some(ErrorCode::DatabaseCorrupt | ErrorCode::NotADatabase) => {
                let detail = source.to_string();
                StoreError::Corrupt { path, detail }
            }
            Some(ErrorCode::DiskFull) => StoreError::Full { path },
            Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => StoreError::ReadOnly { path },
            _ => StoreError::Sqlite { path, source },
        }
    }
}
