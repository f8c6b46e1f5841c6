//! `enisle vm list`.

use super::Context;
use crate::Failure;
use crate::quantity::{render_age, render_ram};
use crate::table::{print, print_json, render};
use clap::Args;
use enisle_client::api::Vm;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

const HEADER: [&str; 9] = ["NAME", "GROUP", "STATE", "ADDRESS", "CPUS", "RAM", "MODE", "AGE", "LABELS"];

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  enisle vm list
  enisle vm list --group agents --quiet
  enisle vm list --label team=web --label job
  enisle vm list --json | jq -r '.[] | select(.state == \"running\") | .name'")]
pub(crate) struct ListArgs {
    /// Only this group's.
    #[arg(long)]
    group: Option<String>,
    /// Only those with this label; may be repeated: they must have all.
    #[arg(long = "label", value_name = "KEY[=VALUE]")]
    labels: Vec<String>,
    /// Only names, one a line.
    #[arg(long, short)]
    quiet: bool,
}

pub(super) async fn run(context: &Context, args: &ListArgs) -> Result<u8, Failure> {
    let mut vms = context.client.vms_with(&args.labels).await?;
    vms.retain(|vm| args.group.as_ref().is_none_or(|group| vm.group == *group));
    if context.json {
        print_json(&vms)?;
    } else if args.quiet {
        print(&vms.iter().map(|vm| format!("{}\n", vm.name)).collect::<String>())?;
    } else {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        print(&table(&vms, now))?;
    }
    Ok(0)
}

fn table(vms: &[Vm], now: Duration) -> String {
    let rows: Vec<Vec<String>> = vms.iter().map(|vm| row(vm, now)).collect();
    let mut text = render(&HEADER, &rows);
    for vm in vms {
        if let Some(reason) = &vm.reason {
            text.push_str(&crate::table::visible(&format!("{}: {reason}", vm.name)));
            text.push('\n');
        }
    }
    text
}

fn row(vm: &Vm, now: Duration) -> Vec<String> {
    vec![
        vm.name.clone(),
        vm.group.clone(),
        vm.state.to_string(),
        vm.address.to_string(),
        vm.vcpu.to_string(),
        render_ram(vm.ram_mb),
        vm.mode.clone(),
        // The clock may have been set back since; no age then.
        render_age(now.saturating_sub(Duration::from_millis(vm.created_ms))),
        labels(vm),
    ]
}

/// `KEY=VALUE` with commas between; `-` for none, so that a column is never empty.
fn labels(vm: &Vm) -> String {
    if vm.labels.is_empty() {
        return "-".to_owned();
    }
    vm.labels.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_client::api::VmState;

    #[test]
    fn the_table_shows_state_and_reason() {
        let vm = Vm {
            name: "agents-1".into(),
            group: "agents".into(),
            state: VmState::Failed,
            reason: Some("the VMM ended\x1b[31m".into()),
            mode: "isolated".into(),
            address: [169, 254, 100, 2].into(),
            gateway: [169, 254, 100, 1].into(),
            vcpu: 2,
            ram_mb: 1024,
            image: "debian".into(),
            pid: None,
            created_ms: 1_000_000,
            ready_after_ms: None,
            userdata_exit: None,
            labels: [("job".into(), "17\x1b".into()), ("team".into(), "web".into())].into(),
            expires_ms: None,
            idle_timeout_ms: None,
        };
        insta::assert_snapshot!(table(&[vm], Duration::from_secs(1_090)), @r"
        NAME      GROUP   STATE   ADDRESS        CPUS  RAM  MODE      AGE  LABELS
        agents-1  agents  failed  169.254.100.2  2     1G   isolated  1m   job=17�,team=web
        agents-1: the VMM ended�[31m
        ");
        assert_eq!(table(&[], Duration::ZERO), "NAME  GROUP  STATE  ADDRESS  CPUS  RAM  MODE  AGE  LABELS\n");
    }
}
