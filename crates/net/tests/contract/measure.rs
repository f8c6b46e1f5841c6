//! What is counted of a slot in bounded time is what the judge did.

use enisle_net::{Refuser, VERDICTS};
use enisle_testkit::probe::Kind;
use enisle_testkit::world::{ECHO, OTHER_SERVER, SERVER};

use crate::rig::{Rig, lists};

fn at(direction: &str, verdict: &str) -> usize {
    VERDICTS.iter().position(|name| *name == (direction, verdict)).unwrap()
}

#[test]
fn frames_and_bytes_are_counted_by_verdict_and_rules_within_a_bound() {
    let mut rig = Rig::new(&[lists(&["151.101.1.69"], &[])]);
    rig.vm().reaches(Kind::Ping, SERVER, 0);
    let before = rig.engine.measure(&rig.vms[0].slot, 512).unwrap();
    for _ in 0..5 {
        rig.vm().reaches(Kind::Ping, SERVER, 0);
        rig.vm().refused(Kind::Udp, OTHER_SERVER, ECHO);
    }
    let after = rig.engine.measure(&rig.vms[0].slot, 512).unwrap();
    for (direction, verdict) in [("out", "allowed"), ("in", "allowed"), ("out", "refused")] {
        let i = at(direction, verdict);
        let (packets, bytes) = (after.packets[i] - before.packets[i], after.bytes[i] - before.bytes[i]);
        assert_eq!(packets, 5, "{direction} {verdict}");
        assert!((5 * 42..5 * 200).contains(&bytes), "{direction} {verdict}: {bytes} bytes");
    }
    let stats = rig.stats(0);
    assert_eq!(after.packets[at("out", "refused")], stats.out_refused);
    let by_rule: Vec<u64> =
        after.refused.iter().filter(|r| matches!(r.by, Refuser::Rule(_))).map(|r| r.packets).collect();
    assert_eq!(by_rule, [5]);
    // Nothing has a count of its own: all are there, together.
    let together = rig.engine.measure(&rig.vms[0].slot, 0).unwrap().refused;
    assert_eq!(together.iter().map(|r| (r.by, r.packets)).collect::<Vec<_>>(), [(Refuser::OtherRules, 5)]);
}
