//! The address plan: a group's range, its /30 blocks, and every number a block decides.
//!
//! Owns: which ranges are legal, how a block becomes addresses, MACs, interface indexes and names.
//! Refuses: system calls, leases (who holds a block), anything a VM's name could influence.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use ipnet::Ipv4Net;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

/// Where ranges may lie. Without its top bit an address in these five is still unique, which is
/// what lets 29 bits of block number become an interface index. The order is the order in which
/// [`Range::next_free`] looks.
pub const POOLS: [Ipv4Net; 5] = [
    net(169, 254, 0, 0, 16),
    net(10, 0, 0, 0, 8),
    net(172, 16, 0, 0, 12),
    net(192, 168, 0, 0, 16),
    net(100, 64, 0, 0, 10),
];

/// Networks in the pools that clouds use for instance metadata (AWS, GCP, Azure; ECS; Alibaba).
/// A range over one of them would shadow the service for the host itself.
pub const METADATA: [Ipv4Net; 3] =
    [net(169, 254, 169, 0, 24), net(169, 254, 170, 0, 24), net(100, 100, 100, 0, 24)];

const BLOCK_PREFIX: u8 = 30;
const ID_MASK: u32 = 0x1FFF_FFFF;
const TAP_INDEX: u32 = 0x4000_0000;
const PEER_INDEX: u32 = 0x6000_0000;
/// First two bytes of our MACs: locally administered, unicast (IEEE 802, bit 1 set, bit 0 clear).
const MAC_PREFIX: [u8; 2] = [0x02, 0xe5];

const fn net(a: u8, b: u8, c: u8, d: u8, len: u8) -> Ipv4Net {
    Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), len)
}

/// Why a text is not a range for isolated microVMs.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// Not `a.b.c.d/len`.
    #[error("`{0}` is not an IPv4 network; write it as address/length, such as 169.254.100.0/22")]
    NotIpv4(String),
    /// The address has bits set beyond the prefix length.
    #[error("`{given}` is not the start of a network; did you mean {right}?")]
    HostBits {
        /// As written.
        given: Ipv4Net,
        /// The network that holds the address.
        right: Ipv4Net,
    },
    /// Smaller than one /30 block.
    #[error("{0} is too small: one microVM takes a /30, so the range must be a /30 or larger")]
    TooSmall(Ipv4Net),
    /// Not inside one of [`POOLS`].
    #[error(
        "{0} may belong to somebody on the Internet; choose a range inside 169.254.0.0/16, \
         10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16 or 100.64.0.0/10"
    )]
    NotPrivate(Ipv4Net),
    /// Shadows a cloud's metadata service.
    #[error("{range} covers {metadata}, where clouds serve instance metadata; choose another range")]
    Metadata {
        /// The range asked for.
        range: Ipv4Net,
        /// The reserved network it covers.
        metadata: Ipv4Net,
    },
}

/// A legal range of /30 blocks. Capacity is 1 to 4,194,304 microVMs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Range(Ipv4Net);

impl Range {
    /// The range as a network.
    #[must_use]
    pub fn net(&self) -> Ipv4Net {
        self.0
    }

    /// How many microVMs fit: 256 for a /22, 128 for a /23.
    #[must_use]
    pub fn capacity(&self) -> u32 {
        1 << (BLOCK_PREFIX - self.0.prefix_len())
    }

    /// The `i`th block, counted from 0; `None` at and beyond [`Range::capacity`].
    #[must_use]
    pub fn block(&self, i: u32) -> Option<Block> {
        (i < self.capacity()).then(|| Block(u32::from(self.0.network()) + (i << 2)))
    }

    /// Every block, lowest address first.
    pub fn blocks(&self) -> impl Iterator<Item = Block> + use<> {
        let first = u32::from(self.0.network());
        (0..self.capacity()).map(move |i| Block(first + (i << 2)))
    }

    /// Whether `block` is one of this range's.
    #[must_use]
    pub fn contains(&self, block: Block) -> bool {
        self.0.contains(&block.network())
    }

