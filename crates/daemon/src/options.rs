//! What `enisle up` is told, and what it answers to the shell.
//!
//! Owns: the options as plain data and the exit codes. Refuses: a command line, which is the CLI's.

use crate::fault::FaultPlan;
use std::net::SocketAddr;
use std::path::PathBuf;

/// Options of [`crate::run`].
#[derive(Debug, Clone)]
pub struct UpOptions {
    /// The configuration file.
    pub file: PathBuf,
    /// Only judge the file; start nothing.
    pub check: bool,
    /// Whether running VMs end with this daemon and begin with it.
    pub vms: VmsPolicy,
    /// A loopback address on which the API is served without TLS and without tokens: any process of
    /// this host may then do everything. Another address is refused.
    pub insecure_loopback: Option<SocketAddr>,
    /// How log lines look.
    pub log_format: LogFormat,
    /// A level, or directives as `tracing-subscriber` has them: `info,enisle_net=debug`.
    pub log_level: String,
    /// Test hook, see [`FaultPlan`].
    pub faults: FaultPlan,
}

/// What happens to running VMs at the daemon's ends.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct VmsPolicy {
    /// Asked to stop, it leaves them running for the next start to adopt.
    pub keep: bool,
    /// At its start it removes what an earlier run left running, instead of adopting it.
    pub stop: bool,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    #[default]
    Human,
    /// One JSON object a line.
    Json,
}

/// Exit codes of `enisle up`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitCode {
    /// It was asked to stop and everything it had made is gone, or the file is right (`check`).
    Stopped = 0,
    /// It could not start, or could not remove all it had made; the log says what and why.
    Failed = 1,
    /// The configuration is wrong; nothing was touched.
    BadConfig = 2,
}
