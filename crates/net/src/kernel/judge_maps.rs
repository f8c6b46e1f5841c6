//! The judge in the kernel: loading it once, its maps.
//!
//! Owns: the embedded object, byte layouts of keys and values (`bpf/judge.c`). Refuses: attaching
//! (rtnetlink does that), what the rows mean (`judge`).

mod lookup;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Mutex;

use aya::maps::lpm_trie::Key;
use aya::maps::{HashMap, LpmTrie, Map, MapData, MapError, PerCpuHashMap, PerCpuValues};
use aya::programs::SchedClassifier;
use aya::util::nr_cpus;
use aya::{Ebpf, EbpfLoader};
use ipnet::Ipv4Net;

use super::netns::lock;
use super::told::Ring;
use super::{Answer, KernelError, Program};
use crate::judge::{AddressEntry, COUNTERS, Counters, PolicyId, PortRow, SlotEntry, VerdictValue};

/// Alignment as an ELF reader wants it.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/judge.o"));

/// `struct counters`: packets and bytes of each counter, and the two words of the limit.
type CountersValue = [u64; 2 * COUNTERS + 2];
/// `struct fragments`; all but its first word is the judge's own.
const FRAGMENTS: usize = 48;
type SlotMap = HashMap<MapData, u32, [u8; 28]>;
/// `struct teller`; all but its first word is the judge's own.
const TELLER: usize = 24;
type TellerMap = HashMap<MapData, u32, [u8; TELLER]>;
type FragmentMap = HashMap<MapData, u32, [u8; FRAGMENTS]>;
type CounterMap = PerCpuHashMap<MapData, u32, CountersValue>;
type AddressMap = LpmTrie<MapData, [u8; 8], [u8; 12]>;
type HostMap = LpmTrie<MapData, [u8; 4], u32>;
type PortMap = LpmTrie<MapData, [u8; 12], [u8; 12]>;

/// Bits of an LPM key before the address or the port.
const POLICY_BITS: u32 = 32;
const PORT_BITS: u32 = 80;

/// The loaded programs and their maps. Dropping it unloads them, unless an interface still holds
/// a program.
pub(super) struct Judge {
    programs: Ebpf,
    slots: Mutex<SlotMap>,
    counters: Mutex<CounterMap>,
    fragments: Mutex<FragmentMap>,
    tellers: Mutex<TellerMap>,
    /// Until somebody takes it.
    told: Mutex<Option<Ring>>,
    addresses: Mutex<AddressMap>,
    ports: Mutex<PortMap>,
    hosts: Mutex<HostMap>,
    refusals: Mutex<lookup::RefusalMap>,
}

fn name(program: Program) -> &'static str {
    match program {
        Program::FromGuest => "from_guest",
        Program::ToGuest => "to_guest",
        Program::FromPort => "from_port",
        Program::ToPort => "to_port",
    }
}

impl Judge {
    /// Loads the programs.
    pub(super) fn load() -> Answer<Judge> {
        let other = |e: &dyn std::error::Error| {
            KernelError::new("loading the judge (bpf)", io::Error::other(describe(e)))
        };
        let mut programs = EbpfLoader::new().load(OBJECT).map_err(|e| other(&e))?;
        for which in [Program::FromGuest, Program::ToGuest, Program::FromPort, Program::ToPort] {
            let program = programs.program_mut(name(which)).ok_or_else(|| missing(name(which)))?;
            let classifier: &mut SchedClassifier = program.try_into().map_err(|e| other(&e))?;
            classifier.load().map_err(|e| other(&e))?;
        }
        Ok(Judge {
            slots: Mutex::new(take(&mut programs, "slots")?),
            counters: Mutex::new(take(&mut programs, "counters")?),
            fragments: Mutex::new(take(&mut programs, "fragments")?),
            tellers: Mutex::new(take(&mut programs, "tellers")?),
            told: Mutex::new(Some(Ring::new(take(&mut programs, "told")?))),
            addresses: Mutex::new(take(&mut programs, "addresses")?),
            ports: Mutex::new(take(&mut programs, "ports")?),
            hosts: Mutex::new(take(&mut programs, "hosts")?),
            refusals: Mutex::new(take(&mut programs, "refusals")?),
            programs,
        })
    }

    /// The program's descriptor and the name it is attached under.
    pub(super) fn program(&self, which: Program) -> Answer<(BorrowedFd<'_>, &'static str)> {
        let program = self.programs.program(name(which)).ok_or_else(|| missing(name(which)))?;
        let fd = program.fd().map_err(|e| KernelError::new(name(which), io::Error::other(e)))?;
        Ok((fd.as_fd(), name(which)))
    }

