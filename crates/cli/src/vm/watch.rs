//! `enisle vm watch`.

use super::Context;
use crate::Failure;
use crate::table::{print, print_json_line, visible};
use clap::Args;
use enisle_client::api::WatchEvent;

#[derive(Debug, Args)]
#[command(after_help = "\
Prints a line for each change until Ctrl-C, or until PATH itself is gone: `watching` once it has begun, then created,
modified (a file that was open for writing was closed), removed and moved, with paths relative to PATH and a slash
behind those of directories. `dropped` says that some were missed. With --recursive at most 4096 directories, of
one file system; symbolic links below PATH are not followed. With --json each line is one event of the API.

Examples:
  enisle vm watch agents-1 /root/project --recursive
  enisle vm watch agents-1 /root/out --json | jq -r --unbuffered 'select(.type == \"modified\") | .path'")]
pub(crate) struct WatchArgs {
    /// Name of the VM.
    name: String,
    /// A directory or file in the VM, absolute or relative to /root.
    path: String,
    /// Watch the directories below it too, and those that come.
    #[arg(long, short)]
    recursive: bool,
}

pub(super) async fn run(context: &Context, args: &WatchArgs) -> Result<u8, Failure> {
    let mut changes = context.client.watch(&args.name, &args.path, args.recursive).await?;
    while let Some(change) = changes.next().await? {
        if context.json {
            print_json_line(&change)?;
        } else {
            print(&format!("{}\n", visible(&line(&change))))?;
        }
    }
    Ok(0)
}

fn line(change: &WatchEvent) -> String {
    let slash = |directory: &bool| if *directory { "/" } else { "" };
    match change {
        WatchEvent::Watching {} => "watching".to_owned(),
        WatchEvent::Created { path, directory, .. } => format!("created {path}{}", slash(directory)),
        WatchEvent::Modified { path, directory, .. } => format!("modified {path}{}", slash(directory)),
        WatchEvent::Removed { path, directory, .. } => format!("removed {path}{}", slash(directory)),
        WatchEvent::Moved { from, to, directory, .. } => {
            format!("moved {from}{0} -> {to}{0}", slash(directory))
        }
        WatchEvent::Unwatched { path, reason, .. } => format!("unwatched {path}/: {reason}"),
        WatchEvent::Dropped {} => "dropped: some changes were missed".to_owned(),
        _ => "something that this program is too old for; see --json".to_owned(),
    }
}
