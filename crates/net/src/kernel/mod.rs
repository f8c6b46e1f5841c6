//! The kernel as the engine sees it: the only system calls of this crate are below here.
//!
//! Owns: the [`Kernel`] trait, its Linux implementation, and the in-memory one that tests use to
//! fail every call once. Refuses: order and undo (`slot`), the meaning of tables and maps.

#[cfg(test)]
pub(crate) mod fake;
mod fragments;
mod judge_maps;
mod linux;
pub(crate) mod lookup;
pub(crate) mod monitor;
mod netlink_socket;
pub(crate) mod netns;
pub(crate) mod packet;
pub(crate) mod reader;
mod sock_diag;
mod tap;
pub(crate) mod told;

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;

pub(crate) use linux::Linux;
pub(crate) use netns::Netns;
pub(crate) use sock_diag::leases;

use ipnet::Ipv4Net;

use crate::judge::{AddressEntry, Counters, PolicyId, PortRow, SlotEntry};
use crate::netlink::route::{Address, Change, Link, Neighbour, Route, Veth};
use crate::nft::{Batch, ChainSeen, Element, RuleSeen, Table};
use crate::plan::{MacAddr, Range};

/// A request the kernel refused.
#[derive(Debug, thiserror::Error)]
pub struct KernelError {
    /// What was asked for, with its object.
    request: String,
    /// What the kernel said besides the number (`NLMSGERR_ATTR_MSG`).
    said: Option<String>,
    #[source]
    errno: io::Error,
}

impl fmt::Display for KernelError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.request)?;
        match &self.said {
            Some(said) => write!(f, " ({said})"),
            None => Ok(()),
        }
    }
}

impl KernelError {
    pub(crate) fn new(request: impl Into<String>, errno: impl Into<io::Error>) -> KernelError {
        KernelError { request: request.into(), said: None, errno: errno.into() }
    }

    fn with_message(mut self, said: Option<String>) -> KernelError {
        self.said = said;
        self
    }

    /// The error number, where there is one.
    pub(crate) fn errno(&self) -> Option<i32> {
        self.errno.raw_os_error()
    }

    /// What was to be removed is not there.
    pub(crate) fn is_absent(&self) -> bool {
        matches!(self.errno(), Some(libc::ENODEV | libc::ENOENT | libc::ESRCH | libc::ENXIO))
    }
}

/// Answer of every call.
pub(crate) type Answer<T> = Result<T, KernelError>;

/// Which namespace a change is for.
#[derive(Clone, Copy)]
pub(crate) enum Place<'a> {
    /// The one the engine was opened in.
    Host,
    /// A VM's own.
    Inside(&'a Netns),
}

/// A persistent tap.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct TapSpec {
    pub(crate) name: &'static str,
    pub(crate) index: u32,
    /// What [`Kernel::retake`] finds; a new tap has another until it is given this one.
    pub(crate) mac: MacAddr,
    pub(crate) owner: (u32, u32),
}

/// What is found in a VM's namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Interior {
    pub(crate) links: Vec<Link>,
    pub(crate) addresses: Vec<Address>,
    /// Permanent ones.
    pub(crate) neighbours: Vec<Neighbour>,
}

/// The judge's programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    FromGuest,
    ToGuest,
    /// The same for a VM on a bridge.
    FromPort,
    ToPort,
}

/// A claim on a range, dropped by the kernel when its holder dies.
#[derive(Debug)]
pub(crate) struct Lease {
    /// Kept for its lifetime only.
    pub(crate) _socket: Option<OwnedFd>,
}

