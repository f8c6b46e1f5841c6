//! One rule as an operator writes it: `CIDR`, `address`, or `address[/len]:port[-port][/proto]`.
//!
//! Owns: the grammar and its errors. Refuses: host names, IPv6, lists.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use ipnet::{Ipv4Net, Ipv6Net};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de};

use super::ports::PortRange;

/// The protocols a guest may speak at all (row 8 refuses every other).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Proto {
    /// Transmission Control Protocol.
    Tcp,
    /// User Datagram Protocol.
    Udp,
    /// Internet Control Message Protocol; has no ports.
    Icmp,
}

impl Proto {
    /// Protocol number of the IPv4 header (IANA).
    #[must_use]
    pub fn number(self) -> u8 {
        match self {
            Proto::Icmp => 1,
            Proto::Tcp => 6,
            Proto::Udp => 17,
        }
    }
}

impl fmt::Display for Proto {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Proto::Tcp => "tcp",
            Proto::Udp => "udp",
            Proto::Icmp => "icmp",
        })
    }
}

/// Why a text is not a rule. Every message says what would be right.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseRuleError {
    /// Nothing there.
    #[error("empty rule; write an address, a network or address:port")]
    Empty,
    /// IPv6 in any notation.
    #[error("`{0}` is IPv6; isolated microVMs have IPv4 only and every IPv6 packet is dropped already")]
    Ipv6(String),
    /// Not four decimal bytes. Host names end here too.
    #[error("`{0}` is not an IPv4 address; host names are not resolved, write the address")]
    BadAddress(String),
    /// The length after the slash.
    #[error("`/{0}` is not a prefix length; use 0 to 32")]
    BadLength(String),
    /// Bits set beyond the prefix.
    #[error("`{given}` is not the start of a network; did you mean {right}, or the one address {address}?")]
    HostBits {
        /// As written.
        given: Ipv4Net,
        /// The network that holds the address.
        right: Ipv4Net,
        /// The address alone.
        address: Ipv4Addr,
    },
    /// A port that is none.
    #[error("`{0}` is not a port; use 1 to 65535")]
    BadPort(String),
    /// A range that ends before it starts.
    #[error("port range {first}-{last} is the wrong way round; did you mean {last}-{first}?")]
    ReversedPorts {
        /// As written before the dash.
        first: u16,
        /// As written after the dash.
        last: u16,
    },
    /// A protocol that has no ports, or is none.
    #[error("`{0}` is no protocol with ports; use tcp or udp, or leave it away for both")]
    BadProto(String),
}

/// A network, and the ports and protocol it is about. Without ports it is about every packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Rule {
    net: Ipv4Net,
    ports: Option<PortRange>,
    proto: Option<Proto>,
}

impl Rule {
    /// The rule about every packet to everywhere.
    pub(super) const ANY: Rule =
        Rule { net: Ipv4Net::new_assert(Ipv4Addr::UNSPECIFIED, 0), ports: None, proto: None };

    /// A rule about every packet to `net`; bits beyond the prefix are cleared.
    #[must_use]
    pub fn network(net: Ipv4Net) -> Rule {
        Rule { net: net.trunc(), ports: None, proto: None }
    }

    /// A rule about TCP and UDP to these ports of `net`; bits beyond the prefix are cleared.
    #[must_use]
    pub fn service(net: Ipv4Net, ports: PortRange) -> Rule {
        Rule { net: net.trunc(), ports: Some(ports), proto: None }
    }

    /// The network, host bits clear.
    #[must_use]
    pub fn net(&self) -> Ipv4Net {
        self.net
    }

    /// The ports; `None` means every packet, ICMP too.
    #[must_use]
    pub fn ports(&self) -> Option<PortRange> {
        self.ports
    }

    /// [`Proto::Tcp`] or [`Proto::Udp`] where the rule names one; `None` means both.
    /// Always `None` for a rule without ports.
    #[must_use]
    pub fn proto(&self) -> Option<Proto> {
        self.proto
    }

    /// Whether the rule is about such a packet. `port` is `None` for ICMP.
    #[must_use]
    pub fn matches(&self, addr: Ipv4Addr, proto: Proto, port: Option<u16>) -> bool {
        self.net.contains(&addr)
            && match (self.ports, port) {
                (None, _) => true,
                (Some(_), None) => false,
                (Some(ports), Some(port)) => {
                    proto != Proto::Icmp && ports.contains(port) && self.proto.is_none_or(|p| p == proto)
                }
            }
    }
}

impl FromStr for Rule {
    type Err = ParseRuleError;

    fn from_str(s: &str) -> Result<Self, ParseRuleError> {
        if s.is_empty() {
            return Err(ParseRuleError::Empty);
        }
        let ipv6 = s.parse::<Ipv6Addr>().is_ok() || s.parse::<Ipv6Net>().is_ok();
        if ipv6 || s.starts_with('[') || s.matches(':').count() > 1 {
            return Err(ParseRuleError::Ipv6(s.to_owned()));
        }
        let Some((net, service)) = s.split_once(':') else {
            return Ok(Rule { net: parse_net(s)?, ports: None, proto: None });
        };
        let (ports, proto) = match service.split_once('/') {
            Some((ports, proto)) => (ports, Some(parse_proto(proto)?)),
            None => (service, None),
        };
        Ok(Rule { net: parse_net(net)?, ports: Some(ports.parse()?), proto })
    }
}

