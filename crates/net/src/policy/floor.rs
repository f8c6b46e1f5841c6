//! The built-in floor: what no list has to mention (rows 5 to 7 of the contract).
//!
//! Owns: the static table of refused networks. Refuses: what only a live host knows (its own
//! addresses, its on-link networks, its slots); the host table guards those.

use std::net::Ipv4Addr;

use ipnet::Ipv4Net;

/// One refused network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FloorRow {
    /// Row of the contract (`docs/networking.md`).
    pub row: u8,
    /// What is refused.
    pub net: Ipv4Net,
    /// What it is, for people.
    pub what: &'static str,
    /// Whether an `allow` inside it can be kept at all. Where not, the kernel itself never
    /// forwards such a packet, so promising it would be a lie.
    pub can_open: bool,
}

const fn row(row: u8, a: [u8; 4], len: u8, can_open: bool, what: &'static str) -> FloorRow {
    let net = Ipv4Net::new_assert(Ipv4Addr::new(a[0], a[1], a[2], a[3]), len);
    FloorRow { row, net, what, can_open }
}

/// Every refused network, by row. Special-purpose addresses are those of RFC 6890.
pub const FLOOR: &[FloorRow] = &[
    row(5, [10, 0, 0, 0], 8, true, "private network"),
    row(5, [172, 16, 0, 0], 12, true, "private network"),
    row(5, [192, 168, 0, 0], 16, true, "private network"),
    row(5, [100, 64, 0, 0], 10, true, "carrier-grade NAT"),
    row(5, [169, 254, 0, 0], 16, true, "link-local network"),
    row(6, [169, 254, 169, 254], 32, true, "cloud metadata"),
    row(6, [169, 254, 169, 253], 32, true, "cloud metadata (AWS DNS)"),
    row(6, [169, 254, 170, 2], 32, true, "cloud metadata (ECS)"),
    row(6, [168, 63, 129, 16], 32, true, "cloud metadata (Azure)"),
    row(6, [100, 100, 100, 200], 32, true, "cloud metadata (Alibaba)"),
    row(6, [192, 0, 0, 192], 32, true, "cloud metadata (Oracle)"),
    row(7, [0, 0, 0, 0], 8, false, "this network"),
    row(7, [127, 0, 0, 0], 8, false, "loopback"),
    row(7, [192, 0, 0, 0], 24, true, "IETF protocol assignments"),
    row(7, [192, 0, 2, 0], 24, true, "TEST-NET-1"),
    row(7, [198, 51, 100, 0], 24, true, "TEST-NET-2"),
    row(7, [203, 0, 113, 0], 24, true, "TEST-NET-3"),
    row(7, [198, 18, 0, 0], 15, true, "benchmarking"),
    row(7, [224, 0, 0, 0], 4, false, "multicast"),
    row(7, [240, 0, 0, 0], 4, false, "reserved and broadcast"),
];
