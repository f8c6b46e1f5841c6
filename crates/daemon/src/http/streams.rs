//! `/v1/vms/{name}/stream`: exec, shell, copy, forward and attach.
//!
//! Owns: admission, the first message, waiting for a VM that still boots. The rest is the relay's.

use super::App;
use super::body::Name;
use super::problem::{ApiError, open_failed, problem};
use crate::guest::{relay, session};
use crate::vm::lifetime::StreamPlace;
use crate::vm::{Handle, VmError};
use axum::extract::State;
use axum::extract::ws::rejection::WebSocketUpgradeRejection;
use axum::extract::ws::{Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use enisle_api::stream::{FromDaemon, Open};
use enisle_api::{Code, Problem};
use futures_util::StreamExt;
use futures_util::stream::SplitStream;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;
use tracing::Instrument;

/// Largest message of a client, in bytes: the first one, which must fit a frame of the guest's
/// protocol in the end.
const MAX_MESSAGE: usize = 64 * 1024;
/// A client sends its first message within this time.
const OPEN_PATIENCE: Duration = Duration::from_secs(10);
/// A VM that still boots is waited for this long; clients wait a little longer for the answer.
const READY_PATIENCE: Duration = Duration::from_secs(80);

pub(super) async fn open(
    State(app): State<Arc<App>>,
    Name(name): Name,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let vm = app.registry.get(&name)?;
    vm.answers()?;
    let place = vm.stream_place()?;
    let upgrade = upgrade.map_err(|e| Problem::new(Code::InvalidRequest, e.body_text()))?;
    let upgrade = upgrade.max_message_size(MAX_MESSAGE).max_frame_size(MAX_MESSAGE);
    // The request goes on after its answer.
    let request = tracing::Span::current();
    Ok(upgrade.on_upgrade(move |socket| serve(socket, vm, place).instrument(request)))
}

async fn serve(socket: WebSocket, vm: Handle, _place: StreamPlace) {
    let (mut to_client, mut client) = socket.split();
    match begin(&mut client, &vm).await {
        Ok(Some(session)) => {
            relay::run(client, to_client, session, async { problem(&vm.guest_ended().await) }).await;
        }
        Ok(None) => {}
        Err(message) => {
            relay::fail(&mut to_client, *message).await;
            relay::close(&mut client, &mut to_client).await;
        }
    }
}

/// The session a client asks for; `None` when the client went away meanwhile.
async fn begin(
    client: &mut SplitStream<WebSocket>,
    vm: &Handle,
) -> Result<Option<session::Session>, Box<FromDaemon>> {
    let Some(open) = first_message(client).await? else { return Ok(None) };
    tokio::select! {
        session = connect(open, vm) => session.map(Some),
        ended = vm.guest_ended() => Err(failed(&ended)),
        () = gone(client) => Ok(None),
    }
}

async fn first_message(client: &mut SplitStream<WebSocket>) -> Result<Option<Open>, Box<FromDaemon>> {
    let Ok(first) = timeout(OPEN_PATIENCE, client.next()).await else {
        return Err(bad(format!("no first message within {} s", OPEN_PATIENCE.as_secs())));
    };
    match first {
        Some(Ok(Message::Text(text))) => {
            serde_json::from_str(&text).map(Some).map_err(|e| bad(format!("the first message: {e}")))
        }
        Some(Ok(Message::Close(_)) | Err(_)) | None => Ok(None),
        Some(Ok(_)) => Err(bad("the first message must be a text".to_owned())),
    }
}

async fn connect(open: Open, vm: &Handle) -> Result<session::Session, Box<FromDaemon>> {
    vm.ready(READY_PATIENCE).await.map_err(|error| failed(&error))?;
    let stopping = || failed(&VmError::Stopping { name: vm.name().to_owned() });
    let machine = vm.machine_now().ok_or_else(stopping)?;
    let request = session::request(open);
    let _turn = vm.turn(&request).await.map_err(|error| failed(&error))?;
    session::open(&*machine, request).await.map_err(|error| Box::new(open_failed(&error)))
}

/// Resolves when the client goes away, or says something it may not say before it had an answer.
async fn gone(client: &mut SplitStream<WebSocket>) {
    while let Some(Ok(Message::Ping(_) | Message::Pong(_))) = client.next().await {}
}

fn failed(error: &VmError) -> Box<FromDaemon> {
    Box::new(FromDaemon::Failed { guest: None, problem: problem(error) })
}

fn bad(why: String) -> Box<FromDaemon> {
    Box::new(FromDaemon::Failed { guest: None, problem: Problem::new(Code::InvalidRequest, why) })
}
