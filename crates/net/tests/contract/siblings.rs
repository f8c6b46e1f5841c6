//! Row 4: no other microVM, of whichever daemon, whatever the policy.

use std::net::Ipv4Addr;
use std::time::Duration;

use enisle_net::plan::Block;
use enisle_testkit::frame::{self, Seen};
use enisle_testkit::probe::Kind;
use enisle_testkit::world::{ECHO, SERVER};

use crate::rig::{KINDS, QUIET, Rig, Vm, asks, create, lists};

/// Nothing that `from` asks may be among what the guest received (a reset that answers the guest's
/// own attempt bears the other's address, too). That it receives at all is shown by its own
/// conversation with the Internet.
fn heard_nothing_of(vm: &mut Vm, from: Ipv4Addr) {
    vm.reaches(Kind::Ping, SERVER, 0);
    std::thread::sleep(QUIET);
    let own = vm.guest.ident().ip;
    let heard = |f: &Vec<u8>| asks(f, own) && Seen::of(f).is_some_and(|s| s.src() == Some(from));
    assert!(!vm.guest.received().iter().any(heard), "heard from {from}");
}

#[test]
fn row_4_siblings_are_refused_in_both_directions() {
    let mut rig = Rig::new(&[lists(&[], &[]), lists(&[], &[])]);
    let (a, b) = (rig.vms[0].guest.ident(), rig.vms[1].guest.ident());
    for kind in KINDS {
        rig.vms[0].refused(kind, b.ip, ECHO);
        rig.vms[1].refused(kind, a.ip, ECHO);
    }
    for addr in [b.gateway, rig.vms[1].block().network(), rig.vms[1].block().broadcast()] {
        for kind in KINDS {
            rig.vms[0].refused(kind, addr, ECHO);
        }
    }
    heard_nothing_of(&mut rig.vms[1], a.ip);
    heard_nothing_of(&mut rig.vms[0], b.ip);
}

#[test]
fn row_4_no_policy_opens_a_sibling() {
    let open = lists(&[], &["169.254.0.0/16", "10.0.0.0/8"]);
    let mut rig = Rig::new(&[open.clone(), open.clone()]);
    let other = rig.second_engine();
    let block = Block::from_guest(Ipv4Addr::new(10, 99, 0, 2));
    let mut foreign = create(&rig.world, &other, block, &open);
    foreign.reaches(Kind::Tcp, SERVER, ECHO);

    let (a, b, c) = (rig.vms[0].guest.ident().ip, rig.vms[1].guest.ident().ip, block.guest());
    for addr in [b, c] {
        for kind in KINDS {
            let outcome = rig.vms[0].ask(kind, addr, ECHO);
            assert!(outcome.refused(), "{kind:?} {addr}: {outcome}");
        }
    }
    for kind in KINDS {
        let outcome = foreign.ask(kind, a, ECHO);
        assert!(outcome.refused(), "{kind:?} from another daemon's: {outcome}");
    }
    heard_nothing_of(&mut rig.vms[1], a);
    heard_nothing_of(&mut foreign, a);
    heard_nothing_of(&mut rig.vms[0], c);
    world_closes(&rig, other, foreign);
}

fn world_closes(rig: &Rig, engine: enisle_net::Engine, vm: Vm) {
    rig.world.host.run(|| {
        engine.remove(vm.slot).unwrap();
        engine.close().unwrap();
    });
}

#[test]
fn row_4_a_forged_answer_does_not_reach_a_sibling() {
    let mut rig = Rig::new(&[lists(&[], &["169.254.0.0/16"]), lists(&[], &["169.254.0.0/16"])]);
    let b = rig.vms[1].guest.ident().ip;
    let a = &mut rig.vms[0].guest;
    // Echo replies and UDP from well-known ports look like answers; nobody asked.
    for frame in [
        frame::udp(a.to(b), 53, 40_001, b"forged"),
        frame::ip(a.to(b), 1, &[0, 0, 0xff, 0xfd, 0, 1, 0, 1], |_| ()),
    ] {
        a.send(&frame).unwrap();
    }
    a.receive(Duration::from_millis(50));
    let a = a.ident().ip;
    heard_nothing_of(&mut rig.vms[1], a);
}
