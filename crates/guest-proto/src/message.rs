//! The messages themselves. Unknown fields are refused in both directions: the versions of both
//! sides are equal, so an unknown field is a defect or an attack.

use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// First message of the boot connection, agent to daemon.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hello {
    /// Must be [`crate::VERSION`].
    pub version: u16,
    /// The agent's crate version, for people.
    pub agent: String,
    /// True when the guest is set up already and only the connection is new (a restarted daemon).
    pub booted: bool,
}

/// What the guest is to be, daemon to agent, in answer to [`Hello`].
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// The daemon's protocol version.
    pub version: u16,
    /// Host name, at most 63 bytes.
    pub hostname: String,
    /// Static address of eth0; `None` leaves the guest without a network.
    pub net: Option<GuestNet>,
    /// Wall clock of the host in nanoseconds since the epoch.
    pub unix_time_ns: u64,
    /// Lines for `authorized_keys` of root and of uid 1000.
    pub ssh_keys: Vec<String>,
}

/// Written by hand so that keys do not reach logs by `{:?}`.
impl std::fmt::Debug for BootConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BootConfig")
            .field("hostname", &self.hostname)
            .field("net", &self.net)
            .finish_non_exhaustive()
    }
}

/// Static network of the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestNet {
    /// The guest's MAC address; finds the interface that becomes eth0.
    pub mac: [u8; 6],
    /// The guest's address.
    pub address: Ipv4Addr,
    /// Length of the on-link prefix, 30 for an isolated slot.
    pub prefix_len: u8,
    /// Default gateway.
    pub gateway: Ipv4Addr,
    /// Name servers for resolv.conf, at most 3 (resolv.conf(5)).
    pub dns: Vec<Ipv4Addr>,
    /// Link MTU in bytes.
    pub mtu: u16,
}

/// What the agent tells on the boot connection after its set-up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case", deny_unknown_fields)]
pub enum BootEvent {
    /// Network, root and hand-over are done: sessions are served from now on.
    Ready {},
    /// A step of the set-up failed; the guest does not become ready.
    Failed {
        /// The step, for people ("mount /dev/vda").
        step: String,
        /// The reason.
        error: String,
    },
    /// The first-boot script ended.
    UserdataDone {
        /// Its exit status, 128 + signal when a signal ended it.
        code: i32,
    },
}

/// What the daemon asks on the boot connection.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "command", rename_all = "snake_case", deny_unknown_fields)]
pub enum BootCommand {
    /// Stop the guest in an orderly way: its init's shutdown, or SIGTERM, sync and power-off.
    Shutdown {},
    /// A part of the first-boot script; the last part has `last: true`. Parts keep frames small.
    Userdata {
        /// UTF-8 text.
        part: String,
        /// True for the last part: the agent runs the script if this is the VM's first boot.
        last: bool,
    },
}

impl std::fmt::Debug for BootCommand {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Shutdown {} => f.write_str("Shutdown"),
            Self::Userdata { part, last } => write!(f, "Userdata({} bytes, last: {last})", part.len()),
        }
    }
}

/// First message of a session, daemon to agent.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Open {
    /// Must be [`crate::VERSION`].
    pub version: u16,
    /// What the session is for.
    pub request: Request,
}

/// What a session is for.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Run a process.
    Exec(Exec),
    /// Send the file or directory at `path` as a tar stream on [`crate::Kind::Stdout`].
    ArchiveOut {
        /// Absolute, or relative to `/root`. Its last component becomes the archive's root name
        /// unless `contents`.
        path: String,
        /// Send the raw bytes of one regular file instead of an archive.
        raw: bool,
    },
    /// Unpack the tar stream on [`crate::Kind::Stdin`] below or at `path`.
    ArchiveIn {
        /// Destination: an existing directory takes the entries inside it; otherwise the
        /// archive's single root gets this name, in an existing parent directory.
        path: String,
        /// The stream is the raw content of one regular file at `path`, with mode 0644.
        raw: bool,
    },
    /// Connect to a socket as the guest sees it and carry its bytes.
    Connect(Target),
    /// Look at, list, make or remove files.
    Files(crate::FileOp),
    /// Start, list, read, signal, wait for or remove background processes.
    Process(crate::ProcessOp),
    /// Send a batch of probes and say what became of each.
    Probe(crate::Probe),
}

