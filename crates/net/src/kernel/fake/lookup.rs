//! Reading back from the kernel in memory. Not counted as calls: nothing that changes the kernel
//! depends on them.

use std::net::Ipv4Addr;

use super::Fake;
use crate::judge::{AddressEntry, PolicyId, PortRow, VerdictValue};
use crate::kernel::lookup::{Lookup, PortQuestion, longest};
use crate::kernel::told::Ring;
use crate::kernel::{Answer, KernelError};
use crate::netlink::conntrack::LiveFlow;

impl Lookup for Fake {
    fn slot_policy(&self, id: u32) -> Answer<Option<PolicyId>> {
        Ok(self.state().slots.get(&id).map(|slot| slot.policy))
    }

    fn find_address(&self, policy: PolicyId, address: Ipv4Addr) -> Answer<Option<VerdictValue>> {
        let rows = self.address_rows(policy)?;
        Ok(longest(rows.iter().map(|e| (e.net, e.verdict)), address).map(|(_, verdict)| verdict))
    }

    fn find_port(&self, policy: PolicyId, q: PortQuestion) -> Answer<Option<VerdictValue>> {
        let rows = self.port_rows(policy)?;
        let found = rows
            .iter()
            .filter(|r| (r.table, r.proto) == (q.table, q.proto) && port_holds(r.port, r.len, q.port))
            .max_by_key(|r| r.len);
        Ok(found.map(|row| row.verdict))
    }

    fn find_host(&self, address: Ipv4Addr) -> Answer<Option<u32>> {
        Ok(longest(self.state().hosts.into_iter(), address).map(|(_, needed)| needed))
    }

    fn refusals(&self, _: u32) -> Answer<Vec<(u32, u64)>> {
        Ok(Vec::new())
    }

    fn refusals_below(&self, _: u32, _: u32) -> Answer<Vec<(u32, u64)>> {
        Ok(Vec::new())
    }

    fn take_reports(&self) -> Answer<Ring> {
        Err(KernelError::new(
            "reading reports of the judge",
            std::io::Error::from(std::io::ErrorKind::Unsupported),
        ))
    }

    fn untold(&self, _: u32) -> Answer<u64> {
        Ok(0)
    }

    fn address_rows(&self, policy: PolicyId) -> Answer<Vec<AddressEntry>> {
        Ok(self.state().addresses.iter().filter(|(p, _)| *p == policy).map(|(_, e)| *e).collect())
    }

    fn port_rows(&self, policy: PolicyId) -> Answer<Vec<PortRow>> {
        Ok(self.state().ports.iter().filter(|(p, _)| *p == policy).map(|(_, r)| *r).collect())
    }

    fn flows(&self, _: Ipv4Addr) -> Answer<Vec<LiveFlow>> {
        Ok(Vec::new())
    }
}

/// Whether a row with `len` leading bits of `port` holds `asked`.
fn port_holds(port: u16, len: u8, asked: u16) -> bool {
    let mask = u16::MAX.checked_shl(16 - u32::from(len.min(16))).unwrap_or(0);
    asked & mask == port & mask
}
