//! The receiving end of a data stream. Owns the credit of one stream from the guest: what was
//! delivered and not yet given back; refuses to hold more than one window.

use bytes::{Buf, Bytes};
use enisle_api::stream::{ToDaemon, WINDOW};
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, ReadBuf};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};

/// Credit goes back in parts of this size, so that a byte-wise reader costs few messages, each of which a guest's
/// kernel has to be woken for. The guest fills one half while the other one is read.
const GIVE_BACK: u32 = WINDOW / 2;

/// Makes both ends of one stream.
pub(crate) fn channel(stream: u8, control: &UnboundedSender<ToDaemon>) -> (Inlet, Output) {
    // Unbounded as a type, bounded by the window: `Inlet::push` refuses what is beyond it.
    let (chunks_in, chunks) = unbounded_channel();
    let credit = Credit { stream, owed: Arc::new(AtomicU32::new(0)), control: control.clone() };
    let inlet = Inlet { chunks: Some(chunks_in), credit: credit.clone() };
    (inlet, Output { chunks, current: Bytes::new(), failed: None, consumed: 0, credit })
}

#[derive(Debug, Clone)]
struct Credit {
    stream: u8,
    /// Bytes received and not given back.
    owed: Arc<AtomicU32>,
    control: UnboundedSender<ToDaemon>,
}

impl Credit {
    fn give_back(&self, bytes: u32) {
        if bytes > 0 {
            self.owed.fetch_sub(bytes, Ordering::AcqRel);
            // The session is over when nobody takes it; then nobody needs it.
            let _ = self.control.send(ToDaemon::Window { stream: self.stream, bytes });
        }
    }
}

/// Where the session puts what arrives.
pub(crate) struct Inlet {
    chunks: Option<UnboundedSender<io::Result<Bytes>>>,
    credit: Credit,
}

/// The peer sent more than its credit, or after its end.
pub(crate) struct Overrun;

impl Inlet {
    pub(crate) fn push(&mut self, data: Bytes) -> Result<(), Overrun> {
        let Some(chunks) = &self.chunks else { return Err(Overrun) };
        let bytes = u32::try_from(data.len()).map_err(|_| Overrun)?;
        let before = self.credit.owed.fetch_add(bytes, Ordering::AcqRel);
        if before.saturating_add(bytes) > WINDOW {
            return Err(Overrun);
        }
        if chunks.send(Ok(data)).is_err() {
            // Nobody reads any more: discard, and let the sender go on.
            self.credit.give_back(bytes);
        }
        Ok(())
    }

    pub(crate) fn end(&mut self) {
        self.chunks = None;
    }

    /// Ends the stream with an error, unless it has ended.
    pub(crate) fn fail(&mut self, error: io::Error) {
        if let Some(chunks) = self.chunks.take() {
            let _ = chunks.send(Err(error));
        }
    }
}

/// A data stream from the guest.
///
/// Reads end with 0 bytes where the guest ended the stream, and with an error where the
/// connection broke before that. Dropping it discards what else arrives; the guest is not
/// held up.
#[derive(Debug)]
pub struct Output {
    chunks: UnboundedReceiver<io::Result<Bytes>>,
    current: Bytes,
    /// What follows the bytes that were read last.
    failed: Option<io::Error>,
    consumed: u32,
    credit: Credit,
}

impl Output {
    /// The next bytes, as they came; `None` at the end. Cancel-safe.
    ///
    /// # Errors
    /// The connection broke before the end of the stream.
    pub async fn chunk(&mut self) -> io::Result<Option<Bytes>> {
        if self.current.is_empty() {
            if let Some(error) = self.failed.take() {
                return Err(error);
            }
            match self.chunks.recv().await {
                None => return Ok(None),
                Some(chunk) => self.current = chunk?,
            }
        }
        let chunk = std::mem::take(&mut self.current);
        self.consume(chunk.len());
        Ok(Some(chunk))
    }

    fn consume(&mut self, bytes: usize) {
        // A chunk is at most one message, far below 4 GiB.
        self.consumed += u32::try_from(bytes).unwrap_or(0);
        if self.consumed >= GIVE_BACK {
            self.credit.give_back(std::mem::take(&mut self.consumed));
        }
    }
}

