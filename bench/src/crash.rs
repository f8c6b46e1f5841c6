//! Line 12: a process with an engine is killed in the midst of 256 creates; what is left, and how
//! long the next one takes to clean up.
//!
//! Owns: the doomed process (this program under another first argument), the kill, the search: the
//! host's links, addresses, routes, rules, nftables, forwarding; the child's namespaces and BPF
//! objects, by their numbers.

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use enisle_net::Engine;
use enisle_net::plan::Range;
use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Limits, SlotSpec};
use enisle_testkit::listing::{Listing, Scope};
use enisle_testkit::{Netns, World};
use serde_json::Value;

use crate::Effort;
use crate::isolated::{RANGE, config};
use crate::report::{Row, Target};
use crate::statistics::{Pairs, ms};

/// The first argument of the process that is to be killed.
pub(crate) const DOOMED: &str = "--doomed";
const SLOTS: usize = 256;
/// How long what nobody holds any more may take to go by itself. It is not part of any figure that
/// a target judges in our favour: what is left after it counts.
const PATIENCE: Duration = Duration::from_secs(10);

/// What is looked at in the host's namespace; the child's own objects are looked for by number.
const LOOK: Scope<'_> = Scope { processes: &[], bpf: &["\u{1}"], cgroups: &[], trees: &[] };
const SECTIONS: [&str; 6] = ["links", "addresses", "routes", "rules", "nftables", "forwarding"];

/// The doomed process: makes slots until it is killed, and says how far it got.
///
/// # Errors
/// If the engine refuses something.
pub(crate) fn doomed() -> Result<()> {
    let engine = Engine::open(config())?;
    let range: Range = RANGE.parse()?;
    let policy = compile(&PolicySpec::default())?;
    let mut slots = Vec::new();
    let mut out = std::io::stdout();
    let start = Instant::now();
    for block in range.blocks().take(SLOTS) {
        let spec = SlotSpec {
            block,
            vm_name: "doomed",
            mtu: 1500,
            policy: &policy,
            tap_owner: (0, 0),
            limits: Limits::default(),
        };
        slots.push(engine.create(&spec)?);
        writeln!(out, "{} {}", slots.len(), ms(start.elapsed()))?;
    }
    loop {
        std::thread::park();
    }
}

/// Measures line 12.
///
/// # Errors
/// If the child or the next engine fails.
pub(crate) fn measure(effort: Effort, _: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let (mut left, mut pairs) = (Vec::new(), Pairs::default());
    let mut first = None;
    for round in 0..effort.rounds {
        let world = World::new()?;
        let before = Listing::take(&world.host, &LOOK)?;
        // Another place each time: a create takes about a millisecond, and has a dozen steps.
        let (at, pause) = (SLOTS / 2 + round * 7, Duration::from_micros(150 * round as u64));
        let mut child = Doomed::start(&world.host)?;
        let creating = child.wait_for(at)?;
        std::thread::sleep(pause);
        let objects = child.kill(&world.host, &before)?;

        let start = Instant::now();
        let engine = world.host.run(|| Engine::open(config()))?;
        engine.reclaim()?;
        let cleaning = ms(start.elapsed());
        engine.close()?;
        drop(engine);

        let leftovers = search(&world.host, &before, &objects)?;
        first = first.or_else(|| leftovers.first().cloned());
        left.push(leftovers.len() as f64);
        pairs.push(cleaning, creating);
    }
    let note = first.map_or_else(
        || {
            "host's links, addresses, routes, nftables, forwarding; the child's namespaces and BPF objects"
                .to_owned()
        },
        |first| format!("for example: {first}"),
    );
    let worst = [crate::statistics::largest(&left)];
    Ok(vec![
        Row::figure(
            12,
            "leftovers after kill -9 in the midst of 256 creates, the worst round",
            Target::AtMost(0.0),
            &worst,
            &note,
        ),
        Row::ratio(12, "time to clean / time to create what was there", Target::AtMost(1.0), &pairs, "ms"),
    ])
}

/// What the child held in the kernel.
struct Objects {
    namespaces: BTreeSet<String>,
    programs: BTreeSet<u64>,
    maps: BTreeSet<u64>,
}

