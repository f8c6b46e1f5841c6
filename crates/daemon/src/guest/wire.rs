//! Frames over a socket. Owns reading and writing with bounds; refuses what frames mean.

use bytes::{Buf, Bytes, BytesMut};
use enisle_guest_proto::{Frame, FrameError, HEADER, Header, Kind, MAX_FRAME, encode_control};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::io;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::time::timeout;

/// A guest takes a message of a few KiB within this time, or it is not well.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Bytes read at once: a few, and a guest's window of one stream once that was too little.
const FEW: usize = 4 << 10;
const MANY: usize = 4 * MAX_FRAME;

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

/// One frame where it was read to, from the byte of its kind on.
pub(crate) struct Arrived {
    pub(crate) kind: Kind,
    wire: Bytes,
}

impl Arrived {
    pub(crate) fn payload(&self) -> &[u8] {
        self.wire.get(1..).unwrap_or_default()
    }

    /// Its kind as a byte, then the payload.
    pub(crate) fn into_wire(self) -> Bytes {
        self.wire
    }

    /// Its payload as a message.
    pub(crate) fn control<T: DeserializeOwned>(&self) -> Result<T, FrameError> {
        if self.kind != Kind::Control {
            return Err(FrameError::BadControl(format!(
                "{:?} frame where a control frame was due",
                self.kind
            )));
        }
        serde_json::from_slice(self.payload()).map_err(|e| FrameError::BadControl(e.to_string()))
    }
}

/// Reads frames; holds at most [`MANY`] bytes and a frame's.
pub(crate) struct FrameReader<R> {
    inner: R,
    buffer: BytesMut,
    /// Bytes there is to be room for.
    room: usize,
}

impl<R: AsyncRead + Unpin> FrameReader<R> {
    pub(crate) fn new(inner: R) -> Self {
        Self { inner, buffer: BytesMut::new(), room: FEW }
    }

    /// A frame that has come whole.
    pub(crate) fn ready(&mut self) -> Result<Option<Arrived>, FrameError> {
        let Some(header) = self.buffer.first_chunk::<HEADER>() else { return Ok(None) };
        let Header { kind, length } = Header::parse(*header)?;
        if self.buffer.len() < HEADER + length {
            return Ok(None);
        }
        self.buffer.advance(HEADER - 1);
        Ok(Some(Arrived { kind, wire: self.buffer.split_to(1 + length).freeze() }))
    }

    /// Reads what there is, once there is something. Cancel-safe.
    pub(crate) async fn fill(&mut self) -> Result<(), WireError> {
        // In the little that is left of it the rest of a frame would come in small pieces.
        if self.buffer.capacity() - self.buffer.len() < self.room / 4 {
            self.buffer.reserve(self.room);
        }
        let room = self.buffer.capacity() - self.buffer.len();
        let read = self.inner.read_buf(&mut self.buffer).await?;
        if read == room {
            self.room = MANY;
        }
        if read == 0 { Err(WireError::Closed) } else { Ok(()) }
    }

    /// The next frame. Cancel-safe: bytes are kept in the buffer.
    pub(crate) async fn next(&mut self) -> Result<Frame, WireError> {
        loop {
            if let Some(frame) = self.ready()? {
                return Ok(Frame { kind: frame.kind, payload: frame.payload().to_vec() });
            }
            self.fill().await?;
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
