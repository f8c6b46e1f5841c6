//! `enisle-lab`: the world of the test kit as a command, and the table of what a guest reaches.
//!
//! Owns: `up` (build a world and hold it), `exec` (run a command inside it), `probe` (the table of
//! `./quickstart`). Refuses: starting or configuring the daemon; touching the machine's network.

mod guest;
mod state;
mod table;
mod targets;

use std::ffi::OsString;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Command, ExitCode};

use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};

use crate::state::State;

#[derive(Parser)]
#[command(version, about = "A small Internet, a LAN and a host, made of network namespaces")]
struct Cli {
    #[command(subcommand)]
    action: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Build a world and hold it until SIGTERM, SIGINT, or until a pipe on stdin closes
    Up {
        /// Where to describe it; written when everything in it answers, removed at the end
        #[arg(long, value_name = "FILE")]
        state: PathBuf,
    },
    /// Run a command in one of its namespaces; only the network is another
    Exec {
        /// What `up` wrote
        #[arg(long, value_name = "FILE")]
        state: PathBuf,
        /// host, internet or lan
        namespace: String,
        /// The command
        #[arg(last = true, required = true)]
        command: Vec<OsString>,
    },
    /// Show what a guest reaches and what is refused, each target with a positive control.
    /// Exits with 1 when a row is wrong or could not be decided.
    Probe(ProbeArgs),
}

/// What `probe` is told.
#[derive(Args)]
struct ProbeArgs {
    /// What `up` wrote; the daemon runs in that world's host namespace
    #[arg(long, value_name = "FILE", required_unless_present = "no_lab")]
    state: Option<PathBuf>,
    /// No world: take targets from this machine, and leave out what nothing here can control
    #[arg(long, conflicts_with = "state")]
    no_lab: bool,
    /// The enisle binary; finds its daemon by ENISLE_API
    #[arg(long, value_name = "PATH", default_value = "enisle")]
    enisle: PathBuf,
    /// The microVM to probe from
    #[arg(long, value_name = "NAME")]
    vm: String,
    /// Another microVM, which must not be reached
    #[arg(long, value_name = "NAME")]
    sibling: Option<String>,
    /// The machine in the `drop` network; without a world it needs a TCP port
    #[arg(long, value_name = "ADDR[:PORT]")]
    drop: Option<String>,
    /// A TCP address the daemon's API listens on, if it does
    #[arg(long, value_name = "ADDR:PORT")]
    api: Option<std::net::SocketAddrV4>,
    /// Print the rows as JSON instead of a table
    #[arg(long)]
    json: bool,
}

fn main() -> ExitCode {
    match run(Cli::parse().action) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("enisle-lab: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn run(action: Action) -> anyhow::Result<ExitCode> {
    match action {
        Action::Up { state } => state::hold(&state).map(|()| ExitCode::SUCCESS),
        Action::Exec { state, namespace, command } => {
            let ns = State::read(&state)?.namespace(&namespace)?;
            // This process has one thread still and becomes the command.
            ns.enter()?;
            let error = Command::new(&command[0]).args(&command[1..]).exec();
            Err(error).with_context(|| format!("cannot run {}", command[0].display()))
        }
        Action::Probe(args) => table::probe(&args),
    }
}
