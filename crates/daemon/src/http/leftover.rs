//! What a client still sends when its request is refused.
//!
//! Owns: taking it, within bounds, so that the client lives to read the refusal: a connection closed on unread
//! bytes is one whose answer is lost (RFC 9112 §9.6). Refuses: more than a client in good faith has on its way.

use axum::body::{Body, Bytes, HttpBody};
use axum::extract::Request;
use axum::http::header::EXPECT;
use axum::middleware::Next;
use axum::response::Response;
use http_body_util::BodyExt;
use hyper::body::{Frame, SizeHint};
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::time::timeout;

/// Bytes taken of a refused request's body.
const MOST: usize = 64 * 1024 * 1024;
/// And for how long.
const PATIENCE: Duration = Duration::from_secs(5);

/// A request's body, which outlives its handler.
#[derive(Clone)]
struct Shared(Arc<Mutex<State>>);

struct State {
    body: Body,
    begun: bool,
}

impl Shared {
    fn with<T>(&self, look: impl FnOnce(&mut State) -> T) -> T {
        // A panic while the body was asked for leaves the body as it is.
        look(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl HttpBody for Shared {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        self.with(|state| {
            state.begun = true;
            Pin::new(&mut state.body).poll_frame(cx)
        })
    }

    fn is_end_stream(&self) -> bool {
        self.with(|state| state.body.is_end_stream())
    }

    fn size_hint(&self) -> SizeHint {
        self.with(|state| state.body.size_hint())
    }
}

/// A layer: an answer that is a refusal waits until its request's body has been taken.
pub(super) async fn take(request: Request, next: Next) -> Response {
    let (parts, body) = request.into_parts();
    let asks_first = parts.headers.contains_key(EXPECT);
    let mut rest = Shared(Arc::new(Mutex::new(State { body, begun: false })));
    let response = next.run(Request::from_parts(parts, Body::new(rest.clone()))).await;
    let status = response.status();
    // Who asked whether to send it has not sent it, and would if it were asked for now (RFC 9110 §10.1.1).
    let unsent = asks_first && !rest.with(|state| state.begun);
    if (status.is_client_error() || status.is_server_error()) && !unsent && !rest.is_end_stream() {
        // Whoever sends more than that, or takes longer, has a broken connection.
        let _ = timeout(PATIENCE, discard(&mut rest)).await;
    }
    response
}

async fn discard(rest: &mut Shared) {
    let mut taken = 0;
    while let Some(Ok(frame)) = rest.frame().await {
        taken += frame.data_ref().map_or(0, Bytes::len);
        if taken > MOST {
            return;
        }
    }
}
