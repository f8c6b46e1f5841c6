//! The host's table by itself: what leaves a VM's namespace without having met the judge.
//!
//! Frames are put on the namespace's end of the veth by hand, as a judge with a hole would let them
//! through. All of it once more with the interface in another group, where the table's short way is
//! closed and the long one has to say the same.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use enisle_net::Wires;
use enisle_testkit::World;
use enisle_testkit::frame::{self, Body, Ends, Flags, Seen, Segment};
use enisle_testkit::probe::Kind;
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::world::{
    CANARY, ECHO, HOST_DOCKER, HOST_LAN, HOST_LAN_2, LAN, NEIGHBOUR, SERVER, UPLINK,
};

use crate::rig::{LIMIT, QUIET, Rig, asks, lists};

/// What came back for a SYN.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Accepted,
    Reset,
    Silence,
}

/// Behind the judge of one slot.
struct Behind {
    wires: Wires,
    honest: Ends,
    port: u16,
}

impl Behind {
    fn of(rig: &Rig, vm: usize) -> Behind {
        let vm = &rig.vms[vm];
        let wires = rig.world.host.run(|| Wires::open(vm.block(), vm.slot.netns())).unwrap();
        Behind { wires, honest: vm.guest.to(SERVER), port: 20_000 }
    }

    fn syn(&mut self, ends: Ends, port: u16) -> u16 {
        self.port += 1;
        let flags = Flags { syn: true, ..Flags::default() };
        let segment = Segment { from: self.port, to: port, seq: 1000, flags, ..Segment::default() };
        self.wires.inside.send(&frame::tcp(ends, &segment)).unwrap();
        self.port
    }

    /// Calls an address with honest ends, and waits for an answer.
    fn calls(&mut self, dst: Ipv4Addr, port: u16, limit: Duration) -> Answer {
        let own = self.syn(Ends { dst, ..self.honest }, port);
        let start = Instant::now();
        let mut buffer = [0; 2048];
        while start.elapsed() < limit {
            let Some(passed) = self.wires.inside.receive(&mut buffer).unwrap() else {
                std::thread::sleep(Duration::from_millis(1));
                continue;
            };
            match Seen::of(&buffer[..passed.length]).and_then(|s| s.ip) {
                Some((src, _, Body::Tcp(s))) if !passed.outgoing && src == dst && s.to == own => {
                    return if s.flags.rst { Answer::Reset } else { Answer::Accepted };
                }
                _ => {}
            }
        }
        Answer::Silence
    }

    /// What of `from` has come as far as the judge that stands before this guest.
    fn heard(&self, from: Ipv4Addr) -> usize {
        let mut buffer = [0; 2048];
        let mut heard = 0;
        while let Some(passed) = self.wires.inside.receive(&mut buffer).unwrap() {
            let seen = Seen::of(&buffer[..passed.length]);
            heard += usize::from(!passed.outgoing && seen.and_then(|s| s.src()) == Some(from));
        }
        heard
    }
}

const REDIRECTED: u16 = 8082;
/// As Docker publishes a container's port: on the host's own address, and to a machine behind.
const PUBLISHED: &str = "table ip docker {
    chain prerouting {
        type nat hook prerouting priority dstnat
        fib daddr type local tcp dport 8080 dnat to 172.17.0.1:7777
        fib daddr type local tcp dport 8081 dnat to 192.168.1.10:7
        fib daddr type local tcp dport 8082 redirect to :7777
    }
    chain postrouting {
        type nat hook postrouting priority srcnat
        oifname lan0 masquerade
    }
}";

fn refuses(rig: &mut Rig, one: &mut Behind, other: &Behind, how: &str) {
    assert_eq!(one.calls(SERVER, ECHO, LIMIT), Answer::Accepted, "{how}: the control");
    let mut lan = Sniffer::open(&rig.world.lan).unwrap();
    for dst in [UPLINK, HOST_LAN, HOST_LAN_2, HOST_DOCKER] {
        for port in [22, CANARY, 8080, 8081] {
            assert_eq!(one.calls(dst, port, LIMIT), Answer::Reset, "{how}: the host at {dst}:{port}");
        }
        // The kernel drops what is redirected on an interface without an address before we are asked.
        assert_ne!(one.calls(dst, REDIRECTED, QUIET), Answer::Accepted, "{how}: a redirected port of {dst}");
    }
    assert_eq!(lan.count(|f| asks(f, LAN)), 0, "{how}: a published port led to the LAN");
    for port in [8080, 8081, REDIRECTED] {
        rig.control(&rig.world.internet, Kind::Tcp, UPLINK, port);
    }
    assert!(lan.count(|f| asks(f, LAN)) > 0, "the sniffer sees the control");

    // No sibling, and nobody in a sibling's name, in the host's or in that of somebody on the Internet.
    let (own, sibling) = (one.honest, other.honest.src);
    assert_eq!(one.calls(sibling, ECHO, LIMIT), Answer::Reset, "{how}: a sibling");
    let mut internet = Sniffer::open(&rig.world.internet).unwrap();
    for src in [sibling, own.dst, UPLINK, NEIGHBOUR, Ipv4Addr::new(127, 0, 0, 1)] {
        one.syn(Ends { src, ..own }, 4242);
    }
    for frame in [
        frame::udp(Ends { dst: Ipv4Addr::new(224, 0, 0, 251), ..own }, 5353, 5353, b"who"),
        frame::udp(Ends { dst: Ipv4Addr::BROADCAST, ..own }, 68, 67, b"who"),
        frame::ethernet(own.src_mac, own.dst_mac, frame::IPV6, &[0x60; 60]),
    ] {
        one.wires.inside.send(&frame).unwrap();
    }
    one.syn(own, 4243);
    let to = |f: &[u8], port: u16| matches!(Seen::of(f).and_then(|s| s.ip), Some((_, dst, Body::Tcp(s))) if dst == SERVER && s.to == port);
    assert!(internet.sees(LIMIT, |f| to(f, 4243)), "{how}: an honest call after them is seen");
    assert_eq!(internet.count(|f| to(f, 4242)), 0, "{how}: a forged source");
    std::thread::sleep(QUIET);
    assert_eq!(other.heard(own.src), 0, "{how}: the sibling was sent something");
    let strange = |f: &[u8]| {
        Seen::of(f).is_some_and(|s| s.ethertype == frame::IPV6 && f[14..] == [0x60; 60]) || {
            let dst = Seen::of(f).and_then(|s| s.dst());
            dst.is_some_and(|dst| dst.is_multicast() || dst == Ipv4Addr::BROADCAST)
        }
    };
    assert_eq!(internet.count(strange) + lan.count(strange), 0, "{how}: multicast, broadcast or IPv6");
}

#[test]
fn the_hosts_table_alone_refuses_host_siblings_and_forgeries_on_both_its_ways() {
    let world = World::new().unwrap();
    world.host.check("nft", &["-f", "-"], PUBLISHED).unwrap();
    world.host.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    let mut rig = Rig::within(world, &[lists(&[], &[]), lists(&[], &[])]);
    let (mut one, other) = (Behind::of(&rig, 0), Behind::of(&rig, 1));
    refuses(&mut rig, &mut one, &other, "the short way");

    // Whoever takes an interface out of our group takes the short way from it, and nothing else.
    let veth = rig.vms[0].block().host_veth();
    rig.world.host.check("ip", &["link", "set", veth.as_str(), "group", "7"], "").unwrap();
    refuses(&mut rig, &mut one, &other, "the long way");
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
}
