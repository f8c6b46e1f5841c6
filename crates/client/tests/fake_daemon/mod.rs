//! A daemon for tests: the real API on a real socket, with processes, files and sockets of this
//! machine in a temporary directory instead of a guest's. It holds clients to the flow control
//! of `enisle_api::stream` and writes down who breaks it.
//!
//! VMs with the names in [`Misbehaviour`] break the protocol themselves.

mod guest;
mod relay;

use axum::Json;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use enisle_api::stream::{FromDaemon, Open, STDIN, STDOUT};
use enisle_api::{
    Code, CreateVm, Event, EventKind, FileInfo, Group, GroupNetwork, Health, Problem, Version, Vm, VmState,
};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use tokio::runtime::Runtime;

/// VM names that make the daemon break the protocol after `opened`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Misbehaviour {
    /// Some output, then the connection ends.
    Abrupt,
    /// More output than there is credit for.
    Overrun,
    /// More credit than one window.
    Flood,
    /// A message that is none.
    Garbage,
    /// The connection ends before `opened`.
    Mute,
    /// Nothing happens after `opened`, whatever the client says.
    Deaf,
}

impl Misbehaviour {
    const ALL: [(&'static str, Self); 6] = [
        ("abrupt", Self::Abrupt),
        ("overrun", Self::Overrun),
        ("flood", Self::Flood),
        ("garbage", Self::Garbage),
        ("mute", Self::Mute),
        ("deaf", Self::Deaf),
    ];
}

/// What the daemon saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// How clients broke the flow control.
    pub(crate) violations: Vec<String>,
    /// The last request to make a VM.
    pub(crate) created: Option<CreateVm>,
    /// What was made and removed of files.
    pub(crate) files: Vec<String>,
    /// The idempotency key of that.
    pub(crate) key: Option<String>,
    /// Sizes that terminals were set to.
    pub(crate) sizes: Vec<(u16, u16)>,
    /// Signals that were sent.
    pub(crate) signals: Vec<u8>,
    /// Streams whose client went away before their end.
    pub(crate) abandoned: usize,
}

pub(crate) struct Shared {
    pub(crate) root: PathBuf,
    pub(crate) seen: Mutex<Seen>,
    vms: Mutex<BTreeMap<String, Vm>>,
}

/// A running fake. Everything of it ends with the value.
pub(crate) struct FakeDaemon {
    pub(crate) shared: Arc<Shared>,
    pub(crate) socket: PathBuf,
    runtime: Option<Runtime>,
    _dir: tempfile::TempDir,
}

impl FakeDaemon {
    /// Starts one with the VM `agents-1` in the group `agents`.
    pub(crate) fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (socket, root) = (dir.path().join("api.sock"), dir.path().join("guest"));
        std::fs::create_dir(&root).unwrap();
        let listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        listener.set_nonblocking(true).unwrap();
        let shared = Arc::new(Shared { root, seen: Mutex::default(), vms: Mutex::default() });
        shared.vms.lock().unwrap().insert("agents-1".into(), vm("agents-1", &CreateVm::default()));
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let router = router(shared.clone());
        runtime.spawn(async move {
            let listener = tokio::net::UnixListener::from_std(listener).unwrap();
            axum::serve(listener, router).await.unwrap();
        });
        Self { shared, socket, runtime: Some(runtime), _dir: dir }
    }

    /// The directory that stands for the guest's `/`.
    pub(crate) fn guest_root(&self) -> &std::path::Path {
        &self.shared.root
    }

    /// Fails the test when a client broke the flow control.
    pub(crate) fn assert_obeyed(&self) {
        let seen = self.shared.seen.lock().unwrap();
        assert!(seen.violations.is_empty(), "{:?}", seen.violations);
    }
}

impl Drop for FakeDaemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct Refusal(Problem);

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let status = StatusCode::from_u16(self.0.status).unwrap();
        let body = serde_json::to_vec(&self.0).unwrap();
        (status, [(header::CONTENT_TYPE, "application/problem+json")], body).into_response()
    }
}

type Shares = State<Arc<Shared>>;

fn router(shared: Arc<Shared>) -> axum::Router {
    axum::Router::new()
        .route("/v1/health", get(async || Json(Health { status: "ok".into() })))
        .route("/v1/version", get(version))
        .route("/v1/groups", get(groups))
        .route("/v1/events", get(events))
        .route("/v1/vms", get(list).post(create))
        .route("/v1/vms/{name}", get(show).delete(remove))
        .route("/v1/vms/{name}/log", get(log))
        .route("/v1/vms/{name}/exec", axum::routing::post(run))
        .route("/v1/vms/{name}/files/stat", get(stat))
        .route("/v1/vms/{name}/files/list", get(list_dir))
        .route("/v1/vms/{name}/files/mkdir", axum::routing::post(make_dir))
        .route("/v1/vms/{name}/files", axum::routing::delete(remove_path))
        .route("/v1/vms/{name}/stream", get(stream))
        .with_state(shared)
}

