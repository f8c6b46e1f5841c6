//! rtnetlink: what the engine asks for, and what it reads (rtnetlink(7), `rtnetlink.h`,
//! `if_link.h`, `pkt_sched.h`).
//!
//! Owns: typed requests and their bytes, parsing of dumps. Refuses: sockets; deciding what to ask.

use std::net::Ipv4Addr;
use std::os::fd::RawFd;

use ipnet::Ipv4Net;

use super::shape::{Shape, unshape};
use super::{Message, Received, attribute, flags, u32_at};
use crate::plan::MacAddr;

const NEWLINK: u16 = 16;
pub(crate) const DELLINK: u16 = 17;
const GETLINK: u16 = 18;
const SETLINK: u16 = 19;
const NEWADDR: u16 = 20;
const DELADDR: u16 = 21;
const GETADDR: u16 = 22;
const NEWROUTE: u16 = 24;
const GETROUTE: u16 = 26;
const NEWNEIGH: u16 = 28;
const DELNEIGH: u16 = 29;
const GETNEIGH: u16 = 30;
const NEWQDISC: u16 = 36;
const NEWTFILTER: u16 = 44;
const GETNETCONF: u16 = 82;
const NETCONFA_IFINDEX: u16 = 1;
const NETCONFA_FORWARDING: u16 = 2;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;
const IFF_UP: u32 = 1;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_TXQLEN: u16 = 13;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const IFLA_INFO_SLAVE_KIND: u16 = 4;
const IFLA_INFO_SLAVE_DATA: u16 = 5;
const IFLA_BRPORT_ISOLATED: u16 = 33;
const VETH_INFO_PEER: u16 = 1;
const IFLA_INET_CONF: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;
/// `IPV4_DEVCONF_FORWARDING` and `_RP_FILTER` of `ip.h`.
const DEVCONF_FORWARDING: u16 = 1;
const DEVCONF_RP_FILTER: u16 = 8;

const RT_TABLE_MAIN: u8 = 254;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
/// Marks our routes; 69 is assigned to nobody in iproute2's `rt_protos`.
const RTPROT_ENISLE: u8 = 69;
const NUD_PERMANENT: u16 = 0x80;

/// The hook of `ingress` (`pkt_sched.h`): its own handle, its parent, the filters' parent. Not
/// `clsact`, whose second hook costs as much again and is not used; earlier versions had it, and their
/// slots' filters have the same parent.
const INGRESS_HANDLE: u32 = 0xffff_0000;
const INGRESS_QDISC_PARENT: u32 = 0xffff_fff1;
const INGRESS_PARENT: u32 = 0xffff_fff2;
const ETH_P_ALL: u16 = 3;
/// Priority 1, every protocol: the filter's key beside its handle.
const INGRESS_FILTER: u32 = (1 << 16) | ETH_P_ALL.to_be() as u32;
const TCA_BPF_FLAG_ACT_DIRECT: u32 = 1;

/// A veth whose peer is born in another namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Veth {
    pub(crate) name: String,
    pub(crate) index: u32,
    pub(crate) mac: MacAddr,
    pub(crate) group: u32,
    pub(crate) mtu: u32,
    pub(crate) peer_name: &'static str,
    pub(crate) peer_index: u32,
}

/// A bridge.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewBridge {
    pub(crate) name: String,
    /// Its mark: set as it is made, where an alias comes later.
    pub(crate) group: u32,
    /// Its own, so that it does not change with its ports.
    pub(crate) mac: MacAddr,
}

/// Per-interface settings; `None` leaves a setting alone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct LinkSettings {
    pub(crate) alias: Option<String>,
    pub(crate) mac: Option<MacAddr>,
    pub(crate) mtu: Option<u32>,
    /// `net.ipv4.conf.<dev>.forwarding`.
    pub(crate) forwarding: Option<bool>,
    /// `net.ipv4.conf.<dev>.rp_filter` = 1.
    pub(crate) strict_source: bool,
    /// No IPv6 address ever, not even a link-local one.
    pub(crate) no_ipv6_address: bool,
}

