//! The orderly end of the guest.
//!
//! systemd is asked for its power-off target; another init's own `poweroff` is started; without
//! one, and when that fails, the agent ends the processes, syncs and switches off itself.

use super::Init;
use crate::console::say;
use crate::sys;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, mount_remount};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use rustix::system::{RebootCommand, reboot};
use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// `SIGRTMIN+4` starts poweroff.target (systemd(1), SIGNALS). glibc's SIGRTMIN is 34.
const SYSTEMD_POWEROFF: i32 = 34 + 4;
/// Time between SIGTERM and SIGKILL where the agent ends the processes.
const TERM_PATIENCE: Duration = Duration::from_secs(3);

/// Begins the end on a thread of its own, so that the boot connection goes on being served.
pub(super) fn begin(init: Init) {
    say(format_args!("shutting down"));
    let end = move || match init {
        Init::Systemd => ask_systemd(),
        Init::Other => ask_init(),
        Init::Ours => switch_off(),
    };
    if thread::Builder::new().name("shutdown".to_owned()).spawn(end).is_err() {
        switch_off();
    }
}

fn ask_systemd() {
    if let Err(e) = sys::kill(1, SYSTEMD_POWEROFF) {
        say(format_args!("signal systemd: {e}"));
        switch_off();
    }
}

fn ask_init() {
    let asked =
        Command::new("poweroff").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    if !asked.is_ok_and(|status| status.success()) {
        switch_off();
    }
}

/// SIGTERM, a bounded wait, SIGKILL, sync, read-only root, power off.
fn switch_off() {
    if let Err(e) = end_processes() {
        say(format_args!("end all processes: {e}"));
    }
    rustix::fs::sync();
    if let Err(e) = mount_remount("/", MountFlags::RDONLY, c"") {
        say(format_args!("mount / read-only: {e}"));
    }
    for command in [RebootCommand::PowerOff, RebootCommand::Restart] {
        if let Err(e) = reboot(command) {
            say(format_args!("{command:?}: {e}"));
        }
    }
}

fn end_processes() -> io::Result<()> {
    let running = user_processes()?;
    sys::kill(-1, libc::SIGTERM)?;
    wait_for_all(&running, Instant::now() + TERM_PATIENCE)?;
    sys::kill(-1, libc::SIGKILL)
}

/// A descriptor for each process but PID 1, this one, and the kernel's threads.
fn user_processes() -> io::Result<Vec<OwnedFd>> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let name = entry?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse::<i32>().ok()) else { continue };
        // Kernel threads have no command line (proc(5)); neither has what has just ended.
        let is_program = fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|line| !line.is_empty());
        if pid == 1 || u32::try_from(pid) == Ok(own) || !is_program {
            continue;
        }
        found.extend(Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()));
    }
    Ok(found)
}

/// Waits until every process has ended or the deadline is there.
fn wait_for_all(processes: &[OwnedFd], deadline: Instant) -> io::Result<()> {
    for process in processes {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec { tv_sec: left.as_secs().cast_signed(), tv_nsec: i64::from(left.subsec_nanos()) };
        poll(&mut [PollFd::new(process, PollFlags::IN)], Some(&left))?;
    }
    Ok(())
}
