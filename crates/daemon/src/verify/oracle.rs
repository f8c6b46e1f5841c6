//! What the daemon looks with: packet sockets on the slot's wires, and listeners on the host.
//!
//! Owns: sockets. Refuses: what is seen there. Nothing of the host's network is changed: the listeners are on
//! a free port of every address for as long as the run takes, and answer nobody.

use super::probe::Run;
use enisle_net::{PacketSocket, Wires};
use std::io;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;
use tokio::io::unix::{AsyncFd, AsyncFdReadyGuard};

/// Bytes of a frame that are looked at; every probe is shorter.
const SNAP: usize = 2048;
/// The host's own stack answers the host within this time.
const OWN_PATIENCE: Duration = Duration::from_secs(1);
/// Ports that are tried until one is free for TCP and UDP.
const PORTS: usize = 16;

/// Where a frame was seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// From the guest, before the judge.
    FromGuest,
    /// Given to the guest.
    ToGuest,
    /// From the host, before the judge.
    FromHost,
    /// On the host's end, behind the judge.
    Out,
}

/// Packet sockets on the slot's wires.
pub(super) struct Sniffers {
    tap: AsyncFd<PacketSocket>,
    inside: AsyncFd<PacketSocket>,
    outside: AsyncFd<PacketSocket>,
}

impl Sniffers {
    pub(super) fn new(wires: Wires) -> io::Result<Self> {
        Ok(Self {
            tap: watched(wires.tap)?,
            inside: watched(wires.inside)?,
            outside: watched(wires.outside)?,
        })
    }

    /// Resolves when there may be something to [`Sniffers::drain`]. Cancel-safe.
    pub(super) async fn ready(&self) {
        let clear = |guard: io::Result<AsyncFdReadyGuard<'_, PacketSocket>>| {
            if let Ok(mut guard) = guard {
                // Before it is read: what comes meanwhile makes it ready again.
                guard.clear_ready();
            }
        };
        tokio::select! {
            guard = self.tap.readable() => clear(guard),
            guard = self.inside.readable() => clear(guard),
            guard = self.outside.readable() => clear(guard),
        }
    }

    /// Everything that has passed since.
    pub(super) fn drain(&self, mut take: impl FnMut(Place, &[u8])) {
        let mut buffer = [0; SNAP];
        // What left the host's end is a packet to the guest that is seen inside as well; what leaves the
        // inner end is a beacon.
        for (socket, arrived, left) in [
            (&self.tap, Some(Place::FromGuest), Some(Place::ToGuest)),
            (&self.inside, Some(Place::FromHost), None),
            (&self.outside, Some(Place::Out), None),
        ] {
            // An interface that went away sends nothing any more; its VM's end is noticed elsewhere.
            while let Ok(Some(passed)) = socket.get_ref().receive(&mut buffer) {
                let place = if passed.outgoing { left } else { arrived };
                if let Some(place) = place {
                    take(place, &buffer[..passed.length]);
                }
            }
        }
    }

    /// Puts a frame behind the judge, on its way out.
    pub(super) fn send_out(&self, frame: &[u8]) -> io::Result<()> {
        self.inside.get_ref().send(frame)
    }

    /// Puts a frame before the judge, on its way to the guest.
    pub(super) fn send_in(&self, frame: &[u8]) -> io::Result<()> {
        self.outside.get_ref().send(frame)
    }

    /// Whether no frame was lost since this was last asked.
    pub(super) fn lossless(&self) -> bool {
        [&self.tap, &self.inside, &self.outside]
            .iter()
            .all(|socket| socket.get_ref().lost().is_ok_and(|n| n == 0))
    }
}

#[expect(
    deprecated,
    reason = "its successor is unsafe: a PacketSocket keeps its descriptor until it is dropped"
)]
fn watched(socket: PacketSocket) -> io::Result<AsyncFd<PacketSocket>> {
    AsyncFd::new(socket)
}

/// Listeners that no guest may reach.
pub(super) struct Canary {
    tcp: TcpListener,
    udp: UdpSocket,
    pub(super) port: u16,
    /// Addresses on which it did not even answer the host.
    pub(super) deaf: Vec<Ipv4Addr>,
}

impl Canary {
    /// Listens on every address of the host and asks itself on each of `addresses`. Blocks for at
    /// most a few seconds, milliseconds as a rule.
    pub(super) fn open(addresses: &[Ipv4Addr]) -> io::Result<Self> {
        let mut last = io::Error::from(io::ErrorKind::AddrInUse);
        for _ in 0..PORTS {
            let tcp = TcpListener::bind((Ipv4Addr::UNSPECIFIED, 0))?;
            let port = tcp.local_addr()?.port();
            match UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port)) {
                Ok(udp) => {
                    tcp.set_nonblocking(true)?;
                    udp.set_read_timeout(Some(OWN_PATIENCE))?;
                    let mut canary = Self { tcp, udp, port, deaf: Vec::new() };
                    canary.deaf = addresses
                        .iter()
                        .copied()
                        .filter(|address| canary.answers(*address).is_err())
                        .collect();
                    canary.udp.set_nonblocking(true)?;
                    return Ok(canary);
                }
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// The positive control: the host itself reaches it.
    fn answers(&self, address: Ipv4Addr) -> io::Result<()> {
        let to = SocketAddrV4::new(address, self.port);
        let call = TcpStream::connect_timeout(&SocketAddr::V4(to), OWN_PATIENCE)?;
        let own = call.local_addr()?;
        // The handshake is over, so it is in the queue.
        while self.tcp.accept()?.1 != own {}
        let asking = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        asking.send_to(b"canary", to)?;
        let from = asking.local_addr()?.port();
        let mut buffer = [0; 16];
        while self.udp.recv_from(&mut buffer)?.1.port() != from {}
        Ok(())
    }

    /// Addresses on which the guest called, and rows whose datagrams came.
    pub(super) fn heard(&self, guest: Ipv4Addr, run: Run) -> (Vec<Ipv4Addr>, Vec<usize>) {
        let (mut called, mut rows) = (Vec::new(), Vec::new());
        while let Ok((call, peer)) = self.tcp.accept() {
            if let (true, Ok(SocketAddr::V4(at))) = (peer.ip() == guest, call.local_addr()) {
                called.push(*at.ip());
            }
        }
        let mut buffer = [0; SNAP];
        while let Ok((length, _)) = self.udp.recv_from(&mut buffer) {
            rows.extend(run.row_in(&buffer[..length]));
        }
        (called, rows)
    }
}
