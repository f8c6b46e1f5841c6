//! Somebody's terminal at the other end of a channel: what is typed and what is shown.
//!
//! Owns: the two halves, which never wait for each other: a terminal that takes no output can still
//! type, so leaving always works. Refuses: what the bytes mean.

use bytes::Bytes;
use russh::server::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::SendError;
use tokio::task::JoinHandle;
use tokio::time::timeout;
use tokio_util::task::AbortOnDropHandle;

/// Pieces on their way to a terminal beside the one in hand.
const PIECES_WAITING: usize = 2;
/// A terminal takes what is left for it within this time.
const LAST_PATIENCE: Duration = Duration::from_secs(2);
/// What a client that has no terminal of its own is taken for.
const DEFAULT_SIZE: Size = Size { rows: 24, cols: 80 };
/// Longest name of a terminal's type.
const MAX_TERM: usize = 32;

/// Undoes what a guest may have done to a terminal: alternate screen, scroll region, character set,
/// colours, keypad and paste modes, mouse reports, a hidden cursor, other spellings of keys.
pub(super) const RESET: &str = "\x1b[?1049l\x1b[!p\x0f\x1b(B\x1b[0m\x1b[r\x1b[?1l\x1b>\x1b[?9l\x1b[?1000l\x1b[?1002l\
                                \x1b[?1003l\x1b[?1004l\x1b[?1005l\x1b[?1006l\x1b[?2004l\x1b[>4m\x1b[=0u\x1b[?25h";

/// Rows and columns, neither of them 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Size {
    pub(super) rows: u16,
    pub(super) cols: u16,
}

impl Size {
    fn of(rows: u32, cols: u32) -> Self {
        let fits = |number: u32, default: u16| match u16::try_from(number) {
            Ok(number @ 1..) => number,
            _ => default,
        };
        Self { rows: fits(rows, DEFAULT_SIZE.rows), cols: fits(cols, DEFAULT_SIZE.cols) }
    }
}

/// What a terminal does.
#[derive(Debug)]
pub(super) enum Said {
    /// Keys.
    Typed(Bytes),
    /// It has another size.
    Resized,
    /// It will type no more.
    Eof,
    /// It is gone.
    Gone,
}

/// The typing half.
pub(super) struct Keyboard {
    channel: ChannelReadHalf,
    pub(super) size: Size,
    pub(super) term: String,
}

impl Keyboard {
    pub(super) fn new(channel: ChannelReadHalf) -> Self {
        Self { channel, size: DEFAULT_SIZE, term: "dumb".to_owned() }
    }

    /// The next request of a channel on which nothing was opened yet.
    pub(super) async fn request(&mut self) -> Option<ChannelMsg> {
        self.channel.wait().await
    }

    /// Takes on what a client said of its terminal.
    pub(super) fn is(&mut self, term: &str, rows: u32, cols: u32) {
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.' | '+');
        if !term.is_empty() && term.len() <= MAX_TERM && term.chars().all(plain) {
            term.clone_into(&mut self.term);
        }
        self.size = Size::of(rows, cols);
    }

    /// What it does next. Cancel-safe.
    pub(super) async fn hear(&mut self) -> Said {
        loop {
            match self.channel.wait().await {
                Some(ChannelMsg::Data { data }) => return Said::Typed(data),
                Some(ChannelMsg::WindowChange { col_width, row_height, .. }) => {
                    self.size = Size::of(row_height, col_width);
                    return Said::Resized;
                }
                Some(ChannelMsg::Eof) => return Said::Eof,
                Some(ChannelMsg::Close) | None => return Said::Gone,
                Some(_) => {}
            }
        }
    }
}

/// The showing half. What is given to it is sent at the pace the terminal takes it.
#[derive(Clone)]
pub(super) struct Screen {
    pieces: mpsc::Sender<Bytes>,
}

/// A place for one piece.
pub(super) type Place<'a> = mpsc::Permit<'a, Bytes>;

impl Screen {
    /// A place for the next piece, when the terminal has taken one. Cancel-safe.
    pub(super) async fn place(&self) -> Result<Place<'_>, SendError<()>> {
        self.pieces.reserve().await
    }

    /// Shows a text, if the terminal takes it in time.
    pub(super) async fn show(&self, text: String) {
        // A terminal that takes nothing has nothing to read it on.
        let _ = timeout(LAST_PATIENCE, self.pieces.send(text.into())).await;
    }
}

/// The channel's writing half, while a [`Screen`] fills it.
pub(super) struct Output {
    task: AbortOnDropHandle<ChannelWriteHalf<Msg>>,
}

/// Begins to show.
pub(super) fn screen(channel: ChannelWriteHalf<Msg>) -> (Screen, Output) {
    let (pieces, waiting) = mpsc::channel(PIECES_WAITING);
    let task: JoinHandle<_> = tokio::spawn(send(channel, waiting));
    (Screen { pieces }, Output { task: AbortOnDropHandle::new(task) })
}

async fn send(channel: ChannelWriteHalf<Msg>, mut waiting: mpsc::Receiver<Bytes>) -> ChannelWriteHalf<Msg> {
    while let Some(piece) = waiting.recv().await {
        if channel.data_bytes(piece).await.is_err() {
            break;
        }
    }
    channel
}

impl Output {
    /// Sends what is left and closes the channel, within a bound. Every screen must be dropped.
    pub(super) async fn finish(self, status: u32) {
        // Who does not take it in time loses it: the connection is being closed, or does not move.
        let _ = timeout(LAST_PATIENCE, async {
            if let Ok(channel) = self.task.await {
                close(&channel, status).await;
            }
        })
        .await;
    }
}

/// Says something on the client's standard error and closes the channel, within a bound.
pub(super) async fn refuse(channel: ChannelWriteHalf<Msg>, why: &str) {
    let _ = timeout(LAST_PATIENCE, async {
        // Its answer to the request goes first; a client that left is told nothing.
        let _ = channel.extended_data_bytes(1, format!("enisle: {why}\r\n").into_bytes()).await;
        close(&channel, 1).await;
    })
    .await;
}

async fn close(channel: &ChannelWriteHalf<Msg>, status: u32) {
    let _ = channel.exit_status(status).await;
    let _ = channel.eof().await;
    let _ = channel.close().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_size_is_never_zero() {
        assert_eq!(Size::of(0, 0), DEFAULT_SIZE);
        assert_eq!(Size::of(70_000, 3), Size { rows: 24, cols: 3 });
    }
}
