//! Background processes: which there are, and what sessions ask of them.
//!
//! Owns: the numbers and the bound of [`MAX_PROCESSES`], and the sessions that read an output or wait for an end. A
//! session that breaks off leaves the process as it is. Refuses: what a process does, which is [`Kept`]'s.

use super::Running;
use super::archive::{self, Worker};
use super::exec::{self, non_blocking};
use super::failure::{failure, from_io};
use super::files::{alone, with_output, write_line};
use super::kept::Kept;
use super::pump::{Job, Streams};
use super::ring::Stream;
use enisle_guest_proto::{
    Control, Exec, Failure, FailureCode, MAX_PROCESSES, OutputHead, ProcessInfo, ProcessOp, ProcessState,
};
use std::collections::BTreeMap;
use std::io::{self, BufWriter, PipeWriter, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Bytes that go to a reader at once.
const PIECE: usize = 16 << 10;
/// A killed process ends within this time, or its removal fails.
const KILL_PATIENCE: Duration = Duration::from_secs(10);

/// Signals are 1 to 64 (signal(7)).
const SIGNALS: std::ops::RangeInclusive<u8> = 1..=64;

/// The processes of this guest.
static TABLE: Mutex<Table> = Mutex::new(Table { last: 0, starting: 0, kept: BTreeMap::new() });

struct Table {
    last: u32,
    /// Those that have a number and are not kept yet.
    starting: usize,
    /// Each with what its thread lives by.
    kept: BTreeMap<u32, (Arc<Kept>, PipeWriter)>,
}

/// A panic elsewhere leaves a table that is whole.
fn table() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Begins an operation. What can be refused at once is.
pub(super) fn begin(op: ProcessOp) -> Result<Running, Failure> {
    match op {
        ProcessOp::Start(exec) => tell(vec![start(exec)?.info()]),
        ProcessOp::List {} => tell(table().kept.values().map(|(kept, _)| kept.info()).collect()),
        ProcessOp::Show { id } => tell(vec![find(id)?.info()]),
        ProcessOp::Output { id, since } => output(find(id)?, id, since),
        ProcessOp::Attach { id, since } => attach(find(id)?, id, since),
        ProcessOp::Signal { id, signal } => {
            if !SIGNALS.contains(&signal) {
                return Err(failure(FailureCode::Invalid, format!("{signal} is no signal")));
            }
            let kept = find(id)?;
            if !kept.signal(signal) {
                return Err(failure(FailureCode::Ended, format!("process {id} has ended")));
            }
            tell(vec![kept.info()])
        }
        ProcessOp::Wait { id, timeout_ms } => wait(find(id)?, timeout_ms),
        ProcessOp::Remove { id } => {
            let kept = find(id)?;
            alone(move || remove(&kept, id))
        }
    }
}

/// A number and a place for a process that is being started.
struct Reserved(u32);

impl Reserved {
    fn new() -> Result<Self, Failure> {
        let mut table = table();
        if table.kept.len() + table.starting >= MAX_PROCESSES {
            let message =
                format!("{MAX_PROCESSES} processes are kept in this VM, ended ones included: remove some");
            return Err(failure(FailureCode::Exhausted, message));
        }
        table.last = table.last.checked_add(1).ok_or_else(|| {
            failure(FailureCode::Exhausted, "there are no more numbers for processes".to_owned())
        })?;
        table.starting += 1;
        Ok(Self(table.last))
    }
}

impl Drop for Reserved {
    fn drop(&mut self) {
        table().starting -= 1;
    }
}

/// Starts a process. The table is not held meanwhile: the program may lie on a file system that does not answer.
fn start(exec: Exec) -> Result<Arc<Kept>, Failure> {
    let place = Reserved::new()?;
    let started = exec::detach(&exec, Path::new("/"))?;
    let (kept, hold) =
        Kept::new(place.0, exec.argv, started).map_err(|e| from_io("follow the process", &e))?;
    table().kept.insert(place.0, (Arc::clone(&kept), hold));
    Ok(kept)
}

fn find(id: u32) -> Result<Arc<Kept>, Failure> {
    let kept = table().kept.get(&id).map(|(kept, _)| Arc::clone(kept));
    kept.ok_or_else(|| failure(FailureCode::NotFound, format!("there is no background process {id}")))
}

fn tell(infos: Vec<ProcessInfo>) -> Result<Running, Failure> {
    with_output(move |out| {
        infos.iter().try_for_each(|info| write_line(out, info)).map_err(|e| from_io("answer", &e))
    })
}

/// Kills it and forgets it once it has ended. Who is attached sees its end.
fn remove(kept: &Kept, id: u32) -> Result<(), Failure> {
    kept.kill();
    let deadline = Instant::now() + KILL_PATIENCE;
    let mut now = kept.now();
    while now.end.is_none() {
        if Instant::now() >= deadline {
            let message = format!("process {id} was killed and does not end; it is kept");
            return Err(failure(FailureCode::Failed, message));
        }
        now = kept.wait(now, Some(deadline));
    }
    drop(now);
    // Somebody else may have removed it meanwhile. Its thread ends by this.
    table().kept.remove(&id);
    Ok(())
}

fn beyond(id: u32, since: u64, written: u64) -> Result<(), Failure> {
    if since > written {
        let message = format!("process {id} has written {written} bytes, not {since}");
        return Err(failure(FailureCode::Invalid, message));
    }
    Ok(())
}

/// What is kept of its output, all of the same moment.
fn output(kept: Arc<Kept>, id: u32, since: u64) -> Result<Running, Failure> {
    let now = kept.now();
    beyond(id, since, now.ring.written())?;
    let mut next = since.max(now.ring.dropped());
    let head = OutputHead { dropped: next - since, running: now.end.is_none() };
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some((stream, bytes)) = now.ring.read(next, PIECE) {
        let to = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
        to.extend_from_slice(bytes);
        next += bytes.len() as u64;
    }
    drop(now);
    let watch = Arc::new(Watch::new(kept));
    run(watch, false, move |_, [out, mut err]| {
        // Standard error on the side: who reads both may begin with either.
        let errors = std::thread::Builder::new()
            .name("stderr".to_owned())
            .stack_size(STACK)
            .spawn(move || err.write_all(&stderr))
            .map_err(|e| from_io("answer", &e))?;
        let mut out = BufWriter::new(out);
        // Who has hung up needs no answer.
        let written = write_line(&mut out, &head).and_then(|()| out.write_all(&stdout));
        drop(written.and_then(|()| out.flush()));
        drop(errors.join());
        Ok(())
    })
}

const STACK: usize = 64 << 10;

/// Its output as it comes.
fn attach(kept: Arc<Kept>, id: u32, since: u64) -> Result<Running, Failure> {
    beyond(id, since, kept.now().ring.written())?;
    let watch = Arc::new(Watch::new(kept));
    run(watch, true, move |watch, outputs| {
        watch.copy(since, outputs);
        Ok(())
    })
}

/// Its description once it has ended, or the time is over.
fn wait(kept: Arc<Kept>, timeout_ms: u64) -> Result<Running, Failure> {
    let deadline = Instant::now().checked_add(Duration::from_millis(timeout_ms));
    let watch = Arc::new(Watch::new(kept));
    run(watch, false, move |watch, [mut out, _]| {
        let kept = &watch.kept;
        let mut now = kept.now();
        while now.end.is_none() && !watch.gone() && deadline.is_none_or(|deadline| deadline > Instant::now())
        {
            now = kept.wait(now, deadline);
        }
        drop(now);
        // Who has hung up needs no answer.
        drop(write_line(&mut out, &kept.info()));
        Ok(())
    })
}

/// Runs a worker with both outputs, which hears when the daemon is gone.
fn run(
    watch: Arc<Watch>,
    until_end: bool,
    task: impl FnOnce(&Watch, [PipeWriter; 2]) -> Result<(), Failure> + Send + 'static,
) -> Result<Running, Failure> {
    let begin = || -> io::Result<Running> {
        let (stdout, out) = io::pipe()?;
        let (stderr, err) = io::pipe()?;
        let worker = archive::start(Arc::default(), {
            let watch = Arc::clone(&watch);
            move || task(&watch, [out, err])
        })?;
        let streams = Streams {
            input: None,
            stdout: Some(non_blocking(stdout.into())?),
            stderr: Some(non_blocking(stderr.into())?),
        };
        Ok(Running { pid: None, streams, job: Box::new(Watching { worker, watch, until_end }) })
    };
    begin().map_err(|e| from_io("start the worker", &e))
}

/// What a session and its worker share.
struct Watch {
    kept: Arc<Kept>,
    /// The daemon has hung up.
    gone: AtomicBool,
    /// Bytes that were overwritten before they could be sent, and not told of yet.
    dropped: AtomicU64,
}

impl Watch {
    fn new(kept: Arc<Kept>) -> Self {
        Self { kept, gone: AtomicBool::new(false), dropped: AtomicU64::new(0) }
    }

    fn gone(&self) -> bool {
        self.gone.load(Ordering::Acquire)
    }

    /// Sends output until the process has ended and all that it had written by then was sent.
    fn copy(&self, mut next: u64, [mut stdout, mut stderr]: [PipeWriter; 2]) {
        let mut piece = Vec::with_capacity(PIECE);
        loop {
            piece.clear();
            let Some(stream) = self.next_piece(&mut next, &mut piece) else { return };
            let to = if stream == Stream::Stdout { &mut stdout } else { &mut stderr };
            // The session is over when its pipe breaks.
            if to.write_all(&piece).is_err() {
                return;
            }
        }
    }

    fn next_piece(&self, next: &mut u64, piece: &mut Vec<u8>) -> Option<Stream> {
        let mut now = self.kept.now();
        while !self.gone() {
            let lost = now.ring.dropped().saturating_sub(*next);
            // Told before what follows: the pump says it before it reads on.
            self.dropped.fetch_add(lost, Ordering::AcqRel);
            *next += lost;
            if now.end.is_some_and(|(_, written)| *next >= written) {
                return None;
            }
            if let Some((stream, bytes)) = now.ring.read(*next, PIECE) {
                piece.extend_from_slice(bytes);
                *next += bytes.len() as u64;
                return Some(stream);
            }
            now = self.kept.wait(now, None);
        }
        None
    }
}

/// A worker at a process, as the pump sees it.
struct Watching {
    worker: Worker,
    watch: Arc<Watch>,
    /// It ends as the process ends.
    until_end: bool,
}

impl Job for Watching {
    fn ended(&self) -> Option<BorrowedFd<'_>> {
        self.worker.ended()
    }

    fn control(&mut self, message: &Control) {
        if let (Control::Signal { signal }, true) = (message, self.until_end) {
            self.watch.kept.signal(*signal);
        }
    }

    fn notice(&mut self) -> Option<Control> {
        match self.watch.dropped.swap(0, Ordering::AcqRel) {
            0 => None,
            bytes => Some(Control::Dropped { bytes }),
        }
    }

    fn finish(&mut self, broken: Option<io::Error>) -> Control {
        let last = self.worker.finish(broken);
        let end = self.watch.kept.now().end;
        match (end, self.until_end, &last) {
            (Some((ProcessState::Ended { code, signal, timed_out }, _)), true, Control::Exit { .. }) => {
                Control::Exit { code, signal, timed_out }
            }
            _ => last,
        }
    }

    fn abandon(&mut self) {
        self.watch.gone.store(true, Ordering::Release);
        self.watch.kept.wake();
    }
}
