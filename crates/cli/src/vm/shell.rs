//! `enisle vm shell`.

use super::Context;
use crate::Failure;
use crate::process::{self, Streams};
use crate::terminal;
use clap::Args;
use enisle_client::api::stream::Exec;

#[derive(Debug, Args)]
#[command(after_help = "\
Ctrl-] disconnects, which ends the shell. The terminal is put back as it was however this ends.
When standard input is no terminal the shell gets none either and reads its commands from there.

Examples:
  enisle vm shell agents-1
  enisle vm shell agents-1 --user ubuntu
  enisle vm shell agents-1 < commands.sh")]
pub(crate) struct ShellArgs {
    /// Name of the VM.
    name: String,
    /// User name or number.
    #[arg(long, short, visible_alias = "uid", value_name = "USER", default_value = "root")]
    user: String,
}

pub(super) async fn run(context: &Context, args: &ShellArgs) -> Result<u8, Failure> {
    let exec = Exec {
        user: Some(args.user.clone()),
        tty: terminal::stdin_is_terminal().then(process::tty),
        ..Exec::default()
    };
    process::run(&context.client, &args.name, exec, Streams { input: true, announce: true }).await
}
