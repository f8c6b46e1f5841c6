//! What the daemon sends to an operation.
//!
//! Owns: its credit, and what the operation has not taken yet, at most one window. It is written from where it was
//! received; only what the operation does not take at once is kept. Refuses: what it means.

use super::connection::ConnectionError;
use enisle_guest_proto::WINDOW;
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::os::fd::OwnedFd;

/// Credit is given back in portions of this size: the sender fills one half while the other one is written.
const CREDIT_PORTION: u32 = WINDOW / 2;

/// How the end of the input is shown to the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// The descriptor is closed (pipe).
    Close,
    /// The descriptor is closed, and each failure to write to it counts (regular file).
    File,
    /// The sending side is shut down (socket).
    Shutdown,
    /// The terminal's end-of-file character is typed.
    EndOfFile,
}

/// One operation's input.
pub(super) struct Input {
    /// Gone once the operation takes no more.
    pub(super) fd: Option<(OwnedFd, InputEnd)>,
    queue: Vec<u8>,
    written: usize,
    /// Consumed and not given back yet.
    owed: u32,
    /// Received and not given back: above [`WINDOW`] the daemon broke the protocol.
    outstanding: u32,
    ended: bool,
}

impl Input {
    pub(super) fn new(fd: Option<(OwnedFd, InputEnd)>) -> Self {
        Self { fd, queue: Vec::new(), written: 0, owed: 0, outstanding: 0, ended: false }
    }

    /// Bytes the operation has not taken yet.
    pub(super) fn pending(&self) -> usize {
        self.queue.len() - self.written
    }

    /// There will be no more.
    pub(super) fn end(&mut self) {
        self.ended = true;
    }

    /// Whether all of it was delivered.
    pub(super) fn is_complete(&self) -> bool {
        self.ended && self.pending() == 0
    }

    /// So many bytes came.
    pub(super) fn came(&mut self, bytes: usize) -> Result<(), ConnectionError> {
        if self.ended {
            return Err(ConnectionError::Protocol("data after the end of its stream"));
        }
        // A frame is far below 4 GiB.
        self.outstanding = self.outstanding.saturating_add(bytes as u32);
        if self.outstanding > WINDOW {
            return Err(ConnectionError::Protocol("more data than there was credit for"));
        }
        Ok(())
    }

    /// Writes what the operation takes of these, and keeps the rest.
    pub(super) fn take(&mut self, mut pieces: &mut [IoSlice<'_>], broken: &mut Option<io::Error>) {
        while self.pending() == 0
            && let Some((fd, _)) = &self.fd
            && !pieces.is_empty()
        {
            match rustix::io::writev(fd, pieces) {
                Ok(length) => {
                    self.owed += length as u32;
                    IoSlice::advance_slices(&mut pieces, length);
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => self.refused(error, broken),
            }
        }
        for piece in pieces {
            if self.fd.is_some() {
                self.queue.extend_from_slice(piece);
            } else {
                self.owed += piece.len() as u32;
            }
        }
    }

    /// Writes what the operation takes of what was kept.
    pub(super) fn deliver(&mut self, broken: &mut Option<io::Error>) {
        while let Some((fd, _)) = &self.fd
            && let Some(rest) = self.queue.get(self.written..).filter(|rest| !rest.is_empty())
        {
            match rustix::io::write(fd, rest) {
                Ok(length) => {
                    self.written += length;
                    self.owed += length as u32;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(error) => self.refused(error, broken),
            }
        }
        if self.pending() == 0 {
            self.queue.clear();
            self.written = 0;
        }
    }

    /// One that takes no more loses the rest, as at a shell.
    fn refused(&mut self, error: Errno, broken: &mut Option<io::Error>) {
        let Some((_, end)) = self.fd.take() else { return };
        let counts = match end {
            InputEnd::File => true,
            InputEnd::Shutdown => error != Errno::PIPE,
            InputEnd::Close | InputEnd::EndOfFile => false,
        };
        if counts {
            *broken = Some(error.into());
        }
        self.owed += self.pending() as u32;
        self.written = self.queue.len();
    }

    /// What is to be given back now.
    pub(super) fn credit(&mut self) -> Option<u32> {
        if self.owed < CREDIT_PORTION {
            return None;
        }
        let bytes = std::mem::take(&mut self.owed);
        self.outstanding = self.outstanding.saturating_sub(bytes);
        Some(bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::Read;

    fn take(input: &mut Input, pieces: &[&[u8]], broken: &mut Option<io::Error>) {
        for piece in pieces {
            input.came(piece.len()).unwrap();
        }
        let mut pieces: Vec<IoSlice<'_>> = pieces.iter().map(|piece| IoSlice::new(piece)).collect();
        input.take(&mut pieces, broken);
    }

    #[test]
    fn what_an_operation_does_not_take_at_once_is_kept_in_its_order() {
        let (mut read, write) = io::pipe().unwrap();
        rustix::pipe::fcntl_setpipe_size(&write, 4096).unwrap();
        rustix::io::ioctl_fionbio(&write, true).unwrap();
        let mut input = Input::new(Some((write.into(), InputEnd::Close)));
        let (bytes, mut broken): (Vec<u8>, _) = ((0..WINDOW).map(|at| (at / 7) as u8).collect(), None);
        let (first, rest) = bytes.split_at(3000);
        let (second, third) = rest.split_at(20_000);
        take(&mut input, &[first, second], &mut broken);
        assert_eq!(input.pending(), 23_000 - 4096);
        // It never overtakes what is kept.
        let mut seen = vec![0; 4096];
        read.read_exact(&mut seen).unwrap();
        take(&mut input, &[third], &mut broken);
        assert_eq!(input.pending(), bytes.len() - 4096);
        assert!(input.came(1).is_err(), "more than a window is refused");
        while input.pending() > 0 {
            input.deliver(&mut broken);
            let mut some = [0; 4096];
            let length = read.read(&mut some).unwrap();
            seen.extend_from_slice(&some[..length]);
        }
        input.end();
        assert!(input.is_complete() && broken.is_none());
        assert_eq!(input.credit(), Some(WINDOW));
        drop(input);
        read.read_to_end(&mut seen).unwrap();
        assert!(seen == bytes);
    }

    #[test]
    fn what_nobody_takes_is_given_back_and_only_a_file_counts_it_a_failure() {
        let lot = vec![0; WINDOW as usize];
        let (read, write) = io::pipe().unwrap();
        drop(read);
        let mut broken = None;
        let mut input = Input::new(Some((write.into(), InputEnd::Close)));
        take(&mut input, &[&lot], &mut broken);
        assert!(broken.is_none() && input.fd.is_none());
        assert_eq!((input.pending(), input.credit()), (0, Some(WINDOW)));
        // Not open for writing: it fails as a full disk does.
        let file = File::open("/proc/self/status").unwrap();
        let mut input = Input::new(Some((file.into(), InputEnd::File)));
        take(&mut input, &[&lot], &mut broken);
        assert!(broken.is_some() && input.fd.is_none());
        assert_eq!((input.pending(), input.credit()), (0, Some(WINDOW)));
    }
}
