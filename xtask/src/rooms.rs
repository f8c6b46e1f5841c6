//! The rooms: arrows between crates, and who may make which system call or start which process.

use anyhow::{Context, Result};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Every crate of the product and the crates of ours that it may depend on.
/// `cli → client → api ← daemon → net, vmm, image, guest-proto ← agent`.
const ARROWS: [(&str, &[&str]); 11] = [
    ("enisle-api", &[]),
    ("enisle-archive", &[]),
    ("enisle-guest-proto", &[]),
    ("enisle-net", &[]),
    ("enisle-vmm", &[]),
    ("enisle-image", &[]),
    ("enisle-agent", &["enisle-archive", "enisle-guest-proto"]),
    ("enisle-client", &["enisle-api", "enisle-archive"]),
    ("enisle-cli", &["enisle-api", "enisle-archive", "enisle-client"]),
    ("enisle-daemon", &["enisle-api", "enisle-guest-proto", "enisle-image", "enisle-net", "enisle-vmm"]),
    ("enisle", &["enisle-cli", "enisle-daemon", "enisle-image"]),
];

/// A word that only the named places of the product may contain, and why.
struct Reserved {
    word: &'static str,
    places: &'static [&'static str],
    why: &'static str,
}

const RESERVED: [Reserved; 4] = [
    Reserved {
        word: "move_into_link_name_space",
        places: &["crates/net/src/kernel/", "crates/vmm/src/confine.rs"],
        why: "a namespace switch belongs on a thread that is thrown away",
    },
    Reserved {
        word: "libc::setns",
        places: &["crates/net/src/kernel/", "crates/vmm/src/confine.rs"],
        why: "a namespace switch belongs on a thread that is thrown away",
    },
    Reserved {
        word: "unshare(",
        places: &["crates/net/src/kernel/"],
        why: "namespaces are made in one place",
    },
    Reserved {
        word: "/proc/sys/net",
        places: &["crates/agent/src/", "crates/net/src/kernel/"],
        why: "the host's knobs are not ours; per-interface settings go over netlink",
    },
];

/// Programs that the product never starts: the kernel's own interface is used instead.
const NO_PROCESS: [&str; 6] = ["ip", "nft", "iptables", "sysctl", "tc", "bpftool"];

/// Checks arrows, reserved words and started programs.
///
/// # Errors
/// When cargo, git or the file system fails.
pub(crate) fn check(root: &Path) -> Result<Vec<String>> {
    let mut problems = arrows(root)?;
    for path in crate::tidy::files(root)? {
        let name = path.to_string_lossy().into_owned();
        if !name.starts_with("crates/") || !name.contains("/src/") || !name.ends_with(".rs") {
            continue;
        }
        let Ok(text) = fs::read_to_string(root.join(&path)) else {
            continue;
        };
        let code = text.find("\n#[cfg(test)]\nmod ").map_or(text.as_str(), |at| &text[..at]);
        for (number, line) in code.lines().enumerate() {
            let line_number = number + 1;
            if line.trim_start().starts_with("//") {
                continue;
            }
            for rule in &RESERVED {
                if line.contains(rule.word) && !rule.places.iter().any(|p| name.starts_with(p)) {
                    problems.push(format!("{name}:{line_number}: `{}`: {}", rule.word, rule.why));
                }
            }
            for program in NO_PROCESS {
                if line.contains(&format!("Command::new(\"{program}\")")) {
                    problems.push(format!(
                        "{name}:{line_number}: starts `{program}`; use the kernel's interface"
                    ));
                }
            }
        }
    }
    Ok(problems)
}

fn arrows(root: &Path) -> Result<Vec<String>> {
    let out = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(root)
        .args(["metadata", "--format-version=1", "--no-deps", "--locked"])
        .output()
        .context("cargo metadata")?;
    anyhow::ensure!(out.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&out.stderr));
    let metadata: Value = serde_json::from_slice(&out.stdout).context("cargo metadata's JSON")?;
    let mut problems = Vec::new();
    for package in metadata["packages"].as_array().into_iter().flatten() {
        let name = package["name"].as_str().unwrap_or_default();
        let Some((_, allowed)) = ARROWS.iter().find(|(n, _)| *n == name) else {
            continue;
        };
        for dependency in package["dependencies"].as_array().into_iter().flatten() {
            let to = dependency["name"].as_str().unwrap_or_default();
            let shipped = dependency["kind"].as_str() != Some("dev");
            if shipped && to.starts_with("enisle") && !allowed.contains(&to) {
                problems.push(format!("{name} depends on {to}: arrows point one way, see ARCHITECTURE.md"));
            }
        }
    }
    Ok(problems)
}
