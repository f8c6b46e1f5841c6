//! `enisle gc`: the command line and the report. Owns how leftovers look; refuses to look for them,
//! which is the daemon crate's.

use crate::failure::Failure;
use crate::table::{print, print_json};
use clap::Args;
use serde::Serialize;
use std::path::PathBuf;

/// `enisle gc`.
#[derive(Debug, Args)]
#[command(after_help = "\
Works without a daemon and needs root. What carries the mark of this state directory is listed and
removed: processes, control groups, interfaces, the nftables table, files, and what is remembered of
VMs. Running microVMs are ended, too: `enisle up` would adopt them. Refused while a daemon runs.

Examples:
  sudo enisle gc --dry-run
  sudo enisle gc --state-dir /srv/enisle --json")]
pub struct GcArgs {
    /// The daemon's state directory: `config.state_dir` of its file.
    #[arg(long, default_value = "/var/lib/enisle", value_name = "DIR")]
    pub state_dir: PathBuf,
    /// Only list what is there.
    #[arg(long)]
    pub dry_run: bool,
}

/// What was found, and whether it is gone.
#[derive(Debug, Serialize)]
pub struct Leftovers {
    /// The mark of the state directory; absent where no daemon ever ran on it.
    pub scope: Option<String>,
    /// What there was.
    pub found: Vec<LeftoverItem>,
    /// Whether it was removed.
    pub removed: bool,
}

/// One thing that was found.
#[derive(Debug, Serialize)]
pub struct LeftoverItem {
    /// `process`, `cgroup`, `link`, `table`, `file` or `vm`.
    pub kind: String,
    /// Which.
    pub what: String,
}

/// Prints the report of `enisle gc`.
///
/// # Errors
/// Standard output cannot be written.
pub fn print_leftovers(report: &Leftovers, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(report);
    }
    if report.found.is_empty() {
        return print("nothing is left\n");
    }
    let verb = if report.removed { "removed" } else { "left" };
    let lines: String =
        report.found.iter().map(|item| format!("{verb}  {:<8}{}\n", item.kind, item.what)).collect();
    print(&lines)
}
