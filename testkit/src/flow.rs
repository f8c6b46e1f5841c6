//! A TCP connection of the tap guest: enough of RFC 9293 for a path that loses nothing.
//!
//! Owns: handshake, echo, reading a stream, reset. Refuses: retransmission, reordering; a test that
//! would need them has found a fault.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use crate::frame::{Body, Flags, Seen, Segment};
use crate::probe::{Answer, Outcome};
use crate::tap::{TapGuest, icmp_error};

const ACK: Flags = Flags { syn: false, ack: true, rst: false, fin: false };

/// An open connection.
#[derive(Debug, Clone, Copy)]
pub struct Flow {
    peer: Ipv4Addr,
    peer_port: u16,
    port: u16,
    seq: u32,
    ack: u32,
}

impl Flow {
    /// Shakes hands.
    ///
    /// # Errors
    /// The outcome, when the answer was not a SYN-ACK.
    pub fn open(
        guest: &mut TapGuest,
        peer: Ipv4Addr,
        peer_port: u16,
        limit: Duration,
    ) -> Result<Flow, Outcome> {
        let start = Instant::now();
        let syn = guest.syn(peer, peer_port);
        let mut flow = Flow { peer, peer_port, port: syn.from, seq: syn.seq + 1, ack: 0 };
        let outcome = guest.outcome(start, limit, |seen| match flow.incoming(seen) {
            Some(s) if s.flags.rst => Some((Answer::Refused, "reset".to_owned())),
            Some(s) if s.flags.syn && s.flags.ack => {
                flow.ack = s.seq.wrapping_add(1);
                Some((Answer::Reached, String::new()))
            }
            _ => icmp_error(seen, peer, flow.port),
        });
        if !outcome.reached() {
            return Err(outcome);
        }
        flow.send(guest, ACK, &[]);
        Ok(flow)
    }

    /// The guest's port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Sends `data` and waits until all of it came back.
    pub fn echo(&mut self, guest: &mut TapGuest, data: &[u8], limit: Duration) -> Outcome {
        let start = Instant::now();
        self.send(guest, ACK, data);
        let mut back = Vec::new();
        guest.outcome(start, limit, |seen| {
            let Some(segment) = self.incoming(seen) else {
                return icmp_error(seen, self.peer, self.port);
            };
            if segment.flags.rst {
                return Some((Answer::Refused, "reset".to_owned()));
            }
            if segment.seq == self.ack {
                self.ack = self.ack.wrapping_add(segment.data.len() as u32);
                back.extend_from_slice(&segment.data);
            }
            (back == data).then_some((Answer::Reached, String::new()))
        })
    }

    /// Reads and acknowledges for `time`, or until the peer resets. Bytes read, and whether it did.
    /// A source that never pauses does not make it longer: this flow has no retransmission, so each
    /// segment more is one more that may be lost.
    pub fn drain(&mut self, guest: &mut TapGuest, time: Duration) -> (usize, bool) {
        let end = Instant::now() + time;
        let mut total = 0;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return (total, false);
            }
            let Some(segment) = guest.wait_for(left, |seen| self.incoming(seen).cloned()) else {
                return (total, false);
            };
            if segment.flags.rst {
                return (total, true);
            }
            if segment.seq == self.ack {
                self.ack = self.ack.wrapping_add(segment.data.len() as u32);
                total += segment.data.len();
            }
            self.send(guest, ACK, &[]);
        }
    }

    /// Gives the connection up.
    pub fn reset(&mut self, guest: &TapGuest) {
        self.send(guest, Flags { rst: true, ..ACK }, &[]);
    }

    fn send(&mut self, guest: &TapGuest, flags: Flags, data: &[u8]) {
        let segment = Segment {
            from: self.port,
            to: self.peer_port,
            seq: self.seq,
            ack: self.ack,
            flags,
            data: data.to_vec(),
        };
        guest.segment(self.peer, &segment);
        self.seq = self.seq.wrapping_add(data.len() as u32);
    }

    /// A segment of this connection.
    fn incoming<'s>(&self, seen: &'s Seen) -> Option<&'s Segment> {
        match &seen.ip {
            Some((src, _, Body::Tcp(s)))
                if (*src, s.from, s.to) == (self.peer, self.peer_port, self.port) =>
            {
                Some(s)
            }
            _ => None,
        }
    }
}
