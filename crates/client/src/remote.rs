//! A daemon with what it takes to reach it, and the bytes to it.
//!
//! Owns: connecting, TLS and the token's header. Refuses: HTTP ([`crate::connection`]).

use crate::endpoint::At;
use crate::trust::{Trust, handshake_failed};
use crate::{Endpoint, Error};
use http::HeaderValue;
use rustix::net::sockopt;
use rustls::pki_types::ServerName;
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::Path;
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// A TCP connection is made within this time, and so is the handshake over it.
const CONNECT_LIMIT: Duration = Duration::from_secs(15);

/// After so much silence a daemon is asked whether it is still there,
const KEEP_ALIVE: Duration = Duration::from_secs(60);
/// without an answer again after this,
const KEEP_ALIVE_AGAIN: Duration = Duration::from_secs(15);
/// so often; then the connection is broken.
const KEEP_ALIVE_TRIES: u32 = 4;

/// A token for `Authorization: Bearer`. Does not print itself.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(HeaderValue);

/// A text cannot be a token.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("that is no token; one begins with {prefix} and is one line", prefix = enisle_api::TOKEN_PREFIX)]
pub struct NoToken;

impl Secret {
    /// The token in a text, such as a file holds it: white space around it does not matter.
    ///
    /// # Errors
    /// For what does not look like a token.
    pub fn new(text: &str) -> Result<Self, NoToken> {
        let text = text.trim();
        let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if !text.starts_with(enisle_api::TOKEN_PREFIX) || !text.bytes().all(fits) {
            return Err(NoToken);
        }
        let mut value = HeaderValue::from_str(&format!("Bearer {text}")).map_err(|_| NoToken)?;
        value.set_sensitive(true);
        Ok(Self(value))
    }

    /// The token itself, for who keeps it in a file.
    #[must_use]
    pub fn expose(&self) -> &str {
        self.0.to_str().unwrap_or_default().trim_start_matches("Bearer ")
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

/// A daemon, whom to believe that it is the one, and what to show it.
pub(crate) struct Remote {
    pub(crate) endpoint: Endpoint,
    trust: Trust,
    secret: Option<Secret>,
    /// Made with the first connection: a file of authorities takes milliseconds to read.
    tls: OnceLock<TlsConnector>,
}

impl fmt::Debug for Remote {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { endpoint, trust, secret, .. } = self;
        f.debug_struct("Remote")
            .field("endpoint", endpoint)
            .field("trust", trust)
            .field("secret", secret)
            .finish()
    }
}

/// A connection's bytes.
pub(crate) trait Bytes: AsyncRead + AsyncWrite + Unpin + Send {}
impl<T: AsyncRead + AsyncWrite + Unpin + Send> Bytes for T {}

impl Remote {
    pub(crate) fn new(endpoint: Endpoint, trust: Trust, secret: Option<Secret>) -> Self {
        Self { endpoint, trust, secret, tls: OnceLock::new() }
    }

    /// What `Host` says.
    pub(crate) fn host(&self) -> String {
        match self.endpoint.at() {
            At::Unix(_) => "enisle".to_owned(),
            At::Tcp { host, port, .. } if host.contains(':') => format!("[{host}]:{port}"),
            At::Tcp { host, port, .. } => format!("{host}:{port}"),
        }
    }

    /// What `Authorization` says: nothing where the connection is not secret.
    pub(crate) fn authorization(&self) -> Option<HeaderValue> {
        self.secret.as_ref().filter(|_| self.endpoint.is_tls()).map(|secret| secret.0.clone())
    }

