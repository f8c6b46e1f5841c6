//! `/v1/verify`. A client that goes away drops the future, which removes the VM that was made for it.

use super::App;
use super::body::Body;
use super::problem::ApiError;
use crate::verify;
use axum::Json;
use axum::extract::State;
use enisle_api::verify::{Verified, Verify};
use std::sync::Arc;

pub(super) async fn run(
    State(app): State<Arc<App>>,
    Body(ask): Body<Verify>,
) -> Result<Json<Verified>, ApiError> {
    Ok(Json(verify::verify(&app.registry, &ask).await?))
}
