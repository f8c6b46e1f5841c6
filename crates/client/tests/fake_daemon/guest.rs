//! What stands for the guest: processes, files and sockets of this machine.

use super::Shared;
use enisle_api::stream::{Exec, FromDaemon, GuestFailure, Open, STDERR, STDOUT, Tty};
use rustix::process::{Pid, Signal, kill_process_group};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::process::Stdio;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::process::{Child, Command};

pub(crate) type Input = Box<dyn AsyncWrite + Send + Unpin>;
pub(crate) type Source = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Failure = (GuestFailure, String);

/// An operation that runs.
pub(crate) struct Operation {
    pub(crate) pid: Option<u32>,
    pub(crate) input: Input,
    pub(crate) outputs: Vec<(u8, Source)>,
    /// How it ends, once its input and outputs are through.
    pub(crate) end: Pin<Box<dyn Future<Output = FromDaemon> + Send>>,
    pub(crate) terminal: Option<OwnedFd>,
}

pub(crate) async fn open(open: &Open, shared: &Shared) -> Result<Operation, Failure> {
    match open {
        Open::Exec(exec) => start(exec, &shared.root),
        Open::ArchiveOut { path, raw } => archive_out(&inside(shared, path), *raw).await,
        Open::ArchiveIn { path, .. } if path.starts_with("/full") => {
            Err((GuestFailure::NoSpace, format!("cannot write {path}: no space left on device")))
        }
        Open::ArchiveIn { path, raw } => archive_in(&inside(shared, path), *raw).await,
        Open::Attach { id, .. } => Err((GuestFailure::NotFound, format!("there is no process {id}"))),
        Open::ConnectTcp { host, port } => {
            Ok(connection(TcpStream::connect((host.as_str(), *port)).await.map_err(unreachable)?))
        }
        Open::ConnectUnix { path } => {
            Ok(connection(UnixStream::connect(inside(shared, path)).await.map_err(unreachable)?))
        }
    }
}

fn inside(shared: &Shared, path: &str) -> PathBuf {
    shared.root.join(path.trim_start_matches('/'))
}

fn unreachable(error: io::Error) -> Failure {
    (GuestFailure::Unreachable, format!("cannot connect: {error}"))
}

fn failed(error: io::Error) -> Failure {
    let class = match error.kind() {
        io::ErrorKind::NotFound => GuestFailure::NotFound,
        io::ErrorKind::PermissionDenied => GuestFailure::Denied,
        _ => GuestFailure::Failed,
    };
    (class, error.to_string())
}

const DONE: FromDaemon = FromDaemon::Exit { code: 0, signal: None, timed_out: false };

fn connection<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(stream: S) -> Operation {
    let (from, to) = tokio::io::split(stream);
    let outputs: Vec<(u8, Source)> = vec![(STDOUT, Box::new(from))];
    Operation { pid: None, input: Box::new(to), outputs, end: Box::pin(async { DONE }), terminal: None }
}

fn start(exec: &Exec, root: &Path) -> Result<Operation, Failure> {
    let argv = if exec.argv.is_empty() { vec!["sh".to_owned()] } else { exec.argv.clone() };
    let mut command = if exec.tty.is_some() {
        // The terminal becomes the controlling one, as in a guest.
        let mut command = Command::new("setsid");
        command.arg("--ctty").args(&argv);
        command
    } else {
        let mut command = Command::new(&argv[0]);
        command.args(&argv[1..]).process_group(0);
        command
    };
    command.current_dir(exec.cwd.as_deref().map_or(root, Path::new)).envs(exec.env.iter().cloned());
    if let Some(user) = &exec.user {
        command.env("GUEST_USER", user);
    }
    match &exec.tty {
        Some(tty) => start_on_terminal(command, tty, exec.timeout_ms),
        None => start_on_pipes(command, exec.timeout_ms),
    }
}

fn start_on_pipes(mut command: Command, timeout_ms: Option<u64>) -> Result<Operation, Failure> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let input = child.stdin.take().unwrap();
    let outputs: Vec<(u8, Source)> = vec![
        (STDOUT, Box::new(child.stdout.take().unwrap())),
        (STDERR, Box::new(child.stderr.take().unwrap())),
    ];
    Ok(Operation {
        pid: child.id(),
        input: Box::new(input),
        outputs,
        end: Box::pin(ended(child, timeout_ms)),
        terminal: None,
    })
}

