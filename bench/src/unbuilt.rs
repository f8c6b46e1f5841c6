//! Lines whose subject does not exist yet. Owns: saying so. Refuses: a figure for any of them.

use anyhow::Result;

use crate::Effort;
use crate::report::{Row, Target};

/// Never met, never left out.
pub(crate) fn rows(_: Effort, wanted: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let vms = "needs guests; this benchmark starts none yet";
    let all = [
        (13, "daemon RSS for each VM more, MB", Target::AtMost(0.2), vms),
        (14, "vm new --wait minus the VMM's own time, ms", Target::AtMost(60.0), vms),
        (16, "vm exec true over fork+exec in the guest, p50, ms", Target::AtMost(5.0), vms),
        (16, "cp / raw channel", Target::AtLeast(0.85), vms),
        (16, "port-forward / raw channel", Target::AtLeast(0.85), vms),
    ];
    let rows = all.into_iter().filter(|(line, ..)| wanted(*line));
    Ok(rows.map(|(line, what, target, why)| Row::not_built(line, what, target, why)).collect())
}
