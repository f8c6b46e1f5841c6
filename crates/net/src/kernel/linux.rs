//! The kernel trait on Linux.
//!
//! Owns: the sockets in the host's namespace, the loaded judge, which call goes where. Refuses:
//! any other process: nothing here runs `ip`, `nft` or `sysctl`.

mod lookup;
mod retake;

use std::borrow::Cow;
use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::fragments::{self, Waiting};
use super::judge_maps::Judge;
use super::netlink_socket::{LinkWatch, NetlinkSocket};
use super::netns::{Inside, lock};
use super::{
    Answer, Interior, Kernel, KernelError, Lease, Netns, Place, Program, TapSpec, netns, sock_diag, tap,
};
use crate::judge::{AddressEntry, Counters, PolicyId, PortRow, SlotEntry};
use crate::netlink::route::{self, Address, Change, Link, LinkSettings, Neighbour, Route, Veth};
use crate::netlink::{Message, Received, conntrack};
use crate::nft::{self, Batch, ChainSeen, Element, RuleSeen, Table};
use crate::plan::Range;

/// How long namespaces may take to go. Measured 4 ms, 60 ms when many go at once.
const PATIENCE: Duration = Duration::from_secs(2);
/// Guests whose flows are deleted one after the other, each in a walk that passes over empty buckets
/// (0.3 ms for 262,144). For more, one walk with a lock a bucket is faster (6 ms).
const FILTERED: usize = 16;

/// Held for the daemon's whole life.
pub(crate) struct Linux {
    host: OwnedFd,
    route: Mutex<NetlinkSocket>,
    netfilter: Mutex<NetlinkSocket>,
    /// Apart, because looking for a guest's flows walks the machine's whole table (before Linux 6.9
    /// 6 ms for 262,144 buckets), and nobody else should wait for that.
    flows: Mutex<NetlinkSocket>,
    /// The kernel (before 6.9) does not delete flows by a filter.
    no_filter: AtomicBool,
    /// The kernel knows IPv6.
    ipv6: bool,
    /// Subscriptions that are not in use, at most as many as were at the same time.
    watches: Mutex<Vec<LinkWatch>>,
    waiting: Waiting,
    judge: Judge,
}

impl Linux {
    /// Opens everything in the calling thread's namespace, which becomes the host.
    pub(crate) fn open() -> Answer<Linux> {
        let open = |protocol, what| NetlinkSocket::open(protocol).map_err(|e| KernelError::new(what, e));
        tap::open_device()
            .map_err(|e| KernelError::new("opening /dev/net/tun (is the kernel module `tun` there?)", e))?;
        Ok(Linux {
            host: netns::current().map_err(|e| KernelError::new("opening this namespace", e))?,
            route: Mutex::new(open(NETLINK_ROUTE, "opening an rtnetlink socket")?),
            netfilter: Mutex::new(open(NETLINK_NETFILTER, "opening an nfnetlink socket")?),
            flows: Mutex::new(open(NETLINK_NETFILTER, "opening a ctnetlink socket")?),
            no_filter: AtomicBool::new(false),
            ipv6: std::path::Path::new("/proc/thread-self/net/if_inet6").exists(),
            watches: Mutex::default(),
            waiting: Waiting::open().map_err(|e| KernelError::new("opening /proc/net/sockstat", e))?,
            judge: Judge::load()?,
        })
    }

    /// Runs `work` in the host's namespace, wherever the caller is.
    fn in_host<T: Send>(&self, what: &str, work: impl FnOnce() -> Answer<T> + Send) -> Answer<T> {
        netns::run_in(self.host.as_fd(), work).map_err(|e| KernelError::new(what, e))?
    }

    fn route_socket<'a>(&'a self, place: Place<'a>) -> Answer<MutexGuard<'a, NetlinkSocket>> {
        match place {
            Place::Host => Ok(lock(&self.route)),
            Place::Inside(netns) => Ok(lock(&inside(netns)?.route)),
        }
    }

    fn netfilter_socket<'a>(&'a self, place: Place<'a>) -> Answer<MutexGuard<'a, NetlinkSocket>> {
        match place {
            Place::Host => Ok(lock(&self.netfilter)),
            Place::Inside(netns) => Ok(lock(&inside(netns)?.netfilter)),
        }
    }

