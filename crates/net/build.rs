//! Compiles the judge (`bpf/judge.c`) to eBPF. Refuses to build without it: an engine without its
//! judge isolates nothing.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

fn main() -> ExitCode {
    match compile() {
        Ok(()) => ExitCode::SUCCESS,
        Err(why) => {
            println!("cargo::error={why}");
            ExitCode::FAILURE
        }
    }
}

fn compile() -> Result<(), String> {
    let var = |name: &str| env::var_os(name).ok_or_else(|| format!("cargo did not set {name}"));
    let source = Path::new(&var("CARGO_MANIFEST_DIR")?).join("../../bpf/judge.c");
    let object = PathBuf::from(var("OUT_DIR")?).join("judge.o");
    println!("cargo::rerun-if-changed={}", source.display());
    for part in ["fragments.h", "reports.h", "port.h"] {
        println!("cargo::rerun-if-changed={}", source.with_file_name(part).display());
    }
    println!("cargo::rerun-if-env-changed=CLANG");

    let clang = env::var("CLANG").unwrap_or_else(|_| "clang".into());
    let output = Command::new(&clang)
        // -g for BTF, which describes the maps; -mcpu=v3 is known since Linux 5.1.
        .args(["-O2", "-g", "-target", "bpf", "-mcpu=v3"])
        .args(["-Wall", "-Wextra", "-Werror", "-c"])
        .arg(&source)
        .arg("-o")
        .arg(&object)
        .output()
        .map_err(|e| {
            format!("cannot run `{clang}` ({e}), needed for bpf/judge.c: install the package `clang`, or name one in $CLANG")
        })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).replace('\n', " | ");
    Err(format!("`{clang}` did not compile {}: {said}", source.display()))
}
