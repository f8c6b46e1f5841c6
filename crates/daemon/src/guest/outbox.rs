//! Bytes on their way to a guest. Owns the bound: the side that fills it never waits, so a signal
//! and the end of a client are always seen, and what does not fit is refused.

use std::sync::{Mutex, PoisonError};
use tokio::sync::Notify;

/// One window of one-byte frames is six windows of bytes; the rest is for control messages.
const MAX_BYTES: usize = 512 * 1024;

/// A bounded buffer between one that fills and one that empties.
#[derive(Debug, Default)]
pub(crate) struct Outbox {
    bytes: Mutex<Vec<u8>>,
    filled: Notify,
}

/// The buffer is full.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Full;

impl Outbox {
    /// Appends what `write` writes.
    pub(crate) fn put<E>(
        &self,
        write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>,
    ) -> Result<Result<(), Full>, E> {
        let mut bytes = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if bytes.len() > MAX_BYTES {
            return Ok(Err(Full));
        }
        write(&mut bytes)?;
        self.filled.notify_one();
        Ok(Ok(()))
    }

    /// Everything there is, once there is something.
    pub(crate) async fn take(&self) -> Vec<u8> {
        loop {
            let bytes = std::mem::take(&mut *self.bytes.lock().unwrap_or_else(PoisonError::into_inner));
            if !bytes.is_empty() {
                return bytes;
            }
            self.filled.notified().await;
        }
    }
}
