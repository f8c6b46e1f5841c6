//! What the kernel holds is what was compiled, and what it says is why: read back, and compared
//! with what happens to packets.

use std::net::Ipv4Addr;

use enisle_net::policy::{Origin, PolicySpec, Proto, Verdict, compile};
use enisle_net::{Decider, HostFact, Judgement, Question, Refuser};
use enisle_testkit::probe::Kind;
use enisle_testkit::world::{ECHO, LAN, LAN_2, METADATA, NEIGHBOUR, OTHER_SERVER, RESOLVER, SERVER, UPLINK};

use crate::rig::{Rig, create, lists};

fn question(kind: Kind, destination: Ipv4Addr, port: u16) -> Question {
    let (proto, port) = match kind {
        Kind::Tcp | Kind::Connect => (Proto::Tcp, Some(port)),
        Kind::Udp => (Proto::Udp, Some(port)),
        Kind::Ping => (Proto::Icmp, None),
    };
    Question { destination, proto, port }
}

fn policy() -> PolicySpec {
    lists(
        &["151.101.1.0/24", "151.101.1.69:443", "93.184.216.34:443/tcp"],
        &["151.101.1.69:7/udp", "192.168.1.10:7"],
    )
}

#[test]
fn the_kernels_answer_is_the_compiled_one_and_what_happens() {
    let mut rig = Rig::new(&[policy()]);
    let compiled = compile(&policy()).unwrap();
    let gateway = rig.vms[0].block().gateway();
    let mut seen = [0, 0];
    for addr in [SERVER, OTHER_SERVER, RESOLVER, LAN, LAN_2, METADATA, NEIGHBOUR, UPLINK, gateway] {
        for (kind, port) in [(Kind::Tcp, ECHO), (Kind::Udp, ECHO), (Kind::Ping, 0), (Kind::Tcp, 443)] {
            let q = question(kind, addr, port);
            let told = rig.engine.look_up(&rig.vms[0].slot, &q).unwrap();
            let expected = rig.engine.expect(&rig.vms[0].slot, &compiled, &q);
            assert_eq!(told, expected, "{q:?}");
            let outcome = rig.vm().ask(kind, addr, port);
            let passes = told.verdict == Verdict::Allow;
            assert_eq!(outcome.reached(), passes, "{q:?}: {told:?}, {outcome}");
            seen[usize::from(passes)] += 1;
        }
    }
    assert!(seen[0] > 10 && seen[1] > 5, "both verdicts: {seen:?}");
}

#[test]
fn the_winner_and_the_hosts_part_are_named() {
    let rig = Rig::new(&[policy(), PolicySpec::default()]);
    let compiled = compile(&policy()).unwrap();
    let slot = &rig.vms[0].slot;
    let ask = |kind, addr, port| rig.engine.look_up(slot, &question(kind, addr, port)).unwrap();
    let origin = |j: Judgement| compiled.rule(j.rule.unwrap()).unwrap().origin;
    assert_eq!(origin(ask(Kind::Tcp, OTHER_SERVER, 443)), Origin::Drop(1));
    assert_eq!(origin(ask(Kind::Udp, OTHER_SERVER, ECHO)), Origin::Allow(0));
    assert_eq!(origin(ask(Kind::Ping, OTHER_SERVER, 0)), Origin::Drop(0));
    assert_eq!(origin(ask(Kind::Tcp, LAN_2, 22)), Origin::Floor(5));
    assert_eq!(origin(ask(Kind::Tcp, METADATA, 80)), Origin::Floor(6));
    assert_eq!(origin(ask(Kind::Tcp, RESOLVER, 53)), Origin::Default);
    let decider = |kind, addr, port| ask(kind, addr, port).decider;
    assert_eq!(decider(Kind::Tcp, UPLINK, 22), Decider::Host(HostFact::Own));
    assert_eq!(decider(Kind::Tcp, NEIGHBOUR, 22), Decider::Host(HostFact::OnLink(24)));
    let gateway = rig.vms[0].block().gateway();
    assert_eq!(decider(Kind::Udp, gateway, 53), Decider::Service);
    assert_eq!(decider(Kind::Tcp, gateway, 80), Decider::Gateway);
    // Siblings are refused by the floor already; an `allow` gets as far as the host's map.
    let open = compile(&lists(&[], &["169.254.100.0/24"])).unwrap();
    rig.engine.set_policy(slot, &open).unwrap();
    let sibling = rig.vms[1].block().guest();
    assert_eq!(decider(Kind::Tcp, sibling, 22), Decider::Host(HostFact::Sibling));
}

#[test]
fn what_is_installed_differs_visibly_from_what_is_not() {
    let rig = Rig::new(&[policy()]);
    let slot = &rig.vms[0].slot;
    let other = compile(&lists(&["8.8.8.8"], &[])).unwrap();
    let q = question(Kind::Udp, RESOLVER, 53);
    let (told, expected) = (rig.engine.look_up(slot, &q).unwrap(), rig.engine.expect(slot, &other, &q));
    assert_ne!(told, expected);
    assert_eq!((told.verdict, expected.verdict), (Verdict::Allow, Verdict::Refuse));
}

