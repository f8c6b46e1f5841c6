//! JSON bodies of requests, refused with a problem document instead of the framework's text.

use super::problem::ApiError;
use axum::body::Bytes;
use axum::extract::{FromRequest, Request};
use enisle_api::{Code, Problem};
use serde::de::DeserializeOwned;

/// A request's body as `T`.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state)
            .await
            .map_err(|e| Problem::new(Code::InvalidRequest, format!("the body: {}", e.body_text())))?;
        // An error of serde says what is wrong, and in which line and column.
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| Problem::new(Code::InvalidRequest, format!("the body: {e}")))?;
        Ok(Self(value))
    }
}
