//! A microVM's DNS on loopback, and the guest that uses it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use enisle_daemon::dns::{DnsHandle, DnsLimits, DnsPolicy, DnsService, Upstreams, VmLabel};
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::watch;
use tokio::time::timeout;

use crate::fake::{Fake, both_sockets};

/// No test waits longer than this for anything.
pub(crate) const BOUND: Duration = Duration::from_secs(10);
/// Long enough to be sure that nothing comes, where nothing should.
pub(crate) const SILENCE: Duration = Duration::from_millis(200);

/// Limits with times short enough to wait for.
pub(crate) fn quick() -> DnsLimits {
    DnsLimits {
        attempt: Duration::from_millis(150),
        overall: Duration::from_millis(900),
        prefer: Duration::from_secs(1),
        tcp_idle: Duration::from_millis(400),
        ..DnsLimits::default()
    }
}

/// A service for these upstreams, in this order.
pub(crate) fn service(upstreams: &[&Fake], limits: DnsLimits) -> Arc<DnsService> {
    DnsService::new(Upstreams::fixed(upstreams.iter().map(|fake| fake.address)), limits)
}

/// One microVM that is served.
pub(crate) struct Vm {
    pub(crate) address: SocketAddr,
    pub(crate) handle: DnsHandle,
    pub(crate) policy: watch::Sender<DnsPolicy>,
}

impl Vm {
    pub(crate) async fn start(service: &Arc<DnsService>) -> Self {
        Self::with_policy(service, service.forward(&[])).await
    }

    pub(crate) async fn with_policy(service: &Arc<DnsService>, policy: DnsPolicy) -> Self {
        let (udp, tcp) = both_sockets().await;
        let address = udp.local_addr().unwrap();
        let (policy, changes) = watch::channel(policy);
        let (udp, tcp) = (udp.into_std().unwrap(), tcp.into_std().unwrap());
        let handle = service.serve(VmLabel::new("agents-1"), udp, tcp, changes).unwrap();
        Self { address, handle, policy }
    }

    /// A socket of the guest's.
    pub(crate) async fn socket(&self) -> UdpSocket {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        socket.connect(self.address).await.unwrap();
        socket
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        TcpStream::connect(self.address).await.unwrap()
    }

    /// Asks over UDP.
    pub(crate) async fn ask(&self, query: &Message) -> Message {
        let socket = self.socket().await;
        socket.send(&query.to_vec().unwrap()).await.unwrap();
        receive(&socket).await
    }

    /// Asks over TCP, on a connection of its own.
    pub(crate) async fn ask_tcp(&self, query: &Message) -> Message {
        let mut stream = self.connect().await;
        send_frame(&mut stream, &query.to_vec().unwrap()).await;
        read_frame(&mut stream).await
    }
}

/// A query for the address of `name`.
pub(crate) fn query(id: u16, name: &str) -> Message {
    let mut message = Message::new(id, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

/// The same with an OPT record that allows answers of `size` bytes.
pub(crate) fn query_edns(id: u16, name: &str, size: u16) -> Message {
    let mut message = query(id, name);
    let mut edns = Edns::new();
    edns.set_max_payload(size);
    message.set_edns(edns);
    message
}

pub(crate) async fn receive(socket: &UdpSocket) -> Message {
    let mut buffer = vec![0; 65535];
    let length = timeout(BOUND, socket.recv(&mut buffer)).await.expect("no answer").unwrap();
    Message::from_vec(&buffer[..length]).unwrap()
}

/// Asserts that nothing is answered for a while.
pub(crate) async fn silent(socket: &UdpSocket) {
    let mut buffer = vec![0; 65535];
    let received = timeout(SILENCE, socket.recv(&mut buffer)).await;
    assert!(received.is_err(), "answered with {:?}", &buffer[..received.unwrap().unwrap()]);
}

pub(crate) async fn send_frame(stream: &mut TcpStream, bytes: &[u8]) {
    let mut framed = u16::try_from(bytes.len()).unwrap().to_be_bytes().to_vec();
    framed.extend_from_slice(bytes);
    stream.write_all(&framed).await.unwrap();
}

pub(crate) async fn read_frame(stream: &mut TcpStream) -> Message {
    let length = timeout(BOUND, stream.read_u16()).await.expect("no answer").unwrap();
    let mut bytes = vec![0; usize::from(length)];
    timeout(BOUND, stream.read_exact(&mut bytes)).await.expect("half an answer").unwrap();
    Message::from_vec(&bytes).unwrap()
}

/// Asserts that the service ends the connection without a word.
pub(crate) async fn closed(stream: &mut TcpStream) {
    let read = timeout(BOUND, stream.read_u8()).await.expect("the connection stays open");
    assert!(read.is_err(), "answered with {read:?}");
}

/// The mark of the fake that answered with success.
pub(crate) fn mark(answer: &Message) -> u8 {
    assert_eq!(answer.metadata.response_code, ResponseCode::NoError, "{answer}");
    match answer.answers.first().map(|record| &record.data) {
        Some(RData::A(address)) => address.0.octets()[3],
        other => panic!("no address but {other:?}"),
    }
}

/// The code of an answer that must carry the question it answers.
pub(crate) fn code(answer: &Message, to: &Message) -> ResponseCode {
    assert_eq!(answer.metadata.id, to.metadata.id);
    assert_eq!(answer.metadata.message_type, MessageType::Response);
    assert_eq!(answer.queries, to.queries);
    answer.metadata.response_code
}
