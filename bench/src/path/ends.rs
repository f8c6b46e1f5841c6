//! Both ends of connections: a server on the Internet, and what a client in the guest asks it.
//!
//! Owns: echo over TCP and UDP, a sink and a source of bytes. One connection of each at a time.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use enisle_testkit::Netns;
use enisle_testkit::world::SERVER;
use rustix::net::sockopt::set_socket_linger;

use super::packets::pin;

const ECHO: u16 = 4_007;
const SINK: u16 = 4_009;
const SOURCE: u16 = 4_019;
/// Where clients and servers run.
const CPU: usize = 0;
const CHUNK: usize = 128 * 1024;
/// Longer than anything takes here.
const PATIENCE: Duration = Duration::from_secs(5);
/// A client that is silent for so long has gone. Shorter than what the next one waits.
const SILENCE: Duration = Duration::from_secs(1);

/// Listeners in one namespace; they end when dropped.
pub(super) struct Server {
    stop: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
    netns: Netns,
}

/// What a connection is for.
type Serve = fn(TcpStream, &AtomicU64) -> std::io::Result<()>;

impl Server {
    pub(super) fn start(netns: &Netns) -> Result<Server> {
        let mut server = Server {
            stop: Arc::default(),
            received: Arc::default(),
            threads: Vec::new(),
            netns: Netns::from_fd(netns.as_fd())?,
        };
        let services: [(u16, Serve); 3] = [(ECHO, echo), (SINK, sink), (SOURCE, source)];
        for (port, serve) in services {
            let listener = netns.run(|| TcpListener::bind(SocketAddrV4::new(SERVER, port)))?;
            listener.set_nonblocking(false)?;
            let (stop, received) = (Arc::clone(&server.stop), Arc::clone(&server.received));
            server.threads.push(std::thread::spawn(move || accept(&listener, serve, &stop, &received)));
        }
        let socket = netns.run(|| UdpSocket::bind(SocketAddrV4::new(SERVER, ECHO)))?;
        socket.set_read_timeout(Some(Duration::from_millis(200)))?;
        let stop = Arc::clone(&server.stop);
        server.threads.push(std::thread::spawn(move || echo_datagrams(&socket, &stop)));
        Ok(server)
    }

    /// Bytes the sink has taken in.
    pub(super) fn received(&self) -> u64 {
        self.received.load(Relaxed)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Relaxed);
        for port in [ECHO, SINK, SOURCE] {
            // Wakes the one that accepts.
            let _ = self.netns.run(|| TcpStream::connect(SocketAddrV4::new(SERVER, port)));
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn accept(listener: &TcpListener, serve: Serve, stop: &AtomicBool, received: &AtomicU64) {
    if let Err(error) = pin(CPU) {
        eprintln!("the server is not bound to a CPU: {error:#}");
    }
    for stream in listener.incoming() {
        if stop.load(Relaxed) {
            return;
        }
        // A client that goes in the midst of it is the ordinary end; so is one whose farewell is lost
        // because its forwarder stopped.
        let _ = stream.and_then(|stream| {
            stream.set_read_timeout(Some(SILENCE))?;
            stream.set_write_timeout(Some(SILENCE))?;
            serve(stream, received)
        });
    }
}

fn echo(mut stream: TcpStream, _: &AtomicU64) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length])?,
        }
    }
}

fn sink(mut stream: TcpStream, received: &AtomicU64) -> std::io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        match stream.read(&mut buffer)? {
            0 => return Ok(()),
            length => received.fetch_add(length as u64, Relaxed),
        };
    }
}

fn source(mut stream: TcpStream, _: &AtomicU64) -> std::io::Result<()> {
    let buffer = vec![0; CHUNK];
    loop {
        stream.write_all(&buffer)?;
    }
}

fn echo_datagrams(socket: &UdpSocket, stop: &AtomicBool) {
    let _ = pin(CPU);
    let mut buffer = [0; 64];
    while !stop.load(Relaxed) {
        if let Ok((length, peer)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..length], peer);
        }
    }
}