/// Everything the engine asks of the kernel. Each call does one thing and either did it or not.
pub(crate) trait Kernel: lookup::Lookup + Send + Sync {
    /// A new namespace, held by nothing but the returned descriptors.
    fn new_netns(&self) -> Answer<Netns>;
    /// Opens a namespace that exists already, to change what is in it.
    fn enter_netns(&self, netns: OwnedFd) -> Answer<Netns>;
    /// Closes what a namespace was set up with. After it only one descriptor is held.
    fn seal(&self, netns: &mut Netns);
    fn create_tap(&self, netns: &Netns, tap: &TapSpec) -> Answer<()>;
    /// A queue of an existing tap, with `IFF_VNET_HDR`.
    fn open_tap(&self, netns: &Netns, name: &'static str) -> Answer<OwnedFd>;
    /// Looks into a namespace whose tenant is gone and whose flows are forgotten, and puts its tap back to
    /// what [`Kernel::create_tap`] made it. Refused (`EBUSY`) while a socket, a queue of the tap or half a
    /// datagram is in there, or packets are on their way into it.
    fn retake(&self, netns: &Netns, tap: &TapSpec) -> Answer<Interior>;
    fn create_veth(&self, netns: &Netns, veth: &Veth) -> Answer<()>;
    fn change(&self, place: Place<'_>, change: &Change) -> Answer<()>;
    /// Several in this order, at the price of one. The first refusal is the answer, and those after it
    /// may have been done or not.
    fn change_all(&self, place: Place<'_>, changes: &[Change]) -> Answer<()> {
        changes.iter().try_for_each(|change| self.change(place, change))
    }
    /// Puts one of the judge's programs on the ingress of an interface inside.
    fn attach(&self, netns: &Netns, index: u32, program: Program) -> Answer<()>;
    /// Puts another program in the place of the one that [`Kernel::attach`] attached, in one step;
    /// refused where there is none.
    fn reattach(&self, netns: &Netns, index: u32, program: Program) -> Answer<()>;
    fn apply(&self, place: Place<'_>, batch: &Batch) -> Answer<()>;
    /// The elements of a set in the host's namespace; none when the set or its table is missing.
    fn elements(&self, table: &Table, set: &'static str) -> Answer<Vec<Element>>;
    /// Packets that the `counter` of a set's element has counted, 0 when it has none; `None` when the
    /// element is not there.
    fn count(&self, table: &Table, set: &'static str, element: &Element) -> Answer<Option<u64>>;
    /// Every chain of the host's namespace.
    fn chains(&self) -> Answer<Vec<ChainSeen>>;
    /// The rules of a table or of one of its chains, in order; none when it is missing.
    fn rules(&self, table: &Table, chain: Option<&str>) -> Answer<Vec<RuleSeen>>;
    /// Gives namespaces up and, where the host's end of a veth is named, waits until that is gone;
    /// removes it itself when it does not go, because somebody else holds the namespace. Answers each.
    fn retire(&self, going: Vec<(Netns, Option<u32>)>) -> Vec<Answer<()>>;
    /// `net.ipv4.conf.all.forwarding`: the whole host is a router.
    fn routes_for_all(&self) -> Answer<bool>;
    fn links(&self) -> Answer<Vec<Link>>;
    fn addresses(&self) -> Answer<Vec<Address>>;
    fn routes(&self) -> Answer<Vec<Route>>;
    /// Permanent ones.
    fn neighbours(&self) -> Answer<Vec<Neighbour>>;
    /// Deletes every connection-tracking entry that one of `guests` started.
    fn forget_flows(&self, guests: &[Ipv4Addr]) -> Answer<()>;
    /// The same for everybody in `nets` who is not among the `live`.
    fn forget_strangers(&self, nets: &[Ipv4Net], live: &BTreeSet<Ipv4Addr>) -> Answer<()>;
    /// When every fragment that now waits in the host for its rest is gone, in nanoseconds of
    /// `CLOCK_MONOTONIC`; 0 when none waits.
    fn fragments_gone_by(&self) -> Answer<u64>;
    fn lease(&self, range: &Range) -> Answer<Result<Lease, Range>>;

    fn set_slot(&self, id: u32, slot: &SlotEntry) -> Answer<()>;
    /// Removes a slot, its counters and its refusals by rule; no error when there are none.
    fn remove_slot(&self, id: u32) -> Answer<()>;
    fn counters(&self, id: u32) -> Answer<Counters>;
    fn add_address(&self, policy: PolicyId, entry: &AddressEntry) -> Answer<()>;
    fn remove_address(&self, policy: PolicyId, entry: &AddressEntry) -> Answer<()>;
    fn add_ports(&self, policy: PolicyId, row: &PortRow) -> Answer<()>;
    fn remove_ports(&self, policy: PolicyId, row: &PortRow) -> Answer<()>;
    /// What only this host knows of a network: the prefix length an operator's `allow` needs.
    fn set_host(&self, net: Ipv4Net, needed: u32) -> Answer<()>;
    fn remove_host(&self, net: Ipv4Net) -> Answer<()>;
}
