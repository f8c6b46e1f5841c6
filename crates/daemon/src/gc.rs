//! `enisle gc`: what is left of a state directory whose daemon does not run.
//!
//! Owns: finding it by the directory's scope, and removing it the way the daemon's start does.
//! Refuses: while a daemon holds the directory, and anything of another scope.

use crate::boot::BootError;
use crate::store::{Store, StoreError};
use crate::survivors::clear_others;
use crate::vm::plan::StateDirs;
use enisle_net::{NetError, ScopeError};
use enisle_vmm::VmmError;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Why nothing could be said or removed.
#[derive(Debug, thiserror::Error)]
pub enum GcError {
    /// Namespaces and control groups are root's.
    #[error("only root sees and removes what is left; try: sudo enisle gc")]
    NotRoot,
    /// The state directory.
    #[error("cannot use the daemon's state")]
    Store(#[from] StoreError),
    /// Control groups.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// Interfaces and tables.
    #[error("cannot look at the network")]
    Net(#[from] NetError),
    /// The scope in the store is none.
    #[error("the daemon's scope")]
    Scope(#[from] ScopeError),
    /// A directory.
    #[error("cannot list {}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// The runtime.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// Removing.
    #[error("not everything could be removed")]
    Remove(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl GcError {
    /// A daemon runs on this state directory.
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self, Self::Store(StoreError::Locked { .. }))
    }
}

/// One thing that is left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// `process`, `cgroup`, `link`, `table`, `file` or `vm`.
    pub kind: &'static str,
    /// Which.
    pub what: String,
}

/// What was found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Report {
    /// The directory's mark; `None` where no daemon ever ran on it.
    pub scope: Option<String>,
    /// What there was.
    pub found: Vec<Item>,
    /// Whether it was removed.
    pub removed: bool,
}

/// Lists what is left of `state_dir`'s daemon, and removes it unless `dry_run`. Blocks.
///
/// # Errors
/// [`GcError`]; nothing is touched while a daemon runs there.
pub fn sweep(state_dir: &Path, dry_run: bool) -> Result<Report, GcError> {
    if !rustix::process::geteuid().is_root() {
        return Err(GcError::NotRoot);
    }
    // Opening would make one.
    if !Store::exists(state_dir) {
        return Ok(Report::default());
    }
    let store = Arc::new(Store::open(state_dir)?);
    let dirs = StateDirs::new(state_dir);
    let found = look(&store, &dirs)?;
    let scope = Some(store.scope().to_owned());
    if dry_run || found.is_empty() {
        return Ok(Report { scope, found, removed: false });
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let cleared = runtime.map_err(GcError::Runtime)?.block_on(clear_others(&store, &dirs, &[]));
    cleared.map_err(|error: BootError| GcError::Remove(Box::new(error)))?;
    Ok(Report { scope, found, removed: true })
}

fn look(store: &Store, dirs: &StateDirs) -> Result<Vec<Item>, GcError> {
    let item = |kind, what| Item { kind, what };
    let mut found = Vec::new();
    for group in enisle_vmm::leftovers(store.scope())? {
        found.extend(group.pids.iter().map(|pid| item("process", pid.to_string())));
        found.push(item("cgroup", group.group.display().to_string()));
    }
    // A process is in a group of each hierarchy.
    found.sort_by(|a, b| (a.kind != "process", &a.what).cmp(&(b.kind != "process", &b.what)));
    found.dedup();
    let network = enisle_net::leftovers(store.scope().parse()?)?;
    found.extend(network.links.into_iter().map(|link| item("link", link)));
    found.extend(network.table.into_iter().map(|table| item("table", table)));
    for dir in [dirs.run(), dirs.vms()] {
        let listed = |source| GcError::Io { path: dir.clone(), source };
        match std::fs::read_dir(&dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            entries => {
                for entry in entries.map_err(listed)? {
                    found.push(item("file", entry.map_err(listed)?.path().display().to_string()));
                }
            }
        }
    }
    found.extend(store.list()?.into_iter().map(|row| item("vm", row.name)));
    Ok(found)
}
