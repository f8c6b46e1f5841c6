//! Streams: exec, shell, file copy and forward over one WebSocket each.
//!
//! * Text messages are JSON control messages: the first is [`Open`] (client), answered by
//!   [`FromDaemon::Opened`] or [`FromDaemon::Failed`]; then [`ToDaemon`] and [`FromDaemon`].
//! * Binary messages are one byte with the stream's number, then at most [`MAX_DATA`] bytes:
//!   1 to the guest (stdin, archive in), 2 from the guest (stdout, archive out), 3 stderr.
//! * Each data stream starts with [`WINDOW`] bytes of credit, and the receiver gives back what it
//!   has consumed with a `window` message. Control messages need no credit, so that a signal
//!   never waits behind data that nobody reads.
//! * The last message is [`FromDaemon::Exit`] or [`FromDaemon::Failed`]. A connection that ends
//!   without one broke; what it started in the guest is killed.

use crate::Problem;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Initial credit of each data stream, in bytes.
pub const WINDOW: u32 = 64 * 1024;
/// Most data bytes in one binary message.
pub const MAX_DATA: usize = 16 * 1024 - 5;
/// Stream to the guest.
pub const STDIN: u8 = 1;
/// Stream from the guest.
pub const STDOUT: u8 = 2;
/// Second stream from the guest.
pub const STDERR: u8 = 3;

/// What a stream is for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Open {
    /// Run a process.
    Exec(Exec),
    /// The file or directory at `path` in the guest as a tar stream.
    ArchiveOut {
        /// Path in the guest; relative to `/root`.
        path: String,
        /// The bytes of one regular file instead of an archive.
        #[serde(default)]
        raw: bool,
    },
    /// Unpack a tar stream at `path` in the guest.
    ArchiveIn {
        /// An existing directory takes the entries inside; else the archive's single root gets
        /// this name in an existing parent directory.
        path: String,
        /// The stream is the content of one regular file at `path`.
        #[serde(default)]
        raw: bool,
    },
    /// Connect to TCP `host:port` as the guest sees it.
    ConnectTcp {
        /// Name or address.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
    /// The output of a background process as it comes, until it ends. The client's end leaves it running.
    Attach {
        /// Its number.
        id: u32,
        /// Only what it wrote after so many bytes, of both its streams together.
        #[serde(default)]
        since: u64,
    },
    /// Connect to a unix stream socket in the guest.
    ConnectUnix {
        /// Absolute path.
        path: String,
    },
}

/// A process to run in the guest.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments; empty runs the user's login shell.
    #[serde(default)]
    pub argv: Vec<String>,
    /// Additional environment as pairs.
    #[serde(default)]
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User name or number; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// A terminal for the process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<Tty>,
    /// Kill the process after this many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A terminal's size and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Tty {
    /// Rows, at least 1.
    pub rows: u16,
    /// Columns, at least 1.
    pub cols: u16,
    /// `TERM`.
    pub term: String,
}

/// Control messages of a client after [`Open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum ToDaemon {
    /// Credit for a stream from the guest.
    Window {
        /// 2 or 3.
        stream: u8,
        /// Bytes consumed.
        bytes: u32,
    },
    /// No more bytes to the guest.
    Eof {},
    /// New size of the terminal.
    Resize {
        /// Rows, at least 1.
        rows: u16,
        /// Columns, at least 1.
        cols: u16,
    },
    /// A signal for the process group.
    Signal {
        /// 1 to 64.
        signal: u8,
    },
}

/// Control messages of the daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum FromDaemon {
    /// The stream is open.
    Opened {
        /// Process id in the guest, for an exec.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pid: Option<u32>,
    },
    /// Credit for the stream to the guest.
    Window {
        /// 1.
        stream: u8,
        /// Bytes consumed.
        bytes: u32,
    },
    /// No more bytes on this stream.
    Eof {
        /// 2 or 3.
        stream: u8,
    },
    /// Of `attach`: so many bytes were overwritten before they could be sent; what follows comes after them.
    Dropped {
        /// Bytes of both streams together.
        bytes: u64,
    },
    /// The end.
    Exit {
        /// Exit status; 128 + signal when a signal ended the process; 0 for copies and forwards.
        code: i32,
        /// The signal that ended the process.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        signal: Option<u8>,
        /// True when the time-out ended it.
        #[serde(default)]
        timed_out: bool,
    },
    /// The end, by a failure.
    Failed {
        /// Class of the failure inside the guest, when it was there.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        guest: Option<GuestFailure>,
        /// The problem.
        problem: Problem,
    },
}

/// Classes of failure inside the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum GuestFailure {
    /// No such file, program, user or socket.
    NotFound,
    /// Not permitted, or not executable.
    Denied,
    /// The guest's disk is full.
    NoSpace,
    /// A connection was refused or could not be made.
    Unreachable,
    /// The request makes no sense to the guest.
    Invalid,
    /// Anything else.
    Failed,
}