    pub(super) fn set_slot(&self, id: u32, slot: &SlotEntry) -> Answer<()> {
        let mut counters = lock(&self.counters);
        if counters.get(&id, 0).is_err() {
            let cpus = nr_cpus().map_err(|(_, e)| KernelError::new("counting CPUs", e))?;
            let zero = PerCpuValues::try_from(vec![[0; 2 * COUNTERS + 2]; cpus])
                .map_err(|e| KernelError::new("counters of a slot", e))?;
            map_answer("counters of a slot", counters.insert(id, zero, 0))?;
            let mut budget = [0; FRAGMENTS];
            budget[0..8].copy_from_slice(&slot.fragments_from.to_ne_bytes());
            let mut teller = [0; TELLER];
            teller[0..8].copy_from_slice(&slot.tenant.0.to_ne_bytes());
            let done = lock(&self.fragments).insert(id, budget, 0);
            let done = done.and_then(|()| lock(&self.tellers).insert(id, teller, 0));
            if done.is_err() {
                let _ = counters.remove(&id);
                let _ = lock(&self.fragments).remove(&id);
            }
            map_answer("fragments and reports of a slot", done)?;
        }
        let done = lock(&self.slots).insert(id, slot_bytes(slot), 0);
        if done.is_err() {
            // Never in the way of the error: the rows are removed with the slot in any case.
            let _ = counters.remove(&id);
            let _ = lock(&self.fragments).remove(&id);
            let _ = lock(&self.tellers).remove(&id);
        }
        map_answer("entry of a slot", done)?;
        // A rule's number is its place in one policy: under another it would be another rule's count.
        self.forget_refusals(id)
    }

    pub(super) fn remove_slot(&self, id: u32) -> Answer<()> {
        let slot = absent_is_fine("entry of a slot", lock(&self.slots).remove(&id));
        let counters = absent_is_fine("counters of a slot", lock(&self.counters).remove(&id));
        let fragments = absent_is_fine("fragments of a slot", lock(&self.fragments).remove(&id));
        let teller = absent_is_fine("reports of a slot", lock(&self.tellers).remove(&id));
        slot.and(counters).and(fragments).and(teller).and(self.forget_refusals(id))
    }

    /// The ring of reports, for its one reader.
    pub(super) fn take_reports(&self) -> Answer<Ring> {
        lock(&self.told).take().ok_or_else(|| {
            KernelError::new("reading reports of the judge", io::Error::from(io::ErrorKind::ResourceBusy))
        })
    }

    /// How many packets were refused without a report, since the slot has its tenant.
    pub(super) fn untold(&self, id: u32) -> Answer<u64> {
        let teller = map_answer("reports of a slot", lock(&self.tellers).get(&id, 0))?;
        Ok(u64::from_ne_bytes(std::array::from_fn(|i| teller[16 + i])))
    }

    pub(super) fn counters(&self, id: u32) -> Answer<Counters> {
        let values = map_answer("counters of a slot", lock(&self.counters).get(&id, 0))?;
        let mut sum = Counters::default();
        for cpu in values.iter() {
            let (pairs, _) = cpu.as_chunks::<2>();
            for (i, [packets, bytes]) in pairs.iter().take(COUNTERS).enumerate() {
                sum.packets[i] += packets;
                sum.bytes[i] += bytes;
            }
        }
        Ok(sum)
    }

    pub(super) fn add_address(&self, policy: PolicyId, e: &AddressEntry) -> Answer<()> {
        let value = verdict_bytes(&e.verdict);
        let done = lock(&self.addresses).insert(&address_key(policy, e), value, 0);
        map_answer("policy entry", done)
    }

    pub(super) fn remove_address(&self, policy: PolicyId, e: &AddressEntry) -> Answer<()> {
        let done = lock(&self.addresses).remove(&address_key(policy, e));
        absent_is_fine("policy entry", done)
    }

    pub(super) fn add_ports(&self, policy: PolicyId, row: &PortRow) -> Answer<()> {
        let value = verdict_bytes(&row.verdict);
        let done = lock(&self.ports).insert(&port_key(policy, row), value, 0);
        map_answer("port entry", done)
    }

    pub(super) fn set_host(&self, net: Ipv4Net, needed: u32) -> Answer<()> {
        let done = lock(&self.hosts).insert(&host_key(net), needed, 0);
        map_answer("host network", done)
    }

    pub(super) fn remove_host(&self, net: Ipv4Net) -> Answer<()> {
        absent_is_fine("host network", lock(&self.hosts).remove(&host_key(net)))
    }

    pub(super) fn remove_ports(&self, policy: PolicyId, row: &PortRow) -> Answer<()> {
        let done = lock(&self.ports).remove(&port_key(policy, row));
        absent_is_fine("port entry", done)
    }
}

