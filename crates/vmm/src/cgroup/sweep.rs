//! Owns killing what a daemon that died has left in its scope's control groups.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::group::{if_there, remove_dir};
use super::hierarchy::mounted;
use super::scope_dir;
use crate::error::{Cause, OnPath, VmmError};
use crate::spec::validate_scope;

/// A group of a scope, and who is in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leftover {
    /// The group's directory.
    pub group: PathBuf,
    /// Its processes, as numbers of this moment.
    pub pids: Vec<u32>,
}

/// Which groups of a scope a sweep is for.
#[derive(Debug, Clone)]
enum Whom {
    /// All but the groups of these names, and what is below them.
    AllBut(Vec<String>),
    /// The group of this name and what is below it.
    Only(String),
}

/// Kills every process in the control groups of `scope`, waits until they are dead, and
/// removes the groups. Returns how many were killed; nothing to do is `0`.
///
/// A process is killed for being in the scope's group at that moment, through a descriptor
/// that cannot come to mean another process. Groups of other scopes are not looked at.
///
/// # Errors
/// [`VmmError::Leftovers`] when a process outlives `limit` or a group cannot be removed.
pub async fn kill_leftovers(scope: &str, limit: Duration) -> Result<usize, VmmError> {
    kill(scope, Whom::AllBut(Vec::new()), limit).await
}

/// As [`kill_leftovers`], but the groups of the VMs in `keep` are left alone.
///
/// # Errors
/// As [`kill_leftovers`].
pub async fn kill_leftovers_except(scope: &str, keep: &[String], limit: Duration) -> Result<usize, VmmError> {
    kill(scope, Whom::AllBut(keep.to_vec()), limit).await
}

/// As [`kill_leftovers`], for the group of one VM.
///
/// # Errors
/// As [`kill_leftovers`].
pub async fn kill_group(scope: &str, name: &str, limit: Duration) -> Result<usize, VmmError> {
    kill(scope, Whom::Only(name.to_owned()), limit).await
}

/// The groups of a scope, without touching them. Blocks for some file operations.
///
/// # Errors
/// [`VmmError::Leftovers`] when they cannot be read.
pub fn leftovers(scope: &str) -> Result<Vec<Leftover>, VmmError> {
    let list = || {
        validate_scope(scope)?;
        let mut found = Vec::new();
        for (_, groups) in groups_of(scope, &Whom::AllBut(Vec::new()))? {
            for group in groups {
                let pids = members(&group)?.into_iter().filter_map(|pid| u32::try_from(pid).ok()).collect();
                found.push(Leftover { group, pids });
            }
        }
        Ok(found)
    };
    list().map_err(|source| VmmError::Leftovers { scope: scope.to_owned(), source })
}

async fn kill(scope: &str, whom: Whom, limit: Duration) -> Result<usize, VmmError> {
    let owned = scope.to_owned();
    let swept = tokio::task::spawn_blocking(move || sweep(&owned, &whom, limit)).await;
    swept
        .unwrap_or_else(|lost| Err(Cause::Unsupported(format!("the sweep was lost: {lost}"))))
        .map_err(|source| VmmError::Leftovers { scope: scope.to_owned(), source })
}

fn sweep(scope: &str, whom: &Whom, limit: Duration) -> Result<usize, Cause> {
    validate_scope(scope)?;
    let deadline = Instant::now() + limit;
    let mut killed = 0;
    for (top, groups) in groups_of(scope, whom)? {
        for group in &groups {
            killed += empty(group, deadline, limit)?;
        }
        for group in groups.iter().rev() {
            remove_dir(group).on("remove control group", group)?;
        }
        // Where others of the scope live on, it stays.
        let _ = std::fs::remove_dir(top);
    }
    Ok(killed)
}

