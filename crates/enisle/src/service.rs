//! `enisle service`: from the command line's data to the unit's file, and to systemd.

use enisle_cli::{ExitCode, Failure, ServiceCommand, ServiceInstallArgs, ServiceUninstallArgs};
use enisle_daemon::service::{self, ServiceError, UNIT_PATH, Written};
use std::path::Path;
use std::process::Command;

/// Carries the command out and returns the exit code. Blocks until systemd has answered.
pub(crate) fn run(command: &ServiceCommand, json: bool) -> u8 {
    let done = match command {
        ServiceCommand::Install(args) => install(args),
        ServiceCommand::Uninstall(args) => uninstall(args),
    };
    done.map_or_else(|failure| failure.report(json), |()| ExitCode::Success as u8)
}

fn install(args: &ServiceInstallArgs) -> Result<(), Failure> {
    let program = std::env::current_exe().map_err(|e| Failure::io("cannot find this program's file", &e))?;
    let unit = service::unit(&program, &args.config, args.keep_vms).map_err(|e| failure(&e))?;
    if args.print {
        return enisle_cli::print(&unit);
    }
    may_install()?;
    if !args.config.exists() {
        let detail = format!("there is no file {}", args.config.display());
        let hint = "write it first (the package has an example), or name another with --config";
        return Err(Failure::new("service", ExitCode::NotFound, detail).hint(hint));
    }
    let written = service::write(Path::new(UNIT_PATH), &unit, args.force).map_err(|e| failure(&e))?;
    if !service::has_group() {
        call("groupadd", &["--system", "enisle"])?;
    }
    call("systemctl", &["daemon-reload"])?;
    if args.now {
        call("systemctl", &["enable", "--now", "enisle.service"])?;
    }
    let what = if written == Written::Anew { "written" } else { "up to date" };
    enisle_cli::print(&format!("{UNIT_PATH}: {what}\n"))
}

fn uninstall(args: &ServiceUninstallArgs) -> Result<(), Failure> {
    may_install()?;
    if !Path::new(UNIT_PATH).exists() {
        return enisle_cli::print(&format!("{UNIT_PATH}: there is none\n"));
    }
    // By systemd's word the unit must be there to be disabled: that it may go is asked first.
    service::may_replace(Path::new(UNIT_PATH), args.force).map_err(|e| failure(&e))?;
    call("systemctl", &["disable", "--now", "enisle.service"])?;
    service::remove(Path::new(UNIT_PATH), args.force).map_err(|e| failure(&e))?;
    call("systemctl", &["daemon-reload"])?;
    enisle_cli::print(&format!("{UNIT_PATH}: removed\n"))
}

fn may_install() -> Result<(), Failure> {
    if !service::is_root() {
        let hint = "sudo enisle service …; `enisle service install --print` shows the unit";
        return Err(Failure::new("service", ExitCode::Failed, "a service is installed by root").hint(hint));
    }
    // sd_booted(3).
    if !Path::new("/run/systemd/system").exists() {
        let hint = "`enisle service install --print` shows the unit; without systemd run `enisle up FILE`";
        let detail = "systemd does not run on this machine";
        return Err(Failure::new("service", ExitCode::Failed, detail).hint(hint));
    }
    Ok(())
}

fn call(program: &str, words: &[&str]) -> Result<(), Failure> {
    let line = format!("{program} {}", words.join(" "));
    let output = Command::new(program).args(words).output();
    let output = output.map_err(|error| Failure::io(&format!("cannot run `{line}`"), &error))?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
    Err(Failure::new("service", ExitCode::Failed, format!("`{line}` failed: {said}")))
}

fn failure(error: &ServiceError) -> Failure {
    let mut detail = error.to_string();
    if let Some(cause) = std::error::Error::source(error) {
        detail.push_str(&format!(": {cause}"));
    }
    match error {
        ServiceError::Path { .. } => Failure::new("service", ExitCode::Usage, detail),
        ServiceError::Changed(_) => {
            let hint = "--force all the same; `systemctl edit enisle` keeps changes in a file of their own";
            Failure::new("service", ExitCode::Conflict, detail).hint(hint)
        }
        ServiceError::Io { .. } => Failure::new("service", ExitCode::Failed, detail),
    }
}
