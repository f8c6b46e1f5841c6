//! The system calls that neither std nor rustix offers without `unsafe`: vsock and packet addresses,
//! `fork` of PID 1, signals by number, and what a child does between `fork` and `exec`.
//!
//! Refuses everything that has a safe call elsewhere.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Bytes of a vsock address as `bind(2)` and `connect(2)` want them.
const ADDRESS_LENGTH: libc::socklen_t = size_of::<libc::sockaddr_vm>() as libc::socklen_t;

/// Connections that wait for `accept`: a burst of sessions is not to be reset. The kernel cuts it
/// to `net.core.somaxconn`.
const BACKLOG: libc::c_int = 1024;

fn check(result: libc::c_int) -> io::Result<libc::c_int> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}

fn vsock_address(cid: u32, port: u32) -> libc::sockaddr_vm {
    libc::sockaddr_vm {
        svm_family: libc::AF_VSOCK as libc::sa_family_t,
        svm_reserved1: 0,
        svm_port: port,
        svm_cid: cid,
        svm_zero: [0; 4],
    }
}

#[expect(unsafe_code, reason = "std has no vsock sockets")]
fn vsock_socket() -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed.
    let fd = check(unsafe { libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM | libc::SOCK_CLOEXEC, 0) })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Connects to `cid:port`, blocking for as long as the kernel's vsock connect time-out (2 s).
///
/// # Errors
/// The kernel's: no vsock device yet (`ENODEV`), nobody listens (`ECONNRESET`), time-out.
#[expect(unsafe_code, reason = "std has no vsock sockets")]
pub fn vsock_connect(cid: u32, port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(cid, port);
    // SAFETY: `address` is a whole sockaddr_vm that lives through the call.
    check(unsafe { libc::connect(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH) })?;
    Ok(socket)
}

/// Listens on `port` for connections from any context id.
///
/// # Errors
/// The port is taken or there is no vsock.
#[expect(unsafe_code, reason = "std has no vsock sockets")]
pub fn vsock_listen(port: u32) -> io::Result<OwnedFd> {
    let socket = vsock_socket()?;
    let address = vsock_address(libc::VMADDR_CID_ANY, port);
    // SAFETY: `address` is a whole sockaddr_vm that lives through the call.
    check(unsafe { libc::bind(socket.as_raw_fd(), (&raw const address).cast(), ADDRESS_LENGTH) })?;
    // SAFETY: no pointers are passed.
    check(unsafe { libc::listen(socket.as_raw_fd(), BACKLOG) })?;
    Ok(socket)
}

/// Waits for the next connection; returns it with the context id of its peer.
///
/// # Errors
/// `accept4(2)`'s, `EMFILE` among them.
#[expect(unsafe_code, reason = "std has no vsock sockets")]
pub fn vsock_accept(listener: BorrowedFd<'_>) -> io::Result<(OwnedFd, u32)> {
    let mut address = vsock_address(0, 0);
    let mut length = ADDRESS_LENGTH;
    // SAFETY: both pointers are to locals that live through the call, `length` is `address`'s size.
    let fd = check(unsafe {
        libc::accept4(listener.as_raw_fd(), (&raw mut address).cast(), &raw mut length, libc::SOCK_CLOEXEC)
    })?;
    // SAFETY: the descriptor is new and nobody else owns it.
    Ok((unsafe { OwnedFd::from_raw_fd(fd) }, address.svm_cid))
}

/// Puts a whole Ethernet frame on the interface with this index, through a packet socket that
/// receives nothing (packet(7)).
///
/// # Errors
/// `EPERM` without `CAP_NET_RAW`, `ENXIO` for no such interface, `ENETDOWN`, `EMSGSIZE`.
#[expect(unsafe_code, reason = "neither std nor rustix knows packet addresses")]
pub fn send_frame(socket: BorrowedFd<'_>, index: u32, frame: &[u8]) -> io::Result<()> {
    let kind = frame.get(12..14).and_then(|kind| kind.try_into().ok()).map_or(0, u16::from_ne_bytes);
    let mut address = libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: kind,
        sll_ifindex: index.cast_signed(),
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 6,
        sll_addr: [0; 8],
    };
    for (to, from) in address.sll_addr.iter_mut().zip(frame.iter().take(6)) {
        *to = *from;
    }
    let length = size_of::<libc::sockaddr_ll>() as libc::socklen_t;
    // SAFETY: `frame` and `address` live through the call and their lengths are right.
    let sent = unsafe {
        libc::sendto(
            socket.as_raw_fd(),
            frame.as_ptr().cast(),
            frame.len(),
            libc::MSG_DONTWAIT,
            (&raw const address).cast(),
            length,
        )
    };
    if sent < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Which side of a [`fork`] runs.
