//! The relay between a client that is two channels and a guest that is the other end of a socket.

use super::*;
use enisle_guest_proto::{FailureCode, Frame, MAX_PAYLOAD, WINDOW};
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;

const SOON: Duration = Duration::from_secs(10);
/// Messages a client lets wait: small, so that one that reads nothing is felt.
const CLIENT_QUEUE: usize = 4;

struct Bench {
    /// `None` closes the client.
    client: Option<mpsc::UnboundedSender<Message>>,
    /// What the client gets.
    gets: mpsc::Receiver<Message>,
    guest: UnixStream,
    end_vm: Option<oneshot::Sender<Problem>>,
    relay: JoinHandle<()>,
}

fn bench() -> Bench {
    let (guest, host) = UnixStream::pair().unwrap();
    let (read, writer) = host.into_split();
    let session = Session { reader: FrameReader::new(read), writer, pid: Some(7) };
    let (client, messages) = mpsc::unbounded_channel::<Message>();
    let (sends, gets) = mpsc::channel(CLIENT_QUEUE);
    let (end_vm, vm_ends) = oneshot::channel();
    let relay = tokio::spawn(async move {
        let input = futures_util::stream::unfold(messages, |mut messages| async move {
            messages.recv().await.map(|message| (Ok::<_, Infallible>(message), messages))
        });
        let output = futures_util::sink::unfold(sends, |sends, message| async move {
            sends.send(message).await.map(|()| sends)
        });
        let vm_end = async move {
            match vm_ends.await {
                Ok(problem) => problem,
                Err(_) => std::future::pending().await,
            }
        };
        run(Box::pin(input), Box::pin(output), session, vm_end).await;
    });
    Bench { client: Some(client), gets, guest, end_vm: Some(end_vm), relay }
}

impl Bench {
    fn client_sends(&self, message: Message) {
        self.client.as_ref().unwrap().send(message).unwrap();
    }

    fn client_says(&self, message: &ToDaemon) {
        self.client_sends(Message::text(serde_json::to_string(message).unwrap()));
    }

    async fn next(&mut self) -> Option<Message> {
        timeout(SOON, self.gets.recv()).await.expect("no message in time")
    }

    async fn next_control(&mut self) -> FromDaemon {
        match self.next().await {
            Some(Message::Text(text)) => serde_json::from_str(&text).unwrap(),
            other => panic!("{other:?}"),
        }
    }

    async fn opened(&mut self) {
        assert_eq!(self.next_control().await, FromDaemon::Opened { pid: Some(7) });
    }

    /// The reason of the stream's failure, and that the relay is over and the guest cut off.
    async fn failure(mut self) -> String {
        let reason = loop {
            match self.next().await {
                Some(Message::Text(text)) => {
                    if let FromDaemon::Failed { problem, .. } = serde_json::from_str(&text).unwrap() {
                        break problem.detail;
                    }
                }
                Some(_) => {}
                None => panic!("the stream ended without a reason"),
            }
        };
        self.client = None;
        timeout(SOON, &mut self.relay).await.expect("the relay goes on").unwrap();
        assert!(self.next_is_nothing().await);
        cut_off(&mut self.guest).await;
        reason
    }

    async fn next_is_nothing(&mut self) -> bool {
        timeout(SOON, self.gets.recv()).await.unwrap().is_none()
    }

    async fn guest_sends(&mut self, kind: Kind, bytes: &[u8]) {
        let mut wire = Vec::new();
        encode(kind, bytes, &mut wire);
        self.guest.write_all(&wire).await.unwrap();
    }

    async fn guest_says(&mut self, message: &Control) {
        let mut wire = Vec::new();
        encode_control(message, &mut wire).unwrap();
        self.guest.write_all(&wire).await.unwrap();
    }
}

/// The session's connection ends, which is how the guest learns that it is over.
async fn cut_off(guest: &mut UnixStream) {
    let mut rest = Vec::new();
    // A reset is an end as well: the guest may have sent what nobody read.
    let _ = timeout(SOON, guest.read_to_end(&mut rest)).await.expect("the guest is still connected");
}

async fn guest_hears(guest: &mut UnixStream, frames: usize) -> Vec<Frame> {
    let (read, _write) = guest.split();
    let mut reader = FrameReader::new(read);
    let mut heard = Vec::new();
    while heard.len() < frames {
        heard.push(timeout(SOON, reader.next()).await.unwrap().unwrap());
    }
    heard
}

