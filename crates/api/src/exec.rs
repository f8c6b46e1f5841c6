//! A process run to its end in one request: for scripts, which want its outcome and no stream.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most bytes of standard output, and of standard error, that an outcome holds.
pub const MAX_CAPTURED: usize = 1024 * 1024;
/// How long a process may take unless the request says otherwise, in milliseconds.
pub const RUN_DEFAULT_MS: u64 = 60_000;
/// How long it may take at most, in milliseconds: an hour.
pub const RUN_MAX_MS: u64 = 3_600_000;

/// A process to run to its end.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct RunExec {
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
    /// Standard input as text; empty when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<String>,
    /// Standard input as base64 (RFC 4648 §4), instead of `stdin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin_base64: Option<String>,
    /// Kill the process after this many milliseconds, 1 to 3600000. Default 60000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// How a process ended, and what it wrote.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RunOutcome {
    /// Exit status; 128 + signal when a signal ended it.
    pub exit_code: i32,
    /// The signal that ended it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub signal: Option<u8>,
    /// True when the time-out ended it.
    pub timed_out: bool,
    /// Standard output.
    pub stdout: Captured,
    /// Standard error.
    pub stderr: Captured,
}

/// What a process wrote, from its beginning.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Captured {
    /// How `data` is written.
    pub encoding: Encoding,
    /// At most 1 MiB of it.
    pub data: String,
    /// True when there was more, which is lost.
    pub truncated: bool,
    /// How many bytes there were.
    pub bytes: u64,
}

/// How bytes are written in JSON.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum Encoding {
    /// They are text.
    Utf8,
    /// RFC 4648 §4: they are not.
    Base64,
}
