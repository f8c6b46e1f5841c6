//! A daemon double and the binary that talks to it.

use crate::fake_daemon::FakeDaemon;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::io::{Read, Write};
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The binary under test, without the caller's environment of it.
pub(crate) fn enisle() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_enisle"));
    for name in ["ENISLE_API", "ENISLE_CONTEXT", "ENISLE_TOKEN_FILE"] {
        command.env_remove(name);
    }
    // Contexts of whoever runs the tests are none of ours.
    command.env("XDG_CONFIG_HOME", "/nonexistent").stdin(Stdio::null());
    command
}

pub(crate) struct World {
    pub(crate) daemon: FakeDaemon,
}

impl World {
    pub(crate) fn new() -> Self {
        Self { daemon: FakeDaemon::start() }
    }

    /// The guest's `/`.
    pub(crate) fn root(&self) -> &Path {
        self.daemon.guest_root()
    }

    /// `enisle --api … ARGS`.
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = enisle();
        command.arg("--api").arg(format!("unix:{}", self.daemon.socket.display())).args(args);
        command
    }

    /// Runs to the end with this input.
    pub(crate) fn run_with(&self, args: &[&str], input: &[u8]) -> Output {
        let mut child = self
            .command(args)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let input = input.to_vec();
        let writer = std::thread::spawn(move || {
            // The other side may end before it has read everything.
            let _ = stdin.write_all(&input);
        });
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap();
        output
    }

    /// Runs to the end without input.
    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }
}

pub(crate) fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

/// Waits for something that another process does in its own time.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(15), "not in 15 s: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// A child that is killed with the value.
pub(crate) struct Running(pub(crate) Child);

impl Running {
    pub(crate) fn start(command: &mut Command) -> Self {
        Self(command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap())
    }

    pub(crate) fn signal(&self, signal: rustix::process::Signal) {
        rustix::process::kill_process(rustix::process::Pid::from_child(&self.0), signal).unwrap();
    }

    /// Reads standard output up to the end of a line.
    pub(crate) fn line(&mut self) -> String {
        let out = self.0.stdout.as_mut().unwrap();
        let mut line = Vec::new();
        let mut byte = [0];
        while readable(out) && out.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
            line.push(byte[0]);
        }
        text(&line)
    }

    /// The exit code, or a failure of the test after 15 s.
    pub(crate) fn code(&mut self) -> i32 {
        let mut status = None;
        eventually("the program ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap().code().unwrap()
    }
}

/// Waits until there is something to read, or a failure of the test after a minute.
fn readable(out: &ChildStdout) -> bool {
    let mut fds = [PollFd::new(out, PollFlags::IN)];
    let minute = Timespec { tv_sec: 60, tv_nsec: 0 };
    assert!(poll(&mut fds, Some(&minute)).unwrap() == 1, "the program says nothing for a minute");
    true
}

impl Drop for Running {
    fn drop(&mut self) {
        // It has ended already in most tests.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
