//! The daemon's side of a session, small and blocking, for tests and for the `boot_host` example.
//!
//! It keeps the protocol's credit as the real daemon does, and can be told not to.

#![allow(dead_code, reason = "each test binary uses its own part of the driver")]

use enisle_guest_proto::{
    Control, Decoder, Exec, Failure, Frame, Kind, MAX_PAYLOAD, Open, Probe, ProbeAnswer, Reply, Request,
    VERSION, WINDOW,
};
use enisle_guest_proto::{encode, encode_control};
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

/// No answer within this time fails a test instead of hanging it.
const PATIENCE: Duration = Duration::from_secs(60);

/// One session, seen from the host.
pub(crate) struct Session {
    stream: UnixStream,
    decoder: Decoder,
    /// Credit for stdin.
    pub(crate) credit: u32,
    /// Whether received data is given back at once.
    pub(crate) give_back: bool,
    /// What has come so far.
    pub(crate) stdout: Vec<u8>,
    pub(crate) stderr: Vec<u8>,
    pub(crate) eof: [bool; 2],
    /// Output that was lost, as the guest tells.
    pub(crate) dropped: u64,
    pub(crate) last: Option<Control>,
}

impl Session {
    pub(crate) fn new(stream: UnixStream) -> Self {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self {
            stream,
            decoder: Decoder::default(),
            credit: WINDOW,
            give_back: true,
            stdout: Vec::new(),
            stderr: Vec::new(),
            eof: [false; 2],
            dropped: 0,
            last: None,
        }
    }

    /// Opens a session; the process id of an exec, or why it was refused.
    pub(crate) fn open(&mut self, request: Request) -> Result<Option<u32>, Failure> {
        self.send(&Open { version: VERSION, request });
        match self.frame().control::<Reply>().unwrap() {
            Reply::Opened { pid } => Ok(pid),
            Reply::Refused(failure) => Err(failure),
            Reply::Probed { .. } => panic!("the answer to a probe"),
        }
    }

    /// Has a batch of probes sent.
    pub(crate) fn probe(&mut self, batch: Probe) -> Result<Vec<ProbeAnswer>, Failure> {
        self.send(&Open { version: VERSION, request: Request::Probe(batch) });
        match self.frame().control::<Reply>().unwrap() {
            Reply::Probed { answers } => Ok(answers),
            Reply::Refused(failure) => Err(failure),
            Reply::Opened { .. } => panic!("a probe has no streams"),
        }
    }

    pub(crate) fn send<T: serde::Serialize>(&mut self, message: &T) {
        let mut wire = Vec::new();
        encode_control(message, &mut wire).unwrap();
        self.stream.write_all(&wire).unwrap();
    }

    /// Sends raw bytes, whatever they mean.
    pub(crate) fn send_raw(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes)
    }

    /// Sends one data frame, without looking at the credit.
    pub(crate) fn send_data(&mut self, bytes: &[u8]) -> io::Result<()> {
        let mut wire = Vec::new();
        encode(Kind::Stdin, bytes, &mut wire);
        self.stream.write_all(&wire)
    }

    /// Sends data as the credit allows, taking in what comes meanwhile.
    pub(crate) fn write_all(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() && self.last.is_none() {
            let room = bytes.len().min(MAX_PAYLOAD).min(self.credit as usize);
            if room == 0 {
                self.step();
                continue;
            }
            let (part, rest) = bytes.split_at(room);
            self.credit -= room as u32;
            self.send_data(part).unwrap();
            bytes = rest;
        }
    }

    pub(crate) fn end_input(&mut self) {
        self.send(&Control::Eof { stream: Kind::Stdin as u8 });
    }

    /// The next frame; panics when there is none in time.
    pub(crate) fn frame(&mut self) -> Frame {
        self.try_frame().expect("a frame in time")
    }

    pub(crate) fn try_frame(&mut self) -> io::Result<Frame> {
        loop {
            if let Some(frame) = self.decoder.next_frame().unwrap() {
                return Ok(frame);
            }
            let mut bytes = [0; 65536];
            match self.stream.read(&mut bytes)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => self.decoder.feed(&bytes[..length]),
            }
        }
    }

    /// Takes in one frame.
    pub(crate) fn step(&mut self) {
        let frame = self.frame();
        match frame.kind {
            Kind::Control => match frame.control::<Control>().unwrap() {
                Control::Window { stream, bytes } => {
                    assert_eq!(stream, Kind::Stdin as u8);
                    self.credit += bytes;
                    assert!(self.credit <= WINDOW, "more credit came back than was used");
                }
                Control::Eof { stream } => self.eof[usize::from(stream) - 2] = true,
                Control::Dropped { bytes } => self.dropped += bytes,
                last @ (Control::Exit { .. } | Control::Failed(_)) => self.last = Some(last),
                other => panic!("{other:?} is the daemon's to send"),
            },
            Kind::Stdout | Kind::Stderr => {
                let into = if frame.kind == Kind::Stdout { &mut self.stdout } else { &mut self.stderr };
                into.extend_from_slice(&frame.payload);
                if self.give_back {
                    self.send(&Control::Window {
                        stream: frame.kind as u8,
                        bytes: frame.payload.len() as u32,
                    });
                }
            }
            Kind::Stdin => panic!("stdin from the guest"),
        }
    }

    /// Takes in everything up to the last message.
    pub(crate) fn finish(&mut self) -> Control {
        while self.last.is_none() {
            self.step();
        }
        self.last.clone().unwrap()
    }

    /// Takes in frames until stdout contains `text`.
    pub(crate) fn wait_for(&mut self, text: &str) {
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            assert!(
                self.last.is_none(),
                "ended without {text:?}: {:?}",
                String::from_utf8_lossy(&self.stdout)
            );
            self.step();
        }
    }
}

/// A request to run a program as this process's user.
pub(crate) fn exec(argv: &[&str]) -> Exec {
    Exec {
        argv: argv.iter().map(|&argument| argument.to_owned()).collect(),
        env: Vec::new(),
        cwd: Some("/".to_owned()),
        user: None,
        tty: None,
        timeout_ms: None,
    }
}
