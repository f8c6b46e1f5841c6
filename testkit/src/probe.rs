//! Probes from a namespace's own stack: TCP, UDP, ping; what came back and how soon.
//!
//! Owns: the outcome all probes share, whoever sends them. Refuses: deciding what is right.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, ipproto};
use serde::{Deserialize, Serialize};

/// What is sent; comes back from every echo listener of this kit.
pub const TOKEN: &[u8; 16] = b"enisle-probe-42\n";

/// What a target is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Connect, and have [`TOKEN`] echoed.
    Tcp,
    /// Connect only, for servers that are not ours.
    Connect,
    /// Have [`TOKEN`] echoed.
    Udp,
    /// ICMP echo.
    Ping,
}

/// One thing to ask of one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// What to ask.
    pub kind: Kind,
    /// Whom.
    pub addr: Ipv4Addr,
    /// Where; 0 for ping.
    pub port: u16,
}

/// The kind of answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// The listener answered.
    Reached,
    /// Somebody said no: reset, or an ICMP unreachable.
    Refused,
    /// Nothing within the time given.
    Silence,
    /// The probe itself could not be sent.
    Failed,
}

/// What came back.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Outcome {
    /// The kind of answer.
    pub answer: Answer,
    /// How it was said, such as `reset` or `icmp 3/13`; empty when reached.
    pub how: String,
    /// Milliseconds from the first packet to the answer.
    pub ms: f64,
}

impl Outcome {
    /// Stamps an answer with the time since `start`.
    #[must_use]
    pub fn since(start: Instant, answer: Answer, how: impl Into<String>) -> Outcome {
        Outcome { answer, how: how.into(), ms: start.elapsed().as_secs_f64() * 1e3 }
    }

    /// Whether the listener answered.
    #[must_use]
    pub fn reached(&self) -> bool {
        self.answer == Answer::Reached
    }

    /// Whether somebody said no within a second, as the contract promises.
    #[must_use]
    pub fn refused(&self) -> bool {
        self.answer == Answer::Refused && self.ms < 1000.0
    }

    /// Whether nothing came.
    #[must_use]
    pub fn silent(&self) -> bool {
        self.answer == Answer::Silence
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let word = match self.answer {
            Answer::Reached => "reached",
            Answer::Refused => "refused",
            Answer::Silence => "no answer",
            Answer::Failed => "not sent",
        };
        write!(f, "{word}")?;
        if !self.how.is_empty() {
            write!(f, " ({})", self.how)?;
        }
        write!(f, " {:.1} ms", self.ms)
    }
}

/// Asks from the calling thread's namespace and waits at most `limit` for an answer.
#[must_use]
pub fn ask(target: Target, limit: Duration) -> Outcome {
    let start = Instant::now();
    let to = SocketAddrV4::new(target.addr, target.port);
    let result = match target.kind {
        Kind::Tcp => tcp(to, limit, true),
        Kind::Connect => tcp(to, limit, false),
        Kind::Udp => udp(to, limit),
        Kind::Ping => return ping(target.addr, limit),
    };
    match result {
        Ok(()) => Outcome::since(start, Answer::Reached, ""),
        Err(error) => {
            let (answer, how) = classify(&error);
            Outcome::since(start, answer, how)
        }
    }
}

fn tcp(to: SocketAddrV4, limit: Duration, echo: bool) -> io::Result<()> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::V4(to), limit)?;
    if !echo {
        return Ok(());
    }
    stream.set_read_timeout(Some(limit))?;
    stream.write_all(TOKEN)?;
    let mut back = [0; TOKEN.len()];
    stream.read_exact(&mut back)?;
    expect_token(&back)
}

fn udp(to: SocketAddrV4, limit: Duration) -> io::Result<()> {
    let socket = UdpSocket::bind("0.0.0.0:0")?;
    // Connected, so that ICMP errors come back as errors of recv (udp(7)).
    socket.connect(to)?;
    socket.set_read_timeout(Some(limit))?;
    socket.send(TOKEN)?;
    let mut back = [0; 64];
    let got = socket.recv(&mut back)?;
    expect_token(&back[..got])
}

