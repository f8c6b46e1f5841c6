//! Names of interfaces, gateways with their subnets, and flags.

use ipnet::Ipv4Net;
use serde_json::{Value as Json, json};

use crate::config::read::{Mistake, Read, Text, clip};
use crate::config::report::{Problem, Report};
use crate::config::tree::{Node, Value};

/// Longest name of an interface (`IFNAMSIZ` less its NUL).
const MAX_NAME: usize = 15;

/// The name of an interface.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct LinkName(pub(in crate::config) String);

impl Text for LinkName {
    const WHAT: &'static str = "the name of an interface such as \"enisle0\"";
    const MAX_BYTES: usize = MAX_NAME;

    fn parse(text: &str) -> Result<LinkName, Mistake> {
        let known = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
        if !text.bytes().all(known) || matches!(text, "." | "..") {
            return Err(Mistake::new(
                format!("`{}` is not the name of an interface", clip(text)),
                "use 1 to 15 letters, digits, `-`, `_` and `.`",
            ));
        }
        if text.starts_with("en-") {
            return Err(Mistake::new(
                format!("`{}` begins as the interfaces of microVMs do", clip(text)),
                "choose a name that does not begin with `en-`",
            ));
        }
        Ok(LinkName(text.to_owned()))
    }

    fn words() -> Json {
        json!({ "pattern": "^[A-Za-z0-9._-]{1,15}$", "examples": ["enisle0"] })
    }
}

/// The guests' gateway, with the length of its subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct GatewayText(pub(in crate::config) Ipv4Net);

impl Text for GatewayText {
    const WHAT: &'static str = "an address with the length of its subnet, such as \"10.77.0.1/24\"";
    const MAX_BYTES: usize = 64;

    fn parse(text: &str) -> Result<GatewayText, Mistake> {
        let Ok(net) = text.parse::<Ipv4Net>() else {
            return Err(Mistake::new(
                format!("`{}` is not an IPv4 address with a length", clip(text)),
                "write the gateway's address and the length of the subnet, such as 10.77.0.1/24",
            ));
        };
        if !(8..=29).contains(&net.prefix_len()) {
            return Err(Mistake::new(
                format!("/{} is no length for a bridge's subnet", net.prefix_len()),
                "use /8 to /29; a /24 has 32 microVMs, a /16 has 8192",
            ));
        }
        if net.addr() == net.network() || net.addr() == net.broadcast() {
            return Err(Mistake::new(
                format!("{} is not the address of one machine in {}", net.addr(), net.trunc()),
                format!("write the gateway's own address, such as {}/{}", first(net), net.prefix_len()),
            ));
        }
        Ok(GatewayText(net))
    }

    fn words() -> Json {
        json!({ "pattern": "^[0-9]{1,3}(\\.[0-9]{1,3}){3}/[0-9]{1,2}$", "examples": ["10.77.0.1/24"] })
    }
}

fn first(net: Ipv4Net) -> std::net::Ipv4Addr {
    net.hosts().next().unwrap_or(net.addr())
}

/// A key that is there, whether or not its value was right: rules that ask whether it is given do not tell of it again.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::config) struct Written<T>(pub(in crate::config) Option<T>);

impl<T: Read> Read for Written<T> {
    fn read(node: &Node, key: &str, report: &mut Report) -> Option<Self> {
        Some(Written(T::read(node, key, report)))
    }

    fn schema() -> Json {
        T::schema()
    }
}

/// Yes or no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::config) struct Flag(pub(in crate::config) bool);

impl Read for Flag {
    fn read(node: &Node, key: &str, report: &mut Report) -> Option<Self> {
        let found = match &node.value {
            Value::Scalar(scalar) => scalar.flag(),
            _ => None,
        };
        if found.is_none() {
            let message = format!("`{key}` must be true or false, not {}", node.what());
            report.add(Problem::at(node.span, message).help(format!("write {key}: true, without quotes")));
        }
        found.map(Flag)
    }

    fn schema() -> Json {
        json!({ "type": "boolean", "examples": [true] })
    }
}
