//! A guest that keeps to its credit is heard to its end; one that does not is cut off, and fills nothing.

use super::*;
use crate::guest::wire::FrameReader;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::mpsc::{Receiver, channel};
use tokio::task::JoinHandle;
use tokio::time::timeout;

const SOON: Duration = Duration::from_secs(10);

struct Bench {
    guest: UnixStream,
    output: Receiver<Piece>,
    talk: JoinHandle<Result<End, TalkError>>,
}

fn bench() -> Bench {
    let (guest, host) = UnixStream::pair().unwrap();
    let (read, writer) = host.into_split();
    let session = Session { reader: FrameReader::new(read), writer, pid: None };
    let (tell, output) = channel(1);
    let input = futures_util::stream::pending::<Result<Bytes, Infallible>>();
    Bench { guest, output, talk: tokio::spawn(run(session, input, tell)) }
}

fn data(bytes: &[u8]) -> Vec<u8> {
    let mut frame = Vec::new();
    encode(Kind::Stdout, bytes, &mut frame);
    frame
}

fn control(message: &Control) -> Vec<u8> {
    let mut frame = Vec::new();
    encode_control(message, &mut frame).unwrap();
    frame
}

/// What the daemon makes of a guest that sends this and reads nothing, while all output is taken.
async fn verdict(frames: impl IntoIterator<Item = Vec<u8>>) -> String {
    let Bench { mut guest, mut output, talk } = bench();
    let taker = tokio::spawn(async move { while output.recv().await.is_some() {} });
    for frame in frames {
        if guest.write_all(&frame).await.is_err() {
            break;
        }
    }
    let end = timeout(SOON, talk).await.expect("no verdict").unwrap();
    taker.await.unwrap();
    end.map_or_else(|error| error.to_string(), |end| format!("{end:?}"))
}

#[tokio::test]
async fn many_windows_of_output_arrive_whole() {
    let Bench { guest, mut output, talk } = bench();
    let (mut from_host, mut to_host) = guest.into_split();
    let total = 5 * WINDOW as usize;
    let sender = tokio::spawn(async move {
        let credit = Semaphore::new(WINDOW as usize);
        let tell = async {
            for piece in vec![7; total].chunks(1000) {
                credit.acquire_many(u32::try_from(piece.len()).unwrap()).await.unwrap().forget();
                to_host.write_all(&data(piece)).await.unwrap();
            }
            let exit = Control::Exit { code: 3, signal: None, timed_out: false };
            to_host.write_all(&control(&exit)).await.unwrap();
        };
        let hear = async {
            let (mut decoder, mut buffer) = (enisle_guest_proto::Decoder::default(), vec![0; 4096]);
            loop {
                let read = from_host.read(&mut buffer).await.unwrap();
                decoder.feed(&buffer[..read]);
                while let Some(frame) = decoder.next_frame().unwrap() {
                    let Control::Window { stream: STDOUT, bytes } = frame.control().unwrap() else {
                        panic!("something else")
                    };
                    credit.add_permits(bytes as usize);
                }
            }
        };
        tokio::select! { () = tell => {}, () = hear => {} }
    });
    let mut received = 0;
    while let Some((stream, piece)) = timeout(SOON, output.recv()).await.unwrap() {
        assert_eq!(stream, STDOUT);
        received += piece.len();
    }
    assert_eq!(received, total);
    let end = timeout(SOON, talk).await.unwrap().unwrap().unwrap();
    assert_eq!(end, End::Exit { code: 3, signal: None, timed_out: false });
    sender.await.unwrap();
}

#[tokio::test]
async fn a_guest_that_reads_no_credit_is_cut_off() {
    // As much as it likes: what is owed to it is two sums, whatever it does.
    let said = verdict(std::iter::repeat_with(|| data(&[b'x'; 1000])).take(WINDOW as usize)).await;
    assert!(said.contains("beyond its credit"), "{said}");
}

#[tokio::test]
async fn what_costs_a_guest_nothing_ends_its_session() {
    let end = || control(&Control::Eof { stream: STDERR });
    for (frames, why) in [
        (vec![end(), end()], "after the end of its stream"),
        (vec![control(&Control::Eof { stream: STDIN })], "the daemon's stream"),
        (vec![control(&Control::Window { stream: STDIN, bytes: 0 })], "not sent"),
        (vec![control(&Control::Window { stream: STDIN, bytes: 1 })], "not sent"),
        (vec![data(b"")], "an empty message"),
    ] {
        let said = verdict(frames).await;
        assert!(said.contains(why), "{said} instead of {why}");
    }
}
