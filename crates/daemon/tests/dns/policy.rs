//! Who may ask at all, and that the service ends when it is told to.

use std::time::Instant;

use enisle_daemon::dns::{DnsLimits, DnsPolicy, Upstreams};
use hickory_proto::op::ResponseCode;
use hickory_proto::rr::rdata::opt::{EdnsCode, EdnsOption};

use crate::fake::{Fake, Manner};
use crate::rig::{BOUND, Vm, closed, code, mark, query, query_edns, quick, receive, send_frame, service};

#[tokio::test]
async fn egress_none_refuses_and_forwards_nothing() {
    let good = Fake::start(Manner::Good, 1).await;
    let service = service(&[&good], quick());
    // The control: the same upstream answers a microVM that may ask.
    assert_eq!(mark(&Vm::start(&service).await.ask(&query(1, "a.example.")).await), 1);
    let before = good.seen().len();
    let vm = Vm::with_policy(&service, DnsPolicy::Refuse).await;
    let asked = query_edns(1, "a.example.", 1232);
    for answer in [vm.ask(&asked).await, vm.ask_tcp(&asked).await] {
        assert_eq!(code(&answer, &asked), ResponseCode::Refused);
        let reason = answer.edns.as_ref().and_then(|edns| edns.option(EdnsCode::Unknown(15)));
        let Some(EdnsOption::Unknown(_, reason)) = reason else { panic!("no reason given: {answer}") };
        assert_eq!(reason[..2], [0, 18]);
    }
    assert_eq!(good.seen().len(), before);
    let counters = vm.handle.counters();
    assert_eq!((counters.queries, counters.refused, counters.answered), (2, 2, 0));
}

#[tokio::test]
async fn a_switch_to_refuse_holds_at_once_also_for_what_is_under_way() {
    let (hanging, good) = (Fake::start(Manner::Hang, 1).await, Fake::start(Manner::Good, 2).await);
    let limits = DnsLimits { attempt: BOUND, overall: BOUND, ..quick() };
    let service = service(&[&hanging], limits);
    let vm = Vm::start(&service).await;
    let socket = vm.socket().await;
    for id in 0..5 {
        socket.send(&query(id, "a.example.").to_vec().unwrap()).await.unwrap();
    }
    let start = Instant::now();
    while hanging.seen().len() < 5 {
        assert!(start.elapsed() < BOUND, "not forwarded");
        tokio::task::yield_now().await;
    }
    let start = Instant::now();
    vm.policy.send_replace(DnsPolicy::Refuse);
    for _ in 0..5 {
        assert_eq!(receive(&socket).await.metadata.response_code, ResponseCode::Refused);
    }
    assert!(start.elapsed() < BOUND / 10);
    assert_eq!(vm.ask(&query(9, "b.example.")).await.metadata.response_code, ResponseCode::Refused);
    assert_eq!(hanging.seen().len(), 5);
    vm.policy.send_replace(DnsPolicy::Forward { upstreams: Upstreams::fixed([good.address]) });
    assert_eq!(mark(&vm.ask(&query(10, "c.example.")).await), 2);
}

#[tokio::test]
async fn a_policy_nobody_holds_any_more_lets_nothing_out() {
    let good = Fake::start(Manner::Good, 1).await;
    let vm = Vm::start(&service(&[&good], quick())).await;
    assert_eq!(mark(&vm.ask(&query(1, "a.example.")).await), 1);
    let (address, handle) = (vm.address, vm.handle);
    drop(vm.policy);
    let socket = tokio::net::UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.connect(address).await.unwrap();
    socket.send(&query(2, "b.example.").to_vec().unwrap()).await.unwrap();
    assert_eq!(receive(&socket).await.metadata.response_code, ResponseCode::Refused);
    assert_eq!(good.seen().len(), 1);
    drop(handle);
}

#[tokio::test]
async fn stop_leaves_no_socket_behind_even_with_work_under_way() {
    let hanging = Fake::start(Manner::Hang, 1).await;
    let limits = DnsLimits { attempt: BOUND, overall: BOUND, tcp_idle: BOUND, ..quick() };
    let vm = Vm::start(&service(&[&hanging], limits)).await;
    let mut streams = Vec::new();
    let socket = vm.socket().await;
    for id in 0..8 {
        socket.send(&query(id, "a.example.").to_vec().unwrap()).await.unwrap();
        let mut stream = vm.connect().await;
        send_frame(&mut stream, &query(id, "b.example.").to_vec().unwrap()).await;
        streams.push(stream);
    }
    let start = Instant::now();
    while hanging.seen().len() < 16 {
        assert!(start.elapsed() < BOUND, "not forwarded");
        tokio::task::yield_now().await;
    }
    // The control: each of the sixteen holds its port.
    assert!(hanging.seen().iter().all(|seen| std::net::UdpSocket::bind(seen.from).is_err()));
    let (address, start) = (vm.address, Instant::now());
    vm.handle.stop().await;
    assert!(start.elapsed() < BOUND / 10);
    for seen in hanging.seen() {
        std::net::UdpSocket::bind(seen.from).expect("a socket towards the upstream is left");
    }
    for mut stream in streams {
        closed(&mut stream).await;
    }
    std::net::UdpSocket::bind(address).expect("the guest's UDP socket is left");
    assert!(tokio::net::TcpStream::connect(address).await.is_err(), "the guest's listener is left");
}

#[tokio::test]
async fn a_dropped_handle_ends_the_service() {
    let good = Fake::start(Manner::Good, 1).await;
    let vm = Vm::start(&service(&[&good], quick())).await;
    let address = vm.address;
    drop(vm.handle);
    let start = Instant::now();
    while std::net::UdpSocket::bind(address).is_err() {
        assert!(start.elapsed() < BOUND, "still served");
        tokio::task::yield_now().await;
    }
}
