//! Who is examined, and what its policy lets out.
//!
//! Owns: the expectation, from the effective policy and from what only this host knows. Refuses:
//! asking the kernel; this is what the kernel is compared with.

use crate::vm::plan::GroupPlan;
use enisle_net::plan::{Block, Range};
use enisle_net::policy::{CompiledPolicy, Origin, Proto, Rule, Verdict};
use ipnet::Ipv4Net;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;

/// One guest and its surroundings.
pub(super) struct Subject {
    pub(super) block: Block,
    pub(super) group: Arc<GroupPlan>,
    /// Its effective policy of the moment the examination began.
    pub(super) policy: CompiledPolicy,
    /// Every entry of its group's and of its own `drop` list.
    pub(super) drop: Vec<Rule>,
    /// The host's own addresses with their subnets.
    pub(super) hosts: Vec<Ipv4Net>,
    /// Blocks of other VMs that live now.
    pub(super) siblings: Vec<Block>,
    /// Where the daemon listens on every address of the host.
    pub(super) canary: u16,
    /// What the positive controls are sent to.
    pub(super) control: SocketAddrV4,
}

impl Subject {
    /// The host's addresses that a guest could ask for.
    pub(super) fn own_addresses(&self) -> impl Iterator<Item = Ipv4Addr> + '_ {
        self.hosts.iter().map(Ipv4Net::addr).filter(|address| !address.is_loopback())
    }

    pub(super) fn range(&self) -> Range {
        self.group.config.network.range
    }

    /// Whether the contract lets a packet to `address` out; `port` is `None` for ICMP.
    pub(super) fn lets_out(&self, address: Ipv4Addr, proto: Proto, port: Option<u16>) -> bool {
        let never = self.own_addresses().any(|own| own == address)
            || self.range().net().contains(&address)
            || self.siblings.iter().any(|sibling| sibling.net().contains(&address));
        let policy = &self.policy;
        let (verdict, rule) = policy.judge(address, proto, port);
        if never || verdict == Verdict::Refuse {
            return false;
        }
        let subnet = self.hosts.iter().filter(|net| net.contains(&address)).map(Ipv4Net::prefix_len).max();
        let opened = match policy.rule(rule) {
            Some(info) if matches!(info.origin, Origin::Allow(_)) => info.net.prefix_len(),
            _ => 0,
        };
        subnet.is_none_or(|needed| opened >= needed)
    }
}