    fn dump<T>(
        &self,
        what: &str,
        request: Message,
        parse: impl Fn(&Received<'_>) -> Option<T>,
    ) -> Answer<Vec<T>> {
        let mut all = Vec::new();
        lock(&self.route).dump(what, request, |m| all.extend(parse(m)))?;
        Ok(all)
    }

    /// A dump of nf_tables. One that somebody changed the ruleset in the midst of is taken anew; on a
    /// host where that never ends, the last one has to do, and the kernel tells of the next change.
    fn ruleset<T>(
        &self,
        what: &str,
        request: Message,
        parse: impl Fn(&Received<'_>) -> Option<T>,
    ) -> Answer<Vec<T>> {
        const NLM_F_DUMP_INTR: u16 = 0x10;
        const TRIES: u32 = 5;
        let mut socket = lock(&self.netfilter);
        let mut all = Vec::new();
        for _ in 0..TRIES {
            let mut torn = false;
            all.clear();
            socket.dump(what, request.clone(), |m| {
                torn |= m.flags & NLM_F_DUMP_INTR != 0;
                all.extend(parse(m));
            })?;
            if !torn {
                break;
            }
        }
        Ok(all)
    }

    /// A subscription to links that go, from now on.
    fn watch(&self) -> Answer<LinkWatch> {
        let what = "watching links";
        let idle = lock(&self.watches).pop();
        if let Some(mut idle) = idle {
            idle.drain().map_err(|e| KernelError::new(what, e))?;
            return Ok(idle);
        }
        self.in_host(what, || LinkWatch::open().map_err(|e| KernelError::new(what, e)))
    }

    /// A kernel booted with ipv6.disable=1 has no IPv6 to switch off.
    fn possible<'a>(&self, change: &'a Change) -> Cow<'a, Change> {
        match change {
            Change::Settings(index, s) if s.no_ipv6_address && !self.ipv6 => {
                Cow::Owned(Change::Settings(*index, LinkSettings { no_ipv6_address: false, ..s.clone() }))
            }
            change => Cow::Borrowed(change),
        }
    }

    /// Waits until none of these links is there; at most [`PATIENCE`].
    fn wait_until_gone(&self, watch: &mut LinkWatch, mut links: Vec<u32>) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            // An error is met again by who looks next.
            links.retain(|index| self.link_exists(*index).unwrap_or(false));
            if links.is_empty() || !matches!(watch.next_deleted(deadline), Ok(true)) {
                return;
            }
        }
    }

    fn link_exists(&self, index: u32) -> Answer<bool> {
        let what = "RTM_GETLINK";
        match lock(&self.route).dump(what, route::link_request(index), |_| ()) {
            Ok(()) => Ok(true),
            Err(e) if e.is_absent() => Ok(false),
            Err(e) => Err(e),
        }
    }
}

