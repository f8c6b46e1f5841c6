//! What a host is like, for those who check it before a daemon runs.
//!
//! Owns: which networks are taken and by whom, which firewalls are in the way, the settings that
//! matter, and whether the kernel can do what slots need, by trying it where nothing else is.
//! Refuses: changing the host, and advice (the daemon's doctor).

use std::net::Ipv4Addr;
use std::os::fd::AsFd;

use ipnet::Ipv4Net;

use crate::bridge;
use crate::engine::{Engine, EngineConfig};
use crate::error::{NetError, chain};
use crate::foreign;
use crate::kernel::{Kernel as _, KernelError, Linux, leases, netns, reader};
use crate::limits::Limits;
use crate::plan::{Range, is_slot_link};
use crate::policy::{PolicySpec, compile};
use crate::scope::Scope;
use crate::slot::SlotSpec;

/// A network that something else on this host uses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Taken {
    /// The network.
    pub net: Ipv4Net,
    /// What uses it, for people: "interface docker0".
    pub by: String,
}

/// Networks in use in the calling thread's namespace: by addresses, by routes other than default
/// routes, by other daemons. Slots' own interfaces do not count, nor do leases of processes that `own`
/// names, nor bridges that an engine of `scope` made. Needs no privileges; blocks for milliseconds.
///
/// # Errors
/// When the kernel does not say.
pub fn taken(own: impl Fn(u32) -> bool, scope: Option<Scope>) -> Result<Vec<Taken>, KernelError> {
    let around = reader::surroundings()?;
    let link = |index: &u32| around.links.get(index);
    let is_ours = |index| scope.zip(link(&index)).is_some_and(|(scope, link)| bridge::is_own(link, scope));
    let mut taken = around.in_use(|index| is_slot_link(index) || is_ours(index));
    for (range, pid) in leases()? {
        if !own(pid) {
            taken.push(Taken { net: range.net(), by: format!("another daemon (process {pid})") });
        }
    }
    taken.dedup();
    Ok(taken)
}

/// The addresses of the calling thread's namespace, but those of slots' own interfaces. Needs no privileges;
/// blocks for milliseconds.
///
/// # Errors
/// When the kernel does not say.
pub fn addresses() -> Result<Vec<Ipv4Addr>, KernelError> {
    let around = reader::surroundings()?;
    let own = around.addresses.iter().filter(|address| !is_slot_link(address.index));
    Ok(own.map(|address| address.net.addr()).collect())
}

/// A chain of another program through which a slot's packets go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForwardChain {
    /// `table ip filter`
    pub table: String,
    /// `FORWARD`
    pub chain: String,
    /// It drops or rejects what none of its rules lets through.
    pub refuses: bool,
    /// Only the program that made the table may change it (`flags owner`).
    pub locked: bool,
}

/// The chains at the forward hook that are nobody of ours. Needs `CAP_NET_ADMIN`.
///
/// # Errors
/// When the kernel does not say.
pub fn forward_chains() -> Result<Vec<ForwardChain>, KernelError> {
    let owned = reader::owned_tables()?;
    let chains = reader::chains(foreign::is_foreign_forward)?;
    let judge = |(chain, rules): (crate::nft::ChainSeen, Vec<_>)| ForwardChain {
        refuses: foreign::refuses(&chain, &rules),
        locked: owned.contains(&chain.table),
        table: chain.table.to_string(),
        chain: chain.name,
    };
    Ok(chains.into_iter().map(judge).collect())
}

/// Settings of the calling thread's namespace; `None` where the kernel has no such thing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Settings {
    /// The host forwards between all its interfaces.
    pub ip_forward: Option<bool>,
    /// `net.ipv4.conf.all.rp_filter`
    pub rp_filter: Option<u8>,
    /// Bridged packets pass iptables as well (`br_netfilter` is loaded and on).
    pub bridge_netfilter: Option<bool>,
    /// Connections the host can track.
    pub conntrack_max: Option<u64>,
    /// Connections it tracks now.
    pub conntrack_count: Option<u64>,
    /// Names of the interfaces that have a default route.
    pub uplinks: Vec<String>,
}

