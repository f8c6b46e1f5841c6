//! What comes in with a request, refused with a problem document instead of the framework's text.

use super::MAX_BODY;
use super::problem::ApiError;
use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Request};
use axum::http::StatusCode;
use axum::http::request::Parts;
use axum::response::IntoResponse;
use enisle_api::{Code, Problem};
use serde::de::DeserializeOwned;
use serde_path_to_error::Segment;

/// A request's body as `T`.
pub(super) struct Body<T>(pub(super) T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        // Before it is read: who asked whether to send it is told not to.
        if HttpBody::size_hint(request.body()).lower() > MAX_BODY as u64 {
            let said = format!("the body is longer than {MAX_BODY} bytes");
            return Err(Problem::new(Code::TooLarge, said).into());
        }
        let bytes = Bytes::from_request(request, state).await.map_err(|e| {
            let said = format!("the body: {}", e.body_text());
            let too_large = e.into_response().status() == StatusCode::PAYLOAD_TOO_LARGE;
            Problem::new(if too_large { Code::TooLarge } else { Code::InvalidRequest }, said)
        })?;
        read(&bytes).map(Self)
    }
}

fn read<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    // For serde a list is a struct as well, its items being the fields in their order.
    if bytes.iter().find(|byte| !byte.is_ascii_whitespace()) != Some(&b'{') {
        return Err(Problem::new(Code::InvalidRequest, "the body must be a JSON object").into());
    }
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read: Result<T, _> = serde_path_to_error::deserialize(&mut json);
    // An error of serde says what is wrong, and in which line and column.
    let value = read.map_err(|e| {
        let problem = Problem::new(Code::InvalidRequest, format!("the body: {}", e.inner()));
        if e.inner().is_data() { problem.pointer(pointer(&e)) } else { problem }
    })?;
    json.end().map_err(|e| Problem::new(Code::InvalidRequest, format!("the body: {e}")))?;
    Ok(value)
}

/// The place in the body (RFC 6901), of a field that is not known too.
fn pointer(error: &serde_path_to_error::Error<serde_json::Error>) -> String {
    let mut pointer = String::new();
    for segment in error.path() {
        match segment {
            Segment::Seq { index } => pointer.push_str(&format!("/{index}")),
            Segment::Map { key } => pointer.push_str(&format!("/{}", escaped(key))),
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    let said = error.inner().to_string();
    let unknown = said.strip_prefix("unknown field `").and_then(|rest| rest.split_once("`, expected"));
    match unknown {
        Some((field, _)) if !pointer.ends_with(&format!("/{}", escaped(field))) => {
            format!("{pointer}/{}", escaped(field))
        }
        _ => pointer,
    }
}

fn escaped(key: &str) -> String {
    key.replace('~', "~0").replace('/', "~1")
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

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_api::{CreateVm, PolicyLists};

    #[test]
    fn mistakes_have_their_place() {
        let create = |body: &str| read::<CreateVm>(body.as_bytes()).err().unwrap().problem().pointer.clone();
        for (body, pointer) in [
            (r#"{"vcpu":300}"#, Some("/vcpu")),
            (r#"{"labels":{"a/b":1}}"#, Some("/labels/a~1b")),
            (r#"{"drop":["a",2]}"#, Some("/drop/1")),
            (r#"{"vpcu":1}"#, Some("/vpcu")),
            (r#"{"x/y~":1}"#, Some("/x~1y~0")),
            (r#"{"vcpu":"#, None),
            ("[]", None),
            ("{} x", None),
        ] {
            assert_eq!(create(body).as_deref(), pointer, "{body}");
        }
        assert!(read::<PolicyLists>(br#" {"drop":["x"]} "#).is_ok());
    }
}
