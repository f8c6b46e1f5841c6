//! Each request's id: in the log of everything that is done for it, in its answer, in its problem.
//!
//! Owns: the id, who asks as the log has it, and the one log line at a request's end. Refuses: ids of clients, which could be
//! anything.

use crate::access::Peer;
use crate::guest::printable;
use crate::user_file;
use axum::body::Body;
use axum::extract::Request;
use axum::http::{HeaderName, HeaderValue, Method};
use axum::middleware::Next;
use axum::response::Response;
use enisle_api::Problem;
use std::time::Instant;
use tracing::field::Empty;
use tracing::{Instrument, Span};

/// Where an answer has the id of its request.
pub(super) const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// A UUID of version 4 (RFC 9562 §5.4).
fn new_id() -> String {
    let mut bytes = [0; 16];
    // The kernel refuses at most before it has booted; the id is then one that is not unique.
    let _ = getrandom::fill(&mut bytes);
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    [&hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..]].join("-")
}

/// The request's place in the log, with who asks: the process on the unix socket, or an address and, once it
/// was found good, the id of the token. Of the highest level, so that lines of every level that is logged have it.
fn span(id: &str, peer: Option<&Peer>) -> Span {
    match peer {
        Some(Peer::Unix { uid, gid, pid }) => {
            let user = user_file::name(*uid);
            tracing::error_span!("request", id, uid, gid, pid, user)
        }
        Some(Peer::Tcp(from)) => tracing::error_span!("request", id, %from, token = Empty),
        Some(Peer::Loopback(from)) => tracing::error_span!("request", id, %from, insecure = true),
        None => tracing::error_span!("request", id),
    }
}

/// The outermost layer.
pub(super) async fn identify(request: Request, next: Next) -> Response {
    let id = new_id();
    let span = span(&id, request.extensions().get());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let begun = Instant::now();
    let mut response = next.run(request).instrument(span.clone()).await;
    let problem = response.extensions_mut().remove::<Problem>();
    span.in_scope(|| log(&method, &path, &response, problem.as_ref(), begun));
    if let Some(mut problem) = problem {
        problem.instance = Some(format!("urn:uuid:{id}"));
        // As where it was made: text and numbers only.
        *response.body_mut() = Body::from(serde_json::to_vec(&problem).unwrap_or_default());
    }
    // Hex and hyphens are a header's value.
    if let Ok(value) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(REQUEST_ID, value);
    }
    response
}

fn log(method: &Method, path: &str, response: &Response, problem: Option<&Problem>, begun: Instant) {
    let (status, ms) = (response.status().as_u16(), begun.elapsed().as_millis());
    match problem {
        Some(problem) if status >= 500 => {
            let detail = printable(&problem.detail);
            tracing::warn!(%method, path, status, ms, code = problem.code.name(), "{detail}");
        }
        Some(problem) => {
            // It may quote the client, who could write lines of his own else.
            let detail = printable(&problem.detail);
            tracing::debug!(%method, path, status, ms, code = problem.code.name(), "{detail}");
        }
        None => tracing::debug!(%method, path, status, ms, "answered"),
    }
}
