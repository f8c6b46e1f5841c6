//! `/v1/vms`.

use super::App;
use super::body::{Body, Name};
use super::problem::ApiError;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use enisle_api::{CreateVm, Vm};
use std::sync::Arc;

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Vec<Vm>> {
    Json(app.registry.list().iter().map(crate::vm::Handle::show).collect())
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
        app.registry.start(&create)?
    };
    Ok((StatusCode::CREATED, Json(vm.show())))
}

pub(super) async fn show(State(app): State<Arc<App>>, Name(name): Name) -> Result<Json<Vm>, ApiError> {
    Ok(Json(app.registry.get(&name)?.show()))
}

pub(super) async fn remove(State(app): State<Arc<App>>, Name(name): Name) -> Result<StatusCode, ApiError> {
    app.registry.get(&name)?.remove().await?;
    Ok(StatusCode::NO_CONTENT)
}
