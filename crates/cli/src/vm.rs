//! `enisle vm`: one file a verb.

mod attach;
mod cp;
mod delete;
mod exec;
mod halt;
mod list;
mod logs;
mod new;
mod port_forward;
mod processes;
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
    /// Halt the processors of microVMs; their memory stays.
    Pause(halt::PauseArgs),
    /// Let paused microVMs run on.
    Resume(halt::ResumeArgs),
    /// Show the serial console of a microVM.
    Logs(logs::LogsArgs),
    /// Run a command in a microVM.
    Exec(exec::ExecArgs),
    /// List the background processes of a microVM.
    Ps(processes::PsArgs),
    /// Show the output of a background process until it ends.
    Attach(attach::AttachArgs),
    /// Send a signal to a background process.
    Kill(processes::KillArgs),
    /// Wait for the end of a background process.
    Wait(processes::WaitArgs),
    /// Kill background processes that run, and forget them with their output.
    Forget(processes::ForgetArgs),
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
        VmCommand::Pause(args) => halt::pause(context, args).await,
        VmCommand::Resume(args) => halt::resume(context, args).await,
        VmCommand::Logs(args) => logs::run(context, args).await,
        VmCommand::Exec(args) => exec::run(context, args).await,
        VmCommand::Ps(args) => processes::ps(context, args).await,
        VmCommand::Attach(args) => attach::run(context, args).await,
        VmCommand::Kill(args) => processes::kill(context, args).await,
        VmCommand::Wait(args) => processes::wait(context, args).await,
        VmCommand::Forget(args) => processes::forget(context, args).await,
        VmCommand::Cp(args) => cp::run(context, args).await,
        VmCommand::Shell(args) => shell::run(context, args).await,
        VmCommand::PortForward(args) => port_forward::run(context, args).await,
        VmCommand::Watch(args) => watch::run(context, args).await,
    }
}
