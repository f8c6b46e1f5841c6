//! Line 13: what the daemon takes for each VM more.

use std::fs;

use anyhow::{Context as _, Result};

use super::site::Site;
use crate::Effort;
use crate::report::{Row, Target};

/// VMs of a round.
const VMS: usize = 8;

pub(super) fn measure(effort: Effort) -> Result<Row> {
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        // A new daemon: an old one would find the memory that it had for the last round's VMs.
        let site = Site::up("minimal")?;
        let before = resident_mb(site.pid())?;
        for _ in 0..VMS {
            site.run(&["vm", "new"])?;
        }
        site.running(VMS)?;
        rounds.push((resident_mb(site.pid())? - before) / VMS as f64);
    }
    let note = format!("VmRSS of a new daemon, then with {VMS} running VMs, the first one's part included");
    Ok(Row::figure(13, "daemon RSS for each VM more, MB", Target::AtMost(0.2), &rounds, &note))
}

/// Megabytes (10^6 bytes).
fn resident_mb(pid: u32) -> Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kib: f64 = line.trim().trim_end_matches(" kB").parse()?;
    Ok(kib * 1024.0 / 1e6)
}
