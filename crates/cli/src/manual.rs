//! Completions and manual pages, made from the one definition of the command line.

use crate::args;
use crate::exit::ExitCode;
use crate::failure::Failure;
use crate::table::print;
use clap::Args;
use std::path::PathBuf;

/// `enisle man`.
#[derive(Debug, Args)]
pub struct ManArgs {
    /// An existing directory.
    pub dir: PathBuf,
}

/// Prints the completion script for a shell; returns the exit code.
#[must_use]
pub fn completions(shell: clap_complete::Shell, json: bool) -> u8 {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut args::command(), "enisle", &mut script);
    match print(&String::from_utf8_lossy(&script)) {
        Ok(()) => ExitCode::Success as u8,
        Err(failure) => failure.report(json),
    }
}

/// Writes a manual page for every command into a directory; returns the exit code.
#[must_use]
pub fn man(args: &ManArgs, json: bool) -> u8 {
    // Hidden `help` commands would make a page each for nothing.
    let command = args::command().disable_help_subcommand(true);
    match clap_mangen::generate_to(command, &args.dir) {
        Ok(()) => ExitCode::Success as u8,
        Err(error) => Failure::io(&format!("cannot write manual pages to {}", args.dir.display()), &error)
            .hint("name an existing directory that you may write to")
            .report(json),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_command_has_a_page_and_the_scripts_know_the_verbs() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(man(&ManArgs { dir: dir.path().into() }, false), 0);
        for page in ["enisle.1", "enisle-up.1", "enisle-vm-exec.1", "enisle-vm-port-forward.1"] {
            let text = std::fs::read_to_string(dir.path().join(page)).unwrap();
            assert!(text.contains(".SH"), "{page}");
        }
        for shell in [clap_complete::Shell::Bash, clap_complete::Shell::Zsh, clap_complete::Shell::Fish] {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut args::command(), "enisle", &mut script);
            assert!(String::from_utf8(script).unwrap().contains("port-forward"), "{shell}");
        }
    }
}