fn start_on_terminal(mut command: Command, tty: &Tty, timeout_ms: Option<u64>) -> Result<Operation, Failure> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let name = ptsname(&master, Vec::new()).unwrap().into_string().unwrap();
    let slave = File::options().read(true).write(true).open(name).unwrap();
    resize(&master, tty.rows, tty.cols);
    command.env("TERM", &tty.term);
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    let child = command.spawn().map_err(failed)?;
    drop(command);
    let reader = tokio::fs::File::from_std(File::from(master.try_clone().unwrap()));
    let writer = tokio::fs::File::from_std(File::from(master.try_clone().unwrap()));
    let outputs: Vec<(u8, Source)> = vec![(STDOUT, Box::new(reader))];
    let pid = child.id();
    let end = Box::pin(ended(child, timeout_ms));
    Ok(Operation { pid, input: Box::new(writer), outputs, end, terminal: Some(master) })
}

pub(crate) fn resize(terminal: &OwnedFd, rows: u16, cols: u16) {
    tcsetwinsize(terminal, Winsize { ws_row: rows, ws_col: cols, ws_xpixel: 0, ws_ypixel: 0 }).unwrap();
}

async fn ended(mut child: Child, timeout_ms: Option<u64>) -> FromDaemon {
    let pid = child.id();
    let limit = Duration::from_millis(timeout_ms.unwrap_or(u64::from(u32::MAX)));
    let (status, timed_out) = match tokio::time::timeout(limit, child.wait()).await {
        Ok(status) => (status.unwrap(), false),
        Err(_) => {
            signal(pid.unwrap(), 9);
            (child.wait().await.unwrap(), true)
        }
    };
    let signal = status.signal().and_then(|signal| u8::try_from(signal).ok());
    let code = status.code().unwrap_or_else(|| 128 + i32::from(signal.unwrap_or(0)));
    FromDaemon::Exit { code, signal, timed_out }
}

pub(crate) fn signal(pid: u32, signal: u8) {
    let pid = Pid::from_raw(i32::try_from(pid).unwrap()).unwrap();
    let signal = Signal::from_named_raw(i32::from(signal)).unwrap();
    // The process may just have ended.
    let _ = kill_process_group(pid, signal);
}

/// Archives are read and written by the system's `tar`, which knows nothing of our code.
async fn archive_out(path: &Path, raw: bool) -> Result<Operation, Failure> {
    let found = std::fs::metadata(path).map_err(failed)?;
    // A file with this ending is what a hostile guest sends instead of an archive.
    let mut command = if raw || path.extension().is_some_and(|ending| ending == "hostile") {
        if found.is_dir() {
            return Err((GuestFailure::Invalid, format!("{} is a directory", path.display())));
        }
        let mut command = Command::new("cat");
        command.arg(path);
        command
    } else {
        let mut command = Command::new("tar");
        command
            .arg("-C")
            .arg(path.parent().unwrap())
            .args(["--format=posix", "-cf", "-", "--"])
            .arg(path.file_name().unwrap());
        command
    };
    command.process_group(0);
    start_on_pipes(command, None)
}

async fn archive_in(path: &Path, raw: bool) -> Result<Operation, Failure> {
    let script = if raw {
        "cat > \"$1\""
    } else if path.is_dir() {
        "tar -xpf - -C \"$1\""
    } else {
        "t=$(mktemp -d \"$1.XXXXXX\") && tar -xpf - -C \"$t\" && mv -T \"$t\"/* \"$1\" && rmdir \"$t\""
    };
    if !path.parent().is_some_and(Path::is_dir) {
        return Err((GuestFailure::NotFound, format!("no directory for {}", path.display())));
    }
    let mut command = Command::new("sh");
    command.args(["-ec", script, "sh"]).arg(path).process_group(0);
    start_on_pipes(command, None)
}

/// Reads what there is; the end of a terminal whose processes are gone is an error in Linux.
pub(crate) async fn read(source: &mut Source, buffer: &mut [u8]) -> usize {
    source.read(buffer).await.unwrap_or(0)
}
