//! Which resolvers are asked: those the configuration names, or the host's own.
//!
//! Owns: reading resolv.conf(5) and noticing at a query that it changed.
//! Refuses: to watch or poll anything, and to ask; search domains and options are the guest's business.

use std::fs::{self, File};
use std::io::{self, Read};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// The port of DNS.
const DNS_PORT: u16 = 53;
/// Resolvers used of a list, as many as the C library uses (MAXNS).
const MAX_SERVERS: usize = 3;
/// A resolv.conf is not read further than this, in bytes.
const MAX_FILE: u64 = 64 * 1024;
/// The files are looked at no more often than this.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The file every program of the host reads.
const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where systemd-resolved lists the servers behind its stub (systemd-resolved.service(8)).
const BEHIND_STUB: &str = "/run/systemd/resolve/resolv.conf";
/// The addresses on which systemd-resolved listens.
const STUBS: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(127, 0, 0, 53)), IpAddr::V4(Ipv4Addr::new(127, 0, 0, 54))];

/// The resolvers queries are forwarded to. Cheap to clone; clones share what was read.
///
/// They may be on the LAN or on loopback: queries leave from the daemon's own namespace, and the
/// guests get no way there.
#[derive(Clone, Debug)]
pub struct Upstreams(Source);

#[derive(Clone, Debug)]
enum Source {
    Fixed(Arc<[SocketAddr]>),
    Host(Arc<HostResolvers>),
}

impl Upstreams {
    /// These servers, in this order; only the first three are used. None means that every query
    /// fails: an empty list never stands for something else.
    pub fn fixed(servers: impl IntoIterator<Item = SocketAddr>) -> Self {
        Self(Source::Fixed(servers.into_iter().take(MAX_SERVERS).collect()))
    }

    /// The host's resolvers: /etc/resolv.conf, or what systemd-resolved lists when that names only
    /// its stub. Read again at the first query after a change.
    pub fn host() -> Self {
        Self::files(RESOLV_CONF.into(), BEHIND_STUB.into())
    }

    /// As [`Upstreams::host`], from other files: `main`, and `behind_stub` when `main` names only
    /// systemd-resolved's stub and `behind_stub` names others.
    pub fn files(main: PathBuf, behind_stub: PathBuf) -> Self {
        let state = Mutex::new(State::default());
        Self(Source::Host(Arc::new(HostResolvers { main, behind_stub, state })))
    }

    /// The servers as of now.
    ///
    /// May read two local files of at most 64 KiB, after looking at them no more than once a second.
    pub fn servers(&self) -> Arc<[SocketAddr]> {
        match &self.0 {
            Source::Fixed(servers) => Arc::clone(servers),
            Source::Host(host) => host.servers_at(Instant::now()),
        }
    }
}

#[derive(Debug)]
struct HostResolvers {
    main: PathBuf,
    behind_stub: PathBuf,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    looked: Option<Instant>,
    stamps: [Option<Stamp>; 2],
    servers: Arc<[SocketAddr]>,
}

/// What changes when a file is written or replaced: device, inode, size, time.
type Stamp = (u64, u64, u64, i64, i64);

fn stamp(path: &Path) -> Option<Stamp> {
    let of = fs::metadata(path).ok()?;
    Some((of.dev(), of.ino(), of.size(), of.mtime(), of.mtime_nsec()))
}

impl HostResolvers {
    fn servers_at(&self, now: Instant) -> Arc<[SocketAddr]> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.looked.is_some_and(|looked| now.saturating_duration_since(looked) < LOOK_EVERY) {
            return Arc::clone(&state.servers);
        }
        let stamps = [stamp(&self.main), stamp(&self.behind_stub)];
        if state.looked.is_none() || stamps != state.stamps {
            match self.read() {
                Ok(servers) => {
                    state.servers = servers.into();
                    tracing::info!(servers = ?state.servers, "the host's DNS resolvers");
                }
                // What was read before stays good: files are often replaced in two steps.
                Err(error) => {
                    tracing::warn!(file = %self.main.display(), %error, "cannot read the host's DNS resolvers");
                }
            }
        }
        state.looked = Some(now);
        state.stamps = stamps;
        Arc::clone(&state.servers)
    }

    fn read(&self) -> io::Result<Vec<SocketAddr>> {
        let named = servers_in(&read_text(&self.main)?);
        if !named.iter().all(|server| STUBS.contains(&server.ip())) {
            return Ok(named);
        }
        // Without the list behind it the stub itself is asked; it answers on our loopback.
        let behind = read_text(&self.behind_stub).map(|text| servers_in(&text)).unwrap_or_default();
        Ok(if behind.is_empty() { named } else { behind })
    }
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut bytes = Vec::new();
    File::open(path)?.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// The `nameserver` lines of a resolv.conf(5). What is no address, or one nobody answers from, is passed over.
