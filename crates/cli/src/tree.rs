//! Local files and trees as archives. Owns the choices that `enisle-archive` leaves open and
//! what its errors mean to a user of the command line.

use crate::exit::ExitCode;
use crate::failure::Failure;
use enisle_archive::{ArchiveError, PackOptions, Summary, UnpackOptions};
use serde::Serialize;
use std::ffi::OsString;
use std::io::{self, ErrorKind, Read, Write};
use std::path::{Component, Path};

/// Something of a copy that did not arrive as it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Warning {
    /// The file, named from the root of the copy.
    pub(crate) path: String,
    /// Why.
    pub(crate) reason: String,
}

/// What a copy leaves to be said. At most some hundred are named; `count` has all.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Warnings {
    pub(crate) named: Vec<Warning>,
    pub(crate) count: u64,
}

impl From<Summary> for Warnings {
    fn from(summary: Summary) -> Self {
        let named = summary.warnings.iter().map(|warning| Warning {
            path: warning.path.to_string_lossy().into_owned(),
            reason: warning.reason.to_owned(),
        });
        Self { named: named.collect(), count: summary.warning_count }
    }
}

pub(crate) fn pack(source: &Path, to: &mut impl Write) -> Result<Warnings, ArchiveError> {
    let name = own_name(source);
    enisle_archive::pack(source, name.as_deref(), to, PackOptions::default()).map(Warnings::from)
}

/// The name that `.` and `..` stand for, which have none to be copied under.
fn own_name(source: &Path) -> Option<OsString> {
    let ends_named = matches!(source.components().next_back(), Some(Component::Normal(_)));
    if ends_named && !source.as_os_str().as_encoded_bytes().ends_with(b"/.") {
        return None;
    }
    // What cannot be found is reported by whoever tries to read it.
    let full = source.canonicalize().ok()?;
    Some(full.file_name().map_or_else(|| "root".into(), OsString::from))
}

pub(crate) fn unpack(from: &mut impl Read, destination: &Path) -> Result<Warnings, ArchiveError> {
    enisle_archive::unpack(from, destination, UnpackOptions::default()).map(Warnings::from)
}

/// The failure of the local side of a copy.
pub(crate) fn failure(what: &str, error: &ArchiveError) -> Failure {
    let mut detail = format!("{what}: {error}");
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        detail.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    let kind = error.io_error().map(io::Error::kind);
    let exit = if kind == Some(ErrorKind::NotFound) { ExitCode::NotFound } else { ExitCode::Failed };
    let failure = Failure::new("io", exit, detail);
    match hint(error, kind) {
        Some(hint) => failure.hint(hint),
        None => failure,
    }
}

fn hint(error: &ArchiveError, kind: Option<ErrorKind>) -> Option<&'static str> {
    match (error, kind) {
        (ArchiveError::NoSpace { .. }, _) => Some("free space on this machine's disk, or copy elsewhere"),
        (ArchiveError::Escapes { .. } | ArchiveError::HardLink { .. } | ArchiveError::Malformed(_), _) => {
            Some("the guest sent what no copy of its files looks like: do not trust it")
        }
        (ArchiveError::Symlink { .. }, _) => Some("copy to an empty directory, or remove that link first"),
        (_, Some(ErrorKind::PermissionDenied)) => {
            Some("choose a place that you may use, or run it with sudo")
        }
        (_, Some(ErrorKind::NotFound)) => Some("the directory above the destination must exist"),
        _ => None,
    }
}
