//! Mode `bridge`: the host's end is a port of a bridge.

use super::Join;
use crate::bridge::Placed;
use crate::kernel::Program;
use crate::netlink::route::{Change, Link, LinkSettings};
use crate::plan::Block;
use crate::surroundings::Surroundings;

impl Join for Placed {
    fn programs(&self) -> [Program; 2] {
        [Program::FromPort, Program::ToPort]
    }

    /// A port routes nothing: should it ever be without its bridge, its packets go nowhere.
    fn outside(&self, block: Block, alias: String) -> Vec<Change> {
        let index = block.host_ifindex();
        let settings = LinkSettings {
            alias: Some(alias),
            forwarding: Some(false),
            strict_source: true,
            no_ipv6_address: true,
            ..LinkSettings::default()
        };
        let mut changes = vec![Change::Settings(index, settings), Change::Master(index, self.index)];
        if self.bridge.isolate_ports {
            changes.push(Change::IsolatedPort(index, true));
        }
        changes.push(Change::Up(index));
        changes
    }

    fn mend(&self, block: Block, link: &Link, around: &Surroundings) -> Vec<Change> {
        let index = block.host_ifindex();
        let mut changes = Vec::new();
        let name = block.host_veth();
        let renamed = link.name != name.as_str();
        if renamed {
            changes.extend([Change::Down(index), Change::Name(index, name.as_str().to_owned())]);
        }
        if link.forwarding || !link.no_ipv6_address {
            let settings = LinkSettings {
                forwarding: Some(false),
                no_ipv6_address: !link.no_ipv6_address,
                ..LinkSettings::default()
            };
            changes.push(Change::Settings(index, settings));
        }
        if link.master != Some(self.index) {
            changes.push(Change::Master(index, self.index));
        }
        // A port that joins anew is no isolated one.
        let joined = link.master == Some(self.index);
        if self.bridge.isolate_ports != (joined && link.isolated_port) {
            changes.push(Change::IsolatedPort(index, self.bridge.isolate_ports));
        }
        if renamed || !link.up {
            changes.push(Change::Up(index));
        }
        let addresses = around.addresses.iter().filter(|a| a.index == index);
        changes.extend(addresses.map(|a| Change::RemoveAddress(index, a.net)));
        changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bridge::Bridge;
    use std::net::Ipv4Addr;

    fn placed(isolate_ports: bool) -> Placed {
        let bridge = Bridge {
            name: "lab0".into(),
            gateway: "10.77.0.1/24".parse().unwrap(),
            range: "10.77.0.128/25".parse().unwrap(),
            isolate_ports,
            uplink: None,
            route_between: false,
        };
        Placed { bridge, index: 7, ours: true }
    }

    fn link() -> Link {
        Link {
            name: "en-0a4d0082".into(),
            index: block().host_ifindex(),
            no_ipv6_address: true,
            up: true,
            master: Some(7),
            ..Link::default()
        }
    }

    fn block() -> Block {
        Block::from_guest(Ipv4Addr::new(10, 77, 0, 130))
    }

    #[test]
    fn what_is_right_is_left_alone_and_each_thing_is_put_right_by_its_own_change() {
        let index = block().host_ifindex();
        let mend = |isolate, link: &Link| placed(isolate).mend(block(), link, &Surroundings::default());
        assert_eq!(mend(false, &link()), []);
        assert_eq!(mend(true, &Link { isolated_port: true, ..link() }), []);
        assert_eq!(mend(true, &link()), [Change::IsolatedPort(index, true)]);
        assert_eq!(
            mend(false, &Link { isolated_port: true, ..link() }),
            [Change::IsolatedPort(index, false)]
        );
        assert_eq!(mend(false, &Link { master: None, ..link() }), [Change::Master(index, 7)]);
        assert_eq!(
            mend(true, &Link { master: Some(8), isolated_port: true, ..link() }),
            [Change::Master(index, 7), Change::IsolatedPort(index, true)]
        );
        assert_eq!(mend(false, &Link { up: false, ..link() }), [Change::Up(index)]);
        let closed = LinkSettings { forwarding: Some(false), ..LinkSettings::default() };
        assert_eq!(mend(false, &Link { forwarding: true, ..link() }), [Change::Settings(index, closed)]);
        let renamed = mend(false, &Link { name: "lan7".into(), ..link() });
        assert_eq!(renamed.len(), 3, "down, name, up: {renamed:?}");
    }
}
