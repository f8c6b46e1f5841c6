//! Owns finding the processes of a microVM that has outlived its daemon, and proving that they
//! are that microVM's: by control group, number and start time, each pinned by a descriptor.
//! Refuses to take anybody for one because of a number or a name alone.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::cgroup::Cgroup;
use crate::error::{Cause, OnPath, VmmError};

/// The processes of one microVM that was launched by another daemon, alive when they were found.
#[derive(Debug)]
pub struct Survivor {
    pub(crate) vmm: Pinned,
    pub(crate) vsock: Pinned,
    pub(crate) cgroup: Cgroup,
    netns: OwnedFd,
}

/// A process that cannot come to mean another one.
#[derive(Debug)]
pub(crate) struct Pinned {
    pub(crate) pid: u32,
    pub(crate) fd: OwnedFd,
}

impl Survivor {
    /// Finds the microVM whose control group is `name` in `scope` and whose VMM is the process
    /// `pid` that began at `start_ticks` (see [`start_ticks`]). Blocks for some file operations.
    ///
    /// # Errors
    /// [`VmmError::NoSurvivor`] when it is not alive and whole: then [`crate::kill_group`]
    /// removes what there is.
    pub fn find(scope: &str, name: &str, pid: u32, start_ticks: u64) -> Result<Self, VmmError> {
        Self::look(scope, name, pid, start_ticks)
            .map_err(|source| VmmError::NoSurvivor { vm: name.to_owned(), source })
    }

    fn look(scope: &str, name: &str, pid: u32, ticks: u64) -> Result<Self, Cause> {
        let cgroup = Cgroup::find(scope, name)?;
        let vmm = pin(pid)?;
        if start_ticks(pid) != ticks {
            return Err(Cause::Gone);
        }
        // Asked for after both were pinned, so the numbers mean these processes.
        let others: Vec<u32> = cgroup.members()?.into_iter().filter(|member| *member != pid).collect();
        let [device] = others[..] else {
            return Err(Cause::Unsupported(format!(
                "its control group holds {} processes beside its VMM, not the vsock device alone",
                others.len()
            )));
        };
        let vsock = pin(device)?;
        let members = cgroup.members()?;
        if !(members.contains(&pid) && members.contains(&device)) {
            return Err(Cause::Gone);
        }
        let path = PathBuf::from(format!("/proc/{pid}/ns/net"));
        let netns = OwnedFd::from(File::open(&path).on("open", &path)?);
        for process in [&vmm, &vsock] {
            if ended(&process.fd)? {
                return Err(Cause::Gone);
            }
        }
        Ok(Self { vmm, vsock, cgroup, netns })
    }

    /// The VMM's process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.vmm.pid
    }

    /// The network namespace its VMM runs in.
    #[must_use]
    pub fn netns(&self) -> BorrowedFd<'_> {
        self.netns.as_fd()
    }
}

/// When a process began, in clock ticks since boot: field 22 of `/proc/PID/stat` (proc(5)); 0 for
/// one that is gone, which equals no process.
#[must_use]
pub fn start_ticks(pid: u32) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name in field 2 may hold spaces and parentheses.
    let after_name = stat.rsplit_once(')').map_or("", |(_, rest)| rest);
    after_name.split_ascii_whitespace().nth(19).and_then(|ticks| ticks.parse().ok()).unwrap_or(0)
}

/// What a process does, field 3 of `/proc/PID/stat` (proc(5)): `T` is stopped by a signal.
pub(crate) fn state(pid: u32) -> Option<char> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

pub(crate) fn pin(pid: u32) -> Result<Pinned, Cause> {
    let number = i32::try_from(pid).ok().and_then(Pid::from_raw).ok_or(Cause::Gone)?;
    match pidfd_open(number, PidfdFlags::NONBLOCK) {
        Ok(fd) => Ok(Pinned { pid, fd }),
        Err(rustix::io::Errno::SRCH) => Err(Cause::Gone),
        Err(error) => Err(Cause::io("pin process", Path::new(&format!("/proc/{pid}")), error)),
    }
}

/// A pidfd is readable once its process has ended, a zombie included (pidfd_open(2)).
fn ended(pidfd: &OwnedFd) -> Result<bool, Cause> {
    let mut watched = [PollFd::new(pidfd, PollFlags::IN)];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    let ready = poll(&mut watched, Some(&now)).on("look at a process through", "pidfd")?;
    Ok(ready > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_start_of_a_process_is_read() {
        assert!(start_ticks(std::process::id()) > 0);
        assert_eq!(start_ticks(u32::MAX), 0);
    }

    #[test]
    fn a_dead_process_is_seen_before_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("600").spawn().unwrap();
        let pinned = pin(child.id()).unwrap();
        assert!(!ended(&pinned.fd).unwrap());
        child.kill().unwrap();
        let mut watched = [PollFd::new(&pinned.fd, PollFlags::IN)];
        poll(&mut watched, None).unwrap();
        assert!(ended(&pinned.fd).unwrap());
        assert!(start_ticks(child.id()) > 0, "still a zombie: the number alone would tell nothing");
        child.wait().unwrap();
        assert!(matches!(pin(child.id()), Err(Cause::Gone)));
    }
}
