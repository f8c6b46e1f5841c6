//! The way up and back: what upstreams see, who is asked next, what the guest gets.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use enisle_daemon::dns::{DnsLimits, DnsPolicy, Upstreams};
use hickory_proto::op::{Message, ResponseCode};

use crate::fake::{Fake, Manner};
use crate::rig::{BOUND, Vm, code, mark, query, query_edns, quick, receive, service, silent};

#[tokio::test]
async fn an_answer_comes_back_over_both_transports() {
    let good = Fake::start(Manner::Good, 7).await;
    let vm = Vm::start(&service(&[&good], quick())).await;
    for id in [0, 1, 0xffff] {
        let asked = query(id, "www.example.com.");
        let (udp, tcp) = (vm.ask(&asked).await, vm.ask_tcp(&asked).await);
        assert_eq!((code(&udp, &asked), mark(&udp)), (ResponseCode::NoError, 7));
        assert_eq!(udp, tcp);
    }
    let counters = vm.handle.counters();
    assert_eq!((counters.queries, counters.answered), (6, 6));
}

#[tokio::test]
async fn every_query_has_an_id_and_a_port_of_its_own() {
    let good = Fake::start(Manner::Good, 7).await;
    let vm = Vm::start(&service(&[&good], quick())).await;
    for _ in 0..32 {
        vm.ask(&query(0x4242, "www.example.com.")).await;
    }
    let seen = good.seen();
    let ids: HashSet<_> = seen.iter().map(|one| one.bytes[..2].to_vec()).collect();
    let ports: HashSet<_> = seen.iter().map(|one| one.from.port()).collect();
    assert_eq!(seen.len(), 32);
    // Two equal ones of 32 may be; as few as this cannot by chance.
    assert!(ids.len() > 24 && ports.len() > 24, "{} ids, {} ports", ids.len(), ports.len());
    let steps: HashSet<_> =
        seen.windows(2).map(|two| two[1].from.port().wrapping_sub(two[0].from.port())).collect();
    assert!(steps.len() > 8, "ports in a row");
}

#[tokio::test]
async fn the_next_upstream_is_asked_when_one_hangs_and_remembered() {
    let (hanging, good) = (Fake::start(Manner::Hang, 1).await, Fake::start(Manner::Good, 2).await);
    let vm = Vm::start(&service(&[&hanging, &good], quick())).await;
    let start = Instant::now();
    assert_eq!(mark(&vm.ask(&query(1, "a.example.")).await), 2);
    assert!(start.elapsed() >= quick().attempt);
    let asked_before = hanging.seen().len();
    assert_eq!(mark(&vm.ask(&query(2, "b.example.")).await), 2);
    assert_eq!(hanging.seen().len(), asked_before, "the hanging one was asked again");
    tokio::time::sleep(quick().prefer).await;
    assert_eq!(mark(&vm.ask(&query(3, "c.example.")).await), 2);
    let asked_again = hanging.seen().len();
    assert!(asked_again > asked_before, "the first upstream is never tried again");
    assert_eq!(mark(&vm.ask(&query(4, "d.example.")).await), 2);
    assert_eq!(hanging.seen().len(), asked_again, "the lesson was learnt only once");
}

#[tokio::test]
async fn one_vms_preference_is_not_anothers() {
    let first = Fake::start(Manner::LosesFirst, 1).await;
    let good = Fake::start(Manner::Good, 2).await;
    let service = service(&[&first, &good], quick());
    let (steered, other) = (Vm::start(&service).await, Vm::start(&service).await);
    steered.ask(&query(1, "slow.example.")).await;
    let before = first.seen().len();
    other.ask(&query(1, "b.example.")).await;
    assert!(first.seen().len() > before, "one guest chose another's upstream");
}

#[tokio::test]
async fn a_dead_upstream_is_passed_over_at_once() {
    let dead = Fake::start(Manner::Good, 1).await;
    let address = dead.address;
    let good = Fake::start(Manner::Good, 2).await;
    let limits = DnsLimits { attempt: BOUND, overall: BOUND, ..quick() };
    let service = service(&[&dead, &good], limits);
    drop(dead);
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(std::net::UdpSocket::bind(address).is_ok(), "the port is still taken");
    let vm = Vm::start(&service).await;
    let start = Instant::now();
    assert_eq!(mark(&vm.ask(&query(1, "a.example.")).await), 2);
    assert!(start.elapsed() < BOUND / 4);
}

