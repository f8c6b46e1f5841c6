//! Opens one session with the agent. Owns the handshake and its bounds; refuses what follows,
//! which is the relay's.

use super::printable;
use super::wire::{self, FrameReader, WireError};
use crate::parts::{Machine, PartError};
use enisle_api::stream as api;
use enisle_guest_proto::{self as proto, Failure, Probe, ProbeAnswer, Reply, Request, VERSION};
use std::time::Duration;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};

/// The agent starts a process, opens a file or connects within this time: its own longest wait is
/// for eight addresses of a name, 10 s each.
const OPEN_PATIENCE: Duration = Duration::from_secs(85);

/// A batch's own patience is a second; the rest is for a slow guest.
const PROBE_PATIENCE: Duration = Duration::from_secs(30);

/// An open session.
pub(crate) struct Session {
    pub(crate) reader: FrameReader<OwnedReadHalf>,
    pub(crate) writer: OwnedWriteHalf,
    /// Process id in the guest, for an exec.
    pub(crate) pid: Option<u32>,
}

/// A session could not be opened.
#[derive(Debug, thiserror::Error)]
pub(crate) enum OpenError {
    /// The agent cannot be reached.
    #[error("cannot reach the guest's agent")]
    Connect(#[source] PartError),
    /// The request does not fit in one frame.
    #[error("the request is too long: arguments, environment and paths together fit in 16 KiB")]
    TooLong,
    /// The agent said no.
    #[error("{message}")]
    Refused {
        /// Class of the failure.
        code: proto::FailureCode,
        /// The agent's words, cleaned.
        message: String,
    },
    /// The connection is of no use.
    #[error(transparent)]
    Wire(#[from] WireError),
}

impl OpenError {
    pub(crate) fn refused(failure: &Failure) -> Self {
        Self::Refused { code: failure.code, message: printable(&failure.message) }
    }
}

/// Opens a session. A dropped future closes the connection, which ends the operation in the guest.
pub(crate) async fn open(machine: &dyn Machine, request: Request) -> Result<Session, OpenError> {
    let stream = machine.connect().await.map_err(OpenError::Connect)?;
    let (read, mut writer) = stream.into_split();
    match wire::send(&mut writer, &proto::Open { version: VERSION, request }).await {
        Err(WireError::Frame(proto::FrameError::TooLong(_))) => return Err(OpenError::TooLong),
        sent => sent?,
    }
    let mut reader = FrameReader::new(read);
    match reader.message(OPEN_PATIENCE, "answer").await? {
        Reply::Opened { pid } => Ok(Session { reader, writer, pid }),
        Reply::Refused(failure) => Err(OpenError::refused(&failure)),
        Reply::Probed { .. } => Err(WireError::Protocol("answers to probes that nobody sent").into()),
    }
}

/// Has a batch of probes sent; what the guest says became of each. Claims, no more.
pub(crate) async fn probe(machine: &dyn Machine, batch: Probe) -> Result<Vec<ProbeAnswer>, OpenError> {
    let stream = machine.connect().await.map_err(OpenError::Connect)?;
    let (read, mut writer) = stream.into_split();
    let request = Request::Probe(batch);
    match wire::send(&mut writer, &proto::Open { version: VERSION, request }).await {
        Err(WireError::Frame(proto::FrameError::TooLong(_))) => return Err(OpenError::TooLong),
        sent => sent?,
    }
    match FrameReader::new(read).message(PROBE_PATIENCE, "answer the probes").await? {
        Reply::Probed { answers } => Ok(answers),
        Reply::Refused(failure) => Err(OpenError::refused(&failure)),
        Reply::Opened { .. } => Err(WireError::Protocol("a session instead of answers").into()),
    }
}

/// A client's request in the words of the guest's protocol.
pub(crate) fn request(open: api::Open) -> Request {
    match open {
        api::Open::Exec(exec) => Request::Exec(proto::Exec {
            argv: exec.argv,
            env: exec.env,
            cwd: exec.cwd,
            user: exec.user,
            tty: exec.tty.map(|tty| proto::Tty { rows: tty.rows, cols: tty.cols, term: tty.term }),
            timeout_ms: exec.timeout_ms,
        }),
        api::Open::ArchiveOut { path, raw } => Request::ArchiveOut { path, raw },
        api::Open::ArchiveIn { path, raw } => Request::ArchiveIn { path, raw },
        api::Open::ConnectTcp { host, port } => Request::Connect(proto::Target::Tcp { host, port }),
        api::Open::Attach { id, since } => Request::Process(proto::ProcessOp::Attach { id, since }),
        api::Open::ConnectUnix { path } => Request::Connect(proto::Target::Unix { path }),
    }
}

/// A class of failure in the words of the API.
pub(crate) fn failure_class(code: proto::FailureCode) -> api::GuestFailure {
    match code {
        proto::FailureCode::Invalid => api::GuestFailure::Invalid,
        proto::FailureCode::NotFound => api::GuestFailure::NotFound,
        proto::FailureCode::Denied => api::GuestFailure::Denied,
        proto::FailureCode::NoSpace => api::GuestFailure::NoSpace,
        proto::FailureCode::Unreachable => api::GuestFailure::Unreachable,
        proto::FailureCode::Version
        | proto::FailureCode::Exhausted
        | proto::FailureCode::Ended
        | proto::FailureCode::Failed => api::GuestFailure::Failed,
    }
}
