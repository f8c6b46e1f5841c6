//! Lines 8 to 11: what a packet costs on its way, and what of it depends on policy and neighbours.
//!
//! Owns: which paths are compared. Every figure is the quotient of two paths that this program made
//! and used in turn, in slices of milliseconds, so that a busy machine is busy for both.

mod ends;
mod forwarder;
mod guest;
mod packets;
mod track;
mod turns;

use anyhow::Result;
use enisle_net::policy::{CompiledPolicy, PolicySpec, compile};

use crate::Effort;
use crate::isolated::Isolated;
use crate::report::{Row, Target};
use crate::statistics::{Pairs, median};
use guest::Machine;
use packets::Flood;
use track::{Bridged, Track};

/// Slots beside the one that is measured.
const NEIGHBOURS: usize = 999;
const FEW: u32 = 5;
const MANY: u32 = 5_000;

/// Measures those of lines 8 to 11 that are wanted.
///
/// # Errors
/// If a path does not carry what is sent.
pub(crate) fn measure(effort: Effort, wanted: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let mut rows = Vec::new();
    if wanted(8) {
        rows.extend(against_bridge(effort)?);
    }
    if wanted(9) || wanted(10) {
        rows.extend(connections(effort, wanted)?);
    }
    if wanted(11) {
        rows.push(policy_size(effort)?);
        rows.push(crowd(effort)?);
    }
    Ok(rows)
}

fn default_policy() -> Result<CompiledPolicy> {
    Ok(compile(&PolicySpec::default())?)
}

/// Line 8.
fn against_bridge(effort: Effort) -> Result<Vec<Row>> {
    let ours = Isolated::new()?;
    let isolated = Track::isolated(&ours, 0, &default_policy()?)?;
    let bridged = Bridged::new()?;
    let plain = Track::bridged(&bridged)?;
    let (mut a, mut b) = (Flood::new(&isolated, &ours.world)?, Flood::new(&plain, &bridged.world)?);
    let (mut up, mut down) = (Pairs::default(), Pairs::default());
    for _ in 0..effort.rounds {
        let (ours, theirs) = packets::compare(&mut a, &mut b, effort)?;
        up.push(median(&ours.up), median(&theirs.up));
        down.push(median(&ours.down), median(&theirs.down));
    }
    let most = Target::AtMost(1.0);
    let what = "ns per 90-byte packet, isolated / bridge + masquerade";
    let rows = vec![
        Row::ratio(8, format!("{what}, from the guest"), most, &up, "ns"),
        Row::ratio(8, format!("{what}, to the guest"), most, &down, "ns"),
    ];
    isolated.leave(&ours)?;
    Ok(rows)
}

/// Line 11, first half: two slots of one engine.
fn policy_size(effort: Effort) -> Result<Row> {
    let ours = Isolated::new()?;
    let few = Track::isolated(&ours, 0, &compile(&drops(FEW)?)?)?;
    let many = Track::isolated(&ours, 1, &compile(&drops(MANY)?)?)?;
    let pairs = path_cost(&mut Flood::new(&many, &ours.world)?, &mut Flood::new(&few, &ours.world)?, effort)?;
    few.leave(&ours)?;
    many.leave(&ours)?;
    let what = "path cost with 5,000 CIDRs / 5, both ways";
    Ok(Row::ratio(11, what, Target::AtMost(1.03), &pairs, "ns"))
}

/// Line 11, second half: two engines, one with a thousand slots.
fn crowd(effort: Effort) -> Result<Row> {
    let (full, empty) = (Isolated::new()?, Isolated::new()?);
    let count = effort.of(NEIGHBOURS);
    let mut neighbours = full.create_many(0, count / 2)?;
    neighbours.extend(full.create_many(count / 2 + 1, count + 1)?);
    let among = Track::isolated(&full, count / 2, &default_policy()?)?;
    let alone = Track::isolated(&empty, 0, &default_policy()?)?;
    let (mut a, mut b) = (Flood::new(&among, &full.world)?, Flood::new(&alone, &empty.world)?);
    let pairs = path_cost(&mut a, &mut b, effort)?;
    among.leave(&full)?;
    alone.leave(&empty)?;
    full.remove_all(neighbours)?;
    let what = format!("path cost with {} live slots / 1, both ways", count + 1);
    Ok(Row::ratio(11, what, Target::AtMost(1.05), &pairs, "ns"))
}

/// A packet there and one back.
fn path_cost(a: &mut Flood<'_>, b: &mut Flood<'_>, effort: Effort) -> Result<Pairs> {
    let mut pairs = Pairs::default();
    for _ in 0..effort.rounds {
        let (judged, compared) = packets::compare(a, b, effort)?;
        let cost = |times: &packets::Times| median(&times.up) + median(&times.down);
        pairs.push(cost(&judged), cost(&compared));
    }
    Ok(pairs)
}

/// A policy that refuses so many networks, none of which is asked for.
fn drops(count: u32) -> Result<PolicySpec> {
    // 20.0.0.0/8 and what follows; every second /24, so that nothing can be summed up.
    let network = |i: u32| format!("{}.{}.{}.0/24", 20 + i / 32_768, (i / 128) % 256, (i % 128) * 2);
    let drop = (0..count).map(|i| network(i).parse()).collect::<Result<Vec<_>, _>>()?;
    Ok(PolicySpec { drop, allow: Vec::new() })
}

/// Lines 9 and 10: a guest's own kernel at the other end of the forwarder.
fn connections(effort: Effort, wanted: &dyn Fn(u8) -> bool) -> Result<Vec<Row>> {
    let ours = Isolated::new()?;
    let isolated = Track::isolated(&ours, 0, &default_policy()?)?;
    let bridged = Bridged::new()?;
    let plain = Track::bridged(&bridged)?;
    let mut rows = Vec::new();
    {
        let a = Machine::new(&isolated, &ours.world)?;
        let b = Machine::new(&plain, &bridged.world)?;
        if wanted(9) {
            rows.extend(turns::response_times(&a, &b, effort)?);
        }
        if wanted(10) {
            rows.extend(turns::throughput(&a, &b, effort)?);
        }
    }
    isolated.leave(&ours)?;
    Ok(rows)
}
