//! Background processes of a guest: one method a route, and [`Attached`]. Refuses to keep anything: the guest does.

use crate::Error;
use crate::client::{Client, bounded, read_json};
use crate::connection::{self, Ask};
use crate::output::Output;
use crate::remote::Remote;
use crate::session::{Controller, ExitStatus, Running, Session};
use enisle_api::stream::Open;
use enisle_api::{Process, ProcessOutput, ProcessSignal, StartProcess, routes};
use http::Method;
use serde::de::DeserializeOwned;
use std::time::Duration;

/// The daemon's own bound, a VM that boots, its turn, and the answer.
const LIMIT: Duration = Duration::from_secs(400);

async fn ask<T: DeserializeOwned>(
    endpoint: &Remote,
    ask: Ask<'_>,
    body: Option<Vec<u8>>,
    limit: Duration,
) -> Result<T, Error> {
    bounded(ask, limit, async { read_json(ask, connection::request(endpoint, ask, body).await?).await }).await
}

impl Client {
    /// Starts a process in a VM that goes on without this connection. Its input is `/dev/null`. At most 400 s.
    ///
    /// # Errors
    /// `exhausted` when the VM keeps 64 already, ended ones included; `not_found` when there is no such VM or
    /// program; else see [`Error`].
    pub async fn start_process(&self, vm: &str, start: &StartProcess) -> Result<Process, Error> {
        let path = routes::vm_processes(vm);
        let request = Ask { method: &Method::POST, path: &path };
        let json = serde_json::to_vec(start).map_err(|e| request.protocol(e.to_string()))?;
        ask(&self.endpoint, request, Some(json), LIMIT).await
    }

    /// The background processes of a VM, ended ones included, in the order of their start. At most 400 s.
    ///
    /// # Errors
    /// `not_found` when there is no such VM; else see [`Error`].
    pub async fn processes(&self, vm: &str) -> Result<Vec<Process>, Error> {
        let path = routes::vm_processes(vm);
        ask(&self.endpoint, Ask { method: &Method::GET, path: &path }, None, LIMIT).await
    }

    /// One background process. At most 400 s.
    ///
    /// # Errors
    /// `not_found` when there is no such VM or process; else see [`Error`].
    pub async fn process(&self, vm: &str, id: u32) -> Result<Process, Error> {
        let path = routes::vm_process(vm, id);
        ask(&self.endpoint, Ask { method: &Method::GET, path: &path }, None, LIMIT).await
    }

    /// What is kept of a background process's output after its first `since` bytes. At most 400 s.
    ///
    /// # Errors
    /// As [`Client::process`]; `invalid_request` when it has not written so much.
    pub async fn process_output(&self, vm: &str, id: u32, since: u64) -> Result<ProcessOutput, Error> {
        let path = routes::vm_process_output(vm, id, since);
        ask(&self.endpoint, Ask { method: &Method::GET, path: &path }, None, LIMIT).await
    }

    /// Sends a signal, 1 to 64, to a background process and its group. At most 400 s.
    ///
    /// # Errors
    /// As [`Client::process`]; `wrong_state` when it has ended.
    pub async fn signal_process(&self, vm: &str, id: u32, signal: u8) -> Result<(), Error> {
        let path = routes::vm_process_signal(vm, id);
        let ask = Ask { method: &Method::POST, path: &path };
        let json = serde_json::to_vec(&ProcessSignal { signal }).map_err(|e| ask.protocol(e.to_string()))?;
        bounded(ask, LIMIT, connection::request(&self.endpoint, ask, Some(json))).await.map(drop)
    }

    /// Waits for the end of a background process, at most `limit` (1 ms to an hour). The request itself takes
    /// at most 400 s more.
    ///
    /// # Errors
    /// As [`Client::process`]; `timeout` when it runs on.
    pub async fn wait_process(&self, vm: &str, id: u32, limit: Duration) -> Result<Process, Error> {
        let timeout_ms = u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        let path = routes::vm_process_wait(vm, id, timeout_ms);
        let request = Ask { method: &Method::GET, path: &path };
        ask(&self.endpoint, request, None, limit.saturating_add(LIMIT)).await
    }

    /// Kills a background process, if it runs, and forgets it with its output. At most 400 s.
    ///
    /// # Errors
    /// As [`Client::process`].
    pub async fn remove_process(&self, vm: &str, id: u32) -> Result<(), Error> {
        let path = routes::vm_process(vm, id);
        let ask = Ask { method: &Method::DELETE, path: &path };
        bounded(ask, LIMIT, connection::request(&self.endpoint, ask, None)).await.map(drop)
    }

    /// Follows the output of a background process after its first `since` bytes, until it ends.
    ///
    /// # Errors
    /// [`Error::Guest`] with the class `not_found` when there is no such process; else see [`Error`].
    pub async fn attach(&self, vm: &str, id: u32, since: u64) -> Result<Attached, Error> {
        let session = Session::open(&self.endpoint, vm, &Open::Attach { id, since }).await?;
        let Session { stdout, stderr, running, .. } = session;
        Ok(Attached { stdout: Some(stdout), stderr: Some(stderr), running })
    }
}

/// The output of a background process as it comes. Dropping it leaves the process running.
#[derive(Debug)]
pub struct Attached {
    /// Its standard output.
    pub stdout: Option<Output>,
    /// Its standard error.
    pub stderr: Option<Output>,
    running: Running,
}

impl Attached {
    /// Bytes that were asked for and overwritten before they could be sent, so far. With what was received they
    /// come to the offset to attach at another time.
    #[must_use]
    pub fn dropped(&self) -> u64 {
        self.running.dropped()
    }

    /// Sends signals to the process group, also while [`Attached::wait`] waits.
    #[must_use]
    pub fn controller(&self) -> Controller {
        self.running.controller.clone()
    }

    /// Waits for the end of the process. Output that was not taken is discarded. Dropping the future leaves the
    /// process running.
    ///
    /// # Errors
    /// The guest failed, or the connection broke before the process ended.
    pub async fn wait(self) -> Result<ExitStatus, Error> {
        let Self { stdout, stderr, running } = self;
        drop((stdout, stderr));
        running.wait().await
    }
}
