//! Rows of the result: a target, a figure, met or missed; as a table and as JSON.
//!
//! Owns: the verdict, how figures are written. Refuses: measuring. A figure that is not a number
//! meets no target.

use std::fs;

use comfy_table::{Cell, CellAlignment, Table};
use serde_json::{Value, json};

use crate::statistics::{Pairs, median};

/// What a figure has to be.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Target {
    /// This or less.
    AtMost(f64),
    /// This or more.
    AtLeast(f64),
}

impl Target {
    fn met(self, value: f64) -> bool {
        match self {
            Target::AtMost(most) => value <= most,
            Target::AtLeast(least) => value >= least,
        }
    }

    fn text(self) -> String {
        match self {
            Target::AtMost(most) => format!("≤ {most}"),
            Target::AtLeast(least) => format!("≥ {least}"),
        }
    }
}

/// One row.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    line: u8,
    what: String,
    target: Target,
    /// `None`: it cannot be measured, because it does not exist.
    value: f64,
    spread: (f64, f64),
    note: String,
}

impl Row {
    /// The ratio of what was measured in each round. `unit` is that of the two figures.
    pub(crate) fn ratio(line: u8, what: impl Into<String>, target: Target, pairs: &Pairs, unit: &str) -> Row {
        let (judged, compared) = pairs.figures();
        Row {
            line,
            what: what.into(),
            target,
            value: pairs.ratio(),
            spread: pairs.spread(),
            note: format!("{} / {} {unit}", figure(judged), figure(compared)),
        }
    }

    /// The median of one figure a round.
    pub(crate) fn figure(
        line: u8,
        what: impl Into<String>,
        target: Target,
        rounds: &[f64],
        note: &str,
    ) -> Row {
        let low = rounds.iter().copied().fold(f64::NAN, f64::min);
        let high = rounds.iter().copied().fold(f64::NAN, f64::max);
        Row {
            line,
            what: what.into(),
            target,
            value: median(rounds),
            spread: (low, high),
            note: note.to_owned(),
        }
    }

    /// The same with more to read.
    pub(crate) fn noted(mut self, note: &str) -> Row {
        self.note = format!("{}; {note}", self.note);
        self
    }

    /// The line of issue 4's table that the row belongs to.
    pub(crate) fn line(&self) -> u8 {
        self.line
    }

    fn verdict(&self) -> &'static str {
        if self.target.met(self.value) { "met" } else { "missed" }
    }

    fn json(&self) -> Value {
        let (kind, target) = match self.target {
            Target::AtMost(most) => ("at most", most),
            Target::AtLeast(least) => ("at least", least),
        };
        json!({
            "line": self.line, "what": self.what, "target": target, "target_is": kind,
            "value": self.value, "lowest": self.spread.0, "highest": self.spread.1,
            "verdict": self.verdict(), "note": self.note,
        })
    }
}

/// Three digits that mean something.
fn figure(value: f64) -> String {
    match value.abs() {
        v if v >= 100.0 => format!("{value:.0}"),
        v if v >= 10.0 => format!("{value:.1}"),
        v if v >= 1.0 => format!("{value:.2}"),
        v if v >= 0.01 => format!("{value:.3}"),
        0.0 => "0".to_owned(),
        _ => format!("{value:.5}"),
    }
}

/// The table that is printed.
pub(crate) fn table(rows: &[Row]) -> String {
    let mut table = Table::new();
    table.load_style(comfy_table::presets::ASCII_MARKDOWN);
    table.set_header(["#", "what", "target", "median", "lowest … highest", "", "figures"]);
    for row in rows {
        let value = figure(row.value);
        let (low, high) = row.spread;
        let spread = format!("{} … {}", figure(low), figure(high));
        table.add_row([
            Cell::new(row.line),
            Cell::new(&row.what),
            Cell::new(row.target.text()),
            Cell::new(value).set_alignment(CellAlignment::Right),
            Cell::new(spread),
            Cell::new(row.verdict()),
            Cell::new(&row.note),
        ]);
    }
    table.to_string()
}

/// Everything for a program to read.
pub(crate) fn json(rows: &[Row], rounds: usize, quick: bool) -> Value {
    json!({
        "machine": machine(), "rounds": rounds, "quick": quick,
        "rows": rows.iter().map(Row::json).collect::<Vec<_>>(),
    })
}

/// What the figures are of: kernel, processor, load now.
pub(crate) fn machine() -> Value {
    let first = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let model = first("/proc/cpuinfo");
    let model = model.lines().find_map(|l| l.strip_prefix("model name")).unwrap_or_default();
    json!({
        "kernel": first("/proc/sys/kernel/osrelease").trim(),
        "processor": model.trim_start_matches([' ', '\t', ':']).trim(),
        "cpus": std::thread::available_parallelism().map_or(0, usize::from),
        "load": first("/proc/loadavg").split(' ').take(3).collect::<Vec<_>>().join(" "),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_number_that_is_good_enough_meets_a_target() {
        let verdict = |target, value| {
            let row = Row::figure(1, "x", target, &[value], "");
            row.verdict()
        };
        assert_eq!(verdict(Target::AtMost(1.5), 1.5), "met");
        assert_eq!(verdict(Target::AtMost(1.5), 1.51), "missed");
        assert_eq!(verdict(Target::AtLeast(50.0), 50.0), "met");
        assert_eq!(verdict(Target::AtLeast(50.0), 49.9), "missed");
        assert_eq!(verdict(Target::AtMost(1.5), f64::NAN), "missed");
        assert_eq!(Row::figure(1, "x", Target::AtMost(0.0), &[], "").verdict(), "missed");
    }
}
