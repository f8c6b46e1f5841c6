//! A guest made of a tap's queue descriptor: it can send any frame and remembers every one it got.
//!
//! Owns: the virtio-net header, answering ARP about itself, probes built frame by frame. Refuses:
//! knowing anything of the slot but what a guest is told: two MACs, two addresses.

use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use rustix::ioctl::{Getter, Opcode, Setter};

use crate::Netns;
use crate::flow::Flow;
use crate::frame::{self, ARP, Body, Ends, Flags, Seen, Segment};
use crate::probe::{Answer, Kind, Outcome, TOKEN};
use crate::sniff::wait_readable;

/// `_IOR('T', 215, int)`, linux/if_tun.h.
const TUNGETVNETHDRSZ: Opcode = 0x8004_54d7;
/// `_IOW('T', 202, int)`, linux/if_tun.h.
const TUNSETIFF: Opcode = 0x4004_54ca;
const IFF_TAP: u16 = 0x0002;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const BROADCAST: [u8; 6] = [0xff; 6];

/// What a guest is told about itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ident {
    /// MAC of its NIC.
    pub mac: [u8; 6],
    /// Its address.
    pub ip: Ipv4Addr,
    /// MAC of its gateway.
    pub gateway_mac: [u8; 6],
    /// Address of its gateway.
    pub gateway: Ipv4Addr,
}

/// The guest.
#[derive(Debug)]
pub struct TapGuest {
    tap: OwnedFd,
    header: usize,
    ident: Ident,
    received: Vec<Vec<u8>>,
    next_port: u16,
}

impl TapGuest {
    /// Takes over a queue of a tap with `IFF_VNET_HDR`.
    ///
    /// # Errors
    /// If the descriptor is no tap.
    pub fn new(tap: OwnedFd, ident: Ident) -> anyhow::Result<TapGuest> {
        let header = vnet_header_size(&tap).context("cannot ask the tap for its header size")?;
        rustix::io::ioctl_fionbio(&tap, true).context("cannot make the tap non-blocking")?;
        Ok(TapGuest { tap, header, ident, received: Vec::new(), next_port: 40_000 })
    }

    /// Who it is.
    #[must_use]
    pub fn ident(&self) -> Ident {
        self.ident
    }

    /// Honest ends for a packet to `dst`.
    #[must_use]
    pub fn to(&self, dst: Ipv4Addr) -> Ends {
        let Ident { mac, ip, gateway_mac, .. } = self.ident;
        Ends { src_mac: mac, dst_mac: gateway_mac, src: ip, dst }
    }

    /// Puts a frame on the wire, as a NIC without offloads would.
    ///
    /// # Errors
    /// What the tap says, for example `EINVAL` to a runt frame.
    pub fn send(&self, frame: &[u8]) -> std::io::Result<()> {
        let mut bytes = vec![0; self.header];
        bytes.extend_from_slice(frame);
        rustix::io::write(&self.tap, &bytes)?;
        Ok(())
    }

