//! A session that the daemon itself holds: bytes in, bytes out, the end.
//!
//! ```text
//! input (a stream) ──▶ speak ──▶ guest ──▶ hear ──▶ output (bounded)
//!                        ▲ credit, windows ──┘
//! ```
//!
//! Owns: credit in both directions, held against what the guest claims. What nobody takes is not read,
//! and what was taken is owed as a sum, so a guest cannot fill the daemon. Refuses: what the bytes mean.
//! A dropped future ends the operation in the guest.

use super::session::Session;
use super::window::{Window, WindowError};
use super::wire::WireError;
use bytes::Bytes;
use enisle_api::stream::{STDERR, STDIN, STDOUT};
use enisle_guest_proto::{Control, Failure, Kind, MAX_PAYLOAD, WINDOW, encode, encode_control};
use futures_util::{Stream, StreamExt};
use std::pin::Pin;
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::io::AsyncWriteExt;
use tokio::net::unix::OwnedWriteHalf;
use tokio::sync::mpsc::Sender;
use tokio::sync::{Notify, Semaphore};

/// Credit is told in portions of this size: the guest fills one half while the other one is taken.
const CREDIT_PORTION: u32 = WINDOW / 2;

/// A piece of output: the stream's number and bytes.
pub(crate) type Piece = (u8, Vec<u8>);

/// What goes to the guest, in this order.
#[derive(Debug)]
pub(crate) enum Input {
    /// Bytes.
    Data(Bytes),
    /// A new size of the terminal; neither is 0.
    Resize { rows: u16, cols: u16 },
}

impl From<Bytes> for Input {
    fn from(bytes: Bytes) -> Self {
        Self::Data(bytes)
    }
}

/// How an operation ended in the guest.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// Its last word.
    Exit { code: i32, signal: Option<u8>, timed_out: bool },
    /// It failed after it had begun.
    Failed(Failure),
}

/// Why an operation has no end of its own.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TalkError {
    /// The guest's side is of no more use.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// The input broke before its end.
    #[error("the request's body broke off: {0}")]
    Input(String),
    /// Nobody takes the output.
    #[error("output that nobody takes")]
    Output,
}

/// What the guest may send, and what of its output was taken without having been told yet.
#[derive(Default)]
struct Output {
    streams: Mutex<[Taken; 2]>,
    owed: Notify,
}

#[derive(Default)]
struct Taken {
    window: Window,
    owed: u32,
}

impl Output {
    /// Notes what the guest says about one of its streams.
    fn note(
        &self,
        stream: u8,
        act: impl FnOnce(&mut Taken) -> Result<(), WindowError>,
    ) -> Result<(), WireError> {
        let mut streams = self.lock();
        let [stdout, stderr] = &mut *streams;
        match stream {
            STDOUT => Ok(act(stdout)?),
            STDERR => Ok(act(stderr)?),
            _ => Err(WireError::Protocol("an end of the daemon's stream")),
        }
    }

    /// Notes that somebody took output, which is owed to the guest from then on.
    fn taken(&self, stream: u8, bytes: u32) -> Result<(), WireError> {
        self.note(stream, |taken| {
            taken.owed = taken.owed.saturating_add(bytes);
            if taken.owed >= CREDIT_PORTION {
                self.owed.notify_one();
            }
            Ok(())
        })
    }

    /// What is owed, once it is a portion. Whoever asks tells the guest: it may be used from now on.
    async fn repaid(&self) -> Result<Vec<Control>, WireError> {
        loop {
            let mut windows = Vec::new();
            for (stream, taken) in [STDOUT, STDERR].into_iter().zip(&mut *self.lock()) {
                if taken.owed >= CREDIT_PORTION {
                    let bytes = std::mem::take(&mut taken.owed);
                    taken.window.returned(bytes)?;
                    windows.push(Control::Window { stream, bytes });
                }
            }
            if !windows.is_empty() {
                return Ok(windows);
            }
            self.owed.notified().await;
        }
    }

