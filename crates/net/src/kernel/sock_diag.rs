//! Range leases: abstract unix sockets, which belong to a network namespace and die with their
//! holder (unix(7), sock_diag(7)).
//!
//! Owns: claiming a range and finding who else holds one that overlaps. Refuses: what to do about
//! a conflict. A file with a lock would be tied to a mount namespace; two daemons that share a
//! network namespace but not `/run` would not see each other. The name carries the process and a
//! number, so nobody can squat on it, and only names bound by root count.

use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use netlink_sys::protocols::NETLINK_SOCK_DIAG;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, socket_with};

use super::netlink_socket::NetlinkSocket;
use super::{Answer, KernelError, Lease};
use crate::netlink::{Message, Received, attribute, flags, u32_at};
use crate::plan::Range;

const PREFIX: &str = "enisle/range/";
const SOCK_DIAG_BY_FAMILY: u16 = 20;
const AF_UNIX: u8 = 1;
const UDIAG_SHOW_NAME: u32 = 0x1;
const UDIAG_SHOW_UID: u32 = 0x40;
const UNIX_DIAG_NAME: u16 = 0;
const UNIX_DIAG_UID: u16 = 7;
/// `struct unix_diag_msg`.
const DIAG_HEADER: usize = 16;

/// Claims `range` in the calling thread's namespace, or says which claim is in the way. The claim
/// is made before others are looked for, so of two that race at least one sees the other.
pub(super) fn lease(range: &Range) -> Answer<Result<Lease, Range>> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let what = format!("lease of {range}");
    let error = |e: io::Error| KernelError::new(what.as_str(), e);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let own = format!("{PREFIX}{range}/{}-{number}", std::process::id());
    let socket = claim(&own).map_err(error)?;
    let others = claims()?.into_iter().filter(|name| *name != own);
    let rival = others.filter_map(|name| parse(&name)).map(|(other, _)| other).find(|o| o.overlaps(range));
    Ok(match rival {
        Some(other) => Err(other),
        None => Ok(Lease { _socket: Some(socket) }),
    })
}

/// Every lease in the calling thread's namespace, with the process that took it. Needs no
/// privileges.
pub(crate) fn leases() -> Answer<Vec<(Range, u32)>> {
    Ok(claims()?.iter().filter_map(|name| parse(name)).collect())
}

/// Names of sockets that root bound.
fn claims() -> Answer<Vec<String>> {
    let what = "listing unix sockets";
    let mut diag = NetlinkSocket::open(NETLINK_SOCK_DIAG).map_err(|e| KernelError::new(what, e))?;
    let mut names = Vec::new();
    diag.dump(what, request(), |m| names.extend(claimed(m)))?;
    Ok(names)
}

/// Range and process of a lease's name.
fn parse(name: &str) -> Option<(Range, u32)> {
    let (range, holder) = name.strip_prefix(PREFIX)?.rsplit_once('/')?;
    Some((range.parse().ok()?, holder.split_once('-')?.0.parse().ok()?))
}

fn claim(name: &str) -> io::Result<std::os::fd::OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::DGRAM, SocketFlags::CLOEXEC, None)?;
    bind(&socket, &SocketAddrUnix::new_abstract_name(name.as_bytes())?)?;
    Ok(socket)
}

/// Every unix socket of the namespace, with name and owner.
fn request() -> Message {
    let show = UDIAG_SHOW_NAME | UDIAG_SHOW_UID;
    Message::new(SOCK_DIAG_BY_FAMILY, flags::DUMP)
        .put(&[AF_UNIX, 0, 0, 0])
        .put(&u32::MAX.to_ne_bytes())
        .put(&[0; 4])
        .put(&show.to_ne_bytes())
        .put(&[0; 8])
}

/// The abstract name of a socket that root bound.
fn claimed(m: &Received<'_>) -> Option<String> {
    let attrs = m.body.get(DIAG_HEADER..)?;
    if u32_at(attribute(attrs, UNIX_DIAG_UID)?, 0)? != 0 {
        return None;
    }
    let name = attribute(attrs, UNIX_DIAG_NAME)?.strip_prefix(&[0])?;
    String::from_utf8(name.to_vec()).ok()
}
