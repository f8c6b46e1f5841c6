//! Whose code is in the package, and under which licence.
//!
//! Owns: the crates that the programs are made from, as cargo resolves them without tests and build
//! scripts. Refuses: judging licences, which is `cargo-deny`'s.

use crate::dist::{compressed, put, sorted};
use anyhow::{Context as _, Result, ensure};
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;

/// Our programs.
const OURS: [&str; 2] = ["enisle", "enisle-agent"];

/// Writes `copyright` and `third-party-licences.gz` into a directory.
pub(crate) fn write(root: &Path, doc: &Path) -> Result<()> {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root).args(["metadata", "--format-version", "1", "--locked"]);
    let output = command.args(["--filter-platform", "x86_64-unknown-linux-gnu"]).output()?;
    ensure!(output.status.success(), "cargo metadata: {}", String::from_utf8_lossy(&output.stderr));
    let metadata: Value = serde_json::from_slice(&output.stdout)?;
    let used = used(&metadata)?;
    let packages = metadata["packages"].as_array().context("packages")?;
    let mut packages: Vec<&Value> = packages
        .iter()
        .filter(|package| package["id"].as_str().is_some_and(|id| used.contains(id)))
        .collect();
    packages.sort_by_key(|package| (text(package, "name"), text(package, "version")));
    let mut copyright = String::from(
        "Format: https://www.debian.org/doc/packaging-manuals/copyright-format/1.0/\nUpstream-Name: enisle\nComment: \
         /usr/bin/enisle and /usr/lib/enisle/enisle-agent contain the crates below; the texts of their licences are in\n \
         third-party-licences.gz. /usr/lib/enisle/vhost-device-vsock is the crate of that name, version 0.3.0,\n \
         Apache-2.0 or BSD-3-Clause, from https://github.com/rust-vmm/vhost-device.\n\nFiles: *\nCopyright: the Enisle \
         authors\nLicense: Apache-2.0\n On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n",
    );
    let mut texts: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for package in packages.iter().filter(|package| !package["source"].is_null()) {
        let crate_name = format!("{} {}", text(package, "name"), text(package, "version"));
        let authors = package["authors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let authors = authors.collect::<Vec<_>>().join(", ");
        let holders = if authors.is_empty() { format!("the authors of {crate_name}") } else { authors };
        let licence = package["license"].as_str().unwrap_or("see third-party-licences.gz");
        write!(copyright, "\nFiles: crate {crate_name}\nCopyright: {holders}\nLicense: {licence}\n")?;
        let dir = Path::new(package["manifest_path"].as_str().context("manifest_path")?).parent();
        for file in sorted(dir.context("a manifest has a directory")?)? {
            let name = file.file_name().unwrap_or_default().to_string_lossy().to_ascii_uppercase();
            let legal = ["LICENSE", "LICENCE", "COPYING", "COPYRIGHT", "NOTICE"];
            if file.is_file() && legal.iter().any(|word| name.starts_with(word)) {
                let text = String::from_utf8_lossy(&fs::read(&file)?).into_owned();
                texts.entry(text).or_default().push(crate_name.clone());
            }
        }
    }
    put(&doc.join("copyright"), copyright.as_bytes(), 0o644)?;
    let all: String =
        texts.iter().map(|(text, crates)| format!("==== {}\n\n{text}\n\n", crates.join(", "))).collect();
    compressed(&doc.join("third-party-licences"), all.as_bytes())
}

fn text<'a>(package: &'a Value, key: &str) -> &'a str {
    package[key].as_str().unwrap_or_default()
}

/// Ids of everything our programs are made from: normal dependencies, theirs, and so on.
fn used(metadata: &Value) -> Result<BTreeSet<String>> {
    let nodes = metadata["resolve"]["nodes"].as_array().context("resolve")?;
    let by_id: BTreeMap<&str, &Value> =
        nodes.iter().filter_map(|node| Some((node["id"].as_str()?, node))).collect();
    let packages = metadata["packages"].as_array().context("packages")?;
    let mut open: Vec<&str> = packages
        .iter()
        .filter(|package| package["source"].is_null() && OURS.contains(&text(package, "name")))
        .filter_map(|package| package["id"].as_str())
        .collect();
    ensure!(open.len() == OURS.len(), "the workspace lacks one of {OURS:?}");
    let mut used = BTreeSet::new();
    while let Some(id) = open.pop() {
        if !used.insert(id.to_owned()) {
            continue;
        }
        let deps = by_id.get(id).and_then(|node| node["deps"].as_array()).into_iter().flatten();
        let normal = |dep: &&Value| {
            dep["dep_kinds"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind["kind"].is_null()))
        };
        open.extend(deps.filter(normal).filter_map(|dep| dep["pkg"].as_str()));
    }
    Ok(used)
}
