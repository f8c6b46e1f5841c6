//! The loop of every session: bytes between the connection and an operation's ends, with credit.
//!
//! Owns: flow control in both directions, end of stream in both directions, and the order of the
//! last messages. Everything is non-blocking and on one thread; `poll` is the only wait. Refuses:
//! what an operation is, which is behind [`Job`].
//!
//! ```text
//! connection ── Stdin frames ──▶ queue (≤ WINDOW) ──▶ input        credit goes back as it is written
//! connection ◀─ Stdout, Stderr ◀─ read ≤ credit ◀──── outputs      credit comes with Window
//! job ended, outputs drained ──▶ Eof each, Exit or Failed, close
//! ```

use super::connection::{CONGESTED, Connection, ConnectionError, until};
use enisle_guest_proto::{Control, Kind, MAX_PAYLOAD, WINDOW};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

/// Outputs that other processes still hold are listened to this long after the job has ended and
/// after what it had written by then has been sent.
const DRAIN_PATIENCE: Duration = Duration::from_millis(200);
/// Frames read from one output before the other ends have their turn.
const BURST: usize = 4;
/// Credit is given back in portions of this size: fewer frames, and the sender never runs dry.
const CREDIT_PORTION: u32 = WINDOW / 4;

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
    /// All input was delivered and its end too.
    fn input_complete(&mut self) {}
    /// The last message, once the operation has ended and its outputs are drained. `broken` is
    /// the failure of a stream, if one failed.
    fn finish(&mut self, broken: Option<io::Error>) -> Control;
    /// The daemon is gone: end the operation.
    fn abandon(&mut self);
}

/// How the end of the input is shown to the operation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum InputEnd {
    /// The descriptor is closed (pipe).
    Close,
    /// The sending side is shut down (socket).
    Shutdown,
    /// The terminal's end-of-file character is typed.
    EndOfFile,
}

/// The ends of an operation. All descriptors are non-blocking.
#[derive(Default)]
pub(super) struct Streams {
    pub(super) input: Option<(OwnedFd, InputEnd)>,
    pub(super) stdout: Option<OwnedFd>,
    pub(super) stderr: Option<OwnedFd>,
}

/// What the daemon sends to the operation.
struct Input {
    fd: Option<(OwnedFd, InputEnd)>,
    queue: Vec<u8>,
    written: usize,
    /// Consumed and not given back yet.
    owed: u32,
    /// Received and not given back: above [`WINDOW`] the daemon broke the protocol.
    outstanding: u32,
    ended: bool,
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
    /// Where outputs are read to.
    piece: Box<[u8]>,
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
        input: Input {
            fd: streams.input,
            queue: Vec::new(),
            written: 0,
            owed: 0,
            outstanding: 0,
            ended: false,
        },
        outputs: [output(Kind::Stdout, streams.stdout), output(Kind::Stderr, streams.stderr)],
        job,
        job_ended: false,
        expired: false,
        drained_by: None,
        broken: None,
        piece: vec![0; MAX_PAYLOAD].into(),
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
    input: bool,
    outputs: [bool; 2],
    job: bool,
}

impl Pump {
    fn run(&mut self) -> Result<(), ConnectionError> {
        while !self.is_over() {
            self.connection.flush()?;
            let found = self.wait()?;
            if found.connection.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
                self.connection.fill()?;
            }
            while let Some(frame) = self.connection.next_frame()? {
                match frame.kind {
                    Kind::Control => self.obey(&frame.control()?)?,
                    Kind::Stdin => self.input.take(&frame.payload)?,
                    Kind::Stdout | Kind::Stderr => {
                        return Err(ConnectionError::Protocol("data on an output stream"));
                    }
                }
            }
            if found.input || !self.input.queue.is_empty() {
                self.input.deliver(&mut self.broken);
            }
            self.end_input();
            self.return_credit()?;
            self.say_notice()?;
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
        let [input, stdout, stderr, job] =
            wanted.map(|wanted| wanted.is_some() && answers.next().is_some_and(|answer| !answer.is_empty()));
        Ok(Found { connection, input, outputs: [stdout, stderr], job })
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
            Control::Eof { stream } if *stream == Kind::Stdin as u8 => self.input.ended = true,
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
        if !self.input.ended || self.input.pending() > 0 {
            return;
        }
        if let Some((fd, end)) = self.input.fd.take() {
            self.job.input_complete();
            match end {
                InputEnd::Close => {}
                // A peer that is gone needs no end of stream.
                InputEnd::Shutdown => drop(rustix::net::shutdown(&fd, rustix::net::Shutdown::Write)),
                // VEOF as terminals have it by default; a full terminal buffer loses it, as typing would.
                InputEnd::EndOfFile => drop(rustix::io::write(&fd, &[4])),
            }
        }
    }

    fn return_credit(&mut self) -> Result<(), ConnectionError> {
        if self.input.owed >= CREDIT_PORTION && self.connection.unsent() <= CONGESTED {
            self.connection.queue(&Control::Window { stream: Kind::Stdin as u8, bytes: self.input.owed })?;
            self.input.outstanding = self.input.outstanding.saturating_sub(self.input.owed);
            self.input.owed = 0;
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
        match rustix::io::read(fd, &mut self.piece[..room]) {
            Ok(0) => {}
            Ok(length) => {
                output.credit -= length as u32;
                output.due = output.due.map(|due| due.saturating_sub(length as u64));
                let kind = output.kind;
                // What was lost before these bytes was counted before they were written.
                self.say_notice()?;
                self.connection.queue_data(kind, &self.piece[..length]);
                return Ok(length == room);
            }
            Err(Errno::INTR) => return Ok(true),
            Err(Errno::AGAIN) => {
                // A terminal counts bytes that it then does not deliver.
                output.due = output.due.map(|_| 0);
                return Ok(false);
            }
            // The last process of a terminal is gone (pty(7)).
            Err(Errno::IO) => {}
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

impl Input {
    fn pending(&self) -> usize {
        self.queue.len() - self.written
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), ConnectionError> {
        if self.ended {
            return Err(ConnectionError::Protocol("data after the end of its stream"));
        }
        // A frame is far below 4 GiB.
        self.outstanding = self.outstanding.saturating_add(bytes.len() as u32);
        if self.outstanding > WINDOW {
            return Err(ConnectionError::Protocol("more data than there was credit for"));
        }
        if self.fd.is_some() {
            self.queue.extend_from_slice(bytes);
        } else {
            self.owed += bytes.len() as u32;
        }
        Ok(())
    }

    /// Writes what the operation takes. One that takes no more loses the rest, as at a shell.
    fn deliver(&mut self, broken: &mut Option<io::Error>) {
        let Some((fd, end)) = &self.fd else { return };
        while let Some(rest) = self.queue.get(self.written..).filter(|rest| !rest.is_empty()) {
            match rustix::io::write(fd, rest) {
                Ok(length) => {
                    self.written += length;
                    self.owed += length as u32;
                }
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => break,
                Err(e) => {
                    if *end == InputEnd::Shutdown && e != Errno::PIPE {
                        *broken = Some(e.into());
                    }
                    self.owed += rest.len() as u32;
                    self.written = self.queue.len();
                    self.fd = None;
                    break;
                }
            }
        }
        if self.pending() == 0 {
            self.queue.clear();
            self.written = 0;
        }
    }
}
