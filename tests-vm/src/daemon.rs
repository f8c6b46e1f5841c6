//! The daemon under test, in the world's host namespace.

use crate::{Site, program};
use anyhow::{Context as _, Result, bail};
use std::fs::{self, File};
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

/// Longest wait for anything: emulated guests on a busy machine are slow.
const PATIENCE: Duration = Duration::from_secs(240);

/// A running daemon. Dropping it kills it; a test that cares stops it.
#[derive(Debug)]
pub struct Daemon<'site> {
    site: &'site Site,
    child: Child,
    log: PathBuf,
    /// Where it tells its service manager.
    notify: UnixDatagram,
}

impl<'site> Daemon<'site> {
    /// Starts `enisle up CONFIG` with this additional environment; returns when it says `READY=1`.
    ///
    /// # Errors
    /// When it ends before, or says nothing for minutes; with its log.
    pub fn start(site: &'site Site, config: &Path, env: &[(&str, &str)]) -> Result<Self> {
        Self::start_with(site, config, &[], env)
    }

    /// As [`Daemon::start`], with more words on the command line.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_with(
        site: &'site Site,
        config: &Path,
        flags: &[&str],
        env: &[(&str, &str)],
    ) -> Result<Self> {
        Self::start_while(site, config, flags, env, |_| {})
    }

    /// As [`Daemon::start_with`]; does this to the daemon a few times a second until it is up.
    ///
    /// # Errors
    /// As [`Daemon::start`].
    pub fn start_while(
        site: &'site Site,
        config: &Path,
        flags: &[&str],
        env: &[(&str, &str)],
        what: impl Fn(&Self),
    ) -> Result<Self> {
        let notify = site.dir().join("notify.sock");
        let _ = fs::remove_file(&notify);
        let socket = UnixDatagram::bind(&notify).context("bind the notify socket")?;
        socket.set_read_timeout(Some(Duration::from_millis(250)))?;
        let log = site.dir().join("daemon.log");
        let file = File::options().create(true).append(true).open(&log).context("open the daemon's log")?;
        let mut command = Command::new(program("enisle"));
        command.arg("up").arg(config).args(flags).current_dir(site.dir()).env("NOTIFY_SOCKET", &notify);
        command.envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(file.try_clone()?).stderr(file);
        let child = site.world.host.run(|| command.spawn()).context("start the daemon")?;
        let mut daemon = Self { site, child, log, notify: socket };
        let start = std::time::Instant::now();
        loop {
            let mut buffer = [0; 256];
            if let Ok(n) = daemon.notify.recv(&mut buffer)
                && String::from_utf8_lossy(&buffer[..n]).lines().any(|line| line == "READY=1")
            {
                return Ok(daemon);
            }
            // Not before it has had a moment to listen to signals.
            what(&daemon);
            if let Some(status) = daemon.child.try_wait()? {
                bail!("the daemon ended ({status}) before it was ready:\n{}", daemon.log());
            }
            if start.elapsed() > PATIENCE {
                bail!("the daemon was not ready in time:\n{}", daemon.log());
            }
        }
    }

    /// Starts `enisle up CONFIG` and kills it with SIGKILL so soon after that it is not up yet, or
    /// just so.
    ///
    /// # Panics
    /// If it cannot be started, or ended by itself before.
    pub fn start_and_kill(site: &Site, config: &Path, after: Duration) {
        let mut command = Command::new(program("enisle"));
        command.arg("up").arg(config).current_dir(site.dir());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut child = site.world.host.run(|| command.spawn()).expect("start the daemon");
        std::thread::sleep(after);
        child.kill().expect("kill the daemon");
        let status = child.wait().expect("wait for the daemon");
        assert_eq!(status.signal(), Some(9), "ended by itself before it was killed");
    }

    /// What it has told its service manager since it was up, or since this was asked last.
    #[must_use]
    pub fn notified(&self) -> Vec<String> {
        let mut lines = Vec::new();
        let mut buffer = [0; 256];
        while let Ok(n) = self.notify.recv(&mut buffer) {
            lines.extend(String::from_utf8_lossy(&buffer[..n]).lines().map(str::to_owned));
        }
        lines
    }

    /// Process id.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has logged so far, earlier runs at this site included.
    #[must_use]
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Runs `enisle ARGS` to its end.
    ///
    /// # Panics
    /// If it cannot be started.
    #[must_use]
    pub fn run(&self, args: &[&str]) -> Output {
        self.site.enisle(args).stdin(Stdio::null()).output().expect("run enisle")
    }

    /// Runs a shell command in a guest; its output.
    ///
    /// # Panics
    /// If it fails; with the daemon's log.
    #[track_caller]
    #[must_use]
    pub fn sh(&self, vm: &str, script: &str) -> String {
        let output = self.run(&["vm", "exec", vm, "--", "sh", "-c", script]);
        assert!(
            output.status.success(),
            "{vm}: {script}: {}\n{}\n{}",
            output.status,
            String::from_utf8_lossy(&output.stderr),
            self.log()
        );
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// Runs `enisle --json ARGS` and reads what it printed.
    ///
    /// # Panics
    /// If it fails or prints no JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let mut all = vec!["--json"];
        all.extend(args);
        let text = crate::ok(&self.run(&all));
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{args:?} printed no JSON ({e}): {text}"))
    }

    /// Stops it with SIGTERM and waits for its end.
    ///
    /// # Panics
    /// If it does not end in time.
    pub fn stop(mut self) -> ExitStatus {
        self.signal(rustix::process::Signal::TERM);
        self.wait()
    }

    /// Kills it with SIGKILL, as a crash would.
    pub fn kill(mut self) {
        self.signal(rustix::process::Signal::KILL);
        let status = self.wait();
        assert_eq!(status.signal(), Some(9), "ended by itself before it was killed");
    }

    /// Waits for the end of a daemon that a fault point kills.
    ///
    /// # Panics
    /// If it ends otherwise, or not at all.
    pub fn died(mut self) {
        let status = self.wait();
        assert_eq!(status.signal(), Some(9), "not killed by its fault point");
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, signal).expect("signal the daemon");
    }

    fn wait(&mut self) -> ExitStatus {
        let start = std::time::Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for the daemon") {
                return status;
            }
            assert!(start.elapsed() < PATIENCE, "the daemon does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Daemon<'_> {
    fn drop(&mut self) {
        if let Ok(None) = self.child.try_wait() {
            // A failed test: an orderly stop first, so that no VMM outlives it.
            self.signal(rustix::process::Signal::TERM);
            let start = std::time::Instant::now();
            while start.elapsed() < Duration::from_secs(30) {
                if !matches!(self.child.try_wait(), Ok(None)) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(50));
            }
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