/// One change of the routing stack of one namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    Settings(u32, LinkSettings),
    Up(u32),
    Down(u32),
    /// How many packets may wait to leave (`txqueuelen`). A change takes away those that wait, and
    /// returns after every CPU has left the packet it was at (`dev_deactivate_many`, an expedited RCU
    /// wait of some 50 µs).
    QueueLength(u32, u32),
    /// The interface must be down.
    Name(u32, String),
    Address(u32, Ipv4Net),
    RemoveAddress(u32, Ipv4Net),
    HostRoute(u32, Ipv4Addr),
    /// As [`Change::HostRoute`], also where another route has its place.
    RestoreRoute(u32, Ipv4Addr),
    Neighbour(u32, Ipv4Addr, MacAddr),
    /// The hook that packets meet first.
    Ingress(u32),
    Shape(u32, Shape),
    /// Absent where it has no shape.
    Unshape(u32),
    /// A bridge, still down.
    Bridge(NewBridge),
    /// Makes an interface a port of a bridge; of none with 0.
    Master(u32, u32),
    /// Whether a port reaches other isolated ones.
    IsolatedPort(u32, bool),
    DeleteLink(u32),
    DeleteGroup(u32),
}

impl Change {
    /// For errors: what is being done.
    pub(crate) fn what(&self) -> &'static str {
        match self {
            Change::Settings(..) => "RTM_SETLINK",
            Change::Up(_) => "RTM_SETLINK up",
            Change::Down(_) => "RTM_SETLINK down",
            Change::QueueLength(..) => "RTM_SETLINK txqueuelen",
            Change::Name(..) => "RTM_SETLINK name",
            Change::RemoveAddress(..) => "RTM_DELADDR",
            Change::RestoreRoute(..) => "RTM_NEWROUTE replace",
            Change::Address(..) => "RTM_NEWADDR",
            Change::HostRoute(..) => "RTM_NEWROUTE",
            Change::Neighbour(..) => "RTM_NEWNEIGH",
            Change::Ingress(_) => "RTM_NEWQDISC ingress",
            Change::Shape(..) => "RTM_NEWQDISC tbf",
            Change::Unshape(_) => "RTM_DELQDISC",
            Change::Bridge(_) => "RTM_NEWLINK bridge",
            Change::Master(..) => "RTM_SETLINK master",
            Change::IsolatedPort(..) => "RTM_NEWLINK isolated port",
            Change::DeleteLink(_) => "RTM_DELLINK",
            Change::DeleteGroup(_) => "RTM_DELLINK by group",
        }
    }

    pub(crate) fn message(&self) -> Message {
        const NEW: u16 = flags::CREATE | flags::EXCL;
        match self {
            Change::Settings(index, settings) => settings_message(*index, settings),
            Change::Up(index) => Message::new(SETLINK, 0).put(&ifinfo(*index, IFF_UP)),
            Change::Down(index) => Message::new(SETLINK, 0).put(&ifinfo_of(*index, 0, IFF_UP)),
            Change::QueueLength(index, packets) => {
                let mut m = Message::new(SETLINK, 0).put(&ifinfo(*index, 0));
                m.attr_u32(IFLA_TXQLEN, *packets);
                m
            }
            Change::Name(index, name) => {
                let mut m = Message::new(SETLINK, 0).put(&ifinfo(*index, 0));
                m.attr_str(IFLA_IFNAME, name);
                m
            }
            Change::RemoveAddress(index, net) => {
                let header = [AF_INET, net.prefix_len(), 0, 0];
                let mut m = Message::new(DELADDR, 0).put(&concat(&header, *index));
                m.attr(2, &net.addr().octets());
                m
            }
            Change::Address(index, net) => {
                let header = [AF_INET, net.prefix_len(), 0, 0];
                let mut m = Message::new(NEWADDR, NEW).put(&concat(&header, *index));
                m.attr(1, &net.addr().octets()).attr(2, &net.addr().octets());
                m
            }
            Change::HostRoute(index, to) => host_route(NEW, *index, *to),
            Change::RestoreRoute(index, to) => host_route(flags::CREATE | flags::REPLACE, *index, *to),
            Change::Neighbour(index, ip, mac) => {
                let [lo, hi] = NUD_PERMANENT.to_ne_bytes();
                let mut m = Message::new(NEWNEIGH, flags::CREATE | flags::REPLACE)
                    .put(&concat(&[AF_INET, 0, 0, 0], *index))
                    .put(&[lo, hi, 0, 0]);
                m.attr(1, &ip.octets()).attr(2, &mac.octets());
                m
            }
            Change::Ingress(index) => {
                let mut m = traffic(NEWQDISC, *index, INGRESS_HANDLE, INGRESS_QDISC_PARENT, 0);
                m.attr_str(1, "ingress");
                m
            }
            Change::Shape(index, shape) => shape.message(*index),
            Change::Unshape(index) => unshape(*index),
            Change::Bridge(bridge) => new_bridge(bridge),
            Change::Master(index, master) => {
                let mut m = Message::new(SETLINK, 0).put(&ifinfo(*index, 0));
                m.attr_u32(IFLA_MASTER, *master);
                m
            }
            Change::IsolatedPort(index, on) => isolated_port(*index, *on),
            Change::DeleteLink(index) => Message::new(DELLINK, 0).put(&ifinfo(*index, 0)),
            Change::DeleteGroup(group) => {
                let mut m = Message::new(DELLINK, 0).put(&ifinfo(0, 0));
                m.attr_u32(IFLA_GROUP, *group);
                m
            }
        }
    }
}

