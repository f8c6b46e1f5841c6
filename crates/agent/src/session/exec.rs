//! Exec: a program with pipes or a terminal, as a user of the image.
//!
//! Owns: everything before the program runs, so that each mistake has its own answer (no such
//! user, no such program, not executable, no such directory). Refuses: what follows; see
//! [`super::process`].

use super::Running;
use super::environment::{self, Search};
use super::failure::{failure, from_io};
use super::process::Process;
use super::pump::{InputEnd, Streams};
use crate::sys::{self, Become};
use crate::users::{self, User};
use enisle_guest_proto::{Exec, Failure, FailureCode, Tty};
use rustix::fs::{Gid, Mode, Uid, fchmod, fchown};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use rustix::pty::{OpenptFlags, ioctl_tiocgptpeer, openpt, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Group that owns terminals (Debian and nearly all others: `tty`).
const TTY_GROUP: u32 = 5;

/// Starts the process. `root` is where passwd(5) is, `/` in a guest.
pub(super) fn begin(request: &Exec, root: &Path) -> Result<Running, Failure> {
    let Prepared { mut command, user, cwd } = prepare(request, root)?;
    let whole = |e: io::Error| from_io("prepare the process", &e);
    let (streams, terminal) = match &request.tty {
        None => (with_pipes(&mut command).map_err(whole)?, None),
        Some(tty) => {
            let (streams, terminal) = with_terminal(&mut command, tty, &user).map_err(whole)?;
            (streams, Some(terminal))
        }
    };
    let pid = spawn(command, user, &cwd, terminal.is_some())?;
    let process = adopt(pid, deadline(request), terminal)?;
    Ok(Running { pid: Some(pid), streams, job: Box::new(process) })
}

/// A process of nobody's session, its outputs non-blocking and its input `/dev/null`.
pub(super) struct Detached {
    pub(super) process: Process,
    pub(super) pid: u32,
    pub(super) user: String,
    pub(super) cwd: PathBuf,
    pub(super) outputs: [OwnedFd; 2],
}

/// Starts a process that no session holds.
pub(super) fn detach(request: &Exec, root: &Path) -> Result<Detached, Failure> {
    if request.tty.is_some() || request.argv.is_empty() {
        let why = "a background process has a program and no terminal".to_owned();
        return Err(failure(FailureCode::Invalid, why));
    }
    let Prepared { mut command, user, cwd } = prepare(request, root)?;
    let mut with_outputs = || -> io::Result<[OwnedFd; 2]> {
        let (stdout, stdout_write) = io::pipe()?;
        let (stderr, stderr_write) = io::pipe()?;
        command.stdin(Stdio::null()).stdout(stdout_write).stderr(stderr_write);
        Ok([non_blocking(stdout.into())?, non_blocking(stderr.into())?])
    };
    let outputs = with_outputs().map_err(|e| from_io("prepare the process", &e))?;
    let name = user.name.clone();
    let pid = spawn(command, user, &cwd, false)?;
    let process = adopt(pid, deadline(request), None)?;
    Ok(Detached { process, pid, user: name, cwd, outputs })
}

/// What is known of a process before it has its streams.
struct Prepared {
    command: Command,
    user: User,
    cwd: PathBuf,
}

fn prepare(request: &Exec, root: &Path) -> Result<Prepared, Failure> {
    let user = find_user(request.user.as_deref(), root)?;
    let environment = environment_of(request, &user)?;
    let cwd = working_directory(request, &user)?;
    let mut command = command_of(request, &user, &environment, &cwd)?;
    command.env_clear().envs(&environment);
    Ok(Prepared { command, user, cwd })
}

/// Starts it; the command goes, and with it our copies of the child's ends.
fn spawn(mut command: Command, user: User, cwd: &Path, terminal: bool) -> Result<u32, Failure> {
    let who = Become {
        uid: user.uid,
        gid: user.gid,
        groups: user.groups,
        cwd: text(cwd.as_os_str().as_encoded_bytes().to_vec(), "working directory")?,
        terminal,
        change_user: rustix::process::geteuid().is_root(),
    };
    sys::start_as(&mut command, who);
    let child = command.spawn().map_err(|e| spawn_failure(&command, &e))?;
    Ok(child.id())
}

/// Follows a process that was just started. One that cannot be followed does not run on by itself.
fn adopt(pid: u32, deadline: Option<Instant>, terminal: Option<OwnedFd>) -> Result<Process, Failure> {
    Process::adopt(pid, deadline, terminal).map_err(|error| {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // It is a child that nobody else waits for: its number is still its own.
            let _ = kill_process(pid, Signal::KILL);
            let _ = waitpid(Some(pid), WaitOptions::empty());
        }
        from_io("watch the process", &error)
    })
}

fn deadline(request: &Exec) -> Option<Instant> {
    request.timeout_ms.and_then(|ms| Instant::now().checked_add(Duration::from_millis(ms)))
}

fn find_user(wanted: Option<&str>, root: &Path) -> Result<User, Failure> {
    // Root by number: an image without /etc/passwd has one too.
    let name = wanted.unwrap_or("0");
    users::find(root, name).map_err(|e| from_io("read /etc/passwd", &e))?.ok_or_else(|| {
        failure(FailureCode::NotFound, format!("user {name:?} is not in the guest's /etc/passwd"))
    })
}

fn text(bytes: Vec<u8>, what: &str) -> Result<CString, Failure> {
    CString::new(bytes).map_err(|_| failure(FailureCode::Invalid, format!("{what} contains a NUL byte")))
}

