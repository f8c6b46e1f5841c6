//! `enisle vm`: one file a verb.

mod cp;
mod delete;
mod exec;
mod list;
mod logs;
mod new;
mod port_forward;
mod shell;
mod watch;

use crate::Failure;
use clap::Subcommand;
use enisle_client::Client;

/// What every verb gets.
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) json: bool,
}

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum VmCommand {
    /// Make a microVM and print its name.
    New(new::NewArgs),
    /// List the microVMs.
    #[command(visible_alias = "ls")]
    List(list::ListArgs),
    /// Stop microVMs and remove everything that was theirs.
    #[command(visible_alias = "rm")]
    Delete(delete::DeleteArgs),
    /// Show the serial console of a microVM.
    Logs(logs::LogsArgs),
    /// Run a command in a microVM.
    Exec(exec::ExecArgs),
    /// Copy files and directories to, from and between microVMs.
    Cp(cp::CpArgs),
    /// Open a shell in a microVM.
    Shell(shell::ShellArgs),
    /// Forward local ports and sockets to a microVM.
    PortForward(port_forward::PortForwardArgs),
    /// Print what changes among the files of a microVM.
    Watch(watch::WatchArgs),
}

pub(crate) async fn run(context: &Context, command: &VmCommand) -> Result<u8, Failure> {
    match command {
        VmCommand::New(args) => new::run(context, args).await,
        VmCommand::List(args) => list::run(context, args).await,
        VmCommand::Delete(args) => delete::run(context, args).await,
        VmCommand::Logs(args) => logs::run(context, args).await,
        VmCommand::Exec(args) => exec::run(context, args).await,
        VmCommand::Cp(args) => cp::run(context, args).await,
        VmCommand::Shell(args) => shell::run(context, args).await,
        VmCommand::PortForward(args) => port_forward::run(context, args).await,
        VmCommand::Watch(args) => watch::run(context, args).await,
    }
}
