//! Line 13: what a slot takes of the kernel's memory, and what the daemon takes of its own.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use enisle_testkit::World;

use crate::Effort;
use crate::floor::Floor;
use crate::isolated::Isolated;
use crate::report::{Row, Target};
use crate::statistics::Pairs;

/// Enough for other programs' share in the difference to be small.
const SLOTS: usize = 512;
/// What of /proc/meminfo namespaces and interfaces are made of. Reclaimable slabs are left out: they
/// are the page cache's, and other programs'.
const KERNEL: [&str; 5] = ["SUnreclaim:", "Percpu:", "VmallocUsed:", "KernelStack:", "PageTables:"];
const PATIENCE: Duration = Duration::from_secs(30);

/// Measures line 13, but for what needs guests.
///
/// # Errors
/// If slots cannot be made or the daemon does not come up.
pub(crate) fn measure(effort: Effort, _: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let ours = Isolated::new()?;
    let floor = Floor::new(&ours.world.host)?;
    let count = effort.of(SLOTS);
    let (mut pairs, mut daemon) = (Pairs::default(), Vec::new());
    // The first ones fill caches that stay.
    ours.remove_all(ours.create_many(0, 32)?)?;
    let of_slots = || -> Result<f64> {
        let (slots, each) = grown(count, || ours.create_many(0, count))?;
        ours.remove_all(slots).map(|()| each)
    };
    let of_triples = || -> Result<f64> {
        let make = || (0..count).map(|i| floor.create(u32::try_from(i)?)).collect::<Result<Vec<_>>>();
        let (triples, each) = grown(count, make)?;
        drop(triples);
        settle(&ours).map(|()| each)
    };
    for round in 0..effort.rounds {
        // Who comes second may find slabs that the first has left half empty.
        let (slot, bare) = if round % 2 == 0 {
            let slot = of_slots()?;
            (slot, of_triples()?)
        } else {
            let bare = of_triples()?;
            (of_slots()?, bare)
        };
        pairs.push(slot, bare);
        daemon.push(daemon_rss()?);
    }
    ours.engine.close()?;
    Ok(vec![
        Row::ratio(13, "kernel memory per slot / bare triple", Target::AtMost(1.05), &pairs, "KiB"),
        Row::figure(
            13,
            "daemon RSS without VMs, MB",
            Target::AtMost(30.0),
            &daemon,
            "VmRSS of `enisle up` once its socket answers",
        ),
    ])
}

/// What was made, and KiB of kernel memory for each.
fn grown<T>(count: usize, make: impl FnOnce() -> Result<T>) -> Result<(T, f64)> {
    let before = kernel_kib()?;
    let made = make()?;
    Ok((made, (kernel_kib()? - before) / count as f64))
}

/// Waits until the bare triples' namespaces are gone, which takes their veths along.
fn settle(ours: &Isolated) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let bare = || ours.world.host.run(|| fs::read_to_string("/proc/thread-self/net/dev"));
    while bare()?.contains("bare") {
        if Instant::now() > deadline {
            bail!("bare triples do not go");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

fn kernel_kib() -> Result<f64> {
    let text = fs::read_to_string("/proc/meminfo")?;
    let value = |line: &str| line.split_whitespace().nth(1).and_then(|n| n.parse::<f64>().ok());
    let mut sum = 0.0;
    for name in KERNEL {
        let line = text.lines().find(|l| l.starts_with(name));
        sum += line.and_then(value).with_context(|| format!("no {name} in /proc/meminfo"))?;
    }
    Ok(sum)
}

/// A daemon without groups, in a world of its own.
struct Daemon {
    child: Child,
    _world: World,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        // It ends by itself when told to; one that is gone already needs nothing.
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.child.wait();
    }
}

/// Megabytes (10^6 bytes) of a daemon that waits for its first request.
fn daemon_rss() -> Result<f64> {
    let own = std::env::current_exe()?;
    let program = own.parent().map(|dir| dir.join("enisle")).context("this program has no directory")?;
    if !program.exists() {
        bail!("{} is missing: cargo xtask bench builds it", program.display());
    }
    // In this process's own /run: it vanishes with it.
    let (file, socket, log) = ("/run/bench.yaml", PathBuf::from("/run/bench.sock"), "/run/bench.log");
    let text = format!(
        "config:\n  api: {}\n  state_dir: /run/bench-state\n  hypervisor: qemu-tcg\n  host_groups: []\n",
        socket.display()
    );
    fs::write(file, text)?;
    let world = World::new()?;
    let said = fs::File::create(log)?;
    let mut command = Command::new(program);
    command.args(["up", file]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(said);
    let child = world.host.run(|| command.spawn())?;
    let mut daemon = Daemon { child, _world: world };
    let deadline = Instant::now() + PATIENCE;
    while UnixStream::connect(&socket).is_err() {
        if Instant::now() > deadline || daemon.child.try_wait()?.is_some() {
            bail!("the daemon does not come up: {}", fs::read_to_string(log)?);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let status = fs::read_to_string(format!("/proc/{}/status", daemon.child.id()))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    drop(daemon);
    fs::remove_file(&socket).or_else(|e| if socket.exists() { Err(e) } else { Ok(()) })?;
    Ok(kib * 1024.0 / 1e6)
}
