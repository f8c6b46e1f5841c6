//! Documents that name tests: each name must be a test of the tree.
//!
//! Owns: `docs/specification.md` and `docs/threat-model.md`, whose tables end in the tests that keep
//! a promise. Refuses: judging whether a test keeps it.

use anyhow::{Context, Result};
use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

const DOCUMENTS: [&str; 2] = ["docs/specification.md", "docs/threat-model.md"];

/// Names in the last column of a table that no function in the tree has, and rows without a name.
///
/// # Errors
/// When git or the file system fails.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let functions = functions(root)?;
    let mut problems = Vec::new();
    for document in DOCUMENTS {
        let text = fs::read_to_string(root.join(document)).with_context(|| format!("read {document}"))?;
        for (number, line) in text.lines().enumerate() {
            let Some(column) = tests_column(line) else { continue };
            let names: Vec<&str> = column.split('`').skip(1).step_by(2).collect();
            if names.is_empty() {
                problems.push(format!("{document}:{}: a promise without a test", number + 1));
            }
            for name in names {
                if !functions.contains(name) {
                    problems.push(format!("{document}:{}: there is no test `{name}`", number + 1));
                }
            }
        }
    }
    Ok(problems)
}

/// The last column of a row that is neither a table's head nor the line under it.
fn tests_column(line: &str) -> Option<&str> {
    let row = line.strip_prefix("| ")?.strip_suffix(" |")?;
    let (_, column) = row.rsplit_once(" | ")?;
    (column != "tests" && !column.starts_with("--")).then_some(column)
}

fn functions(root: &Path) -> Result<BTreeSet<String>> {
    let mut names = BTreeSet::new();
    for path in crate::tidy::files(root)? {
        if path.extension().is_none_or(|e| e != "rs") {
            continue;
        }
        // A file that git still lists and somebody has just removed has no tests.
        let text = fs::read_to_string(root.join(&path)).unwrap_or_default();
        let after = |line: &str| {
            let (_, rest) = line.split_once("fn ")?;
            Some(rest.split(['(', '<']).next()?.to_owned())
        };
        names.extend(text.lines().filter_map(after));
    }
    Ok(names)
}
