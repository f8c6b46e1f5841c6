//! Line 14: what a launch takes beside its VMM.
//!
//! Owns: cutting one launch at two moments that are not ours: the kernel's `open` of QEMU's file for
//! its exec, and the guest kernel's word that it starts `/init`, which is the agent. What lies
//! between them is the VMM's own time, of this very launch: two boots differ by more than the line
//! allows. All the rest, from the start of `enisle` to its end, is ours.

use std::fs::{self, File};
use std::io::Read as _;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::time::{ClockId, clock_gettime};

use super::site::Site;
use crate::Effort;
use crate::report::{Row, Target};
use crate::statistics::median;

/// The guest kernel's last line before the agent's first instruction (init/main.c).
const FIRST: &[u8] = b"Run /init as init process";
/// No launch takes longer.
const PATIENCE: Timespec = Timespec { tv_sec: 240, tv_nsec: 0 };

/// One launch, in milliseconds.
struct Cut {
    ours: f64,
    before: f64,
    vmm: f64,
}

pub(super) fn measure(effort: Effort) -> Result<Row> {
    let site = Site::up("minimal")?;
    // The first one fills caches, and says which file QEMU is.
    let qemu = fs::read_link(format!("/proc/{}/exe", launch(&site)?))?;
    site.run(&["vm", "delete", "bench-1"])?;
    let mut cuts = Vec::new();
    for _ in 0..effort.rounds {
        cuts.push(cut(&site, &qemu)?);
        site.run(&["vm", "delete", "bench-1"])?;
    }
    let of = |pick: fn(&Cut) -> f64| cuts.iter().map(pick).collect::<Vec<_>>();
    let note = format!(
        "{:.0} ms before QEMU's exec, {:.0} ms from the agent's first instruction on; the VMM's own time {:.0} ms",
        median(&of(|cut| cut.before)),
        median(&of(|cut| cut.ours - cut.before)),
        median(&of(|cut| cut.vmm)),
    );
    let what = "vm new --wait minus the VMM's own time, ms";
    Ok(Row::figure(14, what, Target::AtMost(60.0), &of(|cut| cut.ours), &note))
}

/// Launches `bench-1`; the VMM's process id.
fn launch(site: &Site) -> Result<u64> {
    site.run(&["vm", "new", "--wait"])?;
    let list = site.list()?;
    list.first().and_then(|vm| vm["pid"].as_u64()).context("the VM has no process")
}

fn cut(site: &Site, qemu: &Path) -> Result<Cut> {
    let opened = Watch::new(qemu, WatchFlags::OPEN)?;
    let console = Site::console("bench-1");
    ensure!(!console.exists(), "{} is there before the launch", console.display());
    let watcher = thread::spawn(move || first_instruction(&opened, &console));
    let start = now();
    let pid = launch(site)?;
    let end = now();
    let (opens, first) = watcher.join().map_err(|_| anyhow::anyhow!("the watcher died"))??;
    // Another program on this machine may start a QEMU, too: ours is the first after our fork.
    let fork = started(pid)?;
    let exec = opens.into_iter().find(|open| *open >= fork).context("nobody opened QEMU's file")?;
    ensure!(start < exec && exec < first && first < end, "{start} {exec} {first} {end} are out of order");
    let ours = (end - start) - (first - exec);
    Ok(Cut { ours: ours * 1e3, before: (exec - start) * 1e3, vmm: (first - exec) * 1e3 })
}

/// When QEMU's file was opened, each time, and when the console said [`FIRST`].
fn first_instruction(opened: &Watch, console: &PathBuf) -> Result<(Vec<f64>, f64)> {
    let mut opens = Vec::new();
    // The log is there before QEMU is.
    while !console.exists() {
        opened.wait()?;
        opens.push(now());
    }
    let written = Watch::new(console, WatchFlags::MODIFY)?;
    let mut log = File::open(console)?;
    let mut text = Vec::new();
    loop {
        log.read_to_end(&mut text)?;
        if text.windows(FIRST.len()).any(|window| window == FIRST) {
            return Ok((opens, now()));
        }
        written.wait()?;
    }
}

/// One kind of event of one file.
struct Watch(OwnedFd);

impl Watch {
    fn new(path: &Path, flags: WatchFlags) -> Result<Watch> {
        let queue = inotify::init(CreateFlags::CLOEXEC)?;
        inotify::add_watch(&queue, path, flags).with_context(|| format!("watch {}", path.display()))?;
        Ok(Watch(queue))
    }

    /// Waits for the next event; takes all that are there.
    fn wait(&self) -> Result<()> {
        let there = poll(&mut [PollFd::new(&self.0, PollFlags::IN)], Some(&PATIENCE))?;
        ensure!(there > 0, "nothing happens");
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = inotify::Reader::new(&self.0, &mut buffer);
        reader.next()?;
        Ok(())
    }
}

/// Seconds since the machine was started.
fn now() -> f64 {
    let time = clock_gettime(ClockId::Boottime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0)).as_secs_f64()
}

/// When a process was forked, cut to the kernel's hundredths of a second (proc(5), field 22).
fn started(pid: u64) -> Result<f64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let after_name = stat.rsplit(')').next().unwrap_or_default();
    let ticks: f64 = after_name.split_whitespace().nth(19).context("no start time")?.parse()?;
    Ok(ticks / 100.0)
}
