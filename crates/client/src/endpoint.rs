//! Where the daemon listens. Owns the text forms `unix:PATH`, `https://HOST:PORT` and, on loopback,
//! `http://HOST:PORT`; refuses to touch the file system or the network.

use std::fmt;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the daemon listens unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/enisle/api.sock";
/// The TCP port where the address names none, as in the daemon's file.
pub const DEFAULT_PORT: u16 = 7443;

/// `sun_path` of unix(7) without its closing zero byte.
const MAX_SOCKET_PATH: usize = 107;
/// RFC 1035 §2.3.4.
const MAX_HOST: usize = 253;

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    at: At,
}

/// The kinds of address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum At {
    Unix(PathBuf),
    Tcp {
        /// A name or an address, IPv6 without brackets.
        host: String,
        port: u16,
        /// False only on loopback (`enisle up --insecure-loopback`).
        tls: bool,
    },
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointError {
    /// No `unix:`, `https://` or `/` at the start.
    #[error("`{0}` is no endpoint; it is written unix:/path/to/api.sock or https://host:port")]
    Scheme(String),
    /// The path is empty or holds a zero byte.
    #[error("`{0}` names no socket; it is written unix:/path/to/api.sock")]
    Path(String),
    /// The kernel takes at most 107 bytes (unix(7)).
    #[error("the socket path `{0}` is longer than {MAX_SOCKET_PATH} bytes")]
    TooLong(String),
    /// Not a host with a port, or with more than that.
    #[error("`{0}` is no address of a daemon; it is written https://host:port, without a path")]
    Host(String),
    /// Without TLS everybody on the way could read the token.
    #[error("`{0}`: without TLS only this machine itself is spoken to; write https://host:port")]
    Insecure(String),
}

impl Endpoint {
    /// The daemon at this socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { at: At::Unix(path.into()) }
    }

    /// The daemon at this host name or address and port, under TLS.
    #[must_use]
    pub fn https(host: impl Into<String>, port: u16) -> Self {
        Self { at: At::Tcp { host: host.into(), port, tls: true } }
    }

    /// Path of the socket, where it is one.
    #[must_use]
    pub fn path(&self) -> Option<&Path> {
        match &self.at {
            At::Unix(path) => Some(path),
            At::Tcp { .. } => None,
        }
    }

    /// Whether it takes a token: TLS is spoken there.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        matches!(self.at, At::Tcp { tls: true, .. })
    }

    pub(crate) fn at(&self) -> &At {
        &self.at
    }
}

impl Default for Endpoint {
    fn default() -> Self {
        Self::unix(DEFAULT_SOCKET)
    }
}

impl FromStr for Endpoint {
    type Err = ParseEndpointError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(rest) = text.strip_prefix("https://") {
            return tcp(text, rest, true);
        }
        if let Some(rest) = text.strip_prefix("http://") {
            return tcp(text, rest, false);
        }
        let path = match text.strip_prefix("unix:") {
            Some(path) => path,
            None if text.starts_with('/') => text,
            None => return Err(ParseEndpointError::Scheme(text.to_owned())),
        };
        if path.is_empty() || path.contains('\0') {
            return Err(ParseEndpointError::Path(text.to_owned()));
        }
        if path.len() > MAX_SOCKET_PATH {
            return Err(ParseEndpointError::TooLong(path.to_owned()));
        }
        Ok(Self::unix(path))
    }
}

fn tcp(text: &str, rest: &str, tls: bool) -> Result<Endpoint, ParseEndpointError> {
    let bad = || ParseEndpointError::Host(text.to_owned());
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = match rest.strip_prefix('[') {
        Some(v6) => {
            let (host, after) = v6.split_once(']').ok_or_else(bad)?;
            host.parse::<std::net::Ipv6Addr>().map_err(|_| bad())?;
            (host, if after.is_empty() { None } else { Some(after.strip_prefix(':').ok_or_else(bad)?) })
        }
        None => match rest.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (rest, None),
        },
    };
    let port = port.map_or(Ok(DEFAULT_PORT), str::parse).map_err(|_| bad())?;
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || b"-._:".contains(&byte);
    if port == 0 || !(1..=MAX_HOST).contains(&host.len()) || !host.bytes().all(fits) {
        return Err(bad());
    }
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    if !tls && !local {
        return Err(ParseEndpointError::Insecure(text.to_owned()));
    }
    Ok(Endpoint { at: At::Tcp { host: host.to_owned(), port, tls } })
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.at {
            At::Unix(path) => write!(f, "unix:{}", path.display()),
            At::Tcp { host, port, tls } => {
                let scheme = if *tls { "https" } else { "http" };
                let (open, close) = if host.contains(':') { ("[", "]") } else { ("", "") };
                write!(f, "{scheme}://{open}{host}{close}:{port}")
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_round_trip_and_bad_ones_say_how_they_are_written() {
        let endpoint: Endpoint = "unix:/run/a.sock".parse().unwrap();
        assert_eq!(endpoint.path(), Some(Path::new("/run/a.sock")));
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        assert_eq!("/run/b".parse::<Endpoint>().unwrap().path(), Some(Path::new("/run/b")));
        for bad in ["", "ftp://x", "unix:", "unix:/a\0b"] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains("unix:/path"), "{bad}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(matches!(long.parse::<Endpoint>(), Err(ParseEndpointError::TooLong(_))));
    }

    #[test]
    fn addresses_have_a_port_and_no_path_and_without_tls_are_local() {
        for (text, written) in [
            ("https://box.lan", "https://box.lan:7443"),
            ("https://192.168.1.1:7000/", "https://192.168.1.1:7000"),
            ("https://[2001:db8::1]", "https://[2001:db8::1]:7443"),
            ("http://127.0.0.1:80", "http://127.0.0.1:80"),
            ("http://localhost:8080", "http://localhost:8080"),
        ] {
            assert_eq!(text.parse::<Endpoint>().unwrap().to_string(), written);
        }
        for bad in [
            "https://",
            "https://:1",
            "https://a:0",
            "https://a:x",
            "https://a/v1",
            "https://u@a",
            "https://[::1",
            "https://a:1:2",
        ] {
            assert!(matches!(bad.parse::<Endpoint>(), Err(ParseEndpointError::Host(_))), "{bad}");
        }
        for bad in ["http://box.lan:80", "http://192.168.1.1:80"] {
            assert!(matches!(bad.parse::<Endpoint>(), Err(ParseEndpointError::Insecure(_))), "{bad}");
        }
    }
}