#[test]
fn maps_hold_exactly_the_compiled_rows() {
    let mut many = PolicySpec::default();
    for i in 0..3_000u32 {
        let net = Ipv4Addr::from(0x0808_0000 + i * 64);
        many.drop.push(format!("{net}/26").parse().unwrap());
        many.allow.push(format!("{net}:{}-{}/tcp", i % 1000 + 1, i % 1000 + 77).parse().unwrap());
    }
    many.drop.extend(many.drop.clone().iter().step_by(7).copied());
    many.drop.push("255.255.255.255".parse().unwrap());
    many.drop.push("0.0.0.0".parse().unwrap());
    let rig = Rig::new(&[policy(), many.clone()]);
    let compiled = [compile(&policy()).unwrap(), compile(&many).unwrap()];
    for (vm, right) in rig.vms.iter().zip(&compiled) {
        assert_eq!(rig.engine.compare(&vm.slot, right).unwrap(), Vec::<String>::new());
    }
    assert!(rig.engine.compare(&rig.vms[0].slot, &compiled[1]).unwrap().len() > 3_000, "control");
}

/// Refused packets by who refused them.
fn counts(rig: &Rig) -> Vec<(Refuser, u64)> {
    rig.engine.refusals(&rig.vms[0].slot).unwrap().into_iter().map(|r| (r.by, r.packets)).collect()
}

#[test]
fn refusals_are_counted_by_rule_and_by_nobody_elses_slot() {
    let mut rig = Rig::new(&[policy(), policy()]);
    let compiled = compile(&policy()).unwrap();
    assert_eq!(counts(&rig), []);
    for _ in 0..3 {
        rig.vm().refused(Kind::Tcp, OTHER_SERVER, 443);
    }
    rig.vm().refused(Kind::Udp, LAN_2, ECHO);
    rig.vm().refused(Kind::Tcp, UPLINK, 22);
    let gateway = rig.vms[0].block().gateway();
    rig.vm().refused(Kind::Tcp, gateway, 80);
    let counted = counts(&rig);
    let by_rule = |origin: Origin| {
        let of =
            |by: &Refuser| matches!(by, Refuser::Rule(id) if compiled.rule(*id).unwrap().origin == origin);
        counted.iter().find(|(by, _)| of(by)).map(|(_, packets)| *packets)
    };
    assert_eq!(by_rule(Origin::Drop(1)), Some(3), "{counted:?}");
    assert_eq!(by_rule(Origin::Floor(5)), Some(1), "{counted:?}");
    assert!(counted.contains(&(Refuser::Host, 1)) && counted.contains(&(Refuser::Gateway, 1)), "{counted:?}");
    let sum: u64 = counted.iter().map(|(_, packets)| packets).sum();
    assert_eq!(sum, rig.stats(0).out_refused, "every refusal has its refuser");
    assert!(rig.engine.refusals(&rig.vms[1].slot).unwrap().is_empty(), "the sibling's");

    // Under another policy the same number is another rule.
    rig.engine.set_policy(&rig.vms[0].slot, &compile(&lists(&["8.8.8.8"], &[])).unwrap()).unwrap();
    assert_eq!(counts(&rig), []);
    rig.vm().refused(Kind::Udp, RESOLVER, ECHO);
    assert_eq!(counts(&rig).len(), 1);
}

#[test]
fn the_next_tenant_of_a_slot_inherits_no_refusals() {
    let mut rig = Rig::new(&[policy()]);
    rig.vm().refused(Kind::Tcp, OTHER_SERVER, 443);
    assert_eq!(counts(&rig).len(), 1, "control");
    let vm = rig.vms.remove(0);
    let block = vm.block();
    drop(vm.guest);
    rig.engine.remove(vm.slot).unwrap();
    let next = create(&rig.world, &rig.engine, block, &policy());
    rig.vms.push(next);
    assert_eq!(counts(&rig), []);
}

#[test]
fn a_guest_cannot_fill_the_counts_with_rules() {
    let mut spec = PolicySpec::default();
    for i in 0..2_000u32 {
        spec.drop.push(Ipv4Addr::from(0x0808_0000 + i).to_string().parse().unwrap());
    }
    let mut rig = Rig::new(&[spec]);
    for i in 0..2_000u32 {
        let to = rig.vm().guest.to(Ipv4Addr::from(0x0808_0000 + i));
        rig.vm().guest.send(&enisle_testkit::frame::udp(to, 4000, 53, b"x")).unwrap();
        if i % 50 == 0 {
            // Takes the answers out of the way.
            rig.vm().guest.received();
        }
    }
    // Behind all of them in the tap's queue.
    rig.vm().reaches(Kind::Tcp, SERVER, ECHO);
    let counted = counts(&rig);
    let cpus = std::thread::available_parallelism().unwrap().get();
    let rules = counted.iter().filter(|(by, _)| matches!(by, Refuser::Rule(_))).count();
    assert!(rules >= 256 && rules <= 256 * cpus, "{rules} rules");
    let others = counted.iter().find(|(by, _)| *by == Refuser::OtherRules).map_or(0, |(_, n)| *n);
    assert!(others > 0);
    let sum: u64 = counted.iter().map(|(_, packets)| packets).sum();
    assert_eq!(sum, rig.stats(0).out_refused);
}
