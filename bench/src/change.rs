//! Line 15: how long until the kernel judges by another policy.
//!
//! Owns: the engine's part: compiling the lists, the judge's maps, the switch. The daemon's part (HTTP,
//! the store) comes on top and is not measured here. After each change a packet shows that the
//! kernel does judge by it.

use std::fs::File;
use std::io::Write as _;
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use enisle_net::Slot;
use enisle_net::policy::{PolicySpec, compile};
use enisle_testkit::frame::{Ends, udp};
use enisle_testkit::world::SERVER;

use crate::Effort;
use crate::isolated::Isolated;
use crate::report::{Row, Target};
use crate::statistics::{ms, percentile};

const CHANGES: usize = 200;
const ENTRIES: u32 = 50;
const VNET_HEADER: usize = 10;

/// Measures line 15.
///
/// # Errors
/// If a change fails, or the kernel goes on by the old policy.
pub(crate) fn measure(effort: Effort, _: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let ours = Isolated::new()?;
    let slot = ours.create(0)?;
    let guest = Guest { tap: File::from(slot.open_tap()?), frame: frame(&slot) };
    let policies = [false, true].map(policy);
    let mut rounds = Vec::new();
    for _ in 0..effort.rounds {
        let mut times = Vec::new();
        for i in 0..effort.of(CHANGES) {
            let (open, spec) = (i % 2 == 0, &policies[i % 2]);
            let start = Instant::now();
            ours.engine.set_policy(&slot, &compile(spec)?)?;
            times.push(ms(start.elapsed()));
            guest.is_judged(&ours, &slot, open)?;
        }
        rounds.push(percentile(&times, 99));
    }
    drop(guest);
    ours.engine.remove(slot)?;
    ours.engine.close()?;
    let what = "policy change on a running VM, p99 of each round, ms";
    let note = format!(
        "compile and switch, {ENTRIES} entries, without the daemon's API; each change proven by a packet"
    );
    Ok(vec![Row::figure(15, what, Target::AtMost(2.0), &rounds, &note)])
}

/// Lists that refuse the server or do not, and are otherwise alike.
fn policy(closed: bool) -> PolicySpec {
    let server = closed.then(|| format!("{SERVER}/32"));
    let others = (0..ENTRIES - u32::from(closed)).map(|i| format!("20.{i}.0.0/16"));
    PolicySpec {
        drop: server.into_iter().chain(others).filter_map(|s| s.parse().ok()).collect(),
        allow: Vec::new(),
    }
}

struct Guest {
    tap: File,
    frame: Vec<u8>,
}

impl Guest {
    /// Sends one packet and looks at what the judge did with it.
    fn is_judged(&self, ours: &Isolated, slot: &Slot, open: bool) -> Result<()> {
        let before = ours.engine.stats(slot)?;
        (&self.tap).write_all(&self.frame).context("write a frame into the tap")?;
        let after = ours.engine.stats(slot)?;
        let (passed, refused) =
            (after.out_allowed - before.out_allowed, after.out_refused - before.out_refused);
        let right = if open { (1, 0) } else { (0, 1) };
        ensure!((passed, refused) == right, "after a change {passed} packets passed, {refused} were refused");
        Ok(())
    }
}

fn frame(slot: &Slot) -> Vec<u8> {
    let block = slot.block();
    let (src_mac, dst_mac) = (block.guest_mac().octets(), block.host_mac().octets());
    let ends = Ends { src_mac, dst_mac, src: block.guest(), dst: SERVER };
    let mut frame = vec![0; VNET_HEADER];
    frame.extend(udp(ends, 40_015, 4_015, b"judge me"));
    frame
}
