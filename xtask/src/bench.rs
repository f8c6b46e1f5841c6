//! `cargo xtask bench`: builds the benchmark with the release binaries it measures, and runs it.

use anyhow::{Context, Result};
use std::path::Path;
use std::process::Command;

/// Runs `enisle-bench` to its end; a failure is its own to explain.
///
/// # Errors
/// When cargo or the benchmark cannot be started.
pub(crate) fn run(root: &Path, args: &[String]) -> Result<Vec<String>> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    // With the features of the whole workspace, as ./test builds: so dependencies are built once.
    let build = ["build", "--release", "--locked", "--workspace", "--bin", "enisle-bench", "--bin", "enisle"];
    let built = Command::new(cargo).current_dir(root).args(build).status().context("cargo build")?;
    if !built.success() {
        return Ok(vec!["the benchmark cannot be built".to_owned()]);
    }
    let target =
        std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir));
    let program = target.join("release/enisle-bench");
    let done = Command::new(&program).args(args).status();
    let done = done.with_context(|| format!("cannot run {}", program.display()))?;
    Ok(if done.success() { Vec::new() } else { vec!["the benchmark failed".to_owned()] })
}
