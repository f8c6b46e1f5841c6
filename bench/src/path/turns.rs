//! Lines 9 and 10: two guests take turns at the same server's twin.

use std::time::Duration;

use anyhow::Result;

use super::ends::{download, tcp_connections, tcp_requests, udp_requests, upload};
use super::guest::{Machine, VMM_CPU};
use crate::Effort;
use crate::report::{Row, Target};
use crate::statistics::{Pairs, median};

/// Requests of one turn, and turns of each machine in a round.
const REQUESTS: usize = 100;
const TURNS: usize = 16;
/// A turn of a bulk transfer, and how long it runs before the clock does.
const WARM: Duration = Duration::from_millis(60);
const BULK: Duration = Duration::from_millis(200);
const BULK_TURNS: usize = 4;

/// One measurement of one machine.
type Measure<'a> = &'a dyn Fn(&Machine) -> Result<Vec<f64>>;

/// One round: both in turn, the first one first every other time. The medians.
fn round(a: &Machine, b: &Machine, turns: usize, measure: Measure<'_>) -> Result<(f64, f64)> {
    let (mut of_a, mut of_b) = (Vec::new(), Vec::new());
    for i in 0..turns {
        if i % 2 == 0 {
            of_a.extend(measure(a)?);
            of_b.extend(measure(b)?);
        } else {
            of_b.extend(measure(b)?);
            of_a.extend(measure(a)?);
        }
    }
    Ok((median(&of_a), median(&of_b)))
}

/// Line 9. All of it on one CPU: each side waits for the other, and no idle CPU has to wake up.
pub(super) fn response_times(a: &Machine, b: &Machine, effort: Effort) -> Result<Vec<Row>> {
    let _forwarders = (a.connect(true, 0)?, b.connect(true, 0)?);
    let kinds: [(&str, Measure<'_>); 3] = [
        ("TCP request-response p50", &|m| tcp_requests(&m.netns, REQUESTS)),
        ("TCP connect + 1 p50", &|m| tcp_connections(&m.netns, REQUESTS)),
        ("UDP request-response p50", &|m| udp_requests(&m.netns, REQUESTS)),
    ];
    let mut pairs = [(); 3].map(|()| Pairs::default());
    for _ in 0..effort.rounds {
        for ((_, measure), pairs) in kinds.iter().zip(&mut pairs) {
            let (ours, theirs) = round(a, b, effort.of(TURNS), *measure)?;
            pairs.push(ours, theirs);
        }
    }
    let row = |((what, _), pairs): (&(&str, Measure<'_>), &Pairs)| {
        Row::ratio(9, format!("{what}, isolated / bridge"), Target::AtMost(1.01), pairs, "µs")
    };
    Ok(kinds.iter().zip(&pairs).map(row).collect())
}

/// Line 10. The VMM's thread has a CPU, guest and server share the other.
pub(super) fn throughput(a: &Machine, b: &Machine, effort: Effort) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let up: Measure<'_> = &|m| Ok(vec![upload(&m.netns, &m.server, WARM, BULK)?]);
    let down: Measure<'_> = &|m| Ok(vec![download(&m.netns, WARM, BULK)?]);
    for (offloads, how, least) in [(false, "without", 0.98), (true, "with", 0.97)] {
        let _forwarders = (a.connect(offloads, VMM_CPU)?, b.connect(offloads, VMM_CPU)?);
        let (mut ups, mut downs) = (Pairs::default(), Pairs::default());
        for _ in 0..effort.rounds {
            for (pairs, measure) in [(&mut ups, up), (&mut downs, down)] {
                let (ours, theirs) = round(a, b, effort.of(BULK_TURNS), measure)?;
                pairs.push(ours, theirs);
            }
        }
        for (direction, pairs) in [("from", &ups), ("to", &downs)] {
            let what = format!("throughput {how} offload, {direction} the guest, isolated / bridge");
            rows.push(Row::ratio(10, what, Target::AtLeast(least), pairs, "MB/s"));
        }
    }
    Ok(rows)
}
