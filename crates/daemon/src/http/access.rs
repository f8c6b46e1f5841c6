//! What each route asks of its caller, and the door.
//!
//! Every method of every route is declared with a [`Need`]: the table of routes takes nothing else, so a route
//! without one does not compile. The need is asked before the handler sees the request; what the handler
//! then finds in the registry is narrowed to the same ([`view`]).
//!
//! Owns: needs, the door, and the answers to those who may not enter. Refuses: judging tokens
//! ([`crate::access`]).

use super::App;
use super::connection::Connection;
use super::problem::ApiError;
use crate::access::attempts::Attempts;
use crate::access::secret::Shown;
use crate::access::{Caller, Peer, Wrong, view};
use axum::RequestPartsExt;
use axum::extract::{RawPathParams, Request};
use axum::handler::Handler;
use axum::http::request::Parts;
use axum::http::{HeaderMap, HeaderValue, Method, header};
use axum::middleware::{Next, from_fn};
use axum::response::{IntoResponse, Response};
use axum::routing::{self, MethodRouter};
use enisle_api::{Access, Code, Problem, TOKEN_PREFIX};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

/// What a caller must be allowed to. The OpenAPI document says the same in `x-scope`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Need {
    /// Nothing: it tells nothing of this daemon.
    Nothing,
    /// To look at a group: the VM's where the path names one, any where it does not.
    Read,
    /// To change what is in a group, likewise.
    Write,
    /// Everything. What shows or changes the daemon as a whole, its metrics too, is for this.
    Admin,
}

/// The methods of a path, each with its need.
pub(super) struct Methods {
    pub(super) router: MethodRouter<Arc<App>>,
    /// For the tests, which hold them against the OpenAPI document and against every kind of caller.
    pub(super) needs: Vec<(Method, Need)>,
}

macro_rules! methods {
    ($($name:ident $method:ident),+) => {
        $(
            /// A path with this method, for those who may do this.
            #[allow(dead_code, reason = "one for each method, whichever the table uses first")]
            pub(super) fn $name<H, T>(need: Need, handler: H) -> Methods
            where
                H: Handler<T, Arc<App>>,
                T: 'static,
            {
                Methods { router: MethodRouter::new(), needs: Vec::new() }.$name(need, handler)
            }
        )+

        impl Methods {
            $(
                /// The same path with this method too.
                pub(super) fn $name<H, T>(mut self, need: Need, handler: H) -> Self
                where
                    H: Handler<T, Arc<App>>,
                    T: 'static,
                {
                    let door = from_fn(move |request: Request, next: Next| admit(need, request, next));
                    self.router = self.router.merge(routing::$name(handler).route_layer(door));
                    self.needs.push((Method::$method, need));
                    self
                }
            )+
        }
    };
}
methods!(get GET, post POST, put PUT, delete DELETE);

/// The door of a route.
async fn admit(need: Need, request: Request, next: Next) -> Response {
    let (mut head, body) = request.into_parts();
    match admitted(need, &mut head).await {
        Ok(caller) => view::as_caller(caller, next.run(Request::from_parts(head, body))).await,
        Err(error) => refused(error),
    }
}

async fn admitted(need: Need, request: &mut Parts) -> Result<Caller, ApiError> {
    let wanted = match need {
        Need::Nothing => return Ok(Caller::nobody()),
        Need::Read => Access::Read,
        Need::Write | Need::Admin => Access::Write,
    };
    let (Some(app), Some(peer)) =
        (request.extensions.get::<Arc<App>>().map(Arc::clone), request.extensions.get::<Peer>().cloned())
    else {
        return Err(Problem::new(Code::Internal, "a defect: a connection that is nobody's").into());
    };
    let caller = match peer {
        Peer::Unix { .. } => return Ok(Caller::trusted()),
        Peer::Loopback(_) if is_of_a_web_page(&request.headers) => {
            let detail = "a web page of another origin may not use the API";
            return Err(Problem::new(Code::Forbidden, detail).into());
        }
        Peer::Loopback(_) => return Ok(Caller::trusted()),
        Peer::Tcp(from) => authenticate(&app, from, request).await?,
    };
    let forbidden = |what: &str| {
        let problem = Problem::new(Code::Forbidden, format!("this token may not do that: it takes {what}"));
        Err(problem.hint("`enisle token create --scope …` on the daemon's host makes another").into())
    };
    if need == Need::Admin && !caller.is_admin() {
        return forbidden("the scope admin");
    }
    let group = group_in_path(&app, request).await?;
    let there = match &group {
        Subject::None => caller.most(),
        Subject::Group(group) => caller.access(group),
        // The handler finds out that there is none, as for what the caller does not see.
        Subject::Unknown => Some(wanted),
    };
    match there {
        Some(access) if access < wanted => forbidden("the scope group:NAME:rw"),
        _ => Ok(caller.narrowed(wanted)),
    }
}

/// What the path names.
enum Subject {
    /// No VM and no group.
    None,
    /// A VM of this group, or this group.
    Group(String),
    Unknown,
}

