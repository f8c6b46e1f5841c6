//! `enisle vm exec`.

use super::Context;
use crate::Failure;
use crate::process::{self, Streams};
use crate::quantity::parse_duration;
use crate::table::{print, print_json};
use clap::Args;
use enisle_client::api::StartProcess;
use enisle_client::api::stream::Exec;
use std::time::Duration;

#[derive(Debug, Args)]
#[command(after_help = "\
Standard input, output and error are the process's own and binary-safe; with --tty they are one
terminal. Ctrl-C, SIGTERM, SIGHUP and SIGQUIT reach the process; three within a second end this
program, and with it the process. Ctrl-] ends a session with --tty at a terminal.

The exit code is the process's, or 128+N after signal N; 124 after --timeout, 125 when Enisle
itself failed, 126 when the program cannot be executed, 127 when it was not found.

With --detach the process goes on in the background, whatever becomes of this program and the daemon,
and its number is printed for `enisle vm attach`, `kill`, `wait` and `forget`. Its standard input is
/dev/null, the last 256 KiB of its output are kept, and a VM keeps 64 such processes until they are
forgotten. It does not keep the VM from being idle. A program that is missing is 125 here.

Examples:
  enisle vm exec agents-1 -- uname -a
  enisle vm exec agents-1 --user ubuntu --cwd /tmp --env LANG=C -- make -j4
  enisle vm exec agents-1 -- sh -c 'cat > /root/data' < data
  enisle vm exec agents-1 -t -- top
  enisle vm exec -d agents-1 -- make test")]
pub(crate) struct ExecArgs {
    /// Name of the VM.
    name: String,
    /// User name or number.
    #[arg(long, short, visible_alias = "uid", value_name = "USER", default_value = "root")]
    user: String,
    /// Working directory. Default: the user's home.
    #[arg(long, short = 'w', value_name = "DIR")]
    cwd: Option<String>,
    /// A variable of the environment; may be given several times.
    #[arg(long, short, value_name = "KEY=VALUE", value_parser = parse_env)]
    env: Vec<(String, String)>,
    /// Give the process a terminal.
    #[arg(long, short)]
    tty: bool,
    /// Leave it running in the background and print its number.
    #[arg(long, short, conflicts_with_all = ["tty", "no_stdin"])]
    detach: bool,
    /// Do not read standard input.
    #[arg(long, short = 'n')]
    no_stdin: bool,
    /// Kill the process after this long, as 30s or 2m.
    #[arg(long, value_name = "TIME", value_parser = parse_duration)]
    timeout: Option<Duration>,
    /// The program and its arguments, after --.
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true, value_name = "CMD")]
    command: Vec<String>,
}

pub(super) async fn run(context: &Context, args: &ExecArgs) -> Result<u8, Failure> {
    let timeout_ms = args.timeout.and_then(|limit| u64::try_from(limit.as_millis()).ok());
    if args.detach {
        return detach(context, args, timeout_ms).await;
    }
    let exec = Exec {
        argv: args.command.clone(),
        env: args.env.clone(),
        cwd: args.cwd.clone(),
        user: Some(args.user.clone()),
        tty: args.tty.then(process::tty),
        timeout_ms,
    };
    process::run(&context.client, &args.name, exec, Streams { input: !args.no_stdin, announce: false }).await
}

async fn detach(context: &Context, args: &ExecArgs, timeout_ms: Option<u64>) -> Result<u8, Failure> {
    let start = StartProcess {
        argv: args.command.clone(),
        env: args.env.clone(),
        cwd: args.cwd.clone(),
        user: Some(args.user.clone()),
        timeout_ms,
    };
    let started = context.client.start_process(&args.name, &start).await;
    let process = started.map_err(|e| Failure::of_exec(&e))?;
    if context.json {
        print_json(&process)?
    } else {
        print(&format!("{}\n", process.id))?
    }
    Ok(0)
}

fn parse_env(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() && !text.contains('\0') => {
            Ok((key.to_owned(), value.to_owned()))
        }
        _ => Err("a variable is written KEY=VALUE".into()),
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn variables() {
        assert_eq!(super::parse_env("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert_eq!(super::parse_env("A="), Ok(("A".into(), String::new())));
        for bad in ["", "A", "=b", "A=\0"] {
            assert!(super::parse_env(bad).is_err(), "{bad:?}");
        }
    }
}
