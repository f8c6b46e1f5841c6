//! `enisle net set`.

use super::{Kind, kind_of};
use crate::Failure;
use crate::table::{print, print_json, render};
use crate::vm::Context;
use clap::{ArgGroup, Args};
use enisle_client::api::{CutFlow, PolicyChange, PolicyEntry, PolicyLists};

#[derive(Debug, Args)]
#[command(group = ArgGroup::new("lists").required(true).multiple(true).args(["drop", "allow", "clear"]))]
#[command(after_help = "\
Both lists are replaced as a whole: one that is not given is empty afterwards. The change is atomic,
holds for packets of connections that exist, and is made for all VMs of a group or for none. A VM's
own lists only narrow what its group allows, and stay until the VM is deleted. A group's hold for its
VMs and those made later until the daemon stops; then the file holds again.

An ITEM is a network, an address, or address[/length]:port[-port][/tcp or /udp].

Examples:
  enisle net set agents-1 --drop 0.0.0.0/0 --allow 140.82.112.0/20:443/tcp
  enisle net set agents --drop 203.0.113.0/24,198.51.100.7 --dry-run
  enisle net set agents-1 --clear")]
pub(crate) struct SetArgs {
    /// The VM or group.
    name: String,
    /// Refuse this; may be repeated, or a list with commas.
    #[arg(long, value_name = "ITEM", value_delimiter = ',')]
    drop: Vec<String>,
    /// Open this; may be repeated, or a list with commas.
    #[arg(long, value_name = "ITEM", value_delimiter = ',')]
    allow: Vec<String>,
    /// Empty both lists.
    #[arg(long, conflicts_with_all = ["drop", "allow"])]
    clear: bool,
    /// Only show what would change, and which live flows it would cut.
    #[arg(long)]
    dry_run: bool,
    /// NAME is a group, also where a VM is named alike.
    #[arg(long)]
    group: bool,
}

pub(super) async fn run(context: &Context, args: &SetArgs) -> Result<u8, Failure> {
    let lists = PolicyLists { drop: args.drop.clone(), allow: args.allow.clone() };
    let client = &context.client;
    let change = match kind_of(context, &args.name, args.group).await? {
        Kind::Vm => client.set_vm_policy(&args.name, &lists, args.dry_run).await?,
        Kind::Group => client.set_group_policy(&args.name, &lists, args.dry_run).await?,
    };
    if context.json {
        print_json(&change)?;
    } else {
        print(&text(&change))?;
    }
    Ok(0)
}

fn text(change: &PolicyChange) -> String {
    let rows = |mark: &str, entries: &[PolicyEntry]| -> Vec<Vec<String>> {
        let row = |e: &PolicyEntry| {
            vec![mark.to_owned(), e.destination.clone(), e.verdict.to_string(), e.origin.clone()]
        };
        entries.iter().map(row).collect()
    };
    let mut all = rows("-", &change.removed);
    all.extend(rows("+", &change.added));
    let mut text = match all.is_empty() {
        true => "no entry changes\n".to_owned(),
        false => render(&["", "DESTINATION", "VERDICT", "BY"], &all),
    };
    let count = |n: usize, what: &str| format!("{n} {what}{}", if n == 1 { "" } else { "s" });
    let vms = count(change.vms.len(), "VM");
    if !change.dry_run {
        text.push_str(&format!("{}: changed, {vms}\n", change.name));
        return text;
    }
    if !change.cuts.is_empty() {
        text.push_str("\nlive flows this would cut:\n");
        let rows: Vec<Vec<String>> = change.cuts.iter().map(cut).collect();
        text.push_str(&render(&["VM", "PROTOCOL", "DESTINATION", "FROM PORT"], &rows));
    }
    let flows = count(change.cuts.len(), "live flow");
    text.push_str(&format!("{}: dry run, nothing changed; {vms}, {flows} would be cut\n", change.name));
    text
}

fn cut(flow: &CutFlow) -> Vec<String> {
    let destination = match flow.port {
        Some(port) => format!("{}:{port}", flow.destination),
        None => flow.destination.to_string(),
    };
    let from = flow.source_port.map(|port| port.to_string()).unwrap_or_default();
    vec![flow.vm.clone(), flow.protocol.clone(), destination, from]
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_client::api::PolicyVerdict;

    #[test]
    fn a_dry_run_shows_entries_and_flows() {
        let change = PolicyChange {
            name: "agents-1".into(),
            dry_run: true,
            revision: "0".into(),
            removed: Vec::new(),
            added: vec![PolicyEntry {
                destination: "8.8.8.8/32".into(),
                verdict: PolicyVerdict::Refuse,
                origin: "vm drop[0]".into(),
                rule: "8.8.8.8".into(),
            }],
            vms: vec!["agents-1".into()],
            cuts: vec![CutFlow {
                vm: "agents-1".into(),
                protocol: "tcp".into(),
                destination: [8, 8, 8, 8].into(),
                port: Some(443),
                source_port: Some(40000),
            }],
        };
        let text = text(&change);
        assert!(text.contains("+  8.8.8.8/32   refuse   vm drop[0]"), "{text}");
        assert!(text.contains("agents-1  tcp       8.8.8.8:443  40000"), "{text}");
        assert!(text.contains("dry run, nothing changed; 1 VM, 1 live flow would be cut"), "{text}");
    }
}
