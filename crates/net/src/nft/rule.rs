//! Rules as lists of expressions, built by methods named after `nft`'s own syntax.
//!
//! Owns: which expressions one statement of `nft` becomes. Refuses: bytes (`encode`).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use super::ChainName;

/// Registers hold 4 bytes each; `nft` numbers the first one 1 and its neighbours from 9.
pub(super) const FIRST: u32 = 1;
pub(super) const SECOND: u32 = 9;

/// `ct state` bits (`nf_conntrack_common.h`).
pub(super) mod ct_state {
    pub(crate) const INVALID: u32 = 1;
    pub(crate) const ESTABLISHED: u32 = 2;
    pub(crate) const RELATED: u32 = 4;
    pub(crate) const NEW: u32 = 8;
}

/// `IPS_DST_NAT` of `ct status`.
const CT_STATUS_DNAT: u32 = 0x20;
const TCP: u8 = 6;
const UDP: u8 = 17;
const TCP_SYN: u8 = 0x02;
const TCP_RST: u8 = 0x04;
const ETH_P_ARP: u16 = 0x0806;
const NFPROTO_IPV4: u8 = 2;
const NFPROTO_IPV6: u8 = 10;
/// `RTN_UNICAST`: an address that is neither the host's own nor broadcast nor multicast.
const RTN_UNICAST: u32 = 1;

/// `NFT_META_*` as far as used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meta {
    Protocol,
    Mark,
    Iif,
    Oif,
    IifName,
    OifName,
    Nfproto,
    L4proto,
    IifGroup,
    OifGroup,
}

/// Header a payload expression counts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Header {
    Network,
    Transport,
}

/// Verdicts of a rule or of an element of a map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Verdict {
    Accept,
    Drop,
    Return,
    Jump(ChainName),
    Goto(ChainName),
}

/// One kernel expression. Results go to the first register unless it says otherwise.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Expr {
    Meta(Meta),
    Payload {
        header: Header,
        offset: u32,
        len: u32,
        register: u32,
    },
    CtState,
    CtStatus,
    FibDestinationType,
    Compare {
        equal: bool,
        data: Vec<u8>,
    },
    /// Between two values, or not; most significant byte first.
    Within {
        inside: bool,
        first: Vec<u8>,
        last: Vec<u8>,
    },
    Mask(Vec<u8>),
    HostToNetwork {
        width: u32,
    },
    Lookup {
        set: &'static str,
        inverted: bool,
    },
    /// `vmap @set`
    LookupVerdict(&'static str),
    Counter,
    Limit {
        over: bool,
        per_second: u64,
        burst: u32,
    },
    /// `add @set { … ct count over N }`.
    CountFlowsOver {
        set: &'static str,
        flows: u32,
    },
    RouteMss,
    WriteMss,
    RejectTcpReset,
    /// ICMP administratively prohibited; `any_family` in an `inet` table.
    RejectProhibited {
        any_family: bool,
    },
    Masquerade,
    /// `-m conntrack --ctstate RELATED,ESTABLISHED` of iptables.
    XtConntrackEstablished,
    Verdict(Verdict),
}

/// A rule: matches, then what to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Rule(pub(crate) Vec<Expr>);

impl Rule {
    pub(crate) fn new() -> Rule {
        Rule::default()
    }

    fn with(mut self, exprs: impl IntoIterator<Item = Expr>) -> Rule {
        self.0.extend(exprs);
        self
    }

    fn meta_is(self, key: Meta, data: &[u8]) -> Rule {
        self.with([Expr::Meta(key), equal(data)])
    }

    /// `meta nfproto ipv4`
    pub(crate) fn ipv4(self) -> Rule {
        self.meta_is(Meta::Nfproto, &[NFPROTO_IPV4])
    }

    /// `meta nfproto ipv6`
    pub(crate) fn ipv6(self) -> Rule {
        self.meta_is(Meta::Nfproto, &[NFPROTO_IPV6])
    }

    /// `meta protocol arp`
    pub(crate) fn arp(self) -> Rule {
        self.meta_is(Meta::Protocol, &ETH_P_ARP.to_be_bytes())
    }

