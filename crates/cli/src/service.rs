//! `enisle service`: the command line. Owns its options; refuses to carry it out, which is the binary's.

use clap::{Args, Subcommand};
use std::path::PathBuf;

/// `enisle service …`.
#[derive(Debug, Subcommand)]
pub enum ServiceCommand {
    /// Write the systemd unit of the daemon, and tell systemd of it.
    Install(ServiceInstallArgs),
    /// Stop and disable the service, and remove the unit that `install` wrote.
    Uninstall(ServiceUninstallArgs),
}

/// `enisle service install`.
#[derive(Debug, Args)]
#[command(after_help = "\
Writes /etc/systemd/system/enisle.service, hardened, for this program and this file; makes the group
enisle, whose members may use the daemon's socket, where there is none. A unit that was changed by hand
is not written over without --force. Needs root and a running systemd; --print needs neither.

Examples:
  sudo enisle service install --now
  sudo enisle service install --config /etc/enisle/lab.yaml --keep-vms
  enisle service install --print")]
pub struct ServiceInstallArgs {
    /// The configuration file.
    #[arg(long, default_value = "/etc/enisle/enisle.yaml", value_name = "FILE")]
    pub config: PathBuf,
    /// Start it now, and at every boot.
    #[arg(long)]
    pub now: bool,
    /// A stop of the service leaves its microVMs running for the next start.
    #[arg(long)]
    pub keep_vms: bool,
    /// Only print the unit.
    #[arg(long, conflicts_with_all = ["now", "force"])]
    pub print: bool,
    /// Write over a unit that was changed by hand.
    #[arg(long)]
    pub force: bool,
}

/// `enisle service uninstall`.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  sudo enisle service uninstall")]
pub struct ServiceUninstallArgs {
    /// Remove a unit that was changed by hand, too.
    #[arg(long)]
    pub force: bool,
}