/// Deletes every flow that one of those started. `only` is the one there is, where that is known.
fn forget(socket: &mut NetlinkSocket, only: Option<Ipv4Addr>, of: impl Fn(Ipv4Addr) -> bool) -> Answer<()> {
    let what = "deleting connection-tracking entries";
    let mut flows = Vec::new();
    socket.dump(what, conntrack::dump_request(only), |m| flows.extend(conntrack::parse_flow(m, &of)))?;
    for flow in flows {
        match socket.request(what, flow.delete_request()) {
            Err(e) if !e.is_absent() => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

fn inside(netns: &Netns) -> Answer<&Inside> {
    netns.inside.as_ref().ok_or_else(|| sealed("changing a namespace"))
}

/// What cannot be done any more once a namespace is set up.
fn sealed(what: &str) -> KernelError {
    KernelError::new(what, io::Error::from(io::ErrorKind::NotConnected))
}

impl Kernel for Linux {
    fn new_netns(&self) -> Answer<Netns> {
        netns::create().map_err(|e| KernelError::new("unshare(CLONE_NEWNET)", e))
    }

    fn enter_netns(&self, netns: OwnedFd) -> Answer<Netns> {
        netns::enter(netns).map_err(|e| KernelError::new("opening a microVM's namespace", e))
    }

    fn seal(&self, netns: &mut Netns) {
        netns.inside = None;
    }

    fn create_tap(&self, netns: &Netns, spec: &TapSpec) -> Answer<()> {
        let device = netns::lock(&netns.queue).take();
        let device = device.ok_or_else(|| sealed("making a tap"))?;
        tap::create(&device, spec.name, spec.index, spec.owner)
            .map_err(|e| KernelError::new("TUNSETIFF", e))?;
        *netns::lock(&netns.queue) = Some(device);
        Ok(())
    }

    fn open_tap(&self, netns: &Netns, name: &'static str) -> Answer<OwnedFd> {
        if let Some(first) = netns::lock(&netns.queue).take() {
            return Ok(first.into());
        }
        let open = || {
            let device = tap::open_device()?;
            tap::attach(&device, name)?;
            Ok(OwnedFd::from(device))
        };
        let opened = netns::run_in(netns.as_fd(), open).and_then(|r| r);
        opened.map_err(|e: io::Error| KernelError::new(format!("opening a queue of {name}"), e))
    }

    fn retake(&self, netns: &Netns, tap: &TapSpec) -> Answer<Interior> {
        let retaken = netns::run_in(netns.as_fd(), || retake::retake(tap));
        let (interior, queue) = retaken.map_err(|e| KernelError::new("entering a namespace", e))??;
        *netns::lock(&netns.queue) = Some(queue);
        Ok(interior)
    }

    fn create_veth(&self, netns: &Netns, veth: &Veth) -> Answer<()> {
        let message = route::veth(veth, netns.fd.as_raw_fd());
        lock(&self.route).request(&format!("RTM_NEWLINK {}", veth.name), message)
    }

    fn change(&self, place: Place<'_>, change: &Change) -> Answer<()> {
        let request = self.possible(change);
        self.route_socket(place)?.request(change.what(), request.message())
    }

    fn change_all(&self, place: Place<'_>, changes: &[Change]) -> Answer<()> {
        let requests = changes.iter().map(|change| (change.what(), self.possible(change).message()));
        self.route_socket(place)?.requests(requests.collect())
    }

    fn attach(&self, netns: &Netns, index: u32, program: Program) -> Answer<()> {
        let (fd, name) = self.judge.program(program)?;
        let message = route::classifier(index, fd.as_raw_fd(), name);
        lock(&inside(netns)?.route).request("RTM_NEWTFILTER bpf", message)
    }

    fn reattach(&self, netns: &Netns, index: u32, program: Program) -> Answer<()> {
        let (fd, name) = self.judge.program(program)?;
        let message = route::other_classifier(index, fd.as_raw_fd(), name);
        lock(&inside(netns)?.route).request("RTM_NEWTFILTER bpf, replacing", message)
    }

    fn apply(&self, place: Place<'_>, batch: &Batch) -> Answer<()> {
        self.netfilter_socket(place)?.transaction("nf_tables transaction", nft::messages(batch))
    }

    fn elements(&self, table: &Table, set: &'static str) -> Answer<Vec<Element>> {
        let mut all = Vec::new();
        let request = nft::elements_request(table, set);
        let done = lock(&self.netfilter).dump(&format!("{table} set {set}"), request, |m| {
            all.extend(nft::parse_elements(m));
        });
        match done {
            Err(e) if e.is_absent() => Ok(Vec::new()),
            Err(e) => Err(e),
            Ok(()) => Ok(all),
        }
    }

    fn count(&self, table: &Table, set: &'static str, element: &Element) -> Answer<Option<u64>> {
        let mut packets = 0;
        let request = nft::element_request(table, set, &element.key);
        let done = lock(&self.netfilter).dump(&format!("{table} set {set}"), request, |m| {
            packets = nft::parse_count(m).unwrap_or(0);
        });
        match done {
            Err(e) if e.is_absent() => Ok(None),
            done => done.map(|()| Some(packets)),
        }
    }

    fn fragments_gone_by(&self) -> Answer<u64> {
        let failed = |e| KernelError::new("reading /proc/net/sockstat", e);
        if self.waiting.none().map_err(failed)? {
            return Ok(0);
        }
        self.in_host("reading net.ipv4.ipfrag_time", || Ok(fragments::gone_by()))
    }

    fn chains(&self) -> Answer<Vec<ChainSeen>> {
        self.ruleset("chains of nf_tables", nft::chains_request(), nft::parse_chain)
    }

    fn rules(&self, table: &Table, chain: Option<&str>) -> Answer<Vec<RuleSeen>> {
        let request = nft::rules_request(table, chain);
        match self.ruleset(&format!("rules of {table}"), request, nft::parse_rule) {
            Err(e) if e.is_absent() => Ok(Vec::new()),
            done => done,
        }
    }

    fn retire(&self, mut going: Vec<(Netns, Option<u32>)>) -> Vec<Answer<()>> {
        let outer: Vec<Option<u32>> = going.iter().map(|(_, outer)| *outer).collect();
        // Subscribed first: a link that goes in between is seen.
        let watch = self.watch();
        // Namespaces last and together, so that the kernel finds all of them when it begins: it takes
        // away in one go what was given up so far, and each go costs two RCU waits.
        for (netns, _) in &mut going {
            drop(lock(&netns.queue).take());
            netns.inside = None;
        }
        drop(going);
        if let Ok(mut watch) = watch {
            self.wait_until_gone(&mut watch, outer.iter().flatten().copied().collect());
            lock(&self.watches).push(watch);
        }
        let cut_off = |outer: Option<u32>| {
            let Some(index) = outer else { return Ok(()) };
            match self.link_exists(index) {
                Ok(false) => Ok(()),
                // Somebody else still holds the namespace (a VMM that did not die): cut it off.
                Ok(true) => match self.change(Place::Host, &Change::DeleteLink(index)) {
                    Err(e) if e.is_absent() => Ok(()),
                    done => done,
                },
                Err(e) => Err(e),
            }
        };
        outer.into_iter().map(cut_off).collect()
    }

    fn routes_for_all(&self) -> Answer<bool> {
        let mut all = false;
        let request = route::forwarding_request();
        lock(&self.route).dump("RTM_GETNETCONF", request, |m| {
            all = route::parse_forwarding(m).unwrap_or(false);
        })?;
        Ok(all)
    }

    fn links(&self) -> Answer<Vec<Link>> {
        self.dump("RTM_GETLINK", route::links_request(), route::parse_link)
    }

    fn addresses(&self) -> Answer<Vec<Address>> {
        let request = route::addresses_request();
        self.dump("RTM_GETADDR", request, route::parse_address)
    }

    fn routes(&self) -> Answer<Vec<Route>> {
        self.dump("RTM_GETROUTE", route::routes_request(), route::parse_route)
    }

    fn neighbours(&self) -> Answer<Vec<Neighbour>> {
        self.dump("RTM_GETNEIGH", route::neighbours_request(), route::parse_neighbour)
    }

    fn forget_flows(&self, guests: &[Ipv4Addr]) -> Answer<()> {
        let mut socket = lock(&self.flows);
        if guests.len() <= FILTERED && !self.no_filter.load(Relaxed) {
            let what = "deleting a guest's connection-tracking entries";
            let delete = |guest| socket.request(what, conntrack::delete_all_request(guest));
            match guests.iter().copied().try_for_each(delete) {
                Err(e) if e.errno() == Some(libc::EINVAL) => self.no_filter.store(true, Relaxed),
                done => return done,
            }
        }
        let only = if let [only] = guests { Some(*only) } else { None };
        forget(&mut socket, only, |source| guests.contains(&source))
    }

    fn forget_strangers(&self, nets: &[Ipv4Net], live: &BTreeSet<Ipv4Addr>) -> Answer<()> {
        let stranger = |source| nets.iter().any(|net| net.contains(&source)) && !live.contains(&source);
        forget(&mut lock(&self.flows), None, stranger)
    }

    fn lease(&self, range: &Range) -> Answer<Result<Lease, Range>> {
        self.in_host("leasing a range", || sock_diag::lease(range))
    }

    fn set_slot(&self, id: u32, slot: &SlotEntry) -> Answer<()> {
        self.judge.set_slot(id, slot)
    }

    fn remove_slot(&self, id: u32) -> Answer<()> {
        self.judge.remove_slot(id)
    }

    fn counters(&self, id: u32) -> Answer<Counters> {
        self.judge.counters(id)
    }

    fn add_address(&self, policy: PolicyId, entry: &AddressEntry) -> Answer<()> {
        self.judge.add_address(policy, entry)
    }

    fn remove_address(&self, policy: PolicyId, entry: &AddressEntry) -> Answer<()> {
        self.judge.remove_address(policy, entry)
    }

    fn add_ports(&self, policy: PolicyId, row: &PortRow) -> Answer<()> {
        self.judge.add_ports(policy, row)
    }

    fn remove_ports(&self, policy: PolicyId, row: &PortRow) -> Answer<()> {
        self.judge.remove_ports(policy, row)
    }

    fn set_host(&self, net: Ipv4Net, needed: u32) -> Answer<()> {
        self.judge.set_host(net, needed)
    }

    fn remove_host(&self, net: Ipv4Net) -> Answer<()> {
        self.judge.remove_host(net)
    }
}
