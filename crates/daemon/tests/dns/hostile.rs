//! Guests that send anything but a question.

use enisle_daemon::dns::DnsLimits;
use hickory_proto::op::Message;
use proptest::strategy::{Strategy, ValueTree};
use proptest::test_runner::TestRunner;

use crate::fake::{Fake, Manner};
use crate::rig::{Vm, mark, query, quick, receive, service, silent};

/// The code a packet is answered with, if it is. A number: 16 is BADVERS here and BADSIG elsewhere
/// (RFC 6895 §2.3).
type Expected = Option<u16>;

const SILENT: Expected = None;
const FORMERR: Expected = Some(1);
const NOTIMP: Expected = Some(4);
const REFUSED: Expected = Some(5);
const BADVERS: Expected = Some(16);

/// Id 7, RD, then these counts.
fn header(counts: [u8; 4]) -> Vec<u8> {
    let [questions, answers, authorities, additionals] = counts;
    vec![0, 7, 1, 0, 0, questions, 0, answers, 0, authorities, 0, additionals]
}

fn packet(counts: [u8; 4], body: &[&[u8]]) -> Vec<u8> {
    [header(counts), body.concat()].concat()
}

const NAME: &[u8] = b"\x03www\x07example\0";
const A_IN: &[u8] = &[0, 1, 0, 1];
const OPT: &[u8] = &[0, 0, 41, 4, 208, 0, 0, 0, 0, 0, 0];

fn flagged(second: u8, third: u8) -> Vec<u8> {
    let mut bytes = packet([1, 0, 0, 0], &[NAME, A_IN]);
    bytes[2] = second;
    bytes[3] = third;
    bytes
}

fn kind(kind: u16, class: u16) -> Vec<u8> {
    packet([1, 0, 0, 0], &[NAME, &kind.to_be_bytes(), &class.to_be_bytes()])
}

fn opt(change: impl Fn(&mut Vec<u8>)) -> Vec<u8> {
    let mut record = OPT.to_vec();
    change(&mut record);
    packet([1, 0, 0, 1], &[NAME, A_IN, &record])
}

fn messages() -> Vec<(&'static str, Vec<u8>, Expected)> {
    let record: &[u8] = &[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 10, 0, 0, 1];
    let long_name = [&[63; 64][..]; 4].concat();
    vec![
        ("nothing", vec![], SILENT),
        ("half a header", header([1, 0, 0, 0])[..11].to_vec(), SILENT),
        ("an answer", flagged(0x81, 0x80), SILENT),
        ("an answer of opcode update", flagged(0xa8, 0), SILENT),
        ("no question", header([0, 0, 0, 0]), FORMERR),
        ("a promised question", header([1, 0, 0, 0]), FORMERR),
        (
            "65535 promised questions",
            [vec![0, 7, 1, 0, 255, 255, 0, 0, 0, 0, 0, 0], NAME.to_vec()].concat(),
            FORMERR,
        ),
        (
            "65535 promised additionals",
            {
                let mut bytes = packet([1, 0, 0, 0], &[NAME, A_IN]);
                bytes[10..12].copy_from_slice(&[255, 255]);
                bytes
            },
            FORMERR,
        ),
        ("two questions", packet([2, 0, 0, 0], &[NAME, A_IN, NAME, A_IN]), FORMERR),
        ("a second question unannounced", packet([1, 0, 0, 0], &[NAME, A_IN, NAME, A_IN]), FORMERR),
        ("one byte too many", packet([1, 0, 0, 0], &[NAME, A_IN, &[0]]), FORMERR),
        ("one byte too few", packet([1, 0, 0, 0], &[NAME, &A_IN[..3]]), FORMERR),
        ("a query with an answer", packet([1, 1, 0, 0], &[NAME, A_IN, record]), FORMERR),
        ("a query with an authority", packet([1, 0, 1, 0], &[NAME, A_IN, record]), FORMERR),
        ("an additional that is no OPT", packet([1, 0, 0, 1], &[NAME, A_IN, record]), FORMERR),
        ("two OPTs", packet([1, 0, 0, 2], &[NAME, A_IN, OPT, OPT]), FORMERR),
        ("an OPT with a name", opt(|o| drop(o.splice(0..1, *b"\x01a\0"))), FORMERR),
        ("an OPT longer than the message", opt(|o| o[9..].copy_from_slice(&[255, 255])), FORMERR),
        (
            "an OPT with half an option",
            opt(|o| {
                o[10] = 3;
                o.extend_from_slice(&[0, 10, 0]);
            }),
            FORMERR,
        ),
        ("EDNS version 1", opt(|o| o[6] = 1), BADVERS),
        ("a name that points to itself", packet([1, 0, 0, 0], &[&[0xc0, 12], A_IN]), FORMERR),
        ("a name that points into the header", packet([1, 0, 0, 0], &[&[0xc0, 4], A_IN]), FORMERR),
        ("a name that points ahead", packet([1, 0, 0, 0], &[&[0xc0, 20], A_IN, NAME]), FORMERR),
        ("a label of a reserved kind", packet([1, 0, 0, 0], &[&[0x41, 0], A_IN]), FORMERR),
        ("a name without an end", packet([1, 0, 0, 0], &[&NAME[..12]]), FORMERR),
        ("a name of 257 bytes", packet([1, 0, 0, 0], &[&long_name, &[0], A_IN]), FORMERR),
        ("four kilobytes", packet([1, 0, 0, 0], &[NAME, A_IN, &[0; 4096]]), FORMERR),
        ("opcode inverse query", flagged(0x08, 0), NOTIMP),
        ("opcode status", flagged(0x10, 0), NOTIMP),
        ("opcode notify", flagged(0x20, 0), NOTIMP),
        ("opcode update", flagged(0x28, 0), NOTIMP),
        ("an unknown opcode", flagged(0x78, 0), NOTIMP),
        ("class CH", kind(16, 3), REFUSED),
        ("class ANY", kind(1, 255), REFUSED),
        ("class 0", kind(1, 0), REFUSED),
        ("type 0", kind(0, 1), REFUSED),
        ("type OPT", kind(41, 1), REFUSED),
        ("type AXFR", kind(252, 1), REFUSED),
        ("type IXFR", kind(251, 1), REFUSED),
        ("type TKEY", kind(249, 1), REFUSED),
        ("type TSIG", kind(250, 1), REFUSED),
        ("mDNS's unicast bit", kind(1, 0x8001), REFUSED),
    ]
}

