//! What `vm port-forward` is asked for. Owns the grammar of SPEC; refuses to open anything.
//!
//! ```text
//! SPEC   = PORT | LISTEN ":" TARGET
//! LISTEN = PORT | ADDRESS ":" PORT | PATH          PATH starts with / or ./
//! TARGET = PORT | HOST ":" PORT | PATH             PATH starts with /
//! ```
//! IPv6 addresses stand in brackets. A target without a host is the guest's own loopback.

use serde::{Serialize, Serializer};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::str::FromStr;

/// One forward.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct ForwardSpec {
    pub(crate) listen: Listen,
    pub(crate) target: Target,
}

/// Where it listens on this machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listen {
    /// Both loopback addresses; port 0 is any free one.
    Loopback(u16),
    /// One address; port 0 is any free one.
    Tcp(IpAddr, u16),
    /// A unix socket.
    Unix(PathBuf),
}

/// What it connects to as the guest sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Target {
    /// TCP.
    Tcp {
        /// Name or address, without brackets.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
    /// A unix socket.
    Unix(String),
}

/// Why a text is no SPEC.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    #[error("`{0}` is no port; ports are 1 to 65535, and 0 on the local side for any free one")]
    Port(String),
    #[error("port 0 means any free port and stands on the local side: 0:{0}")]
    AnyTarget(String),
    #[error("`{0}` is no local address; give an IP address, an IPv6 one in brackets, or localhost")]
    Address(String),
    #[error("`{0}` is no host name or address; IPv6 addresses stand in brackets")]
    Host(String),
    #[error("`{0}` is no absolute path of a socket in the guest")]
    GuestPath(String),
    #[error("`{0}` is not a path of at most 107 bytes")]
    LocalPath(String),
    #[error("where to connect in the guest is missing: write {0}:PORT, {0}:HOST:PORT or {0}:/guest.sock")]
    NoTarget(String),
    #[error("`{0}` has a [ without its ] or text right after the ]")]
    Bracket(String),
}

/// `sun_path` of unix(7) without its closing zero byte.
const MAX_SOCKET_PATH: usize = 107;
/// RFC 1035 2.3.4.
const MAX_HOST: usize = 253;

impl FromStr for ForwardSpec {
    type Err = SpecError;

    fn from_str(text: &str) -> Result<Self, SpecError> {
        if text.starts_with('/') || text.starts_with("./") {
            let (path, target) = text.split_once(':').ok_or_else(|| SpecError::NoTarget(text.to_owned()))?;
            return Ok(Self { listen: Listen::Unix(local_path(path)?), target: parse_target(target)? });
        }
        let (first, rest) = field(text)?;
        let Some(rest) = rest else {
            let port = parse_port(first)?;
            return Ok(Self { listen: Listen::Loopback(port), target: loopback(port, text)? });
        };
        if is_number(first) {
            return Ok(Self { listen: Listen::Loopback(parse_port(first)?), target: parse_target(rest)? });
        }
        let listen = |port| match first {
            "localhost" => Ok(Listen::Loopback(port)),
            address => Ok(Listen::Tcp(parse_address(address)?, port)),
        };
        let (port, target) = field(rest)?;
        let listen = listen(parse_port(port)?)?;
        let target = target.ok_or_else(|| SpecError::NoTarget(text.to_owned()))?;
        Ok(Self { listen, target: parse_target(target)? })
    }
}

/// Splits at the first `:` outside brackets. The first part keeps its brackets.
fn field(text: &str) -> Result<(&str, Option<&str>), SpecError> {
    if !text.starts_with('[') {
        return Ok(match text.split_once(':') {
            Some((first, rest)) => (first, Some(rest)),
            None => (text, None),
        });
    }
    let bad = || SpecError::Bracket(text.to_owned());
    let end = text.find(']').ok_or_else(bad)? + 1;
    let (first, rest) = text.split_at(end);
    match rest.strip_prefix(':') {
        Some(rest) => Ok((first, Some(rest))),
        None if rest.is_empty() => Ok((first, None)),
        None => Err(bad()),
    }
}

fn is_number(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

fn parse_port(text: &str) -> Result<u16, SpecError> {
    let port = || SpecError::Port(text.to_owned());
    if !is_number(text) { Err(port()) } else { text.parse().map_err(|_| port()) }
}

fn parse_target_port(text: &str) -> Result<u16, SpecError> {
    match parse_port(text)? {
        0 => Err(SpecError::Port(text.to_owned())),
        port => Ok(port),
    }
}

fn loopback(port: u16, text: &str) -> Result<Target, SpecError> {
    match port {
        0 => Err(SpecError::AnyTarget(if text == "0" { "PORT".into() } else { text.to_owned() })),
        port => Ok(Target::Tcp { host: Ipv4Addr::LOCALHOST.to_string(), port }),
    }
}

fn parse_target(text: &str) -> Result<Target, SpecError> {
    if text.starts_with('/') {
        let good = text.len() > 1 && text.len() <= MAX_SOCKET_PATH && !text.contains('\0');
        return if good {
            Ok(Target::Unix(text.to_owned()))
        } else {
            Err(SpecError::GuestPath(text.to_owned()))
        };
    }
    if text.starts_with('.') {
        return Err(SpecError::GuestPath(text.to_owned()));
    }
    match field(text)? {
        (port, None) => loopback(parse_target_port(port)?, text),
        (host, Some(port)) => Ok(Target::Tcp { host: parse_host(host)?, port: parse_target_port(port)? }),
    }
}

fn parse_address(text: &str) -> Result<IpAddr, SpecError> {
    let bad = || SpecError::Address(text.to_owned());
    match bracketed(text) {
        Some(inner) => inner.parse::<Ipv6Addr>().map(IpAddr::V6).map_err(|_| bad()),
        None => text.parse::<Ipv4Addr>().map(IpAddr::V4).map_err(|_| bad()),
    }
}

/// A name is left to the guest to resolve; only what cannot be one is refused here.
fn parse_host(text: &str) -> Result<String, SpecError> {
    let bad = || SpecError::Host(text.to_owned());
    if let Some(inner) = bracketed(text) {
        return inner.parse::<Ipv6Addr>().map(|address| address.to_string()).map_err(|_| bad());
    }
    let name = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte));
    // `1:2:3` is a slip, although inet_aton(3) takes `2` for 0.0.0.2.
    if text.is_empty() || text.len() > MAX_HOST || !name || is_number(text) {
        Err(bad())
    } else {
        Ok(text.to_owned())
    }
}

fn bracketed(text: &str) -> Option<&str> {
    text.strip_prefix('[')?.strip_suffix(']')
}

fn local_path(text: &str) -> Result<PathBuf, SpecError> {
    if text.len() > MAX_SOCKET_PATH || text.contains('\0') || text.ends_with('/') {
        return Err(SpecError::LocalPath(text.to_owned()));
    }
    Ok(PathBuf::from(text))
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { host, port } if host.contains(':') => write!(f, "[{host}]:{port}"),
            Self::Tcp { host, port } => write!(f, "{host}:{port}"),
            Self::Unix(path) => f.write_str(path),
        }
    }
}

impl Serialize for Target {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl fmt::Display for ForwardSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.listen {
            Listen::Loopback(port) => write!(f, "{port}:{}", self.target),
            Listen::Tcp(IpAddr::V4(address), port) => write!(f, "{address}:{port}:{}", self.target),
            Listen::Tcp(IpAddr::V6(address), port) => write!(f, "[{address}]:{port}:{}", self.target),
            Listen::Unix(path) => write!(f, "{}:{}", path.display(), self.target),
        }
    }
}

#[cfg(test)]
mod tests;
