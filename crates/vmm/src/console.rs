//! Owns the serial console of one microVM: a bounded pair of log files, a live broadcast, and the
//! seats of those who type into it. Refuses to let a guest or a reader cost more than that: disk,
//! memory and CPU are all bounded, and nobody who watches holds anybody up.

mod quiet;
mod seats;

use std::convert::Infallible;
use std::io::{self, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError};

use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::sync::{Mutex, broadcast, mpsc, watch};
use tokio::task::JoinHandle;

use crate::error::{Cause, OnPath};
use crate::pace::Pace;
use crate::spec::ConsoleSpec;
use quiet::Quiet;
use seats::{KEYS_WAITING, Seats};
pub use seats::{NotTyped, Seat, Viewer};

/// A console is for people: half a MiB a second is more than anyone reads, and at that rate
/// the pump takes well under a hundredth of a CPU.
const BYTES_PER_SECOND: u32 = 512 << 10;
const BURST: u32 = 256 << 10;
const CHUNK: usize = 8 << 10;
/// What a read counts for at least. A guest writes its console byte by byte, and each read costs us
/// turns of several threads: past the burst there are 512 a second, each of what has come meanwhile.
const LEAST: usize = 1 << 10;
/// Chunks a slow subscriber may be behind before it skips: half a MiB.
const BACKLOG: usize = 64;
/// What Linux prints first when it panics (`kernel/panic.c`).
const PANIC_MARK: &[u8] = b"Kernel panic - not syncing";

/// A microVM's serial console. Clones are handles on the same one.
#[derive(Debug, Clone)]
pub struct Console {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    log: Mutex<Log>,
    live: broadcast::Sender<Arc<[u8]>>,
    panicked: AtomicBool,
    path: PathBuf,
    seats: watch::Sender<Seats>,
    keys: mpsc::Sender<Box<[u8]>>,
    /// What is typed, until the guest's end of it is there.
    typed: std::sync::Mutex<Option<mpsc::Receiver<Box<[u8]>>>>,
}

/// A seat at a console, with what there is to see from it.
#[derive(Debug)]
pub struct Attached {
    /// The console's end so far.
    pub tail: Vec<u8>,
    /// Everything after it.
    pub live: ConsoleStream,
    /// The seat.
    pub viewer: Viewer,
}

/// A piece of a live console.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConsoleChunk {
    /// Bytes, as the guest wrote them: not necessarily text, and not to be trusted.
    Output(Arc<[u8]>),
    /// The reader was too slow; this many chunks are only in the log, if there.
    Skipped(u64),
}

/// The live console from one moment on.
#[derive(Debug)]
pub struct ConsoleStream {
    live: broadcast::Receiver<Arc<[u8]>>,
}

