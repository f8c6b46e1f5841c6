//! Packet sockets on one interface (packet(7)): what passes there, and frames put there by hand.
//!
//! Owns: opening, reading, sending, the count of frames that were lost. Refuses: what frames mean.
//!
//! On ingress a packet socket sees a frame before tc and nftables do, on egress after both. So on
//! the tap it sees what the guest sent before the judge has seen it, and what the guest is told;
//! on the host's end of the veth it sees exactly what the judge let out (`bpf_redirect_peer` lets
//! the packet arrive there).

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

/// Bytes that may wait to be read. More than the default holds through a guest's burst.
const BUFFER: usize = 8 << 20;

/// A packet socket bound to one interface. It keeps its namespace alive.
#[derive(Debug)]
pub struct PacketSocket {
    fd: OwnedFd,
}

/// One frame as it passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Passed {
    /// How many bytes of it were read.
    pub length: usize,
    /// It left by the interface; else it arrived there.
    pub outgoing: bool,
}

impl PacketSocket {
    /// Opens one in the calling thread's namespace, for every frame of the interface `index`.
    /// Reading and sending do not block.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW`, `ENODEV` when there is no such interface.
    #[expect(unsafe_code, reason = "rustix knows no packet addresses")]
    pub fn open(index: u32) -> io::Result<PacketSocket> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        // No protocol yet: nothing comes in before it is bound.
        let fd = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, None)?;
        // Without the right to exceed the limit, what the limit allows.
        rustix::net::sockopt::set_socket_recv_buffer_size_force(&fd, BUFFER).ok();
        let mut address = empty();
        address.sll_ifindex = index.cast_signed();
        address.sll_protocol = (libc::ETH_P_ALL as u16).to_be();
        // SAFETY: `address` is a whole sockaddr_ll that lives through the call.
        let bound = unsafe { libc::bind(fd.as_raw_fd(), (&raw const address).cast(), LENGTH) };
        if bound < 0 { Err(io::Error::last_os_error()) } else { Ok(PacketSocket { fd }) }
    }

    /// The next frame, cut to `buffer`; `None` when there is none now.
    ///
    /// # Errors
    /// `ENETDOWN` once when the interface went down.
    #[expect(unsafe_code, reason = "rustix knows no packet addresses")]
    pub fn receive(&self, buffer: &mut [u8]) -> io::Result<Option<Passed>> {
        let mut address = empty();
        let mut length = LENGTH;
        // SAFETY: `buffer` is writable for its length, `address` for `length` bytes.
        let got = unsafe {
            libc::recvfrom(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                0,
                (&raw mut address).cast(),
                &raw mut length,
            )
        };
        match usize::try_from(got) {
            Ok(length) => Ok(Some(Passed { length, outgoing: address.sll_pkttype == libc::PACKET_OUTGOING })),
            Err(_) => match io::Error::last_os_error() {
                e if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => Ok(None),
                e => Err(e),
            },
        }
    }

    /// Puts a whole frame on the interface, past everything that filters what a host sends.
    ///
    /// # Errors
    /// `ENETDOWN`, `EMSGSIZE`, `ENOBUFS`.
    pub fn send(&self, frame: &[u8]) -> io::Result<()> {
        rustix::net::send(&self.fd, frame, rustix::net::SendFlags::empty())?;
        Ok(())
    }

    /// How many frames had no room since this was last asked.
    ///
    /// # Errors
    /// None that packet(7) knows.
    #[expect(unsafe_code, reason = "rustix knows no options of packet sockets")]
    pub fn lost(&self) -> io::Result<u32> {
        let mut stats = libc::tpacket_stats { tp_packets: 0, tp_drops: 0 };
        let mut length = size_of::<libc::tpacket_stats>() as libc::socklen_t;
        // SAFETY: `stats` is writable for `length` bytes.
        let asked = unsafe {
            libc::getsockopt(
                self.fd.as_raw_fd(),
                libc::SOL_PACKET,
                libc::PACKET_STATISTICS,
                (&raw mut stats).cast(),
                &raw mut length,
            )
        };
        if asked < 0 { Err(io::Error::last_os_error()) } else { Ok(stats.tp_drops) }
    }
}

impl AsFd for PacketSocket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl AsRawFd for PacketSocket {
    fn as_raw_fd(&self) -> std::os::fd::RawFd {
        self.fd.as_raw_fd()
    }
}

const LENGTH: libc::socklen_t = size_of::<libc::sockaddr_ll>() as libc::socklen_t;

fn empty() -> libc::sockaddr_ll {
    libc::sockaddr_ll {
        sll_family: libc::AF_PACKET as u16,
        sll_protocol: 0,
        sll_ifindex: 0,
        sll_hatype: 0,
        sll_pkttype: 0,
        sll_halen: 0,
        sll_addr: [0; 8],
    }
}
