//! The loop of every session: bytes between the connection and an operation's ends, with credit.
//!
//! Owns: flow control in both directions, end of stream in both directions, and the order of the
//! last messages. Everything is non-blocking and on one thread; `poll` is the only wait, but for the disk of a
//! regular file. Data is written from where it was received, and read to where it is sent from. Refuses: what an
//! operation is, which is behind [`Job`].
//!
//! ```text
//! connection ── Stdin frames ─▶ input, else queue (≤ WINDOW)       credit goes back as it is written
//! connection ◀─ Stdout, Stderr ◀─ read ≤ credit ◀──── outputs      credit comes with Window
//! job ended, outputs drained ──▶ Eof each, Exit or Failed, close
//! ```

use super::connection::{CONGESTED, Connection, ConnectionError, until};
use super::input::Input;
pub(super) use super::input::InputEnd;
use enisle_guest_proto::{Control, Kind, MAX_PAYLOAD, Part, WINDOW};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io::{self, IoSlice};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Outputs that other processes still hold are listened to this long after the job has ended and
/// after what it had written by then has been sent.
const DRAIN_PATIENCE: Duration = Duration::from_millis(200);
/// Frames read from one output before the other ends have their turn.
const BURST: usize = 4;
/// Parts of the input that are written at once.
const BATCH: usize = 8;

/// An operation as the pump sees it.
pub(super) trait Job {
    /// Becomes readable, or hangs up, once the operation has ended. `None` when it ends with its
    /// streams.
    fn ended(&self) -> Option<BorrowedFd<'_>>;
    /// When [`Job::expire`] is to be called.
    fn deadline(&self) -> Option<Instant> {
        None
    }
    /// The deadline is there; called once.
    fn expire(&mut self) {}
    /// A signal or a new terminal size from the daemon.
    fn control(&mut self, _message: &Control) {}
    /// What is to be said before the outputs are read any further.
    fn notice(&mut self) -> Option<Control> {
        None
    }
    /// Whether the output is a regular file, which never has to be waited for: what a read answers is final.
    fn output_is_a_file(&self) -> bool {
        false
    }
    /// All input was delivered and its end too.
    fn input_complete(&mut self) {}
    /// The last message, once the operation has ended and its outputs are drained. `broken` is
    /// the failure of a stream, if one failed.
    fn finish(&mut self, broken: Option<io::Error>) -> Control;
    /// The daemon is gone: end the operation.
    fn abandon(&mut self);
}

/// The ends of an operation. All descriptors are non-blocking, but for regular files.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) input: Option<(OwnedFd, InputEnd)>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// What the operation sends to the daemon.
struct Output {
    kind: Kind,
    fd: Option<OwnedFd>,
    credit: u32,
    /// Bytes that were in the pipe when the job ended and must still be sent.
    due: Option<u64>,
}

struct Pump {
    connection: Connection,
    input: Input,
    outputs: [Output; 2],
    job: Box<dyn Job>,
    job_ended: bool,
    expired: bool,
    drained_by: Option<Instant>,
    broken: Option<io::Error>,
    /// Input that came and was not looked at yet, at most [`BATCH`].
    came: Vec<Part>,
}

/// Runs a session to its end. The operation is abandoned when the connection fails first.
pub(super) fn run(
    connection: Connection,
    streams: Streams,
    job: Box<dyn Job>,
) -> Result<(), ConnectionError> {
    let output = |kind, fd| Output { kind, fd, credit: WINDOW, due: None };
    let mut pump = Pump {
        connection,
        input: Input::new(streams.input),
        outputs: [output(Kind::Stdout, streams.stdout), output(Kind::Stderr, streams.stderr)],
        job,
        job_ended: false,
        expired: false,
        drained_by: None,
        broken: None,
        came: Vec::with_capacity(BATCH),
    };
    match pump.run() {
        Ok(()) => pump.connection.close(),
        Err(e) => {
            pump.job.abandon();
            Err(e)
        }
    }
}

/// What `poll` found.
struct Found {
    connection: PollFlags,
    outputs: [bool; 2],
    job: bool,
}

