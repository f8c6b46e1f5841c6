//! Queries over TCP: several at a time, and connections that are abused.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use enisle_daemon::dns::DnsLimits;
use hickory_proto::op::ResponseCode;
use tokio::io::AsyncWriteExt;

use crate::fake::{Fake, Manner};
use crate::rig::{BOUND, Vm, closed, mark, query, quick, read_frame, send_frame, service};

#[tokio::test]
async fn many_queries_in_one_write_are_all_answered() {
    let slow = Fake::start(Manner::Slow(Duration::from_millis(50)), 1).await;
    let limits = DnsLimits { tcp_pipeline: 4, ..quick() };
    let vm = Vm::start(&service(&[&slow], limits)).await;
    let mut stream = vm.connect().await;
    let mut bytes = Vec::new();
    for id in 0..20u16 {
        let message = query(id, "a.example.").to_vec().unwrap();
        bytes.extend_from_slice(&u16::try_from(message.len()).unwrap().to_be_bytes());
        bytes.extend_from_slice(&message);
    }
    let start = Instant::now();
    stream.write_all(&bytes).await.unwrap();
    let mut ids = HashSet::new();
    for _ in 0..20 {
        let answer = read_frame(&mut stream).await;
        assert_eq!(mark(&answer), 1);
        ids.insert(answer.metadata.id);
    }
    assert_eq!(ids.len(), 20);
    // Four at a time: neither one after the other nor all at once.
    let (took, slowness) = (start.elapsed(), Duration::from_millis(50));
    assert!(took >= slowness * 5 && took < slowness * 15, "{took:?}");
}

#[tokio::test]
async fn a_slow_query_does_not_hold_up_the_next_on_its_connection() {
    let hanging = Fake::start(Manner::Hang, 1).await;
    let vm = Vm::start(&service(&[&hanging], DnsLimits { overall: BOUND, ..quick() })).await;
    let mut stream = vm.connect().await;
    send_frame(&mut stream, &query(1, "slow.example.").to_vec().unwrap()).await;
    let mut notify = query(2, "a.example.").to_vec().unwrap();
    notify[2] |= 0x20;
    send_frame(&mut stream, &notify).await;
    let answer = read_frame(&mut stream).await;
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (2, ResponseCode::NotImp));
}

#[tokio::test]
async fn a_query_in_single_bytes_and_an_end_after_it_are_served() {
    let good = Fake::start(Manner::Slow(Duration::from_millis(50)), 1).await;
    let vm = Vm::start(&service(&[&good], quick())).await;
    let mut stream = vm.connect().await;
    stream.set_nodelay(true).unwrap();
    let message = query(1, "a.example.").to_vec().unwrap();
    stream.write_u16(u16::try_from(message.len()).unwrap()).await.unwrap();
    for byte in message {
        stream.write_u8(byte).await.unwrap();
    }
    stream.shutdown().await.unwrap();
    assert_eq!(mark(&read_frame(&mut stream).await), 1);
    closed(&mut stream).await;
}

#[tokio::test]
async fn one_connection_too_many_is_closed_and_its_place_comes_back() {
    let good = Fake::start(Manner::Good, 1).await;
    let limits = DnsLimits { tcp_connections: 3, tcp_idle: BOUND, ..quick() };
    let vm = Vm::start(&service(&[&good], limits)).await;
    let mut streams = Vec::new();
    for id in 0..3 {
        streams.push(vm.connect().await);
        send_frame(&mut streams[id], &query(1, "a.example.").to_vec().unwrap()).await;
        assert_eq!(mark(&read_frame(&mut streams[id]).await), 1);
    }
    closed(&mut vm.connect().await).await;
    assert_eq!(vm.handle.counters().connections_refused, 1);
    // The others live on, and UDP is untouched.
    send_frame(&mut streams[0], &query(2, "a.example.").to_vec().unwrap()).await;
    assert_eq!(mark(&read_frame(&mut streams[0]).await), 1);
    assert_eq!(mark(&vm.ask(&query(3, "a.example.")).await), 1);
    streams.pop();
    let start = Instant::now();
    loop {
        let mut again = vm.connect().await;
        let sent = again.write_all(&[]).await;
        assert!(sent.is_ok() && start.elapsed() < BOUND, "no place came back");
        let refused = vm.handle.counters().connections_refused;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if vm.handle.counters().connections_refused == refused {
            send_frame(&mut again, &query(4, "a.example.").to_vec().unwrap()).await;
            assert_eq!(mark(&read_frame(&mut again).await), 1);
            break;
        }
    }
}

