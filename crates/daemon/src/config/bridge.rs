//! Rules of a network in mode `bridge`, and what it becomes.
//!
//! Owns: which keys belong to which mode. Refuses: looking at the machine, but for what `check` hands in.

use enisle_net::Bridge;
use enisle_net::plan::Range;
use ipnet::Ipv4Net;

use super::file::{GroupKeys, NetworkKeys};
use super::read::Located;
use super::report::{Problem, Report, Span};
use super::values::{Mode, Written};

/// What a file says that names neither.
const HOW: &str = "add bridge: \"enisle0\" and gateway: \"10.77.0.1/24\", or mode: \"isolated\" and a range";

/// The mode: `bridge` where none is named; `None` where what is named is none.
pub(super) fn mode(network: &NetworkKeys) -> Option<Mode> {
    network.mode.as_ref().map_or(Some(Mode::Bridge), |mode| mode.value.0)
}

/// The value of a key, where it is right.
fn right<T: Clone>(key: &Option<Located<Written<T>>>) -> Option<Located<T>> {
    let key = key.as_ref()?;
    Some(Located { value: key.value.0.clone()?, span: key.span })
}

/// Where a group's VMs get their blocks. Without `range` on a bridge: the half of the subnet without the gateway.
pub(super) fn range(network: &NetworkKeys) -> Option<Located<Range>> {
    if network.range.is_some() {
        let range = right(&network.range)?;
        return Some(Located { value: range.value.0, span: range.span });
    }
    let gateway = right(&network.gateway).filter(|_| mode(network) == Some(Mode::Bridge))?;
    let range = half(gateway.value.0)?;
    Some(Located { value: range, span: gateway.span })
}

fn half(gateway: Ipv4Net) -> Option<Range> {
    let mut halves = gateway.trunc().subnets(gateway.prefix_len() + 1).ok()?;
    let free = halves.find(|half| !half.contains(&gateway.addr()))?;
    Range::try_from(free).ok()
}

/// The bridge; `None` in another mode, or where something is missing.
pub(super) fn bridge(network: &NetworkKeys) -> Option<Bridge> {
    if mode(network) != Some(Mode::Bridge) {
        return None;
    }
    let on = |flag: &Option<Located<super::values::Flag>>| flag.as_ref().is_some_and(|flag| flag.value.0);
    Some(Bridge {
        name: name(network)?,
        gateway: right(&network.gateway)?.value.0,
        range: range(network)?.value,
        isolate_ports: on(&network.isolate_ports),
        uplink: network.uplink.as_ref().map(|uplink| uplink.value.0.clone()),
        route_between: on(&network.route_between),
    })
}

/// The bridge's name.
pub(super) fn name(network: &NetworkKeys) -> Option<String> {
    Some(right(&network.bridge)?.value.0)
}

/// Reports what does not belong to a group's mode, or lacks there.
pub(super) fn check(groups: &[Located<GroupKeys>], report: &mut Report) {
    let networks = || groups.iter().filter_map(|group| group.value.network.as_ref());
    for network in networks() {
        match mode(&network.value) {
            Some(Mode::Isolated) => isolated(network, report),
            Some(Mode::Bridge) => bridged(network, report),
            None => {}
        }
    }
    let bridges: Vec<&Located<NetworkKeys>> =
        networks().filter(|network| mode(&network.value) == Some(Mode::Bridge)).collect();
    for (at, network) in bridges.iter().enumerate() {
        apart(&network.value, &bridges[..at], report);
    }
}

fn isolated(network: &Located<NetworkKeys>, report: &mut Report) {
    let keys = &network.value;
    if keys.range.is_none() {
        lacks(network.span, "range", "add range: \"169.254.100.0/22\"", report);
    }
    let of_bridges: [(&str, Option<Span>); 5] = [
        ("bridge", keys.bridge.as_ref().map(|key| key.span)),
        ("gateway", keys.gateway.as_ref().map(|key| key.span)),
        ("uplink", keys.uplink.as_ref().map(|key| key.span)),
        ("isolate_ports", keys.isolate_ports.as_ref().filter(|flag| flag.value.0).map(|key| key.span)),
        ("route_between", keys.route_between.as_ref().filter(|flag| flag.value.0).map(|key| key.span)),
    ];
    for (key, span) in of_bridges {
        if let Some(span) = span {
            let message = format!("`{key}` is for mode \"bridge\", and this network's mode is \"isolated\"");
            report.add(Problem::at(span, message).help("remove the key, or take mode: \"bridge\""));
        }
    }
}

fn bridged(network: &Located<NetworkKeys>, report: &mut Report) {
    let keys = &network.value;
    for (key, missing) in [("bridge", keys.bridge.is_none()), ("gateway", keys.gateway.is_none())] {
        if missing {
            lacks(network.span, key, HOW, report);
        }
    }
    let lists = [
        ("drop", keys.drop.as_ref().filter(|list| !list.value.0.is_empty()).map(|list| list.span)),
        ("allow", keys.allow.as_ref().filter(|list| !list.value.0.is_empty()).map(|list| list.span)),
    ];
    for (key, span) in lists {
        if let Some(span) = span {
            let message = format!(
                "`{key}` is for mode \"isolated\": on a bridge microVMs reach whoever the network reaches"
            );
            report.add(Problem::at(span, message).help("remove the key, or take mode: \"isolated\""));
        }
    }
    let gateway = right(&keys.gateway);
    let (Some(gateway), Some(range)) = (&gateway, range(keys)) else {
        if let (Some(gateway), None) = (&gateway, &keys.range) {
            let message = format!("the subnet of `gateway` {} has no room for microVMs", gateway.value.0);
            report.add(
                Problem::at(gateway.span, message)
                    .help("take a larger one that is private, such as 10.77.0.1/24"),
            );
        }
        return;
    };
    if !Bridge::fits(gateway.value.0, range.value) {
        let subnet = gateway.value.0.trunc();
        let message = format!("`range` {} must be a part of {subnet} without the gateway", range.value);
        let help = half(gateway.value.0).map_or_else(
            || "take a larger subnet".to_owned(),
            |half| format!("{half} is one; it is taken where the key is absent"),
        );
        report.add(Problem::at(range.span, message).also(gateway.span, "the gateway").help(help));
    }
}

/// Each group has a bridge and a subnet of its own.
fn apart(network: &NetworkKeys, before: &[&Located<NetworkKeys>], report: &mut Report) {
    for other in before.iter().map(|other| &other.value) {
        if let (Some(a), Some(b)) = (right(&network.bridge), right(&other.bridge))
            && a.value == b.value
        {
            let problem = Problem::at(a.span, format!("two groups are on the bridge `{}`", a.value.0));
            report.add(problem.also(b.span, "first here").help(
                "give each group a bridge of its own; route_between: true in both routes between them",
            ));
        }
        if let (Some(a), Some(b)) = (right(&network.gateway), right(&other.gateway)) {
            let (one, two) = (a.value.0.trunc(), b.value.0.trunc());
            if one.contains(&two) || two.contains(&one) {
                let problem =
                    Problem::at(a.span, format!("the subnets {one} and {two} of two bridges overlap"));
                report.add(problem.also(b.span, "the other").help("give each bridge a subnet of its own"));
            }
        }
    }
}

fn lacks(span: Span, key: &str, help: &str, report: &mut Report) {
    let message = format!("`network` lacks the key `{key}`");
    report.add(Problem::at(span, message).label("in this mapping").help(help));
}
