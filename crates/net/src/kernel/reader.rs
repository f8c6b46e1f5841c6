//! Reads the host without changing anything, and mostly without privileges.
//!
//! Owns: the dumps and the settings of `/proc/sys/net` that a check of the host asks for. Refuses:
//! opinions (`survey`), and writing.

use std::fs;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};

use super::netlink_socket::NetlinkSocket;
use super::{Answer, KernelError};
use crate::netlink::{Message, Received, route};
use crate::nft::{self, ChainSeen, RuleSeen, Table};
use crate::surroundings::Surroundings;

/// Interfaces, addresses and routes of the calling thread's namespace.
pub(crate) fn surroundings() -> Answer<Surroundings> {
    let open = |e| KernelError::new("opening an rtnetlink socket", e);
    let mut socket = NetlinkSocket::open(NETLINK_ROUTE).map_err(open)?;
    let links = dump(&mut socket, "RTM_GETLINK", route::links_request(), route::parse_link)?;
    Ok(Surroundings {
        links: links.into_iter().map(|l| (l.index, l)).collect(),
        addresses: dump(&mut socket, "RTM_GETADDR", route::addresses_request(), route::parse_address)?,
        routes: dump(&mut socket, "RTM_GETROUTE", route::routes_request(), route::parse_route)?,
        neighbours: Vec::new(),
        router: setting("ipv4/ip_forward").as_deref() == Some("1"),
    })
}

/// Tables that only their owner may change. Needs `CAP_NET_ADMIN`.
pub(crate) fn owned_tables() -> Answer<Vec<Table>> {
    let open = |e| KernelError::new("opening an nfnetlink socket", e);
    let mut socket = NetlinkSocket::open(NETLINK_NETFILTER).map_err(open)?;
    dump(&mut socket, "tables of nf_tables", nft::tables_request(), nft::parse_owned_table)
}

/// Every chain with its rules, where `wanted` says so. Needs `CAP_NET_ADMIN`.
pub(crate) fn chains(wanted: impl Fn(&ChainSeen) -> bool) -> Answer<Vec<(ChainSeen, Vec<RuleSeen>)>> {
    let open = |e| KernelError::new("opening an nfnetlink socket", e);
    let mut socket = NetlinkSocket::open(NETLINK_NETFILTER).map_err(open)?;
    let chains = dump(&mut socket, "chains of nf_tables", nft::chains_request(), nft::parse_chain)?;
    let mut found = Vec::new();
    for chain in chains.into_iter().filter(|c| wanted(c)) {
        let request = nft::rules_request(&chain.table, Some(&chain.name));
        match dump(&mut socket, "rules of nf_tables", request, nft::parse_rule) {
            Ok(rules) => found.push((chain, rules)),
            Err(e) if e.is_absent() => {}
            Err(e) => return Err(e),
        }
    }
    Ok(found)
}

fn dump<T>(
    socket: &mut NetlinkSocket,
    what: &str,
    request: Message,
    parse: impl Fn(&Received<'_>) -> Option<T>,
) -> Answer<Vec<T>> {
    let mut all = Vec::new();
    socket.dump(what, request, |m| all.extend(parse(m)))?;
    Ok(all)
}

/// A setting below `/proc/sys/net` of the calling thread's namespace, such as `ipv4/ip_forward`;
/// `None` where the kernel has no such thing.
pub(crate) fn setting(name: &str) -> Option<String> {
    let text = fs::read_to_string(format!("/proc/sys/net/{name}")).ok()?;
    Some(text.trim().to_owned())
}
