//! The benchmark: `cargo xtask bench [LINE…] [--rounds N] [--json] [--quick]`, as root.
//!
//! Owns: the command line, which lines run, the order. Refuses: the machine's own network (all of
//! it happens in namespaces made here), and any figure that was not measured in this run.
//!
//! Each line compares two sides in the same round, one right after the other, and is judged by the
//! median of the rounds' ratios: a neighbour that makes one round slow makes it slow for both.

mod change;
mod cold;
mod crash;
mod floor;
mod guests;
mod isolated;
mod memory;
mod path;
mod peers;
mod removal;
mod report;
mod room;
mod statistics;

use std::collections::BTreeSet;
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::Parser;

use report::Row;

#[derive(Parser)]
#[command(name = "cargo xtask bench", about = "Measures every line of docs/benchmarks.md; needs root")]
struct Args {
    /// Lines to measure, by number; all without any.
    #[arg(value_parser = clap::value_parser!(u8).range(1..=17))]
    lines: Vec<u8>,
    /// Rounds of each line.
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u64).range(7..=99))]
    rounds: u64,
    /// Prints JSON on standard output instead of the table.
    #[arg(long)]
    json: bool,
    /// Two short rounds: shows that everything runs. Its figures are no result.
    #[arg(long)]
    quick: bool,
}

/// How much to do.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Effort {
    pub(crate) rounds: usize,
    pub(crate) quick: bool,
}

impl Effort {
    /// `full`, or an eighth of it where it is to be quick.
    pub(crate) fn of(self, full: usize) -> usize {
        if self.quick { full.div_ceil(8) } else { full }
    }
}

/// Measures some lines; `true` for those that are wanted.
type Group = fn(Effort, &dyn Fn(u8) -> bool) -> Result<Vec<Row>>;

/// In the order of their running. Each takes away what it made before the next begins.
const GROUPS: [(&[u8], Group); 8] = [
    (&[1, 3, 4, 5], cold::measure),
    (&[2], peers::measure),
    (&[8, 9, 10, 11], path::measure),
    (&[6, 7], removal::measure),
    (&[15], change::measure),
    (&[12], crash::measure),
    (&[13], memory::measure),
    (&[13, 14, 16, 17], guests::measure),
];

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<ExitCode> {
    if std::env::args().nth(1).is_some_and(|first| first == crash::DOOMED) {
        return crash::doomed().map(|()| ExitCode::SUCCESS);
    }
    if std::env::args().nth(1).is_some_and(|first| first == guests::inside::WORD) {
        return guests::inside::run().map(|()| ExitCode::SUCCESS);
    }
    let args = Args::parse();
    if let Some(code) = room::enter_own()? {
        return Ok(code);
    }
    let lines: BTreeSet<u8> =
        if args.lines.is_empty() { (1..=17).collect() } else { args.lines.into_iter().collect() };
    let wanted = |line: u8| lines.contains(&line);
    room::need_packages(wanted(2))?;
    room::raise_descriptors()?;
    let rounds = if args.quick { 2 } else { usize::try_from(args.rounds)? };
    let effort = Effort { rounds, quick: args.quick };
    let mut rows = Vec::new();
    for (group, measure) in GROUPS {
        if group.iter().any(|line| wanted(*line)) {
            eprintln!("lines {group:?} …");
            rows.extend(measure(effort, &wanted).with_context(|| format!("lines {group:?}"))?);
        }
    }
    rows.sort_by_key(Row::line);
    if args.json {
        println!("{:#}", report::json(&rows, rounds, args.quick));
    } else {
        println!("{}\n{}", report::machine(), report::table(&rows));
    }
    Ok(ExitCode::SUCCESS)
}
