//! Background processes of the guest, which the agent owns: they outlive the session that started them, and the daemon.
//!
//! Owns: the types of one operation. All but [`ProcessOp::Attach`] and [`ProcessOp::Remove`] answer on
//! [`crate::Kind::Stdout`]: [`ProcessOp::Output`] with one [`OutputHead`] as a line of JSON, followed by what the
//! process wrote to its standard output, and on [`crate::Kind::Stderr`] what it wrote there; the others with one
//! [`ProcessInfo`] a line. Refuses: input, which such a process has none of (its standard input is `/dev/null`).
//!
//! These came after the first agents of this version of the protocol: one that does not know them closes the session.

use crate::Exec;
use serde::{Deserialize, Serialize};

/// Processes that are kept at a time, ended ones included.
pub const MAX_PROCESSES: usize = 64;
/// Bytes of output that are kept of each, of both its streams together; older ones are overwritten.
pub const RING: usize = 256 * 1024;

/// What is to be done.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "process", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProcessOp {
    /// Start one; it has no terminal. Its time-out, if there is one, goes on when the session is over.
    Start(Exec),
    /// Describe all of them, in the order of their start.
    List {},
    /// Describe one.
    Show {
        /// Its number.
        id: u32,
    },
    /// Send what is kept of its output, from byte `since` on.
    Output {
        /// Its number.
        id: u32,
        /// Bytes it had written before, of both streams together.
        since: u64,
    },
    /// Send its output from byte `since` on, as it comes, until it ends; then [`crate::Control::Exit`] is how it
    /// ended. Hanging up leaves it running.
    Attach {
        /// Its number.
        id: u32,
        /// Bytes it had written before, of both streams together.
        since: u64,
    },
    /// Send a signal to its process group.
    Signal {
        /// Its number.
        id: u32,
        /// 1 to 64.
        signal: u8,
    },
    /// Describe one once it has ended, or after this time.
    Wait {
        /// Its number.
        id: u32,
        /// Milliseconds.
        timeout_ms: u64,
    },
    /// Kill it, if it runs, with every process of its session, and forget it with its output.
    Remove {
        /// Its number.
        id: u32,
    },
}

/// One process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProcessInfo {
    /// Its number, from 1, which no other process has until the guest restarts.
    pub id: u32,
    /// Its process id while it runs.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The directory it was started in.
    pub cwd: String,
    /// Whose it is: a name, or a number without one.
    pub user: String,
    /// When it was started, milliseconds since the epoch by the guest's clock.
    pub started_ms: i64,
    /// Whether it runs.
    pub state: ProcessState,
    /// Bytes it has written so far, of both streams together.
    pub written: u64,
    /// Of these, those that were overwritten: the first ones.
    pub dropped: u64,
}

/// Whether a process runs, and how it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case", deny_unknown_fields)]
pub enum ProcessState {
    /// It runs.
    Running {},
    /// It ended.
    Ended {
        /// Exit status; 128 + signal when a signal ended it.
        code: i32,
        /// The signal that ended it.
        signal: Option<u8>,
        /// True when its time-out ended it.
        timed_out: bool,
    },
}

/// First line of the answer to [`ProcessOp::Output`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutputHead {
    /// Bytes after `since` that were overwritten before anybody asked for them.
    pub dropped: u64,
    /// True while it runs, so that more may come.
    pub running: bool,
}
