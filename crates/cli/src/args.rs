//! The command line as data: every command, option and help text. Completions and manual pages
//! come from here. Owns parsing; refuses to do anything.

use crate::context::ContextCommand;
use crate::events::EventsArgs;
use crate::exit::{self, ExitCode};
use crate::failure::Failure;
use crate::gc::GcArgs;
use crate::image::ImageCommand;
use crate::manual::ManArgs;
use crate::net::NetCommand;
use crate::service::ServiceCommand;
use crate::token::TokenCommand;
use crate::vm::VmCommand;
use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};
use enisle_client::Endpoint;
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

/// microVMs that reach the Internet and nothing else.
#[derive(Debug, Parser)]
#[command(name = "enisle", version, after_help = exit::HELP, max_term_width = 100)]
pub struct Cli {
    /// Where the daemon listens: unix:PATH or https://HOST:PORT. The context in use, else
    /// unix:/run/enisle/api.sock, without it.
    #[arg(long, global = true, env = "ENISLE_API", hide_env_values = true, value_name = "ADDRESS")]
    pub api: Option<Endpoint>,
    /// The daemon of this context (`enisle context`).
    #[arg(long, global = true, env = "ENISLE_CONTEXT", hide_env_values = true, value_name = "NAME")]
    pub context: Option<String>,
    /// Print JSON instead of text, errors included.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

impl Cli {
    /// Whether its exit code is that of a process in a guest.
    pub(crate) fn runs_a_process(&self) -> bool {
        match &self.command {
            Command::Vm(args) => matches!(
                args.command,
                VmCommand::Exec(_) | VmCommand::Shell(_) | VmCommand::Attach(_) | VmCommand::Wait(_)
            ),
            _ => false,
        }
    }
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Run the daemon in the foreground with the VMs that a file asks for.
    Up(UpArgs),
    /// Check this host: what keeps microVMs from working, and the command that mends it.
    Doctor(DoctorArgs),
    /// Make, use and remove microVMs.
    Vm(VmArgs),
    /// Show, change, explain and test who microVMs may talk to.
    Net(NetArgs),
    /// Show what happened to microVMs and policies, and follow it.
    Events(EventsArgs),
    /// Make, list and revoke tokens for the daemon's API over TCP.
    Token(TokenArgs),
    /// Keep the addresses and tokens of several daemons, and choose one.
    Context(ContextArgs),
    /// Remove what a daemon that is not running has left on this machine.
    Gc(GcArgs),
    /// Build and list guest images.
    #[command(subcommand)]
    Image(ImageCommand),
    /// Install the daemon as a systemd service, and take it away.
    #[command(subcommand)]
    Service(ServiceCommand),
    /// Print the JSON schema of the configuration file.
    #[command(after_help = "Example:\n  enisle schema > enisle.schema.json")]
    Schema,
    /// Print a completion script for a shell.
    #[command(after_help = "Example:\n  enisle completions bash > /etc/bash_completion.d/enisle")]
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    #[command(after_help = "Example:\n  enisle man /usr/local/share/man/man1")]
    Man(ManArgs),
}

/// `enisle up`.
#[derive(Debug, Args)]
#[command(after_help = "\
Runs until SIGTERM or Ctrl-C, then stops its VMs and removes everything it made; with --keep-vms it
leaves them running. VMs that a daemon left running, or whose daemon was killed, are adopted by the
next start; --stop-vms removes them instead. Logs go to standard error; --json means --log-format
json. Ends with 0 when it was stopped, 1 when it could not start or not remove everything, 2 when the
file is wrong; a wrong file changes nothing on the machine.

Examples:
  sudo enisle up
  sudo enisle up agents.yaml --log-format json
  sudo enisle up --keep-vms
  enisle up agents.yaml --check")]
pub struct UpArgs {
    /// The configuration file.
    #[arg(default_value = "./enisle.yaml")]
    pub file: PathBuf,
    /// Only say what is wrong with the file; start nothing.
    #[arg(long)]
    pub check: bool,
    /// When asked to stop, leave the VMs running for the next start (an upgrade of Enisle).
    #[arg(long)]
    pub keep_vms: bool,
    /// Remove VMs that an earlier run left running, instead of adopting them.
    #[arg(long)]
    pub stop_vms: bool,
    /// Serve the API also on this loopback address, without TLS and without tokens: every process of every
    /// user on this host may then do everything.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub insecure_loopback: Option<SocketAddr>,
    /// How log lines look.
    #[arg(long, value_enum, default_value_t = LogFormat::Human)]
    pub log_format: LogFormat,
    /// error, warn, info, debug or trace; also per module, as in `info,enisle_net=debug`.
    #[arg(long, env = "ENISLE_LOG", hide_env_values = true, default_value = "info", value_name = "LEVEL")]
    pub log_level: String,
}

/// `enisle doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Changes nothing: what is tried is tried in a network namespace that is thrown away. Needs no daemon, and
root for the kernel, the firewall and the probe guest. Ends with 0 when microVMs work here, also with
warnings, and with 1 when they would not.

Examples:
  sudo enisle doctor
  sudo enisle doctor agents.yaml --json
  sudo enisle doctor --quick")]
pub struct DoctorArgs {
    /// Check the host for this configuration too; ./enisle.yaml where there is one.
    pub file: Option<PathBuf>,
    /// Boot no probe guest, which takes some seconds.
    #[arg(long)]
    pub quick: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Human,
    /// One JSON object a line.
    Json,
}

/// `enisle vm …`.
#[derive(Debug, Args)]
pub struct VmArgs {
    /// What to do with VMs.
    #[command(subcommand)]
    pub(crate) command: VmCommand,
}

/// `enisle net …`.
#[derive(Debug, Args)]
pub struct NetArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: NetCommand,
}

