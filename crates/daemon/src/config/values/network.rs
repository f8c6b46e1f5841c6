//! Ranges, policy entries and addresses. Their grammar is the network engine's; here it gets a
//! place in the schema.

use std::net::{IpAddr, Ipv4Addr};

use enisle_net::plan::Range;
use enisle_net::policy::Rule;
use serde_json::{Value as Json, json};

use crate::config::read::{Mistake, Text, clip};

/// A dotted quad, for JSON schemas.
const QUAD: &str = "[0-9]{1,3}(\\.[0-9]{1,3}){3}";

/// Where a group's microVMs get their /30 blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct RangeText(pub(in crate::config) Range);

impl Text for RangeText {
    const WHAT: &'static str = "an IPv4 network such as \"169.254.100.0/22\"";
    const MAX_BYTES: usize = 64;

    fn parse(text: &str) -> Result<RangeText, Mistake> {
        text.parse().map(RangeText).map_err(|error| Mistake::from_error(&error))
    }

    fn words() -> Json {
        json!({ "pattern": format!("^{QUAD}/[0-9]{{1,2}}$"), "examples": ["169.254.100.0/22"] })
    }
}

/// An entry of `drop` or `allow`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct RuleText(pub(in crate::config) Rule);

impl Text for RuleText {
    const WHAT: &'static str = "a network, address or service such as \"192.168.1.10:5432/tcp\"";
    const MAX_BYTES: usize = 64;

    fn parse(text: &str) -> Result<RuleText, Mistake> {
        text.parse().map(RuleText).map_err(|error| Mistake::from_error(&error))
    }

    fn words() -> Json {
        json!({
            "pattern": format!("^{QUAD}(/[0-9]{{1,2}})?(:[0-9]+(-[0-9]+)?(/(tcp|udp))?)?$"),
            "examples": ["192.168.1.0/24", "192.168.1.10:5432", "10.0.0.0/8:8000-8080/tcp"],
        })
    }
}

/// An address to listen on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct HostAddress(pub(in crate::config) IpAddr);

impl Text for HostAddress {
    const WHAT: &'static str = "an address of this host such as \"192.168.1.5\" or \"0.0.0.0\"";
    const MAX_BYTES: usize = 64;

    fn parse(text: &str) -> Result<HostAddress, Mistake> {
        let Ok(address) = text.parse::<IpAddr>() else {
            return Err(Mistake::new(
                format!("`{}` is not an address", clip(text)),
                "write 0.0.0.0 for all addresses of this host, or one of them; names do not work here, and the port is a key of its own",
            ));
        };
        if address.is_multicast() || address == IpAddr::V4(Ipv4Addr::BROADCAST) {
            return Err(Mistake::new(
                format!("{address} is not the address of one machine"),
                "write an address of this host",
            ));
        }
        Ok(HostAddress(address))
    }

    fn words() -> Json {
        json!({ "pattern": "^[0-9a-fA-F.:]+$", "examples": ["0.0.0.0"] })
    }
}

/// The address of a name server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Address(pub(in crate::config) Ipv4Addr);

impl Text for Address {
    const WHAT: &'static str = "an IPv4 address such as \"9.9.9.9\"";
    const MAX_BYTES: usize = 64;

    fn parse(text: &str) -> Result<Address, Mistake> {
        let Ok(address) = text.parse::<Ipv4Addr>() else {
            return Err(Mistake::new(
                format!("`{}` is not an IPv4 address", clip(text)),
                "write four numbers, such as 9.9.9.9; names and IPv6 do not work here",
            ));
        };
        if address.is_loopback() {
            return Err(Mistake::new(
                format!("{address} is the microVM itself, as the microVM sees it"),
                "name a server that can be reached from elsewhere",
            ));
        }
        if address.is_unspecified() || address.is_multicast() || address.is_broadcast() {
            return Err(Mistake::new(
                format!("{address} is not the address of one machine"),
                "name a server, such as 9.9.9.9",
            ));
        }
        Ok(Address(address))
    }

    fn words() -> Json {
        json!({ "pattern": format!("^{QUAD}$"), "examples": ["9.9.9.9"] })
    }
}
