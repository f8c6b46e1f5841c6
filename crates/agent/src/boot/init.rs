//! The hand-over: the server is forked off, PID 1 becomes the image's init, or reaps in its place.

use super::link::Link;
use crate::console::say;
use crate::server;
use crate::sys::{self, Fork};
use enisle_guest_proto::BootConfig;
use rustix::io::FdFlags;
use rustix::process::{WaitOptions, wait};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

/// Where an image's init is looked for, in the kernel's own order (init/main.c).
const INITS: [&str; 3] = ["/sbin/init", "/etc/init", "/bin/init"];
/// Pause before a server that died is started again.
const RESTART_PAUSE: Duration = Duration::from_secs(1);

/// Forks the server and becomes init. Does not return while the guest lives.
pub(super) fn hand_over(link: Link, config: &BootConfig) -> ExitCode {
    let init = INITS.into_iter().find(|path| is_program(Path::new(path)));
    let kind = match init {
        None => server::Init::Ours,
        Some(path) if is_systemd(Path::new(path)) => server::Init::Systemd,
        Some(_) => server::Init::Other,
    };
    if kind == server::Init::Systemd {
        server::userdata::announce_boot_end();
    }
    let mut server_pid = start_server(Some(link), kind);
    if let Some(path) = init {
        say(format_args!("{}: starting {path}", config.hostname));
        let refused = Command::new(path).env_clear().env("TERM", "linux").exec();
        say(format_args!("{path}: {refused}; serving without an init"));
    }
    loop {
        match wait(WaitOptions::empty()) {
            Ok(Some((pid, _))) if Some(pid.as_raw_nonzero().get()) == server_pid => {
                std::thread::sleep(RESTART_PAUSE);
                server_pid = start_server(None, kind);
            }
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            // No child is left, the server neither: nothing will ever happen again.
            Err(_) => return super::switch_off(),
        }
    }
}

fn is_program(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.is_file() && found.permissions().mode() & 0o111 != 0)
}

fn is_systemd(init: &Path) -> bool {
    fs::canonicalize(init).is_ok_and(|path| path.file_name().is_some_and(|name| name == "systemd"))
}

/// Starts the server as a process image of its own, so that its name can begin with `@`: systemd
/// spares such processes of root when it ends all others (systemd's ROOT_STORAGE_DAEMONS).
fn start_server(link: Option<Link>, kind: server::Init) -> Option<i32> {
    match sys::fork() {
        Ok(Fork::Parent(pid)) => Some(pid),
        Ok(Fork::Child) => {
            let error = exec_server(link.as_ref(), kind);
            say(format_args!("start the server: {error}"));
            std::process::exit(1);
        }
        Err(e) => {
            say(format_args!("fork the server: {e}"));
            None
        }
    }
}

fn exec_server(link: Option<&Link>, kind: server::Init) -> io::Error {
    let prepare = || -> io::Result<()> {
        rustix::process::setsid()?;
        fs::write("/proc/self/oom_score_adj", "-1000")?;
        if let Some(link) = link {
            rustix::io::fcntl_setfd(link.as_fd(), FdFlags::empty())?;
        }
        Ok(())
    };
    if let Err(e) = prepare() {
        return e;
    }
    let fd = link.map(|link| link.as_fd().as_raw_fd());
    Command::new("/proc/self/exe")
        .arg0(server::NAME)
        .args(server::Arguments { init: kind, link: fd }.to_words())
        .exec()
}
