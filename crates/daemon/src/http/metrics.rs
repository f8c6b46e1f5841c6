//! `/metrics`, and how long each answer took.

use super::App;
use super::problem::ApiError;
use crate::metrics::{KIND, Metrics, Scrape};
use axum::extract::{MatchedPath, Request, State};
use axum::http::header;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use enisle_api::{Code, Problem};
use std::sync::Arc;
use std::time::Instant;

/// One reads at a time, also when it has hung up meanwhile: counters are read at the price of system calls.
pub(super) async fn metrics(State(app): State<Arc<App>>) -> Result<Response, ApiError> {
    let turn = Arc::clone(&app.scraping).lock_owned().await;
    let read = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        app.registry.metrics().render(Scrape::take(&app.registry, &app.version))
    });
    match read.await {
        Ok(Ok(text)) => {
            Ok(([(header::CONTENT_TYPE, KIND), (header::CACHE_CONTROL, "no-store")], text).into_response())
        }
        _ => Err(Problem::new(
            Code::Internal,
            "a defect: reading the counters panicked; the daemon's log has more",
        )
        .into()),
    }
}

/// A layer. Streams count until their answer begins.
pub(super) async fn observe(State(metrics): State<Arc<Metrics>>, request: Request, next: Next) -> Response {
    let method = request.method().clone();
    let route = request.extensions().get::<MatchedPath>().cloned();
    let begun = Instant::now();
    let response = next.run(request).await;
    let route = route.as_ref().map(MatchedPath::as_str);
    metrics.answered(method.as_str(), route, response.status().as_u16(), begun.elapsed());
    response
}
