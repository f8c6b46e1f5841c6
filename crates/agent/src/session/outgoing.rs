//! What a session has to send: frames, built where they are sent from.
//!
//! Owns: the buffer and the place of each header in it. Data is read straight behind the place of its header.
//! Refuses: how much may wait, which is the pump's to judge.

use enisle_guest_proto::{FrameError, HEADER, Header, Kind, encode_control};
use rustix::io::Errno;
use serde::Serialize;
use std::ops::Range;
use std::os::fd::BorrowedFd;

/// Bytes of the buffer to begin with, a window of data; pages that are never used cost nothing.
const CAPACITY: usize = 64 << 10;

pub(super) struct Outgoing {
    /// All of it is initialised, so that a read needs no clearing before it.
    buffer: Vec<u8>,
    /// What is to be sent.
    waiting: Range<usize>,
}

impl Outgoing {
    pub(super) fn new() -> Self {
        Self { buffer: vec![0; CAPACITY], waiting: 0..0 }
    }

    /// What is to be sent.
    pub(super) fn bytes(&self) -> &[u8] {
        &self.buffer[self.waiting.clone()]
    }

    pub(super) fn len(&self) -> usize {
        self.waiting.len()
    }

    /// So many of the bytes were sent.
    pub(super) fn sent(&mut self, bytes: usize) {
        self.waiting.start = (self.waiting.start + bytes).min(self.waiting.end);
        if self.waiting.is_empty() {
            self.waiting = 0..0;
        }
    }

    /// So many bytes behind what is to be sent.
    fn room(&mut self, bytes: usize) -> &mut [u8] {
        if self.buffer.len() - self.waiting.end < bytes {
            self.buffer.copy_within(self.waiting.clone(), 0);
            self.waiting = 0..self.waiting.len();
        }
        let Range { end, .. } = self.waiting;
        if self.buffer.len() < end + bytes {
            self.buffer.resize(end + bytes, 0);
        }
        &mut self.buffer[end..end + bytes]
    }

    /// Puts a message in line.
    pub(super) fn message<T: Serialize>(&mut self, message: &T) -> Result<(), FrameError> {
        let mut frame = Vec::new();
        encode_control(message, &mut frame)?;
        self.room(frame.len()).copy_from_slice(&frame);
        self.waiting.end += frame.len();
        Ok(())
    }

    /// Reads once from `fd`, at most `most` bytes, which are no more than one frame's. They are in line only with
    /// [`Outgoing::data`], and lost with anything else but [`Outgoing::message_before`].
    pub(super) fn read(&mut self, fd: BorrowedFd<'_>, most: usize) -> Result<usize, Errno> {
        let room = self.room(HEADER + most);
        rustix::io::read(fd, &mut room[HEADER..])
    }

    /// Puts the bytes in line that [`Outgoing::read`] has just read.
    pub(super) fn data(&mut self, kind: Kind, length: usize) {
        self.room(HEADER + length)[..HEADER].copy_from_slice(&Header { kind, length }.bytes());
        self.waiting.end += HEADER + length;
    }

    /// Puts a message in line, before the bytes that [`Outgoing::read`] has just read.
    pub(super) fn message_before<T: Serialize>(
        &mut self,
        length: usize,
        message: &T,
    ) -> Result<(), FrameError> {
        let read = self.room(HEADER + length)[HEADER..].to_vec();
        self.message(message)?;
        self.room(HEADER + length)[HEADER..].copy_from_slice(&read);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_guest_proto::{Control, Decoder, Frame};
    use std::io::Write;
    use std::os::fd::AsFd;

    fn frames(bytes: &[u8]) -> Vec<Frame> {
        let mut decoder = Decoder::default();
        decoder.feed(bytes);
        std::iter::from_fn(|| decoder.next_frame().unwrap()).collect()
    }

    #[test]
    fn a_message_goes_before_data_that_was_read_already() {
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(b"after").unwrap();
        let mut out = Outgoing::new();
        assert_eq!(out.read(read.as_fd(), 100).unwrap(), 5);
        assert_eq!(out.len(), 0, "it is not in line yet");
        out.message_before(5, &Control::Dropped { bytes: 9 }).unwrap();
        out.data(Kind::Stderr, 5);
        let seen = frames(out.bytes());
        assert_eq!(seen[0].control::<Control>().unwrap(), Control::Dropped { bytes: 9 });
        assert_eq!((seen[1].kind, seen[1].payload.as_slice(), seen.len()), (Kind::Stderr, &b"after"[..], 2));
    }

    #[test]
    fn what_waits_is_kept_when_the_buffer_is_full_and_when_it_grows() {
        let (read, mut write) = std::io::pipe().unwrap();
        let mut out = Outgoing::new();
        let (mut wire, mut expected) = (Vec::new(), Vec::new());
        for turn in 0..40_u8 {
            let piece = vec![turn; 9000];
            write.write_all(&piece).unwrap();
            assert_eq!(out.read(read.as_fd(), 9000).unwrap(), 9000);
            out.data(Kind::Stdout, 9000);
            expected.extend_from_slice(&piece);
            // Half of what comes goes at first, then nothing.
            if turn < 20 {
                wire.extend_from_slice(&out.bytes()[..4500]);
                out.sent(4500);
            }
        }
        wire.extend_from_slice(out.bytes());
        out.sent(out.len());
        assert_eq!(out.len(), 0);
        let seen: Vec<u8> = frames(&wire).into_iter().flat_map(|frame| frame.payload).collect();
        assert!(seen == expected);
    }
}