#[tokio::test]
async fn data_credit_and_the_end_pass_in_both_directions() {
    let mut bench = bench();
    bench.opened().await;
    bench.client_sends(Message::binary(b"\x01in".to_vec()));
    bench.client_says(&ToDaemon::Signal { signal: 15 });
    bench.client_says(&ToDaemon::Eof {});
    let heard = guest_hears(&mut bench.guest, 3).await;
    assert_eq!((heard[0].kind, heard[0].payload.as_slice()), (Kind::Stdin, &b"in"[..]));
    assert_eq!(heard[1].control::<Control>().unwrap(), Control::Signal { signal: 15 });
    assert_eq!(heard[2].control::<Control>().unwrap(), Control::Eof { stream: 1 });
    bench.guest_says(&Control::Window { stream: 1, bytes: 2 }).await;
    bench.guest_sends(Kind::Stdout, b"out").await;
    bench.guest_sends(Kind::Stderr, b"err").await;
    bench.guest_says(&Control::Exit { code: 3, signal: None, timed_out: false }).await;
    assert_eq!(bench.next_control().await, FromDaemon::Window { stream: 1, bytes: 2 });
    assert_eq!(bench.next().await, Some(Message::binary(b"\x02out".to_vec())));
    assert_eq!(bench.next().await, Some(Message::binary(b"\x03err".to_vec())));
    assert_eq!(bench.next_control().await, FromDaemon::Exit { code: 3, signal: None, timed_out: false });
    bench.client = None;
    assert!(bench.next_is_nothing().await);
    cut_off(&mut bench.guest).await;
}

#[tokio::test]
async fn a_guest_that_sends_beyond_its_credit_is_cut_off() {
    let mut bench = bench();
    let reading = tokio::spawn(async move {
        for _ in 0..=WINDOW as usize / MAX_PAYLOAD {
            bench.guest_sends(Kind::Stdout, &[0; MAX_PAYLOAD]).await;
        }
        bench.failure().await
    });
    assert!(timeout(SOON, reading).await.unwrap().unwrap().contains("beyond its credit"));
}

#[tokio::test]
async fn credit_that_the_client_gives_is_the_guests_to_use() {
    let mut bench = bench();
    bench.opened().await;
    for _ in 0..50 {
        bench.guest_sends(Kind::Stdout, &[1; MAX_PAYLOAD]).await;
        assert_eq!(bench.next().await.unwrap().into_data().len(), MAX_PAYLOAD + 1);
        let bytes = u32::try_from(MAX_PAYLOAD).unwrap();
        bench.client_says(&ToDaemon::Window { stream: 2, bytes });
        let heard = guest_hears(&mut bench.guest, 1).await;
        assert_eq!(heard[0].control::<Control>().unwrap(), Control::Window { stream: 2, bytes });
    }
}