fn parse_net(s: &str) -> Result<Ipv4Net, ParseRuleError> {
    let (address, len) = match s.split_once('/') {
        Some((address, len)) => {
            let bad = || ParseRuleError::BadLength(len.to_owned());
            if !len.bytes().all(|b| b.is_ascii_digit()) {
                return Err(bad());
            }
            (address, len.parse().ok().filter(|l| *l <= 32).ok_or_else(bad)?)
        }
        None => (s, 32),
    };
    let address: Ipv4Addr = address.parse().map_err(|_| ParseRuleError::BadAddress(address.to_owned()))?;
    let given = Ipv4Net::new_assert(address, len);
    let right = given.trunc();
    if given == right { Ok(given) } else { Err(ParseRuleError::HostBits { given, right, address }) }
}

fn parse_proto(s: &str) -> Result<Proto, ParseRuleError> {
    match s {
        "tcp" => Ok(Proto::Tcp),
        "udp" => Ok(Proto::Udp),
        _ => Err(ParseRuleError::BadProto(s.to_owned())),
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.net.prefix_len() == 32 {
            self.net.addr().fmt(f)?;
        } else {
            self.net.fmt(f)?;
        }
        if let Some(ports) = self.ports {
            write!(f, ":{ports}")?;
        }
        if let Some(proto) = self.proto {
            write!(f, "/{proto}")?;
        }
        Ok(())
    }
}

impl Serialize for Rule {
    fn serialize<S: Serializer>(&self, s: S) -> Result<S::Ok, S::Error> {
        s.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Rule {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        String::deserialize(d)?.parse().map_err(de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn err(s: &str) -> ParseRuleError {
        s.parse::<Rule>().unwrap_err()
    }

    #[test]
    fn every_form_of_the_grammar() {
        for (text, shown) in [
            ("192.168.1.0/24", "192.168.1.0/24"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("192.168.1.10", "192.168.1.10"),
            ("192.168.1.10/32", "192.168.1.10"),
            ("255.255.255.255", "255.255.255.255"),
            ("192.168.1.10:5432", "192.168.1.10:5432"),
            ("192.168.1.0/24:80-90", "192.168.1.0/24:80-90"),
            ("192.168.1.0/24:80-80", "192.168.1.0/24:80"),
            ("192.168.1.10:53/udp", "192.168.1.10:53/udp"),
            ("10.0.0.0/8:1-65535/tcp", "10.0.0.0/8:1-65535/tcp"),
        ] {
            assert_eq!(text.parse::<Rule>().unwrap().to_string(), shown);
        }
    }

    #[test]
    fn each_kind_of_mistake_has_its_error() {
        use ParseRuleError as E;
        assert_eq!(err(""), E::Empty);
        for v6 in ["fe80::/10", "::ffff:10.0.0.1", "[::1]:80", "2001:db8::1"] {
            assert!(matches!(err(v6), E::Ipv6(_)), "{v6}");
        }
        for bad in ["example.com", "10.0.0", "010.0.0.1", "10.0.0.256", " 10.0.0.1", "*", ":80"] {
            assert!(matches!(err(bad), E::BadAddress(_)), "{bad}");
        }
        for bad in ["10.0.0.0/33", "10.0.0.0/", "10.0.0.0/+8", "10.0.0.0/255.0.0.0"] {
            assert!(matches!(err(bad), E::BadLength(_)), "{bad}");
        }
        let bits = err("192.168.1.10/24:80");
        assert!(matches!(bits, E::HostBits { .. }));
        let text = bits.to_string();
        assert!(text.contains("192.168.1.0/24") && text.contains("address 192.168.1.10"), "{text}");
        for bad in ["1.1.1.1:0", "1.1.1.1:", "1.1.1.1:65536", "1.1.1.1:+80", "1.1.1.1:80-", "1.1.1.1:a"] {
            assert!(matches!(err(bad), E::BadPort(_)), "{bad}");
        }
        assert_eq!(err("1.1.1.1:90-80"), E::ReversedPorts { first: 90, last: 80 });
        for bad in ["1.1.1.1:80/icmp", "1.1.1.1:80/", "1.1.1.1:80/sctp"] {
            assert!(matches!(err(bad), E::BadProto(_)), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn display_parses_back(
            addr in any::<u32>(), len in 0u8..=32,
            ports in proptest::option::of((1u16.., 1u16..)),
            proto in 0usize..3,
        ) {
            let net = Ipv4Net::new_assert(Ipv4Addr::from(addr), len).trunc();
            let ports = ports.map(|(a, b)| PortRange::new(a.min(b), a.max(b)).unwrap());
            let proto = [None, Some(Proto::Tcp), Some(Proto::Udp)][proto].filter(|_| ports.is_some());
            let rule = Rule { net, ports, proto };
            prop_assert_eq!(rule.to_string().parse::<Rule>(), Ok(rule));
        }

        #[test]
        fn no_text_panics(s in "\\PC{0,40}") {
            let _ = s.parse::<Rule>();
        }
    }
}
