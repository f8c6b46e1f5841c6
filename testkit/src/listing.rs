//! Everything a leak could hide in, listed before and compared after.
//!
//! Owns: reading it, and the difference. Refuses: guessing what is whose: where the machine is
//! shared with others, the caller says which names count.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::process::Command;

use anyhow::Context as _;
use serde_json::Value;

use crate::Netns;

/// What is listed beside the namespace itself.
#[derive(Debug, Clone)]
pub struct Scope<'a> {
    /// A process counts if its command line contains one of these.
    pub processes: &'a [&'a str],
    /// A BPF program or map counts if its name contains one of these; empty counts all.
    pub bpf: &'a [&'a str],
    /// A cgroup directory counts if its path contains one of these.
    pub cgroups: &'a [&'a str],
    /// Directories whose whole tree is listed, such as a state directory.
    pub trees: &'a [&'a Path],
}

/// One look; sections by name, each a set of lines.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listing {
    sections: BTreeMap<&'static str, BTreeSet<String>>,
}

impl Listing {
    /// Looks now. Network sections are of `ns`; the others are the machine's.
    ///
    /// # Errors
    /// If `ip`, `nft` or `bpftool` is missing or fails: a leak check that cannot look must not pass.
    pub fn take(ns: &Netns, scope: &Scope<'_>) -> anyhow::Result<Listing> {
        let mut sections = network(ns)?;
        sections.insert("bpf programs", bpf("prog", scope.bpf)?);
        sections.insert("bpf maps", bpf("map", scope.bpf)?);
        sections.insert("namespaces", namespaces()?);
        sections.insert("processes", processes(scope.processes)?);
        sections.insert("cgroups", cgroups(scope.cgroups)?);
        let mut files = BTreeSet::new();
        for tree in scope.trees {
            walk(tree, &mut |path| {
                files.insert(path.display().to_string());
            });
        }
        sections.insert("files", files);
        Ok(Listing { sections })
    }

    /// The network sections of `ns` alone, as lines: what the machine has beside it, others change meanwhile.
    ///
    /// # Errors
    /// As of [`Listing::take`].
    pub fn of_network(ns: &Netns) -> anyhow::Result<Vec<String>> {
        Ok(network(ns)?.into_values().flatten().collect())
    }

    /// The lines of a section; empty for an unknown one.
    #[must_use]
    pub fn section(&self, name: &str) -> BTreeSet<String> {
        self.sections.get(name).cloned().unwrap_or_default()
    }

    /// What changed since `before`: `+` came, `-` went.
    #[must_use]
    pub fn since(&self, before: &Listing) -> Vec<String> {
        let empty = BTreeSet::new();
        let mut changes = Vec::new();
        for (name, now) in &self.sections {
            let then = before.sections.get(name).unwrap_or(&empty);
            changes.extend(now.difference(then).map(|line| format!("+ {name}: {line}")));
            changes.extend(then.difference(now).map(|line| format!("- {name}: {line}")));
        }
        changes
    }
}

fn network(ns: &Netns) -> anyhow::Result<BTreeMap<&'static str, BTreeSet<String>>> {
    let lines = |program: &str, args: &[&str]| -> anyhow::Result<BTreeSet<String>> {
        Ok(ns.check(program, args, "")?.lines().map(|l| l.trim_end().to_owned()).collect())
    };
    Ok(BTreeMap::from([
        ("links", links(ns)?),
        ("addresses", addresses(ns)?),
        ("routes", lines("ip", &["-4", "route", "show", "table", "all"])?),
        ("rules", lines("ip", &["-4", "rule"])?),
        // -s leaves counters out, which move by themselves.
        ("nftables", lines("nft", &["-s", "list", "ruleset"])?),
        ("forwarding", forwarding(ns)?),
    ]))
}

fn json(ns: &Netns, args: &[&str]) -> anyhow::Result<Vec<Value>> {
    let text = ns.check("ip", args, "")?;
    serde_json::from_str(&text).with_context(|| format!("ip {args:?} printed no JSON"))
}

/// Index, name, kind and alias; not the state, which moves by itself.
fn links(ns: &Netns) -> anyhow::Result<BTreeSet<String>> {
    let field = |l: &Value, name: &str| l[name].as_str().unwrap_or_default().to_owned();
    let line = |l: &Value| {
        format!(
            "{} {} {} {}",
            l["ifindex"],
            field(l, "ifname"),
            field(&l["linkinfo"], "info_kind"),
            field(l, "ifalias")
        )
    };
    Ok(json(ns, &["-j", "-d", "link"])?.iter().map(line).collect())
}

