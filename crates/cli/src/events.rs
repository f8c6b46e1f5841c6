//! `enisle events`.

use crate::Failure;
use crate::table::{print, print_json_line, visible};
use crate::vm::Context;
use clap::{Args, ValueEnum};
use enisle_client::api::{Event, EventFilter, EventKind, FlowDirection};

/// `enisle events`.
#[derive(Debug, Args)]
#[command(after_help = "\
Without --follow it prints what the daemon still knows and ends: of its run the last 4096 events, and the last 2048
refused flows beside them. Of one VM some 8 refused flows a second are told, the others counted. Events have growing numbers; `--since N` prints what came after number N, and says how many of those are not kept any more.
With --json each line is one event of the API.

Examples:
  enisle events
  enisle events --follow --vm agents-1
  enisle events --follow --only refused
  enisle events -f --json | jq -r 'select(.type == \"vm_removed\") | .vm + \" \" + .removal'")]
pub struct EventsArgs {
    /// Go on with what happens until the daemon stops.
    #[arg(long, short)]
    follow: bool,
    /// Only what came after the event of this number.
    #[arg(long, value_name = "SEQ")]
    since: Option<u64>,
    /// Only lives of VMs and policies, or only refused flows.
    #[arg(long, value_name = "KIND")]
    only: Option<Only>,
    /// Only events of this VM, and how many were missed.
    #[arg(long, value_name = "NAME")]
    vm: Option<String>,
}

/// Kinds of events.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum Only {
    Lifecycle,
    Refused,
}

impl From<Only> for EventFilter {
    fn from(only: Only) -> Self {
        match only {
            Only::Lifecycle => Self::Lifecycle,
            Only::Refused => Self::Refused,
        }
    }
}

pub(crate) async fn run(context: &Context, args: &EventsArgs) -> Result<u8, Failure> {
    let mut events = match args.only {
        Some(only) => context.client.events_of(only.into(), args.since, args.follow).await?,
        None => context.client.events(args.since, args.follow).await?,
    };
    while let Some(event) = events.next().await? {
        let missed = matches!(event.what, EventKind::Dropped { .. });
        if !missed && args.vm.is_some() && event.what.vm() != args.vm.as_deref() {
            continue;
        }
        if context.json {
            print_json_line(&event)?;
        } else {
            print(&format!("{}\n", visible(&line(&event))))?;
        }
    }
    Ok(0)
}

/// Time, number, what it is about, what happened.
fn line(event: &Event) -> String {
    let (about, what) = match &event.what {
        EventKind::VmCreated { vm, address, .. } => (vm.clone(), format!("created, {address}")),
        EventKind::VmReady { vm, after_ms, .. } => (vm.clone(), format!("ready after {after_ms} ms")),
        EventKind::VmAdopted { vm, .. } => (vm.clone(), "adopted".to_owned()),
        EventKind::VmPaused { vm, .. } => (vm.clone(), "paused".to_owned()),
        EventKind::VmResumed { vm, .. } => (vm.clone(), "resumed".to_owned()),
        EventKind::VmStopped { vm, reason, .. } => (vm.clone(), format!("stopped: {reason}")),
        EventKind::VmCrashed { vm, reason, .. } => (vm.clone(), format!("crashed: {reason}")),
        EventKind::VmFailed { vm, reason, .. } => (vm.clone(), format!("failed: {reason}")),
        EventKind::VmRemoved { vm, removal, .. } => (vm.clone(), format!("removed: {removal}")),
        EventKind::PolicyChanged { vm: Some(vm), revision, .. } => {
            (vm.clone(), format!("policy changed to {revision}"))
        }
        EventKind::PolicyChanged { vm: None, group, revision } => {
            (format!("group {group}"), format!("policy changed to {revision}"))
        }
        EventKind::FlowRefused { vm, .. } => (vm.clone(), refused(&event.what)),
        EventKind::FlowsNotReported { vm, count, .. } => {
            (vm.clone(), format!("{count} more packets refused, which were only counted"))
        }
        EventKind::Reloaded { notes, .. } => {
            let notes = if notes.is_empty() { String::new() } else { format!(": {}", notes.join("; ")) };
            ("daemon".to_owned(), format!("read its file again{notes}"))
        }
        EventKind::ReloadFailed { reason } => {
            ("daemon".to_owned(), format!("did not take its file: {reason}"))
        }
        EventKind::Dropped { count, other_run } => {
            let other = if *other_run { ", and what an earlier run of the daemon told last" } else { "" };
            ("-".to_owned(), format!("{count} events are not kept any more{other}"))
        }
        _ => ("-".to_owned(), "something that this program is too old for; see --json".to_owned()),
    };
    format!("{} {} {about}: {what}", utc(event.time_ms), event.seq)
}

/// A refused flow.
fn refused(what: &EventKind) -> String {
    let EventKind::FlowRefused {
        direction,
        protocol,
        source,
        source_port,
        destination,
        destination_port,
        origin,
        rule,
        not_reported,
        ..
    } = what
    else {
        return String::new();
    };
    let end = |address: &std::net::Ipv4Addr, port: &Option<u16>| match port {
        Some(port) => format!("{address}:{port}"),
        None => address.to_string(),
    };
    let (from, to) = (end(source, source_port), end(destination, destination_port));
    let way = match direction {
        FlowDirection::Out => "refused",
        FlowDirection::In => "refused the answer",
    };
    let before = match not_reported {
        0 => String::new(),
        count => format!(" ({count} before it only counted)"),
    };
    format!("{way} {protocol} {from} to {to}: {origin}, {rule}{before}")
}

/// RFC 3339 in UTC, to the second.
pub(crate) fn utc(ms: u64) -> String {
    let seconds = ms / 1000;
    let (days, of_day) = (seconds / 86_400, seconds % 86_400);
    // Days since 0000-03-01, so that a leap day is the last of its year; eras of 400 years.
    let day = days + 719_468;
    let (era, of_era) = (day / 146_097, day % 146_097);
    let year_of_era = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted = (5 * of_year + 2) / 153;
    let month = if shifted < 10 { shifted + 3 } else { shifted - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (date, hour) = (of_year - (153 * shifted + 2) / 5 + 1, of_day / 3600);
    format!("{year:04}-{month:02}-{date:02}T{hour:02}:{:02}:{:02}Z", of_day / 60 % 60, of_day % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_827_696_999, "2000-02-29T12:34:56Z"),
            (1_735_689_599_000, "2024-12-31T23:59:59Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }
}
