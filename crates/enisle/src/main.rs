//! The one binary. Owns nothing but the choice of who carries out a command: the command line,
//! the daemon or the image builder.

mod doctor;
mod gc;
mod image;
mod service;
mod up;

use enisle_cli::{Cli, Command, Parsed};
use std::process::ExitCode;

fn main() -> ExitCode {
    let code = match enisle_cli::parse(std::env::args_os().collect()) {
        Parsed::Run(cli) => run(&cli),
        Parsed::Done(code) => code,
    };
    ExitCode::from(code)
}

fn run(cli: &Cli) -> u8 {
    match &cli.command {
        Command::Up(args) => up::run(args, cli.json),
        Command::Doctor(args) => doctor::run(args, cli.json),
        Command::Vm(args) => enisle_cli::run_vm(cli, args),
        Command::Net(args) => enisle_cli::run_net(cli, args),
        Command::Events(args) => enisle_cli::run_events(cli, args),
        Command::Token(args) => enisle_cli::run_token(cli, args),
        Command::Context(args) => enisle_cli::run_context(cli, args),
        Command::Gc(args) => gc::run(args, cli.json),
        Command::Image(command) => image::run(command, cli.json),
        Command::Service(command) => service::run(command, cli.json),
        Command::Schema => match enisle_cli::print_json(&enisle_daemon::config::schema()) {
            Ok(()) => 0,
            Err(failure) => failure.report(cli.json),
        },
        Command::Completions { shell } => enisle_cli::completions(*shell, cli.json),
        Command::Man(args) => enisle_cli::man(args, cli.json),
    }
}
