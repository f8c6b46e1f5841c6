//! `enisle up`: from the command line's data to the daemon's.

use enisle_cli::{ExitCode, Failure, LogFormat, UpArgs};
use enisle_daemon::{FaultPlan, UpOptions, VmsPolicy};

/// Runs the daemon until it is asked to stop and returns the exit code. Blocks.
///
/// `json` makes log lines JSON too: the daemon has one format for everything it says.
pub(crate) fn run(args: &UpArgs, json: bool) -> u8 {
    let faults = match FaultPlan::from_env() {
        Ok(faults) => faults,
        Err(error) => return Failure::new("usage", ExitCode::Usage, error.to_string()).report(json),
    };
    let log_format = match args.log_format {
        LogFormat::Human if !json => enisle_daemon::LogFormat::Human,
        LogFormat::Human | LogFormat::Json => enisle_daemon::LogFormat::Json,
    };
    let options = UpOptions {
        file: args.file.clone(),
        check: args.check,
        vms: VmsPolicy { keep: args.keep_vms, stop: args.stop_vms },
        insecure_loopback: args.insecure_loopback,
        log_format,
        log_level: args.log_level.clone(),
        faults,
    };
    enisle_daemon::run(&options) as u8
}
