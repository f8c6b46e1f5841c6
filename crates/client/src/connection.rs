//! One HTTP connection for one request. Owns connecting, sending, bounded reading of answers and
//! the upgrade to a WebSocket; refuses routes and types. There is no pool: connecting to a unix
//! socket costs microseconds, and a fresh connection can never be a stale one.

use crate::Error;
use crate::remote::Remote;
use bytes::Bytes;
use enisle_api::{Code, Problem};
use http::{HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use std::time::Duration;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::{client::generate_key, derive_accept_key};
use tokio_tungstenite::tungstenite::protocol::{Role, WebSocketConfig};

/// Largest JSON answer that is read, in bytes.
const MAX_ANSWER: usize = 16 * 1024 * 1024;
/// Largest WebSocket message that is read, in bytes: data is at most 16 KiB, problems are short.
const MAX_MESSAGE: usize = 256 * 1024;
/// How long the answer to an upgrade may take.
const UPGRADE_LIMIT: Duration = Duration::from_secs(30);

pub(crate) type Socket = WebSocketStream<TokioIo<hyper::upgrade::Upgraded>>;

/// What is asked: for sending and for error messages.
#[derive(Clone, Copy)]
pub(crate) struct Ask<'a> {
    pub(crate) method: &'a Method,
    pub(crate) path: &'a str,
}

impl std::fmt::Display for Ask<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.method, self.path)
    }
}

impl Ask<'_> {
    pub(crate) fn protocol(&self, why: impl Into<String>) -> Error {
        Error::Protocol { request: self.to_string(), why: why.into() }
    }

    fn broke(&self, source: hyper::Error) -> Error {
        Error::Http { request: self.to_string(), source }
    }

    fn builder(&self) -> http::request::Builder {
        Request::builder().method(self.method).uri(self.path)
    }
}

async fn send(
    remote: &Remote,
    ask: Ask<'_>,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Error> {
    let headers = request.headers_mut();
    let host = HeaderValue::from_str(&remote.host()).map_err(|e| ask.protocol(e.to_string()))?;
    headers.insert(header::HOST, host);
    if let Some(token) = remote.authorization() {
        headers.insert(header::AUTHORIZATION, token);
    }
    let stream = remote.connect().await?;
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|e| ask.broke(e))?;
    // It ends with the exchange or when `sender` and the body are dropped; its error reaches us
    // through the response.
    tokio::spawn(connection.with_upgrades());
    sender.send_request(request).await.map_err(|e| ask.broke(e))
}

/// Sends a request with an optional JSON body; answers other than 2xx become [`Error::Problem`].
pub(crate) async fn request(
    remote: &Remote,
    ask: Ask<'_>,
    json: Option<Vec<u8>>,
) -> Result<Response<Incoming>, Error> {
    request_with(remote, ask, json, &[]).await
}

/// The same with more headers.
pub(crate) async fn request_with(
    remote: &Remote,
    ask: Ask<'_>,
    json: Option<Vec<u8>>,
    headers: &[(&str, &str)],
) -> Result<Response<Incoming>, Error> {
    let mut builder = ask.builder();
    for (name, value) in headers {
        builder = builder.header(*name, *value);
    }
    if json.is_some() {
        builder = builder.header(header::CONTENT_TYPE, "application/json");
    }
    let body = Full::new(Bytes::from(json.unwrap_or_default()));
    let request = builder.body(body).map_err(|e| ask.protocol(e.to_string()))?;
    let response = send(remote, ask, request).await?;
    if response.status().is_success() {
        return Ok(response);
    }
    Err(read_problem(ask, response).await)
}

/// The whole body of an answer, at most [`MAX_ANSWER`] bytes.
pub(crate) async fn read_body(ask: Ask<'_>, response: Response<Incoming>) -> Result<Bytes, Error> {
    match Limited::new(response.into_body(), MAX_ANSWER).collect().await {
        Ok(body) => Ok(body.to_bytes()),
        Err(error) => Err(match error.downcast::<hyper::Error>() {
            Ok(source) => ask.broke(*source),
            Err(other) => ask.protocol(other.to_string()),
        }),
    }
}

async fn read_problem(ask: Ask<'_>, response: Response<Incoming>) -> Error {
    let status = response.status();
    let body = match read_body(ask, response).await {
        Ok(body) => body,
        Err(error) => return error,
    };
    match serde_json::from_slice::<Problem>(&body) {
        Ok(problem) => problem.into(),
        // A 404 without a problem document comes from a router that does not know the path.
        Err(_) if status == StatusCode::NOT_FOUND => {
            Problem::new(Code::NotFound, format!("this daemon does not know {ask}")).into()
        }
        Err(_) => ask.protocol(format!("status {status} without a problem document")),
    }
}

/// Upgrades to a WebSocket at `path`.
///
/// The HTTP part is hyper's and not the WebSocket library's, because a refusal has a problem
/// document as its body, which the library reads only as far as it happens to have arrived.
pub(crate) async fn websocket(remote: &Remote, path: &str) -> Result<Socket, Error> {
    let ask = Ask { method: &Method::GET, path };
    tokio::time::timeout(UPGRADE_LIMIT, upgrade(remote, ask))
        .await
        .map_err(|_| Error::Timeout { request: ask.to_string(), limit: UPGRADE_LIMIT })?
}

async fn upgrade(remote: &Remote, ask: Ask<'_>) -> Result<Socket, Error> {
    let key = generate_key();
    let request = ask
        .builder()
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket")
        .header(header::SEC_WEBSOCKET_VERSION, "13")
        .header(header::SEC_WEBSOCKET_KEY, &key)
        .body(Full::new(Bytes::new()))
        .map_err(|e| ask.protocol(e.to_string()))?;
    let response = send(remote, ask, request).await?;
    if response.status() != StatusCode::SWITCHING_PROTOCOLS {
        return Err(read_problem(ask, response).await);
    }
    let accept = response.headers().get(header::SEC_WEBSOCKET_ACCEPT);
    if accept.is_none_or(|value| value.as_bytes() != derive_accept_key(key.as_bytes()).as_bytes()) {
        return Err(ask.protocol("the WebSocket handshake does not fit the request"));
    }
    let upgraded = hyper::upgrade::on(response).await.map_err(|e| ask.broke(e))?;
    let limits =
        WebSocketConfig::default().max_message_size(Some(MAX_MESSAGE)).max_frame_size(Some(MAX_MESSAGE));
    Ok(WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Client, Some(limits)).await)
}
