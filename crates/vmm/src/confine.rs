//! Owns the start of a VM's process with everything taken away from it that it does not need.
//! The only place of this crate that forks, and so the only one with unsafe code.
//!
//! All of it happens in the child between fork and exec, in this order: control groups
//! first, so that nothing the process does is unaccounted; the namespace and the limits while it
//! is still root; then descriptors; then the identity, and last `no_new_privs`, after which
//! nothing can be regained. The child is single-threaded, so `setns` there touches no thread
//! of the daemon, and a child that fails half-way is simply gone.

use std::ffi::OsString;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::process::Stdio;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Resource, Rlimit};
use rustix::thread::{CapabilitySet, LinkNameSpaceType};
use rustix::{fs, process, thread};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};

use crate::error::{Cause, OnPath};
use crate::spec::Ids;

/// What every process of one VM is confined to.
#[derive(Debug)]
pub(crate) struct Confinement {
    pub(crate) user: Ids,
    /// The single supplementary group, where `/dev/kvm` can only be opened by it.
    pub(crate) device_group: Option<u32>,
    pub(crate) netns: Option<OwnedFd>,
    /// Open `cgroup.procs` files; writing `0` moves the writer.
    pub(crate) cgroups: Vec<OwnedFd>,
    pub(crate) run_dir: PathBuf,
}

/// One program to start: what it gets beside its confinement.
#[derive(Debug)]
pub(crate) struct Program {
    /// For messages and as `argv[0]`.
    pub(crate) name: &'static str,
    pub(crate) path: PathBuf,
    pub(crate) args: Vec<OsString>,
    /// Handed over under the numbers they have; all others are closed.
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) open_files: u64,
    /// Bytes a regular file may be written up to; `None` for no limit.
    pub(crate) file_size: Option<u64>,
}

/// A confined process, and its standard error.
#[derive(Debug)]
pub(crate) struct Spawned {
    pub(crate) child: Child,
    pub(crate) stderr: pipe::Receiver,
}

/// What can fail in the child, as [`Cause::Io`] says it. Its place in the list is what the
/// child sends back: the standard library's own channel carries an error number only.
const STAGES: [&str; 4] = [
    "enter the control group and namespace for",
    "set the resource limits of",
    "close the descriptors of",
    "drop the privileges of",
];

/// What the child does, prepared so that it allocates nothing: another thread may have held
/// the allocator's lock at the moment of the fork.
struct Steps {
    cgroups: Vec<RawFd>,
    netns: Option<RawFd>,
    keep: Vec<RawFd>,
    groups: Vec<rustix::fs::Gid>,
    user: Ids,
    open_files: u64,
    file_size: Option<u64>,
}

/// Starts `program` confined, with an empty environment, the run directory as its working
/// directory, and its standard error as the only pipe back.
///
/// Blocks until the child has executed or failed to: microseconds.
pub(crate) fn spawn(program: Program, confinement: &Confinement) -> Result<Spawned, Cause> {
    // By descriptor, so that the VM's user needs no access to the directories above it.
    let binary =
        fs::open(&program.path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).on("open", &program.path)?;
    let steps = Steps {
        cgroups: confinement.cgroups.iter().map(AsRawFd::as_raw_fd).collect(),
        netns: confinement.netns.as_ref().map(AsRawFd::as_raw_fd),
        keep: program.fds.iter().map(AsRawFd::as_raw_fd).collect(),
        groups: confinement.device_group.into_iter().map(rustix::fs::Gid::from_raw).collect(),
        user: confinement.user,
        open_files: program.open_files,
        file_size: program.file_size,
    };
    let (mut heard, said) = io::pipe().on("make a pipe for", &program.path)?;
    let mut command = Command::new(format!("/proc/self/fd/{}", binary.as_raw_fd()));
    command
        .arg0(program.name)
        .args(&program.args)
        .env_clear()
        .current_dir(&confinement.run_dir)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(said)
        .kill_on_drop(true);
    confine_before_exec(&mut command, steps);
    let spawned = command.spawn();
    // Ours of the pipe's two writing ends: without it the child's end is the last.
    drop(command);
    match spawned {
        Ok(child) => {
            let stderr = pipe::Receiver::from_owned_fd(heard.into()).on("read from", &program.path)?;
            Ok(Spawned { child, stderr })
        }
        Err(error) => {
            let mut stage = [u8::MAX];
            // Nothing to read, if it was not the child that failed.
            let _ = heard.read(&mut stage);
            let action = STAGES.get(usize::from(stage[0])).unwrap_or(&"start");
            Err(Cause::io(action, &program.path, error))
        }
    }
    // `program.fds` and `binary` are closed here: the child has its own.
}

