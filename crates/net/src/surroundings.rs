//! What the host's routing says about a range and about where a slot's packets go.
//!
//! Owns: pure answers over dumped addresses and routes. Refuses: dumping them, changing anything.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;

use crate::judge::NEVER;
use crate::netlink::route::{Address, Link, Neighbour, Route};
use crate::plan::Range;
use crate::survey::Taken;

/// Zeroconf's route (RFC 3927), which many hosts have on their uplink. Slots' own routes are more
/// specific, and hosts that really use an address there show it as an address.
const ZEROCONF: Ipv4Net = Ipv4Net::new_assert(std::net::Ipv4Addr::new(169, 254, 0, 0), 16);

/// One look at the host.
#[derive(Debug, Default)]
pub(crate) struct Surroundings {
    pub(crate) links: BTreeMap<u32, Link>,
    pub(crate) addresses: Vec<Address>,
    pub(crate) routes: Vec<Route>,
    pub(crate) neighbours: Vec<Neighbour>,
    /// `ip_forward` is on for the whole host.
    pub(crate) router: bool,
}

/// Whether a route is a default, or one of the halves that VPNs split a default into.
fn is_default(net: Ipv4Net) -> bool {
    net.prefix_len() <= 1
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

impl Surroundings {
    /// What is in the way of a network, in words. Interfaces in `own` do not count.
    pub(crate) fn in_the_way(&self, net: Ipv4Net, own: &BTreeSet<u32>) -> Option<String> {
        let address =
            self.addresses.iter().filter(|a| !own.contains(&a.index)).find(|a| overlap(a.net.trunc(), net));
        if let Some(a) = address {
            let name = self.name(a.index);
            return Some(format!("interface {name} has the address {}", a.net));
        }
        let route = self.foreign_routes(own).find(|r| overlap(r.net, net))?;
        Some(match route.links.first() {
            Some(index) => format!("the route to {} leaves by {}", route.net, self.name(*index)),
            None => format!("there is a route for {}", route.net),
        })
    }

    /// Every network some address or route takes.
    pub(crate) fn taken(&self) -> Vec<Ipv4Net> {
        let addresses = self.addresses.iter().map(|a| a.net.trunc());
        let none = BTreeSet::new();
        let routes: Vec<Ipv4Net> = self.foreign_routes(&none).map(|r| r.net).collect();
        addresses.chain(routes).collect()
    }

    /// Every network that addresses and routes take, and by what; not by interfaces that `own` names.
    pub(crate) fn in_use(&self, own: impl Fn(u32) -> bool) -> Vec<Taken> {
        let own: BTreeSet<u32> = self.links.keys().copied().filter(|i| own(*i)).collect();
        let addresses = self.addresses.iter().filter(|a| !own.contains(&a.index));
        let mut taken: Vec<Taken> = addresses
            .map(|a| Taken { net: a.net.trunc(), by: format!("interface {}", self.name(a.index)) })
            .collect();
        for route in self.foreign_routes(&own).filter(|r| !r.ours) {
            let by = match (route.links.first(), route.on_link) {
                (Some(index), true) => format!("interface {}", self.name(*index)),
                (Some(index), false) => format!("a route by {}", self.name(*index)),
                (None, _) => "a route to nowhere".to_owned(),
            };
            let found = Taken { net: route.net, by };
            if !taken.contains(&found) {
                taken.push(found);
            }
        }
        taken
    }

    fn foreign_routes<'a>(&'a self, own: &'a BTreeSet<u32>) -> impl Iterator<Item = &'a Route> + 'a {
        self.routes.iter().filter(move |r| {
            let ours = !r.links.is_empty() && r.links.iter().all(|i| own.contains(i));
            let zeroconf = r.net == ZEROCONF && r.on_link;
            !(ours || zeroconf || is_default(r.net))
        })
    }

    fn name(&self, index: u32) -> String {
        match self.links.get(&index) {
            Some(link) => link.name.clone(),
            None => format!("number {index}"),
        }
    }

    /// What only this host knows: its own addresses and everybody's slots, which no `allow` opens,
    /// and its on-link subnets, which one of at least their length does. A default route without a
    /// gateway (PPP, WireGuard) makes nobody a neighbour.
    pub(crate) fn hosts(&self, ranges: &[Range]) -> BTreeMap<Ipv4Net, u32> {
        let on_link =
            self.routes.iter().filter(|r| r.on_link && !r.ours && !is_default(r.net)).map(|r| r.net);
        let subnets = on_link.chain(self.addresses.iter().map(|a| a.net.trunc()));
        let mut hosts: BTreeMap<Ipv4Net, u32> =
            subnets.map(|net| (net, u32::from(net.prefix_len()))).collect();
        let own = self.addresses.iter().map(|a| Ipv4Net::from(a.net.addr()));
        let slots = self.routes.iter().filter(|r| r.ours).map(|r| r.net);
        let foreign = slots.filter(|net| !ranges.iter().any(|range| range.net().contains(net)));
        let never = own.chain(foreign).chain(ranges.iter().map(Range::net));
        hosts.extend(never.map(|net| (net, NEVER)));
        hosts
    }

    /// The interfaces through which packets of slots leave and answers come back: those of default
    /// routes, and those of routes to what operators opened. Never a slot's or the loopback's.
    pub(crate) fn carriers(&self, opened: impl Iterator<Item = Ipv4Net>) -> BTreeSet<u32> {
        let opened: Vec<Ipv4Net> = Ipv4Net::aggregate(&opened.collect());
        self.routes
            .iter()
            .filter(|r| !r.ours)
            .filter(|r| is_default(r.net) || opened.iter().any(|net| overlap(*net, r.net)))
            .flat_map(|r| r.links.iter().copied())
            .filter(|i| self.links.get(i).is_some_and(|l| l.name != "lo"))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(s: &str) -> Ipv4Net {
        s.parse().unwrap()
    }

    fn link(index: u32, name: &str) -> (u32, Link) {
        let link = Link { index, name: name.into(), up: true, ..Link::default() };
        (index, link)
    }

    fn route(to: &str, index: u32, on_link: bool) -> Route {
        Route { net: net(to), links: vec![index], on_link, ours: false }
    }

    fn host() -> Surroundings {
        Surroundings {
            links: [link(1, "lo"), link(2, "eth0"), link(3, "lan0")].into(),
            addresses: vec![Address { index: 3, net: net("192.168.1.1/24") }],
            routes: vec![
                route("0.0.0.0/0", 2, false),
                route("192.168.1.0/24", 3, true),
                route("169.254.0.0/16", 2, true),
                route("10.8.0.0/16", 2, false),
            ],
            neighbours: Vec::new(),
            router: false,
        }
    }

    #[test]
    fn what_is_in_the_way_is_named() {
        let own = BTreeSet::new();
        let say = |range: &str| host().in_the_way(net(range), &own);
        assert_eq!(say("192.168.1.128/25").unwrap(), "interface lan0 has the address 192.168.1.1/24");
        assert_eq!(say("10.8.4.0/22").unwrap(), "the route to 10.8.0.0/16 leaves by eth0");
        assert_eq!(say("169.254.100.0/22"), None);
        assert_eq!(say("10.99.0.0/24"), None);
    }

    #[test]
    fn what_is_our_own_is_not_in_the_way() {
        let mut host = host();
        host.routes.push(route("169.254.100.2/32", 9, true));
        let range = net("169.254.100.0/22");
        assert!(host.in_the_way(range, &BTreeSet::new()).is_some());
        assert!(host.in_the_way(range, &BTreeSet::from([9])).is_none());
    }

    #[test]
    fn what_is_in_use_is_told_once_and_by_whom() {
        let mut host = host();
        host.links.extend([link(9, "en-a9fe6402"), link(4, "wg0")]);
        host.addresses.push(Address { index: 4, net: net("10.9.9.9/32") });
        host.routes.push(Route { ours: true, ..route("169.254.100.2/32", 9, true) });
        host.routes.push(Route { links: Vec::new(), ..route("10.66.0.0/16", 0, false) });
        let taken: Vec<_> = host.in_use(|i| i == 9).into_iter().map(|t| (t.net.to_string(), t.by)).collect();
        let expected = [
            ("192.168.1.0/24", "interface lan0"),
            ("10.9.9.9/32", "interface wg0"),
            ("10.8.0.0/16", "a route by eth0"),
            ("10.66.0.0/16", "a route to nowhere"),
        ];
        assert_eq!(taken, expected.map(|(net, by)| (net.to_owned(), by.to_owned())));
    }

    #[test]
    fn the_host_knows_its_addresses_neighbours_and_slots() {
        let mut host = host();
        host.routes.push(route("0.0.0.0/0", 3, true));
        for (to, index) in [("169.254.100.2/32", 8), ("10.99.0.2/32", 9)] {
            host.routes.push(Route { ours: true, ..route(to, index, true) });
        }
        let range = "169.254.100.0/22".parse().unwrap();
        let expected = [
            ("10.99.0.2/32", NEVER),
            ("169.254.0.0/16", 16),
            ("169.254.100.0/22", NEVER),
            ("192.168.1.0/24", 24),
            ("192.168.1.1/32", NEVER),
        ];
        assert_eq!(host.hosts(&[range]), expected.map(|(n, l)| (net(n), l)).into());
    }

    #[test]
    fn only_what_carries_slots_packets_is_opened() {
        assert_eq!(host().carriers(std::iter::empty()), BTreeSet::from([2]));
        let lan = std::iter::once(net("192.168.1.10/32"));
        assert_eq!(host().carriers(lan), BTreeSet::from([2, 3]));
    }
}