struct Doomed {
    child: Child,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Doomed {
    fn start(host: &Netns) -> Result<Doomed> {
        let program = std::env::current_exe()?;
        let mut child = host.run(|| Command::new(program).arg(DOOMED).stdout(Stdio::piped()).spawn())?;
        let out = child.stdout.take().context("the child has no output")?;
        Ok(Doomed { child, lines: BufReader::new(out).lines() })
    }

    /// The milliseconds it took for so many slots.
    fn wait_for(&mut self, slots: usize) -> Result<f64> {
        loop {
            let line = self.lines.next().context("the child ended too early")??;
            let (count, time) = line.split_once(' ').context("the child said something else")?;
            if count.parse::<usize>()? >= slots {
                return Ok(time.parse()?);
            }
        }
    }

    /// `SIGKILL`; answers what it held. Stopped while that is read, so that the kill still comes in the
    /// midst of a create; and the search has to find then what it is to miss afterwards.
    fn kill(mut self, host: &Netns, before: &Listing) -> Result<Objects> {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::STOP)?;
        let seen = Objects::of(self.child.id()).and_then(|o| Ok((left(host, before, &o)?, o)));
        self.child.kill()?;
        self.child.wait()?;
        let (found, objects) = seen?;
        for what in ["links:", "routes:", "nftables:", "net:[", "BPF prog", "BPF map"] {
            ensure!(
                found.iter().any(|line| line.contains(what)),
                "the search does not find {what} of a live child"
            );
        }
        ensure!(
            objects.namespaces.len() >= SLOTS / 2,
            "the child held {} namespaces",
            objects.namespaces.len()
        );
        Ok(objects)
    }
}

impl Objects {
    fn of(pid: u32) -> Result<Objects> {
        let mut objects =
            Objects { namespaces: BTreeSet::new(), programs: BTreeSet::new(), maps: BTreeSet::new() };
        let own = fs::read_link(format!("/proc/{pid}/ns/net"))?;
        for entry in fs::read_dir(format!("/proc/{pid}/fd"))? {
            let entry = entry?;
            let Ok(target) = fs::read_link(entry.path()) else { continue };
            if target.to_string_lossy().starts_with("net:[") && target != own {
                objects.namespaces.insert(target.display().to_string());
            }
            let info = Path::new("/proc").join(pid.to_string()).join("fdinfo").join(entry.file_name());
            for line in fs::read_to_string(info).unwrap_or_default().lines() {
                let number = |name| line.strip_prefix(name).and_then(|v: &str| v.trim().parse::<u64>().ok());
                objects.programs.extend(number("prog_id:"));
                objects.maps.extend(number("map_id:"));
            }
        }
        Ok(objects)
    }
}

/// Everything that is still there in the end. Namespaces and BPF objects go a moment after their last
/// holder, so they are looked at until they are gone or patience is.
fn search(host: &Netns, before: &Listing, objects: &Objects) -> Result<Vec<String>> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let left = left(host, before, objects)?;
        if left.is_empty() || Instant::now() > deadline {
            return Ok(left);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Everything that is there now and was not before.
fn left(host: &Netns, before: &Listing, objects: &Objects) -> Result<Vec<String>> {
    let now = Listing::take(host, &LOOK)?;
    let in_host = |line: &String| SECTIONS.iter().any(|s| line[2..].starts_with(&format!("{s}:")));
    let mut left: Vec<String> = now.since(before).into_iter().filter(in_host).collect();
    left.extend(now.section("namespaces").intersection(&objects.namespaces).cloned());
    for (what, ids) in [("prog", &objects.programs), ("map", &objects.maps)] {
        left.extend(bpf_ids(what)?.intersection(ids).map(|id| format!("BPF {what} {id}")));
    }
    Ok(left)
}

fn bpf_ids(what: &str) -> Result<BTreeSet<u64>> {
    let output = Command::new("bpftool").args(["-j", what]).output().context("cannot run bpftool")?;
    let list: Vec<Value> = serde_json::from_slice(&output.stdout).context("bpftool printed no JSON")?;
    Ok(list.iter().filter_map(|o| o["id"].as_u64()).collect())
}
