//! What can go wrong between a client and the daemon. Owns the classes and what to do about
//! each; refuses to print.

use enisle_api::stream::GuestFailure;
use enisle_api::{Code, Problem};
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A failed request or stream.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// Nobody listens on the socket, or there is none.
    #[error("the daemon is not running at {}", path.display())]
    NotRunning {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The socket may not be used by this user.
    #[error("no permission to use the daemon's socket {}", path.display())]
    Denied {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Connecting failed for another reason.
    #[error("cannot connect to the daemon at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// Nothing answers at the address.
    #[error("nothing answers at {at}")]
    Unreachable {
        /// The address.
        at: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The other end is not the daemon that is meant, or TLS failed.
    #[error("{at}: {why}")]
    Tls {
        /// The address.
        at: String,
        /// What is wrong.
        why: String,
        /// What to do about it.
        hint: Option<String>,
    },
    /// The connection broke under a request.
    #[error("the connection to the daemon broke during {request}")]
    Http {
        /// Method and path.
        request: String,
        /// What hyper saw.
        source: hyper::Error,
    },
    /// The daemon did not answer in time.
    #[error("the daemon did not answer {request} within {} s", limit.as_secs())]
    Timeout {
        /// Method and path, or what was waited for.
        request: String,
        /// The bound.
        limit: Duration,
    },
    /// The daemon refused or failed the request.
    #[error(transparent)]
    Problem(Box<Problem>),
    /// The guest refused or failed the operation.
    #[error("{problem}")]
    Guest {
        /// Class of the failure.
        failure: GuestFailure,
        /// The problem as the daemon reported it.
        problem: Box<Problem>,
    },
    /// The peer does not speak this version of the API.
    #[error("the daemon's answer to {request} is not what this client understands: {why}")]
    Protocol {
        /// Method and path, or the stream.
        request: String,
        /// What was wrong with it.
        why: String,
    },
    /// A stream ended without an exit message.
    #[error("the stream to {vm} broke before its end")]
    Broken {
        /// The VM.
        vm: String,
    },
}

impl Error {
    /// What the user can do about it, where there is something.
    #[must_use]
    pub fn hint(&self) -> Option<String> {
        Some(match self {
            Self::NotRunning { .. } => {
                "start it with `sudo enisle up`, or name another with --api or --context".into()
            }
            Self::Unreachable { .. } => {
                "is the daemon running there, with `listen` in its file, and no firewall between?".into()
            }
            Self::Tls { hint, .. } => return hint.clone(),
            Self::Denied { path, .. } => format!(
                "run it with sudo, or join the group that owns the socket (`stat -c %G {}`)",
                path.display()
            ),
            Self::Problem(problem) | Self::Guest { problem, .. } => return problem.hint.clone(),
            Self::Protocol { .. } => {
                "the daemon and this program may be of different versions; restart the daemon".into()
            }
            Self::Http { .. } | Self::Broken { .. } => {
                "see the daemon's log: it may have been stopped, or the VM may have ended".into()
            }
            Self::Timeout { .. } | Self::Connect { .. } => "see the daemon's log".into(),
        })
    }

    /// The daemon's code, when the daemon answered.
    #[must_use]
    pub fn code(&self) -> Option<Code> {
        match self {
            Self::Problem(problem) | Self::Guest { problem, .. } => Some(problem.code),
            _ => None,
        }
    }

    /// For writing an [`Error`] where only `io::Error` fits, as in `AsyncRead`.
    pub(crate) fn to_io(&self) -> io::Error {
        let kind = match self {
            Self::Guest { failure: GuestFailure::NoSpace, .. } => io::ErrorKind::StorageFull,
            Self::Broken { .. } => io::ErrorKind::UnexpectedEof,
            _ => io::ErrorKind::ConnectionReset,
        };
        io::Error::new(kind, self.to_string())
    }
}

impl From<Problem> for Error {
    fn from(problem: Problem) -> Self {
        Self::Problem(Box::new(problem))
    }
}