impl ConsoleStream {
    /// The next piece; `None` when the VM has ended and its console is read to the end.
    pub async fn next(&mut self) -> Option<ConsoleChunk> {
        match self.live.recv().await {
            // The empty chunk is the end: handles on the console may outlive the VM.
            Ok(bytes) if bytes.is_empty() => None,
            Ok(bytes) => Some(ConsoleChunk::Output(bytes)),
            Err(broadcast::error::RecvError::Lagged(chunks)) => Some(ConsoleChunk::Skipped(chunks)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Console {
    /// Opens the log, appending to what a former VM of this path left.
    pub(crate) async fn open(spec: &ConsoleSpec) -> Result<Self, Cause> {
        let log = Log::open(spec).await.on("open console log", &spec.log_path)?;
        Ok(Self::of(log, spec))
    }

    fn of(log: Log, spec: &ConsoleSpec) -> Self {
        let (keys, typed) = mpsc::channel(KEYS_WAITING);
        let shared = Shared {
            log: Mutex::new(log),
            live: broadcast::channel(BACKLOG).0,
            panicked: AtomicBool::new(false),
            path: spec.log_path.clone(),
            seats: watch::Sender::new(Seats::default()),
            keys,
            typed: std::sync::Mutex::new(Some(typed)),
        };
        Self { shared: Arc::new(shared) }
    }

    /// A console whose guest is at the other end of `stream`, without a VMM: for those who stand in for
    /// one.
    ///
    /// # Errors
    /// When its log cannot be opened.
    pub async fn over(spec: &ConsoleSpec, stream: UnixStream) -> io::Result<Self> {
        let console = Self::of(Log::open(spec).await?, spec);
        console.pump(stream);
        Ok(console)
    }

    /// The newer of the two log files.
    pub fn log_path(&self) -> &Path {
        &self.shared.path
    }

    /// What is kept of the console so far, oldest first: at most twice the file bound.
    ///
    /// # Errors
    /// When a log file cannot be read.
    pub async fn history(&self) -> io::Result<Vec<u8>> {
        self.shared.log.lock().await.read().await
    }

    /// What is kept so far, and everything after it, without a gap or a repetition.
    ///
    /// # Errors
    /// When a log file cannot be read.
    pub async fn follow(&self) -> io::Result<(Vec<u8>, ConsoleStream)> {
        let mut log = self.shared.log.lock().await;
        let live = self.live(&log);
        Ok((log.read().await?, live))
    }

    /// Takes a seat: the last bytes of the console, at most `most`, everything after them without a
    /// gap or a repetition, and the right to write for who is alone. `label` is shown to the others.
    ///
    /// # Errors
    /// When a log file cannot be read. `QuotaExceeded` when every seat is taken.
    pub async fn attach(&self, label: String, most: u64) -> io::Result<Attached> {
        let shared = &self.shared;
        let viewer = Viewer::sit_down(&shared.seats, shared.keys.clone(), label)
            .ok_or_else(|| io::Error::new(io::ErrorKind::QuotaExceeded, "every seat is taken"))?;
        let log = shared.log.lock().await;
        let live = self.live(&log);
        Ok(Attached { tail: log.tail(most).await?, live, viewer })
    }

    fn live(&self, log: &Log) -> ConsoleStream {
        let live = if log.ended { broadcast::channel(1).1 } else { self.shared.live.subscribe() };
        ConsoleStream { live }
    }

    /// Whether the guest's kernel said that it panicked. The guest may lie about it, to the
    /// cost of its own diagnosis only.
    pub(crate) fn panicked(&self) -> bool {
        self.shared.panicked.load(Ordering::Relaxed)
    }

    /// Takes in a VMM's console connection until it ends.
    pub(crate) fn pump(&self, stream: UnixStream) -> JoinHandle<()> {
        tokio::spawn(self.clone().run(stream))
    }

    async fn run(self, stream: UnixStream) {
        let typed = self.shared.typed.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Ok(quiet) = Quiet::new(stream) {
            tokio::select! {
                () = self.read(&quiet) => {}
                never = type_in(typed, &quiet) => match never {},
            }
        }
        let mut log = self.shared.log.lock().await;
        log.ended = true;
        // Nobody listening is no error.
        let _ = self.shared.live.send(Arc::from([]));
    }

    async fn read(&self, stream: &Quiet) {
        let mut pace = Pace::new(BYTES_PER_SECOND, BURST);
        let mut mark = Mark::default();
        let mut buffer = vec![0; CHUNK];
        // An error is the same as the end: the VMM is gone, and the supervisor says why.
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let bytes = &buffer[..read];
            if mark.seen_in(bytes) {
                self.shared.panicked.store(true, Ordering::Relaxed);
            }
            self.take(bytes).await;
            pace.spent(read.max(LEAST)).await;
        }
    }

    /// Log and broadcast under one lock: that is what makes [`Console::follow`] gapless.
    async fn take(&self, bytes: &[u8]) {
        let mut log = self.shared.log.lock().await;
        if let Err(error) = log.append(bytes).await
            && !std::mem::replace(&mut log.complained, true)
        {
            let path = self.shared.path.display();
            tracing::warn!(%path, %error, "console output is not being kept");
        }
        let _ = self.shared.live.send(Arc::from(bytes));
    }
}

/// Passes on what is typed, at the pace the guest takes it. It never ends: only the reader sees the end.
async fn type_in(typed: Option<mpsc::Receiver<Box<[u8]>>>, guest: &Quiet) -> Infallible {
    if let Some(mut typed) = typed {
        while let Some(bytes) = typed.recv().await {
            // The reading half sees the end, and the supervisor says why.
            if guest.write_all(&bytes).await.is_err() {
                break;
            }
        }
    }
    std::future::pending().await
}

/// Two files of at most `max` bytes each.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    file: File,
    size: u64,
    max: u64,
    complained: bool,
    ended: bool,
}

impl Log {
    async fn open(spec: &ConsoleSpec) -> io::Result<Self> {
        let file = Self::create(&spec.log_path).await?;
        Ok(Self {
            path: spec.log_path.clone(),
            size: file.metadata().await?.len(),
            file,
            max: spec.max_bytes.max(CHUNK as u64),
            complained: false,
            ended: false,
        })
    }

    async fn create(path: &Path) -> io::Result<File> {
        OpenOptions::new()
            .create(true)
            .append(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(path)
            .await
    }

    async fn append(&mut self, bytes: &[u8]) -> io::Result<()> {
        if self.size + bytes.len() as u64 > self.max {
            tokio::fs::rename(&self.path, self.rotated()).await?;
            self.file = Self::create(&self.path).await?;
            self.size = 0;
        }
        self.file.write_all(bytes).await?;
        self.file.flush().await?;
        self.size += bytes.len() as u64;
        Ok(())
    }

    async fn read(&mut self) -> io::Result<Vec<u8>> {
        let mut all = match tokio::fs::read(self.rotated()).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        all.extend(tokio::fs::read(&self.path).await?);
        Ok(all)
    }

    /// The last bytes of both files, at most `most`.
    async fn tail(&self, most: u64) -> io::Result<Vec<u8>> {
        let newer = end_of(&self.path, most).await?;
        let missing = most.saturating_sub(newer.len() as u64);
        let mut tail = match end_of(&self.rotated(), missing).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            read => read?,
        };
        tail.extend(newer);
        Ok(tail)
    }

    fn rotated(&self) -> PathBuf {
        let mut name = self.path.clone().into_os_string();
        name.push(".1");
        name.into()
    }
}

/// The last bytes of a file, at most `most`.
async fn end_of(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    let mut file = File::open(path).await?;
    let size = file.metadata().await?.len();
    file.seek(SeekFrom::Start(size.saturating_sub(most))).await?;
    let mut end = Vec::new();
    file.take(most).read_to_end(&mut end).await?;
    Ok(end)
}

/// Finds [`PANIC_MARK`] in a stream, also across two reads.
#[derive(Debug, Default)]
struct Mark {
    tail: Vec<u8>,
}

impl Mark {
    fn seen_in(&mut self, bytes: &[u8]) -> bool {
        self.tail.extend_from_slice(bytes);
        let seen = self.tail.windows(PANIC_MARK.len()).any(|window| window == PANIC_MARK);
        let keep = self.tail.len().min(PANIC_MARK.len() - 1);
        self.tail.drain(..self.tail.len() - keep);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(dir: &tempfile::TempDir, max_bytes: u64) -> ConsoleSpec {
        ConsoleSpec { log_path: dir.path().join("console.log"), max_bytes }
    }

    #[test]
    fn a_panic_is_found_across_reads_and_nothing_else_is() {
        let mut mark = Mark::default();
        assert!(!mark.seen_in(b"[1.0] Kernel panic - no"));
        assert!(mark.seen_in(b"t syncing: oops"));
        assert!(!Mark::default().seen_in(b"Kernel panic? not here"));
    }

    #[tokio::test]
    async fn a_flood_costs_two_files_and_the_newest_bytes_stay() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::open(&spec(&dir, 16 << 10)).await.unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let pump = console.pump(host);
        for line in 0..20_000 {
            guest.write_all(format!("{line:09}\n").as_bytes()).await.unwrap();
        }
        drop(guest);
        pump.await.unwrap();
        let on_disk: u64 = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().metadata().unwrap().len())
            .sum();
        assert!((16 << 10..=32 << 10).contains(&on_disk), "{on_disk}");
        let kept = console.history().await.unwrap();
        assert!(kept.ends_with(b"000019999\n"));
    }

    #[tokio::test]
    async fn following_has_no_gap_and_ends_with_the_vm() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::open(&spec(&dir, 1 << 20)).await.unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let pump = console.pump(host);
        guest.write_all(b"before ").await.unwrap();
        let (mut seen, mut stream) = loop {
            let (history, stream) = console.follow().await.unwrap();
            if !history.is_empty() {
                break (history, stream);
            }
            tokio::task::yield_now().await;
        };
        guest.write_all(b"after").await.unwrap();
        drop(guest);
        while let Some(ConsoleChunk::Output(bytes)) = stream.next().await {
            seen.extend_from_slice(&bytes);
        }
        assert_eq!(seen, b"before after");
        pump.await.unwrap();
        let (all, mut ended) = console.follow().await.unwrap();
        assert_eq!(all, b"before after");
        assert_eq!(ended.next().await, None);
    }