/// `enisle token …`.
#[derive(Debug, Args)]
pub struct TokenArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: TokenCommand,
}

/// `enisle context …`.
#[derive(Debug, Args)]
pub struct ContextArgs {
    /// What to do.
    #[command(subcommand)]
    pub(crate) command: ContextCommand,
}

/// The definition of the whole command line.
#[must_use]
pub fn command() -> clap::Command {
    Cli::command()
}

/// What a command line turned out to be.
#[derive(Debug)]
pub enum Parsed {
    /// A command to carry out.
    Run(Box<Cli>),
    /// All is said (`--help`, `--version`, a usage error); end with this exit code.
    Done(u8),
}

/// Reads a command line, the program's name first. Help and usage errors are printed here.
///
/// A usage error of `vm exec`, `vm shell`, `vm attach` and `vm wait` ends with 125, so that no exit code of a process is
/// mistaken for it; of any other command with 2.
#[must_use]
pub fn parse(words: Vec<OsString>) -> Parsed {
    let (json, exec) = look_at(&words);
    let error = match read(words) {
        Ok(cli) => return Parsed::Run(Box::new(cli)),
        Err(error) => error,
    };
    if !error.use_stderr() {
        // Help and version; a reader that went away has seen enough.
        let _ = error.print();
        return Parsed::Done(ExitCode::Success as u8);
    }
    let code = if exec { ExitCode::ExecFailed } else { ExitCode::Usage };
    if json {
        let rendered = error.render().to_string();
        let detail = rendered.lines().next().unwrap_or_default().trim_start_matches("error: ");
        return Parsed::Done(Failure::usage(detail).hint("see --help").exit(code).report(true));
    }
    let _ = error.print();
    Parsed::Done(code as u8)
}

