//! `/v1/tokens`: made, listed, ended.

use super::App;
use super::body::Body;
use super::problem::ApiError;
use axum::Json;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use enisle_api::{Code, CreateToken, CreatedToken, Problem, Token};
use std::sync::Arc;

pub(super) async fn list(State(app): State<Arc<App>>) -> Json<Vec<Token>> {
    Json(app.tokens.list())
}

/// The one answer that holds a token.
pub(super) async fn create(
    State(app): State<Arc<App>>,
    Body(ask): Body<CreateToken>,
) -> Result<Response, ApiError> {
    let (token, secret) = app.tokens.create(&ask)?;
    tracing::info!(made = token.id, scopes = ?ask.scopes.iter().map(ToString::to_string).collect::<Vec<_>>(), "a token was made");
    let created = CreatedToken { token, secret, pin: app.entrances.pin(), listens: app.entrances.listens() };
    Ok((StatusCode::CREATED, [(header::CACHE_CONTROL, "no-store")], Json(created)).into_response())
}

pub(super) async fn revoke(
    State(app): State<Arc<App>>,
    id: Result<Path<String>, PathRejection>,
) -> Result<StatusCode, ApiError> {
    let Path(id) =
        id.map_err(|e| Problem::new(Code::InvalidRequest, format!("the path: {}", e.body_text())))?;
    app.tokens.revoke(&id)?;
    tracing::info!(revoked = id, "a token was revoked");
    Ok(StatusCode::NO_CONTENT)
}
