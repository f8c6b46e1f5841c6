//! What is kept of a background process's output: its last bytes, each with the stream it came from.
//!
//! Owns: the bound, and the exact count of what was ever written. Writing never waits: the oldest bytes are
//! overwritten. Refuses: who reads, and when.

use enisle_guest_proto::RING;

/// Which of its streams a process wrote to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Stdout,
    Stderr,
}

/// At most [`RING`] bytes and an eighth of that for their streams, however they alternate; it grows as it is filled.
#[derive(Default)]
pub(super) struct Ring {
    bytes: Vec<u8>,
    /// A bit a byte: set for standard error.
    stderr: Vec<u64>,
    written: u64,
}

impl Ring {
    /// Bytes ever written.
    pub(super) fn written(&self) -> u64 {
        self.written
    }

    /// Of these, those that were overwritten.
    pub(super) fn dropped(&self) -> u64 {
        self.written - self.bytes.len() as u64
    }

    pub(super) fn push(&mut self, stream: Stream, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let at = place(self.written);
            let length = bytes.len().min(RING - at);
            if self.bytes.len() < at + length {
                self.bytes.resize(at + length, 0);
                self.stderr.resize((at + length).div_ceil(64), 0);
            }
            self.bytes[at..at + length].copy_from_slice(&bytes[..length]);
            for index in at..at + length {
                let (word, bit) = (&mut self.stderr[index / 64], 1 << (index % 64));
                match stream {
                    Stream::Stdout => *word &= !bit,
                    Stream::Stderr => *word |= bit,
                }
            }
            self.written += length as u64;
            bytes = &bytes[length..];
        }
    }

    /// Bytes of one stream from byte `since` on, at most `most` and at least one; `None` when there are none. What
    /// was dropped must not be asked for.
    pub(super) fn read(&self, since: u64, most: usize) -> Option<(Stream, &[u8])> {
        let left = usize::try_from(self.written.checked_sub(since)?).unwrap_or(RING);
        if left == 0 || since < self.dropped() {
            return None;
        }
        let at = place(since);
        let end = at + left.min(most).min(RING - at);
        let stream = self.stream(at);
        let length = (at..end).take_while(|index| self.stream(*index) == stream).count();
        Some((stream, &self.bytes[at..at + length]))
    }

    fn stream(&self, index: usize) -> Stream {
        if self.stderr[index / 64] >> (index % 64) & 1 == 1 { Stream::Stderr } else { Stream::Stdout }
    }
}

fn place(offset: u64) -> usize {
    // The remainder is below RING.
    (offset % RING as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(ring: &Ring, mut since: u64) -> (Vec<u8>, Vec<u8>) {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some((stream, bytes)) = ring.read(since, 1000) {
            let to = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
            to.extend_from_slice(bytes);
            since += bytes.len() as u64;
        }
        assert_eq!(since, ring.written());
        (stdout, stderr)
    }

    #[test]
    fn streams_stay_apart_and_readers_begin_where_they_like() {
        let mut ring = Ring::default();
        assert!(ring.read(0, 10).is_none() && ring.read(1, 10).is_none());
        ring.push(Stream::Stdout, b"one");
        ring.push(Stream::Stderr, b"two");
        ring.push(Stream::Stdout, b"three");
        assert_eq!(all(&ring, 0), (b"onethree".to_vec(), b"two".to_vec()));
        assert_eq!(all(&ring, 5), (b"three".to_vec(), b"o".to_vec()));
        assert_eq!((ring.written(), ring.dropped()), (11, 0));
        assert!(ring.read(11, 10).is_none() && ring.read(12, 10).is_none());
    }

    #[test]
    fn the_oldest_bytes_go_and_are_counted_exactly() {
        let mut ring = Ring::default();
        let mut written = Vec::new();
        // Pieces that wrap, one longer than the ring, and one byte each of two streams.
        for (n, length) in [100_000, 100_000, 100_000, RING + 7, 1, 1, 65_536].into_iter().enumerate() {
            let stream = if n % 2 == 0 { Stream::Stdout } else { Stream::Stderr };
            let bytes: Vec<u8> = (0..length).map(|i| (i * 31 + n) as u8).collect();
            ring.push(stream, &bytes);
            written.extend(bytes.into_iter().map(|byte| (stream, byte)));
            assert_eq!(ring.written(), written.len() as u64);
            assert_eq!(ring.dropped(), written.len().saturating_sub(RING) as u64);
            let kept = &written[written.len().saturating_sub(RING)..];
            let of = |wanted| -> Vec<u8> {
                kept.iter().filter(|(stream, _)| *stream == wanted).map(|(_, byte)| *byte).collect()
            };
            assert!(all(&ring, ring.dropped()) == (of(Stream::Stdout), of(Stream::Stderr)), "after {n}");
            assert!(ring.dropped() == 0 || ring.read(ring.dropped() - 1, 10).is_none());
        }
        assert!(ring.bytes.len() == RING && ring.stderr.len() == RING / 64);
    }

    #[test]
    fn alternating_bytes_take_no_more_room() {
        let mut ring = Ring::default();
        for _ in 0..RING {
            ring.push(Stream::Stdout, b"o");
            ring.push(Stream::Stderr, b"e");
        }
        assert_eq!((ring.bytes.len(), ring.stderr.len()), (RING, RING / 64));
        let (stdout, stderr) = all(&ring, ring.dropped());
        assert!(stdout == vec![b'o'; RING / 2] && stderr == vec![b'e'; RING / 2]);
    }
}
