//! What a caller holds of an open stream: a process, a copy, a connection. Owns their shapes;
//! refuses the protocol, which is the session's.

use crate::Error;
use crate::output::Output;
use crate::session::{Controller, ExitStatus, Running, Session, Stdin};
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};

/// A process in a guest. Dropping it closes the connection, and the guest kills the process.
#[derive(Debug)]
pub struct Exec {
    /// Standard input; dropping it is its end.
    pub stdin: Option<Stdin>,
    /// Standard output, or the terminal.
    pub stdout: Option<Output>,
    /// Standard error; empty with a terminal.
    pub stderr: Option<Output>,
    running: Running,
}

impl Exec {
    pub(crate) fn new(session: Session) -> Self {
        let Session { stdin, stdout, stderr, running } = session;
        Self { stdin: Some(stdin), stdout: Some(stdout), stderr: Some(stderr), running }
    }

    /// Process id in the guest.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.pid
    }

    /// Sends signals and sizes, also while [`Exec::wait`] waits.
    #[must_use]
    pub fn controller(&self) -> Controller {
        self.running.controller.clone()
    }

    /// Waits for the end. Input that was not taken ends now; output that was not taken is
    /// discarded. Dropping the future closes the connection.
    ///
    /// Output that was taken may still hold bytes when this returns.
    ///
    /// # Errors
    /// The guest failed, or the connection broke before the process ended.
    pub async fn wait(self) -> Result<ExitStatus, Error> {
        let Self { stdin, stdout, stderr, running } = self;
        drop((stdin, stdout, stderr));
        running.wait().await
    }
}

/// Bytes of a file or an archive from a guest. Dropping it closes the connection.
#[derive(Debug)]
pub struct ArchiveOut {
    data: Output,
    running: Running,
}

impl ArchiveOut {
    pub(crate) fn new(session: Session) -> Self {
        let Session { stdout, running, .. } = session;
        Self { data: stdout, running }
    }

    /// After the end of the data: whether the guest could read everything.
    ///
    /// # Errors
    /// The reason why it could not, or the connection broke.
    pub async fn finish(self) -> Result<(), Error> {
        drop(self.data);
        self.running.wait().await.map(drop)
    }
}

impl AsyncRead for ArchiveOut {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().data).poll_read(cx, buf)
    }
}

/// Bytes of a file or an archive to a guest. Dropping it closes the connection and leaves the
/// destination incomplete; [`ArchiveIn::finish`] completes it.
#[derive(Debug)]
pub struct ArchiveIn {
    data: Stdin,
    running: Running,
}

impl ArchiveIn {
    pub(crate) fn new(session: Session) -> Self {
        let Session { stdin, running, .. } = session;
        Self { data: stdin, running }
    }

    /// Ends the data and waits until the guest has written everything. To be called also after a
    /// write has failed: it returns the guest's reason.
    ///
    /// # Errors
    /// The reason why it could not, or the connection broke.
    pub async fn finish(self) -> Result<(), Error> {
        let Self { mut data, running } = self;
        // Fails only when the guest has ended the operation, and then `wait` knows why.
        let _ = data.shutdown().await;
        running.wait().await.map(drop)
    }
}

impl AsyncWrite for ArchiveIn {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().data).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().data).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().data).poll_shutdown(cx)
    }
}

/// A connection made inside a guest. Shutting it down closes the direction to the guest only;
/// dropping it closes both at once, with what was written and is still on its way lost:
/// [`Connection::finish`] sees it through.
#[derive(Debug)]
pub struct Connection {
    to_guest: Stdin,
    from_guest: Output,
    running: Running,
}

impl Connection {
    pub(crate) fn new(session: Session) -> Self {
        let Session { stdin, stdout, running, .. } = session;
        Self { to_guest: stdin, from_guest: stdout, running }
    }

    /// Closes the direction to the guest and waits until the guest has ended the connection,
    /// which is when everything written has arrived. What it still sends is discarded.
    ///
    /// # Errors
    /// The connection broke before that.
    pub async fn finish(self) -> Result<(), Error> {
        let Self { mut to_guest, from_guest, running } = self;
        drop(from_guest);
        // Fails only when the guest has ended the connection, and then `wait` knows why.
        let _ = to_guest.shutdown().await;
        running.wait().await.map(drop)
    }
}

impl AsyncRead for Connection {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().from_guest).poll_read(cx, buf)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().to_guest).poll_write(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().to_guest).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().to_guest).poll_shutdown(cx)
    }
}
