//! One result of the doctor.
//!
//! Owns: its parts and its look. Refuses: judging.

use serde::Serialize;
use std::fmt::Write as _;

/// How bad it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// As it should be.
    Ok,
    /// Good to know; nothing to do.
    Note,
    /// Works, but not as well as it could, or not under all circumstances.
    Warning,
    /// microVMs would not start, or have no network.
    Failure,
}

impl Severity {
    fn word(self) -> &'static str {
        match self {
            Severity::Ok => "ok",
            Severity::Note => "note",
            Severity::Warning => "warning",
            Severity::Failure => "FAILURE",
        }
    }
}

/// One result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was checked; stable, for programs.
    pub id: &'static str,
    /// How bad it is.
    pub severity: Severity,
    /// What was found, a sentence.
    pub what: String,
    /// Why it matters; empty where nothing is wrong.
    pub why: String,
    /// The command that mends it, or what to do; empty where there is nothing to do.
    pub fix: String,
}

impl Finding {
    fn new(id: &'static str, severity: Severity, what: impl Into<String>) -> Finding {
        Finding { id, severity, what: what.into(), why: String::new(), fix: String::new() }
    }

    pub(super) fn ok(id: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Ok, what)
    }

    pub(super) fn note(id: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Note, what)
    }

    pub(super) fn warning(id: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Warning, what)
    }

    pub(super) fn failure(id: &'static str, what: impl Into<String>) -> Finding {
        Finding::new(id, Severity::Failure, what)
    }

    pub(super) fn why(mut self, why: impl Into<String>) -> Finding {
        self.why = why.into();
        self
    }

    pub(super) fn fix(mut self, fix: impl Into<String>) -> Finding {
        self.fix = fix.into();
        self
    }
}

pub(super) fn render(findings: &[Finding]) -> String {
    let width = findings.iter().map(|f| f.id.len()).max().unwrap_or(0);
    let mut text = String::new();
    for finding in findings {
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{:<7}  {:<width$}  {}",
            finding.severity.word(),
            finding.id,
            indented(&finding.what, width + 11)
        );
        for (word, more) in [("", &finding.why), ("fix: ", &finding.fix)] {
            if !more.is_empty() {
                let _ = writeln!(text, "{:1$}{word}{2}", "", width + 11, indented(more, width + 11));
            }
        }
    }
    let count = |severity| findings.iter().filter(|f| f.severity == severity).count();
    let (failures, warnings) = (count(Severity::Failure), count(Severity::Warning));
    let _ = match (failures, warnings) {
        (0, 0) => writeln!(text, "\nnothing is in the way of microVMs on this host"),
        (0, _) => writeln!(text, "\nmicroVMs work on this host; {warnings} to look at"),
        _ => writeln!(text, "\n{failures} to mend before microVMs work on this host, {warnings} to look at"),
    };
    text
}

/// Further lines under the first.
fn indented(text: &str, by: usize) -> String {
    text.trim_end().replace('\n', &format!("\n{:by$}", ""))
}