fn host_route(how: u16, index: u32, to: Ipv4Addr) -> Message {
    let table = [RT_TABLE_MAIN, RTPROT_ENISLE, RT_SCOPE_LINK, RTN_UNICAST];
    let mut m = Message::new(NEWROUTE, how).put(&[AF_INET, 32, 0, 0]).put(&table).put(&[0; 4]);
    m.attr(1, &to.octets()).attr_u32(4, index);
    m
}

/// Attaches a loaded classifier, direct action, at `index`'s ingress.
pub(crate) fn classifier(index: u32, program: RawFd, name: &str) -> Message {
    with_program(traffic(NEWTFILTER, index, 1, INGRESS_PARENT, INGRESS_FILTER), program, name)
}

/// Puts a loaded classifier in the place of the one that [`classifier`] attached. cls_bpf swaps the
/// two under RCU: every packet meets one of them. Without `NLM_F_CREATE` it makes none.
pub(crate) fn other_classifier(index: u32, program: RawFd, name: &str) -> Message {
    let header = Message::new(NEWTFILTER, flags::REPLACE);
    with_program(traffic_header(header, index, 1, INGRESS_PARENT, INGRESS_FILTER), program, name)
}

fn with_program(mut m: Message, program: RawFd, name: &str) -> Message {
    m.attr_str(1, "bpf").nest(2, |m| {
        m.attr(6, &program.to_ne_bytes()).attr_str(7, name).attr_u32(8, TCA_BPF_FLAG_ACT_DIRECT);
    });
    m
}

fn traffic(kind: u16, index: u32, handle: u32, parent: u32, info: u32) -> Message {
    traffic_header(Message::new(kind, flags::CREATE | flags::EXCL), index, handle, parent, info)
}

/// `struct tcmsg`.
fn traffic_header(message: Message, index: u32, handle: u32, parent: u32, info: u32) -> Message {
    message
        .put(&concat(&[AF_UNSPEC, 0, 0, 0], index))
        .put(&handle.to_ne_bytes())
        .put(&parent.to_ne_bytes())
        .put(&info.to_ne_bytes())
}

/// Both ends of a veth at once. A veth that is moved later costs an RCU wait of 16 ms.
pub(crate) fn veth(spec: &Veth, peer_netns: RawFd) -> Message {
    let mut m = Message::new(NEWLINK, flags::CREATE | flags::EXCL).put(&ifinfo(spec.index, 0));
    m.attr_str(IFLA_IFNAME, &spec.name)
        .attr(IFLA_ADDRESS, &spec.mac.octets())
        .attr_u32(IFLA_GROUP, spec.group)
        .attr_u32(IFLA_MTU, spec.mtu)
        .attr_u32(IFLA_NUM_TX_QUEUES, 1)
        .attr_u32(IFLA_NUM_RX_QUEUES, 1)
        .nest(IFLA_LINKINFO, |m| {
            m.attr_str(IFLA_INFO_KIND, "veth").nest(IFLA_INFO_DATA, |m| {
                m.nest(VETH_INFO_PEER, |m| {
                    m.append(&ifinfo(spec.peer_index, 0))
                        .attr_str(IFLA_IFNAME, spec.peer_name)
                        .attr_u32(IFLA_MTU, spec.mtu)
                        .attr_u32(IFLA_NUM_TX_QUEUES, 1)
                        .attr_u32(IFLA_NUM_RX_QUEUES, 1)
                        .attr(IFLA_NET_NS_FD, &peer_netns.to_ne_bytes());
                });
            });
        });
    m
}

