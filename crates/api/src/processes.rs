//! Background processes: the guest keeps them and their last output, whoever is connected.

use crate::Captured;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Processes that are kept of one VM at a time, ended ones included.
pub const MAX_PROCESSES: usize = 64;
/// Bytes of output that are kept of each, of both its streams together.
pub const PROCESS_OUTPUT: usize = 256 * 1024;

/// A process to start. Its standard input is `/dev/null`.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct StartProcess {
    /// Program and arguments, at least the program.
    pub argv: Vec<String>,
    /// Additional environment as pairs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<(String, String)>,
    /// Working directory; the user's home when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<String>,
    /// User name or number; root when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Kill it after this many milliseconds, at least 1; never when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// A background process, as its guest says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Process {
    /// Its number, from 1, which no other process of the VM has until its guest restarts.
    pub id: u32,
    /// Process id in the guest; once it has ended another one may have it.
    pub pid: u32,
    /// Program and arguments.
    pub argv: Vec<String>,
    /// The directory it was started in.
    pub cwd: String,
    /// Whose it is.
    pub user: String,
    /// When it was started, milliseconds since the epoch by the guest's clock.
    pub started_ms: i64,
    /// Whether it runs.
    pub state: ProcessState,
    /// Exit status, once it has ended; 128 + signal when a signal ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit_code: Option<i32>,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// True when its time-out ended it.
    #[serde(default)]
    pub timed_out: bool,
    /// Bytes it has written so far, of both its streams together.
    pub output_bytes: u64,
    /// Of these, the first ones, which are overwritten.
    pub dropped_bytes: u64,
}

/// Whether a process runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum ProcessState {
    /// It runs.
    Running,
    /// It ended by itself.
    Exited,
    /// A signal ended it.
    Killed,
}

impl std::fmt::Display for ProcessState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Running => "running",
            Self::Exited => "exited",
            Self::Killed => "killed",
        })
    }
}

/// What is kept of a process's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ProcessOutput {
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
    /// What to ask for with `since` to go on after this.
    pub next: u64,
    /// Bytes after `since` that were overwritten: they came before all of this.
    pub dropped: u64,
    /// True when it ran, so that more may come.
    pub running: bool,
}

/// A signal.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ProcessSignal {
    /// Its number, 1 to 64.
    pub signal: u8,
}
