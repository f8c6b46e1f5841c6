//! `/v1/vms/{name}/log`: the serial console, whole and as it comes, and what the VMM itself said.

use super::App;
use super::body::Name;
use super::problem::ApiError;
use crate::vm::{Handle, VmError};
use axum::body::{Body, Bytes};
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use enisle_api::{Code, Problem};
use enisle_vmm::{ConsoleChunk, ConsoleStream};
use futures_util::stream;
use serde::Deserialize;
use std::convert::Infallible;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct LogQuery {
    /// Go on until the VM has ended.
    #[serde(default)]
    follow: bool,
    /// Whose.
    #[serde(default)]
    of: Source,
}

/// Whose log.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Source {
    /// The guest's serial console.
    #[default]
    Console,
    /// What the VMM and its helpers said to us.
    Vmm,
}

pub(super) async fn log(
    State(app): State<Arc<App>>,
    Name(name): Name,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, ApiError> {
    let Query(query) = query.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    let vm = app.registry.get(&name)?;
    let body = match (query.of, query.follow) {
        (Source::Console, true) => following(vm),
        (Source::Console, false) => Body::from(history(&vm).await?),
        (Source::Vmm, false) => {
            Body::from(vm.machine_now().map(|machine| machine.vmm_log()).unwrap_or_default())
        }
        (Source::Vmm, true) => {
            let detail = "`follow` is for the console: the VMM's log is given as far as it is";
            return Err(Problem::new(Code::InvalidRequest, detail).into());
        }
    };
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], body).into_response())
}

async fn history(vm: &Handle) -> Result<Vec<u8>, VmError> {
    match vm.machine_now().and_then(|machine| machine.console()) {
        Some(console) => {
            console.history().await.map_err(|source| VmError::Log { name: vm.name().to_owned(), source })
        }
        None => Ok(Vec::new()),
    }
}

/// Where a follower is.
enum Follower {
    /// Nothing was sent: there may be no console yet.
    Waiting(Handle),
    Live(ConsoleStream),
}

/// The console from its start to the VM's end. The client's pace is its own: who is too slow
/// misses the middle, which is said in its place.
fn following(vm: Handle) -> Body {
    let chunks = stream::unfold(Follower::Waiting(vm), |follower| async move {
        let (bytes, follower) = match follower {
            Follower::Waiting(vm) => {
                let console = vm.machine().await?.console()?;
                // A log that cannot be read is an empty one here: the answer's status is sent.
                let (history, live) = console.follow().await.ok()?;
                (Bytes::from(history), live)
            }
            Follower::Live(mut live) => match live.next().await? {
                ConsoleChunk::Output(bytes) => (Bytes::copy_from_slice(&bytes), live),
                ConsoleChunk::Skipped(chunks) => {
                    (Bytes::from(format!("\r\n[enisle: {chunks} pieces of output skipped]\r\n")), live)
                }
            },
        };
        Some((Ok::<_, Infallible>(bytes), Follower::Live(follower)))
    });
    Body::from_stream(chunks)
}