async fn group_in_path(app: &App, request: &mut Parts) -> Result<Subject, ApiError> {
    let of_groups = request.uri.path().starts_with("/v1/groups/");
    let params = request.extract::<RawPathParams>().await;
    let params =
        params.map_err(|e| Problem::new(Code::InvalidRequest, format!("the path: {}", e.body_text())))?;
    let Some((_, name)) = params.iter().find(|(key, _)| *key == "name") else { return Ok(Subject::None) };
    if of_groups {
        return Ok(Subject::Group(name.to_owned()));
    }
    // Outside the view: the daemon itself asks.
    let found = app.registry.get(name);
    Ok(found.map_or(Subject::Unknown, |vm| Subject::Group(vm.plan().row.group.clone())))
}

/// The holder of the token that a request shows. A wrong one is answered slowly.
async fn authenticate(app: &App, from: SocketAddr, request: &Parts) -> Result<Caller, ApiError> {
    let connection = request.extensions.get::<Arc<Connection>>();
    let text = bearer(&request.headers);
    let shown = text.and_then(Shown::parse);
    // Who was let in over this connection is no stranger, whoever else guesses behind the same address.
    let is_known =
        shown.as_ref().zip(connection).is_some_and(|(shown, connection)| connection.knows(&shown.id));
    if !is_known && !app.attempts.may_try(from.ip()) {
        let detail = "too many wrong tokens came from this address just now";
        return Err(Problem::new(Code::TooManyAttempts, detail).hint("try again in a second").into());
    }
    if text.is_none() {
        let problem = Problem::new(Code::Unauthorized, "the request has no token");
        let hint = "over TCP each request needs `Authorization: Bearer TOKEN`; `enisle token create` on the daemon's host makes one";
        return slowly(&app.attempts, from, problem.hint(hint)).await;
    }
    let Some(shown) = shown else {
        tracing::warn!(%from, "a request with something that is no token was refused");
        let detail = format!("what the request shows is no token; one begins with {TOKEN_PREFIX}");
        return slowly(&app.attempts, from, Problem::new(Code::Unauthorized, detail)).await;
    };
    let good = match app.tokens.judge(&shown) {
        Ok(good) => good,
        Err(wrong) => {
            let (why, known) = match wrong {
                Wrong::Unknown => ("not known here", false),
                Wrong::Expired => ("expired", true),
                Wrong::Revoked => ("revoked", true),
            };
            tracing::warn!(%from, token = shown.id, why, "a request with a wrong token was refused");
            let detail = if known {
                format!("the token {} is {why}", shown.id)
            } else {
                format!("the token is {why}")
            };
            return slowly(&app.attempts, from, Problem::new(Code::Unauthorized, detail)).await;
        }
    };
    tracing::Span::current().record("token", shown.id);
    if connection.is_some_and(|connection| !connection.admit(&good)) {
        let detail = "there are too many connections to this daemon, or too many tokens on this one";
        return Err(Problem::new(Code::TooManyAttempts, detail)
            .hint("end some of them, or try again")
            .into());
    }
    Ok(good.caller)
}

async fn slowly(attempts: &Attempts, from: SocketAddr, problem: Problem) -> Result<Caller, ApiError> {
    attempts.wrong(from.ip()).await;
    Err(problem.into())
}

/// Whether a browser asks for a page that is not ours, where no token stops it: under a name that the page's owner
/// let lead to loopback, or with the page's origin (Fetch §3.1), which browsers add to all that changes something.
fn is_of_a_web_page(headers: &HeaderMap) -> bool {
    let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or("?"));
    let host = text(header::HOST).unwrap_or_default();
    let name =
        host.rsplit_once(':').filter(|(_, port)| port.parse::<u16>().is_ok()).map_or(host, |(name, _)| name);
    let bare = name.trim_start_matches('[').trim_end_matches(']');
    let local = bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
    !local || text(header::ORIGIN).is_some_and(|origin| origin != format!("http://{host}"))
}

/// RFC 6750 §2.1; the scheme's case does not matter (RFC 9110 §11.1).
fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, token) = headers.get(header::AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim())
}

/// The answer to somebody who may not enter; a stranger's connection ends with it.
fn refused(error: ApiError) -> Response {
    let code = error.code();
    let mut response = error.into_response();
    let headers = response.headers_mut();
    if matches!(code, Code::Unauthorized | Code::TooManyAttempts) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    if code == Code::Unauthorized {
        headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"enisle\""));
    }
    if code == Code::TooManyAttempts {
        headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_web_page_does_not_get_through_to_loopback() {
        for (host, origin, of_a_page) in [
            ("127.0.0.1:7480", None, false),
            ("localhost", None, false),
            ("[::1]:7480", None, false),
            ("127.0.0.1:7480", Some("http://127.0.0.1:7480"), false),
            ("127.0.0.1:7480", Some("https://evil.example"), true),
            ("127.0.0.1:7480", Some("null"), true),
            ("rebound.example:7480", None, true),
            ("", None, true),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, host.parse().unwrap());
            if let Some(origin) = origin {
                headers.insert(header::ORIGIN, origin.parse().unwrap());
            }
            assert_eq!(is_of_a_web_page(&headers), of_a_page, "{host} {origin:?}");
        }
    }

    #[test]
    fn tokens_are_read_from_the_header_and_nowhere_else() {
        for (value, token) in [
            ("Bearer a_b", Some("a_b")),
            ("bearer  a_b ", Some("a_b")),
            ("Basic a_b", None),
            ("a_b", None),
            ("", None),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(header::AUTHORIZATION, value.parse().unwrap());
            assert_eq!(bearer(&headers), token, "{value}");
        }
        assert_eq!(bearer(&HeaderMap::new()), None);
    }
}
