//! Frames over a socket. Owns reading and writing with bounds; refuses what frames mean.

use enisle_guest_proto::{Decoder, Frame, FrameError, MAX_FRAME, encode_control};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// A guest takes a message of a few KiB within this time, or it is not well.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Why a connection to a guest is of no more use.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WireError {
    /// It broke.
    #[error("the connection to the guest broke")]
    Io(#[from] io::Error),
    /// The guest closed it.
    #[error("the guest closed the connection")]
    Closed,
    /// What came is no frame or no message that was due.
    #[error("the guest broke the protocol")]
    Frame(#[from] FrameError),
    /// What came is a frame that the guest may not send now.
    #[error("the guest broke the protocol: {0}")]
    Protocol(&'static str),
    /// What came claims more than the guest was given.
    #[error("the guest broke the protocol: {0}")]
    Window(#[from] super::window::WindowError),
    /// It did nothing in time.
    #[error("the guest did not {0} in time")]
    TimedOut(&'static str),
}

/// Reads frames; holds at most two frames' bytes.
pub(crate) struct FrameReader<R> {
    inner: R,
    decoder: Decoder,
    buffer: Vec<u8>,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, decoder: Decoder::default(), buffer: vec![0; MAX_FRAME] }
    }

    /// The next frame. Cancel-safe: bytes are kept in the decoder.
    pub(crate) async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                return Ok(frame);
            }
            match self.inner.read(&mut self.buffer).await? {
                0 => return Err(WireError::Closed),
                read => self.decoder.feed(&self.buffer[..read]),
            }
        }
    }

    /// The next frame as a message, within `patience`.
    pub(crate) async fn message<T: DeserializeOwned>(
        &mut self,
        patience: Duration,
        what: &'static str,
    ) -> Result<T, WireError> {
        let frame = timeout(patience, self.next()).await.map_err(|_| WireError::TimedOut(what))??;
        Ok(frame.control()?)
    }
}

/// Sends one message, within a bound.
pub(crate) async fn send<T: Serialize>(
    writer: &mut (impl AsyncWrite + Unpin),
    message: &T,
) -> Result<(), WireError> {
    let mut bytes = Vec::new();
    encode_control(message, &mut bytes)?;
    match timeout(WRITE_PATIENCE, writer.write_all(&bytes)).await {
        Ok(written) => Ok(written?),
        Err(_) => Err(WireError::TimedOut("take a message")),
    }
}
