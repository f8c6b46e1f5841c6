//! What comes in with a request, refused with a problem document instead of the framework's text.

use super::problem::ApiError;
use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::request::Parts;
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
        // For serde a list is a struct as well, its items being the fields in their order.
        if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
            return Err(Problem::new(Code::InvalidRequest, "the body must be a JSON object").into());
        }
        // An error of serde says what is wrong, and in which line and column.
        let value = serde_json::from_slice(&bytes)
            .map_err(|e| Problem::new(Code::InvalidRequest, format!("the body: {e}")))?;
        Ok(Self(value))
    }
}

/// The name of a VM in a request's path.
pub(super) struct Name(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Name {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, ApiError> {
        let Path(name) = Path::from_request_parts(parts, state)
            .await
            .map_err(|e| Problem::new(Code::InvalidRequest, format!("the path: {}", e.body_text())))?;
        Ok(Self(name))
    }
}
