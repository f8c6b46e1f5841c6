//! Upstream resolvers of every kind, on a loopback port of their own.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hickory_proto::op::{Message, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{RData, Record};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::task::JoinSet;

/// How a fake upstream treats a query.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Manner {
    /// Answers with the address 192.0.2.`mark`.
    Good,
    /// Takes everything, says nothing.
    Hang,
    /// Good, after this long.
    Slow(Duration),
    /// Good, but only from the second datagram of a query on.
    LosesFirst,
    /// The right question, another id.
    LyingId,
    /// The right id, another question.
    WrongQuestion,
    /// Bytes that are no message at all.
    Garbage,
    /// A good answer from a socket nobody asked.
    OtherSocket,
    /// A header with this code and nothing else.
    BareError(ResponseCode),
    /// The question with this code.
    Error(ResponseCode),
    /// Spells the name in upper case.
    Shouts,
    /// An answer of about this many bytes; over UDP, if that is more than was allowed, only the TC bit.
    Long(usize),
    /// As `Long`, but sends it all over UDP, whatever was allowed.
    Overlong(usize),
    /// Over UDP only the TC bit; over TCP silence.
    HangsOverTcp,
}

/// One query as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) bytes: Vec<u8>,
    pub(crate) from: SocketAddr,
    pub(crate) tcp: bool,
}

/// A fake upstream; gone when dropped.
pub(crate) struct Fake {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    _tasks: JoinSet<()>,
}

#[derive(Clone)]
struct Server {
    manner: Manner,
    mark: u8,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Fake {
    pub(crate) async fn start(manner: Manner, mark: u8) -> Self {
        let (udp, tcp) = both_sockets().await;
        let address = udp.local_addr().unwrap();
        let seen = Arc::default();
        let server = Server { manner, mark, seen: Arc::clone(&seen) };
        let mut tasks = JoinSet::new();
        tasks.spawn(server.clone().datagrams(udp));
        tasks.spawn(server.streams(tcp));
        Self { address, seen, _tasks: tasks }
    }

    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }
}

/// A UDP and a TCP socket on the same port of loopback.
pub(crate) async fn both_sockets() -> (UdpSocket, TcpListener) {
    for _ in 0..100 {
        let udp = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        if let Ok(tcp) = TcpListener::bind(udp.local_addr().unwrap()).await {
            return (udp, tcp);
        }
    }
    panic!("no port is free for both UDP and TCP");
}

impl Server {
    async fn datagrams(self, socket: UdpSocket) {
        let socket = Arc::new(socket);
        let mut under_way = JoinSet::new();
        let mut buffer = vec![0; 65535];
        loop {
            let (length, from) = socket.recv_from(&mut buffer).await.unwrap();
            let bytes = buffer[..length].to_vec();
            let repeated = self.note(&bytes, from, false);
            let (server, socket) = (self.clone(), Arc::clone(&socket));
            under_way.spawn(async move {
                let Some(answer) = server.answer(&bytes, repeated, false).await else { return };
                let from_elsewhere = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
                let by = if server.manner == Manner::OtherSocket { &from_elsewhere } else { &*socket };
                by.send_to(&answer, from).await.unwrap();
            });
        }
    }

    async fn streams(self, listener: TcpListener) {
        let mut under_way = JoinSet::new();
        loop {
            let (stream, from) = listener.accept().await.unwrap();
            under_way.spawn(self.clone().stream(stream, from));
        }
    }

    async fn stream(self, mut stream: TcpStream, from: SocketAddr) {
        while let Ok(length) = stream.read_u16().await {
            let mut bytes = vec![0; usize::from(length)];
            stream.read_exact(&mut bytes).await.unwrap();
            self.note(&bytes, from, true);
            let Some(answer) = self.answer(&bytes, false, true).await else {
                // Silence, with the connection open.
                return std::future::pending().await;
            };
            stream.write_u16(u16::try_from(answer.len()).unwrap()).await.unwrap();
            stream.write_all(&answer).await.unwrap();
        }
    }

    /// Notes a query and says whether the same bytes came before from there.
    fn note(&self, bytes: &[u8], from: SocketAddr, tcp: bool) -> bool {
        let mut seen = self.seen.lock().unwrap();
        let repeated = seen.iter().any(|one| one.from == from && one.bytes == bytes);
        seen.push(Seen { bytes: bytes.to_vec(), from, tcp });
        repeated
    }

    async fn answer(&self, bytes: &[u8], repeated: bool, tcp: bool) -> Option<Vec<u8>> {
        let query = Message::from_vec(bytes).expect("the forwarder sent what is no message");
        let mut answer = self.good(&query);
        match self.manner {
            Manner::Good | Manner::OtherSocket => {}
            Manner::Hang => return None,
            Manner::Slow(time) => tokio::time::sleep(time).await,
            Manner::LosesFirst if !repeated => return None,
            Manner::LosesFirst => {}
            Manner::LyingId => answer.metadata.id ^= 1,
            Manner::WrongQuestion => {
                let other = answer.queries[0].name().prepend_label("not").unwrap();
                answer.queries[0].set_name(other);
            }
            Manner::Garbage => return Some(b"\xff\xff this was never a DNS message".to_vec()),
            Manner::BareError(code) => answer = Message::error_msg(query.metadata.id, OpCode::Query, code),
            Manner::Error(code) => {
                answer.metadata.response_code = code;
                answer.answers.clear();
            }
            Manner::Shouts => {
                let loud = query.queries[0].name().to_ascii().to_uppercase();
                answer.queries[0].set_name(loud.parse().unwrap());
            }
            Manner::Long(size) => {
                answer.answers = self.long(&query, size);
                let limit = if tcp { usize::from(u16::MAX) } else { usize::from(query.max_payload()) };
                if answer.to_vec().unwrap().len() > limit {
                    answer = answer.truncate();
                }
            }
            Manner::Overlong(size) => answer.answers = self.long(&query, size),
            Manner::HangsOverTcp if tcp => return None,
            Manner::HangsOverTcp => answer = answer.truncate(),
        }
        Some(answer.to_vec().unwrap())
    }

    fn good(&self, query: &Message) -> Message {
        let mut answer = Message::response(query.metadata.id, OpCode::Query);
        answer.metadata.recursion_desired = query.metadata.recursion_desired;
        answer.metadata.recursion_available = true;
        answer.add_queries(query.queries.clone());
        answer.edns.clone_from(&query.edns);
        let address = RData::A(A(Ipv4Addr::new(192, 0, 2, self.mark)));
        answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), 60, address));
        answer
    }

    fn long(&self, query: &Message, size: usize) -> Vec<Record> {
        let text = RData::TXT(TXT::new(vec!["x".repeat(200)]));
        let record = Record::from_rdata(query.queries[0].name().clone(), 60, text);
        vec![record; size / 213]
    }
}
