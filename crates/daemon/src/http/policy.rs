//! `/v1/vms/{name}/policy`, `/v1/vms/{name}/why`, `/v1/groups/{name}/policy`.

use super::App;
use super::body::{Body, Name};
use super::problem::ApiError;
use crate::vm::registry::Wish;
use axum::Json;
use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response};
use enisle_api::{Code, Policy, PolicyChange, PolicyLists, Problem, Why};
use serde::Deserialize;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ChangeQuery {
    /// Only say what would change.
    #[serde(default)]
    dry_run: bool,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WhyQuery {
    dest: String,
}

type Asked<T> = Result<Query<T>, QueryRejection>;

fn query<T>(asked: Asked<T>) -> Result<T, ApiError> {
    let Query(query) = asked.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    Ok(query)
}

fn tagged(policy: Policy) -> Response {
    let tag = format!("\"{}\"", policy.revision);
    ([(header::ETAG, tag)], Json(policy)).into_response()
}

fn wish(asked: Asked<ChangeQuery>, headers: &HeaderMap, lists: PolicyLists) -> Result<Wish, ApiError> {
    let dry_run = query(asked)?.dry_run;
    let expected = match headers.get(header::IF_MATCH).map(|value| value.to_str()) {
        None => None,
        // Any policy will do (RFC 9110 13.1.1), and there always is one.
        Some(Ok("*")) => None,
        Some(Ok(tag)) => Some(tag.trim_matches('"').to_owned()),
        Some(Err(_)) => return Err(Problem::new(Code::InvalidRequest, "If-Match is no text").into()),
    };
    Ok(Wish { lists, dry_run, expected })
}

pub(super) async fn show_vm(State(app): State<Arc<App>>, Name(name): Name) -> Result<Response, ApiError> {
    Ok(tagged(app.registry.vm_policy(&name).await?))
}

pub(super) async fn show_group(State(app): State<Arc<App>>, Name(name): Name) -> Result<Response, ApiError> {
    Ok(tagged(app.registry.group_policy(&name).await?))
}

pub(super) async fn set_vm(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked<ChangeQuery>,
    headers: HeaderMap,
    Body(lists): Body<PolicyLists>,
) -> Result<Json<PolicyChange>, ApiError> {
    Ok(Json(app.registry.set_vm_policy(&name, wish(asked, &headers, lists)?).await?))
}

pub(super) async fn set_group(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked<ChangeQuery>,
    headers: HeaderMap,
    Body(lists): Body<PolicyLists>,
) -> Result<Json<PolicyChange>, ApiError> {
    Ok(Json(app.registry.set_group_policy(&name, wish(asked, &headers, lists)?).await?))
}

pub(super) async fn why(
    State(app): State<Arc<App>>,
    Name(name): Name,
    asked: Asked<WhyQuery>,
) -> Result<Json<Why>, ApiError> {
    Ok(Json(app.registry.why(&name, &query(asked)?.dest).await?))
}
