//! Everything that is read when somebody asks, and the names under which it is told.

use super::host::Host;
use crate::parts::meters::Meters;
use crate::vm::registry::Registry;
use enisle_api::{Version, VmState};
use enisle_net::VERDICTS;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use std::collections::BTreeMap;
use std::fmt;

const STATES: [VmState; 6] = [
    VmState::Creating,
    VmState::Booting,
    VmState::Running,
    VmState::Paused,
    VmState::Stopping,
    VmState::Failed,
];

/// One group's VMs.
#[derive(Debug, Default)]
struct OfGroup {
    /// In the order of [`STATES`].
    states: [u64; STATES.len()],
    streams: u64,
    used: u64,
    capacity: u64,
}

/// What was read at one moment.
#[derive(Debug, Default)]
pub(crate) struct Scrape {
    version: String,
    hypervisor: String,
    groups: BTreeMap<String, OfGroup>,
    queued: u64,
    starting: u64,
    meters: Meters,
    events: BTreeMap<&'static str, u64>,
    missed: u64,
    host: Host,
}

impl Scrape {
    /// Reads everything: some hundred microseconds a VM. Blocks; for a blocking thread.
    pub(crate) fn take(registry: &Registry, version: &Version) -> Self {
        let mut groups: BTreeMap<String, OfGroup> = BTreeMap::new();
        for group in registry.groups() {
            let of = groups.entry(group.name).or_default();
            (of.used, of.capacity) = (u64::from(group.vms), u64::from(group.capacity));
        }
        for handle in registry.list() {
            // VMs of a group that is not in the file any more run on.
            let of = groups.entry(handle.plan().row.group.clone()).or_default();
            let shown = handle.state().shown();
            if let Some(at) = STATES.iter().position(|state| *state == shown) {
                of.states[at] += 1;
            }
            of.streams += handle.open_streams() as u64;
        }
        let (queued, starting) = registry.queued();
        let (events, missed) = registry.events().counts();
        Self {
            version: version.enisle.clone(),
            hypervisor: version.hypervisor.clone(),
            groups,
            queued: queued as u64,
            starting: starting as u64,
            meters: registry.parts().meters(),
            events,
            missed,
            host: Host::read(),
        }
    }
}

impl Collector for Scrape {
    fn encode(&self, encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let mut told = Told(encoder);
        self.daemon(&mut told)?;
        self.vms(&mut told)?;
        self.slots(&mut told)?;
        self.traffic(&mut told)
    }
}

impl Scrape {
    fn daemon(&self, told: &mut Told<'_>) -> fmt::Result {
        let build = [("version", self.version.as_str()), ("hypervisor", self.hypervisor.as_str())];
        told.gauges("enisle_build_info", "What runs here; always 1", [(build, 1)])?;
        let host = &self.host;
        for (name, help, value) in [
            (
                "process_resident_memory_bytes",
                "Memory of the daemon, its VMs' not included",
                host.resident_bytes,
            ),
            ("process_open_fds", "Open file descriptors of the daemon", host.open_fds),
            ("process_max_fds", "Most file descriptors that the daemon may have open", host.max_fds),
            ("enisle_conntrack_entries", "Flows that the host tracks, also those of others", host.conntrack),
            ("enisle_conntrack_entries_limit", "Most flows that the host tracks", host.conntrack_limit),
        ] {
            told.gauge(name, help, value)?;
        }
        told.gauge_f64("process_start_time_seconds", "When the daemon began, since the epoch", host.started)?;
        let events = self.events.iter().map(|(kind, count)| ([("type", *kind)], *count));
        told.counters("enisle_events", "Events by type", events)?;
        told.counter("enisle_events_missed", "Events that readers were told they missed", self.missed)
    }

    fn vms(&self, told: &mut Told<'_>) -> fmt::Result {
        let states = self.groups.iter().flat_map(|(group, of)| {
            let state = |(state, count): (&VmState, u64)| {
                ([("group", group.clone()), ("state", state.to_string())], count)
            };
            STATES.iter().zip(of.states).map(state)
        });
        told.gauges("enisle_vms", "VMs by state", states)?;
        let streams = self.groups.iter().map(|(group, of)| ([("group", group.as_str())], of.streams));
        told.gauges("enisle_streams", "Open streams and requests into guests", streams)?;
        told.gauge("enisle_launches_queued", "VMs that wait for their turn to start", Some(self.queued))?;
        told.gauge("enisle_launches_starting", "VMs that are being made or boot", Some(self.starting))
    }

