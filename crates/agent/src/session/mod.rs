//! Sessions: one connection from the daemon, one operation in the guest.
//!
//! Owns: the opening handshake, and the wiring of an operation's ends to the [`pump`]. A session
//! is one thread (two or three where an operation has one of its own) and never waits for another one. Refuses: who may connect;
//! the server has judged that.

mod archive;
mod background;
mod connect;
mod connection;
pub mod environment;
mod exec;
mod failure;
mod files;
mod input;
mod kept;
mod outgoing;
mod probe;
mod process;
mod pump;
mod raw;
mod ring;
mod watch;

use connection::{Connection, ConnectionError};
use enisle_guest_proto::{Control, Failure, FailureCode, Open, Probe, Reply, Request, VERSION};
use failure::failure;
use pump::{Job, Streams};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

/// The daemon sends [`Open`] within this time.
const OPEN_PATIENCE: Duration = Duration::from_secs(20);

/// An operation that has begun.
struct Running {
    pid: Option<u32>,
    streams: Streams,
    job: Box<dyn Job>,
}

/// Serves one session until its end; blocks.
pub fn serve(connection: OwnedFd) {
    // The peer is the daemon: it knows best why its own connection broke.
    let _: Result<(), ConnectionError> = serve_connection(connection);
}

fn serve_connection(connection: OwnedFd) -> Result<(), ConnectionError> {
    let mut connection = Connection::new(connection)?;
    let open: Open = connection.receive(Instant::now() + OPEN_PATIENCE)?;
    if open.version != VERSION {
        let message = format!("the daemon speaks protocol {}, this guest's agent {VERSION}", open.version);
        return refuse(connection, failure(FailureCode::Version, message));
    }
    let request = match open.request {
        Request::Probe(batch) => return answer_probe(connection, &batch),
        request => request,
    };
    match begin(request) {
        Ok(running) => {
            connection.queue(&Reply::Opened { pid: running.pid })?;
            pump::run(connection, running.streams, running.job)
        }
        Err(failure) => refuse(connection, failure),
    }
}

/// Refuses a session because there are too many.
pub fn refuse_full(connection: OwnedFd) {
    let message = format!("{} sessions are open in this VM already", crate::server::MAX_SESSIONS);
    let failure = failure(FailureCode::Failed, message);
    // As above: a daemon that is gone need not be told.
    let _: Result<(), ConnectionError> =
        Connection::new(connection).and_then(|connection| refuse(connection, failure));
}

fn refuse(mut connection: Connection, failure: Failure) -> Result<(), ConnectionError> {
    connection.queue(&Reply::Refused(failure))?;
    connection.close()
}

fn answer_probe(mut connection: Connection, batch: &Probe) -> Result<(), ConnectionError> {
    match probe::run(batch) {
        Ok(answers) => {
            connection.queue(&Reply::Probed { answers })?;
            connection.close()
        }
        Err(failure) => refuse(connection, failure),
    }
}

fn begin(request: Request) -> Result<Running, Failure> {
    match request {
        Request::Exec(request) => exec::begin(&request, Path::new("/")),
        Request::ArchiveOut { path, raw: false } => archive::begin_out(&path),
        Request::ArchiveIn { path, raw: false } => archive::begin_in(&path),
        Request::ArchiveOut { path, raw: true } => raw::begin_out(&path),
        Request::ArchiveIn { path, raw: true } => raw::begin_in(&path),
        Request::Connect(target) => connect::begin(&target),
        Request::Files(op) => files::begin(op),
        Request::Process(op) => background::begin(op),
        // Answered before: it has no streams.
        Request::Probe(_) => Err(failure(FailureCode::Invalid, "a probe has no streams".to_owned())),
    }
}

/// The last message of an operation that went well and has no exit status of its own.
const fn success() -> Control {
    Control::Exit { code: 0, signal: None, timed_out: false }
}
