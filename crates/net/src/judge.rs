//! The judge's maps, as values: what `bpf/judge.c` looks up and counts.
//!
//! Owns: layouts shared with the C program, and how a compiled policy becomes rows. Refuses:
//! system calls (`kernel`), deciding who has which policy (`policies`).

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

use crate::plan::{Block, MacAddr};
use crate::policy::{CompiledPolicy, Origin, RuleId, Verdict};
use crate::reports::Tenant;

/// On a packet for a service on the gateway, between the judge and the namespace's tables.
/// `MARK_SERVICE` of `judge.c`.
pub(crate) const MARK_SERVICE: u32 = 0x454e_0001;
/// In the map of hosts: no `allow` opens it.
pub(crate) const NEVER: u32 = 255;
/// How many counters `judge.c` keeps for a slot.
pub(crate) const COUNTERS: usize = 13;

/// `enum refuser` of `judge.c`: row 8 of the contract.
pub(crate) const BY_FORM: u32 = 0xffff_fff0;
/// Row 7, by the frame's address.
pub(crate) const BY_MULTICAST: u32 = BY_FORM + 1;
/// Row 11: the gateway has no such service.
pub(crate) const BY_GATEWAY: u32 = BY_FORM + 2;
/// Rows 3 to 5: what only this host knows.
pub(crate) const BY_HOST: u32 = BY_FORM + 3;
/// No policy holds the address.
pub(crate) const BY_NOTHING: u32 = BY_FORM + 4;
/// Rules beyond those that get a count of their own.
pub(crate) const BY_OTHERS: u32 = BY_FORM + 5;
/// Not a refuser: the row that a slot has for itself.
pub(crate) const REFUSALS: u32 = u32::MAX;

/// Names one policy in the maps. Never reused while a slot refers to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct PolicyId(pub(crate) u32);

/// `struct slot`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SlotEntry {
    pub(crate) guest: Ipv4Addr,
    pub(crate) gateway: Ipv4Addr,
    pub(crate) policy: PolicyId,
    pub(crate) guest_mac: MacAddr,
    pub(crate) gateway_mac: MacAddr,
    /// What the guest sends is kept to a rate, outside the judge.
    pub(crate) shaped: bool,
    /// No fragment from the guest before: nanoseconds of `CLOCK_MONOTONIC`. Only the first entry of
    /// a slot says so.
    pub(crate) fragments_from: u64,
    /// Whose it is. Only the first entry of a slot says so.
    pub(crate) tenant: Tenant,
}

/// What of a slot's entry stays as it is while the slot lives.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Terms {
    pub(crate) shaped: bool,
    pub(crate) fragments_from: u64,
    pub(crate) tenant: Tenant,
}

impl SlotEntry {
    pub(crate) fn new(block: Block, policy: PolicyId, terms: Terms) -> SlotEntry {
        SlotEntry {
            guest: block.guest(),
            gateway: block.gateway(),
            policy,
            guest_mac: block.guest_mac(),
            gateway_mac: block.host_mac(),
            shaped: terms.shaped,
            fragments_from: terms.fragments_from,
            tenant: terms.tenant,
        }
    }
}

/// `struct verdict`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct VerdictValue {
    pub(crate) rule: RuleId,
    /// 0 where no port decides.
    pub(crate) table: u32,
    pub(crate) allow: bool,
    pub(crate) fragments: bool,
    /// Prefix length of the operator's `allow` that says so; else 0. It opens an on-link subnet of
    /// at most that length.
    pub(crate) opens: u8,
}

/// One row of `addresses`, less its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct AddressEntry {
    pub(crate) net: Ipv4Net,
    pub(crate) verdict: VerdictValue,
}

/// One row of `ports`, less its policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct PortRow {
    pub(crate) table: u32,
    pub(crate) proto: u8,
    pub(crate) port: u16,
    /// Leading bits of `port` that count.
    pub(crate) len: u8,
    pub(crate) verdict: VerdictValue,
}