impl AsyncRead for Output {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.current.is_empty()
            && let Some(error) = this.failed.take()
        {
            return Poll::Ready(Err(error));
        }
        let before = buf.filled().len();
        // As much as there is: who reads much at once is woken less often.
        while buf.remaining() > 0 {
            if this.current.is_empty() {
                match this.chunks.poll_recv(cx) {
                    Poll::Ready(Some(Ok(chunk))) => {
                        this.current = chunk;
                        continue;
                    }
                    Poll::Ready(Some(Err(error))) if buf.filled().len() == before => {
                        return Poll::Ready(Err(error));
                    }
                    Poll::Ready(Some(Err(error))) => this.failed = Some(error),
                    Poll::Ready(None) => {}
                    Poll::Pending if buf.filled().len() == before => return Poll::Pending,
                    Poll::Pending => {}
                }
                break;
            }
            let bytes = this.current.len().min(buf.remaining());
            buf.put_slice(&this.current[..bytes]);
            this.current.advance(bytes);
            this.consume(bytes);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Output {
    fn drop(&mut self) {
        self.chunks.close();
        let mut unread = self.consumed + u32::try_from(self.current.len()).unwrap_or(0);
        while let Ok(chunk) = self.chunks.try_recv() {
            unread += chunk.map_or(0, |data| u32::try_from(data.len()).unwrap_or(0));
        }
        self.credit.give_back(unread);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_api::stream::STDOUT;
    use tokio::io::AsyncReadExt;

    #[tokio::test]
    async fn a_reader_holds_one_window_and_gives_it_back_as_it_reads() {
        let (control, mut sent) = unbounded_channel();
        let (mut inlet, mut output) = channel(STDOUT, &control);
        let chunk = Bytes::from(vec![1; 16 * 1024]);
        for _ in 0..4 {
            assert!(inlet.push(chunk.clone()).is_ok());
        }
        assert!(inlet.push(Bytes::from_static(b"x")).is_err(), "one byte over the window");
        let mut buf = vec![0; 32 * 1024];
        output.read_exact(&mut buf[..100]).await.unwrap();
        assert!(sent.try_recv().is_err(), "too little to be worth a message");
        let read = output.read(&mut buf).await.unwrap();
        assert_eq!(read, 32 * 1024, "several chunks at once");
        assert_eq!(sent.try_recv().unwrap(), ToDaemon::Window { stream: STDOUT, bytes: 32 * 1024 });
    }

    #[tokio::test]
    async fn a_dropped_reader_gives_everything_back() {
        let (control, mut sent) = unbounded_channel();
        let (mut inlet, mut output) = channel(STDOUT, &control);
        assert!(inlet.push(Bytes::from_static(b"hello")).is_ok());
        assert!(inlet.push(Bytes::from_static(b"world")).is_ok());
        output.read_exact(&mut [0; 2]).await.unwrap();
        drop(output);
        assert_eq!(sent.try_recv().unwrap(), ToDaemon::Window { stream: STDOUT, bytes: 10 });
        assert!(inlet.push(Bytes::from_static(b"more")).is_ok());
        assert_eq!(sent.try_recv().unwrap(), ToDaemon::Window { stream: STDOUT, bytes: 4 });
    }

    #[tokio::test]
    async fn a_broken_stream_does_not_look_like_an_ended_one() {
        let (control, _sent) = unbounded_channel();
        let (mut inlet, mut output) = channel(STDOUT, &control);
        assert!(inlet.push(Bytes::from_static(b"half")).is_ok());
        inlet.fail(io::ErrorKind::UnexpectedEof.into());
        let mut text = Vec::new();
        assert_eq!(output.read_to_end(&mut text).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        assert_eq!(text, b"half");
        // Also for who read the half and comes back for a chunk.
        let (mut inlet, mut output) = channel(STDOUT, &control);
        assert!(inlet.push(Bytes::from_static(b"half")).is_ok());
        inlet.fail(io::ErrorKind::UnexpectedEof.into());
        assert_eq!(output.read(&mut [0; 100]).await.unwrap(), 4);
        assert_eq!(output.chunk().await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    }
}
