//! A kernel in memory, which can be told to refuse its nth call.
//!
//! Owns: enough state to see what is left behind. Refuses: packets; it knows what exists, not what
//! it does.

mod lookup;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Mutex;

use ipnet::Ipv4Net;

use super::netns::lock;
use super::{Answer, Interior, Kernel, KernelError, Lease, Netns, Place, Program, TapSpec};
use crate::judge::{AddressEntry, Counters, PolicyId, PortRow, SlotEntry};
use crate::netlink::route::{Address, Change, Link, Neighbour, Route, Veth};
use crate::nft::{Batch, ChainSeen, Command, Element, RuleSeen, Table};
use crate::plan::Range;

/// Everything that outlives a call.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct State {
    pub(crate) links: BTreeMap<u32, Link>,
    /// Namespaces by descriptor, with the host's interface whose peer is inside.
    pub(crate) namespaces: BTreeMap<RawFd, Option<u32>>,
    /// What is in them.
    pub(crate) interiors: BTreeMap<RawFd, Interior>,
    pub(crate) tables: BTreeMap<Table, BTreeMap<&'static str, BTreeSet<Element>>>,
    pub(crate) slots: BTreeMap<u32, SlotEntry>,
    pub(crate) addresses: BTreeSet<(PolicyId, AddressEntry)>,
    pub(crate) ports: BTreeSet<(PolicyId, PortRow)>,
    pub(crate) hosts: BTreeMap<Ipv4Net, u32>,
    pub(crate) routes: Vec<Route>,
    pub(crate) host_addresses: Vec<Address>,
}

impl State {
    fn inside(&mut self, netns: &Netns) -> &mut Interior {
        self.interiors.entry(netns.fd.as_raw_fd()).or_default()
    }
}

impl Interior {
    fn change(&mut self, change: &Change) {
        match change {
            Change::Settings(index, settings) => {
                let link = self.links.iter_mut().filter(|link| link.index == *index);
                link.for_each(|link| link.no_ipv6_address |= settings.no_ipv6_address);
            }
            Change::Address(index, net) => self.addresses.push(Address { index: *index, net: *net }),
            Change::Neighbour(index, ip, mac) => {
                self.neighbours.push(Neighbour { index: *index, ip: *ip, mac: *mac });
            }
            _ => {}
        }
    }
}

/// The kernel. Calls are counted from 1.
#[derive(Default)]
pub(crate) struct Fake {
    state: Mutex<State>,
    calls: Mutex<Calls>,
}

#[derive(Default)]
struct Calls {
    made: u32,
    refuse: BTreeSet<u32>,
}

impl Fake {
    /// A host with an uplink, a default route and nothing else.
    pub(crate) fn with_uplink() -> Fake {
        let fake = Fake::default();
        {
            let mut state = lock(&fake.state);
            let mut link = link(2, "eth0", 0);
            link.alias.clear();
            state.links.insert(2, link);
            let default = "0.0.0.0/0".parse().unwrap();
            state.routes.push(Route { net: default, links: vec![2], on_link: false, ours: false });
            let net = "203.0.113.5/24".parse().unwrap();
            state.host_addresses.push(Address { index: 2, net });
        }
        fake
    }

    pub(crate) fn state(&self) -> State {
        lock(&self.state).clone()
    }

    /// What another program does to the host.
    pub(crate) fn interfere(&self, change: impl FnOnce(&mut State)) {
        change(&mut lock(&self.state));
    }

    pub(crate) fn calls(&self) -> u32 {
        lock(&self.calls).made
    }

    /// What the death of the daemon takes away: nothing holds the maps but its programs.
    pub(crate) fn lose_maps(&self) {
        let mut state = lock(&self.state);
        state.slots.clear();
        state.addresses.clear();
        state.ports.clear();
        state.hosts.clear();
    }

    /// Refuses these calls, counted from now on.
    pub(crate) fn refuse(&self, calls: impl IntoIterator<Item = u32>) {
        let mut own = lock(&self.calls);
        own.made = 0;
        own.refuse = calls.into_iter().collect();
    }

    fn call(&self, what: &str) -> Answer<std::sync::MutexGuard<'_, State>> {
        let mut calls = lock(&self.calls);
        calls.made += 1;
        if calls.refuse.contains(&calls.made) {
            return Err(errno(what, libc::EIO));
        }
        Ok(lock(&self.state))
    }
}

fn errno(what: &str, number: i32) -> KernelError {
    KernelError::new(what, io::Error::from_raw_os_error(number))
}

fn link(index: u32, name: &str, group: u32) -> Link {
    Link { index, name: name.into(), group, up: true, ..Link::default() }
}

impl Kernel for Fake {
    fn new_netns(&self) -> Answer<Netns> {
        let mut state = self.call("new_netns")?;
        let fd: OwnedFd = File::open("/dev/null").map_err(|e| KernelError::new("fake", e))?.into();
        state.namespaces.insert(fd.as_raw_fd(), None);
        Ok(Netns { fd, inside: None, queue: Mutex::new(None) })
    }