#[derive(serde::Deserialize)]
struct EventsQuery {
    since: Option<u64>,
    follow: bool,
}

async fn events(Query(query): Query<EventsQuery>) -> String {
    let event = |seq, what| Event { seq, time_ms: 1_700_000_000_123, what };
    let (vm, group) = ("agents-1".to_owned(), "agents".to_owned());
    let mut all = vec![
        event(7, EventKind::Dropped { count: 3, other_run: false }),
        event(8, EventKind::VmReady { vm: vm.clone(), group: group.clone(), after_ms: 1234 }),
        event(9, EventKind::VmCrashed { vm: vm.clone(), group: group.clone(), reason: "x\x1b[2J".into() }),
    ];
    if query.follow {
        let removal = enisle_api::Removal::Ttl;
        all.push(event(10, EventKind::VmRemoved { vm, group, removal }));
    }
    let after = |event: &&Event| query.since.is_none_or(|since| event.seq > since);
    let line = |event: &Event| format!("{}\n", serde_json::to_string(event).unwrap());
    all.iter().filter(after).map(line).collect()
}

async fn run(Json(run): Json<enisle_api::RunExec>) -> Json<enisle_api::RunOutcome> {
    let captured = |data: String| enisle_api::Captured {
        encoding: enisle_api::Encoding::Utf8,
        truncated: false,
        bytes: data.len() as u64,
        data,
    };
    let (stdout, stderr) = (captured(run.argv.join(" ")), captured(run.stdin.unwrap_or_default()));
    Json(enisle_api::RunOutcome { exit_code: 7, signal: None, timed_out: false, stdout, stderr })
}

#[derive(serde::Deserialize)]
struct PathQuery {
    path: String,
}

fn file(name: String) -> FileInfo {
    let kind = enisle_api::FileKind::File;
    FileInfo { name, lossy: false, kind, size: 0, mode: 0, uid: 0, gid: 0, modified_ms: 0, target: None }
}

async fn stat(Query(asked): Query<PathQuery>) -> Json<FileInfo> {
    Json(file(format!("GET stat {}", asked.path)))
}

async fn list_dir(Query(asked): Query<PathQuery>) -> Json<enisle_api::FileList> {
    let entries = vec![file(format!("GET list {}", asked.path))];
    Json(enisle_api::FileList { entries, truncated: true })
}

async fn make_dir(State(shared): Shares, uri: axum::http::Uri) -> StatusCode {
    shared.seen.lock().unwrap().files.push(format!("mkdir {}", uri.query().unwrap()));
    StatusCode::NO_CONTENT
}

async fn remove_path(State(shared): Shares, uri: axum::http::Uri) -> StatusCode {
    shared.seen.lock().unwrap().files.push(format!("remove {}", uri.query().unwrap()));
    StatusCode::NO_CONTENT
}

async fn version() -> Json<Version> {
    Json(Version { enisle: "0".into(), scope: "0".into(), pid: 1, hypervisor: "none".into() })
}

async fn groups() -> Json<Vec<Group>> {
    let network = GroupNetwork {
        mode: "isolated".into(),
        range: "169.254.100.0/22".into(),
        bridge: None,
        drop: vec![],
        allow: vec![],
    };
    Json(vec![Group {
        name: "agents".into(),
        count: 1,
        vms: 1,
        capacity: 256,
        vcpu: 1,
        ram_mb: 512,
        network,
    }])
}

fn vm(name: &str, create: &CreateVm) -> Vm {
    Vm {
        name: name.into(),
        group: create.group.clone().unwrap_or_else(|| "agents".into()),
        state: VmState::Running,
        reason: None,
        mode: "isolated".into(),
        address: Ipv4Addr::new(169, 254, 100, 2),
        gateway: Ipv4Addr::new(169, 254, 100, 1),
        vcpu: create.vcpu.unwrap_or(1),
        ram_mb: create.ram_mb.unwrap_or(512),
        image: "debian".into(),
        pid: None,
        created_ms: 0,
        ready_after_ms: None,
        userdata_exit: None,
        labels: create.labels.clone(),
        expires_ms: create.ttl_ms,
        idle_timeout_ms: create.idle_timeout_ms,
    }
}

fn missing(name: &str) -> Refusal {
    Refusal(Problem::new(Code::NotFound, format!("no VM `{name}`")).hint("see `enisle vm list`"))
}

async fn list(State(shared): Shares, Query(asked): Query<Vec<(String, String)>>) -> Json<Vec<Vm>> {
    let has = |vm: &&Vm| {
        asked.iter().all(|(key, label)| {
            assert_eq!(key, "label");
            let (key, value) = label.split_once('=').unwrap();
            vm.labels.get(key).is_some_and(|found| found == value)
        })
    };
    Json(shared.vms.lock().unwrap().values().filter(has).cloned().collect())
}