fn environment_of(request: &Exec, user: &User) -> Result<BTreeMap<String, String>, Failure> {
    let mut environment = environment::base(&user.name, &user.home, &user.shell);
    if let Some(tty) = &request.tty {
        environment.insert("TERM".to_owned(), tty.term.clone());
    }
    for (name, value) in &request.env {
        if name.is_empty() || name.contains('=') {
            return Err(failure(
                FailureCode::Invalid,
                format!("{name:?} is no name of an environment variable"),
            ));
        }
        environment.insert(name.clone(), value.clone());
    }
    if let Some(name) = environment.iter().find(|(name, value)| name.contains('\0') || value.contains('\0')) {
        return Err(failure(
            FailureCode::Invalid,
            format!("environment variable {:?} contains a NUL byte", name.0),
        ));
    }
    Ok(environment)
}

/// The directory asked for must exist; a home that does not is replaced by `/`, as login(1) does.
fn working_directory(request: &Exec, user: &User) -> Result<PathBuf, Failure> {
    let Some(cwd) = &request.cwd else {
        let home = PathBuf::from(&user.home);
        return Ok(if home.is_dir() { home } else { PathBuf::from("/") });
    };
    let path = Path::new(&user.home).join(cwd);
    match fs::metadata(&path) {
        Ok(found) if found.is_dir() => Ok(path),
        Ok(_) => Err(failure(FailureCode::Invalid, format!("working directory {cwd:?} is not a directory"))),
        Err(e) => Err(from_io(&format!("working directory {cwd:?}"), &e)),
    }
}

fn command_of(
    request: &Exec,
    user: &User,
    environment: &BTreeMap<String, String>,
    cwd: &Path,
) -> Result<Command, Failure> {
    if request.argv.iter().any(|argument| argument.contains('\0')) {
        return Err(failure(FailureCode::Invalid, "an argument contains a NUL byte".to_owned()));
    }
    let (name, login) = match request.argv.first() {
        Some(name) => (name.as_str(), None),
        None => {
            let shell = if Path::new(&user.shell).exists() { user.shell.as_str() } else { "/bin/sh" };
            // A dash before the name makes it a login shell (sh(1)).
            let base = shell.rsplit('/').next().unwrap_or(shell);
            (shell, Some(format!("-{base}")))
        }
    };
    let path = environment.get("PATH").map(String::as_str).unwrap_or_default();
    match environment::find_program(name, path, cwd) {
        Search::Found(file) => {
            let mut command = Command::new(file);
            command.arg0(login.as_deref().unwrap_or(name)).args(request.argv.iter().skip(1));
            Ok(command)
        }
        Search::NotExecutable(file) => {
            Err(failure(FailureCode::Denied, format!("{}: not executable in the guest", file.display())))
        }
        Search::Missing => {
            Err(failure(FailureCode::NotFound, format!("{name:?}: no such program in the guest")))
        }
    }
}

fn spawn_failure(command: &Command, error: &io::Error) -> Failure {
    let program = command.get_program().to_string_lossy();
    // The file was there a moment ago: what is missing is what it names.
    let hint = if error.kind() == io::ErrorKind::NotFound { " (is its interpreter missing?)" } else { "" };
    let failure = from_io(&format!("start {program}{hint}"), error);
    if error.raw_os_error() == Some(libc::ENOEXEC) {
        Failure { code: FailureCode::Denied, ..failure }
    } else {
        failure
    }
}

fn with_pipes(command: &mut Command) -> io::Result<Streams> {
    let (stdin_read, stdin_write) = io::pipe()?;
    let (stdout_read, stdout_write) = io::pipe()?;
    let (stderr_read, stderr_write) = io::pipe()?;
    command.stdin(stdin_read).stdout(stdout_write).stderr(stderr_write);
    Ok(Streams {
        input: Some((non_blocking(stdin_write.into())?, InputEnd::Close)),
        stdout: Some(non_blocking(stdout_read.into())?),
        stderr: Some(non_blocking(stderr_read.into())?),
    })
}

/// A terminal's master twice in the streams and once for its size.
fn with_terminal(command: &mut Command, tty: &Tty, user: &User) -> io::Result<(Streams, OwnedFd)> {
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let master = openpt(flags)?;
    unlockpt(&master)?;
    let slave = ioctl_tiocgptpeer(&master, flags)?;
    if rustix::process::geteuid().is_root() {
        fchown(&slave, Some(Uid::from_raw(user.uid)), Some(Gid::from_raw(TTY_GROUP)))?;
        fchmod(&slave, Mode::from_raw_mode(0o620))?;
    }
    set_size(master.as_fd(), tty.rows, tty.cols)?;
    let terminal = non_blocking(master)?;
    command
        .stdin(Stdio::from(slave.try_clone()?))
        .stdout(Stdio::from(slave.try_clone()?))
        .stderr(Stdio::from(slave));
    let streams = Streams {
        input: Some((terminal.try_clone()?, InputEnd::EndOfFile)),
        stdout: Some(terminal.try_clone()?),
        stderr: None,
    };
    Ok((streams, terminal))
}

/// Sets a terminal's size; the kernel tells its foreground processes.
pub(super) fn set_size(terminal: impl AsFd, rows: u16, cols: u16) -> io::Result<()> {
    let size = Winsize { ws_row: rows.max(1), ws_col: cols.max(1), ws_xpixel: 0, ws_ypixel: 0 };
    Ok(tcsetwinsize(terminal, size)?)
}

/// The agent's own end of a pipe or socket; the other end stays blocking.
pub(super) fn non_blocking(fd: OwnedFd) -> io::Result<OwnedFd> {
    rustix::io::ioctl_fionbio(&fd, true)?;
    Ok(fd)
}
