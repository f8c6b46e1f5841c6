//! `enisle net show`.

use super::{Kind, kind_of};
use crate::Failure;
use crate::table::{print, print_json, render};
use crate::vm::Context;
use clap::Args;
use enisle_client::api::{Policy, PolicyLists};

#[derive(Debug, Args)]
#[command(after_help = "\
Of the entries that hold a packet, the one with the longest network decides, and of these one with
ports. BY is where the rule was written: group drop[3], vm allow[0], floor row 5 (docs/networking.md).
Counts are packets, of refusals since the VM was started or its policy changed last.

Examples:
  enisle net show agents-1
  enisle net show agents --json | jq .lists")]
pub(crate) struct ShowArgs {
    /// The VM or group.
    name: String,
    /// NAME is a group, also where a VM is named alike.
    #[arg(long)]
    group: bool,
}

pub(super) async fn run(context: &Context, args: &ShowArgs) -> Result<u8, Failure> {
    let policy = match kind_of(context, &args.name, args.group).await? {
        Kind::Vm => context.client.vm_policy(&args.name).await?,
        Kind::Group => context.client.group_policy(&args.name).await?,
    };
    if context.json {
        print_json(&policy)?;
    } else {
        print(&text(&policy))?;
    }
    Ok(0)
}

fn text(policy: &Policy) -> String {
    let mut text = lists("own lists", &policy.lists);
    if let Some(group) = &policy.group_lists {
        text.push_str(&lists("group's lists", group));
    }
    if policy.egress_none {
        text.push_str("egress none: nothing is let out, and DNS is refused\n");
    }
    let row = |cells: [&str; 4]| cells.map(str::to_owned).to_vec();
    let entries: Vec<_> = policy
        .entries
        .iter()
        .map(|e| row([&e.destination, &e.verdict.to_string(), &e.origin, &e.rule]))
        .collect();
    text.push('\n');
    text.push_str(&render(&["DESTINATION", "VERDICT", "BY", "RULE"], &entries));
    if policy.entries_total > policy.entries.len() {
        text.push_str(&format!("and {} more\n", policy.entries_total - policy.entries.len()));
    }
    if !policy.counters.is_empty() {
        let rows: Vec<_> =
            policy.counters.iter().map(|(name, count)| vec![name.clone(), count.to_string()]).collect();
        text.push_str(&format!("\n{}", render(&["COUNTER", "PACKETS"], &rows)));
    }
    if !policy.refused.is_empty() {
        let rows: Vec<_> = policy
            .refused
            .iter()
            .map(|r| vec![r.origin.clone(), r.packets.to_string(), r.rule.clone()])
            .collect();
        text.push_str(&format!("\n{}", render(&["REFUSED BY", "PACKETS", "RULE"], &rows)));
    }
    text
}

fn lists(whose: &str, lists: &PolicyLists) -> String {
    let list = |entries: &[String]| match entries {
        [] => "-".to_owned(),
        entries => entries.join(" "),
    };
    format!("{whose}: drop {}, allow {}\n", list(&lists.drop), list(&lists.allow))
}