/// The rows of `addresses`.
pub(crate) fn address_entries(policy: &CompiledPolicy) -> impl Iterator<Item = AddressEntry> {
    policy.entries().iter().map(|e| AddressEntry {
        net: e.net,
        verdict: VerdictValue {
            rule: e.rule,
            table: e.ports.map_or(0, |p| p.0),
            allow: e.verdict == Verdict::Allow,
            fragments: e.fragments == Verdict::Allow,
            opens: opens(policy, e.rule),
        },
    })
}

/// The rows of `ports`.
pub(crate) fn port_rows(policy: &CompiledPolicy) -> impl Iterator<Item = PortRow> {
    policy.port_entries().iter().map(|p| PortRow {
        table: p.ports.0,
        proto: p.proto.number(),
        port: p.prefix.port,
        len: p.prefix.len,
        verdict: VerdictValue {
            rule: p.rule,
            table: 0,
            allow: p.verdict == Verdict::Allow,
            fragments: false,
            opens: opens(policy, p.rule),
        },
    })
}

/// A VM's own `allow` opens nothing: it only repeats what the group allows.
pub(crate) fn opens(policy: &CompiledPolicy, rule: RuleId) -> u8 {
    match policy.rule(rule) {
        Some(info) if matches!(info.origin, Origin::Allow(_)) => info.net.prefix_len(),
        _ => 0,
    }
}

/// `of` of `struct counters`, summed over the CPUs, in the order of `enum counter`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counters {
    pub(crate) packets: [u64; COUNTERS],
    pub(crate) bytes: [u64; COUNTERS],
}

/// Direction and verdict of each of the judge's counters, in their order. Together, with a `_`, they are
/// the names of the fields of [`SlotStats`].
pub const VERDICTS: [(&str, &str); COUNTERS] = [
    ("out", "allowed"),
    ("out", "refused"),
    ("out", "service"),
    ("out", "arp"),
    ("out", "frame"),
    ("out", "spoofed"),
    ("out", "malformed"),
    ("in", "allowed"),
    ("in", "refused"),
    ("in", "unsolicited"),
    ("in", "malformed"),
    ("in", "limited"),
    ("out", "limited"),
];

/// What the judge did with a slot's packets since the slot was made. All counts are packets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct SlotStats {
    /// From the guest, let out.
    pub out_allowed: u64,
    /// From the guest, refused and answered (policy, IP options, other protocols, multicast).
    pub out_refused: u64,
    /// For DNS on the gateway, left to whoever serves it in the namespace.
    pub out_service: u64,
    /// ARP questions for the gateway, answered by the namespace.
    pub out_arp: u64,
    /// From the guest, dropped: wrong MAC, VLAN tag, IPv6, any other ethertype.
    pub out_frame: u64,
    /// From the guest, dropped: forged IPv4 source or ARP.
    pub out_spoofed: u64,
    /// From the guest, dropped: headers that lie about lengths.
    pub out_malformed: u64,
    /// To the guest, delivered.
    pub in_allowed: u64,
    /// To the guest, dropped: from where the guest may not send to.
    pub in_refused: u64,
    /// To the guest, dropped: not an answer, or not addressed to it.
    pub in_unsolicited: u64,
    /// To the guest, dropped: headers that lie about lengths, IP options.
    pub in_malformed: u64,
    /// ICMP errors to the guest beyond the limit, dropped.
    pub in_limited: u64,
    /// Fragments from the guest beyond what the host may hold of one, refused and answered.
    pub out_limited: u64,
    /// Flows the guest was refused because it began too many a second or had too many at a time.
    /// The host's table counts them, the judge had allowed the packet.
    pub flows_refused: u64,
}

impl From<Counters> for SlotStats {
    fn from(counters: Counters) -> SlotStats {
        let [
            out_allowed,
            out_refused,
            out_service,
            out_arp,
            out_frame,
            out_spoofed,
            out_malformed,
            in_allowed,
            in_refused,
            in_unsolicited,
            in_malformed,
            in_limited,
            out_limited,
        ] = counters.packets;
        SlotStats {
            out_allowed,
            out_refused,
            out_service,
            out_arp,
            out_frame,
            out_spoofed,
            out_malformed,
            in_allowed,
            in_refused,
            in_unsolicited,
            in_malformed,
            in_limited,
            out_limited,
            flows_refused: 0,
        }
    }
}