fn new_bridge(spec: &NewBridge) -> Message {
    let mut m = Message::new(NEWLINK, flags::CREATE | flags::EXCL).put(&ifinfo(0, 0));
    m.attr_str(IFLA_IFNAME, &spec.name)
        .attr(IFLA_ADDRESS, &spec.mac.octets())
        .attr_u32(IFLA_GROUP, spec.group)
        .nest(IFLA_LINKINFO, |m| {
            m.attr_str(IFLA_INFO_KIND, "bridge");
        });
    m
}

/// Only `RTM_NEWLINK` changes what a port's bridge knows of it.
fn isolated_port(index: u32, on: bool) -> Message {
    let mut m = Message::new(NEWLINK, 0).put(&ifinfo(index, 0));
    m.nest(IFLA_LINKINFO, |m| {
        m.attr_str(IFLA_INFO_SLAVE_KIND, "bridge").nest(IFLA_INFO_SLAVE_DATA, |m| {
            m.attr(IFLA_BRPORT_ISOLATED, &[u8::from(on)]);
        });
    });
    m
}

fn settings_message(index: u32, s: &LinkSettings) -> Message {
    let mut m = Message::new(SETLINK, 0).put(&ifinfo(index, 0));
    if let Some(alias) = &s.alias {
        m.attr(IFLA_IFALIAS, alias.as_bytes());
    }
    if let Some(mac) = s.mac {
        m.attr(IFLA_ADDRESS, &mac.octets());
    }
    if let Some(mtu) = s.mtu {
        m.attr_u32(IFLA_MTU, mtu);
    }
    if s.forwarding.is_none() && !s.strict_source && !s.no_ipv6_address {
        return m;
    }
    m.nest(IFLA_AF_SPEC, |m| {
        if s.forwarding.is_some() || s.strict_source {
            m.nest(u16::from(AF_INET), |m| {
                m.nest(IFLA_INET_CONF, |m| {
                    if let Some(on) = s.forwarding {
                        m.attr_u32(DEVCONF_FORWARDING, u32::from(on));
                    }
                    if s.strict_source {
                        m.attr_u32(DEVCONF_RP_FILTER, 1);
                    }
                });
            });
        }
        if s.no_ipv6_address {
            m.nest(u16::from(AF_INET6), |m| {
                m.attr(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
            });
        }
    });
    m
}

/// `struct ifinfomsg`, with flags to set.
fn ifinfo(index: u32, set_flags: u32) -> [u8; 16] {
    ifinfo_of(index, set_flags, set_flags)
}

/// `struct ifinfomsg`: flags, and which of them are meant.
fn ifinfo_of(index: u32, set_flags: u32, change: u32) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&set_flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&change.to_ne_bytes());
    bytes
}

fn concat(head: &[u8; 4], word: u32) -> [u8; 8] {
    let [a, b, c, d] = *head;
    let [e, f, g, h] = word.to_ne_bytes();
    [a, b, c, d, e, f, g, h]
}

/// An interface as dumped.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Link {
    pub(crate) index: u32,
    pub(crate) name: String,
    pub(crate) alias: String,
    pub(crate) group: u32,
    pub(crate) forwarding: bool,
    /// The kernel gives it no IPv6 address, or has no IPv6.
    pub(crate) no_ipv6_address: bool,
    /// Administratively.
    pub(crate) up: bool,
    pub(crate) is_bridge: bool,
    /// The bridge, bond or other interface that it is a port of.
    pub(crate) master: Option<u32>,
    /// A port of a bridge that reaches no other such port.
    pub(crate) isolated_port: bool,
}

/// A permanent IPv4 neighbour.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Neighbour {
    pub(crate) index: u32,
    pub(crate) ip: Ipv4Addr,
    pub(crate) mac: MacAddr,
}

/// An interface's IPv4 address with its prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Address {
    pub(crate) index: u32,
    pub(crate) net: Ipv4Net,
}

/// A unicast IPv4 route, or one of the kinds that refuse.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) net: Ipv4Net,
    /// Outgoing interfaces; several for a multipath route, none for `blackhole` and its like.
    pub(crate) links: Vec<u32>,
    /// Destinations are neighbours: scope link, no gateway.
    pub(crate) on_link: bool,
    /// Made by an engine, for a slot.
    pub(crate) ours: bool,
}

/// All interfaces.
pub(crate) fn links_request() -> Message {
    Message::new(GETLINK, flags::DUMP).put(&ifinfo(0, 0))
}

