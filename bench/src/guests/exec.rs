//! Line 16: what `vm exec true` takes over fork and exec in the guest.

use std::time::Instant;

use anyhow::{Context as _, Result, ensure};

use super::inside::WORD;
use super::site::Site;
use crate::Effort;
use crate::report::{Row, Target};
use crate::statistics::{median, ms};

/// Of each kind in a round.
const TIMES: usize = 32;

pub(super) fn measure(effort: Effort, site: &Site, vm: &str) -> Result<Row> {
    let (mut over, mut outside, mut within) = (Vec::new(), Vec::new(), Vec::new());
    let times = effort.of(TIMES);
    for _ in 0..effort.rounds {
        let inside = site.run(&["vm", "exec", vm, "--", "/root/bench", WORD, "fork", &times.to_string()])?;
        let inside: f64 = inside.trim().parse().context("the guest's figure")?;
        let mut all = Vec::new();
        for _ in 0..times {
            let start = Instant::now();
            let ended = site.cli(&["vm", "exec", vm, "--", "/bin/true"]).status()?;
            all.push(ms(start.elapsed()));
            ensure!(ended.success(), "vm exec true: {ended}");
        }
        let all = median(&all);
        over.push(all - inside);
        outside.push(all);
        within.push(inside);
    }
    let note = format!(
        "`enisle vm exec VM -- /bin/true` {:.1} ms, fork+exec+wait in the guest {:.1} ms",
        median(&outside),
        median(&within)
    );
    let what = "vm exec true over fork+exec in the guest, p50, ms";
    Ok(Row::figure(16, what, Target::AtMost(5.0), &over, &note))
}
