//! Row 15, bandwidth: what the kernel holds and what comes through, in each direction.

use std::net::UdpSocket;
use std::time::{Duration, Instant};

use enisle_net::Limits;
use enisle_testkit::flow::Flow;
use enisle_testkit::frame;
use enisle_testkit::world::{ECHO, SERVER, SOURCE};
use enisle_testkit::{Netns, World};

use crate::limits::NOWHERE;
use crate::rig::{LIMIT, Rig, Vm};

/// How long a rate is measured.
const WHILE: Duration = Duration::from_secs(1);
/// Slow enough for any machine to exceed by far.
const MBIT: u32 = 8;
/// Its bytes a second.
const RATE: f64 = 1e6;

/// Bytes that have arrived from the host at the Internet's side.
fn arrived(world: &World) -> u64 {
    let text = world.internet.run(|| std::fs::read_to_string("/proc/thread-self/net/dev")).unwrap();
    let line = text.lines().find_map(|line| line.trim().strip_prefix("host0:")).unwrap();
    line.split_whitespace().next().unwrap().parse().unwrap()
}

/// Bytes a second that a guest gets out when it sends frames as fast as it can.
fn up(rig: &Rig, vm: usize) -> f64 {
    let guest = &rig.vms[vm].guest;
    let datagram = frame::udp(guest.to(NOWHERE), 41_000, 5004, &[0; 1400]);
    let (start, before) = (Instant::now(), arrived(&rig.world));
    while start.elapsed() < WHILE {
        guest.send(&datagram).unwrap();
    }
    (arrived(&rig.world) - before) as f64 / start.elapsed().as_secs_f64()
}

/// Bytes a second that a guest gets when a server answers as fast as it can. UDP, since the guest's
/// TCP has no retransmission.
fn down(world: &World, vm: &mut Vm) -> f64 {
    let server = world.internet.run(|| UdpSocket::bind((SERVER, 0))).unwrap();
    server.set_read_timeout(Some(LIMIT)).unwrap();
    let port = server.local_addr().unwrap().port();
    vm.guest.send(&frame::udp(vm.guest.to(SERVER), 41_000, port, b"go on")).unwrap();
    let (_, guest) = server.recv_from(&mut [0; 16]).unwrap();
    let before = vm.guest.received().len();
    let start = Instant::now();
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while start.elapsed() < WHILE {
                server.send_to(&[0; 1400], guest).unwrap();
            }
        });
        while start.elapsed() < WHILE {
            vm.guest.receive(Duration::from_millis(5));
        }
    });
    let time = start.elapsed().as_secs_f64();
    vm.guest.received()[before..].iter().map(Vec::len).sum::<usize>() as f64 / time
}

fn qdiscs(inside: &Netns) -> String {
    inside.check("tc", &["qdisc", "show"], "").unwrap()
}

/// The rate is never exceeded. That it is reached, and that it would be exceeded without a limit,
/// takes a sender that runs all the time: on a busy machine, one of a few attempts.
fn keeps_to_the_rate(mut limited: impl FnMut() -> f64, mut free: impl FnMut() -> f64) {
    let best = |rate: &mut dyn FnMut() -> f64, enough: f64, most: f64| {
        let mut best = 0f64;
        for _ in 0..5 {
            let got = rate();
            assert!(got <= most, "{got:.0} B/s at {MBIT} Mbit/s");
            best = best.max(got);
            if best >= enough {
                break;
            }
        }
        best
    };
    let limited = best(&mut limited, 0.5 * RATE, 1.3 * RATE);
    let free = best(&mut free, 4.0 * RATE, f64::MAX);
    println!("{limited:.0} B/s of {RATE:.0}, {free:.0} B/s without a limit");
    assert!(limited >= 0.5 * RATE, "{limited:.0} B/s at {MBIT} Mbit/s");
    assert!(free > 3.0 * limited, "{free:.0} B/s without a limit: nothing was limited");
}

#[test]
fn row_15_what_a_guest_sends_keeps_to_its_rate() {
    let mut rig = Rig::limited(&[Limits { mbit_up: Some(MBIT), ..Limits::default() }, Limits::default()]);
    let text = qdiscs(&rig.vm().inside());
    assert!(text.contains("qdisc tbf 1: dev ve root") && text.contains("rate 8Mbit"), "{text}");
    assert!(!text.contains("tbf 1: dev tap0"), "{text}");
    keeps_to_the_rate(|| up(&rig, 0), || up(&rig, 1));
    // It is still the same guest, judged as before.
    let mut flow = Flow::open(&mut rig.vm().guest, SERVER, ECHO, LIMIT).unwrap();
    assert!(flow.echo(&mut rig.vm().guest, b"slowly", LIMIT).reached());
}

#[test]
fn row_15_what_a_guest_gets_keeps_to_its_rate() {
    let mut rig = Rig::limited(&[Limits { mbit_down: Some(MBIT), ..Limits::default() }, Limits::default()]);
    let text = qdiscs(&rig.vm().inside());
    assert!(text.contains("qdisc tbf 1: dev tap0 root") && text.contains("rate 8Mbit"), "{text}");
    assert!(!text.contains("tbf 1: dev ve"), "{text}");
    let Rig { world, vms, .. } = &mut rig;
    let [slow, fast] = &mut vms[..] else {
        panic!("two guests");
    };
    keeps_to_the_rate(|| down(world, slow), || down(world, fast));
}

#[test]
fn tso_packets_larger_than_the_bucket_are_cut() {
    let mut rig = Rig::limited(&[Limits { mbit_down: Some(1), ..Limits::default() }]);
    // The source's kernel sends TSO packets of up to 64 KiB; the bucket holds two frames.
    let mut flow = Flow::open(&mut rig.vm().guest, SERVER, SOURCE, LIMIT).unwrap();
    let (bytes, reset) = flow.drain(&mut rig.vm().guest, WHILE);
    assert!(bytes > 10_000 && !reset, "{bytes} bytes");
    let longest = rig.vms[0].guest.received().iter().map(Vec::len).max().unwrap();
    assert!(longest <= 1514, "a frame of {longest} bytes");
}

#[test]
fn without_a_limit_there_is_no_queue() {
    let mut rig = Rig::one();
    let text = qdiscs(&rig.vm().inside());
    assert!(text.contains("ingress") && !text.contains("tbf"), "{text}");
}