    fn enter_netns(&self, fd: OwnedFd) -> Answer<Netns> {
        let mut state = self.call("enter_netns")?;
        state.namespaces.insert(fd.as_raw_fd(), None);
        Ok(Netns { fd, inside: None, queue: Mutex::new(None) })
    }

    fn seal(&self, _: &mut Netns) {}

    fn create_tap(&self, netns: &Netns, tap: &TapSpec) -> Answer<()> {
        let mut state = self.call("create_tap")?;
        state.inside(netns).links.extend([link(1, "lo", 0), link(tap.index, tap.name, 0)]);
        Ok(())
    }

    fn retake(&self, netns: &Netns, _: &TapSpec) -> Answer<Interior> {
        Ok(self.call("retake")?.inside(netns).clone())
    }

    fn open_tap(&self, _: &Netns, _: &'static str) -> Answer<OwnedFd> {
        Err(errno("open_tap", libc::ENOSYS))
    }

    fn create_veth(&self, netns: &Netns, veth: &Veth) -> Answer<()> {
        let mut state = self.call("create_veth")?;
        state.links.insert(veth.index, link(veth.index, &veth.name, veth.group));
        state.namespaces.insert(netns.fd.as_raw_fd(), Some(veth.index));
        state.inside(netns).links.push(link(veth.peer_index, veth.peer_name, 0));
        Ok(())
    }

    fn change(&self, place: Place<'_>, change: &Change) -> Answer<()> {
        let mut state = self.call(change.what())?;
        if let Place::Inside(netns) = place {
            state.inside(netns).change(change);
            return Ok(());
        }
        match change {
            Change::Settings(index, settings) => {
                let link = state.links.get_mut(index).ok_or_else(|| errno("link", libc::ENODEV))?;
                link.forwarding = settings.forwarding.unwrap_or(link.forwarding);
                link.no_ipv6_address |= settings.no_ipv6_address;
                link.alias = settings.alias.clone().unwrap_or_default();
            }
            Change::DeleteLink(index) => {
                state.links.remove(index).ok_or_else(|| errno("link", libc::ENODEV))?;
                state.host_addresses.retain(|address| address.index != *index);
                for port in state.links.values_mut().filter(|link| link.master == Some(*index)) {
                    port.master = None;
                }
            }
            Change::Bridge(bridge) => {
                let index = 1000 + u32::try_from(state.links.len()).unwrap();
                let made = Link { is_bridge: true, ..link(index, &bridge.name, bridge.group) };
                state.links.insert(index, made);
            }
            Change::Master(index, master) => {
                let link = state.links.get_mut(index).ok_or_else(|| errno("link", libc::ENODEV))?;
                link.master = (*master != 0).then_some(*master);
            }
            Change::IsolatedPort(index, on) => {
                let link = state.links.get_mut(index).ok_or_else(|| errno("link", libc::ENODEV))?;
                link.isolated_port = *on;
            }
            Change::Address(index, net) => state.host_addresses.push(Address { index: *index, net: *net }),
            Change::DeleteGroup(group) => state.links.retain(|_, l| l.group != *group),
            _ => {}
        }
        Ok(())
    }

    fn attach(&self, _: &Netns, _: u32, _: Program) -> Answer<()> {
        self.call("attach").map(drop)
    }

    fn reattach(&self, _: &Netns, _: u32, _: Program) -> Answer<()> {
        self.call("reattach").map(drop)
    }

    fn apply(&self, place: Place<'_>, batch: &Batch) -> Answer<()> {
        let mut state = self.call("apply")?;
        if let Place::Inside(_) = place {
            return Ok(());
        }
        // On a copy: a transaction happens whole or not at all.
        let mut tables = state.tables.clone();
        for command in &batch.0 {
            run(&mut tables, command)?;
        }
        state.tables = tables;
        Ok(())
    }

    fn elements(&self, table: &Table, set: &'static str) -> Answer<Vec<Element>> {
        let state = self.call("elements")?;
        let sets = state.tables.get(table);
        Ok(sets.and_then(|sets| sets.get(set)).into_iter().flatten().cloned().collect())
    }

    /// As if rules had put in what only rules do.
    fn count(&self, _: &Table, _: &'static str, _: &Element) -> Answer<Option<u64>> {
        self.call("count").map(|_| Some(0))
    }

    fn fragments_gone_by(&self) -> Answer<u64> {
        self.call("fragments_gone_by").map(|_| 0)
    }

    /// Rules are not kept here: a table is whole when its sets are.
    fn chains(&self) -> Answer<Vec<ChainSeen>> {
        self.call("chains").map(|_| Vec::new())
    }

    fn rules(&self, _: &Table, _: Option<&str>) -> Answer<Vec<RuleSeen>> {
        self.call("rules").map(|_| Vec::new())
    }