    /// `meta l4proto tcp`
    pub(crate) fn tcp(self) -> Rule {
        self.meta_is(Meta::L4proto, &[TCP])
    }

    /// `meta l4proto udp`
    pub(crate) fn udp(self) -> Rule {
        self.meta_is(Meta::L4proto, &[UDP])
    }

    /// `sport N` after `tcp` or `udp`.
    pub(crate) fn source_port(self, port: u16) -> Rule {
        let ports = Expr::Payload { header: Header::Transport, offset: 0, len: 2, register: FIRST };
        self.with([ports, equal(&port.to_be_bytes())])
    }

    /// `iif N`
    pub(crate) fn iif(self, index: u32) -> Rule {
        self.meta_is(Meta::Iif, &index.to_ne_bytes())
    }

    /// `oif N`
    pub(crate) fn oif(self, index: u32) -> Rule {
        self.meta_is(Meta::Oif, &index.to_ne_bytes())
    }

    /// `iifname "prefix*"`
    pub(crate) fn iifname_begins(self, prefix: &str) -> Rule {
        self.meta_is(Meta::IifName, prefix.as_bytes())
    }

    /// `oifname "prefix*"`
    pub(crate) fn oifname_begins(self, prefix: &str) -> Rule {
        self.meta_is(Meta::OifName, prefix.as_bytes())
    }

    /// `iif @set`, an interval set of interface indexes.
    pub(crate) fn iif_within(self, set: &'static str) -> Rule {
        self.interface_within(Meta::Iif, set)
    }

    /// `oif @set`, an interval set of interface indexes.
    pub(crate) fn oif_within(self, set: &'static str) -> Rule {
        self.interface_within(Meta::Oif, set)
    }

    fn interface_within(self, key: Meta, set: &'static str) -> Rule {
        // Interval sets compare bytes, most significant first; an ifindex is in host order.
        self.with([Expr::Meta(key), Expr::HostToNetwork { width: 4 }, Expr::Lookup { set, inverted: false }])
    }

    /// `iif first-last`
    pub(crate) fn iif_between(self, first: u32, last: u32) -> Rule {
        self.interface_between(Meta::Iif, true, first, last)
    }

    /// `iif != first-last`
    pub(crate) fn iif_not_between(self, first: u32, last: u32) -> Rule {
        self.interface_between(Meta::Iif, false, first, last)
    }

    /// `oif != first-last`
    pub(crate) fn oif_not_between(self, first: u32, last: u32) -> Rule {
        self.interface_between(Meta::Oif, false, first, last)
    }

    fn interface_between(self, key: Meta, inside: bool, first: u32, last: u32) -> Rule {
        let (first, last) = (first.to_be_bytes().to_vec(), last.to_be_bytes().to_vec());
        self.with([Expr::Meta(key), Expr::HostToNetwork { width: 4 }, Expr::Within { inside, first, last }])
    }

    /// `iifgroup N`
    pub(crate) fn iif_group(self, group: u32) -> Rule {
        self.meta_is(Meta::IifGroup, &group.to_ne_bytes())
    }

    /// `oifgroup N`
    pub(crate) fn oif_group(self, group: u32) -> Rule {
        self.meta_is(Meta::OifGroup, &group.to_ne_bytes())
    }

    /// `iif @set`, a set of single interface indexes.
    pub(crate) fn iif_in(self, set: &'static str) -> Rule {
        self.with([Expr::Meta(Meta::Iif), Expr::Lookup { set, inverted: false }])
    }

    /// `oif @set`, a set of single interface indexes.
    pub(crate) fn oif_in(self, set: &'static str) -> Rule {
        self.with([Expr::Meta(Meta::Oif), Expr::Lookup { set, inverted: false }])
    }

    /// `iif . ip saddr @set`
    pub(crate) fn iif_source_in(self, set: &'static str) -> Rule {
        self.iif_source(set, false)
    }

    /// `iif . ip saddr != @set`
    pub(crate) fn iif_source_not_in(self, set: &'static str) -> Rule {
        self.iif_source(set, true)
    }

