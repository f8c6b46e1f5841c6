//! The `enisle` command line.
//!
//! Owns: the definition of every command, what is printed, and the exit codes. Talks to the
//! daemon through `enisle-client` only. Refuses: starting the daemon and building images; those
//! commands are plain data here ([`UpArgs`], [`GcArgs`], [`ImageCommand`]) and the binary carries them out.

mod args;
mod connect;
mod console;
mod context;
mod events;
mod exit;
mod failure;
mod forward_spec;
mod gc;
mod image;
mod listener;
mod manual;
mod net;
mod process;
mod progress;
mod quantity;
mod service;
mod signals;
mod table;
mod terminal;
mod token;
mod transfer;
mod tree;
mod vm;

pub use args::{Cli, Command, DoctorArgs, LogFormat, Parsed, UpArgs, command, parse};
pub use events::EventsArgs;
pub use exit::ExitCode;
pub use failure::Failure;
pub use gc::{GcArgs, LeftoverItem, Leftovers, print_leftovers};
pub use image::{BuildArgs, ImageCommand, ListArgs, ListedImage, print_images};
pub use manual::{ManArgs, completions, man};
pub use service::{ServiceCommand, ServiceInstallArgs, ServiceUninstallArgs};
pub use table::{print, print_json};

use args::{ContextArgs, NetArgs, TokenArgs, VmArgs};

/// Carries out a `vm` command on a runtime of its own and returns the exit code.
///
/// Blocks until the command ends. Errors are printed here.
#[must_use]
pub fn run_vm(cli: &Cli, args: &VmArgs) -> u8 {
    run(cli, async |context| vm::run(context, &args.command).await)
}

/// Carries out a `net` command on a runtime of its own and returns the exit code.
///
/// Blocks until the command ends. Errors are printed here.
#[must_use]
pub fn run_net(cli: &Cli, args: &NetArgs) -> u8 {
    run(cli, async |context| net::run(context, &args.command).await)
}

/// Carries out `enisle events` on a runtime of its own and returns the exit code.
///
/// Blocks until the command ends. Errors are printed here.
#[must_use]
pub fn run_events(cli: &Cli, args: &EventsArgs) -> u8 {
    run(cli, async |context| events::run(context, args).await)
}

/// Carries out an `enisle token` command on a runtime of its own and returns the exit code.
///
/// Blocks until the command ends. Errors are printed here.
#[must_use]
pub fn run_token(cli: &Cli, args: &TokenArgs) -> u8 {
    run(cli, async |context| token::run(context, &args.command).await)
}

/// Carries out an `enisle context` command and returns the exit code. Talks to no daemon.
///
/// Blocks until the command ends. Errors are printed here.
#[must_use]
pub fn run_context(cli: &Cli, args: &ContextArgs) -> u8 {
    context::run(cli.json, cli.api.as_ref(), &args.command).unwrap_or_else(|failure| failure.report(cli.json))
}

fn run(cli: &Cli, work: impl AsyncFnOnce(&vm::Context) -> Result<u8, Failure>) -> u8 {
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return Failure::io("cannot start the runtime", &error).report(cli.json),
    };
    let client = match connect::client(cli.api.clone(), cli.context.as_deref()) {
        Ok(client) => client,
        // No exit code of a process may be mistaken for it.
        Err(failure) if cli.runs_a_process() => return failure.exit(ExitCode::ExecFailed).report(cli.json),
        Err(failure) => return failure.report(cli.json),
    };
    let context = vm::Context { client, json: cli.json };
    let code = match runtime.block_on(work(&context)) {
        Ok(code) => code,
        Err(failure) => failure.report(cli.json),
    };
    // A thread may sit in a read of a terminal that nobody types at; it must not hold us up.
    runtime.shutdown_background();
    code
}
