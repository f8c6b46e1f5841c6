//! Frames where they were read to: messages whole, data in the parts in which it came.
//!
//! Owns: the buffer bytes are read into, and which of them were taken. Nothing is copied but the beginning of a
//! message whose end did not fit any more. Refuses: what a payload means, and any IO.

use crate::frame::{FrameError, HEADER, Header, Kind, MAX_FRAME};
use serde::de::DeserializeOwned;
use std::ops::Range;

/// Bytes of the buffer: four whole frames.
const CAPACITY: usize = 4 * MAX_FRAME;

/// A message, or some of a data frame's bytes. Where it lies is known until the next [`Parts::room`].
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub kind: Kind,
    at: Range<usize>,
}

impl Part {
    /// Bytes in it.
    #[must_use]
    pub fn len(&self) -> usize {
        self.at.len()
    }

    /// Whether there are none: of a data frame without a payload.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.at.is_empty()
    }
}

/// The receiving end of a stream of frames.
#[derive(Debug)]
pub struct Parts {
    buffer: Box<[u8]>,
    /// What is in it and was not taken.
    waiting: Range<usize>,
    /// Of a data frame that was begun: what it is, and how much of it is still to be taken.
    begun: (Kind, usize),
}

impl Default for Parts {
    fn default() -> Self {
        Self { buffer: vec![0; CAPACITY].into(), waiting: 0..0, begun: (Kind::Control, 0) }
    }
}

impl Parts {
    /// Where bytes are to be read to. Empty only where nothing was taken of a buffer that is full. Parts that were
    /// taken before are no longer to be looked at.
    pub fn room(&mut self) -> &mut [u8] {
        if self.waiting.is_empty() {
            self.waiting = 0..0;
        } else if self.buffer.len() - self.waiting.end < MAX_FRAME {
            self.buffer.copy_within(self.waiting.clone(), 0);
            self.waiting = 0..self.waiting.len();
        }
        &mut self.buffer[self.waiting.end..]
    }

    /// So many bytes were read to [`Parts::room`].
    ///
    /// # Panics
    /// When they are more than there was room for.
    pub fn filled(&mut self, bytes: usize) {
        let end = self.waiting.end + bytes;
        assert!(end <= self.buffer.len(), "more bytes than there was room for");
        self.waiting.end = end;
    }

    /// The next part, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// The header is not one this version allows; it is judged before its payload is waited for.
    pub fn next_part(&mut self) -> Result<Option<Part>, FrameError> {
        if self.begun.1 == 0 {
            let waiting = &self.buffer[self.waiting.clone()];
            let Some((header, rest)) = waiting.split_first_chunk::<HEADER>() else { return Ok(None) };
            let Header { kind, length } = Header::parse(*header)?;
            if kind == Kind::Control && rest.len() < length {
                return Ok(None);
            }
            self.waiting.start += HEADER;
            if kind == Kind::Control || length == 0 {
                return Ok(Some(self.take(kind, length)));
            }
            self.begun = (kind, length);
        }
        let (kind, due) = self.begun;
        let length = due.min(self.waiting.len());
        if length == 0 {
            return Ok(None);
        }
        self.begun.1 -= length;
        Ok(Some(self.take(kind, length)))
    }

    fn take(&mut self, kind: Kind, length: usize) -> Part {
        let at = self.waiting.start..self.waiting.start + length;
        self.waiting.start = at.end;
        Part { kind, at }
    }

    /// The bytes of a part.
    #[must_use]
    pub fn bytes(&self, part: &Part) -> &[u8] {
        &self.buffer[part.at.clone()]
    }

    /// Reads a message.
    ///
    /// # Errors
    /// [`FrameError::BadControl`] when this is data or no such message.
    pub fn message<T: DeserializeOwned>(&self, part: &Part) -> Result<T, FrameError> {
        if part.kind != Kind::Control {
            let said = format!("{:?} frame where a control frame was due", part.kind);
            return Err(FrameError::BadControl(said));
        }
        serde_json::from_slice(self.bytes(part)).map_err(|e| FrameError::BadControl(e.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{MAX_PAYLOAD, encode};

    /// Everything there is, data of the same kind put together, read in steps of this size.
    fn read(wire: &[u8], step: usize) -> (Vec<(Kind, Vec<u8>)>, Option<FrameError>) {
        let (mut parts, mut seen, mut wire) = (Parts::default(), Vec::<(Kind, Vec<u8>)>::new(), wire);
        while !wire.is_empty() {
            let room = parts.room();
            assert!(!room.is_empty(), "no room though everything was taken");
            let length = step.min(wire.len()).min(room.len());
            let (now, later) = wire.split_at(length);
            room[..length].copy_from_slice(now);
            parts.filled(length);
            wire = later;
            loop {
                match parts.next_part() {
                    Ok(None) => break,
                    Err(error) => return (seen, Some(error)),
                    Ok(Some(part)) => match seen.last_mut() {
                        Some((kind, bytes)) if *kind == part.kind && part.kind != Kind::Control => {
                            bytes.extend_from_slice(parts.bytes(&part));
                        }
                        _ => seen.push((part.kind, parts.bytes(&part).to_vec())),
                    },
                }
            }
        }
        (seen, None)
    }

    #[test]
    fn data_comes_as_it_came_and_messages_whole() {
        let data: Vec<u8> = (0..MAX_PAYLOAD).map(|at| at as u8).collect();
        let message = vec![b' '; MAX_PAYLOAD];
        let mut wire = Vec::new();
        for _ in 0..9 {
            encode(Kind::Stdin, &data, &mut wire);
            encode(Kind::Control, &message, &mut wire);
            encode(Kind::Control, b"{}", &mut wire);
        }
        for step in [1, 4, 5, 4096, 5000, CAPACITY] {
            let (seen, error) = read(&wire, step);
            assert_eq!((seen.len(), error), (27, None), "{step}");
            for three in seen.chunks(3) {
                let lengths = three.iter().map(|(kind, bytes)| (*kind, bytes.len()));
                let (full, two) = (MAX_PAYLOAD, 2);
                assert!(lengths.eq([(Kind::Stdin, full), (Kind::Control, full), (Kind::Control, two)]));
                assert!(three[0].1 == data && three[1].1 == message);
            }
        }
    }

    #[test]
    fn data_is_not_waited_for_and_a_header_is_judged_at_once() {
        let mut wire = Vec::new();
        encode(Kind::Stdout, b"", &mut wire);
        encode(Kind::Stdin, &[7; 100], &mut wire);
        assert_eq!(
            read(&wire[..HEADER + HEADER + 3], 1).0,
            [(Kind::Stdout, vec![]), (Kind::Stdin, vec![7; 3])]
        );
        let (seen, error) = read(&[0xff, 0xff, 0xff, 0xff, 1], 5);
        assert_eq!((seen, error), (vec![], Some(FrameError::TooLong(0xffff_ffff))));
        assert_eq!(read(&[1, 0, 0, 0, 9], 1).1, Some(FrameError::UnknownKind(9)));
    }

    #[test]
    fn a_full_buffer_has_no_room_until_something_is_taken() {
        let mut parts = Parts::default();
        let mut wire = Vec::new();
        while wire.len() < CAPACITY {
            encode(Kind::Control, b"1", &mut wire);
        }
        let length = parts.room().len();
        parts.room().copy_from_slice(&wire[..length]);
        parts.filled(length);
        assert!(parts.room().is_empty());
        let part = parts.next_part().unwrap().unwrap();
        assert_eq!(parts.message::<u8>(&part).unwrap(), 1);
        assert_eq!(parts.room().len(), part.len() + HEADER);
    }
}
