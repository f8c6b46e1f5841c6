//! Where the daemon listens. Owns the text form `unix:PATH`; refuses to touch the file system.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

/// Where the daemon listens unless configured otherwise.
pub const DEFAULT_SOCKET: &str = "/run/enisle/api.sock";

/// `sun_path` of unix(7) without its closing zero byte.
const MAX_SOCKET_PATH: usize = 107;

/// The address of a daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Endpoint {
    path: PathBuf,
}

/// Why a text is no endpoint.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseEndpointError {
    /// No `unix:` and no `/` at the start.
    #[error("`{0}` is no endpoint; it is written unix:/path/to/api.sock")]
    Scheme(String),
    /// The path is empty or holds a zero byte.
    #[error("`{0}` names no socket; it is written unix:/path/to/api.sock")]
    Path(String),
    /// The kernel takes at most 107 bytes (unix(7)).
    #[error("the socket path `{0}` is longer than {MAX_SOCKET_PATH} bytes")]
    TooLong(String),
}

impl Endpoint {
    /// The daemon at this socket.
    #[must_use]
    pub fn unix(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Path of the socket.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
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

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unix:{}", self.path.display())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_round_trip_and_bad_ones_say_how_they_are_written() {
        let endpoint: Endpoint = "unix:/run/a.sock".parse().unwrap();
        assert_eq!(endpoint.path(), Path::new("/run/a.sock"));
        assert_eq!(endpoint.to_string().parse(), Ok(endpoint));
        assert_eq!("/run/b".parse::<Endpoint>().unwrap().path(), Path::new("/run/b"));
        for bad in ["", "http://x", "unix:", "unix:/a\0b"] {
            let error = bad.parse::<Endpoint>().unwrap_err().to_string();
            assert!(error.contains("unix:/path"), "{bad}: {error}");
        }
        let long = format!("unix:/{}", "x".repeat(107));
        assert!(matches!(long.parse::<Endpoint>(), Err(ParseEndpointError::TooLong(_))));
    }
}
