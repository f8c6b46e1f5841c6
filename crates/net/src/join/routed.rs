//! Mode `isolated`: the host routes to the slot, and the host's end has no address.

use std::net::Ipv4Addr;

use super::Join;
use crate::kernel::Program;
use crate::netlink::route::{Change, Link, LinkSettings, Neighbour, Route};
use crate::plan::Block;
use crate::surroundings::Surroundings;

/// The way of isolated VMs.
pub(crate) struct Routed;

impl Join for Routed {
    fn programs(&self) -> [Program; 2] {
        [Program::FromGuest, Program::ToGuest]
    }

    /// Forwarding on this interface alone, no address at all, one route, one neighbour.
    fn outside(&self, block: Block, alias: String) -> Vec<Change> {
        let index = block.host_ifindex();
        let guest: Ipv4Addr = block.guest();
        let settings = LinkSettings {
            alias: Some(alias),
            forwarding: Some(true),
            strict_source: true,
            no_ipv6_address: true,
            ..LinkSettings::default()
        };
        vec![
            Change::Settings(index, settings),
            Change::Up(index),
            Change::Neighbour(index, guest, block.guest_mac()),
            Change::HostRoute(index, guest),
        ]
    }

    /// Named, nobody's port, up, forwarding, without an address, with its one neighbour and its one route.
    fn mend(&self, block: Block, link: &Link, around: &Surroundings) -> Vec<Change> {
        let index = block.host_ifindex();
        let guest = block.guest();
        let mut changes = Vec::new();
        let name = block.host_veth();
        let renamed = link.name != name.as_str();
        if renamed {
            // Kernels before 6.2 rename no interface that is up.
            changes.extend([Change::Down(index), Change::Name(index, name.as_str().to_owned())]);
        }
        if !link.forwarding || !link.no_ipv6_address {
            let settings = LinkSettings {
                forwarding: (!link.forwarding).then_some(true),
                no_ipv6_address: !link.no_ipv6_address,
                ..LinkSettings::default()
            };
            changes.push(Change::Settings(index, settings));
        }
        // A port of somebody's bridge has no routed packets.
        if link.master.is_some() {
            changes.push(Change::Master(index, 0));
        }
        // After the settings: an interface that comes up gets a link-local address unless they say no.
        if renamed || !link.up {
            changes.push(Change::Up(index));
        }
        let addresses = around.addresses.iter().filter(|a| a.index == index);
        changes.extend(addresses.map(|a| Change::RemoveAddress(index, a.net)));
        // An interface that goes down takes its neighbours and routes along.
        let fresh = renamed || !link.up;
        let neighbour = Neighbour { index, ip: guest, mac: block.guest_mac() };
        if fresh || !around.neighbours.contains(&neighbour) {
            changes.push(Change::Neighbour(index, guest, block.guest_mac()));
        }
        let route =
            |r: &Route| r.ours && r.net.prefix_len() == 32 && r.net.addr() == guest && r.links == [index];
        if fresh || !around.routes.iter().any(route) {
            changes.push(Change::RestoreRoute(index, guest));
        }
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::route::Address;

    fn changes(block: Block, link: &Link, around: &Surroundings) -> Vec<Change> {
        Routed.mend(block, link, around)
    }

    fn block() -> Block {
        Block::from_guest(Ipv4Addr::new(169, 254, 100, 2))
    }

    fn right() -> (Link, Surroundings) {
        let (index, ip) = (block().host_ifindex(), block().guest());
        let link = Link {
            index,
            name: "en-a9fe6402".into(),
            group: 9,
            forwarding: true,
            no_ipv6_address: true,
            up: true,
            ..Link::default()
        };
        let around = Surroundings {
            routes: vec![Route { net: ip.into(), links: vec![index], on_link: true, ours: true }],
            neighbours: vec![Neighbour { index, ip, mac: block().guest_mac() }],
            ..Surroundings::default()
        };
        (link, around)
    }

    #[test]
    fn what_is_right_is_left_alone() {
        let (link, around) = right();
        assert_eq!(changes(block(), &link, &around), []);
    }

    #[test]
    fn each_thing_is_put_right_by_its_own_change() {
        let (index, ip) = (block().host_ifindex(), block().guest());
        let (mut link, mut around) = right();
        around.routes[0].ours = false;
        assert_eq!(changes(block(), &link, &around), [Change::RestoreRoute(index, ip)]);
        around.routes[0].ours = true;
        around.neighbours[0].mac = block().host_mac();
        assert_eq!(changes(block(), &link, &around), [Change::Neighbour(index, ip, block().guest_mac())]);
        link.master = Some(5);
        (_, around) = right();
        assert_eq!(changes(block(), &link, &around), [Change::Master(index, 0)]);
        link.master = None;
        let net = "10.0.0.5/24".parse().unwrap();
        around.addresses = vec![Address { index, net }, Address { index: 2, net }];
        assert_eq!(changes(block(), &link, &around), [Change::RemoveAddress(index, net)]);
        (_, around) = right();
        link.up = false;
        assert_eq!(changes(block(), &link, &around).len(), 3, "up, neighbour, route");
        link.no_ipv6_address = false;
        let settings = LinkSettings { no_ipv6_address: true, ..LinkSettings::default() };
        let both = [Change::Settings(index, settings.clone()), Change::Up(index)];
        assert_eq!(changes(block(), &link, &around)[..2], both);
        link.up = true;
        assert_eq!(changes(block(), &link, &around), [Change::Settings(index, settings)]);
        link.no_ipv6_address = true;
        link.name = "lan7".into();
        let all = changes(block(), &link, &around);
        assert_eq!(all[..2], [Change::Down(index), Change::Name(index, "en-a9fe6402".into())]);
        assert_eq!(all.len(), 5);
    }
}