/// Microseconds of each of `count` requests on one connection, one byte there, one back.
pub(super) fn tcp_requests(netns: &Netns, count: usize) -> Result<Vec<f64>> {
    netns.run(|| -> Result<Vec<f64>> {
        pin(CPU)?;
        let mut stream = connect(ECHO)?;
        (0..count).map(|_| timed(|| exchange(&mut stream))).collect()
    })
}

/// The same, each on a connection of its own, from before the first SYN to the answer.
pub(super) fn tcp_connections(netns: &Netns, count: usize) -> Result<Vec<f64>> {
    netns.run(|| -> Result<Vec<f64>> {
        pin(CPU)?;
        let each = |_| {
            let start = Instant::now();
            let mut stream = connect(ECHO)?;
            exchange(&mut stream)?;
            let time = start.elapsed();
            // Goes by a reset: nothing of it is left when the next begins.
            set_socket_linger(&stream, Some(Duration::ZERO))?;
            Ok(time.as_secs_f64() * 1e6)
        };
        (0..count).map(each).collect()
    })
}

/// The same by datagrams.
pub(super) fn udp_requests(netns: &Netns, count: usize) -> Result<Vec<f64>> {
    netns.run(|| -> Result<Vec<f64>> {
        pin(CPU)?;
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
        socket.connect(SocketAddrV4::new(SERVER, ECHO))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let mut byte = [1];
        let mut ask = || -> Result<()> {
            socket.send(&byte)?;
            socket.recv(&mut byte).context("no answer to a datagram").map(drop)
        };
        (0..count).map(|_| timed(&mut ask)).collect()
    })
}

/// Megabytes a second into the sink, measured after `warm` for `time`.
pub(super) fn upload(netns: &Netns, server: &Server, warm: Duration, time: Duration) -> Result<f64> {
    netns.run(|| -> Result<f64> {
        pin(CPU)?;
        let mut stream = connect(SINK)?;
        let buffer = vec![0; CHUNK];
        let mut write_for = |time: Duration| -> Result<(u64, f64)> {
            let (start, before) = (Instant::now(), server.received());
            while start.elapsed() < time {
                stream.write_all(&buffer).context("the upload stands still")?;
            }
            Ok((server.received() - before, start.elapsed().as_secs_f64()))
        };
        write_for(warm)?;
        let (bytes, seconds) = write_for(time)?;
        stream.shutdown(Shutdown::Both)?;
        Ok(bytes as f64 / 1e6 / seconds)
    })
}

/// Megabytes a second from the source, measured after `warm` for `time`.
pub(super) fn download(netns: &Netns, warm: Duration, time: Duration) -> Result<f64> {
    netns.run(|| -> Result<f64> {
        pin(CPU)?;
        let mut stream = connect(SOURCE)?;
        let mut buffer = vec![0; CHUNK];
        let mut read_for = |time: Duration| -> Result<(u64, f64)> {
            let (start, mut bytes) = (Instant::now(), 0);
            while start.elapsed() < time {
                bytes += stream.read(&mut buffer).context("the download stands still")? as u64;
            }
            Ok((bytes, start.elapsed().as_secs_f64()))
        };
        read_for(warm)?;
        let (bytes, seconds) = read_for(time)?;
        set_socket_linger(&stream, Some(Duration::ZERO))?;
        Ok(bytes as f64 / 1e6 / seconds)
    })
}

fn connect(port: u16) -> Result<TcpStream> {
    let address = SocketAddrV4::new(SERVER, port);
    let stream =
        TcpStream::connect_timeout(&address.into(), PATIENCE).context("the server is not reached")?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    Ok(stream)
}

fn exchange(stream: &mut TcpStream) -> Result<()> {
    let mut byte = [1];
    stream.write_all(&byte)?;
    stream.read_exact(&mut byte).context("no answer")
}

fn timed(work: impl FnOnce() -> Result<()>) -> Result<f64> {
    let start = Instant::now();
    work()?;
    Ok(start.elapsed().as_secs_f64() * 1e6)
}
