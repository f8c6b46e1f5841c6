//! Probes on a socket pair, without a VM: over the loopback of this machine, nothing leaves it.

mod host;

use enisle_agent::session;
use enisle_guest_proto::{
    FailureCode, MAX_PROBE_PATIENCE_MS, MAX_PROBES, Probe, ProbeAnswer, ProbeClaim, ProbeItem,
};
use host::Session;
use rustix::net::{AddressFamily, RecvFlags, SocketFlags, SocketType, eth, recv, socket_with};
use std::net::{SocketAddr, SocketAddrV4, TcpListener, UdpSocket};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

fn ask(batch: Probe) -> Result<Vec<ProbeAnswer>, enisle_guest_proto::Failure> {
    let (host, guest) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || session::serve(guest.into()));
    let mut session = Session::new(host);
    let answers = session.probe(batch);
    drop(session);
    server.join().unwrap();
    answers
}

fn batch(items: Vec<ProbeItem>, patience_ms: u32) -> Probe {
    Probe { interface: "lo".to_owned(), items, patience_ms }
}

fn v4(address: SocketAddr) -> SocketAddrV4 {
    let SocketAddr::V4(v4) = address else { panic!("{address} is no IPv4 address") };
    v4
}

#[test]
fn what_answers_what_refuses_and_what_is_silent_are_told_apart() {
    let tcp = TcpListener::bind("127.0.0.1:0").unwrap();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let mute = UdpSocket::bind("127.0.0.1:0").unwrap();
    // A port of each that was free a moment ago.
    let closed = v4(TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let gone = v4(UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap());
    let token = b"token-17".to_vec();
    let items = vec![
        ProbeItem::Tcp { to: v4(tcp.local_addr().unwrap()) },
        ProbeItem::Tcp { to: closed },
        ProbeItem::Udp { to: v4(udp.local_addr().unwrap()), payload: token.clone() },
        ProbeItem::Udp { to: gone, payload: token.clone() },
        ProbeItem::Udp { to: v4(mute.local_addr().unwrap()), payload: token.clone() },
    ];
    let echo = thread::spawn(move || {
        let mut buffer = [0; 64];
        let (length, from) = udp.recv_from(&mut buffer).unwrap();
        udp.send_to(&buffer[..length], from).unwrap();
        buffer[..length].to_vec()
    });
    let begun = Instant::now();
    let claims: Vec<ProbeClaim> =
        ask(batch(items, 1500)).unwrap().into_iter().map(|answer| answer.claim).collect();
    let refused = ProbeClaim::Refused { errno: libc::ECONNREFUSED };
    let (answered, silent) = (ProbeClaim::Answered {}, ProbeClaim::Silent {});
    assert_eq!(claims, [answered, refused, answered, refused, silent]);
    assert!(begun.elapsed() >= Duration::from_millis(1500), "silence was not waited for");
    assert_eq!(echo.join().unwrap(), token);
    assert!(tcp.accept().is_ok());
}

#[test]
fn a_frame_leaves_as_it_was_asked_for() {
    let flags = SocketFlags::CLOEXEC;
    let sniffer = socket_with(AddressFamily::PACKET, SocketType::RAW, flags, Some(eth::ALL)).unwrap();
    rustix::net::sockopt::set_socket_timeout(
        &sniffer,
        rustix::net::sockopt::Timeout::Recv,
        Some(Duration::from_secs(20)),
    )
    .unwrap();
    // No protocol of the loopback has this type (IEEE 802, local experiments).
    let mut frame = vec![0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 1, 0x88, 0xb5];
    frame.extend_from_slice(&std::process::id().to_be_bytes());
    frame.resize(60, 0x5a);
    let answers = ask(batch(vec![ProbeItem::Frame { bytes: frame.clone() }], 100)).unwrap();
    assert_eq!(answers[0].claim, ProbeClaim::Sent {});
    let mut buffer = vec![0; 65536];
    loop {
        let (length, _) = recv(&sniffer, &mut buffer[..], RecvFlags::empty()).expect("the frame in time");
        if buffer[..length] == frame[..] {
            return;
        }
    }
}

#[test]
fn a_batch_is_bounded() {
    let item = ProbeItem::Tcp { to: SocketAddrV4::new([127, 0, 0, 1].into(), 9) };
    let too_many = ask(batch(vec![item.clone(); MAX_PROBES + 1], 10)).unwrap_err();
    let too_long = ask(batch(vec![item], MAX_PROBE_PATIENCE_MS + 1)).unwrap_err();
    assert_eq!([too_many.code, too_long.code], [FailureCode::Invalid; 2]);
    let nowhere = Probe {
        interface: "no-such-link".to_owned(),
        items: vec![ProbeItem::Frame { bytes: vec![0; 60] }],
        patience_ms: 10,
    };
    assert!(ask(nowhere).unwrap_err().message.contains("no-such-link"));
}