fn expect_token(back: &[u8]) -> io::Result<()> {
    if back == TOKEN { Ok(()) } else { Err(io::Error::other("somebody else answered")) }
}

fn classify(error: &io::Error) -> (Answer, String) {
    match error.raw_os_error() {
        Some(libc::ECONNREFUSED | libc::ECONNRESET) => (Answer::Refused, "reset".to_owned()),
        Some(libc::EHOSTUNREACH) => (Answer::Refused, "host unreachable".to_owned()),
        _ => match error.kind() {
            io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => (Answer::Silence, String::new()),
            _ => (Answer::Failed, error.to_string()),
        },
    }
}

/// One ICMP echo request by a raw socket.
fn ping(to: Ipv4Addr, limit: Duration) -> Outcome {
    let start = Instant::now();
    match ping_once(to, start, limit) {
        Ok(outcome) => outcome,
        Err(error) => {
            let (answer, how) = classify(&error);
            Outcome::since(start, answer, how)
        }
    }
}

fn ping_once(to: Ipv4Addr, start: Instant, limit: Duration) -> io::Result<Outcome> {
    let socket = rustix::net::socket_with(
        AddressFamily::INET,
        SocketType::RAW,
        SocketFlags::CLOEXEC,
        Some(ipproto::ICMP),
    )?;
    let id = rustix::thread::gettid().as_raw_nonzero().get().to_le_bytes();
    let mut request = [8, 0, 0, 0, id[0], id[1], 0, 1, b'e', b'n', b'i', b's'];
    let sum = checksum(&request).to_be_bytes();
    request[2..4].copy_from_slice(&sum);
    rustix::net::sendto(&socket, &request, SendFlags::empty(), &SocketAddrV4::new(to, 0))?;
    loop {
        let left = limit.saturating_sub(start.elapsed());
        rustix::net::sockopt::set_socket_timeout(
            socket.as_fd(),
            rustix::net::sockopt::Timeout::Recv,
            Some(left.max(Duration::from_millis(1))),
        )?;
        let mut packet = [0; 2048];
        let (got, _) = rustix::net::recv(&socket, &mut packet[..], RecvFlags::empty())?;
        let packet = &packet[..got];
        if let Some((answer, how)) = icmp_answer(packet, to, [id[0], id[1]]) {
            return Ok(Outcome::since(start, answer, how));
        }
        if start.elapsed() >= limit {
            return Ok(Outcome::since(start, Answer::Silence, ""));
        }
    }
}

/// Whether an IPv4 packet answers our echo request `id` to `to`.
fn icmp_answer(packet: &[u8], to: Ipv4Addr, id: [u8; 2]) -> Option<(Answer, String)> {
    let icmp = after_ip_header(packet)?;
    match icmp.first()? {
        0 if icmp.get(4..6)? == id && packet.get(12..16)? == to.octets() => {
            Some((Answer::Reached, String::new()))
        }
        3 => {
            // The first 8 bytes of our own ICMP are quoted after the quoted IP header (RFC 792).
            let quoted = icmp.get(8..)?;
            let ours = quoted.get(16..20)? == to.octets() && after_ip_header(quoted)?.get(4..6)? == id;
            ours.then(|| (Answer::Refused, format!("icmp 3/{}", icmp[1])))
        }
        _ => None,
    }
}

fn after_ip_header(packet: &[u8]) -> Option<&[u8]> {
    packet.get(usize::from(packet.first()? & 0x0f) * 4..)
}

/// The Internet checksum (RFC 1071).
#[must_use]
pub fn checksum(bytes: &[u8]) -> u16 {
    let mut sum: u32 = 0;
    for pair in bytes.chunks(2) {
        sum += u32::from(u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    !u16::try_from(sum).unwrap_or(0)
}
