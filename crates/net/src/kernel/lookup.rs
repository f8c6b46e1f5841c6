//! What the kernel holds, read back: the judge's maps as the judge itself would find them, and the
//! flows of one guest.
//!
//! Owns: the questions, and handing out the ring of refused packets, once. Refuses: judging the answers
//! (`engine::explain`), changing anything.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::Answer;
use super::told::Ring;
use crate::judge::{AddressEntry, PolicyId, PortRow, VerdictValue};
use crate::netlink::conntrack::LiveFlow;

/// Reading back. Each lookup is the kernel's own, longest prefix first.
pub(crate) trait Lookup {
    /// The policy of a slot; `None` where the judge knows no such slot.
    fn slot_policy(&self, id: u32) -> Answer<Option<PolicyId>>;
    /// The row of `addresses` that decides about an address.
    fn find_address(&self, policy: PolicyId, address: Ipv4Addr) -> Answer<Option<VerdictValue>>;
    /// The row of `ports` that decides about a port of one table.
    fn find_port(&self, policy: PolicyId, port: PortQuestion) -> Answer<Option<VerdictValue>>;
    /// What the map of this host says about an address.
    fn find_host(&self, address: Ipv4Addr) -> Answer<Option<u32>>;
    /// Packets of a slot's guest that were refused, by who refused them.
    fn refusals(&self, id: u32) -> Answer<Vec<(u32, u64)>>;
    /// The same in bounded time: rules from this number on come together, as `BY_OTHERS`.
    fn refusals_below(&self, id: u32, rules: u32) -> Answer<Vec<(u32, u64)>>;
    /// The judge's reports, for one reader; `EBUSY` for the second.
    fn take_reports(&self) -> Answer<Ring>;
    /// Packets of a slot that were refused without a report.
    fn untold(&self, id: u32) -> Answer<u64>;
    /// Every row of `addresses` that a policy has.
    fn address_rows(&self, policy: PolicyId) -> Answer<Vec<AddressEntry>>;
    /// Every row of `ports` that a policy has.
    fn port_rows(&self, policy: PolicyId) -> Answer<Vec<PortRow>>;
    /// The flows a guest has begun, as connection tracking knows them.
    fn flows(&self, guest: Ipv4Addr) -> Answer<Vec<LiveFlow>>;
}

/// Which row of `ports`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct PortQuestion {
    pub(crate) table: u32,
    pub(crate) proto: u8,
    pub(crate) port: u16,
}

/// The longest of the networks that hold an address.
pub(crate) fn longest<T>(
    rows: impl Iterator<Item = (Ipv4Net, T)>,
    address: Ipv4Addr,
) -> Option<(Ipv4Net, T)> {
    rows.filter(|(net, _)| net.contains(&address)).max_by_key(|(net, _)| net.prefix_len())
}