    /// Whether the two share an address.
    #[must_use]
    pub fn overlaps(&self, other: &Range) -> bool {
        overlap(self.0, other.0)
    }

    /// A range of the same size that shares no address with `taken`: the next one after this in
    /// its own pool, wrapping round, else the first in the order of [`POOLS`].
    #[must_use]
    pub fn next_free(&self, taken: &[Ipv4Net]) -> Option<Range> {
        let home = POOLS.iter().find(|pool| pool.contains(&self.0));
        let after = u64::from(u32::from(self.0.broadcast())) + 1;
        let own = home.and_then(|pool| self.scan(*pool, after, taken));
        own.or_else(|| {
            POOLS.iter().find_map(|pool| self.scan(*pool, u64::from(u32::from(pool.network())), taken))
        })
    }

    /// First free range of this size in `pool` at or after `from`. Jumps over what is in the way,
    /// so the cost grows with `taken`, not with the pool.
    fn scan(&self, pool: Ipv4Net, from: u64, taken: &[Ipv4Net]) -> Option<Range> {
        let size = 1u64 << (32 - self.0.prefix_len());
        let end = u64::from(u32::from(pool.broadcast())) + 1;
        let mut at = from.next_multiple_of(size);
        while at + size <= end {
            let start = u32::try_from(at).ok()?;
            let candidate = Ipv4Net::new_assert(Ipv4Addr::from(start), self.0.prefix_len());
            let blocker = METADATA.iter().chain(taken).find(|t| overlap(**t, candidate));
            match blocker {
                None => return Some(Range(candidate)),
                Some(b) => {
                    let past = u64::from(u32::from(b.broadcast())) + 1;
                    at = past.max(at + size).next_multiple_of(size);
                }
            }
        }
        None
    }
}

fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b) || b.contains(&a)
}

impl TryFrom<Ipv4Net> for Range {
    type Error = RangeError;

    fn try_from(given: Ipv4Net) -> Result<Self, RangeError> {
        let right = given.trunc();
        if given != right {
            return Err(RangeError::HostBits { given, right });
        }
        if given.prefix_len() > BLOCK_PREFIX {
            return Err(RangeError::TooSmall(given));
        }
        if !POOLS.iter().any(|pool| pool.contains(&given)) {
            return Err(RangeError::NotPrivate(given));
        }
        match METADATA.into_iter().find(|m| overlap(*m, given)) {
            Some(metadata) => Err(RangeError::Metadata { range: given, metadata }),
            None => Ok(Range(given)),
        }
    }
}

impl FromStr for Range {
    type Err = RangeError;

    fn from_str(s: &str) -> Result<Self, RangeError> {
        let net: Ipv4Net = s.parse().map_err(|_| RangeError::NotIpv4(s.to_owned()))?;
        Range::try_from(net)
    }
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Serialize for Range {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Range {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

/// One microVM's /30: network, gateway, microVM, broadcast. Everything a slot is called or
/// numbered by derives from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Block(u32);

impl Block {
    /// The block that holds `guest`.
    #[must_use]
    pub fn from_guest(guest: Ipv4Addr) -> Block {
        Block(u32::from(guest) & !3)
    }

    /// The block as a network.
    #[must_use]
    pub fn net(self) -> Ipv4Net {
        Ipv4Net::new_assert(self.network(), BLOCK_PREFIX)
    }

    /// First address of the block.
    #[must_use]
    pub fn network(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0)
    }

    /// The address the microVM sees as its router.
    #[must_use]
    pub fn gateway(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0 | 1)
    }

    /// The microVM's own address.
    #[must_use]
    pub fn guest(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0 | 2)
    }

