//! The client itself: one method a route. Owns time bounds and types of each; refuses retries,
//! which only the caller can judge.

use crate::connection::{self, Ask};
use crate::handles::{ArchiveIn, ArchiveOut, Connection, Exec};
use crate::remote::{Remote, Secret};
use crate::session::Session;
use crate::trust::Trust;
use crate::{Endpoint, Error};
use bytes::Bytes;
use enisle_api::stream::Open;
use enisle_api::{
    CreateVm, Group, Health, RUN_DEFAULT_MS, RunExec, RunOutcome, Verified, Verify, Version, Vm, routes,
};
use http::{Method, Response};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use serde::de::DeserializeOwned;
use std::sync::Arc;
use std::time::Duration;

/// Bound of requests that only read.
pub(crate) const READ_LIMIT: Duration = Duration::from_secs(30);
/// Bound of pausing and resuming, which the kernel does at once.
const HALT_LIMIT: Duration = Duration::from_secs(30);
/// Bound of a removal: a graceful stop is bounded by the daemon well below this.
const DELETE_LIMIT: Duration = Duration::from_secs(180);
/// The daemon's own bound of a creation with `wait`, see [`CreateVm::timeout_ms`].
const CREATE_DEFAULT: Duration = Duration::from_secs(120);
/// What the daemon gets on top of its own bound to undo a creation and to answer.
const CREATE_MARGIN: Duration = Duration::from_secs(60);

/// What the daemon gets on top of a process's time: for a VM that boots, for its turn, for a guest that is slow.
const RUN_MARGIN: Duration = Duration::from_secs(330);
/// What the daemon gets on top of a creation to ask every row, to remove the VM and to answer.
const VERIFY_LIMIT: Duration = Duration::from_secs(420);

/// A client of one daemon. Cheap to clone; holds no connection.
#[derive(Debug, Clone)]
pub struct Client {
    pub(crate) endpoint: Arc<Remote>,
}

impl Client {
    /// A client of the daemon at `endpoint`. Connects with the first request.
    #[must_use]
    pub fn new(endpoint: Endpoint) -> Self {
        Self::remote(endpoint, Trust::System, None)
    }

    /// The same for a daemon over TLS: whom to believe that it is the one, and the token to show it. Neither
    /// matters for a unix socket, and no token is sent without TLS.
    #[must_use]
    pub fn remote(endpoint: Endpoint, trust: Trust, secret: Option<Secret>) -> Self {
        Self { endpoint: Arc::new(Remote::new(endpoint, trust, secret)) }
    }

