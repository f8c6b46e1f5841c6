//! Row 15, one guest against all others: floods of SYNs, of datagrams and of fragments, and how a
//! neighbour and the host itself fare meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use enisle_net::Limits;
use enisle_testkit::frame::{self, Flags, Segment};
use enisle_testkit::probe::Kind;
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::tap::TapGuest;
use enisle_testkit::world::{ECHO, SERVER};
use enisle_testkit::{Netns, World};
use etherparse::IpFragOffset;

use crate::limits::NOWHERE;
use crate::rig::{LIMIT, Rig};

/// A flood lasts no longer, however slow the machine is.
const FLOOD: Duration = Duration::from_secs(3);
/// What nobody may wait longer for, 99 times of 100, on a machine that does a hundred other things.
const P99: Duration = Duration::from_secs(1);
/// Offsets in a frame without IP options.
const IP_ID: usize = 18;
const IP_SUM: usize = 24;
const SOURCE_PORT: usize = 34;
const TCP_SUM: usize = 50;
const UDP_SUM: usize = 40;
const PING_SUM: usize = 36;
const PING_ID: usize = 38;

/// Replaces the 16 bits at `at` and mends the checksum at `sum` (RFC 1624, equation 3).
fn patch(frame: &mut [u8], at: usize, sum: usize, value: u16) {
    let word = |frame: &[u8], at: usize| u32::from(u16::from_be_bytes([frame[at], frame[at + 1]]));
    let mut total = (!word(frame, sum) & 0xffff) + (!word(frame, at) & 0xffff) + u32::from(value);
    total = (total & 0xffff) + (total >> 16);
    total = (total & 0xffff) + (total >> 16);
    frame[at..at + 2].copy_from_slice(&value.to_be_bytes());
    frame[sum..sum + 2].copy_from_slice(&(!(total as u16)).to_be_bytes());
}

/// Sends `frame` `count` times, each one changed by `vary`, or as often as fits the time.
fn flood(guest: &TapGuest, mut frame: Vec<u8>, count: u32, vary: impl Fn(&mut Vec<u8>, u32)) -> u32 {
    let end = Instant::now() + FLOOD;
    for i in 0..count {
        vary(&mut frame, i);
        guest.send(&frame).unwrap();
        if Instant::now() > end {
            return i + 1;
        }
    }
    count
}

/// How long each of some questions took; none was lost.
struct Waits(Vec<Duration>);

impl Waits {
    fn healthy(mut self, who: &str) {
        self.0.sort_unstable();
        assert!(self.0.len() >= 10, "{who} asked {} times only", self.0.len());
        let p99 = self.0[(self.0.len() - 1) * 99 / 100];
        assert!(p99 <= P99, "{who} waited {p99:?}, {} times asked", self.0.len());
    }
}

/// Asks again and again until `over`.
fn asked(over: &AtomicBool, mut ask: impl FnMut()) -> Waits {
    let mut waits = Vec::new();
    while !over.load(Ordering::Relaxed) || waits.len() < 10 {
        let start = Instant::now();
        ask();
        waits.push(start.elapsed());
        std::thread::sleep(Duration::from_millis(10));
    }
    Waits(waits)
}

/// A guest asks by all three protocols, each a new flow.
fn neighbour(guest: &mut TapGuest, over: &AtomicBool) -> Waits {
    let mut kinds = [Kind::Tcp, Kind::Udp, Kind::Ping].into_iter().cycle();
    asked(over, || {
        let kind = kinds.next().unwrap();
        let outcome = guest.ask(kind, SERVER, ECHO, LIMIT);
        assert!(outcome.reached(), "a neighbour's {kind:?}: {outcome}");
    })
}

/// The host has a connection from before, and makes new ones.
fn host_itself(host: &Netns, over: &AtomicBool) -> Waits {
    host.run(|| {
        let connect = || {
            let address = (SERVER, ECHO).into();
            let stream = TcpStream::connect_timeout(&address, LIMIT).expect("the host connects");
            stream.set_read_timeout(Some(LIMIT)).unwrap();
            stream
        };
        let echo = |stream: &mut TcpStream| {
            let mut back = [0; 6];
            stream.write_all(b"enisle").expect("the host sends");
            stream.read_exact(&mut back).expect("the host gets its echo");
        };
        let mut old = connect();
        asked(over, || {
            echo(&mut old);
            echo(&mut connect());
        })
    })
}

