//! `enisle doctor`: from the command line's data to the daemon's checks, and back to people.

use enisle_cli::{DoctorArgs, ExitCode};
use enisle_daemon::doctor::{self, DoctorOptions};
use std::path::PathBuf;

/// What `enisle up` reads when nothing is named.
const DEFAULT_FILE: &str = "./enisle.yaml";

/// Checks the host and returns the exit code: 1 when microVMs would not work. Blocks, at most for
/// some 20 seconds.
pub(crate) fn run(args: &DoctorArgs, json: bool) -> u8 {
    let default = PathBuf::from(DEFAULT_FILE);
    let file = args.file.clone().or_else(|| default.is_file().then_some(default));
    let findings = doctor::examine(&DoctorOptions { file, quick: args.quick });
    let broken = doctor::breaks(&findings);
    let printed = if json {
        enisle_cli::print_json(&serde_json::json!({ "ok": !broken, "findings": findings }))
    } else {
        enisle_cli::print(&doctor::render(&findings))
    };
    match printed {
        Err(failure) => failure.report(json),
        Ok(()) if broken => ExitCode::Failed as u8,
        Ok(()) => ExitCode::Success as u8,
    }
}