    /// A panic elsewhere leaves sums that are whole.
    fn lock(&self) -> MutexGuard<'_, [Taken; 2]> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Runs a session to its end. Input that is still to come when the guest ends is not taken.
pub(crate) async fn run<I: Into<Input>, E: std::fmt::Display>(
    session: Session,
    input: impl Stream<Item = Result<I, E>>,
    output: Sender<Piece>,
) -> Result<End, TalkError> {
    let Session { mut reader, writer, .. } = session;
    let credit = Semaphore::new(WINDOW as usize);
    let told = Output::default();
    let hear = async {
        loop {
            let frame = reader.next().await?;
            let stream = match frame.kind {
                Kind::Stdout => STDOUT,
                Kind::Stderr => STDERR,
                Kind::Stdin => return Err(WireError::Protocol("data on the daemon's stream").into()),
                Kind::Control => match frame.control().map_err(WireError::from)? {
                    Control::Exit { code, signal, timed_out } => {
                        return Ok(End::Exit { code, signal, timed_out });
                    }
                    Control::Failed(failure) => return Ok(End::Failed(failure)),
                    Control::Eof { stream } => {
                        told.note(stream, |taken| taken.window.end())?;
                        continue;
                    }
                    Control::Window { stream: STDIN, bytes } => {
                        returned(&credit, bytes)?;
                        continue;
                    }
                    _ => return Err(WireError::Protocol("a message of the daemon's").into()),
                },
            };
            let bytes = frame.payload.len();
            told.note(stream, |taken| taken.window.sent(bytes))?;
            output.send((stream, frame.payload)).await.map_err(|_| TalkError::Output)?;
            told.taken(stream, u32::try_from(bytes).unwrap_or(u32::MAX))?;
        }
    };
    let input = std::pin::pin!(input);
    tokio::select! {
        end = hear => end,
        broke = speak(writer, &told, input, &credit) => Err(broke),
    }
}

fn returned(credit: &Semaphore, bytes: u32) -> Result<(), WireError> {
    // More than one window cannot be outstanding, so more cannot come back; nothing could for ever.
    if bytes == 0 || credit.available_permits().saturating_add(bytes as usize) > WINDOW as usize {
        return Err(WindowError::Unearned.into());
    }
    credit.add_permits(bytes as usize);
    Ok(())
}

/// Sends input and windows for as long as it is let. A guest that takes nothing more may still have
/// something to say, so failing to write is no verdict.
async fn speak<I: Into<Input>, E: std::fmt::Display>(
    mut guest: OwnedWriteHalf,
    told: &Output,
    mut input: Pin<&mut impl Stream<Item = Result<I, E>>>,
    credit: &Semaphore,
) -> TalkError {
    let mut rest = Bytes::new();
    let mut open = true;
    let mut out = Vec::new();
    loop {
        out.clear();
        let encoded = tokio::select! {
            biased;
            windows = told.repaid() => match windows {
                Ok(windows) => windows.iter().try_for_each(|window| encode_control(window, &mut out)),
                Err(error) => return error.into(),
            },
            piece = next_piece(input.as_mut(), &mut rest, credit), if open => match piece {
                Some(Ok(Input::Data(piece))) => {
                    encode(Kind::Stdin, &piece, &mut out);
                    Ok(())
                }
                Some(Ok(Input::Resize { rows, cols })) => {
                    encode_control(&Control::Resize { rows, cols }, &mut out)
                }
                Some(Err(error)) => return TalkError::Input(error.to_string()),
                None => {
                    open = false;
                    encode_control(&Control::Eof { stream: STDIN }, &mut out)
                }
            },
        };
        if let Err(error) = encoded {
            return WireError::from(error).into();
        }
        if guest.write_all(&out).await.is_err() {
            return std::future::pending().await;
        }
    }
}

/// As much input as fits a frame and has credit. Cancel-safe: credit is taken only with bytes in hand.
async fn next_piece<I: Into<Input>, E>(
    mut input: Pin<&mut impl Stream<Item = Result<I, E>>>,
    rest: &mut Bytes,
    credit: &Semaphore,
) -> Option<Result<Input, E>> {
    while rest.is_empty() {
        match input.next().await?.map(Into::into) {
            Ok(Input::Data(bytes)) => *rest = bytes,
            Ok(resize) => return Some(Ok(resize)),
            Err(error) => return Some(Err(error)),
        }
    }
    // The semaphore is never closed.
    let first = credit.acquire().await.ok()?;
    let most = rest.len().min(MAX_PAYLOAD).min(credit.available_permits() + 1);
    first.forget();
    if let Ok(more) = credit.try_acquire_many(u32::try_from(most - 1).unwrap_or(0)) {
        more.forget();
    }
    Some(Ok(Input::Data(rest.split_to(most))))
}

#[cfg(test)]
mod tests;
