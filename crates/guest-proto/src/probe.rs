//! What the daemon has a guest send, to see what becomes of it (`enisle net verify`).
//!
//! Owns: the types of one batch. Refuses: any verdict. A guest's answers are claims: the daemon
//! looks at the wire itself, and what a guest says can only make a row fail or prove nothing.

use serde::{Deserialize, Serialize};
use std::net::SocketAddrV4;

/// Most items of one batch. With frames of 100 bytes each, a batch fits [`crate::MAX_FRAME`].
pub const MAX_PROBES: usize = 32;
/// Longest wait for the answers to one batch, in milliseconds.
pub const MAX_PROBE_PATIENCE_MS: u32 = 10_000;

/// One batch: everything is sent at once, then the answers to all are waited for together.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Probe {
    /// The interface that frames leave by.
    pub interface: String,
    /// At most [`MAX_PROBES`].
    pub items: Vec<ProbeItem>,
    /// What has no answer after this many milliseconds is silent; at most [`MAX_PROBE_PATIENCE_MS`].
    pub patience_ms: u32,
}

/// One thing to send.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProbeItem {
    /// Connect, as any program would.
    Tcp {
        /// Address and port.
        to: SocketAddrV4,
    },
    /// Send one datagram, as any program would.
    Udp {
        /// Address and port.
        to: SocketAddrV4,
        /// The datagram's content.
        payload: Vec<u8>,
    },
    /// Put a whole Ethernet frame on the interface, past the guest's own network stack.
    Frame {
        /// From the destination MAC on, without a checksum at the end.
        bytes: Vec<u8>,
    },
}

/// What the guest says became of one item.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeAnswer {
    /// What happened.
    pub claim: ProbeClaim,
    /// Milliseconds after the batch began.
    pub after_ms: u32,
}

/// How an item ended for the one who sent it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "claim", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProbeClaim {
    /// A frame is on its way; frames have no answer.
    Sent {},
    /// Connected, or a datagram came back.
    Answered {},
    /// The network said no: reset, or an ICMP error.
    Refused {
        /// errno(3) of the socket.
        errno: i32,
    },
    /// Nothing came in time.
    Silent {},
    /// It could not be sent.
    Failed {
        /// errno(3).
        errno: i32,
    },
}
