//! `/v1/vms`.

use super::App;
use super::body::{Body, Name};
use super::problem::ApiError;
use crate::vm::{Handle, labels};
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
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
    Body(create): Body<CreateVm>,
) -> Result<(StatusCode, Json<Vm>), ApiError> {
    let vm = if create.wait {
        app.registry.start_and_wait(&create).await?
    } else {
        app.registry.start(&create, None)?
    };
    Ok((StatusCode::CREATED, Json(vm.show())))
}

pub(super) async fn show(State(app): State<Arc<App>>, Name(name): Name) -> Result<Json<Vm>, ApiError> {
    Ok(Json(app.registry.get(&name)?.show()))
}

pub(super) async fn remove(State(app): State<Arc<App>>, Name(name): Name) -> Result<StatusCode, ApiError> {
    app.registry.get(&name)?.remove(Removal::Deleted).await?;
    Ok(StatusCode::NO_CONTENT)
}