fn read(words: Vec<OsString>) -> Result<Cli, clap::Error> {
    let matches = command().try_get_matches_from(words)?;
    let mut cli = Cli::from_arg_matches(&matches)?;
    let typed = |name| matches.value_source(name) == Some(ValueSource::CommandLine);
    match (typed("api"), typed("context")) {
        (true, true) => {
            let message = "--api and --context both name a daemon; give one of them";
            return Err(command().error(ErrorKind::ArgumentConflict, message));
        }
        // What is typed goes before the environment; of the environment the address does.
        (false, true) => cli.api = None,
        _ if cli.api.is_some() => cli.context = None,
        _ => {}
    }
    // The daemon would not listen there: silence about it would be a lie. From the environment
    // it is meant for other commands.
    if matches!(cli.command, Command::Up(_)) && (typed("api") || typed("context")) {
        let message =
            "--api and --context say where to find a daemon; where it listens is `config.api` in the file";
        return Err(command().error(ErrorKind::ArgumentConflict, message));
    }
    Ok(cli)
}

/// What an unparsable command line was probably meant to be: (`--json`, `vm exec` or `vm shell`).
fn look_at(words: &[OsString]) -> (bool, bool) {
    let own: Vec<&str> =
        words.iter().skip(1).map_while(|word| word.to_str().filter(|word| *word != "--")).collect();
    let verbs: Vec<&str> = own.iter().copied().filter(|word| !word.starts_with('-')).collect();
    let exec = verbs.windows(2).any(|pair| matches!(pair, ["vm", "exec" | "shell" | "attach" | "wait"]));
    (own.contains(&"--json"), exec)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_definition_is_sound() {
        command().debug_assert();
    }

    fn words(line: &str) -> Vec<OsString> {
        line.split(' ').map(OsString::from).collect()
    }

    #[test]
    fn usage_errors_of_exec_are_not_mistaken_for_the_processes_status() {
        assert!(matches!(parse(words("enisle vm exec")), Parsed::Done(125)));
        assert!(matches!(parse(words("enisle --api unix:/x vm shell --nonsense")), Parsed::Done(125)));
        assert!(matches!(parse(words("enisle vm delete")), Parsed::Done(2)));
        assert!(matches!(parse(words("enisle vm list --json nonsense")), Parsed::Done(2)));
        assert!(matches!(parse(words("enisle up --api unix:/x")), Parsed::Done(2)));
        assert!(matches!(parse(words("enisle up --context x")), Parsed::Done(2)));
        assert!(matches!(parse(words("enisle --context x vm list --api unix:/x")), Parsed::Done(2)));
    }

    #[test]
    fn the_documentation_has_every_command_and_exit_code() {
        let text = include_str!("../../../docs/cli.md");
        let command = command();
        let own = command.get_subcommands().map(|verb| format!("`enisle {}", verb.get_name()));
        let vm = command.find_subcommand("vm").unwrap();
        let verbs = vm.get_subcommands().map(|verb| format!("`enisle vm {}", verb.get_name()));
        let net = command.find_subcommand("net").unwrap();
        let net = net.get_subcommands().map(|verb| format!("`enisle net {}", verb.get_name()));
        let of = |noun: &'static str| {
            let verbs = command.find_subcommand(noun).unwrap().get_subcommands();
            verbs.map(move |verb| format!("`enisle {noun} {}", verb.get_name()))
        };
        for verb in own.chain(verbs).chain(net).chain(of("token")).chain(of("context")) {
            assert!(text.contains(&verb), "{verb}");
        }
        for code in [0, 1, 2, 3, 4, 5, 124, 125, 126, 127, 141] {
            assert!(text.contains(&format!("\n| {code} | ")), "{code}");
        }
    }

    #[test]
    fn json_after_the_dashes_belongs_to_the_guest() {
        assert_eq!(look_at(&words("enisle vm exec a -- ls --json")), (false, true));
        assert_eq!(look_at(&words("enisle vm exec --json a -- ls")), (true, true));
        let Parsed::Run(cli) = parse(words("enisle vm exec a -- ls --json")) else {
            panic!("does not parse")
        };
        assert!(!cli.json);
        let Parsed::Run(cli) = parse(words("enisle vm exec a ls --json -l")) else {
            panic!("does not parse")
        };
        assert!(!cli.json, "everything after the program is the program's");
    }
}
