//! The judge's maps read back, and what it counted by rule.
//!
//! Owns: lookups of single keys (the kernel finds the longest prefix), walks over whole maps, the
//! rows of `refusals`. Refuses: what the answers mean.

use std::net::Ipv4Addr;

use aya::maps::lpm_trie::Key;
use aya::maps::{MapError, PerCpuHashMap, PerCpuValues};
use ipnet::Ipv4Net;

use super::{Judge, MapData, POLICY_BITS, PORT_BITS, absent_is_fine, map_answer};
use crate::judge::{AddressEntry, BY_FORM, BY_OTHERS, PolicyId, PortRow, REFUSALS, VerdictValue};
use crate::kernel::Answer;
use crate::kernel::lookup::PortQuestion;
use crate::kernel::netns::lock;
use crate::policy::RuleId;

/// `struct refusal_key` and `struct refusals` (packets; rows and highest in one word each way).
pub(super) type RefusalMap = PerCpuHashMap<MapData, [u32; 2], [u64; 2]>;

const WHAT: &str = "refusals of a slot";

impl Judge {
    pub(in crate::kernel) fn slot_policy(&self, id: u32) -> Answer<Option<PolicyId>> {
        let slot = present("entry of a slot", lock(&self.slots).get(&id, 0))?;
        Ok(slot.map(|bytes| PolicyId(word(&bytes[8..12]))))
    }

    pub(in crate::kernel) fn find_address(
        &self,
        policy: PolicyId,
        address: Ipv4Addr,
    ) -> Answer<Option<VerdictValue>> {
        let mut data = [0; 8];
        data[0..4].copy_from_slice(&policy.0.to_ne_bytes());
        data[4..8].copy_from_slice(&address.octets());
        let found = lock(&self.addresses).get(&Key::new(POLICY_BITS + 32, data), 0);
        Ok(present("policy entry", found)?.map(|bytes| verdict(&bytes)))
    }

    pub(in crate::kernel) fn find_port(
        &self,
        policy: PolicyId,
        q: PortQuestion,
    ) -> Answer<Option<VerdictValue>> {
        let mut data = [0; 12];
        data[0..4].copy_from_slice(&policy.0.to_ne_bytes());
        data[4..8].copy_from_slice(&q.table.to_ne_bytes());
        data[8] = q.proto;
        data[10..12].copy_from_slice(&q.port.to_be_bytes());
        let found = lock(&self.ports).get(&Key::new(PORT_BITS + 16, data), 0);
        Ok(present("port entry", found)?.map(|bytes| verdict(&bytes)))
    }

    pub(in crate::kernel) fn find_host(&self, address: Ipv4Addr) -> Answer<Option<u32>> {
        present("host network", lock(&self.hosts).get(&Key::new(32, address.octets()), 0))
    }

    pub(in crate::kernel) fn address_rows(&self, policy: PolicyId) -> Answer<Vec<AddressEntry>> {
        let map = lock(&self.addresses);
        let mut rows = Vec::new();
        for row in map.iter() {
            let (key, value) = map_answer("policy entries", row)?;
            let data = key.data();
            let len = u8::try_from(key.prefix_len().saturating_sub(POLICY_BITS)).unwrap_or(u8::MAX);
            let address = Ipv4Addr::from([data[4], data[5], data[6], data[7]]);
            if let (true, Ok(net)) = (word(&data[0..4]) == policy.0, Ipv4Net::new(address, len)) {
                rows.push(AddressEntry { net, verdict: verdict(&value) });
            }
        }
        Ok(rows)
    }

    pub(in crate::kernel) fn port_rows(&self, policy: PolicyId) -> Answer<Vec<PortRow>> {
        let map = lock(&self.ports);
        let mut rows = Vec::new();
        for row in map.iter() {
            let (key, value) = map_answer("port entries", row)?;
            let data = key.data();
            if word(&data[0..4]) != policy.0 {
                continue;
            }
            rows.push(PortRow {
                table: word(&data[4..8]),
                proto: data[8],
                port: u16::from_be_bytes([data[10], data[11]]),
                len: u8::try_from(key.prefix_len().saturating_sub(PORT_BITS)).unwrap_or(u8::MAX),
                verdict: verdict(&value),
            });
        }
        Ok(rows)
    }

