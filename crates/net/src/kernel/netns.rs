//! Network namespaces: made and entered only on threads that are thrown away.
//!
//! Owns: `unshare`, `setns`, and the sockets a namespace is set up through. Refuses: names; a
//! namespace here is a descriptor, and gone when the last one is closed.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::thread;

use netlink_sys::protocols::{NETLINK_NETFILTER, NETLINK_ROUTE};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};

use super::netlink_socket::NetlinkSocket;
use super::tap;

/// The calling thread's namespace, as procfs shows it.
const OWN: &str = "/proc/thread-self/ns/net";

/// A VM's namespace.
#[derive(Debug)]
pub(crate) struct Netns {
    pub(super) fd: OwnedFd,
    /// `None` once sealed. Each of these keeps the namespace alive.
    pub(super) inside: Option<Inside>,
    /// The queue the tap was made through, until somebody asks for it. Opening it anew would race
    /// with every fork of this process: between fork and exec a child holds it, too.
    pub(super) queue: Mutex<Option<File>>,
}

/// What was opened inside and is used from outside.
#[derive(Debug)]
pub(crate) struct Inside {
    pub(super) route: Mutex<NetlinkSocket>,
    pub(super) netfilter: Mutex<NetlinkSocket>,
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Makes a namespace and opens its sockets.
pub(super) fn create() -> io::Result<Netns> {
    on_a_thread(|| {
        new_network()?;
        let inside = Inside {
            route: Mutex::new(NetlinkSocket::for_requests(NETLINK_ROUTE)?),
            netfilter: Mutex::new(NetlinkSocket::for_requests(NETLINK_NETFILTER)?),
        };
        Ok(Netns { fd: current()?, inside: Some(inside), queue: Mutex::new(Some(tap::open_device()?)) })
    })
}

/// Opens sockets in a namespace that exists already. The queue of its tap is somebody else's.
pub(super) fn enter(fd: OwnedFd) -> io::Result<Netns> {
    let open = || -> io::Result<Inside> {
        Ok(Inside {
            route: Mutex::new(NetlinkSocket::for_requests(NETLINK_ROUTE)?),
            netfilter: Mutex::new(NetlinkSocket::for_requests(NETLINK_NETFILTER)?),
        })
    };
    let inside = run_in(fd.as_fd(), open)??;
    Ok(Netns { fd, inside: Some(inside), queue: Mutex::new(None) })
}

#[expect(unsafe_code, reason = "rustix marks unshare unsafe for CLONE_FILES, which is not used here")]
fn new_network() -> io::Result<()> {
    // SAFETY: only CLONE_NEWNET is passed; no file table is unshared.
    unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET) }?;
    Ok(())
}

/// A descriptor of the calling thread's namespace.
///
/// # Errors
/// `ENOENT` without procfs, `EMFILE` without a free descriptor.
pub fn current() -> io::Result<OwnedFd> {
    Ok(File::open(OWN)?.into())
}

/// Runs `work` inside the namespace `netns` on a thread of its own and waits for it. Sockets it
/// opens stay in that namespace wherever they are used afterwards.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`, `EINVAL` when `netns` is no network namespace, `EAGAIN` when
/// no thread can be started.
pub fn run_in<T: Send>(netns: BorrowedFd<'_>, work: impl FnOnce() -> T + Send) -> io::Result<T> {
    on_a_thread(|| {
        move_into_link_name_space(netns, Some(LinkNameSpaceType::Network))?;
        Ok(work())
    })
}

/// A thread that changed its namespace never runs anything else: it ends here.
fn on_a_thread<T: Send>(work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".into()).spawn_scoped(scope, work)?;
        thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Locks a socket; a panic elsewhere leaves no half-sent request behind.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