    #[tokio::test]
    async fn a_seat_shows_the_consoles_end_and_what_comes_and_types_into_the_guest() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::open(&spec(&dir, 16 << 10)).await.unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let pump = console.pump(host);
        // Three files' worth: the end spans both that are kept.
        let all: Vec<u8> = (0..5000).flat_map(|line| format!("{line:08}\n").into_bytes()).collect();
        guest.write_all(&all).await.unwrap();
        while !console.history().await.unwrap().ends_with(b"00004999\n") {
            tokio::task::yield_now().await;
        }
        let Attached { tail, mut live, viewer } = console.attach("a".into(), 20 << 10).await.unwrap();
        assert_eq!(tail, all[all.len() - (20 << 10)..]);
        viewer.write(b"ls\r").unwrap();
        let mut typed = [0; 3];
        guest.read_exact(&mut typed).await.unwrap();
        assert_eq!(&typed, b"ls\r");
        guest.write_all(b"answer").await.unwrap();
        assert_eq!(live.next().await, Some(ConsoleChunk::Output(Arc::from(*b"answer"))));
        drop(guest);
        pump.await.unwrap();
        assert_eq!(live.next().await, None);
        assert_eq!(viewer.write(b"x"), Err(NotTyped::Ended));
    }

    #[tokio::test]
    async fn who_does_not_read_misses_the_middle_and_holds_nobody_up() {
        let dir = tempfile::tempdir().unwrap();
        let console = Console::open(&spec(&dir, 1 << 20)).await.unwrap();
        let (mut guest, host) = UnixStream::pair().unwrap();
        let pump = console.pump(host);
        let mut slow = console.attach("slow".into(), 0).await.unwrap();
        let mut quick = console.attach("quick".into(), 0).await.unwrap();
        for line in 0..3 * BACKLOG {
            guest.write_all(format!("{line:04}\n").as_bytes()).await.unwrap();
            // One chunk a line, so that the backlog is what it is counted in.
            assert!(matches!(quick.live.next().await, Some(ConsoleChunk::Output(_))));
        }
        let missed = (2 * BACKLOG) as u64;
        assert_eq!(slow.live.next().await, Some(ConsoleChunk::Skipped(missed)));
        assert_eq!(slow.live.next().await, Some(ConsoleChunk::Output(Arc::from(*b"0128\n"))));
        drop(guest);
        pump.await.unwrap();
    }
}
