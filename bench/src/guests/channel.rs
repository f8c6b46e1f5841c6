//! Line 16: how much of the raw channel `cp` and `port-forward` give.
//!
//! Owns: the host's bare end of the raw channel, which is the same vsock device that the agent's
//! sessions go through. Each transfer counts from the start of its program to the moment the
//! receiver has all.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};

use super::inside::{self, LISTENING, WORD};
use super::site::Site;
use crate::Effort;
use crate::report::{Row, Target};
use crate::statistics::Pairs;

/// A transfer takes a second or more, so that the start of a program is little of it.
const BYTES: u64 = 32 << 20;
/// Of the guest, vsock and TCP.
const PORT: &str = "7016";
/// Memory in the guest: its disk is no part of the channel.
const BLOB: &str = "/dev/shm/blob";
const WAY: [&str; 2] = ["to the guest", "from the guest"];

pub(super) fn measure(effort: Effort, site: &Site, vm: &str) -> Result<Vec<Row>> {
    let bytes = effort.of(usize::try_from(BYTES)?) as u64;
    let ends = Ends { site, vm, bytes };
    let forward = Forward::start(site, vm)?;
    let mut cp = [Pairs::default(), Pairs::default()];
    let mut forwarded = [Pairs::default(), Pairs::default()];
    for _ in 0..effort.rounds {
        for (way, to_guest) in [true, false].into_iter().enumerate() {
            let raw = ends.raw(to_guest)?;
            cp[way].push(ends.cp(to_guest)?, raw);
            forwarded[way].push(ends.forward(&forward, to_guest)?, raw);
        }
    }
    drop(forward);
    let row = |what: &str, pairs: &[Pairs; 2], way: usize| {
        let what = format!("{what} / raw channel, {}", WAY[way]);
        Row::ratio(16, what, Target::AtLeast(0.85), &pairs[way], "MB/s")
    };
    Ok(vec![
        row("cp", &cp, 0),
        row("cp", &cp, 1),
        row("port-forward", &forwarded, 0),
        row("port-forward", &forwarded, 1),
    ])
}

struct Ends<'a> {
    site: &'a Site,
    vm: &'a str,
    bytes: u64,
}

impl Ends<'_> {
    /// Bare reads and writes on the vsock device.
    fn raw(&self, to_guest: bool) -> Result<f64> {
        let path = self.site.vsock()?;
        self.transfer(if to_guest { "take" } else { "send" }, to_guest, || {
            let mut stream = UnixStream::connect(&path)?;
            stream.write_all(format!("CONNECT {PORT}\n").as_bytes())?;
            // One line, byte by byte: what follows it is already the guest's.
            let mut byte = [0];
            while byte != *b"\n" {
                stream.read_exact(&mut byte)?;
            }
            Ok(stream)
        })
    }

    /// A TCP connection through `enisle vm port-forward`.
    fn forward(&self, forward: &Forward, to_guest: bool) -> Result<f64> {
        let what = if to_guest { "serve-take" } else { "serve-send" };
        self.transfer(what, to_guest, || Ok(TcpStream::connect(("127.0.0.1", forward.port))?))
    }

    /// MB/s with this program at the guest's end.
    fn transfer<S: std::io::Read + std::io::Write>(
        &self,
        what: &str,
        to_guest: bool,
        connect: impl FnOnce() -> Result<S>,
    ) -> Result<f64> {
        let bytes = self.bytes.to_string();
        let mut command =
            self.site.cli(&["vm", "exec", self.vm, "--", "/root/bench", WORD, what, PORT, &bytes]);
        let mut guest = Ended(command.stdout(Stdio::piped()).spawn()?);
        let mut said = String::new();
        BufReader::new(guest.0.stdout.take().context("no output")?).read_line(&mut said)?;
        ensure!(said.trim() == LISTENING, "the guest's end said {said:?}");
        let mut stream = connect()?;
        let start = Instant::now();
        if to_guest {
            inside::send(&mut stream, self.bytes)?;
        } else {
            inside::take(&mut stream, self.bytes)?;
        }
        let speed = self.speed(start);
        let ended = guest.0.wait()?;
        ensure!(ended.success(), "the guest's end: {ended}");
        Ok(speed)
    }

    /// `enisle vm cp` of one file that is only in memory, the start of `enisle` included.
    fn cp(&self, to_guest: bool) -> Result<f64> {
        let there = format!("{}:{BLOB}", self.vm);
        if to_guest {
            let start = Instant::now();
            let mut child = Ended(self.site.cli(&["vm", "cp", "-", &there]).stdin(Stdio::piped()).spawn()?);
            let mut pipe = child.0.stdin.take().context("no input")?;
            let zeros = File::open("/dev/zero")?;
            std::io::copy(&mut zeros.take(self.bytes), &mut pipe)?;
            drop(pipe);
            let ended = child.0.wait()?;
            let speed = self.speed(start);
            ensure!(ended.success(), "vm cp: {ended}");
            let size = self.site.run(&["vm", "exec", self.vm, "--", "stat", "-c", "%s", BLOB])?;
            ensure!(size.trim() == self.bytes.to_string(), "{} of {} bytes arrived", size.trim(), self.bytes);
            return Ok(speed);
        }
        let start = Instant::now();
        let mut child = Ended(self.site.cli(&["vm", "cp", &there, "-"]).stdout(Stdio::piped()).spawn()?);
        let mut pipe = child.0.stdout.take().context("no output")?;
        let arrived = std::io::copy(&mut pipe, &mut std::io::sink())?;
        let ended = child.0.wait()?;
        let speed = self.speed(start);
        ensure!(ended.success() && arrived == self.bytes, "vm cp: {ended}, {arrived} bytes");
        Ok(speed)
    }

    fn speed(&self, start: Instant) -> f64 {
        self.bytes as f64 / 1e6 / start.elapsed().as_secs_f64()
    }
}

/// A program that is killed where it has not ended by itself.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        if matches!(self.0.try_wait(), Ok(None)) {
            let _ = self.0.kill();
            let _ = self.0.wait();
        }
    }
}

/// A running `enisle vm port-forward`, and where it listens.
struct Forward {
    child: Child,
    port: u16,
}

impl Forward {
    fn start(site: &Site, vm: &str) -> Result<Forward> {
        let mut command: Command =
            site.cli(&["--json", "vm", "port-forward", vm, &format!("127.0.0.1:0:{PORT}")]);
        let mut child = command.stdout(Stdio::piped()).spawn()?;
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("no output")?).read_line(&mut line)?;
        let mut forward = Forward { child, port: 0 };
        let digits = line.split("127.0.0.1:").nth(1).unwrap_or_default();
        let digits: String = digits.chars().take_while(char::is_ascii_digit).collect();
        forward.port = digits.parse().with_context(|| format!("where it listens: {line:?}"))?;
        Ok(forward)
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        // Ctrl-C is how it ends; one that is gone already needs nothing.
        let _ = kill_process(Pid::from_child(&self.child), Signal::INT);
        let _ = self.child.wait();
    }
}
