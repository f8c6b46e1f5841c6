//! What this program does inside a guest: the bare ends that line 16 compares with.
//!
//! `enisle-bench in-the-guest nothing | fork TIMES | send PORT BYTES | take PORT BYTES |
//! serve-send PORT BYTES | serve-take PORT BYTES`. The first two of four are on vsock, the others on
//! TCP; each serves one connection and ends. Refuses: frames, credit, acknowledgements.

use std::fs::File;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::fd::AsFd as _;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail, ensure};
use enisle_agent::sys;

use crate::statistics::{median, ms};

/// The first word of the command line in a guest.
pub(crate) const WORD: &str = "in-the-guest";
/// Printed once a connection would be taken.
pub(super) const LISTENING: &str = "listening";
/// Bytes of one read or write; some guests' kernels hang on larger ones on vsock.
pub(super) const PIECE: usize = 32 << 10;

/// Does what the command line says.
///
/// # Errors
/// If it cannot.
pub(crate) fn run() -> Result<()> {
    let words: Vec<String> = std::env::args().skip(2).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words[..] {
        ["nothing"] => Ok(()),
        ["fork", times] => fork(times.parse()?),
        [what @ ("send" | "take"), port, bytes] => {
            let listener = sys::vsock_listen(port.parse()?)?;
            println!("{LISTENING}");
            let (connection, _) = sys::vsock_accept(listener.as_fd())?;
            transfer(what == "send", &mut File::from(connection), bytes.parse()?)
        }
        [what @ ("serve-send" | "serve-take"), port, bytes] => {
            let listener = TcpListener::bind(("127.0.0.1", port.parse()?))?;
            println!("{LISTENING}");
            let (mut connection, _) = listener.accept()?;
            transfer(what == "serve-send", &mut connection, bytes.parse()?)
        }
        _ => bail!("{words:?} is nothing to do in a guest"),
    }
}

fn transfer(sends: bool, connection: &mut (impl Read + Write), bytes: u64) -> Result<()> {
    if sends { send(connection, bytes) } else { take(connection, bytes) }
}

/// Writes so many zeros, and waits until the other side has said that it has them.
pub(super) fn send(to: &mut (impl Read + Write), bytes: u64) -> Result<()> {
    let piece = [0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let length = PIECE.min(usize::try_from(left).unwrap_or(PIECE));
        to.write_all(&piece[..length])?;
        left -= length as u64;
    }
    let mut word = [0];
    to.read_exact(&mut word).context("the other side's word")
}

/// Reads so many bytes, and says so.
pub(super) fn take(from: &mut (impl Read + Write), bytes: u64) -> Result<()> {
    let mut piece = [0; PIECE];
    let mut left = bytes;
    while left > 0 {
        let read = from.read(&mut piece)? as u64;
        ensure!(read > 0, "the end, {left} bytes early");
        left = left.checked_sub(read).context("more than was asked for")?;
    }
    Ok(from.write_all(&[1])?)
}

/// The median of so many forks, execs and waits, in milliseconds.
fn fork(times: usize) -> Result<()> {
    let mut all = Vec::new();
    for _ in 0..times {
        let start = Instant::now();
        let ended = Command::new("/bin/true").status()?;
        all.push(ms(start.elapsed()));
        ensure!(ended.success(), "/bin/true: {ended}");
    }
    println!("{}", median(&all));
    Ok(())
}