/// Runs `attack` from the first guest, while the second and the host are watched.
fn attacked<T>(rig: &mut Rig, attack: impl FnOnce(&TapGuest) -> T) -> T {
    let over = AtomicBool::new(false);
    let Rig { world, vms, .. } = rig;
    let [attacker, other] = &mut vms[..] else {
        panic!("two guests");
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(|| neighbour(&mut other.guest, &over));
        let host = scope.spawn(|| host_itself(&world.host, &over));
        let done = attack(&attacker.guest);
        over.store(true, Ordering::Relaxed);
        other.join().unwrap().healthy("the neighbour");
        host.join().unwrap().healthy("the host");
        done
    })
}

fn tracked(world: &World) -> u32 {
    world.host.sysctl("net/netfilter/nf_conntrack_count").unwrap().trim().parse().unwrap()
}

/// How many packets for nobody came out on the Internet's side.
fn left(internet: &mut Sniffer) -> u32 {
    let dst = NOWHERE.octets();
    internet.count(|f| f.get(30..34) == Some(&dst[..])) as u32
}

/// What a guest may have begun since `start`.
fn most_begun(start: Instant) -> u32 {
    let Limits { flows, new_flows_per_s, .. } = Limits::default();
    let begun = Limits::default().burst() + (start.elapsed().as_millis() as u32 + 1) * new_flows_per_s / 1000;
    begun.min(flows)
}

/// Sends `count` first packets of flows; connection tracking, the wire and the counters agree on
/// how few came through.
fn few_come_through(count: u32, frame: impl FnOnce(&TapGuest) -> Vec<u8>, vary: fn(&mut Vec<u8>, u32)) {
    let mut rig = Rig::limited(&[Limits::default(), Limits::default()]);
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    let frame = frame(&rig.vms[0].guest);
    let start = Instant::now();
    let sent = attacked(&mut rig, |guest| flood(guest, frame, count, vary));
    let most = most_begun(start);
    let (passed, entries) = (left(&mut internet), tracked(&rig.world));
    println!("{sent} sent in {:?}, {passed} passed, {entries} entries", start.elapsed());
    assert!(sent >= 2 * most, "only {sent} of {count} packets sent: no flood");
    // The world's own queues may lose some of the burst on a busy machine.
    assert!((500..=most).contains(&passed), "{passed} of {sent} packets left, at most {most} may");
    // The neighbour's and the host's own are few: a hundred questions a second at most.
    assert!((passed..=most + 2000).contains(&entries), "{entries} entries after {sent} packets");
    let refused = rig.stats(0).flows_refused;
    assert!((u64::from(sent - most)..=u64::from(sent - passed)).contains(&refused), "{refused} refused");
    assert_eq!(rig.stats(1).flows_refused, 0);
}

#[test]
fn row_15_a_flood_of_syns_stays_within_the_guests_own_share() {
    let syn = |guest: &TapGuest| {
        let flags = Flags { syn: true, ..Flags::default() };
        frame::tcp(guest.to(NOWHERE), &Segment { to: 80, flags, ..Segment::default() })
    };
    few_come_through(200_000, syn, |frame, i| {
        patch(frame, SOURCE_PORT, TCP_SUM, i as u16);
        patch(frame, SOURCE_PORT + 2, TCP_SUM, 80 + (i >> 16) as u16);
    });
}

#[test]
fn row_15_a_flood_of_udp_flows_stays_within_the_guests_own_share() {
    let datagram = |guest: &TapGuest| {
        let mut frame = frame::udp(guest.to(NOWHERE), 1, 5004, b"enisle");
        // No checksum (RFC 768).
        frame[UDP_SUM..UDP_SUM + 2].fill(0);
        frame
    };
    few_come_through(65_000, datagram, |frame, i| {
        frame[SOURCE_PORT..SOURCE_PORT + 2].copy_from_slice(&(i as u16 + 1).to_be_bytes());
    });
}

#[test]
fn row_15_a_flood_of_segments_without_a_call_stays_within_the_guests_own_share() {
    // Connection tracking takes such a segment for the middle of a flow (`nf_conntrack_tcp_loose`).
    let segment = |guest: &TapGuest| {
        let flags = Flags { ack: true, ..Flags::default() };
        frame::tcp(guest.to(NOWHERE), &Segment { to: 80, flags, ..Segment::default() })
    };
    few_come_through(65_000, segment, |frame, i| patch(frame, SOURCE_PORT, TCP_SUM, i as u16));
}

