//! `enisle doctor`: what of this host would keep microVMs from working, and what mends it.
//!
//! Owns: the order of looking, judging and telling, and the exit code. Refuses: mending anything
//! itself, and needing a daemon. [`facts`] gathers, [`checks`] are pure functions over what was
//! gathered, [`finding`] is how a result looks.

mod checks;
mod facts;
mod finding;
mod networkd;
#[cfg(test)]
mod tests;

pub use finding::{Finding, Severity};

use std::path::PathBuf;

/// Options of [`examine`].
#[derive(Debug, Clone, Default)]
pub struct DoctorOptions {
    /// The configuration to check the host for; none checks the host alone.
    pub file: Option<PathBuf>,
    /// Without the boot of a probe guest, which takes seconds.
    pub quick: bool,
}

/// Looks at this host and judges it. Changes nothing on it: what is tried is tried in a network
/// namespace of its own. Blocks, without `quick` for up to some 20 seconds.
#[must_use]
pub fn examine(options: &DoctorOptions) -> Vec<Finding> {
    checks::all(&facts::gather(options))
}

/// Whether microVMs would not work, by at least one of these.
#[must_use]
pub fn breaks(findings: &[Finding]) -> bool {
    findings.iter().any(|finding| finding.severity == Severity::Failure)
}

/// The findings for people: a line each, and below it why it matters and what mends it.
#[must_use]
pub fn render(findings: &[Finding]) -> String {
    finding::render(findings)
}