    /// Last address of the block.
    #[must_use]
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from(self.0 | 3)
    }

    /// 29 bits, unique among all blocks of all legal ranges of a host.
    #[must_use]
    pub fn id(self) -> u32 {
        (self.0 >> 2) & ID_MASK
    }

    /// MAC of the guest's NIC; its last four bytes are the guest's address.
    #[must_use]
    pub fn guest_mac(self) -> MacAddr {
        MacAddr::from_ip(self.guest())
    }

    /// MAC of the tap and of the host's veth; its last four bytes are the gateway's address.
    #[must_use]
    pub fn host_mac(self) -> MacAddr {
        MacAddr::from_ip(self.gateway())
    }

    /// Interface index of the tap in the VM's namespace.
    #[must_use]
    pub fn tap_ifindex(self) -> u32 {
        TAP_INDEX | self.id()
    }

    /// Interface index of the veth in the host's namespace. The same number as the tap's: the two
    /// live in different namespaces, and the judge finds its slot by it on either.
    #[must_use]
    pub fn host_ifindex(self) -> u32 {
        TAP_INDEX | self.id()
    }

    /// Interface index of the veth's peer in the VM's namespace.
    #[must_use]
    pub fn peer_ifindex(self) -> u32 {
        PEER_INDEX | self.id()
    }

    /// Name of the veth in the host's namespace: `en-` and the guest's address in hex.
    #[must_use]
    pub fn host_veth(self) -> IfName {
        IfName(format!("en-{:08x}", u32::from(self.guest())))
    }
}

impl fmt::Display for Block {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.net().fmt(f)
    }
}

/// Whether an interface of the host has the index of a slot's. A host's own neighbours change all
/// the time, those of slots do not.
pub(crate) fn is_slot_link(index: u32) -> bool {
    index & !ID_MASK == TAP_INDEX
}

