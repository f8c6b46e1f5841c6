//! `enisle vm pause` and `enisle vm resume`.

use super::Context;
use crate::Failure;
use crate::table::{print, print_json};
use clap::Args;
use enisle_client::api::Vm;
use std::collections::BTreeSet;

#[derive(Debug, Args)]
#[command(after_help = "\
The guest's processors stand still; its memory, its disk and its connections stay. What is asked of
it meanwhile is refused, open sessions wait. Its --ttl goes on, its --idle-timeout does not count.
One that is paused already is left so. All names are tried; the exit code is that of the first failure.

Examples:
  enisle vm pause agents-1 agents-2")]
pub(crate) struct PauseArgs {
    /// Names of the VMs.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The guest's clock has gone on meanwhile: it sees a jump.
One that runs already is left so. All names are tried; the exit code is that of the first failure.

Examples:
  enisle vm resume agents-1 agents-2")]
pub(crate) struct ResumeArgs {
    /// Names of the VMs.
    #[arg(value_name = "NAME", required = true)]
    names: Vec<String>,
}

pub(super) async fn pause(context: &Context, args: &PauseArgs) -> Result<u8, Failure> {
    halt(context, &args.names, true).await
}

pub(super) async fn resume(context: &Context, args: &ResumeArgs) -> Result<u8, Failure> {
    halt(context, &args.names, false).await
}

/// One after the other: each takes milliseconds.
async fn halt(context: &Context, names: &[String], paused: bool) -> Result<u8, Failure> {
    let names: BTreeSet<&String> = names.iter().collect();
    let mut halted: Vec<Vm> = Vec::new();
    let mut first = 0;
    for name in names {
        let asked = match paused {
            true => context.client.pause_vm(name).await,
            false => context.client.resume_vm(name).await,
        };
        match asked {
            Ok(vm) => {
                if !context.json {
                    print(&format!("{name}\n"))?;
                }
                halted.push(vm);
            }
            Err(error) => {
                let failure = Failure::from(error);
                failure.report(context.json);
                first = if first == 0 { failure.exit_code() } else { first };
            }
        }
    }
    if context.json {
        print_json(&halted)?;
    }
    Ok(first)
}
