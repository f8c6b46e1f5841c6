//! The HTTP API, on a unix socket and on TCP.
//!
//! Owns: routes, bodies, streams, and turning errors into problem documents. Handlers ask the
//! registry and answer; what they ask for is done elsewhere. Refuses: state of its own.

mod access;
mod body;
mod connection;
mod docs;
mod events;
mod files;
mod guest;
mod identity;
mod leftover;
mod logs;
mod metrics;
mod policy;
mod problem;
mod processes;
mod server;
mod streams;
mod tcp;
#[cfg(test)]
mod tests;
mod tls;
mod tokens;
mod verify;
mod vms;
mod watch;

pub(crate) use server::{ListenError, Listener};
pub(crate) use tcp::{BindError, Bound, Entrances};
pub(crate) use tls::{Certificates, Files, TlsError};

use crate::access::Tokens;
use crate::access::attempts::Attempts;
use crate::metrics::Metrics;
use crate::vm::registry::Registry;
use access::{Methods, Need, delete, get, post};
use axum::extract::{DefaultBodyLimit, Request, State};
use axum::http::{Method, Uri};
use axum::middleware::{Next, from_fn, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json, Router};
use enisle_api::{Code, Group, Health, Problem, Version, routes};
use futures_util::FutureExt;
use problem::ApiError;
use server::serve;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use tcp::serve_tcp;
use tokio_util::sync::CancellationToken;

/// Largest body of a request: a first-boot script of 256 KiB, six times as long in JSON at worst.
const MAX_BODY: usize = 2 * 1024 * 1024;

/// What handlers ask.
pub(crate) struct App {
    pub(crate) registry: Arc<Registry>,
    pub(crate) version: Version,
    /// Set when the daemon goes down.
    pub(crate) stopping: CancellationToken,
    pub(crate) tokens: Tokens,
    pub(crate) attempts: Attempts,
    /// Where else it answers.
    pub(crate) entrances: Arc<Entrances>,
    /// Held while counters are read for somebody.
    pub(crate) scraping: Arc<tokio::sync::Mutex<()>>,
}

/// Serves the API on all that listens until `stop`, then gives those there are a bounded time to end.
pub(crate) async fn serve_all(listener: Listener, bound: Bound, app: Arc<App>, stop: CancellationToken) {
    let entrances = Arc::clone(&app.entrances);
    let metrics = Arc::clone(app.registry.metrics());
    let router = guarded(routes(app), metrics);
    tokio::join!(serve(listener, router.clone(), stop.clone()), serve_tcp(bound, entrances, router, stop));
}

/// What holds for every request, the outermost last.
fn guarded(router: Router, metrics: Arc<Metrics>) -> Router {
    router
        .layer(DefaultBodyLimit::max(MAX_BODY))
        .layer(from_fn(survive))
        .layer(from_fn(leftover::take))
        .layer(from_fn_with_state(metrics, metrics::observe))
        .layer(from_fn(identity::identify))
}

/// Every route there is, each method with what it needs; `enisle_api::openapi` describes the same.
fn table() -> Vec<(&'static str, Methods)> {
    use Need::{Admin, Nothing, Read, Write};
    vec![
        (routes::HEALTH, get(Nothing, health)),
        (routes::VERSION, get(Read, version)),
        (routes::METRICS, get(Admin, metrics::metrics)),
        (routes::OPENAPI, get(Nothing, docs::document)),
        (routes::DOCS, get(Nothing, docs::page)),
        (routes::DOCS_FILE, get(Nothing, docs::asset)),
        (routes::GROUPS, get(Read, groups)),
        (routes::EVENTS, get(Read, events::events)),
        (routes::TOKENS, get(Admin, tokens::list).post(Admin, tokens::create)),
        (routes::TOKEN, delete(Admin, tokens::revoke)),
        (routes::VERIFY, post(Write, verify::run)),
        (routes::VMS, get(Read, vms::list).post(Write, vms::create)),
        (routes::VM, get(Read, vms::show).delete(Write, vms::remove)),
        (routes::VM_PAUSE, post(Write, vms::pause)),
        (routes::VM_RESUME, post(Write, vms::resume)),
        (routes::VM_POLICY, get(Read, policy::show_vm).put(Write, policy::set_vm)),
        (routes::VM_WHY, get(Read, policy::why)),
        (routes::GROUP_POLICY, get(Read, policy::show_group).put(Admin, policy::set_group)),
        (routes::VM_LOG, get(Read, logs::log)),
        (routes::VM_EXEC, post(Write, guest::exec)),
        (
            routes::VM_FILES,
            get(Write, guest::read_file).put(Write, guest::write_file).delete(Write, files::remove),
        ),
        (routes::VM_STAT, get(Write, files::stat)),
        (routes::VM_LIST, get(Write, files::list)),
        (routes::VM_MAKE_DIR, post(Write, files::make_dir)),
        (routes::VM_WATCH, get(Write, watch::watch)),
        (routes::VM_PROCESSES, get(Write, processes::list).post(Write, processes::start)),
        (routes::VM_PROCESS, get(Write, processes::show).delete(Write, processes::remove)),
        (routes::VM_PROCESS_OUTPUT, get(Write, processes::output)),
        (routes::VM_PROCESS_SIGNAL, post(Write, processes::signal)),
        (routes::VM_PROCESS_WAIT, get(Write, processes::wait)),
        (routes::VM_ARCHIVE, get(Write, guest::read_archive).put(Write, guest::write_archive)),
        (routes::VM_STREAM, get(Write, streams::open)),
    ]
}

fn routes(app: Arc<App>) -> Router {
    let all =
        table().into_iter().fold(Router::new(), |router, (path, methods)| router.route(path, methods.router));
    let all = all.fallback(unknown).method_not_allowed_fallback(wrong_method);
    // The doors of the routes ask it.
    all.layer(Extension(Arc::clone(&app))).with_state(app)
}

async fn health(State(app): State<Arc<App>>) -> Json<Health> {
    let status = if app.stopping.is_cancelled() { "stopping" } else { "ok" };
    Json(Health { status: status.to_owned() })
}

async fn version(State(app): State<Arc<App>>) -> Json<Version> {
    Json(app.version.clone())
}

async fn groups(State(app): State<Arc<App>>) -> Json<Vec<Group>> {
    Json(app.registry.groups())
}

async fn unknown(method: Method, uri: Uri) -> ApiError {
    Problem::new(Code::NotFound, format!("there is no {method} {}", uri.path())).into()
}

/// The framework adds `Allow`.
async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let detail = format!("there is no {method} {}; `Allow` says what there is", uri.path());
    Problem::new(Code::MethodNotAllowed, detail).into()
}

/// A panic in a handler is a defect of that request, not of the daemon.
async fn survive(request: Request, next: Next) -> Response {
    match AssertUnwindSafe(next.run(request)).catch_unwind().await {
        Ok(response) => response,
        Err(_) => ApiError::from(Problem::new(Code::Internal, "a defect; the daemon's log has more"))
            .into_response(),
    }
}