    fn slots(&self, told: &mut Told<'_>) -> fmt::Result {
        let slots = self.groups.iter().flat_map(|(group, of)| {
            let free = of.capacity.saturating_sub(of.used);
            [("used", of.used), ("free", free)]
                .map(|(state, n)| ([("group", group.as_str()), ("state", state)], n))
        });
        told.gauges("enisle_slots", "Addresses of a group's range with a VM, and without", slots)?;
        let counts = self.meters.slots;
        told.gauge("enisle_slots_stuck", "Slots that could not be removed", Some(counts.stuck as u64))?;
        told.gauge("enisle_warm_slots", "Slots that wait for a VM, ready", Some(counts.warm as u64))?;
        told.gauge("enisle_warm_slots_limit", "Most slots that may wait", Some(counts.warm_limit as u64))?;
        let given = [("cold", counts.made), ("warm", counts.claimed)].map(|(from, n)| ([("from", from)], n));
        told.counters("enisle_slots_given", "Slots given to VMs, by whether they were ready", given)?;
        let left =
            [("recycled", counts.recycled), ("removed", counts.removed)].map(|(to, n)| ([("to", to)], n));
        told.counters("enisle_slots_left", "Slots that VMs have left, by what became of them", left)
    }

    fn traffic(&self, told: &mut Told<'_>) -> fmt::Result {
        let traffic = &self.meters.traffic;
        let judged = |of: &dyn Fn(&crate::parts::meters::Traffic) -> [u64; VERDICTS.len()]| {
            let mut rows = Vec::new();
            for (group, traffic) in traffic {
                for ((direction, verdict), count) in VERDICTS.into_iter().zip(of(traffic)) {
                    let labels = [
                        ("group", group.clone()),
                        ("direction", direction.into()),
                        ("verdict", verdict.into()),
                    ];
                    rows.push((labels, count));
                }
            }
            rows
        };
        told.counters(
            "enisle_packets",
            "Frames of guests by what the judge did with them",
            judged(&|t| t.packets),
        )?;
        told.counters("enisle_bytes", "Bytes of these frames, with Ethernet headers", judged(&|t| t.bytes))?;
        let rules = traffic.iter().flat_map(|(group, traffic)| {
            let row = |(rule, count): (&crate::parts::meters::RuleLabel, &u64)| {
                ([("group", group.clone()), ("rule", rule.to_string())], *count)
            };
            traffic.refused.iter().map(row)
        });
        told.counters("enisle_refused_packets", "Packets of guests that were refused, by the rule", rules)?;
        let flows =
            traffic.iter().map(|(group, traffic)| ([("group", group.as_str())], traffic.flows_refused));
        told.counters("enisle_limited_flows", "Flows that guests were refused by their limits", flows)
    }
}

/// Families as they are written.
struct Told<'a>(DescriptorEncoder<'a>);

impl Told<'_> {
    fn gauge(&mut self, name: &str, help: &str, value: Option<u64>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn gauge_f64(&mut self, name: &str, help: &str, value: Option<f64>) -> fmt::Result {
        let Some(value) = value else { return Ok(()) };
        ConstGauge::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Gauge)?)
    }

    fn gauges<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Gauge)?;
        rows.into_iter()
            .try_for_each(|(labels, value)| ConstGauge::new(value).encode(family.encode_family(&labels)?))
    }

    /// `_total` is added to the name.
    fn counter(&mut self, name: &str, help: &str, value: u64) -> fmt::Result {
        ConstCounter::new(value).encode(self.0.encode_descriptor(name, help, None, MetricType::Counter)?)
    }

    /// `_total` is added to the name.
    fn counters<L: EncodeLabelSet>(
        &mut self,
        name: &str,
        help: &str,
        rows: impl IntoIterator<Item = (L, u64)>,
    ) -> fmt::Result {
        let mut family = self.0.encode_descriptor(name, help, None, MetricType::Counter)?;
        rows.into_iter()
            .try_for_each(|(labels, value)| ConstCounter::new(value).encode(family.encode_family(&labels)?))
    }
}
