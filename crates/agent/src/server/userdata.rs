//! The first-boot script: run at most once on each disk, as root.
//!
//! Owns: the marker on the disk, the log, the wait for systemd. Refuses: to run a script again
//! whose first run was cut short; it may have done anything.

use super::Init;
use super::host::Events;
use crate::console::say;
use anyhow::Context;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread;

/// Largest script in bytes.
const MAX_SCRIPT: usize = 1 << 20;
const STATE: &str = "/var/lib/enisle";
const SCRIPT: &str = "/var/lib/enisle/userdata";
/// Exists once the script was started; holds its exit status once it ended.
const MARKER: &str = "/var/lib/enisle/userdata.status";
const LOG: &str = "/var/log/enisle-userdata.log";
/// Exit status of a script whose run was cut short by the end of the guest.
const INTERRUPTED: i32 = 255;

/// systemd writes here when multi-user.target is reached.
const BOOT_END: &str = "/run/enisle/boot-end";
const BOOT_END_UNIT: &str = "[Unit]\nDescription=Tell the Enisle agent that the boot is over\nAfter=multi-user.target\n\
    [Service]\nType=oneshot\nTimeoutStartSec=5\nExecStart=/bin/sh -c 'echo done >/run/enisle/boot-end'\n";
/// Longest wait for systemd before the script runs all the same, in seconds.
const BOOT_PATIENCE: i64 = 180;

/// A script as it arrives, in parts.
#[derive(Debug, Default)]
pub struct Script(String);

impl Script {
    /// Adds a part.
    ///
    /// # Errors
    /// The script is over 1 MiB; what was collected is dropped.
    pub fn add(&mut self, part: &str) -> anyhow::Result<()> {
        if self.0.len() + part.len() > MAX_SCRIPT {
            self.0.clear();
            anyhow::bail!("the script is over {MAX_SCRIPT} bytes");
        }
        self.0.push_str(part);
        Ok(())
    }
}

/// The fifo of [`BOOT_END`], held open for as long as the server lives: systemd's unit must find a
/// reader whenever it comes, and its line must keep until somebody asks.
#[derive(Debug, Clone, Default)]
pub(super) struct BootEnd(Option<Arc<OwnedFd>>);

impl BootEnd {
    /// Opens the fifo where systemd is PID 1; without it nothing is waited for.
    pub(super) fn open(init: Init) -> Self {
        if init != Init::Systemd {
            return Self(None);
        }
        // For both ways: opening does not wait for a writer, and the fifo never reads as ended.
        match rustix::fs::open(BOOT_END, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
            Ok(fifo) => Self(Some(Arc::new(fifo))),
            Err(e) => {
                say(format_args!("{BOOT_END}: {e}"));
                Self(None)
            }
        }
    }

    /// Waits for the line from [`BOOT_END_UNIT`], boundedly: a script may want services.
    fn wait(&self) {
        let Some(fifo) = &self.0 else { return };
        let patience = Timespec { tv_sec: BOOT_PATIENCE, tv_nsec: 0 };
        match poll(&mut [PollFd::new(&**fifo, PollFlags::IN)], Some(&patience)) {
            Ok(0) => say(format_args!(
                "userdata: the boot is not over after {BOOT_PATIENCE} s, running the script"
            )),
            Ok(_) => {}
            Err(e) => say(format_args!("userdata: {BOOT_END}: {e}")),
        }
    }
}

/// Before systemd starts: makes it tell when its boot is over, by a unit that lives in /run.
/// A failure costs the wait only.
pub fn announce_boot_end() {
    let prepare = || -> io::Result<()> {
        let wants = "/run/systemd/system/multi-user.target.wants";
        fs::create_dir_all("/run/enisle")?;
        rustix::fs::mkfifoat(rustix::fs::CWD, BOOT_END, Mode::from_raw_mode(0o600))?;
        fs::create_dir_all(wants)?;
        fs::write("/run/systemd/system/enisle-boot-end.service", BOOT_END_UNIT)?;
        std::os::unix::fs::symlink("../enisle-boot-end.service", format!("{wants}/enisle-boot-end.service"))
    };
    if let Err(e) = prepare() {
        say(format_args!("prepare {BOOT_END}: {e}"));
    }
}

/// Runs the script on a thread of its own if this disk has not had one, and reports its end.
pub(super) fn start(script: Script, boot_end: BootEnd, events: Events) {
    let task = move || {
        let code = run_once(&script.0, &boot_end).unwrap_or_else(|e| {
            say(format_args!("userdata: {e:#}"));
            1
        });
        events.userdata_done(code);
    };
    if let Err(e) = thread::Builder::new().name("userdata".to_owned()).spawn(task) {
        say(format_args!("userdata: {e}"));
    }
}

fn run_once(script: &str, boot_end: &BootEnd) -> anyhow::Result<i32> {
    DirBuilder::new().recursive(true).mode(0o700).create(STATE).context(STATE)?;
    match OpenOptions::new().write(true).create_new(true).open(MARKER) {
        Ok(mut marker) => {
            marker.sync_all()?;
            boot_end.wait();
            let code = exit_code(run(script)?);
            write!(marker, "{code}")?;
            marker.sync_all()?;
            Ok(code)
        }
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {
            let status = fs::read_to_string(MARKER).context(MARKER)?;
            Ok(status.trim().parse().unwrap_or(INTERRUPTED))
        }
        Err(e) => Err(e).context(MARKER),
    }
}

/// Runs the script by its own `#!` line, by `/bin/sh` when it has none.
fn run(script: &str) -> anyhow::Result<ExitStatus> {
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o700)
        .open(SCRIPT)
        .context(SCRIPT)?;
    file.write_all(script.as_bytes())?;
    // A file that is open for writing cannot be executed (ETXTBSY).
    drop(file);
    let mut log = File::create(LOG).context(LOG)?;
    let (mut command, program) = if script.starts_with("#!") {
        (Command::new(SCRIPT), SCRIPT)
    } else {
        let mut shell = Command::new("/bin/sh");
        shell.arg(SCRIPT);
        (shell, "/bin/sh")
    };
    let (read, write) = io::pipe()?;
    let mut child = command
        .env_clear()
        .envs(crate::session::environment::base("root", "/root", "/bin/sh"))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(write.try_clone()?)
        .stderr(write)
        .spawn()
        .with_context(|| format!("start {program}"))?;
    // The command keeps its own copies of the pipe until it is dropped.
    drop(command);
    thread::Builder::new().name("userdata log".to_owned()).spawn(move || copy_log(read, &mut log))?;
    Ok(child.wait()?)
}

/// Copies output to the log and, line by line, to the console; ends with the last process that
/// holds the pipe, which may be a service the script left behind.
fn copy_log(output: io::PipeReader, log: &mut File) {
    let mut reader = BufReader::new(output);
    let mut line = Vec::new();
    loop {
        line.clear();
        // Bounded: a line without end must not fill the memory.
        match io::Read::take(&mut reader, 4096).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        // A full disk ends the log, not the script.
        let _ = log.write_all(&line);
        say(format_args!("userdata: {}", String::from_utf8_lossy(&line).trim_end()));
    }
}

fn exit_code(status: ExitStatus) -> i32 {
    status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0))
}
