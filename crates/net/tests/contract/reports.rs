//! Refusals as they are told one by one: each with who refused and both ends, few of many, the rest counted
//! exactly, nobody's instead of another's.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use enisle_net::policy::{Origin, compile};
use enisle_net::{Engine, RefusedFlow, Refuser, Reports, Woken};
use enisle_testkit::flow::Flow;
use enisle_testkit::frame;
use enisle_testkit::probe::Kind;
use enisle_testkit::world::{ECHO, LAN, OTHER_SERVER, RESOLVER, SERVER, SOURCE, UPLINK};
use etherparse::IpFragOffset;

use crate::rig::{LIMIT, Rig, claimed, lists};

/// Of one slot at once, and a second: `REPORTS_PER_SECOND` of `bpf/reports.h`.
const BURST: u64 = 8;
const PATIENCE: Duration = Duration::from_secs(10);

/// The next report; panics when none comes.
fn next(reports: &mut Reports) -> RefusedFlow {
    loop {
        if let Some(flow) = reports.read() {
            return flow;
        }
        assert_eq!(reports.wait(Some(PATIENCE)).unwrap(), Woken::Reports, "nothing is told");
    }
}

fn rest(reports: &mut Reports) -> Vec<RefusedFlow> {
    std::iter::from_fn(|| reports.read()).collect()
}

#[test]
fn each_refusal_is_told_with_who_refused_it_and_both_ends() {
    let policy = lists(&["151.101.1.69:443", "8.8.8.8:7"], &[]);
    let compiled = compile(&policy).unwrap();
    let mut rig = Rig::new(&[policy.clone(), policy]);
    let mut reports = rig.engine.reports().unwrap();
    assert!(rig.engine.reports().is_err(), "one reader");
    let rule = |origin: Origin, to: Ipv4Addr| {
        let at =
            compiled.rules().iter().position(|rule| rule.origin == origin && rule.net.contains(&to)).unwrap();
        Refuser::Rule(enisle_net::policy::RuleId(u32::try_from(at).unwrap()))
    };
    let gateway = rig.vms[0].block().gateway();
    for (kind, to, port, by) in [
        (Kind::Tcp, OTHER_SERVER, 443, rule(Origin::Drop(0), OTHER_SERVER)),
        (Kind::Udp, RESOLVER, ECHO, rule(Origin::Drop(1), RESOLVER)),
        (Kind::Udp, LAN, ECHO, rule(Origin::Floor(5), LAN)),
        (Kind::Ping, LAN, 0, rule(Origin::Floor(5), LAN)),
        (Kind::Tcp, UPLINK, 22, Refuser::Host),
        (Kind::Tcp, gateway, 80, Refuser::Gateway),
    ] {
        rig.vm().reaches(Kind::Ping, SERVER, 0);
        rig.vm().refused(kind, to, port);
        let flow = next(&mut reports);
        let (slot, ident) = (&rig.vms[0].slot, rig.vms[0].guest.ident());
        assert_eq!((flow.by, flow.tenant, flow.policy), (by, slot.tenant(), slot.policy_number()), "{to}");
        assert_eq!((flow.source, flow.destination, flow.inward, flow.untold), (ident.ip, to, false, 0));
        match kind {
            Kind::Ping => assert_eq!((flow.proto, flow.ports, flow.icmp), (1, None, Some((8, 0)))),
            Kind::Udp => assert_eq!((flow.proto, flow.ports.unwrap().1, flow.icmp), (17, port, None)),
            _ => assert_eq!((flow.proto, flow.ports.unwrap().1, flow.icmp), (6, port, None)),
        }
    }
    // Frames that no socket makes, from the other guest.
    let guest = &rig.vms[1].guest;
    let group = Ipv4Addr::new(239, 1, 2, 3);
    let mut multicast = frame::udp(guest.to(group), 4000, 5000, b"x");
    multicast[0..6].copy_from_slice(&[1, 0, 0x5e, 1, 2, 3]);
    let second =
        frame::ip(guest.to(LAN), 17, &[0; 64], |h| h.fragment_offset = IpFragOffset::try_new(8).unwrap());
    for (name, frame, by, proto, ports) in [
        ("GRE", frame::ip(guest.to(SERVER), 47, &[0; 8], |_| ()), Refuser::Form, 47, None),
        ("multicast", multicast, Refuser::Multicast, 17, Some((4000, 5000))),
        ("fragment", second, rule(Origin::Floor(5), LAN), 17, None),
    ] {
        guest.send(&frame).unwrap();
        let flow = next(&mut reports);
        assert_eq!((flow.by, flow.tenant), (by, rig.vms[1].slot.tenant()), "{name}");
        assert_eq!((flow.proto, flow.ports, flow.source), (proto, ports, guest.ident().ip), "{name}");
    }
    assert_eq!(rest(&mut reports), [], "what is allowed is not told");
}

