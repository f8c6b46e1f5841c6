//! `enisle vm delete`.

use super::Context;
use crate::Failure;
use crate::table::{print, print_json};
use clap::Args;
use serde::Serialize;
use std::collections::BTreeSet;
use std::sync::Arc;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

/// Removals asked for at the same time; the daemon paces the kernel's share itself.
const AT_ONCE: usize = 8;

#[derive(Debug, Args)]
#[command(after_help = "\
All names are tried; the exit code is that of the first failure.

Examples:
  enisle vm delete agents-1
  enisle vm delete agents-1 agents-2
  enisle vm delete --all --group agents")]
pub(crate) struct DeleteArgs {
    /// Names of the VMs.
    #[arg(value_name = "NAME", required_unless_present = "all", conflicts_with = "all")]
    names: Vec<String>,
    /// Every VM of the daemon.
    #[arg(long)]
    all: bool,
    /// With --all: only this group's.
    #[arg(long, requires = "all", conflicts_with = "names")]
    group: Option<String>,
}

#[derive(Debug, Default, Serialize)]
struct Report {
    deleted: Vec<String>,
    failed: Vec<Failed>,
}

#[derive(Debug, Serialize)]
struct Failed {
    name: String,
    error: Failure,
}

pub(super) async fn run(context: &Context, args: &DeleteArgs) -> Result<u8, Failure> {
    let names = if args.all {
        all(context, args.group.as_deref()).await?
    } else {
        args.names.iter().cloned().collect()
    };
    let report = delete(context, names).await;
    if context.json {
        print_json(&report)?;
    } else {
        print(&report.deleted.iter().map(|name| format!("{name}\n")).collect::<String>())?;
    }
    for failed in &report.failed {
        failed.error.report(context.json);
    }
    Ok(report.failed.first().map_or(0, |failed| failed.error.exit_code()))
}

async fn all(context: &Context, group: Option<&str>) -> Result<BTreeSet<String>, Failure> {
    let vms = context.client.vms().await?;
    Ok(vms.into_iter().filter(|vm| group.is_none_or(|group| vm.group == group)).map(|vm| vm.name).collect())
}

async fn delete(context: &Context, names: BTreeSet<String>) -> Report {
    let at_once = Arc::new(Semaphore::new(AT_ONCE));
    let mut tasks = JoinSet::new();
    for name in names {
        let (client, at_once) = (context.client.clone(), at_once.clone());
        tasks.spawn(async move {
            let _turn = at_once.acquire_owned().await;
            let result = client.delete_vm(&name).await;
            (name, result)
        });
    }
    let mut report = Report::default();
    for (name, result) in tasks.join_all().await {
        match result {
            Ok(()) => report.deleted.push(name),
            Err(error) => report.failed.push(Failed { name, error: error.into() }),
        }
    }
    report.deleted.sort();
    report.failed.sort_by(|a, b| a.name.cmp(&b.name));
    report
}
