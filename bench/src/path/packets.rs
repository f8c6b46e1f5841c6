//! Nanoseconds a packet, on one CPU.
//!
//! Owns: writing 90-byte frames into a tap and sending answers back. The kernel carries a packet from
//! the tap to the server's socket, and back into the tap's ring, inside the caller's own system
//! call; so the clock around a burst of them is the path's cost. That they arrived is checked.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddrV4, UdpSocket};
use std::time::Instant;

use anyhow::{Context as _, Result, ensure};
use enisle_testkit::frame::{Ends, udp};
use enisle_testkit::world::SERVER;
use enisle_testkit::{Netns, World};
use rustix::thread::{CpuSet, sched_setaffinity};

use super::track::Track;
use crate::Effort;

/// Ethernet, IPv4, UDP and this make 90 bytes.
const PAYLOAD: [u8; 48] = [0x5a; 48];
const VNET_HEADER: usize = 10;
const GUEST_PORT: u16 = 40_900;
const SERVER_PORT: u16 = 4_090;
/// Packets between two looks at the clock: a tap's ring holds 500 that nobody read.
const BURST: u32 = 400;
/// Bursts of each path and direction in a round.
const BURSTS: usize = 240;

/// Nanoseconds a packet, of each burst.
#[derive(Default)]
pub(super) struct Times {
    pub(super) up: Vec<f64>,
    pub(super) down: Vec<f64>,
}

/// One path with a flow on it.
pub(super) struct Flood<'a> {
    track: &'a Track,
    internet: &'a Netns,
    server: UdpSocket,
    frame: Vec<u8>,
    buffer: Vec<u8>,
}

impl<'a> Flood<'a> {
    /// Begins the flow: the server learns where answers go.
    pub(super) fn new(track: &'a Track, world: &'a World) -> Result<Flood<'a>> {
        let address = SocketAddrV4::new(SERVER, 0);
        // A port for each, for several share a world.
        let port = SERVER_PORT + u16::from(track.ident.ip.octets()[3]);
        let server = world.internet.run(|| UdpSocket::bind(SocketAddrV4::new(*address.ip(), port)))?;
        server.set_read_timeout(Some(std::time::Duration::from_secs(2)))?;
        let Track { ident, .. } = track;
        let ends = Ends { src_mac: ident.mac, dst_mac: ident.gateway_mac, src: ident.ip, dst: SERVER };
        let mut frame = vec![0; VNET_HEADER];
        frame.extend(udp(ends, GUEST_PORT, port, &PAYLOAD));
        ensure!(frame.len() == VNET_HEADER + 90, "a frame of {} bytes", frame.len());
        let flood = Flood { track, internet: &world.internet, server, frame, buffer: vec![0; 1 << 17] };
        flood.write()?;
        let mut first = [0; 64];
        let (_, peer) = flood.server.recv_from(&mut first).context("the first packet does not arrive")?;
        flood.server.connect(peer)?;
        Ok(flood)
    }

    fn write(&self) -> Result<()> {
        (&self.track.tap).write_all(&self.frame).context("write a frame into the tap")
    }

    /// One burst from the guest.
    fn up(&self) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..BURST {
            self.write()?;
        }
        Ok(each(start))
    }

    /// One burst to the guest; what waits in the ring is read after the clock has stopped.
    fn down(&mut self) -> Result<f64> {
        let start = Instant::now();
        for _ in 0..BURST {
            self.server.send(&PAYLOAD)?;
        }
        let time = each(start);
        let mut arrived = 0;
        while let Ok(length) = (&self.track.tap).read(&mut self.buffer) {
            arrived += u32::from(length == self.frame.len());
        }
        ensure!(arrived * 100 >= BURST * 99, "only {arrived} of {BURST} packets reached the guest");
        Ok(time)
    }

    /// Packets that the server's namespace has taken in, and the way there is clear.
    fn delivered(&self) -> Result<u64> {
        let text = self.internet.run(|| std::fs::read_to_string("/proc/thread-self/net/snmp"))?;
        let mut ip = text.lines().filter_map(|l| l.strip_prefix("Ip: ")).map(|l| l.split(' '));
        let (names, numbers) = ip.next().zip(ip.next()).context("/proc/net/snmp is not as expected")?;
        let found = names.zip(numbers).find(|(name, _)| *name == "InDelivers");
        Ok(found.context("no InDelivers in /proc/net/snmp")?.1.parse()?)
    }
}

/// One round: bursts of both in turn, first one first, then the other, on one CPU.
pub(super) fn compare(a: &mut Flood<'_>, b: &mut Flood<'_>, effort: Effort) -> Result<(Times, Times)> {
    let pinned = || -> Result<(Times, Times)> {
        pin(0)?;
        let (mut of_a, mut of_b) = (Times::default(), Times::default());
        let bursts = effort.of(BURSTS);
        let before = (a.delivered()?, b.delivered()?);
        for i in 0..bursts {
            let turns = [(&*a, &mut of_a), (&*b, &mut of_b)];
            let ordered: Vec<_> = if i % 2 == 0 { turns.into() } else { turns.into_iter().rev().collect() };
            for (flood, times) in ordered {
                times.up.push(flood.up()?);
            }
        }
        let sent = u64::from(BURST) * bursts as u64;
        for (flood, before) in [(&*a, before.0), (&*b, before.1)] {
            let arrived = flood.delivered()? - before;
            ensure!(arrived * 100 >= sent * 99, "only {arrived} of {sent} packets reached the server");
        }
        for i in 0..bursts {
            if i % 2 == 0 {
                of_a.down.push(a.down()?);
                of_b.down.push(b.down()?);
            } else {
                of_b.down.push(b.down()?);
                of_a.down.push(a.down()?);
            }
        }
        Ok((of_a, of_b))
    };
    // On a thread of its own: the affinity goes with it.
    std::thread::scope(|scope| scope.spawn(pinned).join()).unwrap_or_else(|p| std::panic::resume_unwind(p))
}

fn each(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e9 / f64::from(BURST)
}

/// Binds the calling thread to the `n`th CPU, or to the last one there is.
pub(super) fn pin(n: usize) -> Result<()> {
    let cpus = std::thread::available_parallelism()?.get();
    let mut set = CpuSet::new();
    set.set(n.min(cpus - 1));
    sched_setaffinity(None, &set).context("bind a thread to a CPU")
}