    fn iif_source(self, set: &'static str, inverted: bool) -> Rule {
        self.ipv4().with([
            Expr::Meta(Meta::Iif),
            Expr::Payload { header: Header::Network, offset: 12, len: 4, register: SECOND },
            Expr::Lookup { set, inverted },
        ])
    }

    /// `ip saddr net`
    pub(crate) fn source_within(self, net: Ipv4Net) -> Rule {
        self.address_within(12, net)
    }

    /// `ip daddr net`
    pub(crate) fn destination_within(self, net: Ipv4Net) -> Rule {
        self.address_within(16, net)
    }

    /// `ip saddr net`, where the family is known to be IPv4.
    pub(crate) fn ipv4_source_within(self, net: Ipv4Net) -> Rule {
        self.known_address_within(12, net)
    }

    /// `ip daddr net`, where the family is known to be IPv4.
    pub(crate) fn ipv4_destination_within(self, net: Ipv4Net) -> Rule {
        self.known_address_within(16, net)
    }

    fn address_within(self, offset: u32, net: Ipv4Net) -> Rule {
        self.ipv4().known_address_within(offset, net)
    }

    fn known_address_within(self, offset: u32, net: Ipv4Net) -> Rule {
        let mask: Ipv4Addr = net.netmask();
        self.with([address(offset), Expr::Mask(mask.octets().to_vec()), equal(&net.network().octets())])
    }

    /// `fib daddr type != unicast`
    pub(crate) fn destination_not_unicast(self) -> Rule {
        self.with([
            Expr::FibDestinationType,
            Expr::Compare { equal: false, data: RTN_UNICAST.to_ne_bytes().to_vec() },
        ])
    }

    /// `meta mark N`
    pub(crate) fn mark(self, mark: u32) -> Rule {
        self.meta_is(Meta::Mark, &mark.to_ne_bytes())
    }

    /// `ct state invalid`
    pub(crate) fn ct_invalid(self) -> Rule {
        self.any_bit(Expr::CtState, ct_state::INVALID)
    }

    /// `ct state established,related`
    pub(crate) fn ct_established(self) -> Rule {
        self.any_bit(Expr::CtState, ct_state::ESTABLISHED | ct_state::RELATED)
    }

    /// The same in the form that iptables-nft can list.
    pub(crate) fn xt_established(self) -> Rule {
        self.with([Expr::XtConntrackEstablished])
    }

    /// `ct state new ct status != confirmed`: the packet that begins a flow, and only that one. A
    /// flow that is not answered stays `new`, so a stream of UDP one way is all `new` packets.
    pub(crate) fn ct_begins(self) -> Rule {
        const CONFIRMED: u32 = 8;
        self.any_bit(Expr::CtState, ct_state::NEW).with([
            Expr::CtStatus,
            Expr::Mask(CONFIRMED.to_ne_bytes().to_vec()),
            equal(&[0; 4]),
        ])
    }

    /// `ct state established ct status ! dnat`
    pub(crate) fn ct_established_as_judged(self) -> Rule {
        self.any_bit(Expr::CtState, ct_state::ESTABLISHED).with([
            Expr::CtStatus,
            Expr::Mask(CT_STATUS_DNAT.to_ne_bytes().to_vec()),
            equal(&[0; 4]),
        ])
    }

    /// `ct status dnat`
    pub(crate) fn ct_dnat(self) -> Rule {
        self.any_bit(Expr::CtStatus, CT_STATUS_DNAT)
    }

    fn any_bit(self, load: Expr, bits: u32) -> Rule {
        self.with([
            load,
            Expr::Mask(bits.to_ne_bytes().to_vec()),
            Expr::Compare { equal: false, data: vec![0; 4] },
        ])
    }

    /// `add @set { ip saddr ct count over N }`: matches from the `flows`+1st flow on.
    pub(crate) fn flows_over(self, set: &'static str, flows: u32) -> Rule {
        self.ipv4().with([address(12), Expr::CountFlowsOver { set, flows }])
    }

