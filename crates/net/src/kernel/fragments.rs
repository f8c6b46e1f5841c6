//! Fragments that wait in the host for their rest (`/proc/net/sockstat`, ip(7)).
//!
//! Owns: whether there are any, and until when. Refuses: taking them away; the kernel has no way
//! to do that but time.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::sync::Mutex;
use std::time::Duration;

use super::netns::lock;

/// `IP_FRAG_TIME`, what the kernel begins with.
const USUAL: Duration = Duration::from_secs(30);

/// The counts of the namespace in which it was opened, wherever they are read.
pub(super) struct Waiting(Mutex<File>);

impl Waiting {
    /// In the calling thread's namespace.
    pub(super) fn open() -> io::Result<Waiting> {
        Ok(Waiting(Mutex::new(File::open("/proc/thread-self/net/sockstat")?)))
    }

    /// Whether no datagram is incomplete.
    pub(super) fn none(&self) -> io::Result<bool> {
        // The whole text fits one page, and reading it from the start makes it anew.
        let mut text = [0; 4096];
        let len = lock(&self.0).read_at(&mut text, 0)?;
        let text = std::str::from_utf8(&text[..len]).map_err(io::Error::other)?;
        Ok(incomplete(text) == Some(0))
    }
}

/// The number of incomplete datagrams in the file's text.
fn incomplete(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("FRAG: inuse "))?;
    line.split_whitespace().next()?.parse().ok()
}

/// When whatever waits now in the calling thread's namespace is gone: nanoseconds of
/// `CLOCK_MONOTONIC`, which `bpf_ktime_get_ns` counts in.
pub(super) fn gone_by() -> u64 {
    let set = fs::read_to_string("/proc/sys/net/ipv4/ipfrag_time").ok();
    let set = set.and_then(|text| text.trim().parse().ok()).map_or(USUAL, Duration::from_secs);
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Monotonic);
    // A queue keeps the time that was set when it began.
    let until = Duration::try_from(now).unwrap_or_default() + set.max(USUAL);
    u64::try_from(until.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_count_is_found_in_the_kernels_text() {
        let text = "sockets: used 3\nTCP: inuse 1 orphan 0 tw 0 alloc 1 mem 0\nFRAG: inuse 2 memory 4608\n";
        assert_eq!(incomplete(text), Some(2));
        assert_eq!(incomplete("FRAG: inuse 0 memory 0\n"), Some(0));
        assert_eq!(incomplete("TCP: inuse 1\n"), None);
    }
}
