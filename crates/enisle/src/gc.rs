//! `enisle gc`: from the command line's data to the daemon's sweep, and back to people.

use enisle_cli::{ExitCode, Failure, GcArgs, LeftoverItem, Leftovers, print_leftovers};
use enisle_daemon::gc::{self, GcError};

/// Lists or removes what is left and returns the exit code. Blocks for as long as processes die.
pub(crate) fn run(args: &GcArgs, json: bool) -> u8 {
    let done = gc::sweep(&args.state_dir, args.dry_run).map_err(|error| failure(&error)).and_then(|report| {
        let found = report.found.into_iter();
        let found = found.map(|item| LeftoverItem { kind: item.kind.to_owned(), what: item.what }).collect();
        print_leftovers(&Leftovers { scope: report.scope, found, removed: report.removed }, json)
    });
    done.map_or_else(|failure| failure.report(json), |()| ExitCode::Success as u8)
}

fn failure(error: &GcError) -> Failure {
    let exit = if error.is_running() { ExitCode::Conflict } else { ExitCode::Failed };
    let mut detail = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        detail.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    Failure::new("gc", exit, detail)
}