    fn retire(&self, going: Vec<(Netns, Option<u32>)>) -> Vec<Answer<()>> {
        let one = |(netns, outer): (Netns, Option<u32>)| {
            let called = self.call("retire").map(drop);
            let mut state = lock(&self.state);
            // The descriptor is gone in any case; so is what hangs on it unless the call failed.
            state.namespaces.remove(&netns.fd.as_raw_fd());
            state.interiors.remove(&netns.fd.as_raw_fd());
            called?;
            if let Some(index) = outer {
                state.links.remove(&index);
            }
            Ok(())
        };
        going.into_iter().map(one).collect()
    }

    fn routes_for_all(&self) -> Answer<bool> {
        self.call("routes_for_all").map(|_| false)
    }

    fn links(&self) -> Answer<Vec<Link>> {
        Ok(self.call("links")?.links.values().cloned().collect())
    }

    fn addresses(&self) -> Answer<Vec<Address>> {
        Ok(self.call("addresses")?.host_addresses.clone())
    }

    fn routes(&self) -> Answer<Vec<Route>> {
        Ok(self.call("routes")?.routes.clone())
    }

    fn neighbours(&self) -> Answer<Vec<Neighbour>> {
        self.call("neighbours").map(|_| Vec::new())
    }

    fn forget_flows(&self, _: &[Ipv4Addr]) -> Answer<()> {
        self.call("forget_flows").map(drop)
    }

    fn forget_strangers(&self, _: &[Ipv4Net], _: &BTreeSet<Ipv4Addr>) -> Answer<()> {
        self.call("forget_strangers").map(drop)
    }

    fn lease(&self, _: &Range) -> Answer<Result<Lease, Range>> {
        self.call("lease").map(|_| Ok(Lease { _socket: None }))
    }

    fn set_slot(&self, id: u32, slot: &SlotEntry) -> Answer<()> {
        self.call("set_slot")?.slots.insert(id, *slot);
        Ok(())
    }

    fn remove_slot(&self, id: u32) -> Answer<()> {
        self.call("remove_slot")?.slots.remove(&id);
        Ok(())
    }

    fn counters(&self, _: u32) -> Answer<Counters> {
        self.call("counters").map(|_| Counters::default())
    }

    fn add_address(&self, policy: PolicyId, entry: &AddressEntry) -> Answer<()> {
        self.call("add_address")?.addresses.insert((policy, *entry));
        Ok(())
    }

    fn remove_address(&self, policy: PolicyId, entry: &AddressEntry) -> Answer<()> {
        self.call("remove_address")?.addresses.remove(&(policy, *entry));
        Ok(())
    }

    fn add_ports(&self, policy: PolicyId, row: &PortRow) -> Answer<()> {
        self.call("add_ports")?.ports.insert((policy, *row));
        Ok(())
    }

    fn remove_ports(&self, policy: PolicyId, row: &PortRow) -> Answer<()> {
        self.call("remove_ports")?.ports.remove(&(policy, *row));
        Ok(())
    }

    fn set_host(&self, net: Ipv4Net, needed: u32) -> Answer<()> {
        self.call("set_host")?.hosts.insert(net, needed);
        Ok(())
    }

    fn remove_host(&self, net: Ipv4Net) -> Answer<()> {
        self.call("remove_host")?.hosts.remove(&net);
        Ok(())
    }
}

/// One command, with the errors the kernel would have.
fn run(
    tables: &mut BTreeMap<Table, BTreeMap<&'static str, BTreeSet<Element>>>,
    command: &Command,
) -> Answer<()> {
    let absent = || errno("nf_tables", libc::ENOENT);
    match command {
        Command::AddTable(t) => {
            tables.entry(t.clone()).or_default();
        }
        Command::DeleteTable(t) => {
            tables.remove(t).ok_or_else(absent)?;
        }
        Command::AddSet(t, set) => {
            tables.get_mut(t).ok_or_else(absent)?.entry(set.name).or_default();
        }
        Command::AddElements(t, set, elements) => {
            let set = tables.get_mut(t).and_then(|sets| sets.get_mut(set)).ok_or_else(absent)?;
            set.extend(elements.iter().cloned());
        }
        Command::DeleteElements(t, set, elements) => {
            let set = tables.get_mut(t).and_then(|sets| sets.get_mut(set)).ok_or_else(absent)?;
            for element in elements {
                let before = set.len();
                set.retain(|e| !e.is(element));
                if set.len() == before {
                    return Err(absent());
                }
            }
        }
        Command::FlushSet(t, set) => {
            tables.get_mut(t).and_then(|sets| sets.get_mut(set)).ok_or_else(absent)?.clear();
        }
        Command::AddChain(t, _)
        | Command::FlushChain(t, _)
        | Command::AddRule(t, ..)
        | Command::InsertRule(t, ..)
        | Command::DeleteRule(t, ..) => {
            tables.get(t).ok_or_else(absent)?;
        }
    }
    Ok(())
}
