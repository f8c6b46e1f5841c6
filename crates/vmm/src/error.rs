//! Owns the errors of this crate: which microVM, which step, why, and what the VMM said.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why an operation on a microVM failed.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// A microVM could not be launched. All that had been made for it is gone again.
    #[error("microVM {vm}: could not {step}{said}")]
    Launch {
        /// The microVM's name.
        vm: String,
        /// The step that failed.
        step: Step,
        /// The last lines the VMM's processes wrote, if any.
        said: Said,
        /// What failed.
        #[source]
        source: Cause,
    },
    /// A running microVM did not do what it was told.
    #[error("microVM {vm}: could not {action}")]
    Control {
        /// The microVM's name.
        vm: String,
        /// What it was told.
        action: &'static str,
        /// What failed.
        #[source]
        source: Cause,
    },
    /// A microVM of another daemon is not alive and whole.
    #[error("microVM {vm}: not there to be adopted")]
    NoSurvivor {
        /// The microVM's name.
        vm: String,
        /// What is missing.
        #[source]
        source: Cause,
    },
    /// A running microVM could not be taken over; it is as it was.
    #[error("microVM {vm}: could not be adopted")]
    Adopt {
        /// The microVM's name.
        vm: String,
        /// What failed.
        #[source]
        source: Cause,
    },
    /// No back end can be used on this machine.
    #[error("no usable VMM on this machine")]
    Unusable(#[source] Cause),
    /// Processes or control groups of a former run could not be removed.
    #[error("could not remove the left-over processes of scope {scope}")]
    Leftovers {
        /// The scope whose control groups were swept.
        scope: String,
        /// What failed.
        #[source]
        source: Cause,
    },
}

/// The steps of a launch, in order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Step {
    /// The description itself.
    Validate,
    /// The run directory and the listening sockets in it.
    Sockets,
    /// Kernel, initramfs and disks.
    Files,
    /// The console's log file and connection.
    Console,
    /// The control group, its limits, and their reading back.
    Cgroup,
    /// The vsock device process.
    VsockDevice,
    /// The VMM process.
    Spawn,
    /// The control connection to the VMM.
    Control,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Validate => "accept its description",
            Self::Sockets => "prepare its sockets",
            Self::Files => "open its files",
            Self::Console => "prepare its console",
            Self::Cgroup => "make its control group",
            Self::VsockDevice => "start its vsock device",
            Self::Spawn => "start its VMM process",
            Self::Control => "talk to its VMM",
        })
    }
}

/// The last lines a process wrote to its standard error, for a message.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Said(pub String);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = self.0.trim_end();
        if text.is_empty() {
            return Ok(());
        }
        write!(f, " (its processes said: {})", text.replace('\n', "; "))
    }
}

/// The reason under a [`VmmError`].
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Cause {
    /// A field of the description is out of its range.
    #[error("`{field}` {reason}")]
    Invalid {
        /// The field of [`crate::MachineSpec`].
        field: &'static str,
        /// What it must be.
        reason: String,
    },
    /// A system call on a file, directory or socket failed.
    #[error("{action} {}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which object.
        path: PathBuf,
        /// The kernel's answer.
        #[source]
        source: io::Error,
    },
    /// A file is there and cannot be used as it is.
    #[error("{} {problem}", path.display())]
    Unsuitable {
        /// The file.
        path: PathBuf,
        /// What is wrong with it and what would mend it.
        problem: String,
    },
    /// A program is nowhere it was looked for.
    #[error("{program} was not found; looked at {looked_at}")]
    MissingProgram {
        /// The program's file name.
        program: &'static str,
        /// The places, in order.
        looked_at: String,
    },
    /// A process of the VM ended before it was of use.
    #[error("{process} ended early: {status}")]
    Ended {
        /// Which process.
        process: &'static str,
        /// How it ended.
        status: String,
    },
    /// Something did not happen in the time it is given.
    #[error("{what} took longer than {} ms", limit.as_millis())]
    TimedOut {
        /// What was waited for.
        what: &'static str,
        /// How long.
        limit: Duration,
    },
    /// The VMM refused a command.
    #[error("the VMM refused `{command}`: {answer}")]
    Refused {
        /// The command.
        command: &'static str,
        /// The VMM's own words.
        answer: String,
    },
    /// The VMM's control connection broke its protocol or ended.
    #[error("the VMM's control connection failed: {0}")]
    Protocol(String),
    /// The microVM is no longer running.
    #[error("it is not running any more")]
    Gone,
    /// The machine lacks something.
    #[error("{0}")]
    Unsupported(String),
}

impl Cause {
    pub(crate) fn invalid(field: &'static str, reason: impl Into<String>) -> Self {
        Self::Invalid { field, reason: reason.into() }
    }

    pub(crate) fn io(action: &'static str, path: impl AsRef<Path>, source: impl Into<io::Error>) -> Self {
        Self::Io { action, path: path.as_ref().to_owned(), source: source.into() }
    }
}

/// `map_err` for system calls on a named object.
pub(crate) trait OnPath<T> {
    fn on(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, Cause>;
}

impl<T, E: Into<io::Error>> OnPath<T> for Result<T, E> {
    fn on(self, action: &'static str, path: impl AsRef<Path>) -> Result<T, Cause> {
        self.map_err(|source| Cause::io(action, path, source))
    }
}
