//! Which VMs of an earlier run live on under this one, and what becomes of everything else that
//! run has left.
//!
//! Owns: that choice, and clearing away what is not chosen. Refuses: taking anything over
//! (`vm::adopt`), and touching what does not carry this daemon's scope.

use crate::boot::{BootError, blocking};
use crate::chain::Chain;
use crate::parts::network::Network;
use crate::parts::{make_dir, remove_dir};
use crate::store::{Intent, Store, VmRow};
use crate::vm::plan::{GroupPlan, StateDirs};
use enisle_net::Limits;
use enisle_net::plan::Block;
use enisle_vmm::Survivor;
use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// Processes of a killed run are dead within this time: nothing can hold off SIGKILL but a disk.
pub(crate) const KILL_LIMIT: Duration = Duration::from_secs(10);

/// A VM to be adopted: its row, and its living processes.
pub(crate) struct Found {
    pub(crate) row: VmRow,
    pub(crate) survivor: Survivor,
    limits: Limits,
}

/// The VMs of earlier runs that were ready, live, and still fit the configuration. The others are
/// named in the log with the reason. Blocks for some file operations a VM.
pub(crate) fn find(store: &Store, groups: &[Arc<GroupPlan>]) -> Result<Vec<Found>, BootError> {
    let mut found = Vec::new();
    let mut dropped = Vec::new();
    for row in store.leftovers()? {
        match judge(store.scope(), groups, &row) {
            Ok((survivor, limits)) => found.push(Found { row, survivor, limits }),
            Err(reason) => dropped.push(format!("{} ({reason})", row.name)),
        }
    }
    if !dropped.is_empty() {
        tracing::warn!("microVMs of an earlier run that cannot live on are removed: {}", dropped.join(", "));
    }
    Ok(found)
}

fn judge(scope: &str, groups: &[Arc<GroupPlan>], row: &VmRow) -> Result<(Survivor, Limits), String> {
    match row.intent {
        Intent::Run => {}
        Intent::Create => return Err("it was never ready".to_owned()),
        Intent::Delete => return Err("it was being deleted".to_owned()),
    }
    let group = groups.iter().find(|group| group.config.name == row.group);
    let Some(group) = group else {
        return Err(format!("its group `{}` is not in the file any more", row.group));
    };
    let range = group.config.network.range;
    if !range.contains(row.block) {
        return Err(format!(
            "its address {} is not in its group's range {range} any more",
            row.block.guest()
        ));
    }
    let Some(vmm) = row.vmm else {
        return Err("the host was booted since".to_owned());
    };
    let survivor = Survivor::find(scope, &row.name, vmm.pid, vmm.start_ticks);
    Ok((survivor.map_err(|error| Chain(&error).to_string())?, group.config.network.limits))
}

/// Removes what earlier runs left, but for the VMs in `found`: first what runs, then what it
/// used. Interfaces of others are left to the engine, which knows the survivors'; without
/// survivors they go here.
pub(crate) async fn clear_others(
    store: &Arc<Store>,
    dirs: &StateDirs,
    found: &[Found],
) -> Result<(), BootError> {
    let scope = store.scope().to_owned();
    let names: Vec<String> = found.iter().map(|found| found.row.name.clone()).collect();
    let killed = enisle_vmm::kill_leftovers_except(&scope, &names, KILL_LIMIT).await?;
    let links = if found.is_empty() {
        blocking("reclaiming the network", move || Network::reclaim(&scope)).await??
    } else {
        0
    };
    let kept = Kept::of(found, dirs);
    for (dir, names) in [(dirs.run(), kept.run), (dirs.vms(), kept.vms)] {
        blocking("removing files", move || clear_dir(&dir, &names)).await??;
    }
    let rows = store.leftovers()?;
    let gone: Vec<&VmRow> = rows.iter().filter(|row| !names.contains(&row.name)).collect();
    for row in &gone {
        store.remove(&row.name)?;
    }
    if killed > 0 || links > 0 || !gone.is_empty() {
        let vms = gone.iter().map(|row| row.name.as_str()).collect::<Vec<_>>().join(" ");
        tracing::warn!(killed, links, vms, "removed what an earlier run left");
    }
    Ok(())
}

/// The blocks of the VMs that are to be adopted, and what each may use from now on.
pub(crate) fn blocks(found: &[Found]) -> Vec<(Block, Limits)> {
    found.iter().map(|found| (found.row.block, found.limits)).collect()
}

/// Names of directories that stay.
struct Kept {
    run: BTreeSet<OsString>,
    vms: BTreeSet<OsString>,
}

impl Kept {
    fn of(found: &[Found], dirs: &StateDirs) -> Self {
        let names = |path: &dyn Fn(&VmRow) -> std::path::PathBuf| {
            let last = |found: &Found| path(&found.row).file_name().map(OsString::from);
            found.iter().filter_map(last).collect()
        };
        Self { run: names(&|row| dirs.run_of(row.block)), vms: names(&|row| dirs.home_of(&row.name)) }
    }
}

/// Removes what is in a directory but for these names; makes it where it is missing.
fn clear_dir(dir: &Path, keep: &BTreeSet<OsString>) -> Result<(), crate::parts::PartError> {
    if keep.is_empty() {
        return remove_dir(dir).and_then(|()| make_dir(dir));
    }
    let listing = |source| crate::parts::PartError::Io { action: "list", path: dir.to_owned(), source };
    for entry in std::fs::read_dir(dir).map_err(listing)? {
        let entry = entry.map_err(listing)?;
        if keep.contains(&entry.file_name()) {
            continue;
        }
        let path = entry.path();
        // A link is not followed: only a directory itself is.
        if entry.file_type().map_err(listing)?.is_dir() {
            remove_dir(&path)?;
        } else {
            std::fs::remove_file(&path).map_err(crate::parts::PartError::io("remove", &path))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_cleared_around_what_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "").unwrap();
        let vms = dir.path().join("vms");
        for name in ["agents-1", "agents-2"] {
            make_dir(&vms.join(name)).unwrap();
            std::fs::write(vms.join(name).join("disk.qcow2"), "").unwrap();
        }
        std::os::unix::fs::symlink(&outside, vms.join("link")).unwrap();
        clear_dir(&vms, &BTreeSet::from([OsString::from("agents-2")])).unwrap();
        let left: Vec<_> = std::fs::read_dir(&vms).unwrap().map(|e| e.unwrap().file_name()).collect();
        assert_eq!(left, ["agents-2"]);
        assert!(vms.join("agents-2/disk.qcow2").exists() && outside.join("file").exists());
        clear_dir(&vms, &BTreeSet::new()).unwrap();
        assert_eq!(std::fs::read_dir(&vms).unwrap().count(), 0);
    }
}
