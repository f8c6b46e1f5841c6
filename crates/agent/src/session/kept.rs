//! One background process: its output as it comes, and its end.
//!
//! Owns: the thread that reads its outputs into the [`Ring`] and reaps it, so that the process never waits for a
//! reader. Once it was reaped it gets no more signals: its id may be another's. Refuses: which processes there
//! are, and who asks.

use super::connection::until;
use super::exec::Detached;
use super::process::Process;
use super::pump::Job as _;
use super::ring::{Ring, Stream};
use enisle_guest_proto::{Control, ProcessInfo, ProcessState};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::{self, PipeReader, PipeWriter};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Instant, SystemTime, UNIX_EPOCH};

/// Bytes of one read of an output.
const PIECE: usize = 16 << 10;
/// Stack of the thread: what it reads is on the heap.
const STACK: usize = 128 << 10;

/// A process that is kept until somebody removes it.
pub(super) struct Kept {
    id: u32,
    pid: u32,
    argv: Vec<String>,
    cwd: String,
    user: String,
    started_ms: i64,
    now: Mutex<Now>,
    changed: Condvar,
}

/// What changes of it.
pub(super) struct Now {
    pub(super) ring: Ring,
    /// How it ended, and how much had been written by then.
    pub(super) end: Option<(ProcessState, u64)>,
    process: Process,
}

impl Kept {
    /// Keeps a process that was just started. Its thread ends when the writer is dropped.
    pub(super) fn new(id: u32, argv: Vec<String>, started: Detached) -> io::Result<(Arc<Self>, PipeWriter)> {
        let Detached { process, pid, user, cwd, outputs } = started;
        let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let kept = Arc::new(Self {
            id,
            pid,
            argv,
            cwd: cwd.to_string_lossy().into_owned(),
            user,
            started_ms: i64::try_from(since_epoch.as_millis()).unwrap_or(i64::MAX),
            now: Mutex::new(Now { ring: Ring::default(), end: None, process }),
            changed: Condvar::new(),
        });
        match Self::follow(&kept, outputs) {
            Ok(hold) => Ok((kept, hold)),
            Err(error) => {
                // Nobody would ever read from it.
                let now = kept.now();
                now.process.kill_session();
                now.process.reap();
                drop(now);
                Err(error)
            }
        }
    }

    fn follow(kept: &Arc<Self>, outputs: [OwnedFd; 2]) -> io::Result<PipeWriter> {
        let (forgotten, hold) = io::pipe()?;
        let ended = kept.now().process.ended().ok_or(Errno::SRCH)?.try_clone_to_owned()?;
        let reader = Reader {
            kept: Arc::clone(kept),
            outputs: outputs.map(Some),
            ended: Some(ended),
            forgotten,
            piece: vec![0; PIECE],
        };
        thread::Builder::new().name("process".to_owned()).stack_size(STACK).spawn(move || reader.run())?;
        Ok(hold)
    }

    /// What changes, held. A panic elsewhere leaves sums that are whole.
    pub(super) fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a change, at most until the deadline.
    pub(super) fn wait<'a>(
        &self,
        now: MutexGuard<'a, Now>,
        deadline: Option<Instant>,
    ) -> MutexGuard<'a, Now> {
        match deadline {
            None => self.changed.wait(now).unwrap_or_else(PoisonError::into_inner),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(now, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }

    /// Wakes everybody who waits for a change.
    pub(super) fn wake(&self) {
        // With the lock, so that nobody is between looking and waiting.
        let _now = self.now();
        self.changed.notify_all();
    }

    pub(super) fn info(&self) -> ProcessInfo {
        let now = self.now();
        ProcessInfo {
            id: self.id,
            pid: self.pid,
            argv: self.argv.clone(),
            cwd: self.cwd.clone(),
            user: self.user.clone(),
            started_ms: self.started_ms,
            state: now.end.map_or(ProcessState::Running {}, |(state, _)| state),
            written: now.ring.written(),
            dropped: now.ring.dropped(),
        }
    }

    /// Signals its process group; false when it has ended.
    pub(super) fn signal(&self, signal: u8) -> bool {
        let now = self.now();
        if now.end.is_none() {
            now.process.signal(i32::from(signal));
        }
        now.end.is_none()
    }

    /// Kills every process of its session, if it runs.
    pub(super) fn kill(&self) {
        let now = self.now();
        if now.end.is_none() {
            now.process.kill_session();
        }
    }
}

