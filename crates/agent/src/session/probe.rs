//! Probes: a batch is sent at once, and what becomes of each item is said in one answer.
//!
//! Owns: sending through the guest's own sockets or past them, and one wait for all answers, so
//! that a batch of silence takes as long as one silent item. Refuses: any verdict; the daemon looks
//! at the wire itself. Frames are put on the interface by packet sockets, so any image will do.

use super::connection::until;
use super::failure::{failure, from_io};
use crate::sys;
use enisle_guest_proto::{
    Failure, FailureCode, MAX_PROBE_PATIENCE_MS, MAX_PROBES, Probe, ProbeAnswer, ProbeClaim, ProbeItem,
};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;
use rustix::net::sockopt::socket_error;
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, connect, netdevice, recv, send, socket_with,
};
use std::io;
use std::net::SocketAddrV4;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

/// What is still waited for.
struct Waiting {
    item: usize,
    socket: OwnedFd,
    tcp: bool,
}

/// The batch while it is carried out.
struct Batch {
    begun: Instant,
    answers: Vec<Option<ProbeAnswer>>,
    waiting: Vec<Waiting>,
}

/// Sends a batch and waits for its answers; blocks for at most the batch's patience.
pub(super) fn run(probe: &Probe) -> Result<Vec<ProbeAnswer>, Failure> {
    if probe.items.len() > MAX_PROBES || probe.patience_ms > MAX_PROBE_PATIENCE_MS {
        let message =
            format!("a batch is at most {MAX_PROBES} items and {MAX_PROBE_PATIENCE_MS} ms of patience");
        return Err(failure(FailureCode::Invalid, message));
    }
    let begun = Instant::now();
    let mut batch = Batch { begun, answers: vec![None; probe.items.len()], waiting: Vec::new() };
    batch.send(probe)?;
    batch.wait(begun + Duration::from_millis(u64::from(probe.patience_ms)));
    let silent = batch.answer(ProbeClaim::Silent {});
    Ok(batch.answers.into_iter().map(|answer| answer.unwrap_or(silent)).collect())
}

impl Batch {
    fn send(&mut self, probe: &Probe) -> Result<(), Failure> {
        let frames = probe.items.iter().any(|item| matches!(item, ProbeItem::Frame { .. }));
        let raw = if frames { Some(open_interface(&probe.interface)?) } else { None };
        for (item, what) in probe.items.iter().enumerate() {
            let sent = match (what, &raw) {
                (ProbeItem::Tcp { to }, _) => call(*to).map(|socket| Some((socket, true))),
                (ProbeItem::Udp { to, payload }, _) => {
                    throw(*to, payload).map(|socket| Some((socket, false)))
                }
                (ProbeItem::Frame { bytes }, Some((socket, index))) => {
                    sys::send_frame(socket.as_fd(), *index, bytes).map(|()| None)
                }
                (ProbeItem::Frame { .. }, None) => Ok(None),
            };
            match sent {
                Ok(Some((socket, tcp))) => self.waiting.push(Waiting { item, socket, tcp }),
                Ok(None) => self.say(item, ProbeClaim::Sent {}),
                Err(e) => self.say(item, refusal(&e)),
            }
        }
        Ok(())
    }

    fn wait(&mut self, deadline: Instant) {
        while !self.waiting.is_empty() && Instant::now() < deadline {
            let mut polled: Vec<PollFd<'_>> = self
                .waiting
                .iter()
                .map(|w| PollFd::new(&w.socket, if w.tcp { PollFlags::OUT } else { PollFlags::IN }))
                .collect();
            // A signal only makes it look again.
            if poll(&mut polled, Some(&until(deadline))).is_err_and(|e| e != Errno::INTR) {
                return;
            }
            let ready: Vec<bool> = polled.iter().map(|fd| !fd.revents().is_empty()).collect();
            drop(polled);
            let mut ready = ready.into_iter();
            let (done, waiting): (Vec<Waiting>, Vec<Waiting>) =
                std::mem::take(&mut self.waiting).into_iter().partition(|_| ready.next() == Some(true));
            self.waiting = waiting;
            for Waiting { item, socket, tcp } in done {
                self.say(item, outcome(&socket, tcp));
            }
        }
    }

    fn answer(&self, claim: ProbeClaim) -> ProbeAnswer {
        let after_ms = u32::try_from(self.begun.elapsed().as_millis()).unwrap_or(u32::MAX);
        ProbeAnswer { claim, after_ms }
    }

    fn say(&mut self, item: usize, claim: ProbeClaim) {
        let answer = self.answer(claim);
        if let Some(place) = self.answers.get_mut(item) {
            *place = Some(answer);
        }
    }
}

/// A packet socket that receives nothing, and the interface's index.
fn open_interface(name: &str) -> Result<(OwnedFd, u32), Failure> {
    let open = || -> io::Result<(OwnedFd, u32)> {
        let socket = socket_with(AddressFamily::PACKET, SocketType::RAW, SocketFlags::CLOEXEC, None)?;
        let index = netdevice::name_to_index(&socket, name)?;
        Ok((socket, index))
    };
    open().map_err(|e| from_io(&format!("send frames on {name}"), &e))
}

fn call(to: SocketAddrV4) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::STREAM, flags, None)?;
    match connect(&socket, &to) {
        Ok(()) | Err(Errno::INPROGRESS) => Ok(socket),
        Err(e) => Err(e.into()),
    }
}

fn throw(to: SocketAddrV4, payload: &[u8]) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::INET, SocketType::DGRAM, flags, None)?;
    connect(&socket, &to)?;
    send(&socket, payload, SendFlags::empty())?;
    Ok(socket)
}

/// What a socket that has become ready has to tell.
fn outcome(socket: &OwnedFd, tcp: bool) -> ProbeClaim {
    let heard = if tcp {
        socket_error(socket).and_then(|error| error).map_err(io::Error::from)
    } else {
        let mut byte = [0; 1];
        recv(socket, &mut byte[..], RecvFlags::empty()).map(drop).map_err(io::Error::from)
    };
    heard.map_or_else(|e| refusal(&e), |()| ProbeClaim::Answered {})
}

/// The network's "no" is told from this guest's own inability.
fn refusal(error: &io::Error) -> ProbeClaim {
    let errno = error.raw_os_error().unwrap_or(libc::EIO);
    match Errno::from_raw_os_error(errno) {
        Errno::CONNREFUSED | Errno::HOSTUNREACH | Errno::CONNRESET => ProbeClaim::Refused { errno },
        Errno::TIMEDOUT => ProbeClaim::Silent {},
        _ => ProbeClaim::Failed { errno },
    }
}