#[tokio::test]
async fn each_hostile_packet_is_answered_as_it_deserves_and_none_is_forwarded() {
    let good = Fake::start(Manner::Good, 1).await;
    let vm = Vm::start(&service(&[&good], quick())).await;
    for (what, bytes, expected) in messages() {
        let socket = vm.socket().await;
        socket.send(&bytes).await.unwrap();
        match expected {
            SILENT => silent(&socket).await,
            Some(code) => {
                let answer = receive(&socket).await;
                let seen = u16::from(answer.metadata.response_code);
                assert_eq!((answer.metadata.id, seen), (7, code), "{what}");
                assert!(answer.answers.is_empty());
            }
        }
    }
    assert!(good.seen().is_empty(), "forwarded: {:?}", good.seen());
    // The control: the same bytes without a flaw.
    let socket = vm.socket().await;
    socket.send(&packet([1, 0, 0, 1], &[NAME, A_IN, OPT])).await.unwrap();
    assert_eq!(mark(&receive(&socket).await), 1);
    let counters = vm.handle.counters();
    let done = counters.answered + counters.refused + counters.malformed;
    assert_eq!((counters.queries, done), (messages().len() as u64 + 1, done));
}

#[tokio::test]
async fn noise_on_the_socket_is_never_forwarded_and_hurts_nobody() {
    let good = Fake::start(Manner::Good, 1).await;
    let limits = DnsLimits { queries_per_s: 100_000, burst: 100_000, ..quick() };
    let vm = Vm::start(&service(&[&good], limits)).await;
    let whole = query(7, "www.example.com.").to_vec().unwrap();
    let mut runner = TestRunner::deterministic();
    let noise = proptest::collection::vec(proptest::num::u8::ANY, 0..300);
    let flips = proptest::collection::vec((0..whole.len(), proptest::num::u8::ANY), 1..5);
    for _ in 0..500 {
        let socket = vm.socket().await;
        let random = noise.new_tree(&mut runner).unwrap().current();
        let mut mangled = whole.clone();
        for (at, value) in flips.new_tree(&mut runner).unwrap().current() {
            mangled[at] = value;
        }
        socket.send(&random).await.unwrap();
        socket.send(&mangled).await.unwrap();
        // In step with the service, so that the kernel's queue loses nothing.
        let socket = vm.socket().await;
        socket.send(&whole).await.unwrap();
        assert_eq!(mark(&receive(&socket).await), 1);
    }
    assert_eq!(vm.handle.counters().queries, 1500);
    for seen in good.seen() {
        let message = Message::from_vec(&seen.bytes).unwrap();
        assert_eq!(message.queries.len(), 1);
        assert_eq!(message.to_vec().unwrap(), seen.bytes);
        assert!(
            message.answers.is_empty() && message.authorities.is_empty() && message.additionals.is_empty()
        );
    }
}
