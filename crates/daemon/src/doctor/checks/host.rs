//! The host's network: the file's ranges, uplinks, connection tracking, resolvers.

use std::net::Ipv4Addr;

use super::super::facts::Facts;
use super::super::finding::Finding;
use crate::config::Group;
use enisle_net::Limits;

/// Where NodeLocal DNSCache of Kubernetes listens.
const NODE_LOCAL_DNS: Ipv4Addr = Ipv4Addr::new(169, 254, 20, 10);

pub(super) fn configuration(facts: &Facts) -> Vec<Finding> {
    match &facts.config {
        None => Vec::new(),
        Some(Ok(config)) => {
            let vms: u64 = config.groups.iter().map(|g| u64::from(g.count)).sum();
            let what = format!("{} is right: {} groups, {vms} microVMs", config.file, config.groups.len());
            vec![Finding::ok("configuration", what)]
        }
        Some(Err(errors)) => vec![
            Finding::failure("configuration", errors.trim_start().to_owned())
                .why("the daemon starts only with a file that is right, and changes nothing otherwise")
                .fix("correct the file; `enisle up FILE --check` judges it again"),
        ],
    }
}

/// What is in use is the configuration's to say, with its line; this is what only might be.
pub(super) fn ranges(facts: &Facts) -> Vec<Finding> {
    let Some(Ok(config)) = &facts.config else { return Vec::new() };
    let ranges = config.groups.iter().map(|group| (&group.name, group.network.range.net()));
    let mut found: Vec<Finding> = ranges
        .filter(|(_, net)| net.contains(&NODE_LOCAL_DNS))
        .map(|(name, net)| {
            let what = format!("the range {net} of group {name} covers {NODE_LOCAL_DNS}");
            Finding::warning("ranges", what)
                .why("Kubernetes' NodeLocal DNSCache takes that address; it would be a microVM's on a node")
                .fix("choose another range, such as 169.254.100.0/22, unless this host is no Kubernetes node")
        })
        .collect();
    if found.is_empty() {
        found.push(Finding::ok("ranges", "nothing on this host uses the ranges of the file"));
    }
    found
}

/// Bridges that the file's groups are on.
pub(super) fn bridges(facts: &Facts) -> Vec<Finding> {
    let Some(Ok(config)) = &facts.config else { return Vec::new() };
    let bridge = |group: &Group| {
        let bridge = group.network.bridge.as_ref()?;
        let (name, subnet) = (&group.name, bridge.gateway.trunc());
        let what = format!("group {name} is on the bridge {} with the network {subnet}", bridge.name);
        let why = "the bridge is made where it is missing; microVMs on it reach this host and are reached by it, unlike isolated ones";
        Some(Finding::note("bridge", what).why(why))
    };
    config.groups.iter().filter_map(bridge).collect()
}

pub(super) fn uplinks(facts: &Facts) -> Vec<Finding> {
    let settings = match &facts.settings {
        Ok(settings) => settings,
        Err(error) => {
            let what = format!("the host's interfaces and routes cannot be read: {error}");
            return vec![Finding::failure("uplink", what).why("the network engine reads them too")];
        }
    };
    if settings.uplinks.is_empty() {
        let found = Finding::warning("uplink", "the host has no default route")
            .why("microVMs reach the Internet by it, and get none before there is one")
            .fix("ip route add default via GATEWAY");
        return vec![found];
    }
    let what = format!("the Internet is reached by {}", settings.uplinks.join(", "));
    let forwarding = match settings.ip_forward {
        Some(true) => Finding::note("forwarding", "ip_forward is on: this host routes between its networks")
            .why("Enisle neither needs nor changes that; it guards only its own interfaces"),
        _ => Finding::ok(
            "forwarding",
            "ip_forward is off; Enisle switches forwarding on for its interfaces alone",
        ),
    };
    vec![Finding::ok("uplink", what), forwarding]
}

pub(super) fn source_checks(facts: &Facts) -> Vec<Finding> {
    let Ok(settings) = &facts.settings else { return Vec::new() };
    if settings.rp_filter == Some(1) && settings.uplinks.len() > 1 {
        let found = Finding::warning("rp-filter", "rp_filter is strict and there are several uplinks")
            .why("answers that come in by another uplink than they would leave by are dropped, also the host's own")
            .fix("sysctl -w net.ipv4.conf.all.rp_filter=2");
        return vec![found];
    }
    vec![Finding::ok("rp-filter", "source checks of the kernel are in nobody's way")]
}

pub(super) fn conntrack(facts: &Facts) -> Vec<Finding> {
    let Ok(settings) = &facts.settings else { return Vec::new() };
    let (Some(max), Some(count)) = (settings.conntrack_max, settings.conntrack_count) else {
        return vec![Finding::note(
            "conntrack",
            "connection tracking is not loaded yet; the daemon loads it",
        )];
    };
    let guests = flows(facts);
    let needed = guests + count;
    let what = format!("{count} of {max} connections are tracked");
    let fix = format!(
        "sysctl -w net.netfilter.nf_conntrack_max={}; to keep it: echo net.netfilter.nf_conntrack_max={0} > \
         /etc/sysctl.d/60-enisle.conf",
        (needed * 2).next_power_of_two().max(262_144)
    );
    vec![match max {
        // The kernel begins to drop before the table is full; a tenth is no reserve.
        0 => Finding::ok("conntrack", "connections are tracked without a limit"),
        _ if count >= max - max / 10 => Finding::failure("conntrack", what)
            .why("the table is full: new connections of the host and of microVMs are dropped")
            .fix(fix),
        _ if needed > max => Finding::warning("conntrack", what)
            .why(format!("the microVMs of the file may have {guests} more between them, and a full table drops the host's own"))
            .fix(fix),
        _ => Finding::ok("conntrack", what),
    }]
}

/// Flows that the microVMs of the file may have between them; those of one where it asks for none.
fn flows(facts: &Facts) -> u64 {
    let each = u64::from(Limits::default().flows);
    let of = |group: &Group| u64::from(group.count) * u64::from(group.network.limits.flows);
    match &facts.config {
        Some(Ok(config)) => config.groups.iter().map(of).sum::<u64>().max(each),
        _ => each,
    }
}

pub(super) fn resolvers(facts: &Facts) -> Vec<Finding> {
    let asks_host = match &facts.config {
        Some(Ok(config)) => config.groups.iter().any(|group| group.network.dns.is_empty()),
        _ => true,
    };
    if !asks_host {
        return vec![Finding::ok("dns", "every group of the file names its own name servers")];
    }
    if facts.resolvers.is_empty() {
        let found = Finding::failure("dns", "/etc/resolv.conf names no server")
            .why("the daemon answers the guests by asking the host's name servers; without one no name resolves")
            .fix("echo nameserver 9.9.9.9 >> /etc/resolv.conf, or set `dns` under each group's `network`");
        return vec![found];
    }
    let servers: Vec<String> = facts.resolvers.iter().map(|s| s.ip().to_string()).collect();
    vec![Finding::ok("dns", format!("guests' names are asked of {}", servers.join(", ")))]
}