/// How many flows the host in whose namespace the caller is tracks, and how many it may, everybody's;
/// `None` where that cannot be known.
#[must_use]
pub fn tracked_flows() -> (Option<u64>, Option<u64>) {
    let number = |name| reader::setting(name).and_then(|text| text.parse().ok());
    (number("netfilter/nf_conntrack_count"), number("netfilter/nf_conntrack_max"))
}

/// Reads them. Needs no privileges.
///
/// # Errors
/// When the kernel does not say.
pub fn settings() -> Result<Settings, KernelError> {
    let around = reader::surroundings()?;
    let carriers = around.carriers(std::iter::empty());
    let number = |name| reader::setting(name).and_then(|text| text.parse().ok());
    let switch = |name| reader::setting(name).map(|text| text != "0");
    Ok(Settings {
        ip_forward: switch("ipv4/ip_forward"),
        rp_filter: reader::setting("ipv4/conf/all/rp_filter").and_then(|text| text.parse().ok()),
        bridge_netfilter: switch("bridge/bridge-nf-call-iptables"),
        conntrack_max: number("netfilter/nf_conntrack_max"),
        conntrack_count: number("netfilter/nf_conntrack_count"),
        uplinks: carriers.iter().filter_map(|i| around.links.get(i)).map(|l| l.name.clone()).collect(),
    })
}

/// One thing that slots need of the kernel, tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Feature {
    /// What was tried, for people.
    pub name: &'static str,
    /// Why it does not work.
    pub error: Option<String>,
}

/// Tries everything that a slot needs, in a network namespace that is thrown away: the very tables,
/// interfaces and programs of a real one. Stops at the first that does not work. Needs root; blocks
/// for some 100 ms.
#[must_use]
pub fn features() -> Vec<Feature> {
    let mut tried = Vec::new();
    let mut done = |name, result: Result<(), String>| {
        let works = result.is_ok();
        tried.push(Feature { name, error: result.err() });
        works
    };
    let opened = Linux::open();
    let linux = match opened {
        Ok(linux) => linux,
        Err(error) => {
            done("the tun device, netlink and BPF programs", Err(chain(&error)));
            return tried;
        }
    };
    done("the tun device, netlink and BPF programs", Ok(()));
    let scratch = match linux.new_netns() {
        Ok(scratch) => scratch,
        Err(error) => {
            done("network namespaces", Err(chain(&error)));
            return tried;
        }
    };
    done("network namespaces", Ok(()));
    let inside = netns::run_in(scratch.as_fd(), try_inside);
    for (name, result) in inside.unwrap_or_else(|e| vec![("network namespaces", Err(e.to_string()))]) {
        done(name, result);
    }
    tried
}

/// A whole engine and a whole slot, in a namespace with nothing else in it.
fn try_inside() -> Vec<(&'static str, Result<(), String>)> {
    const HOST: &str = "nf_tables with sets, connection tracking, fib, masquerade and reject";
    const SLOT: &str = "veth pairs, taps, and tc with BPF";
    let text = |e: NetError| chain(&e);
    let range: Range = match "169.254.100.0/22".parse() {
        Ok(range) => range,
        Err(error) => return vec![(HOST, Err(error.to_string()))],
    };
    let config = EngineConfig { scope: Scope::new(u32::MAX), ranges: vec![range] };
    let engine = match Engine::open(config) {
        Ok(engine) => engine,
        Err(error) => return vec![(HOST, Err(text(error)))],
    };
    let slot = || -> Result<(), String> {
        let policy = compile(&PolicySpec::default()).map_err(|e| e.to_string())?;
        let block = range.block(0).ok_or("no block")?;
        let limits = Limits::default();
        let spec =
            SlotSpec { block, vm_name: "doctor", mtu: 1500, policy: &policy, limits, tap_owner: (0, 0) };
        let slot = engine.create(&spec).map_err(text)?;
        engine.remove(slot).map_err(text)
    };
    let made = slot();
    vec![(HOST, Ok(())), (SLOT, made), ("taking all of it away again", engine.close().map_err(text))]
}
