//! Row 11: the gateway answers ARP, and serves nothing that the daemon did not put there.

use std::net::{Ipv4Addr, TcpListener, TcpStream};

use enisle_testkit::frame::{self, Body};
use enisle_testkit::probe::Kind;
use enisle_testkit::world::{CANARY, SERVER};

use crate::rig::{KINDS, LIMIT, Rig};

#[test]
fn row_11_the_gateway_has_no_open_port() {
    let mut rig = Rig::one();
    let gateway = rig.vm().guest.ident().gateway;
    // Listeners in the VM's own namespace, on every address of it: nobody put them there on purpose.
    let inside = rig.vm().inside();
    rig.world.servers.udp_echo(&inside, gateway, CANARY).unwrap();
    let listener = inside.run(|| TcpListener::bind((gateway, CANARY))).unwrap();
    for kind in KINDS {
        let outcome = rig.vm().ask(kind, gateway, CANARY);
        assert!(outcome.refused(), "{kind:?}: {outcome}");
    }
    for port in [22, 80, 443] {
        let outcome = rig.vm().ask(Kind::Tcp, gateway, port);
        assert!(outcome.refused(), "port {port}: {outcome}");
    }
    // The control: without the namespace's own tables the listener answers.
    inside.check("nft", &["flush", "ruleset"], "").unwrap();
    let control = inside.run(|| TcpStream::connect((gateway, CANARY)));
    assert!(control.is_ok(), "the listener answers inside: {control:?}");
    drop(listener);
}

#[test]
fn row_11_dns_is_reached_where_the_daemon_serves_it() {
    let mut rig = Rig::one();
    let gateway = rig.vm().guest.ident().gateway;
    let inside = rig.vm().inside();
    rig.world.servers.dns(&inside, gateway, SERVER).unwrap();
    let name = b"\x07example\x03org\x00\x00\x01\x00\x01";
    let query = [&[0xab, 0xcd, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], name].concat();
    let guest = &mut rig.vm().guest;
    guest.send(&frame::udp(guest.to(gateway), 40_123, 53, &query)).unwrap();
    let answer = guest.wait_for(LIMIT, |seen| match &seen.ip {
        Some((src, _, Body::Udp { from: 53, to: 40_123, data })) if *src == gateway => Some(data.clone()),
        _ => None,
    });
    let answer = answer.expect("an answer");
    assert!(answer.ends_with(&SERVER.octets()), "{answer:?}");
    // The socket is in the VM's namespace: no other address of anybody leads to it.
    rig.vm().refused(Kind::Udp, next_gateway(gateway), 53);
}

/// The gateway of the next block.
fn next_gateway(gateway: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(gateway) + 4)
}
