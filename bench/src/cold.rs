//! Lines 1, 3, 4 and 5: what a cold slot costs over the kernel's floor, whether the thousandth costs
//! more than the first, and what one costs that was made ahead of time, or had a tenant before.

use std::time::{Duration, Instant};

use anyhow::Result;

use crate::Effort;
use crate::floor::Floor;
use crate::isolated::Isolated;
use crate::report::{Row, Target};
use crate::statistics::{Pairs, median, ms, percentile};

/// Slots and bare triples in turn, in each round of line 1.
const TURNS: usize = 100;
/// The slots of line 3, and how many at either end are compared.
const SLOTS: usize = 1_000;
const END: usize = 100;
/// Longer than the kernel's grace period.
const RCU: Duration = Duration::from_millis(200);

/// Measures those of lines 1, 3, 4 and 5 that are wanted.
///
/// # Errors
/// If the engine or the kernel refuses something.
pub(crate) fn measure(effort: Effort, wanted: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    let ours = Isolated::new()?;
    if wanted(1) {
        let floor = Floor::new(&ours.world.host)?;
        let mut pairs = Pairs::default();
        for _ in 0..effort.rounds {
            let (slot, bare) = cold(&ours, &floor, effort.of(TURNS))?;
            pairs.push(median(&slot), median(&bare));
        }
        rows.push(Row::ratio(
            1,
            "cold slot / unshare + veth in place + tap, p50",
            Target::AtMost(1.5),
            &pairs,
            "ms",
        ));
    }
    if wanted(3) {
        let mut pairs = Pairs::default();
        for _ in 0..effort.rounds {
            let (first, last) = flat(&ours, effort)?;
            pairs.push(median(&last), median(&first));
        }
        rows.push(Row::ratio(3, "slots 901–1000 / slots 1–100, p50", Target::AtMost(1.3), &pairs, "ms"));
    }
    if wanted(4) {
        let mut pairs = Pairs::default();
        for _ in 0..effort.rounds {
            let (made, claimed) = claims(&ours, effort.of(TURNS))?;
            pairs.push(percentile(&made, 99), percentile(&claimed, 99));
        }
        rows.push(Row::ratio(4, "cold / warm claim, p99", Target::AtLeast(100.0), &pairs, "ms"));
    }
    if wanted(5) {
        let mut pairs = Pairs::default();
        for _ in 0..effort.rounds {
            let (made, recycled) = recycles(&ours, effort.of(TURNS))?;
            pairs.push(median(&recycled), median(&made));
        }
        rows.push(Row::ratio(5, "recycle / cold, p50", Target::AtMost(0.2), &pairs, "ms"));
    }
    ours.engine.close()?;
    Ok(rows)
}

/// Times of slots and of bare triples, made in turn, in the same host.
fn cold(ours: &Isolated, floor: &Floor, turns: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut slots, mut bare) = (Vec::new(), Vec::new());
    let (mut slot_times, mut bare_times) = (Vec::new(), Vec::new());
    for i in 0..turns {
        let start = Instant::now();
        slots.push(ours.create(i)?);
        slot_times.push(ms(start.elapsed()));
        let start = Instant::now();
        bare.push(floor.create(u32::try_from(i)?)?);
        bare_times.push(ms(start.elapsed()));
    }
    ours.remove_all(slots)?;
    bare.into_iter().try_for_each(|triple| floor.remove(triple))?;
    Ok((slot_times, bare_times))
}

/// Times of slots that are made, and of slots that only have to be claimed, in turn.
fn claims(ours: &Isolated, turns: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut slots, mut cold, mut warm) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..turns {
        let ready = ours.prepare(turns + i)?;
        let start = Instant::now();
        slots.push(ours.create(i)?);
        cold.push(ms(start.elapsed()));
        let start = Instant::now();
        slots.push(ours.claim(ready)?);
        warm.push(ms(start.elapsed()));
    }
    ours.remove_all(slots)?;
    Ok((cold, warm))
}

/// Times of slots that are made, and of the same slots when they are taken back from a tenant who had
/// a flow.
fn recycles(ours: &Isolated, turns: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let (mut slots, mut warm) = (Vec::new(), Vec::new());
    let (mut cold, mut recycled) = (Vec::new(), Vec::new());
    for i in 0..turns {
        let start = Instant::now();
        slots.push(ours.create(i)?);
        cold.push(ms(start.elapsed()));
    }
    slots.iter().try_for_each(|slot| ours.converse(slot))?;
    // Until the kernel has let go of the sockets they were made through.
    std::thread::sleep(RCU);
    for slot in slots {
        let start = Instant::now();
        warm.push(ours.recycle(slot)?);
        recycled.push(ms(start.elapsed()));
    }
    warm.into_iter().try_for_each(|slot| ours.engine.discard(slot))?;
    Ok((cold, recycled))
}

/// Times of the first hundred and the last hundred of a thousand.
fn flat(ours: &Isolated, effort: Effort) -> Result<(Vec<f64>, Vec<f64>)> {
    let (count, end) = (effort.of(SLOTS), effort.of(END));
    let (mut slots, mut times) = (Vec::new(), Vec::new());
    for i in 0..count {
        let start = Instant::now();
        slots.push(ours.create(i)?);
        times.push(ms(start.elapsed()));
    }
    ours.remove_all(slots)?;
    let last = times.split_off(count - end);
    times.truncate(end);
    Ok((times, last))
}
