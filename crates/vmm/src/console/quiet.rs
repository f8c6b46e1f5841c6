//! A console's connection that the runtime watches only while something waits for it.
//!
//! Owns: reading and writing it without blocking. A connection that stays registered wakes the runtime for every
//! piece that arrives, read or not: a guest that floods its console byte by byte costs thousands of turns a second
//! then, however seldom it is read. Refuses: pace, which is the reader's.

use std::io::{self, ErrorKind, Read, Write};
use std::os::unix::net;

use tokio::net::UnixStream;

/// A stream that no reactor knows.
#[derive(Debug)]
pub(super) struct Quiet(net::UnixStream);

impl Quiet {
    /// Takes it away from the runtime.
    pub(super) fn new(stream: UnixStream) -> io::Result<Self> {
        // It stays non-blocking.
        stream.into_std().map(Self)
    }

    /// Reads what there is, or waits for the first of it; 0 at the end. Cancel-safe.
    pub(super) async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match (&self.0).read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.watched()?.readable().await?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                done => return done,
            }
        }
    }

    /// Writes all of it, at the reader's pace.
    pub(super) async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            match (&self.0).write(bytes) {
                Ok(0) => return Err(ErrorKind::WriteZero.into()),
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == ErrorKind::WouldBlock => self.watched()?.writable().await?,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// The same stream, registered for as long as the value lives; what is there already counts.
    fn watched(&self) -> io::Result<UnixStream> {
        UnixStream::from_std(self.0.try_clone()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    #[tokio::test]
    async fn all_arrives_both_ways_and_so_does_the_end() {
        let (near, mut far) = UnixStream::pair().unwrap();
        let quiet = Quiet::new(near).unwrap();
        // More than the socket holds.
        let long: Vec<u8> = (0..1_000_000u32).map(|i| i.to_le_bytes()[0]).collect();
        let (mut heard, mut buffer) = (vec![0; long.len()], [0; 4096]);
        let (written, read) = tokio::join!(quiet.write_all(&long), far.read_exact(&mut heard));
        written.unwrap();
        read.unwrap();
        assert_eq!(heard, long);
        let sending = async {
            far.write_all(&long).await.unwrap();
            drop(far);
        };
        let reading = async {
            let mut all = Vec::new();
            loop {
                match quiet.read(&mut buffer).await.unwrap() {
                    0 => return all,
                    read => all.extend_from_slice(&buffer[..read]),
                }
            }
        };
        let ((), all) = tokio::join!(sending, reading);
        assert_eq!(all, long);
        assert!(quiet.write_all(b"x").await.is_err(), "nobody is there");
    }
}