#[test]
fn an_answer_that_the_policy_no_longer_lets_in_is_told_too() {
    let mut rig = Rig::one();
    let mut reports = rig.engine.reports().unwrap();
    let flow = Flow::open(&mut rig.vm().guest, OTHER_SERVER, SOURCE, LIMIT).unwrap();
    let before = rig.vms[0].slot.policy_number();
    rig.engine.set_policy(&rig.vms[0].slot, &compile(&lists(&["151.101.1.69"], &[])).unwrap()).unwrap();
    let told = next(&mut reports);
    assert!(
        told.inward && told.source == OTHER_SERVER && told.destination == rig.vms[0].guest.ident().ip,
        "{told:?}"
    );
    assert_eq!(told.ports, Some((SOURCE, flow.port())));
    assert_eq!(told.policy, rig.vms[0].slot.policy_number());
    assert_ne!(told.policy, before, "a rule's number belongs to the policy it is of");
}

/// Everything refused is told or counted.
fn balanced(engine: &Engine, rig: &Rig, told: u64) {
    let refused = rig.stats(0).out_refused + rig.stats(0).in_refused;
    assert_eq!(told + engine.untold(&rig.vms[0].slot).unwrap(), refused);
}

#[test]
fn of_a_flood_few_are_told_the_rest_is_counted_exactly_and_others_are_heard() {
    let mut rig = Rig::new(&[lists(&["151.101.1.69"], &[]), lists(&["151.101.1.69"], &[])]);
    let mut reports = rig.engine.reports().unwrap();
    let begun = Instant::now();
    let frame = frame::udp(rig.vms[0].guest.to(OTHER_SERVER), 4000, 53, b"x");
    for i in 0..5_000 {
        rig.vms[0].guest.send(&frame).unwrap();
        if i % 50 == 0 {
            // Takes the answers out of the way.
            rig.vms[0].guest.received();
        }
    }
    // Behind all of them in the tap's queue.
    rig.vm().reaches(Kind::Ping, SERVER, 0);
    rig.vms[1].refused(Kind::Tcp, OTHER_SERVER, 80);
    let took = begun.elapsed().as_secs() + 1;
    let all = rest(&mut reports);
    let (flood, others): (Vec<_>, Vec<_>) =
        all.into_iter().partition(|f| f.tenant == rig.vms[0].slot.tenant());
    assert_eq!(others.len(), 1, "the neighbour is heard");
    assert_eq!((others[0].tenant, others[0].untold), (rig.vms[1].slot.tenant(), 0));
    let cpus = std::thread::available_parallelism().unwrap().get() as u64;
    let told = flood.len() as u64;
    assert!(told >= BURST && told <= BURST * (1 + took) + cpus, "{told} in {took} s");
    assert_eq!(rig.stats(0).out_refused, 5_000);
    balanced(&rig.engine, &rig, told);
    // The next one that is told says how many were not.
    std::thread::sleep(Duration::from_millis(1_100));
    rig.vm().refused(Kind::Tcp, OTHER_SERVER, 80);
    assert_eq!(next(&mut reports).untold, 5_000 - told);
}

#[test]
fn what_was_told_before_anybody_reads_is_kept_and_a_reader_can_be_called_off() {
    let mut rig = Rig::new(&[lists(&["151.101.1.69"], &[])]);
    for _ in 0..40 {
        rig.vm().refused(Kind::Udp, OTHER_SERVER, ECHO);
    }
    let mut reports = rig.engine.reports().unwrap();
    let told = rest(&mut reports).len() as u64;
    assert!(told >= BURST, "what was told before there was a reader is there: {told}");
    balanced(&rig.engine, &rig, told);
    assert_eq!(reports.wait(Some(Duration::from_millis(50))).unwrap(), Woken::TimeOver, "control");
    reports.bell().ring();
    assert_eq!(reports.wait(None).unwrap(), Woken::Bell);
}

#[test]
fn what_a_slots_last_tenant_did_is_not_the_next_ones() {
    let policy = lists(&["151.101.1.69"], &[]);
    let mut rig = Rig::new(std::slice::from_ref(&policy));
    let mut reports = rig.engine.reports().unwrap();
    for _ in 0..20 {
        rig.vm().refused(Kind::Tcp, OTHER_SERVER, 80);
    }
    let old = rig.vms.remove(0);
    let tenant = old.slot.tenant();
    drop(old.guest);
    crate::rig::nobody_inside(&old.slot);
    let warm = rig.engine.recycle(old.slot, |_| ()).unwrap();
    let mut next_vm = claimed(&rig.engine, warm, &policy);
    assert_ne!(next_vm.slot.tenant(), tenant);
    assert_eq!(rig.engine.untold(&next_vm.slot).unwrap(), 0);
    next_vm.refused(Kind::Tcp, OTHER_SERVER, 80);
    let told = rest(&mut reports);
    let (last, before) = told.split_last().unwrap();
    assert!(before.len() >= 8 && before.iter().all(|flow| flow.tenant == tenant), "{before:?}");
    assert_eq!((last.tenant, last.untold), (next_vm.slot.tenant(), 0), "with a bucket of its own");
}
