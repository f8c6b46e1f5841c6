//! `/v1/vms`.

use super::App;
use super::body::{Body, Name};
use super::problem::ApiError;
use crate::vm::registry::Once;
use crate::vm::{Handle, VmError, labels};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use enisle_api::{Code, CreateVm, Problem, Removal, Vm};
use std::sync::Arc;

/// `label` may be repeated: all must fit.
pub(super) async fn list(
    State(app): State<Arc<App>>,
    asked: Result<Query<Vec<(String, String)>>, QueryRejection>,
) -> Result<Json<Vec<Vm>>, ApiError> {
    let Query(asked) = asked.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    if let Some((key, _)) = asked.iter().find(|(key, _)| key != "label") {
        return Err(Problem::new(Code::InvalidRequest, format!("there is no filter `{key}`"))
            .hint("the filter is label=KEY or label=KEY=VALUE")
            .into());
    }
    let meant = |vm: &Handle| asked.iter().all(|(_, filter)| labels::matches(&vm.plan().row.labels, filter));
    Ok(Json(app.registry.list().iter().filter(|vm| meant(vm)).map(Handle::show).collect()))
}

/// Without `wait` it answers as soon as the VM has its name. A client that goes away while it
/// waits drops this future, which removes the VM.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    headers: HeaderMap,
    Body(create): Body<CreateVm>,
) -> Result<Response, ApiError> {
    let once = match idempotency_key(&headers)? {
        Some(key) => app.registry.start_once(&create, &key).await?,
        None if create.wait => Once { vm: app.registry.start_and_wait(&create).await?, replayed: false },
        None => Once { vm: app.registry.start(&create)?, replayed: false },
    };
    let mut response = (StatusCode::CREATED, Json(once.vm.show())).into_response();
    if once.replayed {
        response.headers_mut().insert("idempotency-replayed", HeaderValue::from_static("true"));
    }
    Ok(response)
}

/// The key, with or without the quotes of a structured field (RFC 9651 §3.3.3).
fn idempotency_key(headers: &HeaderMap) -> Result<Option<String>, ApiError> {
    let mut keys = headers.get_all("idempotency-key").iter();
    let Some(key) = keys.next() else { return Ok(None) };
    if keys.next().is_some() {
        return Err(Problem::new(Code::InvalidRequest, "several Idempotency-Key headers").into());
    }
    let key = key.to_str().map_err(|_| VmError::BadKey)?.trim();
    let bare = key.strip_prefix('"').and_then(|key| key.strip_suffix('"')).unwrap_or(key);
    Ok(Some(bare.to_owned()))
}

pub(super) async fn show(State(app): State<Arc<App>>, Name(name): Name) -> Result<Json<Vm>, ApiError> {
    Ok(Json(app.registry.get(&name)?.show()))
}

pub(super) async fn remove(State(app): State<Arc<App>>, Name(name): Name) -> Result<StatusCode, ApiError> {
    app.registry.get(&name)?.remove(Removal::Deleted).await?;
    Ok(StatusCode::NO_CONTENT)
}

pub(super) async fn pause(State(app): State<Arc<App>>, Name(name): Name) -> Result<Json<Vm>, ApiError> {
    let vm = app.registry.get(&name)?;
    vm.pause().await?;
    Ok(Json(vm.show()))
}

pub(super) async fn resume(State(app): State<Arc<App>>, Name(name): Name) -> Result<Json<Vm>, ApiError> {
    let vm = app.registry.get(&name)?;
    vm.resume().await?;
    Ok(Json(vm.show()))
}