/// The scope's directory in each hierarchy that has one, and the groups in it, parents first.
/// The scope's own group is among them only when all of it is to go: what is done to it is done
/// to all below.
fn groups_of(scope: &str, whom: &Whom) -> Result<Vec<(PathBuf, Vec<PathBuf>)>, Cause> {
    let mut found = Vec::new();
    for hierarchy in mounted()? {
        let top = hierarchy.root.join(scope_dir(scope));
        if !top.is_dir() {
            continue;
        }
        let all = groups_below(&top)?;
        let name = |group: &Path| {
            let below = group.strip_prefix(&top).ok()?;
            below.components().next().map(|first| first.as_os_str().to_string_lossy().into_owned())
        };
        let mine = |group: &Path| match (whom, name(group)) {
            (Whom::AllBut(keep), Some(name)) => !keep.contains(&name),
            (Whom::Only(only), Some(name)) => *only == name,
            // The scope's own.
            (_, None) => true,
        };
        let whole = matches!(whom, Whom::AllBut(_)) && all.iter().all(|group| mine(group));
        let groups = all.into_iter().filter(|group| mine(group) && (whole || *group != top)).collect();
        found.push((top, groups));
    }
    Ok(found)
}

/// `top` and all groups below it, parents first.
fn groups_below(top: &Path) -> Result<Vec<PathBuf>, Cause> {
    let mut groups = vec![top.to_owned()];
    let mut next = 0;
    while let Some(dir) = groups.get(next).cloned() {
        next += 1;
        let Some(entries) = if_there(std::fs::read_dir(&dir)).on("list", &dir)? else { continue };
        for entry in entries {
            let Some(entry) = if_there(entry).on("list", &dir)? else { continue };
            if if_there(entry.file_type()).on("list", &dir)?.is_some_and(|kind| kind.is_dir()) {
                groups.push(entry.path());
            }
        }
    }
    Ok(groups)
}

/// Kills until the group is empty: what forks while being killed is in the next round.
fn empty(group: &Path, deadline: Instant, limit: Duration) -> Result<usize, Cause> {
    // No more forks, where the group counts processes (both versions name it so).
    let pids_max = group.join("pids.max");
    if pids_max.exists() {
        if_there(std::fs::write(&pids_max, "0")).on("forbid forks in", &pids_max)?;
    }
    let mut killed = 0;
    loop {
        let members = members(group)?;
        if members.is_empty() {
            return Ok(killed);
        }
        let mut dying = Vec::new();
        for pid in members {
            dying.extend(kill_member(group, pid)?);
        }
        killed += dying.len();
        for process in &dying {
            await_death(process, deadline, limit)?;
        }
        if Instant::now() >= deadline {
            return Err(timed_out(limit));
        }
    }
}

/// Nobody is in a group that has gone: its owner may be removing it at this moment.
fn members(group: &Path) -> Result<Vec<i32>, Cause> {
    let procs = group.join("cgroup.procs");
    let list = if_there(std::fs::read_to_string(&procs)).on("read", &procs)?.unwrap_or_default();
    Ok(list.lines().filter_map(|line| line.parse().ok()).collect())
}

/// Pins the process, makes sure it is still a member, and only then kills it.
fn kill_member(group: &Path, pid: i32) -> Result<Option<OwnedFd>, Cause> {
    let Some(number) = Pid::from_raw(pid) else {
        return Err(Cause::Unsuitable {
            path: group.to_owned(),
            problem: "holds a process of another pid namespace, which cannot be ended from here".into(),
        });
    };
    let pinned = match pidfd_open(number, PidfdFlags::empty()) {
        Err(Errno::SRCH) => return Ok(None),
        opened => opened.on("pin a process of", group)?,
    };
    // The number may have passed to a stranger before it was pinned.
    if !members(group)?.contains(&pid) {
        return Ok(None);
    }
    match pidfd_send_signal(&pinned, Signal::KILL) {
        Err(Errno::SRCH) => Ok(None),
        sent => {
            sent.on("kill a process of", group)?;
            Ok(Some(pinned))
        }
    }
}

/// A pidfd becomes readable when its process has ended (pidfd_open(2)).
fn await_death(process: &OwnedFd, deadline: Instant, limit: Duration) -> Result<(), Cause> {
    loop {
        let rest = deadline.saturating_duration_since(Instant::now());
        let rest = Timespec::try_from(rest).map_err(|_| timed_out(limit))?;
        let mut watched = [PollFd::new(process, PollFlags::IN)];
        match poll(&mut watched, Some(&rest)) {
            Ok(0) => return Err(timed_out(limit)),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(error) => return Err(Cause::io("wait for the end of a process", "pidfd", error)),
        }
    }
}

fn timed_out(limit: Duration) -> Cause {
    Cause::TimedOut { what: "the end of killed processes", limit }
}
