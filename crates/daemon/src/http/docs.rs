//! The API's description: the document, and a page that renders it. Everything is inside the binary; the page
//! fetches nothing but the document.

use super::problem::ApiError;
use axum::extract::Path;
use axum::extract::rejection::PathRejection;
use axum::http::{HeaderName, header};
use axum::response::{IntoResponse, Response};
use enisle_api::{Code, Problem, openapi};
use std::sync::OnceLock;

/// Nothing from elsewhere, and nothing that could be put into the page from outside is run.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; base-uri 'none'; \
                      form-action 'none'; frame-ancestors 'none'";

pub(super) async fn document() -> Response {
    static TEXT: OnceLock<String> = OnceLock::new();
    let text = TEXT.get_or_init(|| openapi::document().to_string());
    ([(header::CONTENT_TYPE, "application/json")], text.as_str()).into_response()
}

pub(super) async fn page() -> Response {
    file("text/html; charset=utf-8", include_str!("docs/index.html"))
}

pub(super) async fn asset(name: Result<Path<String>, PathRejection>) -> Result<Response, ApiError> {
    match name.as_ref().map(|name| name.as_str()) {
        Ok("page.js") => Ok(file("text/javascript; charset=utf-8", include_str!("docs/page.js"))),
        Ok("style.css") => Ok(file("text/css; charset=utf-8", include_str!("docs/style.css"))),
        _ => Err(Problem::new(Code::NotFound, "the page has no such file").into()),
    }
}

fn file(kind: &'static str, text: &'static str) -> Response {
    let headers: [(HeaderName, &str); 3] = [
        (header::CONTENT_TYPE, kind),
        (header::CONTENT_SECURITY_POLICY, POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    ];
    (headers, text).into_response()
}
