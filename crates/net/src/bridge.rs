//! Bridges that VMs are ports of: what one is to be, and what the host's table says about it.
//!
//! Owns: the [`Bridge`] of a group, its rules. Refuses: making it (`engine`), joining slots to it (`join`), and what the
//! judge checks of each frame (`bpf/port.h`).
//!
//! On a bridge VMs see each other, and by routing the network sees them. What the table adds: nothing passes between an
//! isolated VM and one on a bridge, nor between two bridges, unless both are routed between; flows that leave the subnet are
//! limited for each VM as an isolated VM's are, and masqueraded.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::host_table::ALL_LINKS;
use crate::netlink::route::Link;
use crate::nft::{Element, Rule};
use crate::plan::{Block, MacAddr, Range};
use crate::scope::Scope;

/// Interface indexes of this daemon's bridges.
pub(crate) const BRIDGES: &str = "bridges";
/// Those between which packets are routed.
pub(crate) const ROUTED: &str = "routed_bridges";
/// Chains that a table with bridges has more than one without.
pub(crate) const CHAINS: [&str; 3] = ["between_bridges", "from_bridge", "to_bridge"];

/// A bridge that a group's VMs are on. It is made where it is missing and then removed at the end; one that is somebody
/// else's is used as it is, and gets nothing but ports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// The interface's name, 1 to 15 bytes.
    pub name: String,
    /// The guests' gateway with the length of the subnet. A bridge of ours has this address.
    pub gateway: Ipv4Net,
    /// Where VMs get their blocks: inside the subnet, without the gateway. A VM's address is its block's, and its name
    /// server has the address before, inside the VM's own namespace.
    pub range: Range,
    /// VMs reach the host and what is beyond, not each other.
    pub isolate_ports: bool,
    /// An interface that a bridge of ours gets as a port.
    pub uplink: Option<String>,
    /// Packets are routed between this bridge and others that say so, too.
    pub route_between: bool,
}

impl Bridge {
    /// The MAC of a bridge of ours; its last four bytes are the gateway's address.
    pub(crate) fn mac(&self) -> MacAddr {
        MacAddr::from_ip(self.gateway.addr())
    }

    /// Whether an address can be the gateway of VMs with blocks in this range.
    #[must_use]
    pub fn fits(gateway: Ipv4Net, range: Range) -> bool {
        let own: Ipv4Addr = gateway.addr();
        gateway.trunc().contains(&range.net()) && !range.net().contains(&own)
    }
}

/// A bridge that is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Placed {
    pub(crate) bridge: Bridge,
    pub(crate) index: u32,
    /// We made it.
    pub(crate) ours: bool,
}

/// Whether an engine of this scope made it.
pub(crate) fn is_own(link: &Link, scope: Scope) -> bool {
    link.is_bridge && link.group == scope.bridge_group()
}

/// The bridge a block's VM is on.
pub(crate) fn of(placed: &[Placed], block: Block) -> Option<&Placed> {
    placed.iter().find(|placed| placed.bridge.range.contains(block))
}

/// The ranges whose VMs are isolated.
pub(crate) fn isolated<'a>(ranges: &'a [Range], placed: &'a [Placed]) -> impl Iterator<Item = &'a Range> {
    ranges.iter().filter(|range| !placed.iter().any(|placed| placed.bridge.range == **range))
}

/// Elements of [`BRIDGES`], and of [`ROUTED`].
pub(crate) fn elements(placed: &[Placed]) -> (Vec<Element>, Vec<Element>) {
    let element = |placed: &Placed| Element::value(&placed.index.to_ne_bytes());
    let routed = placed.iter().filter(|placed| placed.bridge.route_between);
    (placed.iter().map(element).collect(), routed.map(element).collect())
}

/// Rules for packets from isolated VMs: none is for a VM on a bridge.
pub(crate) fn from_isolated(placed: &[Placed]) -> Vec<(&'static str, Rule)> {
    let refuse =
        |p: &Placed| ("from_slot", Rule::new().destination_within(p.bridge.range.net()).goto("refuse"));
    placed.iter().map(refuse).collect()
}

/// Rules of the forward hook, after those for isolated VMs' interfaces.
pub(crate) fn forward(placed: &[Placed]) -> Vec<(&'static str, Rule)> {
    let r = Rule::new;
    if placed.is_empty() {
        return Vec::new();
    }
    let mut rules = Vec::new();
    for Placed { index, .. } in placed {
        // Bridged packets come by here, too, where `br_netfilter` is on.
        rules.push(("forward", r().iif(*index).oif(*index).accept()));
    }
    rules.push(("forward", r().iif_in(BRIDGES).oif_in(BRIDGES).jump("between_bridges")));
    rules.push(("between_bridges", r().iif_in(ROUTED).oif_in(ROUTED).back()));
    rules.push(("between_bridges", r().goto("refuse")));
    for Placed { bridge, index, .. } in placed {
        let range = bridge.range.net();
        // Another daemon's isolated VM.
        rules.push(("forward", r().iif_within(ALL_LINKS).destination_within(range).goto("refuse")));
        rules.push(("forward", r().iif(*index).source_within(range).goto("from_bridge")));
        rules.push(("forward", r().oif(*index).destination_within(range).goto("to_bridge")));
    }
    rules.extend([
        ("from_bridge", r().ct_begins().jump("new_flow")),
        ("from_bridge", r().clamp_mss()),
        ("from_bridge", r().accept()),
        ("to_bridge", r().clamp_mss()),
        ("to_bridge", r().accept()),
    ]);
    rules
}

/// Rules that translate, after those for isolated VMs: what goes from one bridge to another keeps its address.
pub(crate) fn postrouting(placed: &[Placed]) -> Vec<(&'static str, Rule)> {
    if placed.is_empty() {
        return Vec::new();
    }
    let mut rules = vec![("postrouting", Rule::new().oif_in(BRIDGES).accept())];
    let masquerade =
        |p: &Placed| ("postrouting", Rule::new().source_within(p.bridge.range.net()).masquerade());
    rules.extend(placed.iter().map(masquerade));
    rules
}