async fn create(
    State(shared): Shares,
    headers: axum::http::HeaderMap,
    Json(create): Json<CreateVm>,
) -> Result<(StatusCode, Json<Vm>), Refusal> {
    if create.group.as_deref().is_some_and(|group| group != "agents") {
        let problem =
            Problem::new(Code::NotFound, "no such group").hint("there is: agents").pointer("/group");
        return Err(Refusal(problem));
    }
    let mut vms = shared.vms.lock().unwrap();
    let name = create.name.clone().unwrap_or_else(|| {
        (1..).map(|n| format!("agents-{n}")).find(|name| !vms.contains_key(name)).unwrap()
    });
    if vms.contains_key(&name) {
        return Err(Refusal(Problem::new(Code::NameTaken, format!("VM `{name}` exists"))));
    }
    let made = vm(&name, &create);
    vms.insert(name, made.clone());
    let mut seen = shared.seen.lock().unwrap();
    seen.created = Some(create);
    seen.key = headers.get("idempotency-key").map(|key| key.to_str().unwrap().to_owned());
    drop(seen);
    Ok((StatusCode::CREATED, Json(made)))
}

async fn show(State(shared): Shares, Path(name): Path<String>) -> Result<Json<Vm>, Refusal> {
    shared.vms.lock().unwrap().get(&name).cloned().map(Json).ok_or_else(|| missing(&name))
}

async fn remove(State(shared): Shares, Path(name): Path<String>) -> Result<StatusCode, Refusal> {
    shared.vms.lock().unwrap().remove(&name).map(|_| StatusCode::NO_CONTENT).ok_or_else(|| missing(&name))
}

#[derive(serde::Deserialize)]
struct LogQuery {
    follow: bool,
}

async fn log(
    State(shared): Shares,
    Path(name): Path<String>,
    Query(query): Query<LogQuery>,
) -> Result<Response, Refusal> {
    if !shared.vms.lock().unwrap().contains_key(&name) {
        return Err(missing(&name));
    }
    let text = "boot \x1b[1mok\x1b[0m\x1b]0;owned\x07\r\n";
    Ok(if query.follow { format!("{text}followed\n") } else { text.into() }.into_response())
}

async fn stream(
    State(shared): Shares,
    Path(name): Path<String>,
    upgrade: WebSocketUpgrade,
) -> Result<Response, Refusal> {
    if let Some((_, kind)) = Misbehaviour::ALL.iter().find(|(bad, _)| *bad == name) {
        let kind = *kind;
        return Ok(upgrade.on_upgrade(move |socket| misbehave(socket, kind)));
    }
    if !shared.vms.lock().unwrap().contains_key(&name) {
        return Err(missing(&name));
    }
    Ok(upgrade.on_upgrade(move |socket| serve(socket, shared)))
}

pub(crate) fn text(message: &FromDaemon) -> Message {
    Message::Text(serde_json::to_string(message).unwrap().into())
}

pub(crate) fn data(stream: u8, bytes: &[u8]) -> Message {
    Message::Binary([&[stream], bytes].concat().into())
}

async fn misbehave(mut socket: WebSocket, kind: Misbehaviour) {
    socket.recv().await;
    if kind == Misbehaviour::Mute {
        return;
    }
    let mut messages = vec![text(&FromDaemon::Opened { pid: None })];
    match kind {
        Misbehaviour::Abrupt => messages.push(data(STDOUT, b"half of it")),
        Misbehaviour::Overrun => messages.extend((0..5).map(|_| data(STDOUT, &[0; 16_000]))),
        Misbehaviour::Flood => messages.push(text(&FromDaemon::Window { stream: STDIN, bytes: u32::MAX })),
        Misbehaviour::Garbage => messages.push(Message::Text("{\"type\":\"nonsense\"}".into())),
        Misbehaviour::Mute | Misbehaviour::Deaf => {}
    }
    for message in messages {
        // The client may have hung up on the first bad one.
        let _ = socket.send(message).await;
    }
    if kind != Misbehaviour::Abrupt {
        while let Some(Ok(_)) = socket.recv().await {}
    }
}

async fn serve(mut socket: WebSocket, shared: Arc<Shared>) {
    let Some(Ok(Message::Text(first))) = socket.recv().await else { return };
    let open: Open = serde_json::from_str(&first).unwrap();
    match guest::open(&open, &shared).await {
        Ok(operation) => relay::run(socket, operation, &shared).await,
        Err((guest, detail)) => {
            let problem = Problem::new(Code::GuestFailed, detail);
            let _ = socket.send(text(&FromDaemon::Failed { guest: Some(guest), problem })).await;
        }
    }
}