fn servers_in(text: &str) -> Vec<SocketAddr> {
    text.lines()
        .filter_map(|line| line.strip_prefix("nameserver"))
        .filter(|rest| rest.starts_with([' ', '\t']))
        .filter_map(|rest| rest.split_whitespace().next())
        .filter_map(server)
        .take(MAX_SERVERS)
        .collect()
}

fn server(text: &str) -> Option<SocketAddr> {
    let address = match text.split_once('%') {
        Some((address, scope)) => {
            let address = address.parse::<Ipv6Addr>().ok()?;
            SocketAddr::V6(SocketAddrV6::new(address, DNS_PORT, 0, scope_id(scope)?))
        }
        None => SocketAddr::new(text.parse().ok()?, DNS_PORT),
    };
    let broadcast = address.ip() == IpAddr::V4(Ipv4Addr::BROADCAST);
    (!broadcast && !address.ip().is_multicast()).then_some(address)
}

/// The number of a zone: itself, or the index of the interface it names (RFC 4007 §11.2).
fn scope_id(scope: &str) -> Option<u32> {
    if let Ok(number) = scope.parse() {
        return Some(number);
    }
    use rustix::net::{AddressFamily, SocketType, netdevice, socket};
    let any = socket(AddressFamily::INET, SocketType::DGRAM, None).ok()?;
    netdevice::name_to_index(&any, scope).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(servers: &[SocketAddr]) -> Vec<String> {
        servers.iter().map(SocketAddr::to_string).collect()
    }

    #[test]
    fn nameserver_lines_are_read_and_nothing_else() {
        let text = "# nameserver 9.9.9.9\n; nameserver 9.9.9.8\nsearch lan\nnameservers 1.1.1.1\n\
                    nameserver 192.168.1.1 # router\nnameserver\t fe80::1%lo\nnameserver\n\
                    nameserver nonsense\nnameserver 255.255.255.255\nnameserver ff02::fb\n nameserver 4.4.4.4\n\
                    nameserver 2001:db8::1\nnameserver 8.8.8.8\n";
        let seen = texts(&servers_in(text));
        assert_eq!(seen, ["192.168.1.1:53", "[fe80::1%1]:53", "[2001:db8::1]:53"]);
    }

    #[test]
    fn the_stub_is_looked_behind_and_used_when_nothing_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let (main, behind) = (dir.path().join("etc"), dir.path().join("run"));
        fs::write(&main, "nameserver 127.0.0.53\noptions edns0\n").unwrap();
        let alone = Upstreams::files(main.clone(), behind.clone());
        assert_eq!(texts(&alone.servers()), ["127.0.0.53:53"]);
        fs::write(&behind, "nameserver 10.0.0.1\nnameserver 10.0.0.2\n").unwrap();
        let listed = Upstreams::files(main.clone(), behind.clone());
        assert_eq!(texts(&listed.servers()), ["10.0.0.1:53", "10.0.0.2:53"]);
        fs::write(&main, "nameserver 127.0.0.53\nnameserver 10.9.9.9\n").unwrap();
        let mixed = Upstreams::files(main, behind);
        assert_eq!(texts(&mixed.servers()), ["127.0.0.53:53", "10.9.9.9:53"]);
    }

    #[test]
    fn a_change_is_noticed_at_a_later_query_and_a_missing_file_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let main = dir.path().join("resolv.conf");
        let host = HostResolvers {
            main: main.clone(),
            behind_stub: dir.path().join("none"),
            state: Mutex::new(State::default()),
        };
        let start = Instant::now();
        assert!(host.servers_at(start).is_empty());
        fs::write(&main, "nameserver 10.0.0.1\n").unwrap();
        assert!(host.servers_at(start + LOOK_EVERY / 2).is_empty());
        assert_eq!(texts(&host.servers_at(start + LOOK_EVERY)), ["10.0.0.1:53"]);
        fs::remove_file(&main).unwrap();
        assert_eq!(texts(&host.servers_at(start + LOOK_EVERY * 2)), ["10.0.0.1:53"]);
        fs::write(&main, "nameserver 10.0.0.2\n").unwrap();
        assert_eq!(texts(&host.servers_at(start + LOOK_EVERY * 3)), ["10.0.0.2:53"]);
    }

    #[test]
    fn a_fixed_list_is_kept_in_order_and_short() {
        let many = (1..=5).map(|last| SocketAddr::from(([10, 0, 0, last], 53)));
        assert_eq!(texts(&Upstreams::fixed(many).servers()), ["10.0.0.1:53", "10.0.0.2:53", "10.0.0.3:53"]);
        assert!(Upstreams::fixed([]).servers().is_empty());
    }
}