#[tokio::test]
async fn whatever_a_guest_sends_against_the_rules_ends_its_stream() {
    type Attack = (&'static str, Vec<u8>);
    let frame = |kind, bytes: &[u8]| {
        let mut wire = Vec::new();
        encode(kind, bytes, &mut wire);
        wire
    };
    let control = |message: &Control| frame(Kind::Control, &serde_json::to_vec(message).unwrap());
    let attacks: Vec<Attack> = vec![
        ("a length without end", vec![0xff; 64]),
        ("an unknown kind", vec![1, 0, 0, 0, 77, 0]),
        ("no JSON", frame(Kind::Control, b"\xff\xfe{{{{")),
        ("deep JSON", frame(Kind::Control, "[".repeat(16_000).as_bytes())),
        ("an unknown message", frame(Kind::Control, br#"{"type":"reboot_host"}"#)),
        ("an unknown field", frame(Kind::Control, br#"{"type":"eof","stream":2,"x":1}"#)),
        ("an empty frame", frame(Kind::Stdout, b"")),
        ("the client's stream", frame(Kind::Stdin, b"x")),
        ("a signal", control(&Control::Signal { signal: 9 })),
        ("credit for nothing", control(&Control::Window { stream: 1, bytes: 1 })),
        ("credit without end", control(&Control::Window { stream: 1, bytes: u32::MAX })),
        ("credit for itself", control(&Control::Window { stream: 2, bytes: 1 })),
        ("the end of an unknown stream", control(&Control::Eof { stream: 200 })),
        ("two ends", [control(&Control::Eof { stream: 2 }), control(&Control::Eof { stream: 2 })].concat()),
        ("data after the end", [control(&Control::Eof { stream: 3 }), frame(Kind::Stderr, b"x")].concat()),
    ];
    for (name, wire) in attacks {
        let mut bench = bench();
        bench.guest.write_all(&wire).await.unwrap();
        let reason = bench.failure().await;
        assert!(reason.contains("broke the protocol"), "{name}: {reason}");
    }
}

#[tokio::test]
async fn a_guest_that_hangs_up_in_the_middle_is_told_apart_from_an_exit() {
    let mut bench = bench();
    bench.guest.write_all(&[200, 0, 0, 0, 2, 1, 2, 3]).await.unwrap();
    bench.guest.shutdown().await.unwrap();
    assert!(bench.failure().await.contains("closed the connection"));
}

#[tokio::test]
async fn a_vm_that_ends_ends_its_streams_with_its_reason() {
    let mut bench = bench();
    bench.opened().await;
    let problem = Problem::new(Code::WrongState, "VM agents-1 failed: guest powered off");
    // The connection breaks first, as it does when a VMM dies.
    bench.guest.shutdown().await.unwrap();
    bench.end_vm.take().unwrap().send(problem).unwrap();
    assert_eq!(bench.failure().await, "VM agents-1 failed: guest powered off");
}

#[tokio::test]
async fn a_client_that_vanishes_ends_the_session_at_once_even_in_the_midst_of_data() {
    let mut bench = bench();
    bench.opened().await;
    // The guest reads nothing, so that the relay is in the middle of writing.
    for _ in 0..4 {
        bench.client_sends(Message::binary([&[1][..], &[0; MAX_PAYLOAD]].concat()));
    }
    bench.client = None;
    timeout(SOON, bench.relay).await.expect("the relay goes on").unwrap();
    cut_off(&mut bench.guest).await;
}

#[tokio::test]
async fn a_signal_does_not_wait_for_a_guest_that_reads_no_data() {
    let mut bench = bench();
    bench.opened().await;
    for _ in 0..4 {
        bench.client_sends(Message::binary([&[1][..], &[0; MAX_PAYLOAD]].concat()));
    }
    bench.client_says(&ToDaemon::Signal { signal: 2 });
    let heard = guest_hears(&mut bench.guest, 5).await;
    assert_eq!(heard[4].control::<Control>().unwrap(), Control::Signal { signal: 2 });
}

#[tokio::test]
async fn a_client_that_reads_nothing_fills_nothing() {
    let mut bench = bench();
    // One window on each stream is all a guest can get rid of; the rest is against the rules, and
    // the client is told although it has not read before.
    let part = vec![0; MAX_PAYLOAD];
    for kind in [Kind::Stdout, Kind::Stderr] {
        for _ in 0..WINDOW as usize / MAX_PAYLOAD {
            bench.guest_sends(kind, &part).await;
        }
    }
    tokio::time::sleep(Duration::from_millis(50)).await;
    assert!(bench.gets.len() <= CLIENT_QUEUE);
    bench.end_vm.take().unwrap().send(Problem::new(Code::WrongState, "the end")).unwrap();
    assert_eq!(bench.failure().await, "the end");
}

#[tokio::test]
async fn a_client_against_the_rules_is_told_what_it_did() {
    let data = |stream: u8, bytes: usize| Message::binary([&[stream][..], &vec![0; bytes]].concat());
    let says = |message: &str| Message::text(message.to_owned());
    let cases = [
        ("beyond its credit", vec![data(1, MAX_PAYLOAD); 5]),
        ("not the client's", vec![data(2, 1)]),
        ("not the client's", vec![Message::binary(Vec::new())]),
        ("empty message", vec![data(1, 0)]),
        ("bytes of data", vec![data(1, MAX_PAYLOAD + 1)]),
        ("a message that is none", vec![says("{}")]),
        ("a message that is none", vec![says(r#"{"type":"eof","x":1}"#)]),
        ("credit for stream 1", vec![says(r#"{"type":"window","stream":1,"bytes":1}"#)]),
        ("not sent", vec![says(r#"{"type":"window","stream":2,"bytes":1}"#)]),
        ("after the end", vec![says(r#"{"type":"eof"}"#), data(1, 1)]),
        ("signal 65", vec![says(r#"{"type":"signal","signal":65}"#)]),
        ("rows or columns", vec![says(r#"{"type":"resize","rows":0,"cols":80}"#)]),
        ("more messages than the guest takes", vec![says(r#"{"type":"signal","signal":1}"#); 40_000]),
    ];
    for (expected, messages) in cases {
        let bench = bench();
        for message in messages {
            bench.client_sends(message);
        }
        let reason = bench.failure().await;
        assert!(reason.contains(expected), "{expected}: {reason}");
    }
}

#[tokio::test]
async fn a_guests_failure_arrives_with_its_class_and_without_control_characters() {
    let mut bench = bench();
    bench.opened().await;
    let message = "no space on /dev/vda\x1b[2J".to_owned();
    bench.guest_says(&Control::Failed(Failure { code: FailureCode::NoSpace, message })).await;
    match bench.next_control().await {
        FromDaemon::Failed { guest: Some(GuestFailure::NoSpace), problem } => {
            assert_eq!(problem.detail, "no space on /dev/vda [2J");
        }
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn what_a_client_still_sends_does_not_cut_the_last_message_off() {
    let mut bench = bench();
    bench.opened().await;
    bench.guest_says(&Control::Exit { code: 0, signal: None, timed_out: false }).await;
    assert!(matches!(bench.next_control().await, FromDaemon::Exit { .. }));
    for _ in 0..100 {
        bench.client_sends(Message::binary(b"\x01late".to_vec()));
    }
    assert!(!bench.relay.is_finished(), "it waits for the client to close");
    bench.client = None;
    timeout(SOON, bench.relay).await.expect("the relay goes on").unwrap();
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_pings() {
    let mut bench = bench();
    bench.opened().await;
    // Not `next`, whose own bound would pass first.
    assert!(matches!(bench.gets.recv().await, Some(Message::Ping(_))));
}
