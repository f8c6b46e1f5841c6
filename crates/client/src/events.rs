//! Events of the daemon as they come. Owns finding lines in a body; refuses connecting again, which
//! only the caller can judge: the number to go on from is in [`Event::seq`].

use crate::Error;
use crate::client::{Client, LogStream, READ_LIMIT, bounded};
use crate::connection::{self, Ask};
use bytes::BytesMut;
use enisle_api::{Event, EventFilter, routes};
use http::Method;
use serde::de::DeserializeOwned;

/// Longest line, in bytes: an event has some hundred, with a reason of a KiB; two paths of a guest's have more.
const MAX_LINE: usize = 64 * 1024;

impl Client {
    /// What happened after the event of number `since`, or everything the daemon still knows; with
    /// `follow` it goes on until the daemon stops. An [`enisle_api::EventKind::Dropped`] among them says how
    /// many were missed.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn events(&self, since: Option<u64>, follow: bool) -> Result<EventStream, Error> {
        self.follow(routes::events(since, follow)).await
    }

    /// The same for events of one kind.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn events_of(
        &self,
        only: EventFilter,
        since: Option<u64>,
        follow: bool,
    ) -> Result<EventStream, Error> {
        self.follow(routes::events_of(only, since, follow)).await
    }

    async fn follow(&self, path: String) -> Result<EventStream, Error> {
        let ask = Ask { method: &Method::GET, path: &path };
        let response = bounded(ask, READ_LIMIT, connection::request(&self.endpoint, ask, None)).await?;
        let body = LogStream::new(ask, response);
        Ok(EventStream(JsonLines::new(ask.to_string(), body)))
    }
}

/// Events as they come. Dropping it closes the connection.
#[derive(Debug)]
pub struct EventStream(JsonLines);

impl EventStream {
    /// The next event, `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Http`] when the connection breaks, [`Error::Protocol`] for what is no event.
    pub async fn next(&mut self) -> Result<Option<Event>, Error> {
        self.0.next().await
    }
}

/// A body of JSON objects, one a line.
#[derive(Debug)]
pub(crate) struct JsonLines {
    request: String,
    body: LogStream,
    buffer: BytesMut,
}

impl JsonLines {
    pub(crate) fn new(request: String, body: LogStream) -> Self {
        Self { request, body, buffer: BytesMut::new() }
    }

    /// The next object, `None` at the end. Cancel-safe.
    pub(crate) async fn next<T: DeserializeOwned>(&mut self) -> Result<Option<T>, Error> {
        loop {
            if let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') {
                let line = self.buffer.split_to(end + 1);
                return serde_json::from_slice(&line).map(Some).map_err(|e| self.protocol(e.to_string()));
            }
            if self.buffer.len() > MAX_LINE {
                return Err(self.protocol("a line that does not end".to_owned()));
            }
            match self.body.chunk().await? {
                Some(chunk) => self.buffer.extend_from_slice(&chunk),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err(self.protocol("it ends in the middle of a line".to_owned())),
            }
        }
    }

    fn protocol(&self, why: String) -> Error {
        Error::Protocol { request: self.request.clone(), why }
    }
}
