//! `enisle net`: one file a verb.

mod routes;
mod set;
mod show;
mod verify;
mod why;

use crate::Failure;
use crate::vm::Context;
use clap::Subcommand;

/// The verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum NetCommand {
    /// Show what a microVM or group may reach, and what was refused.
    Show(show::ShowArgs),
    /// Replace the lists of a microVM or group while it runs.
    Set(set::SetArgs),
    /// Explain whether a microVM may talk to a destination.
    Why(why::WhyArgs),
    /// Print the commands that make microVMs on bridges known to machines of the LAN.
    Routes(routes::RoutesArgs),
    /// Test from inside a guest that it reaches what its policy allows and nothing else.
    Verify(verify::VerifyArgs),
}

pub(crate) async fn run(context: &Context, command: &NetCommand) -> Result<u8, Failure> {
    match command {
        NetCommand::Show(args) => show::run(context, args).await,
        NetCommand::Set(args) => set::run(context, args).await,
        NetCommand::Why(args) => why::run(context, args).await,
        NetCommand::Routes(args) => routes::run(context, args).await,
        NetCommand::Verify(args) => verify::run(context, args).await,
    }
}

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vm,
    Group,
}

/// Looks a name up among the VMs and the groups. With `group` only among the groups.
async fn kind_of(context: &Context, name: &str, group: bool) -> Result<Kind, Failure> {
    if group {
        return Ok(Kind::Group);
    }
    let is_vm = context.client.vms().await?.iter().any(|vm| vm.name == name);
    let is_group = context.client.groups().await?.iter().any(|group| group.name == name);
    match (is_vm, is_group) {
        (true, true) => Err(Failure::usage(format!("{name} is a VM and a group"))
            .hint("--group means the group; to mean the VM, give it another name")),
        (false, true) => Ok(Kind::Group),
        // The daemon says what there is none of.
        _ => Ok(Kind::Vm),
    }
}