    /// The next frame, if one comes within `limit`. ARP questions about the guest are answered on
    /// the way, as every guest would.
    pub fn receive(&mut self, limit: Duration) -> Option<&[u8]> {
        let mut buffer = vec![0; 1 << 17];
        let end = Instant::now() + limit;
        loop {
            if let Ok(got) = rustix::io::read(&self.tap, &mut buffer[..])
                && got > self.header
            {
                let frame = buffer[self.header..got].to_vec();
                self.answer_arp(&frame);
                self.received.push(frame);
                return self.received.last().map(Vec::as_slice);
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            wait_readable(&self.tap, left);
        }
    }

    fn answer_arp(&self, frame: &[u8]) {
        let Ident { mac, ip, .. } = self.ident;
        let asks = frame.get(12..14) == Some(&ARP.to_be_bytes())
            && frame.get(20..22) == Some(&[0, 1])
            && frame.get(38..42) == Some(&ip.octets());
        if let (true, Some(asker), Some(address)) = (asks, frame.get(22..28), frame.get(28..32)) {
            let asker: [u8; 6] = asker.try_into().unwrap_or(BROADCAST);
            let address = Ipv4Addr::from(<[u8; 4]>::try_from(address).unwrap_or_default());
            let reply = frame::arp(2, (mac, ip), (asker, address));
            drop(self.send(&frame::ethernet(mac, asker, ARP, &reply)));
        }
    }

    /// Everything ever received, after taking in what waits.
    pub fn received(&mut self) -> &[Vec<u8>] {
        while self.receive(Duration::ZERO).is_some() {}
        &self.received
    }

    /// Waits for a frame that `pick` makes something of.
    pub fn wait_for<T>(&mut self, limit: Duration, mut pick: impl FnMut(&Seen) -> Option<T>) -> Option<T> {
        let end = Instant::now() + limit;
        loop {
            let frame = self.receive(end.saturating_duration_since(Instant::now()))?;
            if let Some(found) = Seen::of(frame).as_ref().and_then(&mut pick) {
                return Some(found);
            }
        }
    }

    /// A source port not used before.
    pub fn fresh_port(&mut self) -> u16 {
        self.next_port = self.next_port.checked_add(1).unwrap_or(40_000);
        self.next_port
    }

    /// Asks like any honest guest, and waits at most `limit`.
    pub fn ask(&mut self, kind: Kind, addr: Ipv4Addr, port: u16, limit: Duration) -> Outcome {
        match kind {
            Kind::Tcp | Kind::Connect => self.ask_tcp(addr, port, limit, kind == Kind::Tcp),
            Kind::Udp => self.ask_udp(addr, port, limit),
            Kind::Ping => self.ask_ping(addr, limit),
        }
    }

    fn ask_tcp(&mut self, addr: Ipv4Addr, port: u16, limit: Duration, echo: bool) -> Outcome {
        let start = Instant::now();
        match Flow::open(self, addr, port, limit) {
            Err(outcome) => outcome,
            Ok(mut flow) => {
                let outcome = if echo {
                    flow.echo(self, TOKEN, limit)
                } else {
                    Outcome::since(start, Answer::Reached, "")
                };
                flow.reset(self);
                Outcome { ms: start.elapsed().as_secs_f64() * 1e3, ..outcome }
            }
        }
    }

    fn ask_udp(&mut self, addr: Ipv4Addr, port: u16, limit: Duration) -> Outcome {
        let (start, own) = (Instant::now(), self.fresh_port());
        if let Err(error) = self.send(&frame::udp(self.to(addr), own, port, TOKEN)) {
            return Outcome::since(start, Answer::Failed, error.to_string());
        }
        self.outcome(start, limit, |seen| match &seen.ip {
            Some((src, _, Body::Udp { from, to, data })) => ((*src, *from, *to) == (addr, port, own)
                && data == TOKEN)
                .then_some((Answer::Reached, String::new())),
            _ => icmp_error(seen, addr, own),
        })
    }

    fn ask_ping(&mut self, addr: Ipv4Addr, limit: Duration) -> Outcome {
        let (start, id) = (Instant::now(), self.fresh_port());
        if let Err(error) = self.send(&frame::ping(self.to(addr), id, 1)) {
            return Outcome::since(start, Answer::Failed, error.to_string());
        }
        self.outcome(start, limit, |seen| match &seen.ip {
            Some((src, _, Body::Icmp { kind: 0, rest, .. })) => {
                (*src == addr && rest[..2] == id.to_be_bytes()).then_some((Answer::Reached, String::new()))
            }
            // The id is where a port would be in the quoted packet, two words further on.
            _ => icmp_error(seen, addr, id),
        })
    }

    /// Waits for what `pick` takes as the answer to something sent at `start`.
    pub(crate) fn outcome(
        &mut self,
        start: Instant,
        limit: Duration,
        pick: impl FnMut(&Seen) -> Option<(Answer, String)>,
    ) -> Outcome {
        match self.wait_for(limit, pick) {
            Some((answer, how)) => Outcome::since(start, answer, how),
            None => Outcome::since(start, Answer::Silence, ""),
        }
    }

    /// Sends a TCP segment with honest ends.
    pub(crate) fn segment(&self, to: Ipv4Addr, segment: &Segment) {
        drop(self.send(&frame::tcp(self.to(to), segment)));
    }

    /// A SYN to somewhere, from a fresh port, without waiting for anything.
    pub fn syn(&mut self, to: Ipv4Addr, port: u16) -> Segment {
        let from = self.fresh_port();
        let flags = Flags { syn: true, ..Flags::default() };
        let segment = Segment { from, to: port, seq: 1000, flags, ..Segment::default() };
        self.segment(to, &segment);
        segment
    }
}

/// An ICMP error about our packet to `addr`, whose source port or echo id was `own`.
pub(crate) fn icmp_error(seen: &Seen, addr: Ipv4Addr, own: u16) -> Option<(Answer, String)> {
    let Some((_, _, Body::Icmp { kind: kind @ (3 | 11), code, data, .. })) = &seen.ip else {
        return None;
    };
    let quoted = data.get(usize::from(data.first()? & 0x0f) * 4..)?;
    let at = if *data.get(9)? == 1 { 4 } else { 0 };
    let ours = data.get(16..20)? == addr.octets() && quoted.get(at..at + 2)? == own.to_be_bytes();
    ours.then(|| (Answer::Refused, format!("icmp {kind}/{code}")))
}

/// A tap of no product: a guest on it is as free as the namespace's routes and rules let it be.
/// The interface goes with the descriptor.
///
/// # Errors
/// Without `CAP_NET_ADMIN` or `/dev/net/tun`, or if the name is taken or longer than 15 bytes.
pub fn plain_tap(ns: &Netns, name: &str) -> anyhow::Result<OwnedFd> {
    if name.len() >= 16 {
        anyhow::bail!("`{name}` is too long for an interface");
    }
    ns.run(|| {
        let device = std::fs::File::options().read(true).write(true).open("/dev/net/tun")?;
        attach(&device, name)?;
        Ok(OwnedFd::from(device))
    })
    .map_err(|e: std::io::Error| anyhow::Error::new(e).context(format!("cannot make tap {name}")))
}

/// `struct ifreq` as TUNSETIFF reads it, 40 bytes.
#[repr(C)]
struct Ifreq {
    name: [u8; 16],
    flags: u16,
    rest: [u8; 22],
}

#[expect(unsafe_code, reason = "no safe wrapper exists for TUNSETIFF")]
pub(crate) fn attach(device: &std::fs::File, name: &str) -> std::io::Result<()> {
    let flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    let mut request = Ifreq { name: [0; 16], flags, rest: [0; 22] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    // SAFETY: the kernel copies a `struct ifreq`, which this is; the name ends in a NUL because the
    // caller refused names of 16 bytes.
    unsafe { rustix::ioctl::ioctl(device, Setter::<TUNSETIFF, Ifreq>::new(request)) }?;
    Ok(())
}

#[expect(unsafe_code, reason = "no safe wrapper exists for TUNGETVNETHDRSZ")]
fn vnet_header_size(tap: &OwnedFd) -> rustix::io::Result<usize> {
    // SAFETY: the kernel writes exactly one int for this opcode (drivers/net/tun.c).
    let size = unsafe { rustix::ioctl::ioctl(tap, Getter::<TUNGETVNETHDRSZ, i32>::new()) }?;
    Ok(usize::try_from(size).unwrap_or(0))
}