    /// Where the daemon is expected.
    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint.endpoint
    }

    /// Whether the daemon answers. At most 30 s.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn health(&self) -> Result<Health, Error> {
        self.get(routes::HEALTH).await
    }

    /// What runs there. At most 30 s.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn version(&self) -> Result<Version, Error> {
        self.get(routes::VERSION).await
    }

    /// The host groups as configured. At most 30 s.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn groups(&self) -> Result<Vec<Group>, Error> {
        self.get(routes::GROUPS).await
    }

    /// Every VM of the daemon. At most 30 s.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn vms(&self) -> Result<Vec<Vm>, Error> {
        self.get(routes::VMS).await
    }

    /// The VMs that have all of these labels, each `KEY` or `KEY=VALUE`. At most 30 s.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn vms_with(&self, labels: &[String]) -> Result<Vec<Vm>, Error> {
        self.get(&routes::vms(labels)).await
    }

    /// One VM. At most 30 s.
    ///
    /// # Errors
    /// `not_found` when there is none of this name; else see [`Error`].
    pub async fn vm(&self, name: &str) -> Result<Vm, Error> {
        self.get(&routes::vm(name)).await
    }

    /// Makes a VM. With `wait` it returns when exec would work, within the request's time-out.
    ///
    /// Dropping the future leaves the daemon to finish what it began.
    ///
    /// # Errors
    /// The daemon's problem; else see [`Error`].
    pub async fn create_vm(&self, create: &CreateVm) -> Result<Vm, Error> {
        self.create(create, &[]).await
    }

    /// The same under an idempotency key, 1 to 255 printable ASCII characters of the caller's choice: asked
    /// again within a day under the same key it returns the same VM, so that it may be called again when the
    /// connection broke. A key whose VM never became ready is free again when that VM is gone.
    ///
    /// # Errors
    /// `key_reused` when the key stands for another request, `gone` when its VM is gone; else as
    /// [`Client::create_vm`].
    pub async fn create_vm_once(&self, create: &CreateVm, key: &str) -> Result<Vm, Error> {
        self.create(create, &[("idempotency-key", key)]).await
    }

    async fn create(&self, create: &CreateVm, headers: &[(&str, &str)]) -> Result<Vm, Error> {
        let ask = Ask { method: &Method::POST, path: routes::VMS };
        let json = serde_json::to_vec(create).map_err(|e| ask.protocol(e.to_string()))?;
        let wait = create.timeout_ms.map_or(CREATE_DEFAULT, Duration::from_millis);
        let limit = wait.saturating_add(CREATE_MARGIN);
        bounded(ask, limit, async {
            read_json(ask, connection::request_with(&self.endpoint, ask, Some(json), headers).await?).await
        })
        .await
    }

    /// Tests the isolation of a VM, or of one that the daemon makes for it and removes again.
    /// At most the time of a creation and five minutes.
    ///
    /// # Errors
    /// The daemon's problem; a test that fails is no error but [`Verified::ok`] false.
    pub async fn verify(&self, verify: &Verify) -> Result<Verified, Error> {
        let ask = Ask { method: &Method::POST, path: routes::VERIFY };
        let json = serde_json::to_vec(verify).map_err(|e| ask.protocol(e.to_string()))?;
        let wait = verify.timeout_ms.map_or(CREATE_DEFAULT, Duration::from_millis);
        bounded(ask, wait.saturating_add(VERIFY_LIMIT), async {
            read_json(ask, connection::request(&self.endpoint, ask, Some(json)).await?).await
        })
        .await
    }

    /// Stops and removes a VM with everything that was its own. At most 180 s.
    ///
    /// # Errors
    /// `not_found` when there is none of this name; else see [`Error`].
    pub async fn delete_vm(&self, name: &str) -> Result<(), Error> {
        let path = routes::vm(name);
        let ask = Ask { method: &Method::DELETE, path: &path };
        bounded(ask, DELETE_LIMIT, connection::request(&self.endpoint, ask, None)).await.map(drop)
    }

    /// Halts a running VM's processors; its memory stays. One that is paused is left so. At most 30 s.
    ///
    /// # Errors
    /// `not_found` when there is none of this name, `wrong_state` when it does not run; else see [`Error`].
    pub async fn pause_vm(&self, name: &str) -> Result<Vm, Error> {
        self.halt(&routes::vm_pause(name)).await
    }

    /// Lets a paused VM run on. One that runs is left so. At most 30 s.
    ///
    /// # Errors
    /// As of [`Client::pause_vm`].
    pub async fn resume_vm(&self, name: &str) -> Result<Vm, Error> {
        self.halt(&routes::vm_resume(name)).await
    }

    async fn halt(&self, path: &str) -> Result<Vm, Error> {
        let ask = Ask { method: &Method::POST, path };
        let asked = async { read_json(ask, connection::request(&self.endpoint, ask, None).await?).await };
        bounded(ask, HALT_LIMIT, asked).await
    }

    /// The serial console of a VM from its start; with `follow` it goes on until the VM is gone.
    ///
    /// # Errors
    /// `not_found` when there is none of this name; else see [`Error`].
    pub async fn logs(&self, name: &str, follow: bool) -> Result<LogStream, Error> {
        self.log(&routes::vm_log(name, follow)).await
    }

    /// What the VMM of a VM and its helpers wrote last, with the program's name before each line.
    ///
    /// # Errors
    /// `not_found` when there is none of this name; else see [`Error`].
    pub async fn vmm_log(&self, name: &str) -> Result<LogStream, Error> {
        self.log(&routes::vmm_log(name)).await
    }

    async fn log(&self, path: &str) -> Result<LogStream, Error> {
        let ask = Ask { method: &Method::GET, path };
        let response = bounded(ask, READ_LIMIT, connection::request(&self.endpoint, ask, None)).await?;
        Ok(LogStream::new(ask, response))
    }

    /// Runs a process to its end in a VM and returns what it wrote, at most 1 MiB of each stream. At most the
    /// request's time-out and five and a half minutes. Dropping the future kills the process.
    ///
    /// # Errors
    /// `not_found` when there is no such VM or program; else see [`Error`].
    pub async fn run(&self, vm: &str, run: &RunExec) -> Result<RunOutcome, Error> {
        let path = routes::vm_exec(vm);
        let ask = Ask { method: &Method::POST, path: &path };
        let json = serde_json::to_vec(run).map_err(|e| ask.protocol(e.to_string()))?;
        let limit = Duration::from_millis(run.timeout_ms.unwrap_or(RUN_DEFAULT_MS));
        bounded(ask, limit.saturating_add(RUN_MARGIN), async {
            read_json(ask, connection::request(&self.endpoint, ask, Some(json)).await?).await
        })
        .await
    }

    /// Starts a process in a VM. Returns when it runs.
    ///
    /// # Errors
    /// [`Error::Guest`] with the class `not_found` or `denied` when the guest cannot start it;
    /// else see [`Error`].
    pub async fn exec(&self, vm: &str, exec: enisle_api::stream::Exec) -> Result<Exec, Error> {
        Ok(Exec::new(Session::open(&self.endpoint, vm, &Open::Exec(exec)).await?))
    }

    /// Reads the file or directory at `path` in a VM as a tar stream, or with `raw` the bytes of
    /// one regular file.
    ///
    /// # Errors
    /// [`Error::Guest`] when the guest cannot read it; else see [`Error`].
    pub async fn archive_out(&self, vm: &str, path: &str, raw: bool) -> Result<ArchiveOut, Error> {
        let open = Open::ArchiveOut { path: path.to_owned(), raw };
        Ok(ArchiveOut::new(Session::open(&self.endpoint, vm, &open).await?))
    }

    /// Writes a tar stream to `path` in a VM, or with `raw` the bytes of one regular file.
    ///
    /// # Errors
    /// [`Error::Guest`] when the guest cannot write there; else see [`Error`].
    pub async fn archive_in(&self, vm: &str, path: &str, raw: bool) -> Result<ArchiveIn, Error> {
        let open = Open::ArchiveIn { path: path.to_owned(), raw };
        Ok(ArchiveIn::new(Session::open(&self.endpoint, vm, &open).await?))
    }

    /// Connects to TCP `host:port` as the VM sees it.
    ///
    /// # Errors
    /// [`Error::Guest`] with the class `unreachable` when nothing accepts there; else see [`Error`].
    pub async fn connect_tcp(&self, vm: &str, host: &str, port: u16) -> Result<Connection, Error> {
        let open = Open::ConnectTcp { host: host.to_owned(), port };
        Ok(Connection::new(Session::open(&self.endpoint, vm, &open).await?))
    }

    /// Connects to a unix stream socket in a VM.
    ///
    /// # Errors
    /// As [`Client::connect_tcp`].
    pub async fn connect_unix(&self, vm: &str, path: &str) -> Result<Connection, Error> {
        let open = Open::ConnectUnix { path: path.to_owned() };
        Ok(Connection::new(Session::open(&self.endpoint, vm, &open).await?))
    }

    pub(crate) async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, Error> {
        let ask = Ask { method: &Method::GET, path };
        bounded(ask, READ_LIMIT, async {
            read_json(ask, connection::request(&self.endpoint, ask, None).await?).await
        })
        .await
    }
}

pub(crate) async fn read_json<T: DeserializeOwned>(
    ask: Ask<'_>,
    response: Response<Incoming>,
) -> Result<T, Error> {
    let body = connection::read_body(ask, response).await?;
    serde_json::from_slice(&body).map_err(|e| ask.protocol(e.to_string()))
}

pub(crate) async fn bounded<T>(
    ask: Ask<'_>,
    limit: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    match tokio::time::timeout(limit, work).await {
        Ok(result) => result,
        Err(_) => Err(Error::Timeout { request: ask.to_string(), limit }),
    }
}

/// A serial console as it comes. Dropping it closes the connection.
#[derive(Debug)]
pub struct LogStream {
    request: String,
    body: Incoming,
}

impl LogStream {
    pub(crate) fn new(ask: Ask<'_>, response: Response<Incoming>) -> Self {
        Self { request: ask.to_string(), body: response.into_body() }
    }

    /// The next bytes, `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Http`] when the connection breaks.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| Error::Http { request: self.request.clone(), source })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }
}