/// The thread of one process.
struct Reader {
    kept: Arc<Kept>,
    outputs: [Option<OwnedFd>; 2],
    /// `None` once it was reaped.
    ended: Option<OwnedFd>,
    forgotten: PipeReader,
    piece: Vec<u8>,
}

impl Reader {
    /// Until it is forgotten, or has ended and nobody is left to write.
    fn run(mut self) {
        let mut deadline = self.kept.now().process.deadline();
        while self.ended.is_some() || self.outputs.iter().any(Option::is_some) {
            let Some([ended, forgotten, stdout, stderr]) = self.wait(deadline) else { return };
            if forgotten {
                return;
            }
            for (index, ready) in [stdout, stderr].into_iter().enumerate() {
                if ready {
                    self.read(index);
                }
            }
            if ended {
                self.reap();
                deadline = None;
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                self.kept.now().process.expire();
                deadline = None;
            }
        }
    }

    /// Which of end, oblivion, standard output and standard error there is; `None` when it cannot be known.
    fn wait(&self, deadline: Option<Instant>) -> Option<[bool; 4]> {
        let [stdout, stderr] = &self.outputs;
        let all = [
            self.ended.as_ref().map(AsFd::as_fd),
            Some(self.forgotten.as_fd()),
            stdout.as_ref().map(AsFd::as_fd),
            stderr.as_ref().map(AsFd::as_fd),
        ];
        let mut polled: Vec<PollFd<'_>> =
            all.iter().flatten().map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN)).collect();
        loop {
            match poll(&mut polled, deadline.map(until).as_ref()) {
                Ok(_) => break,
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
        let mut answers = polled.iter().map(|polled| !polled.revents().is_empty());
        Some(all.map(|fd| fd.is_some() && answers.next().unwrap_or(false)))
    }

    /// Reads once into the ring; how much there was.
    fn read(&mut self, index: usize) -> usize {
        let stream = if index == 0 { Stream::Stdout } else { Stream::Stderr };
        let Some(output) = self.outputs.get_mut(index) else { return 0 };
        let Some(fd) = &output else { return 0 };
        match rustix::io::read(fd, &mut self.piece[..]) {
            Ok(0) => *output = None,
            Ok(length) => {
                self.kept.now().ring.push(stream, &self.piece[..length]);
                self.kept.changed.notify_all();
                return length;
            }
            Err(Errno::INTR | Errno::AGAIN) => {}
            Err(_) => *output = None,
        }
        0
    }

    /// It has ended: what it had written by then is read, and no more, for others may hold its outputs.
    fn reap(&mut self) {
        for index in 0..self.outputs.len() {
            let fd = self.outputs.get(index).and_then(Option::as_ref);
            let mut due = fd.map_or(0, |fd| rustix::io::ioctl_fionread(fd).unwrap_or(0));
            while due > 0 {
                match self.read(index) {
                    0 => break,
                    length => due = due.saturating_sub(length as u64),
                }
            }
        }
        self.ended = None;
        let mut now = self.kept.now();
        let state = match now.process.reap() {
            Control::Exit { code, signal, timed_out } => ProcessState::Ended { code, signal, timed_out },
            _ => ProcessState::Ended { code: 255, signal: None, timed_out: false },
        };
        now.end = Some((state, now.ring.written()));
        drop(now);
        self.kept.changed.notify_all();
    }
}
