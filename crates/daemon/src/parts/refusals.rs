//! Refused packets become events, on a thread of its own.
//!
//! Owns: that thread; it waits for the judge, and for nothing else while nothing is refused. What was only
//! counted is told with the next packet of the same VM, or, when none follows, some seconds after the last.
//! Refuses: how many are told (the judge), and how many are kept (`events`).

use super::departures::survives;
use super::network::{Network, NetworkError};
use crate::events::Events;
use enisle_net::{Reports, Tenant, Woken};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

/// Longer than a bucket that is empty takes to hold one more: while packets are refused, the next one comes first.
const QUIET: Duration = Duration::from_secs(2);

/// Tells of refused packets until the network is closed.
///
/// # Errors
/// When the judge has a reader already, or there can be no thread.
pub(crate) fn keep(network: Arc<Network>, events: Arc<Events>) -> io::Result<()> {
    let reports = network.reports().map_err(|error| match error {
        NetworkError::Engine(error) => io::Error::other(error),
        other => io::Error::other(other),
    })?;
    thread::Builder::new()
        .name("refusals".to_owned())
        .spawn(move || run(reports, &network, &events))
        .map(drop)
}

fn run(mut reports: Reports, network: &Network, events: &Events) {
    const DEFECT: &str = "telling of refused packets panicked; some are not told of";
    let mut last: BTreeMap<Tenant, Instant> = BTreeMap::new();
    while survives(DEFECT, || round(&mut reports, network, events, &mut last)) {}
}

/// Waits, and tells. False at the end.
fn round(
    reports: &mut Reports,
    network: &Network,
    events: &Events,
    last: &mut BTreeMap<Tenant, Instant>,
) -> bool {
    let next = last.values().min().map(|last| (*last + QUIET).saturating_duration_since(Instant::now()));
    match reports.wait(next) {
        Ok(Woken::Bell) => return false,
        Ok(Woken::Reports | Woken::TimeOver) => {}
        Err(error) => {
            tracing::error!("refused packets are not told of any more, only counted: {error}");
            return false;
        }
    }
    while let Some(flow) = reports.read() {
        if let Some(event) = network.attribute(&flow) {
            events.tell(event);
            last.insert(flow.tenant, Instant::now());
        }
    }
    let now = Instant::now();
    let quiet: Vec<Tenant> =
        last.iter().filter(|(_, last)| now >= **last + QUIET).map(|(tenant, _)| *tenant).collect();
    for tenant in quiet {
        last.remove(&tenant);
        if let Some(event) = network.not_reported(tenant) {
            events.tell(event);
        }
    }
    true
}