#[tokio::test]
async fn liars_are_not_believed() {
    let lies = [Manner::LyingId, Manner::WrongQuestion, Manner::Garbage, Manner::OtherSocket];
    for manner in lies {
        let liar = Fake::start(manner, 1).await;
        let good = Fake::start(Manner::Good, 2).await;
        let vm = Vm::start(&service(&[&liar, &good], quick())).await;
        assert_eq!(mark(&vm.ask(&query(1, "a.example.")).await), 2, "{manner:?}");
        let alone = Vm::start(&service(&[&liar], quick())).await;
        let asked = query(2, "a.example.");
        let start = Instant::now();
        assert_eq!(code(&alone.ask(&asked).await, &asked), ResponseCode::ServFail, "{manner:?}");
        assert!(start.elapsed() >= quick().overall && start.elapsed() < BOUND);
        assert_eq!(alone.handle.counters().failed_upstream, 1);
        assert!(!liar.seen().is_empty());
    }
}

#[tokio::test]
async fn an_upstream_that_cannot_is_passed_over_and_quoted_if_nobody_can() {
    for failure in [ResponseCode::ServFail, ResponseCode::Refused, ResponseCode::NotImp] {
        let lame = Fake::start(Manner::Error(failure), 1).await;
        let good = Fake::start(Manner::Good, 2).await;
        let vm = Vm::start(&service(&[&lame, &good], quick())).await;
        assert_eq!(mark(&vm.ask(&query(1, "a.example.")).await), 2);
        let alone = Vm::start(&service(&[&lame], quick())).await;
        let asked = query(1, "a.example.");
        assert_eq!(code(&alone.ask(&asked).await, &asked), failure);
        assert_eq!(alone.handle.counters().answered, 1);
    }
    // A name that does not exist is an answer.
    let (no, good) =
        (Fake::start(Manner::Error(ResponseCode::NXDomain), 1).await, Fake::start(Manner::Good, 2).await);
    let vm = Vm::start(&service(&[&no, &good], quick())).await;
    let asked = query(1, "a.example.");
    assert_eq!(code(&vm.ask(&asked).await, &asked), ResponseCode::NXDomain);
    assert!(good.seen().is_empty());
}

#[tokio::test]
async fn a_bare_error_is_a_failure_at_once() {
    let bare = Fake::start(Manner::BareError(ResponseCode::FormErr), 1).await;
    let good = Fake::start(Manner::Good, 2).await;
    let limits = DnsLimits { attempt: BOUND, overall: BOUND, ..quick() };
    let vm = Vm::start(&service(&[&bare, &good], limits)).await;
    let start = Instant::now();
    assert_eq!(mark(&vm.ask(&query(1, "a.example.")).await), 2);
    assert!(start.elapsed() < BOUND / 4);
}

#[tokio::test]
async fn a_slow_upstream_and_a_lost_datagram_are_waited_for() {
    let slow = Fake::start(Manner::Slow(quick().attempt * 3), 1).await;
    let hanging = Fake::start(Manner::Hang, 2).await;
    let vm = Vm::start(&service(&[&slow, &hanging], quick())).await;
    assert_eq!(mark(&vm.ask(&query(1, "a.example.")).await), 1);
    let lossy = Fake::start(Manner::LosesFirst, 3).await;
    let vm = Vm::start(&service(&[&lossy], quick())).await;
    assert_eq!(mark(&vm.ask(&query(1, "a.example.")).await), 3);
    assert_eq!(lossy.seen().len(), 2);
}

#[tokio::test]
async fn no_upstream_at_all_is_a_failure_at_once() {
    let limits = DnsLimits { attempt: BOUND, overall: BOUND, ..quick() };
    let vm = Vm::start(&service(&[], limits)).await;
    let asked = query(1, "a.example.");
    let start = Instant::now();
    assert_eq!(code(&vm.ask(&asked).await, &asked), ResponseCode::ServFail);
    assert!(start.elapsed() < BOUND / 4);
}

#[tokio::test]
async fn the_guests_spelling_comes_back() {
    let loud = Fake::start(Manner::Shouts, 4).await;
    let vm = Vm::start(&service(&[&loud], quick())).await;
    let asked = query(1, "wWw.eXaMple.CoM.");
    let answer = vm.ask(&asked).await;
    assert!(answer.queries[0].name().eq_case(asked.queries[0].name()));
    assert_eq!(mark(&answer), 4);
}

