//! Frames: encoding, and a decoder that takes bytes as they come.
//!
//! Owns: the five-byte header and its limits. Refuses: what a payload means, and any IO.

use serde::Serialize;

/// Largest whole frame in bytes, header included.
pub const MAX_FRAME: usize = 16 * 1024;
/// Length of a frame's header in bytes.
pub const HEADER: usize = 5;
/// Largest payload of a frame in bytes.
pub const MAX_PAYLOAD: usize = MAX_FRAME - HEADER;

/// What a frame carries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// A JSON message.
    #[default]
    Control = 0,
    /// Bytes of stream 1: to the guest (stdin, archive in, forward out) .
    Stdin = 1,
    /// Bytes of stream 2: from the guest (stdout, tty, archive out, forward in).
    Stdout = 2,
    /// Bytes of stream 3: from the guest (stderr).
    Stderr = 3,
}

/// What a frame's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What the payload is.
    pub kind: Kind,
    /// Bytes of the payload, at most [`MAX_PAYLOAD`].
    pub length: usize,
}

impl Header {
    /// Reads a header.
    ///
    /// # Errors
    /// It is not one this version allows.
    pub fn parse(bytes: [u8; HEADER]) -> Result<Self, FrameError> {
        let [l0, l1, l2, l3, kind] = bytes;
        let length = u32::from_le_bytes([l0, l1, l2, l3]) as usize;
        if length > MAX_PAYLOAD {
            return Err(FrameError::TooLong(length));
        }
        let kind = Kind::from_byte(kind).ok_or(FrameError::UnknownKind(kind))?;
        Ok(Self { kind, length })
    }

    /// The header as it is sent.
    #[must_use]
    pub fn bytes(self) -> [u8; HEADER] {
        let [l0, l1, l2, l3] = (self.length as u32).to_le_bytes();
        [l0, l1, l2, l3, self.kind as u8]
    }
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            0 => Self::Control,
            1 => Self::Stdin,
            2 => Self::Stdout,
            3 => Self::Stderr,
            _ => return None,
        })
    }
}

/// One decoded frame.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What the payload is.
    pub kind: Kind,
    /// At most [`MAX_PAYLOAD`] bytes.
    pub payload: Vec<u8>,
}

/// Why bytes are not a frame. After one of these the connection is of no more use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// The header names a payload over [`MAX_PAYLOAD`].
    #[error("frame of {0} bytes, at most {MAX_PAYLOAD} are allowed")]
    TooLong(usize),
    /// The header names a kind this version does not know.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A control payload is not the JSON that was expected here.
    #[error("control frame does not parse: {0}")]
    BadControl(String),
}

/// Appends one frame to `out`.
///
/// # Panics
/// When `payload` is over [`MAX_PAYLOAD`]: callers cut their data first.
pub fn encode(kind: Kind, payload: &[u8], out: &mut Vec<u8>) {
    assert!(payload.len() <= MAX_PAYLOAD, "payload over MAX_PAYLOAD");
    out.extend_from_slice(&Header { kind, length: payload.len() }.bytes());
    out.extend_from_slice(payload);
}

/// Appends a control frame to `out`.
///
/// # Errors
/// [`FrameError::TooLong`] when the message does not fit in one frame.
pub fn encode_control<T: Serialize>(message: &T, out: &mut Vec<u8>) -> Result<(), FrameError> {
    let json = serde_json::to_vec(message).map_err(|e| FrameError::BadControl(e.to_string()))?;
    if json.len() > MAX_PAYLOAD {
        return Err(FrameError::TooLong(json.len()));
    }
    encode(Kind::Control, &json, out);
    Ok(())
}

impl Frame {
    /// Reads a control payload as `T`.
    ///
    /// # Errors
    /// [`FrameError::BadControl`] when this is no control frame or no such message.
    pub fn control<T: serde::de::DeserializeOwned>(&self) -> Result<T, FrameError> {
        if self.kind != Kind::Control {
            return Err(FrameError::BadControl(format!(
                "{:?} frame where a control frame was due",
                self.kind
            )));
        }
        serde_json::from_slice(&self.payload).map_err(|e| FrameError::BadControl(e.to_string()))
    }
}

/// Turns a byte stream into frames; holds at most one frame's bytes beyond what it was fed.
#[derive(Debug, Default)]
pub struct Decoder {
    buffer: Vec<u8>,
    consumed: usize,
}

impl Decoder {
    /// Takes bytes as they arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        if self.consumed > 0 {
            self.buffer.drain(..self.consumed);
            self.consumed = 0;
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next whole frame, or `None` when more bytes are needed.
    ///
    /// # Errors
    /// The header is not one this version allows; it is judged before its payload is waited for.
    pub fn next_frame(&mut self) -> Result<Option<Frame>, FrameError> {
        let rest = &self.buffer[self.consumed..];
        let Some((header, rest)) = rest.split_first_chunk::<HEADER>() else { return Ok(None) };
        let Header { kind, length } = Header::parse(*header)?;
        let Some(payload) = rest.get(..length) else { return Ok(None) };
        let payload = payload.to_vec();
        self.consumed += HEADER + length;
        Ok(Some(Frame { kind, payload }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_survive_any_fragmentation() {
        let mut wire = Vec::new();
        encode(Kind::Stdin, b"hello", &mut wire);
        encode(Kind::Stderr, b"", &mut wire);
        encode(Kind::Stdout, &[7; MAX_PAYLOAD], &mut wire);
        for step in [1, 3, 4096, wire.len()] {
            let mut decoder = Decoder::default();
            let mut seen = Vec::new();
            for part in wire.chunks(step) {
                decoder.feed(part);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    seen.push((frame.kind, frame.payload.len()));
                }
            }
            assert_eq!(seen, [(Kind::Stdin, 5), (Kind::Stderr, 0), (Kind::Stdout, MAX_PAYLOAD)]);
        }
    }

    #[test]
    fn a_header_is_judged_before_its_payload_is_waited_for() {
        let mut decoder = Decoder::default();
        decoder.feed(&[0xff, 0xff, 0xff, 0xff, 1]);
        assert_eq!(decoder.next_frame(), Err(FrameError::TooLong(0xffff_ffff)));
        let mut decoder = Decoder::default();
        decoder.feed(&[1, 0, 0, 0, 9]);
        assert_eq!(decoder.next_frame(), Err(FrameError::UnknownKind(9)));
    }
}
