//! Lines 6 and 7: how long 256 networks take to go, who waits for it, and who is held up.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;
use std::time::Instant;

use anyhow::Result;
use enisle_net::Slot;

use crate::Effort;
use crate::floor::{Floor, Triple};
use crate::isolated::Isolated;
use crate::report::{Row, Target};
use crate::statistics::{Pairs, largest, median, ms};

const SLOTS: usize = 256;
/// Slots made on an idle host before each stampede.
const IDLE: usize = 60;
/// Slots handed over one at a time, for the caller's time.
const CALLS: usize = 40;

/// Measures those of lines 6 and 7 that are wanted.
///
/// # Errors
/// If the engine or the kernel refuses something.
pub(crate) fn measure(effort: Effort, wanted: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let ours = Isolated::new()?;
    let mut rows = Vec::new();
    if wanted(6) {
        rows.extend(against_one_by_one(&ours, effort)?);
    }
    if wanted(7) {
        rows.push(held_up(&ours, effort)?);
    }
    ours.engine.close()?;
    Ok(rows)
}

/// Line 6: paced, as while others are made, and without a pace, as when the daemon goes down. The
/// other side's namespaces go by themselves after its clock has stopped, which is in its favour.
fn against_one_by_one(ours: &Isolated, effort: Effort) -> Result<Vec<Row>> {
    let floor = Floor::new(&ours.world.host)?;
    let closing = Isolated::new()?;
    closing.engine.hurry();
    let (mut paced, mut hurried, mut caller) = (Pairs::default(), Pairs::default(), Pairs::default());
    let count = effort.of(SLOTS);
    for _ in 0..effort.rounds {
        let ours_paced = together(ours, count)?;
        let ours_hurried = together(&closing, count)?;
        let ours_each = handed_over(ours, effort.of(CALLS))?;
        let triples = (0..count).map(|i| floor.create(u32::try_from(i)?)).collect::<Result<Vec<Triple>>>()?;
        let start = Instant::now();
        let theirs_each = each(triples, |triple| floor.remove(triple))?;
        let theirs = ms(start.elapsed());
        paced.push(theirs, ours_paced);
        hurried.push(theirs, ours_hurried);
        caller.push(median(&theirs_each), ours_each);
    }
    closing.engine.close()?;
    let gone = |how| format!("one-by-one removal / ours, {count} slots, until all is gone, {how}");
    Ok(vec![
        Row::ratio(6, gone("when no slot will be made any more"), Target::AtLeast(20.0), &hurried, "ms"),
        Row::ratio(6, gone("while others may be made"), Target::AtLeast(20.0), &paced, "ms"),
        Row::ratio(6, "one-by-one removal / ours, the caller's time", Target::AtLeast(300.0), &caller, "ms"),
    ])
}

/// Milliseconds until that many slots are gone.
fn together(ours: &Isolated, count: usize) -> Result<f64> {
    let slots = ours.create_many(0, count)?;
    let start = Instant::now();
    ours.remove_all(slots)?;
    Ok(ms(start.elapsed()))
}

/// The median of the milliseconds that a caller spends on handing a slot over, while another thread
/// takes them away.
fn handed_over(ours: &Isolated, count: usize) -> Result<f64> {
    let slots = ours.create_many(0, count)?;
    let (tell, told) = mpsc::channel();
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let others = scope.spawn(|| {
            while !over.load(Relaxed) {
                ours.engine.see_off();
            }
        });
        let times = each(slots, |slot: Slot| {
            let tell = tell.clone();
            ours.engine.hand_over(slot, move |gone| drop(tell.send(gone)));
            Ok(())
        });
        let gone: Result<(), _> = told.iter().take(count).collect();
        over.store(true, Relaxed);
        // One more, so that the other thread looks up.
        let last = ours.create(count)?;
        ours.engine.hand_over(last, move |gone| drop(tell.send(gone)));
        others.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        while !told.try_iter().any(|_| true) {
            ours.engine.see_off();
        }
        gone?;
        Ok(median(&times?))
    })
}

/// Milliseconds of each removal.
fn each<T>(things: Vec<T>, remove: impl Fn(T) -> Result<()>) -> Result<Vec<f64>> {
    let timed = |thing| {
        let start = Instant::now();
        remove(thing)?;
        Ok(ms(start.elapsed()))
    };
    things.into_iter().map(timed).collect()
}

/// Line 7.
fn held_up(ours: &Isolated, effort: Effort) -> Result<Row> {
    let count = effort.of(SLOTS);
    let (mut pairs, mut made) = (Pairs::default(), Vec::new());
    for _ in 0..effort.rounds {
        let (mut idle, mut idle_slots) = (Vec::new(), Vec::new());
        for i in 0..effort.of(IDLE) {
            let start = Instant::now();
            idle_slots.push(ours.create(count + i)?);
            idle.push(ms(start.elapsed()));
        }
        ours.remove_all(idle_slots)?;
        let doomed = ours.create_many(0, count)?;
        let (slots, busy) = while_removing(ours, doomed, count)?;
        made.push(busy.len() as f64);
        pairs.push(largest(&busy), median(&idle));
        ours.remove_all(slots)?;
    }
    let what = format!("slowest create while {count} are torn down / idle p50");
    let many = format!("{} creates in a teardown", median(&made));
    Ok(Row::ratio(7, what, Target::AtMost(10.0), &pairs, "ms").noted(&many))
}

/// Makes slots from block `first` on until `doomed` are gone; at least one.
fn while_removing(ours: &Isolated, doomed: Vec<Slot>, first: usize) -> Result<(Vec<Slot>, Vec<f64>)> {
    let gone = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let removal = scope.spawn(|| {
            let done = ours.remove_all(doomed);
            gone.store(true, Relaxed);
            done
        });
        let (mut slots, mut times) = (Vec::new(), Vec::new());
        while times.is_empty() || !gone.load(Relaxed) {
            let start = Instant::now();
            slots.push(ours.create(first + times.len())?);
            times.push(ms(start.elapsed()));
        }
        removal.join().unwrap_or_else(|p| std::panic::resume_unwind(p))?;
        Ok((slots, times))
    })
}
