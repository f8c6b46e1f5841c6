//! The tap guest against a host without any isolation: it must reach everything and its forgeries
//! must get out, or "refused" in the contract's tests would mean nothing.

use std::net::Ipv4Addr;
use std::time::Duration;

use enisle_testkit::flow::Flow;
use enisle_testkit::frame::{self, ARP, Ends, Seen};
use enisle_testkit::probe::Kind;
use enisle_testkit::sniff::Sniffer;
use enisle_testkit::tap::{Ident, TapGuest, plain_tap};
use enisle_testkit::world::{self, CANARY, ECHO, LAN, METADATA, SERVER, SOURCE, UPLINK, World};

const LIMIT: Duration = Duration::from_secs(2);
const KINDS: [Kind; 3] = [Kind::Tcp, Kind::Udp, Kind::Ping];
const IDENT: Ident = Ident {
    mac: [0x02, 0xe5, 169, 254, 100, 2],
    ip: Ipv4Addr::new(169, 254, 100, 2),
    gateway_mac: [0x02, 0xe5, 169, 254, 100, 1],
    gateway: Ipv4Addr::new(169, 254, 100, 1),
};

/// A guest on a tap that the host simply routes and masquerades.
fn free_guest(world: &World) -> TapGuest {
    let host = &world.host;
    let tap = plain_tap(host, "free").unwrap();
    let guest = TapGuest::new(tap, IDENT).unwrap();
    host.check(
        "ip",
        &["-batch", "-"],
        "link set free address 02:e5:a9:fe:64:01 up\naddr add 169.254.100.1/30 dev free\n",
    )
    .unwrap();
    host.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    let nat = "table ip nat {
        chain post {
            type nat hook postrouting priority srcnat
            ip saddr 169.254.100.2 masquerade
        }
    }";
    host.check("nft", &["-f", "-"], nat).unwrap();
    guest
}

#[test]
fn without_isolation_it_reaches_everything() {
    let world = World::new().unwrap();
    let mut guest = free_guest(&world);
    for (addr, port) in [
        (SERVER, ECHO),
        (LAN, ECHO),
        (METADATA, ECHO),
        (world::NEIGHBOUR, ECHO),
        (UPLINK, CANARY),
        (world::HOST_DOCKER, CANARY),
        (IDENT.gateway, CANARY),
    ] {
        for kind in KINDS {
            let outcome = guest.ask(kind, addr, port, LIMIT);
            let closed = kind == Kind::Udp && addr == IDENT.gateway;
            assert!(outcome.reached() || (closed && outcome.refused()), "{kind:?} {addr}: {outcome}");
        }
    }
    let closed = guest.ask(Kind::Tcp, SERVER, 4, LIMIT);
    assert!(closed.refused() && closed.how == "reset", "{closed}");
    let closed = guest.ask(Kind::Udp, SERVER, 4, LIMIT);
    assert!(closed.refused() && closed.how == "icmp 3/3", "{closed}");
}

#[test]
fn a_flow_echoes_streams_and_notices_a_reset() {
    let world = World::new().unwrap();
    let mut guest = free_guest(&world);
    let mut flow = Flow::open(&mut guest, SERVER, ECHO, LIMIT).unwrap();
    for text in [&b"one"[..], b"two", b"three"] {
        assert!(flow.echo(&mut guest, text, LIMIT).reached());
    }
    let mut stream = Flow::open(&mut guest, SERVER, SOURCE, LIMIT).unwrap();
    let (bytes, reset) = stream.drain(&mut guest, Duration::from_millis(200));
    assert!(bytes > 1_000_000 && !reset, "{bytes} bytes, reset: {reset}");
    stream.reset(&guest);
    let dead = stream.echo(&mut guest, b"hello?", LIMIT);
    assert!(dead.refused() && dead.how == "reset", "{dead}");
}

#[test]
fn its_forgeries_get_out_and_the_sniffers_see_them() {
    let world = World::new().unwrap();
    let mut guest = free_guest(&world);
    let mut internet = Sniffer::open(&world.internet).unwrap();
    let mut host = Sniffer::open(&world.host).unwrap();
    let forged = Ends { src: Ipv4Addr::new(169, 254, 100, 6), ..guest.to(SERVER) };
    guest.send(&frame::udp(forged, 1, ECHO, b"forged")).unwrap();
    assert!(internet.sees(LIMIT, |f| f.windows(6).any(|w| w == b"forged")));
    guest.send(&frame::ip(guest.to(SERVER), 47, b"tunnelled", |_| ())).unwrap();
    assert!(internet.sees(LIMIT, |f| f.windows(9).any(|w| w == b"tunnelled")));
    let claim = frame::arp(2, (IDENT.mac, SERVER), ([0xff; 6], SERVER));
    guest.send(&frame::ethernet(IDENT.mac, [0xff; 6], ARP, &claim)).unwrap();
    assert!(host.sees(LIMIT, |f| Seen::of(f).is_some_and(|s| s.ethertype == ARP && s.src_mac == IDENT.mac)));
    // And it answers ARP about itself, or the host could not have answered it before.
    world.host.check("ip", &["neigh", "flush", "dev", "free"], "").unwrap();
    assert!(guest.ask(Kind::Ping, SERVER, 0, LIMIT).reached());
}