/// One interface.
pub(crate) fn link_request(index: u32) -> Message {
    Message::new(GETLINK, 0).put(&ifinfo(index, 0))
}

/// All IPv4 addresses.
pub(crate) fn addresses_request() -> Message {
    Message::new(GETADDR, flags::DUMP).put(&[AF_INET, 0, 0, 0, 0, 0, 0, 0])
}

/// All IPv4 routes of all tables.
pub(crate) fn routes_request() -> Message {
    Message::new(GETROUTE, flags::DUMP).put(&[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// All IPv4 neighbours.
pub(crate) fn neighbours_request() -> Message {
    Message::new(GETNEIGH, flags::DUMP).put(&[AF_INET, 0, 0, 0, 0, 0, 0, 0]).put(&[0; 4])
}

/// A permanent one; others come and go by themselves.
pub(crate) fn parse_neighbour(m: &Received<'_>) -> Option<Neighbour> {
    if m.kind != NEWNEIGH || super::u16_at(m.body, 8)? & NUD_PERMANENT == 0 {
        return None;
    }
    let attrs = m.body.get(12..)?;
    let mac = <[u8; 6]>::try_from(attribute(attrs, 2)?).ok()?;
    Some(Neighbour { index: u32_at(m.body, 4)?, ip: ipv4(attribute(attrs, 1)?)?, mac: MacAddr(mac) })
}

/// The interface of a notification about a neighbour; `None` for any other notification.
pub(crate) fn neighbour_link(m: &Received<'_>) -> Option<u32> {
    if matches!(m.kind, NEWNEIGH | DELNEIGH) { u32_at(m.body, 4) } else { None }
}

/// The forwarding setting of `all` (`struct netconfmsg`, `NETCONFA_*`).
pub(crate) fn forwarding_request() -> Message {
    const ALL: i32 = -1;
    let mut m = Message::new(GETNETCONF, 0).put(&[AF_INET, 0, 0, 0]);
    m.attr(NETCONFA_IFINDEX, &ALL.to_ne_bytes());
    m
}

pub(crate) fn parse_forwarding(m: &Received<'_>) -> Option<bool> {
    let value = attribute(m.body.get(4..)?, NETCONFA_FORWARDING)?;
    Some(u32_at(value, 0)? != 0)
}

pub(crate) fn parse_link(m: &Received<'_>) -> Option<Link> {
    if m.kind != NEWLINK {
        return None;
    }
    let attrs = m.body.get(16..)?;
    let text = |kind| attribute(attrs, kind).map(c_string).unwrap_or_default();
    let family = |of: u8| attribute(attrs, IFLA_AF_SPEC).and_then(|spec| attribute(spec, u16::from(of)));
    let conf = family(AF_INET).and_then(|inet| attribute(inet, IFLA_INET_CONF));
    let mode = family(AF_INET6).and_then(|inet6| attribute(inet6, IFLA_INET6_ADDR_GEN_MODE));
    let info = attribute(attrs, IFLA_LINKINFO);
    let port = info
        .and_then(|info| attribute(info, IFLA_INFO_SLAVE_DATA))
        .and_then(|data| attribute(data, IFLA_BRPORT_ISOLATED));
    Some(Link {
        index: u32_at(m.body, 4)?,
        name: text(IFLA_IFNAME),
        alias: text(IFLA_IFALIAS),
        group: attribute(attrs, IFLA_GROUP).and_then(|g| u32_at(g, 0)).unwrap_or(0),
        // In a dump the settings are an array; FORWARDING is number 1 and so comes first.
        forwarding: conf.and_then(|c| u32_at(c, 0)).unwrap_or(0) != 0,
        no_ipv6_address: mode.is_none_or(|mode| mode == [IN6_ADDR_GEN_MODE_NONE]),
        up: u32_at(m.body, 8)? & IFF_UP != 0,
        is_bridge: info.and_then(|info| attribute(info, IFLA_INFO_KIND)).map(c_string).as_deref()
            == Some("bridge"),
        master: attribute(attrs, IFLA_MASTER).and_then(|m| u32_at(m, 0)).filter(|index| *index != 0),
        isolated_port: port.is_some_and(|on| on == [1]),
    })
}

/// How many packets may wait to leave an interface, with its index.
pub(crate) fn parse_queue_length(m: &Received<'_>) -> Option<(u32, u32)> {
    if m.kind != NEWLINK {
        return None;
    }
    let length = attribute(m.body.get(16..)?, IFLA_TXQLEN).and_then(|length| u32_at(length, 0))?;
    Some((u32_at(m.body, 4)?, length))
}

pub(crate) fn parse_address(m: &Received<'_>) -> Option<Address> {
    if m.kind != NEWADDR {
        return None;
    }
    let attrs = m.body.get(8..)?;
    let ip = ipv4(attribute(attrs, 2).or_else(|| attribute(attrs, 1))?)?;
    Some(Address { index: u32_at(m.body, 4)?, net: Ipv4Net::new(ip, *m.body.get(1)?).ok()? })
}

pub(crate) fn parse_route(m: &Received<'_>) -> Option<Route> {
    const TABLE_LOCAL: u8 = 255;
    const CLONED: u32 = 0x200;
    if m.kind != NEWROUTE {
        return None;
    }
    let head = m.body.get(..12)?;
    let attrs = m.body.get(12..)?;
    if head[4] == TABLE_LOCAL || u32_at(head, 8)? & CLONED != 0 {
        return None;
    }
    let dst = attribute(attrs, 1).map_or(Some(Ipv4Addr::UNSPECIFIED), ipv4)?;
    let gateway = attribute(attrs, 5).is_some() || attribute(attrs, 18).is_some();
    let mut links: Vec<u32> = attribute(attrs, 4).and_then(|oif| u32_at(oif, 0)).into_iter().collect();
    if let Some(hops) = attribute(attrs, 9) {
        links.extend(multipath(hops));
    }
    Some(Route {
        net: Ipv4Net::new(dst, head[1]).ok()?,
        links,
        on_link: head[6] == RT_SCOPE_LINK && head[7] == RTN_UNICAST && !gateway,
        ours: head[5] == RTPROT_ENISLE,
    })
}

/// The interfaces in an array of `struct rtnexthop`.
fn multipath(mut bytes: &[u8]) -> Vec<u32> {
    let mut links = Vec::new();
    while let (Some(len), Some(index)) = (super::u16_at(bytes, 0), u32_at(bytes, 4)) {
        links.push(index);
        let next = usize::from(len).next_multiple_of(4).max(8);
        bytes = bytes.get(next..).unwrap_or(&[]);
    }
    links
}

fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}

fn c_string(bytes: &[u8]) -> String {
    let end = bytes.iter().position(|b| *b == 0).unwrap_or(bytes.len());
    String::from_utf8_lossy(&bytes[..end]).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::{HEADER, attributes, messages};

    #[test]
    fn a_veths_peer_is_born_in_its_namespace() {
        let spec = Veth {
            name: "en-a9fe6402".into(),
            index: 0x4000_0001,
            mac: MacAddr([2, 0, 0, 0, 0, 1]),
            group: 9,
            mtu: 1500,
            peer_name: "ve",
            peer_index: 0x6000_0001,
        };
        let bytes = veth(&spec, 42).finish(1);
        let attrs = &bytes[HEADER + 16..];
        let info = attribute(attrs, IFLA_LINKINFO).unwrap();
        let peer = attribute(attribute(info, IFLA_INFO_DATA).unwrap(), VETH_INFO_PEER).unwrap();
        assert_eq!(u32_at(peer, 4), Some(0x6000_0001));
        let fd = attribute(&peer[16..], IFLA_NET_NS_FD).unwrap();
        assert_eq!(u32_at(fd, 0), Some(42));
        assert!(attributes(attrs).all(|(kind, _)| kind != IFLA_NET_NS_FD));
    }

    #[test]
    fn our_own_route_is_read_as_ours_and_on_link() {
        let bytes = Change::HostRoute(7, Ipv4Addr::new(169, 254, 100, 2)).message().finish(1);
        let m = messages(&bytes).next().unwrap();
        let route = parse_route(&m).unwrap();
        assert_eq!(route.net, "169.254.100.2/32".parse().unwrap());
        assert_eq!(route.links, [7]);
        assert!(route.on_link && route.ours);
    }

    #[test]
    fn every_hop_of_a_multipath_route_counts() {
        let hop = |index: u32| [&[16, 0, 0, 0][..], &index.to_ne_bytes(), &[0; 8]].concat();
        assert_eq!(multipath(&[hop(3), hop(4)].concat()), [3, 4]);
        assert_eq!(multipath(&[1, 0, 0]), Vec::<u32>::new());
    }
}
