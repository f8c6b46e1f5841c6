//! Files of a VM watched. Refuses beginning again, and looking at what was missed, which only the caller can judge.

use crate::Error;
use crate::client::{Client, LogStream, bounded};
use crate::connection::{self, Ask};
use crate::events::JsonLines;
use enisle_api::{WatchEvent, routes};
use http::Method;
use std::time::Duration;

/// The daemon's own bound, a VM that boots, its turn, and the answer.
const LIMIT: Duration = Duration::from_secs(600);

impl Client {
    /// Watches what changes in the directory at `path` in a VM, with `recursive` in those below it too. Returns when
    /// the watches are in place, at most ten minutes later; the first event is [`WatchEvent::Watching`].
    ///
    /// # Errors
    /// `not_found` when there is no such VM or path, `invalid_request` when there are more than 4096 directories;
    /// else see [`Error`].
    pub async fn watch(&self, vm: &str, path: &str, recursive: bool) -> Result<WatchStream, Error> {
        let path = routes::vm_watch(vm, path, recursive);
        let ask = Ask { method: &Method::GET, path: &path };
        let response = bounded(ask, LIMIT, connection::request(&self.endpoint, ask, None)).await?;
        Ok(WatchStream(JsonLines::new(ask.to_string(), LogStream::new(ask, response))))
    }
}

/// Changes as they come. Dropping it closes the connection and ends the watch in the guest.
#[derive(Debug)]
pub struct WatchStream(JsonLines);

impl WatchStream {
    /// What happened next, `None` when what is watched is gone. Cancel-safe.
    ///
    /// # Errors
    /// [`Error::Http`] when the connection breaks, as it does when the VM ends; [`Error::Protocol`] for what is no
    /// such event.
    pub async fn next(&mut self) -> Result<Option<WatchEvent>, Error> {
        self.0.next().await
    }
}
