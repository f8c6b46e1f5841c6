//! Connect: a TCP or unix socket inside the guest, carried to the host with both half-closes.

use super::exec::non_blocking;
use super::failure::{failure, from_io};
use super::pump::{InputEnd, Job, Streams};
use super::{Running, success};
use enisle_guest_proto::{Control, Failure, FailureCode, Target};
use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Longest wait for one address.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// Addresses of a name that are tried.
const MAX_ADDRESSES: usize = 8;
/// A host name's length (RFC 1035, 2.3.4).
const MAX_NAME: usize = 253;

/// A socket ends with its two directions.
struct Forward;

impl Job for Forward {
    fn ended(&self) -> Option<BorrowedFd<'_>> {
        None
    }

    fn finish(&mut self, broken: Option<io::Error>) -> Control {
        broken.map_or_else(success, |e| Control::Failed(from_io("the forwarded connection", &e)))
    }

    /// Closing the descriptors, which the pump owns, is all there is to do.
    fn abandon(&mut self) {}
}

pub(super) fn begin(target: &Target) -> Result<Running, Failure> {
    let socket: OwnedFd = match target {
        Target::Unix { path } => UnixStream::connect(path).map_err(|e| from_io(path, &e))?.into(),
        Target::Tcp { host, port } => connect_tcp(host, *port)?.into(),
    };
    let streams = || -> io::Result<Streams> {
        let socket = non_blocking(socket)?;
        let reader = socket.try_clone()?;
        Ok(Streams { input: Some((socket, InputEnd::Shutdown)), stdout: Some(reader), stderr: None })
    };
    let streams = streams().map_err(|e| from_io("prepare the forward", &e))?;
    Ok(Running { pid: None, streams, job: Box::new(Forward) })
}

fn connect_tcp(host: &str, port: u16) -> Result<TcpStream, Failure> {
    let mut last = None;
    for address in resolve(host)?.into_iter().take(MAX_ADDRESSES) {
        match TcpStream::connect_timeout(&SocketAddr::new(address, port), CONNECT_PATIENCE) {
            Ok(stream) => {
                // A forward carries keystrokes as well as files. Refused is slow, not broken.
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(e) => last = Some(from_io(&format!("{address} port {port}"), &e)),
        }
    }
    Err(last.unwrap_or_else(|| unknown(host)))
}

fn unknown(host: &str) -> Failure {
    failure(FailureCode::NotFound, format!("{host:?} is not known to the guest"))
}

/// Addresses of a host. Names are the image's business: /etc/hosts, then its own `getent`. The
/// static agent cannot load the image's resolver.
fn resolve(host: &str) -> Result<Vec<IpAddr>, Failure> {
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if let Ok(address) = bare.parse() {
        return Ok(vec![address]);
    }
    let is_name = !host.is_empty()
        && host.len() <= MAX_NAME
        && !host.starts_with('-')
        && host.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._".contains(&byte));
    if !is_name {
        return Err(failure(FailureCode::Invalid, format!("{host:?} is neither an address nor a host name")));
    }
    let mut found = in_hosts(&fs::read_to_string("/etc/hosts").unwrap_or_default(), host);
    if found.is_empty() && host == "localhost" {
        found = vec![IpAddr::from([127, 0, 0, 1])];
    }
    if found.is_empty() {
        found = by_getent(host)?;
    }
    Ok(found)
}

fn in_hosts(hosts: &str, name: &str) -> Vec<IpAddr> {
    let lines = hosts.lines().filter_map(|line| line.split('#').next());
    let matching = lines.filter_map(|line| {
        let mut words = line.split_ascii_whitespace();
        let address = words.next()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    let mut found: Vec<IpAddr> = matching.filter_map(|address| address.parse().ok()).collect();
    // A guest has no IPv6 route: what can be reached is tried first.
    found.sort_by_key(IpAddr::is_ipv6);
    found
}

fn by_getent(host: &str) -> Result<Vec<IpAddr>, Failure> {
    let output =
        Command::new("getent").args(["ahosts", host]).stdin(Stdio::null()).stderr(Stdio::null()).output();
    let output = match output {
        Ok(output) => output,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Err(unknown(host)),
        Err(e) => return Err(from_io("getent", &e)),
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let mut found = Vec::new();
    for address in
        text.lines().filter_map(|line| line.split_ascii_whitespace().next()?.parse::<IpAddr>().ok())
    {
        if !found.contains(&address) {
            found.push(address);
        }
    }
    if found.is_empty() { Err(unknown(host)) } else { Ok(found) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_and_names_of_the_hosts_file() {
        assert_eq!(resolve("[::1]").unwrap(), ["::1".parse::<IpAddr>().unwrap()]);
        let hosts =
            "::1 localhost ip6\n127.0.0.1 LocalHost # box\n# 9.9.9.9 box\nbroken box\n10.0.0.1 box.lan box\n";
        assert_eq!(
            in_hosts(hosts, "localhost"),
            ["127.0.0.1".parse::<IpAddr>().unwrap(), "::1".parse().unwrap()]
        );
        assert_eq!(in_hosts(hosts, "box"), ["10.0.0.1".parse::<IpAddr>().unwrap()]);
    }

    #[test]
    fn what_is_no_name_never_reaches_a_program() {
        for bad in ["", "-s", "a b", "a;b", "a\n", &"x".repeat(254)] {
            assert_eq!(resolve(bad).unwrap_err().code, FailureCode::Invalid, "{bad:?}");
        }
    }
}