#[expect(unsafe_code, reason = "the standard library's hook between fork and exec is unsafe to install")]
fn confine_before_exec(command: &mut Command, steps: Steps) {
    // SAFETY: the hook runs in the forked child, where only async-signal-safe work is allowed.
    // `Steps::apply` makes system calls on prepared values: it neither allocates nor locks.
    unsafe {
        command.pre_exec(move || steps.apply());
    }
}

impl Steps {
    fn apply(&self) -> io::Result<()> {
        let stages = [Self::enter, Self::limit, Self::close_others, Self::drop_privileges];
        for (number, stage) in (0..).zip(stages) {
            stage(self).inspect_err(|_| {
                // The write may fail too; the error number still arrives.
                let _ = rustix::io::write(borrow(2), &[number]);
            })?;
        }
        Ok(())
    }

    fn enter(&self) -> io::Result<()> {
        for &procs in &self.cgroups {
            rustix::io::write(borrow(procs), b"0")?;
        }
        if let Some(netns) = self.netns {
            thread::move_into_link_name_space(borrow(netns), Some(LinkNameSpaceType::Network))?;
        }
        // Its own session: Ctrl-C on the daemon's terminal is not the guest's power switch.
        process::setsid()?;
        process::umask(Mode::RWXG | Mode::RWXO);
        Ok(())
    }

    fn limit(&self) -> io::Result<()> {
        let exactly = |value: u64| Rlimit { current: Some(value), maximum: Some(value) };
        process::setrlimit(Resource::Core, exactly(0))?;
        process::setrlimit(Resource::Nofile, exactly(self.open_files))?;
        if let Some(size) = self.file_size {
            process::setrlimit(Resource::Fsize, exactly(size))?;
        }
        Ok(())
    }

    fn close_others(&self) -> io::Result<()> {
        close_on_exec_from(3)?;
        for &fd in &self.keep {
            rustix::io::fcntl_setfd(borrow(fd), rustix::io::FdFlags::empty())?;
        }
        Ok(())
    }

    fn drop_privileges(&self) -> io::Result<()> {
        // Nothing may come back through a set-uid program or a file capability either.
        for bit in 0..64 {
            let one = CapabilitySet::from_bits_retain(1 << bit);
            match thread::remove_capability_from_bounding_set(one) {
                // Past the last capability of this kernel.
                Err(rustix::io::Errno::INVAL) => break,
                done => done?,
            }
        }
        thread::set_thread_groups(&self.groups)?;
        let gid = rustix::fs::Gid::from_raw(self.user.gid);
        thread::set_thread_res_gid(gid, gid, gid)?;
        let uid = rustix::fs::Uid::from_raw(self.user.uid);
        thread::set_thread_res_uid(uid, uid, uid)?;
        thread::set_no_new_privs(true)?;
        Ok(())
    }
}

#[expect(unsafe_code, reason = "a borrowed descriptor is made from its number")]
fn borrow(fd: RawFd) -> BorrowedFd<'static> {
    // SAFETY: only called in the child with the standard streams or with numbers whose owners
    // (`Confinement`, `Program`) live in the parent until after the fork; the child's copy of
    // the descriptor table lasts until exec.
    unsafe { BorrowedFd::borrow_raw(fd) }
}

#[expect(unsafe_code, reason = "close_range(2) has no safe wrapper")]
fn close_on_exec_from(first: libc::c_uint) -> io::Result<()> {
    // SAFETY: the call takes three integers and touches no memory. With CLOEXEC it closes
    // nothing now, so no owner in this process loses a descriptor it still uses.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    Err(io::Error::last_os_error())
}