    pub(crate) async fn connect(&self) -> Result<Box<dyn Bytes>, Error> {
        match self.endpoint.at() {
            At::Unix(path) => Ok(Box::new(unix(path).await?)),
            At::Tcp { host, port, tls: false } => Ok(Box::new(self.tcp(host, *port).await?)),
            At::Tcp { host, port, tls: true } => {
                let stream = self.tcp(host, *port).await?;
                let at = self.endpoint.to_string();
                let name = ServerName::try_from(host.clone()).map_err(|e| Error::Tls {
                    at: at.clone(),
                    why: format!("`{host}` cannot be in a certificate: {e}"),
                    hint: None,
                })?;
                let handshake = self.connector(&at)?.connect(name, stream);
                match timeout(CONNECT_LIMIT, handshake).await {
                    Ok(Ok(stream)) => Ok(Box::new(stream)),
                    Ok(Err(error)) => Err(handshake_failed(&at, &error)),
                    Err(_) => Err(Error::Timeout {
                        request: format!("the handshake with {at}"),
                        limit: CONNECT_LIMIT,
                    }),
                }
            }
        }
    }

    fn connector(&self, at: &str) -> Result<TlsConnector, Error> {
        if let Some(made) = self.tls.get() {
            return Ok(made.clone());
        }
        let made = TlsConnector::from(Arc::new(self.trust.config(at)?));
        Ok(self.tls.get_or_init(|| made).clone())
    }

    async fn tcp(&self, host: &str, port: u16) -> Result<TcpStream, Error> {
        let unreachable = |source: io::Error| Error::Unreachable { at: self.endpoint.to_string(), source };
        let stream = match timeout(CONNECT_LIMIT, TcpStream::connect((host, port))).await {
            Ok(connected) => connected.map_err(unreachable)?,
            Err(_) => return Err(unreachable(ErrorKind::TimedOut.into())),
        };
        // Keystrokes do not wait for more of them.
        stream.set_nodelay(true).map_err(unreachable)?;
        keep_alive(&stream).map_err(unreachable)?;
        Ok(stream)
    }
}

/// A daemon whose machine lost its power says nothing: who waits for an event or an exit would do so for ever.
fn keep_alive(stream: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, KEEP_ALIVE)?;
    sockopt::set_tcp_keepintvl(stream, KEEP_ALIVE_AGAIN)?;
    sockopt::set_tcp_keepcnt(stream, KEEP_ALIVE_TRIES)?;
    Ok(())
}

async fn unix(path: &Path) -> Result<UnixStream, Error> {
    UnixStream::connect(path).await.map_err(|source| match source.kind() {
        ErrorKind::NotFound | ErrorKind::ConnectionRefused => Error::NotRunning { path: path.into(), source },
        ErrorKind::PermissionDenied => Error::Denied { path: path.into(), source },
        _ => Error::Connect { path: path.into(), source },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_silent_daemon_is_asked_after() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let remote = Remote::new(format!("http://127.0.0.1:{port}").parse().unwrap(), Trust::System, None);
        let _stream = remote.connect().await.unwrap();
        let _accepted = listener.accept().await.unwrap();
        // proc(5): the client's end is the one whose remote port this is; timer 02 is the keep-alive's.
        let table = std::fs::read_to_string("/proc/self/net/tcp").unwrap();
        let asks = table.lines().skip(1).any(|line| {
            let fields: Vec<&str> = line.split_whitespace().collect();
            fields[2].ends_with(&format!(":{port:04X}")) && fields[5].starts_with("02:")
        });
        assert!(asks, "{table}");
    }

    #[test]
    fn a_token_is_one_line_is_not_printed_and_goes_only_under_tls() {
        let secret = Secret::new(" enisle_0123abcd_ff\n").unwrap();
        assert_eq!(secret.0, "Bearer enisle_0123abcd_ff");
        let remote = |text: &str| Remote::new(text.parse().unwrap(), Trust::System, Some(secret.clone()));
        assert!(!format!("{:?}", remote("https://a:1")).contains("_ff"));
        assert!(remote("https://a:1").authorization().is_some());
        assert!(remote("http://127.0.0.1:1").authorization().is_none());
        assert!(remote("unix:/a").authorization().is_none());
        for bad in ["", "enisle", "enisle_a b", "enisle_a\nb", "bearer"] {
            assert_eq!(Secret::new(bad), Err(NoToken), "{bad:?}");
        }
    }
}