fn take<M: TryFrom<Map, Error = MapError>>(programs: &mut Ebpf, map: &str) -> Answer<M> {
    let found = programs.take_map(map).ok_or_else(|| missing(map))?;
    map_answer(map, M::try_from(found))
}

fn missing(what: &str) -> KernelError {
    KernelError::new(format!("`{what}` in the judge"), io::Error::from(io::ErrorKind::NotFound))
}

fn map_answer<T>(what: &str, done: Result<T, MapError>) -> Answer<T> {
    done.map_err(|e| {
        let errno = match e {
            MapError::SyscallError(e) => e.io_error,
            MapError::KeyNotFound => io::Error::from_raw_os_error(libc::ENOENT),
            other => io::Error::other(other),
        };
        KernelError::new(format!("bpf map: {what}"), errno)
    })
}

fn absent_is_fine(what: &str, done: Result<(), MapError>) -> Answer<()> {
    match map_answer(what, done) {
        Err(e) if e.is_absent() => Ok(()),
        other => other,
    }
}

/// An error with its causes in one line: the verifier's words are at the bottom.
fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(e) = source {
        text = format!("{text}: {e}");
        source = e.source();
    }
    text
}

fn slot_bytes(slot: &SlotEntry) -> [u8; 28] {
    let mut bytes = [0; 28];
    bytes[0..4].copy_from_slice(&slot.guest.octets());
    bytes[4..8].copy_from_slice(&slot.gateway.octets());
    bytes[8..12].copy_from_slice(&slot.policy.0.to_ne_bytes());
    bytes[12..18].copy_from_slice(&slot.guest_mac.octets());
    bytes[18..24].copy_from_slice(&slot.gateway_mac.octets());
    bytes[24..28].copy_from_slice(&u32::from(slot.shaped).to_ne_bytes());
    bytes
}

fn verdict_bytes(v: &VerdictValue) -> [u8; 12] {
    let mut bytes = [0; 12];
    bytes[0..4].copy_from_slice(&v.rule.0.to_ne_bytes());
    bytes[4..8].copy_from_slice(&v.table.to_ne_bytes());
    bytes[8] = u8::from(v.allow);
    bytes[9] = u8::from(v.fragments);
    bytes[10] = v.opens;
    bytes
}

fn address_key(policy: PolicyId, e: &AddressEntry) -> Key<[u8; 8]> {
    let mut data = [0; 8];
    data[0..4].copy_from_slice(&policy.0.to_ne_bytes());
    data[4..8].copy_from_slice(&e.net.network().octets());
    Key::new(POLICY_BITS + u32::from(e.net.prefix_len()), data)
}

fn host_key(net: Ipv4Net) -> Key<[u8; 4]> {
    Key::new(u32::from(net.prefix_len()), net.network().octets())
}

fn port_key(policy: PolicyId, row: &PortRow) -> Key<[u8; 12]> {
    let mut data = [0; 12];
    data[0..4].copy_from_slice(&policy.0.to_ne_bytes());
    data[4..8].copy_from_slice(&row.table.to_ne_bytes());
    data[8] = row.proto;
    data[10..12].copy_from_slice(&row.port.to_be_bytes());
    Key::new(PORT_BITS + u32::from(row.len), data)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::judge::Terms;
    use crate::plan::Block;
    use crate::policy::RuleId;

    #[test]
    fn layouts_are_those_of_judge_c() {
        let block = Block::from_guest("169.254.100.2".parse().unwrap());
        let slot =
            slot_bytes(&SlotEntry::new(block, PolicyId(7), Terms { shaped: true, ..Terms::default() }));
        assert_eq!(slot[0..8], [169, 254, 100, 2, 169, 254, 100, 1]);
        assert_eq!(slot[8..12], 7u32.to_ne_bytes());
        assert_eq!(slot[12..18], block.guest_mac().octets());
        assert_eq!(slot[24..28], 1u32.to_ne_bytes());

        let verdict = VerdictValue { rule: RuleId(3), table: 2, allow: true, fragments: false, opens: 24 };
        assert_eq!(verdict_bytes(&verdict)[8..], [1, 0, 24, 0]);
        let row = PortRow { table: 2, proto: 6, port: 5432, len: 16, verdict };
        let key = port_key(PolicyId(1), &row);
        assert_eq!(key.prefix_len(), 96);
        assert_eq!(key.data()[8..], [6, 0, 0x15, 0x38]);
        let net = "10.1.0.0/16".parse().unwrap();
        let key = address_key(PolicyId(1), &AddressEntry { net, verdict });
        assert_eq!(key.prefix_len(), 48);
        assert_eq!(key.data()[4..], [10, 1, 0, 0]);
    }
}