#[test]
fn row_15_a_flood_of_pings_stays_within_the_guests_own_share() {
    let ping = |guest: &TapGuest| frame::ping(guest.to(NOWHERE), 0, 1);
    few_come_through(65_000, ping, |frame, i| patch(frame, PING_ID, PING_SUM, i as u16));
}

/// A datagram to the echo port without a checksum; its last bytes say which.
fn long_datagram(number: u16) -> Vec<u8> {
    let len = 2000u16;
    let mut bytes = [40_500u16, ECHO, len, 0].map(u16::to_be_bytes).concat();
    bytes.resize(usize::from(len) - 2, b'.');
    bytes.extend(number.to_be_bytes());
    bytes
}

/// Sends it in two fragments, in order, and waits for the echo's end.
fn echo_in_fragments(guest: &mut TapGuest, number: u16) -> bool {
    let to = guest.to(SERVER);
    let whole = long_datagram(number);
    let (first, rest) = whole.split_at(1480);
    let at = IpFragOffset::try_new(1480 / 8).unwrap();
    guest.send(&frame::ip(to, 17, first, |h| (h.identification, h.more_fragments) = (number, true))).unwrap();
    guest.send(&frame::ip(to, 17, rest, |h| (h.identification, h.fragment_offset) = (number, at))).unwrap();
    let end = Instant::now() + LIMIT;
    loop {
        let Some(frame) = guest.receive(end.saturating_duration_since(Instant::now())) else {
            return false;
        };
        // The echo's second fragment.
        if frame.get(26..30) == Some(&SERVER.octets()[..]) && frame.ends_with(&number.to_be_bytes()) {
            return true;
        }
    }
}

/// Kernel memory in which the host keeps fragments, in bytes.
fn kept(host: &Netns) -> u64 {
    let text = host.run(|| std::fs::read_to_string("/proc/thread-self/net/sockstat")).unwrap();
    let line = text.lines().find(|line| line.starts_with("FRAG:")).unwrap();
    line.split_whitespace().last().unwrap().parse().unwrap()
}

#[test]
fn honest_fragments_know_no_limit() {
    let mut rig = Rig::one();
    // Five times what a slot may leave behind.
    for number in 0..300 {
        assert!(echo_in_fragments(&mut rig.vm().guest, number), "datagram {number}");
    }
    assert_eq!(rig.stats(0).out_limited, 0);
    assert_eq!(kept(&rig.world.host), 0);
}

#[test]
fn row_15_a_flood_of_fragments_leaves_the_others_theirs() {
    let mut rig = Rig::limited(&[Limits::default(), Limits::default()]);
    let Rig { world, vms, .. } = &mut rig;
    let [attacker, other] = &mut vms[..] else {
        panic!("two guests");
    };
    let head = frame::ip(attacker.guest.to(NOWHERE), 17, &[0; 1480], |h| h.more_fragments = true);
    let over = AtomicBool::new(false);
    let sent = std::thread::scope(|scope| {
        let other = scope.spawn(|| {
            let mut numbers = 0..u16::MAX;
            asked(&over, || {
                let number = numbers.next().unwrap();
                assert!(echo_in_fragments(&mut other.guest, number), "the neighbour's fragments");
            })
        });
        let host = scope.spawn(|| {
            world.host.run(|| {
                let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).unwrap();
                socket.set_read_timeout(Some(LIMIT)).unwrap();
                asked(&over, || {
                    socket.send_to(&[7; 4000], (SERVER, ECHO)).unwrap();
                    let got = socket.recv(&mut [0; 5000]);
                    assert_eq!(got.expect("the host's fragments"), 4000);
                })
            })
        });
        let sent = flood(&attacker.guest, head, 50_000, |frame, i| patch(frame, IP_ID, IP_SUM, i as u16));
        over.store(true, Ordering::Relaxed);
        other.join().unwrap().healthy("the neighbour");
        host.join().unwrap().healthy("the host");
        sent
    });
    let kept = kept(&rig.world.host);
    let stats = rig.stats(0);
    println!("{sent} fragments sent, {} let through, {kept} bytes kept", u64::from(sent) - stats.out_limited);
    // 50,000 of them would take 115 MB, and all of the 4 MiB there are.
    assert!(sent >= 5000, "only {sent} fragments sent: no flood");
    assert!((50_000..=256 << 10).contains(&kept), "{kept} bytes of the host's memory are kept");
    assert!(stats.out_limited >= u64::from(sent) - 300, "{stats:?}");
    assert_eq!(rig.stats(1).out_limited, 0);
}