    /// Packets of a slot's guest that were refused, by who refused them.
    pub(in crate::kernel) fn refusals(&self, id: u32) -> Answer<Vec<(u32, u64)>> {
        let map = lock(&self.refusals);
        let Some(own) = present(WHAT, map.get(&[id, REFUSALS], 0))? else { return Ok(Vec::new()) };
        let highest = highest_of(&own);
        counts(&map, id, (0..=highest).chain(BY_FORM..=BY_OTHERS))
    }

    /// The same, those of rules from this number on together.
    pub(in crate::kernel) fn refusals_below(&self, id: u32, rules: u32) -> Answer<Vec<(u32, u64)>> {
        let map = lock(&self.refusals);
        // First: what is refused meanwhile is missing from the rest, and there the next time.
        let Some(own) = present(WHAT, map.get(&[id, REFUSALS], 0))? else { return Ok(Vec::new()) };
        let ends = highest_of(&own).saturating_add(1).min(rules);
        let mut counts = counts(&map, id, (0..ends).chain(BY_FORM..BY_OTHERS))?;
        let all: u64 = own.iter().map(|cpu| cpu[0]).sum();
        let known: u64 = counts.iter().map(|(_, packets)| packets).sum();
        counts.push((BY_OTHERS, all.saturating_sub(known)));
        Ok(counts)
    }

    /// Removes them: with the slot, and where its rules get other numbers.
    pub(super) fn forget_refusals(&self, id: u32) -> Answer<()> {
        let mut map = lock(&self.refusals);
        let Some(highest) = highest(&map, id)? else { return Ok(()) };
        // The slot's own row last: while it is there, the others can be found.
        for rule in (0..=highest).chain(BY_FORM..=BY_OTHERS).chain([REFUSALS]) {
            absent_is_fine(WHAT, map.remove(&[id, rule]))?;
        }
        Ok(())
    }
}

/// The highest rule with a count; `None` where nothing was refused yet.
fn highest(map: &RefusalMap, id: u32) -> Answer<Option<u32>> {
    Ok(present(WHAT, map.get(&[id, REFUSALS], 0))?.map(|own| highest_of(&own)))
}

fn highest_of(own: &PerCpuValues<[u64; 2]>) -> u32 {
    // `rows` and `highest` are two words in memory, in this order.
    let second = |cpu: &[u64; 2]| word(&cpu[1].to_ne_bytes()[4..8]);
    own.iter().map(second).max().unwrap_or(0)
}

fn counts(map: &RefusalMap, id: u32, refusers: impl Iterator<Item = u32>) -> Answer<Vec<(u32, u64)>> {
    let mut counts = Vec::new();
    for refuser in refusers {
        if let Some(cpus) = present(WHAT, map.get(&[id, refuser], 0))? {
            counts.push((refuser, cpus.iter().map(|cpu| cpu[0]).sum()));
        }
    }
    Ok(counts)
}

/// `None` for a key that is not there.
fn present<T>(what: &str, found: Result<T, MapError>) -> Answer<Option<T>> {
    match map_answer(what, found) {
        Ok(value) => Ok(Some(value)),
        Err(e) if e.is_absent() => Ok(None),
        Err(e) => Err(e),
    }
}

fn word(bytes: &[u8]) -> u32 {
    bytes.try_into().map_or(0, u32::from_ne_bytes)
}

fn verdict(bytes: &[u8; 12]) -> VerdictValue {
    VerdictValue {
        rule: RuleId(word(&bytes[0..4])),
        table: word(&bytes[4..8]),
        allow: bytes[8] != 0,
        fragments: bytes[9] != 0,
        opens: bytes[10],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_read_as_it_is_written() {
        let value = VerdictValue { rule: RuleId(3), table: 2, allow: true, fragments: false, opens: 24 };
        assert_eq!(verdict(&super::super::verdict_bytes(&value)), value);
    }
}
