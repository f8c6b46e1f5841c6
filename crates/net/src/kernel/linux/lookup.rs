//! Reading back on Linux: the judge's maps, and ctnetlink.

use std::net::Ipv4Addr;

use super::Linux;
use crate::judge::{AddressEntry, PolicyId, PortRow, VerdictValue};
use crate::kernel::Answer;
use crate::kernel::lookup::{Lookup, PortQuestion};
use crate::kernel::netns::lock;
use crate::kernel::told::Ring;
use crate::netlink::conntrack::{self, LiveFlow};

impl Lookup for Linux {
    fn slot_policy(&self, id: u32) -> Answer<Option<PolicyId>> {
        self.judge.slot_policy(id)
    }

    fn find_address(&self, policy: PolicyId, address: Ipv4Addr) -> Answer<Option<VerdictValue>> {
        self.judge.find_address(policy, address)
    }

    fn find_port(&self, policy: PolicyId, port: PortQuestion) -> Answer<Option<VerdictValue>> {
        self.judge.find_port(policy, port)
    }

    fn find_host(&self, address: Ipv4Addr) -> Answer<Option<u32>> {
        self.judge.find_host(address)
    }

    fn refusals(&self, id: u32) -> Answer<Vec<(u32, u64)>> {
        self.judge.refusals(id)
    }

    fn refusals_below(&self, id: u32, rules: u32) -> Answer<Vec<(u32, u64)>> {
        self.judge.refusals_below(id, rules)
    }

    fn take_reports(&self) -> Answer<Ring> {
        self.judge.take_reports()
    }

    fn untold(&self, id: u32) -> Answer<u64> {
        self.judge.untold(id)
    }

    fn address_rows(&self, policy: PolicyId) -> Answer<Vec<AddressEntry>> {
        self.judge.address_rows(policy)
    }

    fn port_rows(&self, policy: PolicyId) -> Answer<Vec<PortRow>> {
        self.judge.port_rows(policy)
    }

    fn flows(&self, guest: Ipv4Addr) -> Answer<Vec<LiveFlow>> {
        let mut flows = Vec::new();
        let request = conntrack::dump_request(Some(guest));
        lock(&self.flows).dump("listing connection-tracking entries", request, |m| {
            flows.extend(conntrack::parse_live(m, guest));
        })?;
        Ok(flows)
    }
}