/// A process to run.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exec {
    /// Program and arguments; empty runs the user's login shell.
    pub argv: Vec<String>,
    /// Additional environment as pairs; a later one wins.
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home when absent.
    pub cwd: Option<String>,
    /// User name or number, `None` is root.
    pub user: Option<String>,
    /// A terminal for the process; stdout and stderr are one stream then.
    pub tty: Option<Tty>,
    /// Kill the process after this many milliseconds.
    pub timeout_ms: Option<u64>,
}

/// A terminal's size and type.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tty {
    /// Rows, at least 1.
    pub rows: u16,
    /// Columns, at least 1.
    pub cols: u16,
    /// `TERM`.
    pub term: String,
}

/// A socket inside the guest, or reached from it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case", deny_unknown_fields)]
pub enum Target {
    /// TCP; the host may be a name the guest resolves.
    Tcp {
        /// Name or address.
        host: String,
        /// 1 to 65535.
        port: u16,
    },
    /// A unix stream socket.
    Unix {
        /// Absolute path.
        path: String,
    },
}

/// The agent's answer to [`Open`].
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case", deny_unknown_fields)]
pub enum Reply {
    /// The session is open.
    Opened {
        /// Process id in the guest, for an exec.
        pid: Option<u32>,
    },
    /// It is not.
    Refused(Failure),
    /// The answers to a [`Request::Probe`], in its order; the last message of its session.
    Probed {
        /// One for each item.
        answers: Vec<crate::ProbeAnswer>,
    },
}

/// A failure the agent reports, with a class a program can act on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Failure {
    /// Class of the failure.
    pub code: FailureCode,
    /// What failed, on which object, why. At most 4 KiB.
    pub message: String,
}

/// Classes of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureCode {
    /// Versions differ.
    Version,
    /// The request makes no sense.
    Invalid,
    /// No such file, program, user or socket.
    NotFound,
    /// Not permitted, not executable.
    Denied,
    /// The guest's disk is full or its quota used up.
    NoSpace,
    /// A connection was refused or could not be made.
    Unreachable,
    /// There are as many as there may be.
    Exhausted,
    /// The process has ended.
    Ended,
    /// Anything else.
    Failed,
}

/// Control messages of an open session, in both directions.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Control {
    /// The receiver of `stream` (1, 2 or 3) consumed this many bytes more.
    Window {
        /// The stream: a data [`crate::Kind`] as a number.
        stream: u8,
        /// Bytes given back.
        bytes: u32,
    },
    /// No more bytes will come on `stream`.
    Eof {
        /// The stream: a data [`crate::Kind`] as a number.
        stream: u8,
    },
    /// New size of the terminal. Daemon to agent.
    Resize {
        /// Rows, at least 1.
        rows: u16,
        /// Columns, at least 1.
        cols: u16,
    },
    /// Send a signal to the process and its group. Daemon to agent.
    Signal {
        /// Signal number, 1 to 64.
        signal: u8,
    },
    /// So many bytes of a process's output that were asked for were overwritten before they could be sent. Agent to
    /// daemon, before what follows them.
    Dropped {
        /// Bytes of both streams together.
        bytes: u64,
    },
    /// The operation ended; the last message of a session. Agent to daemon.
    Exit {
        /// Exit status, 128 + signal when a signal ended it; 0 for archives and forwards.
        code: i32,
        /// The signal that ended the process.
        signal: Option<u8>,
        /// True when the time-out ended it.
        timed_out: bool,
    },
    /// The operation failed after it was opened; the last message of a session. Agent to daemon.
    Failed(Failure),
}