#[tokio::test]
async fn a_connection_in_use_stays_open() {
    let good = Fake::start(Manner::Good, 1).await;
    let vm = Vm::start(&service(&[&good], quick())).await;
    let mut stream = vm.connect().await;
    let mut notify = query(2, "a.example.").to_vec().unwrap();
    notify[2] |= 0x20;
    for _ in 0..4 {
        send_frame(&mut stream, &notify).await;
        assert_eq!(read_frame(&mut stream).await.metadata.response_code, ResponseCode::NotImp);
        tokio::time::sleep(quick().tcp_idle / 2).await;
    }
    closed(&mut stream).await;
}

#[tokio::test]
async fn idle_and_dripping_connections_are_closed() {
    let good = Fake::start(Manner::Good, 1).await;
    let vm = Vm::start(&service(&[&good], quick())).await;
    let mut idle = vm.connect().await;
    let start = Instant::now();
    closed(&mut idle).await;
    assert!(start.elapsed() >= quick().tcp_idle, "closed early");
    // One byte at a time never makes a message and buys no time.
    let mut drip = vm.connect().await;
    let start = Instant::now();
    drip.write_u16(200).await.unwrap();
    while drip.write_u8(0).await.is_ok() {
        assert!(start.elapsed() < BOUND, "the connection stays open");
        tokio::time::sleep(quick().tcp_idle / 8).await;
    }
    assert!(good.seen().is_empty());
}

#[tokio::test]
async fn frames_that_are_no_query_end_the_connection() {
    let good = Fake::start(Manner::Good, 1).await;
    let vm = Vm::start(&service(&[&good], DnsLimits { tcp_idle: BOUND, ..quick() })).await;
    let whole = query(1, "a.example.").to_vec().unwrap();
    let mut answer = whole.clone();
    answer[2] |= 0x80;
    let framed = [&u16::try_from(answer.len()).unwrap().to_be_bytes()[..], &answer].concat();
    let abuses = [vec![0, 0], vec![0, 11, 1, 2, 3], vec![255, 255, 1], vec![8, 1], framed];
    for abuse in abuses {
        let mut stream = vm.connect().await;
        // What follows the abuse on the connection is not read any more.
        let bytes = [&abuse[..], &u16::try_from(whole.len()).unwrap().to_be_bytes(), &whole].concat();
        stream.write_all(&bytes).await.unwrap();
        closed(&mut stream).await;
    }
    assert!(good.seen().is_empty());
    assert_eq!(mark(&vm.ask_tcp(&query(2, "a.example.")).await), 1);
}

#[tokio::test]
async fn a_guest_that_asks_and_does_not_read_is_given_up() {
    let huge = Fake::start(Manner::Long(60_000), 1).await;
    let vm = Vm::start(&service(&[&huge], quick())).await;
    let mut stream = vm.connect().await;
    let message = query(1, "a.example.").to_vec().unwrap();
    let framed = [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], &message].concat();
    // More than fills the buffers of both ends; the rate is far above it.
    stream.write_all(&framed.repeat(300)).await.unwrap();
    let start = Instant::now();
    // Its writes fail once the service has closed; until then there is room for them.
    while stream.write_all(&framed).await.is_ok() {
        assert!(start.elapsed() < BOUND, "the connection stays open");
        tokio::time::sleep(quick().tcp_idle / 4).await;
    }
    // Whoever reads is served meanwhile and afterwards.
    assert!(!vm.ask_tcp(&query(2, "a.example.")).await.answers.is_empty());
}
