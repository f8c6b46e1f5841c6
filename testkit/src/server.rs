//! Listeners inside namespaces: echo, who-am-I, HTTP, an endless source, DNS.
//!
//! Owns: the sockets and the one thread that serves them; dropping the value closes everything.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, UdpSocket};

use anyhow::Context as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

use crate::Netns;

/// What a TCP listener does with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Service {
    /// Sends back what comes.
    Echo,
    /// Sends the peer's `address:port` as it arrived, and closes.
    WhoAmI,
    /// Answers one HTTP request with the peer's address.
    Http,
    /// Sends zeros until the peer goes.
    Source,
}

/// Listeners of one world.
#[derive(Debug)]
pub struct Servers {
    runtime: Option<Runtime>,
}

impl Servers {
    /// No listener yet.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn new() -> anyhow::Result<Servers> {
        let runtime = Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("listeners")
            .enable_io()
            .build()
            .context("cannot start the listeners' thread")?;
        Ok(Servers { runtime: Some(runtime) })
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        if let Some(runtime) = &self.runtime {
            runtime.spawn(task);
        }
    }

    /// Listens on every address of the namespace; port 0 picks one. The port is returned.
    ///
    /// # Errors
    /// If the port is taken.
    pub fn tcp(&self, ns: &Netns, port: u16, service: Service) -> anyhow::Result<u16> {
        let listener = ns
            .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)))
            .with_context(|| format!("cannot listen on TCP port {port}"))?;
        let port = listener.local_addr()?.port();
        listener.set_nonblocking(true)?;
        self.spawn(async move {
            let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
                return;
            };
            while let Ok((stream, peer)) = listener.accept().await {
                tokio::spawn(serve(stream, peer, service));
            }
        });
        Ok(port)
    }

    /// Echoes datagrams sent to one address. One socket an address, for an answer from the
    /// wildcard would leave with the interface's first address instead of the one asked.
    ///
    /// # Errors
    /// If the address is not the namespace's or the port is taken.
    pub fn udp_echo(&self, ns: &Netns, addr: Ipv4Addr, port: u16) -> anyhow::Result<u16> {
        self.udp(ns, SocketAddrV4::new(addr, port), |request| Some(request.to_vec()))
    }

    /// Answers DNS over UDP: every A question with `answer`, all else with no records.
    ///
    /// # Errors
    /// If the address is not the namespace's or the port is taken.
    pub fn dns(&self, ns: &Netns, addr: Ipv4Addr, answer: Ipv4Addr) -> anyhow::Result<u16> {
        self.udp(ns, SocketAddrV4::new(addr, 53), move |query| dns_answer(query, answer))
    }

    fn udp(
        &self,
        ns: &Netns,
        at: SocketAddrV4,
        reply: impl Fn(&[u8]) -> Option<Vec<u8>> + Send + 'static,
    ) -> anyhow::Result<u16> {
        let socket = ns.run(|| UdpSocket::bind(at)).with_context(|| format!("cannot listen on UDP {at}"))?;
        let port = socket.local_addr()?.port();
        socket.set_nonblocking(true)?;
        self.spawn(async move {
            let Ok(socket) = tokio::net::UdpSocket::from_std(socket) else {
                return;
            };
            let mut buffer = vec![0; 65536];
            loop {
                // An ICMP error about an earlier answer ends up here; it concerns nobody else.
                let Ok((got, peer)) = socket.recv_from(&mut buffer).await else {
                    continue;
                };
                if let Some(answer) = reply(&buffer[..got]) {
                    drop(socket.send_to(&answer, peer).await);
                }
            }
        });
        Ok(port)
    }
}

impl Drop for Servers {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// The peer may go at any time, so how a connection ends is nobody's concern.
async fn serve(mut stream: TcpStream, peer: SocketAddr, service: Service) {
    match service {
        Service::Echo => {
            let (mut from, mut to) = stream.split();
            drop(tokio::io::copy(&mut from, &mut to).await);
        }
        Service::WhoAmI => {
            drop(stream.write_all(format!("{peer}\n").as_bytes()).await);
        }
        Service::Http => {
            let mut request = [0; 4096];
            if stream.read(&mut request).await.is_ok() {
                let body = format!("hello {}\n", peer.ip());
                let head = format!(
                    "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
                    body.len()
                );
                drop(stream.write_all(head.as_bytes()).await);
            }
        }
        Service::Source => {
            let zeros = vec![0; 65536];
            while stream.write_all(&zeros).await.is_ok() {}
        }
    }
}

/// RFC 1035: the question is copied; an answer points back at it.
fn dns_answer(query: &[u8], address: Ipv4Addr) -> Option<Vec<u8>> {
    let name_end = 12 + query.get(12..)?.iter().position(|b| *b == 0)?;
    let question = query.get(12..name_end + 5)?;
    let wants_a = question.get(question.len() - 4..question.len() - 2)? == [0, 1];
    let mut answer = Vec::with_capacity(64);
    answer.extend_from_slice(query.get(..2)?);
    answer.extend_from_slice(&[0x81, 0x80, 0, 1, 0, u8::from(wants_a), 0, 0, 0, 0]);
    answer.extend_from_slice(question);
    if wants_a {
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
        answer.extend_from_slice(&address.octets());
    }
    Some(answer)
}
