//! Messages between the daemon (host) and the guest agent, over vsock.
//!
//! Owns: the frame format, the message types, the flow-control rules, the limits. Refuses: IO
//! policy (who connects, time-outs), anything the HTTP API needs, anything a VMM needs.
//!
//! # Connections
//!
//! * **Boot**: the agent connects to `HOST_CID:BOOT_PORT` as soon as vsock works and again
//!   whenever that connection breaks. It sends [`Hello`], gets a [`BootConfig`] in answer, then
//!   reports [`BootEvent`]s; the daemon may send [`BootCommand`]s. Nothing is polled.
//! * **Session**: the daemon connects to the agent's `AGENT_PORT`, one connection for each
//!   operation: exec, archive, forward, files, processes, watch. It sends [`Open`]; the agent answers [`Reply::Opened`] or
//!   [`Reply::Refused`]; from then on both sides send [`Control`] and data frames. A [`Probe`] is
//!   answered by one [`Reply::Probed`], and that is all of its session.
//!
//! # Frames
//!
//! `u32` little-endian payload length, `u8` [`Kind`], payload. A whole frame is at most
//! [`MAX_FRAME`] bytes: writes over 32 KiB hang some 6.12 guests. Control payloads are JSON.
//!
//! # Flow control
//!
//! Each data stream of a session starts with [`WINDOW`] bytes of credit; the receiver gives back
//! what it has consumed with [`Control::Window`]. Control frames need no credit, so a signal or a
//! resize never waits behind data that nobody reads. A peer that sends beyond its credit broke
//! the protocol and loses the connection.

pub mod files;
pub mod frame;
pub mod message;
pub mod parts;
pub mod probe;
pub mod processes;
pub mod watch;

pub use files::*;
pub use frame::{
    Decoder, Frame, FrameError, HEADER, Header, Kind, MAX_FRAME, MAX_PAYLOAD, encode, encode_control,
};
pub use message::*;
pub use parts::{Part, Parts};
pub use probe::*;
pub use processes::*;
pub use watch::*;

/// Version of this protocol; both sides must have the same.
pub const VERSION: u16 = 1;
/// The host's context id as a guest sees it (`VMADDR_CID_HOST`, vsock(7)).
pub const HOST_CID: u32 = 2;
/// vsock port on the host the agent's boot connection goes to. Far from those that a vsock device gives the host's end
/// of each session, counting from 0: `vhost-device-vsock` 0.3 opens no session any more once its count comes to a port
/// that the guest has connected to (`allocate_local_port`).
pub const BOOT_PORT: u32 = 0xf000_0400;
/// vsock port on which the agent listens for sessions.
pub const AGENT_PORT: u32 = 1024;
/// Initial credit of each data stream of a session, in bytes.
pub const WINDOW: u32 = 64 * 1024;