    /// `ip saddr vmap @set`
    pub(crate) fn source_verdict(self, set: &'static str) -> Rule {
        self.ipv4().with([address(12), Expr::LookupVerdict(set)])
    }

    /// `ip saddr @set`
    pub(crate) fn source_in(self, set: &'static str) -> Rule {
        self.ipv4().with([address(12), Expr::Lookup { set, inverted: false }])
    }

    /// `tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu`
    pub(crate) fn clamp_mss(self) -> Rule {
        self.tcp().with([
            transport_byte(13),
            Expr::Mask(vec![TCP_SYN | TCP_RST]),
            equal(&[TCP_SYN]),
            Expr::RouteMss,
            Expr::HostToNetwork { width: 2 },
            Expr::WriteMss,
        ])
    }

    /// `tcp flags & rst == rst`
    pub(crate) fn tcp_reset_segment(self) -> Rule {
        self.tcp().with([transport_byte(13), Expr::Mask(vec![TCP_RST]), equal(&[TCP_RST])])
    }

    /// `icmp type destination-unreachable`, the only ICMP error a refusal sends.
    pub(crate) fn icmp_unreachable(self) -> Rule {
        const ICMP: u8 = 1;
        const UNREACHABLE: u8 = 3;
        self.meta_is(Meta::L4proto, &[ICMP]).with([transport_byte(0), equal(&[UNREACHABLE])])
    }

    /// `icmp type time-exceeded`
    pub(crate) fn icmp_time_exceeded(self) -> Rule {
        const ICMP: u8 = 1;
        const TIME_EXCEEDED: u8 = 11;
        self.meta_is(Meta::L4proto, &[ICMP]).with([transport_byte(0), equal(&[TIME_EXCEEDED])])
    }

    /// `limit rate over N/second burst N packets`
    pub(crate) fn faster_than(self, per_second: u64, burst: u32) -> Rule {
        self.with([Expr::Limit { over: true, per_second, burst }])
    }

    /// `counter`
    pub(crate) fn counter(self) -> Rule {
        self.with([Expr::Counter])
    }

    /// `accept`
    pub(crate) fn accept(self) -> Rule {
        self.with([Expr::Verdict(Verdict::Accept)])
    }

    /// `drop`
    pub(crate) fn drop(self) -> Rule {
        self.with([Expr::Verdict(Verdict::Drop)])
    }

    /// `return`
    pub(crate) fn back(self) -> Rule {
        self.with([Expr::Verdict(Verdict::Return)])
    }

    /// `jump chain`
    pub(crate) fn jump(self, chain: &'static str) -> Rule {
        self.with([Expr::Verdict(Verdict::Jump(chain.into()))])
    }

    /// `goto chain`
    pub(crate) fn goto(self, chain: &'static str) -> Rule {
        self.with([Expr::Verdict(Verdict::Goto(chain.into()))])
    }

    /// `reject with tcp reset`
    pub(crate) fn reset(self) -> Rule {
        self.with([Expr::RejectTcpReset])
    }

    /// `reject with icmpx admin-prohibited`
    pub(crate) fn prohibit(self) -> Rule {
        self.with([Expr::RejectProhibited { any_family: true }])
    }

    /// `reject with icmp admin-prohibited`, where the family is known to be IPv4.
    pub(crate) fn prohibit_ipv4(self) -> Rule {
        const ETH_P_IP: u16 = 0x0800;
        self.meta_is(Meta::Protocol, &ETH_P_IP.to_be_bytes())
            .with([Expr::RejectProhibited { any_family: false }])
    }

    /// `masquerade`
    pub(crate) fn masquerade(self) -> Rule {
        self.with([Expr::Masquerade])
    }
}

fn equal(data: &[u8]) -> Expr {
    Expr::Compare { equal: true, data: data.to_vec() }
}

/// An address of the IPv4 header, by its offset.
fn address(offset: u32) -> Expr {
    Expr::Payload { header: Header::Network, offset, len: 4, register: FIRST }
}

/// One byte of the transport header.
fn transport_byte(offset: u32) -> Expr {
    Expr::Payload { header: Header::Transport, offset, len: 1, register: FIRST }
}
