//! How much one guest gets, and that its neighbours don't pay for it.

use std::time::Duration;

use enisle_daemon::dns::DnsLimits;
use hickory_proto::op::ResponseCode;

use crate::fake::{Fake, Manner};
use crate::rig::{BOUND, Vm, code, mark, query, quick, receive, service};

#[tokio::test]
async fn what_is_over_the_rate_is_refused_and_never_forwarded() {
    let good = Fake::start(Manner::Good, 1).await;
    let limits = DnsLimits { queries_per_s: 1, burst: 5, ..quick() };
    let service = service(&[&good], limits);
    let vm = Vm::start(&service).await;
    for id in 0..5 {
        assert_eq!(mark(&vm.ask(&query(id, "a.example.")).await), 1);
    }
    let asked = query(5, "a.example.");
    assert_eq!(code(&vm.ask(&asked).await, &asked), ResponseCode::Refused);
    assert_eq!(code(&vm.ask_tcp(&asked).await, &asked), ResponseCode::Refused);
    assert_eq!(good.seen().len(), 5);
    let counters = vm.handle.counters();
    assert_eq!((counters.queries, counters.answered, counters.limited), (7, 5, 2));
    // A neighbour has a rate of its own.
    assert_eq!(mark(&Vm::start(&service).await.ask(&query(1, "b.example.")).await), 1);
    // And a token comes back.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(mark(&vm.ask(&query(6, "a.example.")).await), 1);
}

#[tokio::test]
async fn a_flood_is_left_unread() {
    let good = Fake::start(Manner::Good, 1).await;
    let limits = DnsLimits { queries_per_s: 50, burst: 20, ..quick() };
    let service = service(&[&good], limits);
    let (noisy, quiet) = (Vm::start(&service).await, Vm::start(&service).await);
    let socket = noisy.socket().await;
    let bytes = query(1, "a.example.").to_vec().unwrap();
    let start = std::time::Instant::now();
    let mut sent = 0;
    while start.elapsed() < Duration::from_millis(500) {
        socket.send(&bytes).await.unwrap();
        sent += 1;
    }
    let asked = std::time::Instant::now();
    assert_eq!(mark(&quiet.ask(&query(2, "b.example.")).await), 1);
    assert!(asked.elapsed() < BOUND / 10);
    let read = noisy.handle.counters().queries;
    let forwarded = good.seen().len();
    assert!(sent > 2000, "no flood: {sent}");
    // Two bursts, then what half a second and the neighbour's answer bring, three times over.
    assert!(read <= 40 + 3 * 100, "{read} of {sent} were read");
    assert!(forwarded <= 20 + 3 * 50, "{forwarded} of {sent} were forwarded");
}

#[tokio::test]
async fn too_many_under_way_are_answered_at_once() {
    let hanging = Fake::start(Manner::Hang, 1).await;
    let limits = DnsLimits { in_flight: 3, overall: BOUND, ..quick() };
    let vm = Vm::start(&service(&[&hanging], limits)).await;
    let socket = vm.socket().await;
    for id in 0..4 {
        socket.send(&query(id, "a.example.").to_vec().unwrap()).await.unwrap();
    }
    let answer = receive(&socket).await;
    assert_eq!((answer.metadata.id, answer.metadata.response_code), (3, ResponseCode::ServFail));
    let counters = vm.handle.counters();
    assert_eq!((counters.queries, counters.limited), (4, 1));
    crate::rig::silent(&socket).await;
}

#[tokio::test]
async fn places_are_given_back() {
    let hanging = Fake::start(Manner::Hang, 1).await;
    let limits = DnsLimits { in_flight: 2, ..quick() };
    let vm = Vm::start(&service(&[&hanging], limits)).await;
    for round in 0..3 {
        let socket = vm.socket().await;
        for id in 0..2 {
            socket.send(&query(id, "a.example.").to_vec().unwrap()).await.unwrap();
        }
        for _ in 0..2 {
            receive(&socket).await;
        }
        assert_eq!(vm.handle.counters().failed_upstream, 2 * (round + 1));
    }
    assert_eq!(vm.handle.counters().limited, 0);
}