/// An Ethernet address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    pub(crate) fn from_ip(ip: Ipv4Addr) -> MacAddr {
        let [a, b, c, d] = ip.octets();
        MacAddr([MAC_PREFIX[0], MAC_PREFIX[1], a, b, c, d])
    }

    /// The six bytes in transmission order.
    #[must_use]
    pub fn octets(self) -> [u8; 6] {
        self.0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An interface name of 1 to 15 bytes (`IFNAMSIZ` less its NUL). Made from numbers only, so it
/// needs no validation and no VM's name can collide in it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IfName(String);

impl IfName {
    /// The name as the kernel prints it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for IfName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(s: &str) -> Range {
        s.parse().unwrap()
    }

    fn nets(list: &[&str]) -> Vec<Ipv4Net> {
        list.iter().map(|s| s.parse().unwrap()).collect()
    }

    #[test]
    fn the_documented_example() {
        let r = range("169.254.100.0/22");
        assert_eq!(r.capacity(), 256);
        assert_eq!(range("10.0.0.0/23").capacity(), 128);
        assert_eq!(range("10.0.0.0/8").capacity(), 4_194_304);
        let b = r.block(0).unwrap();
        assert_eq!(b.network().to_string(), "169.254.100.0");
        assert_eq!(b.gateway().to_string(), "169.254.100.1");
        assert_eq!(b.guest().to_string(), "169.254.100.2");
        assert_eq!(b.broadcast().to_string(), "169.254.100.3");
        assert_eq!(b.host_veth().as_str(), "en-a9fe6402");
        assert_eq!(b.guest_mac().to_string(), "02:e5:a9:fe:64:02");
        assert_eq!(b.host_mac().to_string(), "02:e5:a9:fe:64:01");
        assert_eq!(r.block(255).unwrap().guest().to_string(), "169.254.103.254");
        assert_eq!(r.block(256), None);
        assert_eq!(r.blocks().count(), 256);
        assert_eq!(r.blocks().last(), r.block(255));
        for addr in [b.network(), b.gateway(), b.guest(), b.broadcast()] {
            assert_eq!(Block::from_guest(addr), b);
        }
    }

    #[test]
    fn each_kind_of_mistake_has_its_error() {
        let err = |s: &str| s.parse::<Range>().unwrap_err();
        assert!(matches!(err("fd00::/8"), RangeError::NotIpv4(_)));
        assert!(matches!(err("10.0.0.0"), RangeError::NotIpv4(_)));
        assert!(matches!(err("10.0.0.0/33"), RangeError::NotIpv4(_)));
        let bits = err("169.254.101.0/22");
        assert!(matches!(bits, RangeError::HostBits { .. }));
        assert!(bits.to_string().contains("169.254.100.0/22"), "{bits}");
        assert!(matches!(err("10.0.0.0/31"), RangeError::TooSmall(_)));
        assert!(matches!(err("8.8.8.0/24"), RangeError::NotPrivate(_)));
        assert!(matches!(err("0.0.0.0/0"), RangeError::NotPrivate(_)));
        assert!(matches!(err("192.0.0.0/8"), RangeError::NotPrivate(_)));
        assert!(matches!(err("169.254.168.0/22"), RangeError::Metadata { .. }));
        assert!(matches!(err("169.254.169.252/30"), RangeError::Metadata { .. }));
        assert!(matches!(err("100.100.0.0/16"), RangeError::Metadata { .. }));
        assert!("169.254.0.0/24".parse::<Range>().is_ok());
        assert!("169.254.255.0/24".parse::<Range>().is_ok());
    }

    #[test]
    fn next_free_steps_over_metadata_and_what_is_taken() {
        let r = range("169.254.164.0/22");
        // 168.0/22 holds both metadata networks.
        assert_eq!(r.next_free(&nets(&["169.254.164.0/22"])), Some(range("169.254.172.0/22")));
        let end = range("169.254.252.0/22");
        assert_eq!(
            end.next_free(&nets(&["169.254.252.0/22"])),
            Some(range("169.254.0.0/22")),
            "wraps round within its pool"
        );
        assert_eq!(r.next_free(&nets(&["169.254.0.0/16"])), Some(range("10.0.0.0/22")));
        let home = range("192.168.0.0/24");
        assert_eq!(home.next_free(&nets(&["192.168.1.5/32"])), Some(range("192.168.2.0/24")));
        assert_eq!(r.next_free(&nets(&["0.0.0.0/0"])), None);
    }

    proptest::proptest! {
        #[test]
        fn ids_are_unique_and_fit_their_numbers(
            a in 0usize..5, b in 0usize..5, x in 0u32..=u32::MAX, y in 0u32..=u32::MAX,
        ) {
            let place = |pool: Ipv4Net, n: u32| {
                let host = u32::from(pool.hostmask());
                Block::from_guest(Ipv4Addr::from(u32::from(pool.network()) | (n & host)))
            };
            let (p, q) = (place(POOLS[a], x), place(POOLS[b], y));
            proptest::prop_assert_eq!(p.id() == q.id(), p == q);
            proptest::prop_assert!(p.id() <= ID_MASK);
            // Interface indexes are positive ints and never meet.
            proptest::prop_assert!(p.peer_ifindex() <= i32::MAX as u32);
            proptest::prop_assert!(p.tap_ifindex() < 0x6000_0000 && q.peer_ifindex() >= 0x6000_0000);
            proptest::prop_assert!(p.host_veth().as_str().len() <= 15);
            proptest::prop_assert_eq!(p.guest_mac().0[0] & 3, 2);
            proptest::prop_assert!(p.guest_mac() != p.host_mac());
        }

        #[test]
        fn next_free_is_legal_and_free(
            pool in 0usize..5, n in 0u32..=u32::MAX, len in 18u8..=30,
            taken in proptest::collection::vec((0u32..=u32::MAX, 4u8..=32), 0..20),
        ) {
            let host = u32::from(POOLS[pool].hostmask());
            let at = Ipv4Addr::from(u32::from(POOLS[pool].network()) | (n & host));
            let Ok(r) = Range::try_from(Ipv4Net::new_assert(at, len).trunc()) else {
                return Ok(());
            };
            let taken: Vec<Ipv4Net> = taken
                .into_iter()
                .map(|(a, l)| Ipv4Net::new_assert(Ipv4Addr::from(a), l).trunc())
                .collect();
            if let Some(free) = r.next_free(&taken) {
                proptest::prop_assert_eq!(Range::try_from(free.net()), Ok(free));
                proptest::prop_assert_eq!(free.capacity(), r.capacity());
                proptest::prop_assert!(!taken.iter().any(|t| overlap(*t, free.net())));
            }
        }
    }
}
