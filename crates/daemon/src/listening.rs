//! Where the API is served on TCP, and with which certificate.
//!
//! Owns: turning the configuration into sockets that listen, and the rule that nothing but TLS and tokens leaves the
//! host: what has neither is on a loopback address, and only because a flag asked for it. Refuses:
//! serving ([`crate::http`]).

use crate::boot::{BootError, blocking};
use crate::chain::Chain;
use crate::config::Config;
use crate::http::{BindError, Bound, Certificates, Entrances, Files, TlsError};
use enisle_net::survey;
use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::path::Path;
use std::sync::Arc;

/// Beside the daemon's state.
const DIRECTORY: &str = "tls";

/// The API cannot be served on TCP.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ListeningError {
    /// It would be open to other machines.
    #[error(
        "--insecure-loopback {0}: this is no loopback address; use 127.0.0.1, or `listen` in the file for TLS and tokens"
    )]
    NotLoopback(SocketAddr),
    /// The address is not there, or taken.
    #[error(transparent)]
    Bind(#[from] BindError),
    /// There is no certificate.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

/// Listens where the file and the flag say; nobody is answered yet.
pub(crate) async fn open(
    config: &Config,
    loopback: Option<SocketAddr>,
) -> Result<(Bound, Arc<Entrances>), BootError> {
    if let Some(address) = loopback.filter(|address| !address.ip().is_loopback()) {
        return Err(ListeningError::NotLoopback(address).into());
    }
    let bound = Bound::bind(&config.listen, loopback).map_err(ListeningError::from)?;
    let certificates =
        if config.listen.is_empty() { None } else { Some(Arc::new(certificates(config).await?)) };
    let entrances = Arc::new(bound.entrances(certificates));
    for address in entrances.listens() {
        if let Some(pin) = entrances.pin().filter(|_| address.starts_with("https")) {
            tracing::info!(
                address,
                pin,
                "the API listens; clients need a token and pin the key, or know who signed it"
            );
        } else {
            tracing::warn!(
                address,
                "the API listens without TLS and without tokens: every process of this host may do everything"
            );
        }
    }
    Ok((bound, entrances))
}

async fn certificates(config: &Config) -> Result<Certificates, BootError> {
    if let Some((certificate, key)) = config.tls.clone() {
        let given = move || Certificates::given(Files { certificate, key });
        return Ok(blocking("reading the certificate", given).await?.map_err(ListeningError::from)?);
    }
    let (dir, listen) = (config.state_dir.join(DIRECTORY), config.listen.clone());
    let own = move || Certificates::own(&dir, &names(&listen));
    Ok(blocking("making a certificate", own).await?.map_err(ListeningError::from)?)
}

/// What a client may call this host, if it listens there. Blocks for milliseconds.
fn names(listen: &[SocketAddr]) -> Vec<String> {
    let mut addresses: BTreeSet<IpAddr> =
        listen.iter().map(SocketAddr::ip).filter(|ip| !ip.is_unspecified()).collect();
    addresses.insert(IpAddr::from([127, 0, 0, 1]));
    if listen.iter().any(|address| address.ip().is_unspecified()) {
        match survey::addresses() {
            Ok(own) => addresses.extend(own.into_iter().map(IpAddr::from)),
            Err(error) => tracing::warn!("the certificate lacks this host's addresses: {}", Chain(&error)),
        }
    }
    let mut names: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    names.push("localhost".to_owned());
    names.extend(host_name());
    names
}

/// The kernel's name of this host, where it can be a name in the DNS.
fn host_name() -> Option<String> {
    let name =
        std::fs::read_to_string(Path::new("/proc/sys/kernel/hostname")).ok()?.trim().to_ascii_lowercase();
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.';
    (name != "localhost" && !name.is_empty() && name.bytes().all(fits)).then_some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_certificate_is_for_what_is_listened_on() {
        let names_of = |address: &str| names(&[address.parse().unwrap()]);
        let one = names_of("192.0.2.7:7443");
        assert_eq!(one[..3], ["127.0.0.1", "192.0.2.7", "localhost"]);
        assert!(!names_of("0.0.0.0:7443").contains(&"0.0.0.0".to_owned()));
    }
}
