//! Line 2: how others make a network for one VM or container, run, not quoted.
//!
//! Owns: the order of turns, the clock. Refuses: to count a peer's removal, which is not what the
//! line asks; and to help: each peer gets what its manual says.

mod batch;
mod cni;
mod netavark;
mod script;

use std::io::Write as _;
use std::os::fd::{AsFd, AsRawFd as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};
use enisle_testkit::Netns;

use crate::Effort;
use crate::isolated::Isolated;
use crate::report::{Row, Target};
use crate::statistics::{Pairs, median, ms};

/// Networks of each peer in a round.
const TURNS: usize = 4;
/// Slots of ours in a round.
const OURS: usize = 40;

/// Somebody who makes networks in a host of its own.
trait Peer {
    /// What the row says.
    fn what(&self) -> &str;
    /// How many times ours it has to be.
    fn target(&self) -> f64;
    /// Makes the `i`th network. This is timed.
    fn create(&mut self, i: usize) -> Result<()>;
    /// Takes it away. This is not.
    fn remove(&mut self, i: usize) -> Result<()>;
}

/// Measures line 2.
///
/// # Errors
/// If a peer fails: one that does not do its work is not compared with.
pub(crate) fn measure(effort: Effort, _: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let ours = Isolated::new()?;
    let mut peers: Vec<Box<dyn Peer>> = vec![
        Box::new(script::Script::new()?),
        Box::new(batch::Batch::new()?),
        Box::new(cni::Cni::new(cni::Kind::Bridge)?),
        Box::new(cni::Cni::new(cni::Kind::Ptp)?),
        Box::new(netavark::Netavark::new()?),
    ];
    let mut pairs = vec![Pairs::default(); peers.len()];
    for _ in 0..effort.rounds {
        let (mut slots, mut times) = (Vec::new(), Vec::new());
        for i in 0..effort.of(OURS) {
            let start = Instant::now();
            slots.push(ours.create(i)?);
            times.push(ms(start.elapsed()));
        }
        ours.remove_all(slots)?;
        for (peer, pairs) in peers.iter_mut().zip(&mut pairs) {
            pairs.push(turn(peer.as_mut(), effort)?, median(&times));
        }
    }
    ours.engine.close()?;
    let rows = peers.iter().zip(&pairs).map(|(peer, pairs)| {
        let what = format!("{} / ours, per slot, p50", peer.what());
        Row::ratio(2, what, Target::AtLeast(peer.target()), pairs, "ms")
    });
    Ok(rows.collect())
}

/// The median time of one peer's networks.
fn turn(peer: &mut dyn Peer, effort: Effort) -> Result<f64> {
    let mut times = Vec::new();
    let count = effort.of(TURNS);
    for i in 0..count {
        let start = Instant::now();
        peer.create(i).with_context(|| peer.what().to_owned())?;
        times.push(ms(start.elapsed()));
    }
    for i in 0..count {
        peer.remove(i).with_context(|| peer.what().to_owned())?;
    }
    Ok(median(&times))
}

/// The way others reach a namespace that has no name: through this process.
fn path_of(netns: &Netns) -> PathBuf {
    PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), netns.as_fd().as_raw_fd()))
}

/// Runs a command in `host` with `input`; its output, or an error with all that it said: these
/// programs complain on standard output.
fn check(host: &Netns, command: &mut Command, input: &str) -> Result<String> {
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let output = host.run(|| {
        let mut child = command.spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            stdin.write_all(input.as_bytes())?;
        }
        child.wait_with_output()
    })?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!("{command:?} failed ({}): {said}{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(said)
}
