//! The three places where everything between one guest and the world can be seen.
//!
//! Owns: where they are. Refuses: what is seen there, which is for whoever asks (`enisle net
//! verify`, tests).

use std::io;
use std::os::fd::BorrowedFd;

use crate::kernel::netns;
use crate::kernel::packet::PacketSocket;
use crate::plan::Block;

/// Packet sockets of one slot. They keep its namespace alive: drop them before the slot goes.
#[derive(Debug)]
pub struct Wires {
    /// The tap: what the guest sends, before the judge; what it is given, after the judge.
    pub tap: PacketSocket,
    /// The veth's end inside: what the host sends to the guest, before the judge.
    pub inside: PacketSocket,
    /// The veth's end on the host: what the judge let out.
    pub outside: PacketSocket,
}

impl Wires {
    /// Opens the sockets of the slot with this block and namespace. Must be called in the host's
    /// namespace; blocks for less than a millisecond.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_RAW` and `CAP_SYS_ADMIN`, `ENODEV` when the slot is going.
    pub fn open(block: Block, namespace: BorrowedFd<'_>) -> io::Result<Wires> {
        let outside = PacketSocket::open(block.host_ifindex())?;
        let inside = || -> io::Result<(PacketSocket, PacketSocket)> {
            Ok((PacketSocket::open(block.tap_ifindex())?, PacketSocket::open(block.peer_ifindex())?))
        };
        let (tap, inside) = netns::run_in(namespace, inside).and_then(|opened| opened)?;
        Ok(Wires { tap, inside, outside })
    }
}