/// How many records a `Long(size)` fake sends.
fn records(answer: &Message) -> usize {
    assert!(!answer.metadata.truncation, "cut short");
    answer.answers.len()
}

#[tokio::test]
async fn long_answers_are_fetched_over_tcp_and_cut_for_udp() {
    let long = Fake::start(Manner::Long(1100), 5).await;
    let vm = Vm::start(&service(&[&long], quick())).await;
    // Without an OPT record 512 bytes are the limit.
    let asked = query(1, "a.example.");
    let cut = vm.ask(&asked).await;
    assert_eq!(code(&cut, &asked), ResponseCode::NoError);
    assert!(cut.metadata.truncation && cut.answers.is_empty() && cut.edns.is_none());
    assert!(long.seen().iter().any(|one| one.tcp), "TCP was not tried");
    assert_eq!(records(&vm.ask_tcp(&asked).await), 5);
    // With one that allows it, the whole comes at once; one that allows less than 512 allows 512.
    assert_eq!(records(&vm.ask(&query_edns(2, "a.example.", 4096)).await), 5);
    let small = vm.ask(&query_edns(3, "a.example.", 1)).await;
    assert!(small.metadata.truncation && small.edns.is_some());
}

#[tokio::test]
async fn an_answer_of_sixty_kilobytes_comes_over_tcp() {
    let huge = Fake::start(Manner::Long(60_000), 6).await;
    let vm = Vm::start(&service(&[&huge], quick())).await;
    assert_eq!(records(&vm.ask_tcp(&query(1, "a.example.")).await), 60_000 / 213);
    let over_udp = vm.ask(&query_edns(2, "a.example.", 65535)).await;
    assert!(over_udp.metadata.truncation && over_udp.to_vec().unwrap().len() <= 512);
}

#[tokio::test]
async fn a_datagram_longer_than_was_allowed_is_taken_or_fetched_over_tcp() {
    for (size, over_tcp) in [(2000, false), (9000, true)] {
        let overlong = Fake::start(Manner::Overlong(size), 1).await;
        let vm = Vm::start(&service(&[&overlong], quick())).await;
        assert_eq!(records(&vm.ask_tcp(&query(1, "a.example.")).await), size / 213);
        assert_eq!(overlong.seen().iter().any(|one| one.tcp), over_tcp);
        assert!(vm.ask(&query_edns(2, "a.example.", 65535)).await.metadata.truncation);
    }
}

#[tokio::test]
async fn an_upstream_that_hangs_over_tcp_is_passed_over() {
    let hanging = Fake::start(Manner::HangsOverTcp, 1).await;
    let good = Fake::start(Manner::Good, 2).await;
    let vm = Vm::start(&service(&[&hanging, &good], quick())).await;
    assert_eq!(mark(&vm.ask_tcp(&query(1, "a.example.")).await), 2);
    let alone = Vm::start(&service(&[&hanging], quick())).await;
    let asked = query(1, "a.example.");
    assert_eq!(code(&alone.ask_tcp(&asked).await, &asked), ResponseCode::ServFail);
}

#[tokio::test]
async fn a_vm_whose_queries_hang_delays_nobody() {
    let (hanging, good) = (Fake::start(Manner::Hang, 1).await, Fake::start(Manner::Good, 2).await);
    let limits = DnsLimits { overall: BOUND, in_flight_total: 16, ..quick() };
    let service = service(&[&good], limits);
    let upstreams = Upstreams::fixed([hanging.address]);
    let stuck = Vm::with_policy(&service, DnsPolicy::Forward { upstreams }).await;
    let socket = stuck.socket().await;
    for id in 0..100 {
        socket.send(&query(id, "a.example.").to_vec().unwrap()).await.unwrap();
    }
    // All it may have are under way, and the rest are refused.
    for _ in 0..80 {
        assert_eq!(receive(&socket).await.metadata.response_code, ResponseCode::ServFail);
    }
    silent(&socket).await;
    let start = Instant::now();
    for id in 0..50 {
        let vm = Vm::start(&service).await;
        assert_eq!(mark(&vm.ask(&query(id, "b.example.")).await), 2);
    }
    assert!(start.elapsed() < BOUND / 2, "{:?}", start.elapsed());
}
