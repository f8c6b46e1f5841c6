//! What the tree may look like. Each rule says why it exists in the message it prints.

use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Lines of a Rust file, tests not counted; beyond this a file is two rooms.
const MAX_LINES: usize = 700;
/// Module names that say nothing about what is inside.
const VAGUE: [&str; 6] = ["utils", "util", "helpers", "common", "manager", "misc"];
/// Registries' hosts: what a build needs comes through the ordinary clients' configuration.
const HOSTS: [&str; 6] = [
    "crates\u{2e}io/",
    "static\u{2e}crates",
    "pypi\u{2e}org",
    "registry\u{2e}npmjs",
    "deb.debian\u{2e}org",
    "archive.ubuntu\u{2e}com",
];

/// Checks every file that git tracks or would track.
///
/// # Errors
/// When git or the file system fails, not when a rule is broken: those are returned.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut problems = Vec::new();
    for path in files(root)? {
        let Ok(text) = fs::read_to_string(root.join(&path)) else {
            continue;
        };
        let name = path.display();
        if path.extension().is_some_and(|e| e == "rs") {
            problems.extend(rust_file(&path, &text));
        }
        for host in HOSTS {
            if text.contains(host) && !path.ends_with("Cargo.lock") {
                problems.push(format!(
                    "{name}: names a registry host ({host}); clients are configured by the machine"
                ));
            }
        }
        if path.extension().is_some_and(|e| e == "md") {
            problems.extend(dead_links(root, &path, &text));
        }
        for (number, line) in text.lines().enumerate() {
            if line.ends_with(' ')
                && !path.extension().is_some_and(|e| e == "md" || e == "stderr" || e == "snap" || e == "txt")
            {
                problems.push(format!("{name}:{}: trailing space", number + 1));
            }
        }
    }
    Ok(problems)
}

/// Tracked files and untracked ones that are not ignored, relative to the root.
pub(crate) fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let out = Command::new("git")
        .current_dir(root)
        .args(["ls-files", "--cached", "--others", "--exclude-standard", "-z"])
        .output()
        .context("git ls-files")?;
    anyhow::ensure!(out.status.success(), "git ls-files: {}", String::from_utf8_lossy(&out.stderr));
    let list = String::from_utf8(out.stdout).context("a file name is not UTF-8")?;
    Ok(list.split('\0').filter(|p| !p.is_empty()).map(PathBuf::from).collect())
}

fn rust_file(path: &Path, text: &str) -> Vec<String> {
    let mut problems = Vec::new();
    let name = path.display();
    let first = text.lines().find(|l| !l.is_empty()).unwrap_or_default();
    if !first.starts_with("//!") {
        problems.push(format!("{name}:1: opens without `//!` (what the file owns and what it refuses)"));
    }
    let code = text.find("\n#[cfg(test)]\nmod ").map_or(text, |at| &text[..at]);
    let lines = code.lines().count();
    if lines > MAX_LINES && !is_test(path) {
        problems.push(format!("{name}: {lines} lines, at most {MAX_LINES} without tests: two rooms in one"));
    }
    let stem = path.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if VAGUE.contains(&stem) {
        problems.push(format!("{name}: a module named `{stem}` says nothing about what it owns"));
    }
    for (number, line) in text.lines().enumerate() {
        let bare = line.trim_start();
        let task_marks = ["TO\u{44}O", "FIX\u{4d}E", "X\u{58}X"];
        if bare.starts_with("//") && task_marks.iter().any(|m| bare.contains(m)) && !bare.contains("issue #")
        {
            problems.push(format!("{name}:{}: open work without the place where it is tracked", number + 1));
        }
        if bare.starts_with("#[ignore") {
            problems.push(format!("{name}:{}: an ignored test is a test that cannot fail", number + 1));
        }
    }
    problems
}

fn is_test(path: &Path) -> bool {
    path.components().any(|c| matches!(c.as_os_str().to_str(), Some("tests" | "benches" | "tests-vm")))
}

/// Relative links of a Markdown file that lead nowhere.
fn dead_links(root: &Path, path: &Path, text: &str) -> Vec<String> {
    let base = root.join(path.parent().unwrap_or(Path::new("")));
    let mut problems = Vec::new();
    for (number, line) in text.lines().enumerate() {
        for part in line.split("](").skip(1) {
            let target = part.split([')', '#', ' ']).next().unwrap_or_default();
            if target.is_empty() || target.contains("://") || target.starts_with("mailto:") {
                continue;
            }
            if !base.join(target).exists() {
                problems.push(format!(
                    "{}:{}: link to {target}, which does not exist",
                    path.display(),
                    number + 1
                ));
            }
        }
    }
    problems
}