impl Pump {
    fn run(&mut self) -> Result<(), ConnectionError> {
        loop {
            self.take_frames()?;
            if self.input.pending() > 0 {
                self.input.deliver(&mut self.broken);
            }
            self.end_input();
            self.return_credit()?;
            self.say_notice()?;
            if self.is_over() {
                break;
            }
            self.connection.flush()?;
            let found = self.wait()?;
            if found.connection.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.connection.fill()?;
            }
            for (index, ready) in found.outputs.into_iter().enumerate() {
                let mut left = if ready { BURST } else { 0 };
                while left > 0 && self.forward(index)? {
                    left -= 1;
                }
            }
            if found.job && !self.job_ended {
                self.job_has_ended();
            }
            self.keep_time()?;
        }
        self.say_notice()?;
        let last = self.job.finish(self.broken.take());
        for kind in [Kind::Stdout, Kind::Stderr] {
            self.close_output(kind)?;
        }
        Ok(self.connection.queue(&last)?)
    }

    /// Takes everything that has come.
    fn take_frames(&mut self) -> Result<(), ConnectionError> {
        while let Some(part) = self.connection.parts.next_part()? {
            match part.kind {
                Kind::Stdin => {
                    self.input.came(part.len())?;
                    if !part.is_empty() {
                        self.came.push(part);
                    }
                    if self.came.len() == BATCH {
                        self.take_input();
                    }
                }
                Kind::Control => {
                    // Its end comes behind it.
                    self.take_input();
                    let message = self.connection.parts.message(&part)?;
                    self.obey(&message)?;
                }
                Kind::Stdout | Kind::Stderr => {
                    return Err(ConnectionError::Protocol("data on an output stream"));
                }
            }
        }
        self.take_input();
        Ok(())
    }

    /// Writes the input that came from where it lies.
    fn take_input(&mut self) {
        let mut pieces = [IoSlice::new(&[]); BATCH];
        for (piece, part) in pieces.iter_mut().zip(&self.came) {
            *piece = IoSlice::new(self.connection.parts.bytes(part));
        }
        let count = self.came.len().min(BATCH);
        self.input.take(&mut pieces[..count], &mut self.broken);
        self.came.clear();
    }

    fn say_notice(&mut self) -> Result<(), ConnectionError> {
        match self.job.notice() {
            Some(notice) => Ok(self.connection.queue(&notice)?),
            None => Ok(()),
        }
    }

    fn is_over(&self) -> bool {
        let drained = self.outputs.iter().all(|output| output.fd.is_none());
        let ended = if self.job.ended().is_some() {
            self.job_ended
        } else {
            self.input.fd.is_none() || self.broken.is_some()
        };
        drained && ended
    }

    fn wait(&self) -> Result<Found, ConnectionError> {
        let congested = self.connection.unsent() > CONGESTED;
        let mut flags = if congested { PollFlags::empty() } else { PollFlags::IN };
        if self.connection.unsent() > 0 {
            flags |= PollFlags::OUT;
        }
        let mut polled = vec![PollFd::from_borrowed_fd(self.connection.as_fd(), flags)];
        // What is not wanted is left out: poll reports a hang-up even where nothing was asked.
        let input = self.input.fd.as_ref().filter(|_| self.input.pending() > 0);
        let [stdout, stderr] = self.outputs.each_ref().map(|output| {
            output
                .fd
                .as_ref()
                .filter(|_| output.credit > 0 && !congested)
                .map(|fd| (fd.as_fd(), PollFlags::IN))
        });
        let job = self.job.ended().filter(|_| !self.job_ended);
        let wanted = [
            input.map(|(fd, _)| (fd.as_fd(), PollFlags::OUT)),
            stdout,
            stderr,
            job.map(|fd| (fd, PollFlags::IN)),
        ];
        polled.extend(wanted.iter().flatten().map(|(fd, flags)| PollFd::from_borrowed_fd(*fd, *flags)));
        let time = self.next_deadline().map(until);
        match poll(&mut polled, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(e) => return Err(e.into()),
        }
        let mut answers = polled.iter().map(PollFd::revents);
        let connection = answers.next().unwrap_or(PollFlags::empty());
        let [_, stdout, stderr, job] =
            wanted.map(|wanted| wanted.is_some() && answers.next().is_some_and(|answer| !answer.is_empty()));
        Ok(Found { connection, outputs: [stdout, stderr], job })
    }

    fn next_deadline(&self) -> Option<Instant> {
        let expiry = self.job.deadline().filter(|_| !self.expired && !self.job_ended);
        [expiry, self.drained_by].into_iter().flatten().min()
    }

    fn obey(&mut self, message: &Control) -> Result<(), ConnectionError> {
        match message {
            Control::Window { stream, bytes } => {
                let output = self.outputs.iter_mut().find(|output| output.kind as u8 == *stream);
                let output =
                    output.ok_or(ConnectionError::Protocol("credit for a stream the agent does not send"))?;
                output.credit = output.credit.saturating_add(*bytes);
            }
            Control::Eof { stream } if *stream == Kind::Stdin as u8 => self.input.end(),
            Control::Eof { .. } => {
                return Err(ConnectionError::Protocol("the end of a stream the agent sends"));
            }
            Control::Resize { .. } | Control::Signal { .. } => {
                if !self.job_ended {
                    self.job.control(message);
                }
            }
            Control::Dropped { .. } | Control::Exit { .. } | Control::Failed(_) => {
                return Err(ConnectionError::Protocol("an agent's message"));
            }
        }
        Ok(())
    }

    /// Shows the end of the input to the operation once all of it was written.
    fn end_input(&mut self) {
        if !self.input.is_complete() {
            return;
        }
        if let Some((fd, end)) = self.input.fd.take() {
            self.job.input_complete();
            match end {
                InputEnd::Close | InputEnd::File => {}
                // A peer that is gone needs no end of stream.
                InputEnd::Shutdown => drop(rustix::net::shutdown(&fd, rustix::net::Shutdown::Write)),
                // VEOF as terminals have it by default; a full terminal buffer loses it, as typing would.
                InputEnd::EndOfFile => drop(rustix::io::write(&fd, &[4])),
            }
        }
    }

    fn return_credit(&mut self) -> Result<(), ConnectionError> {
        if self.connection.unsent() <= CONGESTED
            && let Some(bytes) = self.input.credit()
        {
            self.connection.queue(&Control::Window { stream: Kind::Stdin as u8, bytes })?;
        }
        Ok(())
    }

    /// Reads once from an output, at most what its credit allows. True when there may be more.
    fn forward(&mut self, index: usize) -> Result<bool, ConnectionError> {
        let Some(output) = self.outputs.get_mut(index) else { return Ok(false) };
        let Some(fd) = &output.fd else { return Ok(false) };
        let room = MAX_PAYLOAD.min(output.credit as usize);
        if room == 0 {
            return Ok(false);
        }
        let file = self.job.output_is_a_file();
        match self.connection.out.read(fd.as_fd(), room) {
            Ok(0) => {}
            Ok(length) => {
                output.credit -= length as u32;
                output.due = output.due.map(|due| due.saturating_sub(length as u64));
                let kind = output.kind;
                // What was lost before these bytes was counted before they were written.
                if let Some(notice) = self.job.notice() {
                    self.connection.out.message_before(length, &notice)?;
                }
                self.connection.out.data(kind, length);
                return Ok(length == room);
            }
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::AGAIN) if !file => {
                // A terminal counts bytes that it then does not deliver.
                output.due = output.due.map(|_| 0);
                return Ok(false);
            }
            // The last process of a terminal is gone (pty(7)).
            Err(Errno::IO) if !file => {}
            Err(e) => self.broken = Some(e.into()),
        }
        let kind = output.kind;
        self.close_output(kind)?;
        Ok(false)
    }

    fn close_output(&mut self, kind: Kind) -> Result<(), ConnectionError> {
        if let Some(output) = self.outputs.iter_mut().find(|output| output.kind == kind)
            && output.fd.take().is_some()
        {
            self.connection.queue(&Control::Eof { stream: kind as u8 })?;
        }
        Ok(())
    }

    /// From now on only what is in the pipes is owed; nothing more is expected from the input.
    fn job_has_ended(&mut self) {
        self.job_ended = true;
        for output in &mut self.outputs {
            output.due = output.fd.as_ref().map(|fd| rustix::io::ioctl_fionread(fd).unwrap_or(0));
        }
        self.drained_by = Some(Instant::now() + DRAIN_PATIENCE);
    }

    fn keep_time(&mut self) -> Result<(), ConnectionError> {
        let now = Instant::now();
        if !self.expired && !self.job_ended && self.job.deadline().is_some_and(|deadline| deadline <= now) {
            self.expired = true;
            self.job.expire();
        }
        if self.drained_by.is_some_and(|end| end <= now) {
            self.drained_by = None;
        }
        if self.job_ended && self.drained_by.is_none() {
            // An output without credit keeps its due bytes until the daemon takes them.
            for kind in [Kind::Stdout, Kind::Stderr] {
                if self.outputs.iter().any(|output| output.kind == kind && output.due == Some(0)) {
                    self.close_output(kind)?;
                }
            }
        }
        Ok(())
    }
}