pub enum Fork {
    /// The caller; the number is the child's process id.
    Parent(i32),
    /// The child.
    Child,
}

/// Duplicates this process. Only for PID 1, which never has a second thread.
///
/// # Errors
/// `EAGAIN` or `ENOMEM`.
#[expect(unsafe_code, reason = "PID 1 has to stay itself and yet leave a server behind")]
pub fn fork() -> io::Result<Fork> {
    // SAFETY: this process has one thread, so no lock can be held by another one in the child.
    Ok(match check(unsafe { libc::fork() })? {
        0 => Fork::Child,
        pid => Fork::Parent(pid),
    })
}

/// Takes ownership of a descriptor number this process was started with.
///
/// # Errors
/// `EBADF` when there is no such descriptor.
#[expect(unsafe_code, reason = "a descriptor handed over by exec comes as a number")]
pub fn inherited(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: no pointers are passed; a number that is no descriptor is answered with EBADF.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: it is open, and the program that started this one left it here for this call alone.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Sends a signal by number, real-time signals included; a negative `target` is a process group,
/// -1 every process but PID 1 and the caller (kill(2)).
///
/// # Errors
/// `ESRCH` when nobody is there, `EINVAL` for no signal.
#[expect(unsafe_code, reason = "rustix knows no real-time signals")]
pub fn kill(target: i32, signal: i32) -> io::Result<()> {
    // SAFETY: no pointers are passed.
    check(unsafe { libc::kill(target, signal) }).map(drop)
}

/// What a child is to become before it runs its program.
#[derive(Debug, Clone)]
pub struct Become {
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// Working directory, entered with the user's rights.
    pub cwd: CString,
    /// Make descriptor 0 the controlling terminal.
    pub terminal: bool,
    /// Only root can change its user: false keeps the identity of this process.
    pub change_user: bool,
}

/// Makes `command` start its program as the leader of a new session, as `who`.
///
/// The steps' errors come out of `Command::spawn`.
#[expect(unsafe_code, reason = "sessions, terminals and groups are set between fork and exec")]
pub fn start_as(command: &mut Command, who: Become) {
    let steps = move || -> io::Result<()> {
        // SAFETY: only async-signal-safe system calls on memory that was allocated before the
        // fork: the pointers are to `who`, which the closure owns.
        unsafe {
            check(libc::setsid())?;
            // Before the identity changes: a user may not write its own OOM score then.
            reset_limits();
            if who.terminal {
                check(libc::ioctl(0, libc::TIOCSCTTY, 0))?;
            }
            if who.change_user {
                check(libc::setgroups(who.groups.len(), who.groups.as_ptr()))?;
                check(libc::setresgid(who.gid, who.gid, who.gid))?;
                check(libc::setresuid(who.uid, who.uid, who.uid))?;
            }
            check(libc::chdir(who.cwd.as_ptr()))?;
        }
        Ok(())
    };
    // SAFETY: `steps` neither allocates nor takes locks, see above.
    unsafe { command.pre_exec(steps) };
}

/// Gives a child the limits and the OOM score a login has, not the agent's own.
#[expect(unsafe_code, reason = "runs between fork and exec, where std's file API must not")]
fn reset_limits() {
    let mut files = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: async-signal-safe calls; `files` and the strings live through them. A failure
    // leaves the child with the agent's values, which does no harm.
    unsafe {
        if libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut files) == 0 {
            files.rlim_cur = files.rlim_max.min(1024);
            libc::setrlimit(libc::RLIMIT_NOFILE, &raw const files);
        }
        let score = libc::open(c"/proc/self/oom_score_adj".as_ptr(), libc::O_WRONLY | libc::O_CLOEXEC);
        if score >= 0 {
            libc::write(score, c"0".as_ptr().cast(), 1);
            libc::close(score);
        }
    }
}