fn addresses(ns: &Netns) -> anyhow::Result<BTreeSet<String>> {
    let mut lines = BTreeSet::new();
    for link in json(ns, &["-j", "-4", "addr"])? {
        for addr in link["addr_info"].as_array().into_iter().flatten() {
            lines.insert(format!("{} {}/{}", link["ifname"], addr["local"], addr["prefixlen"]));
        }
    }
    Ok(lines)
}

fn forwarding(ns: &Netns) -> anyhow::Result<BTreeSet<String>> {
    let read = || -> std::io::Result<BTreeSet<String>> {
        let mut lines = BTreeSet::new();
        for entry in fs::read_dir("/proc/sys/net/ipv4/conf")? {
            let entry = entry?;
            let value = fs::read_to_string(entry.path().join("forwarding")).unwrap_or_default();
            lines.insert(format!("{} {}", entry.file_name().display(), value.trim_end()));
        }
        Ok(lines)
    };
    ns.run(read).context("cannot read net.ipv4.conf")
}

fn bpf(what: &str, names: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let output =
        Command::new("bpftool").args(["-j", what]).output().context("cannot run bpftool; install it")?;
    let list: Vec<Value> =
        serde_json::from_slice(&output.stdout).with_context(|| format!("bpftool {what} printed no JSON"))?;
    let name = |object: &Value| object["name"].as_str().unwrap_or_default().to_owned();
    Ok(list
        .iter()
        .filter(|o| names.is_empty() || names.iter().any(|n| name(o).contains(n)))
        .map(|o| format!("{} {}", o["id"], name(o)))
        .collect())
}

/// Inodes of all network namespaces that a process lives in or holds open. Processes come and go
/// while this reads, so what cannot be read is gone, not wrong.
fn namespaces() -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for pid in pids()? {
        let base = Path::new("/proc").join(pid.to_string());
        let fds = fs::read_dir(base.join("fd")).into_iter().flatten().flatten().map(|e| e.path());
        for link in std::iter::once(base.join("ns/net")).chain(fds) {
            let Ok(target) = fs::read_link(&link) else {
                continue;
            };
            if target.to_string_lossy().starts_with("net:[") {
                found.insert(target.display().to_string());
            }
        }
    }
    Ok(found)
}

fn processes(needles: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    for pid in pids()? {
        let Ok(raw) = fs::read(format!("/proc/{pid}/cmdline")) else {
            continue;
        };
        let line = String::from_utf8_lossy(&raw).replace('\0', " ");
        if pid != std::process::id() && needles.iter().any(|n| line.contains(n)) {
            found.insert(format!("{pid} {}", line.trim_end()));
        }
    }
    Ok(found)
}

fn pids() -> anyhow::Result<Vec<u32>> {
    let entries = fs::read_dir("/proc").context("cannot read /proc")?;
    Ok(entries.flatten().filter_map(|e| e.file_name().to_str()?.parse().ok()).collect())
}

fn cgroups(needles: &[&str]) -> anyhow::Result<BTreeSet<String>> {
    let mut found = BTreeSet::new();
    let root = Path::new("/sys/fs/cgroup");
    fs::metadata(root).context("cannot read /sys/fs/cgroup")?;
    walk(root, &mut |path| {
        let text = path.display().to_string();
        if path.is_dir() && needles.iter().any(|n| text.contains(n)) {
            found.insert(text);
        }
    });
    Ok(found)
}

/// Visits everything below a directory, without following symlinks or leaving for what vanished.
fn walk(dir: &Path, visit: &mut impl FnMut(&Path)) {
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        let path = entry.path();
        visit(&path);
        if entry.metadata().is_ok_and(|m| m.is_dir() && m.ino() != 0) {
            walk(&path, visit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SCOPE: Scope<'_> = Scope { processes: &[], bpf: &["\u{1}"], cgroups: &[], trees: &[] };

    #[test]
    fn a_leak_shows_and_nothing_else_does() {
        let ns = Netns::new().unwrap();
        let before = Listing::take(&ns, &SCOPE).unwrap();
        ns.check("ip", &["link", "add", "leak0", "type", "veth"], "").unwrap();
        ns.check("nft", &["-f", "-"], "add table inet leak").unwrap();
        let leaked = Listing::take(&ns, &SCOPE).unwrap().since(&before);
        assert!(leaked.iter().any(|l| l.starts_with("+ links:") && l.contains("leak0")), "{leaked:?}");
        assert!(leaked.iter().any(|l| l.contains("table inet leak")), "{leaked:?}");
        ns.check("ip", &["link", "del", "leak0"], "").unwrap();
        ns.check("nft", &["flush", "ruleset"], "").unwrap();
        let after = Listing::take(&ns, &SCOPE).unwrap();
        for section in ["links", "addresses", "routes", "nftables", "forwarding"] {
            assert_eq!(after.section(section), before.section(section), "{section}");
        }
    }
}
