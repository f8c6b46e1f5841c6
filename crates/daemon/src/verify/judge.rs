//! From evidence to a verdict; pure.
//!
//! Owns: what counts as proof. Refuses: looking anywhere itself.
//!
//! Nothing a guest says can make a row right. What it claims is compared with what the daemon's own
//! sockets have seen; where both disagree, nothing is proven. A guest that does not send what it
//! was asked to send makes its row inconclusive, which fails the run.

use super::probe::Refusal;
use enisle_api::verify::{Expected, Verdict};

/// What is known of one row once it was asked.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Evidence {
    /// The probe itself was seen on its way to the judge.
    pub(super) sent: bool,
    /// It was seen behind the judge.
    pub(super) crossed: bool,
    /// A listener of the daemon was reached.
    pub(super) arrived: bool,
    /// The guest was told no, as seen on its tap.
    pub(super) refusal: Option<Refusal>,
    /// The guest was given an answer, as seen on its tap.
    pub(super) answer: Option<String>,
    /// The answer is not the one that the policy asks for.
    pub(super) misanswered: bool,
    /// The guest claims to have been answered.
    pub(super) claims_answer: bool,
    /// The listener did not even answer the host.
    pub(super) no_canary: bool,
}

/// What holds for the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Controls {
    /// Every beacon that the daemon sent behind the judge was seen on the host's end.
    pub(super) beacons: bool,
    /// No packet socket lost a frame.
    pub(super) lossless: bool,
    /// Every kind of packet to an address that the policy allows was seen on the host's end; `true` as well
    /// where the policy allows none.
    pub(super) passes: bool,
}

impl Controls {
    /// Why nothing that was not seen proves anything, if so.
    pub(super) fn failure(self) -> Option<&'static str> {
        if !self.beacons {
            Some("the sniffer on the host's end did not see the daemon's own frames")
        } else if !self.lossless {
            Some("a sniffer lost frames: the guest is too busy")
        } else if !self.passes {
            Some("not even what the policy allows was seen on the host's end")
        } else {
            None
        }
    }
}

/// The verdict on one row.
pub(super) fn verdict(expected: Expected, tcp: bool, seen: &Evidence, controls: Controls) -> Verdict {
    let out = seen.crossed || seen.arrived;
    let let_through = matches!(expected, Expected::Reached | Expected::Delivered);
    // First of all: what came through came through, whatever else is in doubt.
    if out && !let_through {
        return Verdict::Wrong;
    }
    if !seen.sent || seen.no_canary || !controls.beacons || !controls.lossless {
        return Verdict::Inconclusive;
    }
    if let_through {
        return if seen.crossed { Verdict::Ok } else { Verdict::Wrong };
    }
    if !controls.passes {
        return Verdict::Inconclusive;
    }
    let right = match expected {
        Expected::Served => seen.answer.is_some() && !seen.misanswered,
        Expected::Refused => seen.refusal == Some(if tcp { Refusal::Reset } else { PROHIBITED }),
        Expected::Dropped => seen.refusal.is_none() && seen.answer.is_none(),
        Expected::Stopped | Expected::Reached | Expected::Delivered => true,
    };
    let answered = seen.answer.is_some() && expected != Expected::Served;
    match (right && !answered, seen.claims_answer && expected != Expected::Served) {
        (false, _) => Verdict::Wrong,
        (true, true) => Verdict::Inconclusive,
        (true, false) => Verdict::Ok,
    }
}

/// ICMP "communication administratively prohibited" (RFC 1812 §5.2.7.1).
const PROHIBITED: Refusal = Refusal::Unreachable(13);

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: Controls = Controls { beacons: true, lossless: true, passes: true };
    const REFUSING: [Expected; 3] = [Expected::Refused, Expected::Dropped, Expected::Stopped];

    fn sent() -> Evidence {
        Evidence { sent: true, ..Evidence::default() }
    }

    fn refused(tcp: bool) -> Evidence {
        Evidence { refusal: Some(if tcp { Refusal::Reset } else { PROHIBITED }), ..sent() }
    }

    #[test]
    fn what_the_contract_says_is_ok() {
        for tcp in [true, false] {
            assert_eq!(verdict(Expected::Refused, tcp, &refused(tcp), GOOD), Verdict::Ok);
            assert_eq!(verdict(Expected::Refused, tcp, &refused(!tcp), GOOD), Verdict::Wrong, "the wrong no");
            assert_eq!(verdict(Expected::Refused, tcp, &sent(), GOOD), Verdict::Wrong, "silence");
            assert_eq!(verdict(Expected::Dropped, tcp, &sent(), GOOD), Verdict::Ok);
            assert_eq!(verdict(Expected::Dropped, tcp, &refused(tcp), GOOD), Verdict::Wrong, "not silent");
            assert_eq!(verdict(Expected::Stopped, tcp, &sent(), GOOD), Verdict::Ok);
        }
        let crossed = Evidence { crossed: true, ..sent() };
        assert_eq!(verdict(Expected::Reached, true, &crossed, GOOD), Verdict::Ok);
        assert_eq!(verdict(Expected::Reached, true, &refused(true), GOOD), Verdict::Wrong);
        assert_eq!(verdict(Expected::Delivered, true, &sent(), GOOD), Verdict::Wrong);
        let served = Evidence { answer: Some("DNS".to_owned()), ..sent() };
        assert_eq!(verdict(Expected::Served, false, &served, GOOD), Verdict::Ok);
        assert_eq!(verdict(Expected::Served, false, &sent(), GOOD), Verdict::Wrong);
    }

    #[test]
    fn what_came_through_is_wrong_whatever_else_is_known() {
        for expected in REFUSING {
            for base in [Evidence::default(), sent(), refused(true), refused(false)] {
                for controls in [GOOD, Controls { beacons: false, lossless: false, passes: false }] {
                    let crossed = Evidence { crossed: true, ..base.clone() };
                    let arrived = Evidence { arrived: true, ..base.clone() };
                    for seen in [crossed, arrived] {
                        assert_eq!(verdict(expected, true, &seen, controls), Verdict::Wrong, "{seen:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn nothing_is_proven_without_its_controls() {
        for expected in REFUSING {
            for controls in [
                Controls { beacons: false, ..GOOD },
                Controls { lossless: false, ..GOOD },
                Controls { passes: false, ..GOOD },
            ] {
                assert_eq!(verdict(expected, true, &refused(true), controls), Verdict::Inconclusive);
                assert!(controls.failure().is_some());
            }
            let unheard = Evidence { no_canary: true, ..refused(true) };
            assert_eq!(verdict(expected, true, &unheard, GOOD), Verdict::Inconclusive);
        }
        assert_eq!(GOOD.failure(), None);
    }

    /// Over everything that is known of a row: whatever a guest claims or withholds, a row that is
    /// not ok for an honest guest is not ok for a liar.
    #[test]
    fn a_lie_makes_no_row_right() {
        let refusals = [None, Some(Refusal::Reset), Some(PROHIBITED), Some(Refusal::Unreachable(3))];
        let answers = [None, Some("accepted".to_owned())];
        let all = [Expected::Reached, Expected::Delivered, Expected::Served]
            .into_iter()
            .chain(REFUSING)
            .flat_map(|expected| [(expected, true), (expected, false)]);
        for (expected, tcp) in all {
            for refusal in refusals {
                for answer in answers.clone() {
                    for crossed in [false, true] {
                        let honest = Evidence { crossed, refusal, answer: answer.clone(), ..sent() };
                        let truth = verdict(expected, tcp, &honest, GOOD);
                        let withheld = Evidence { sent: false, ..honest.clone() };
                        let boasted = Evidence { claims_answer: true, ..honest.clone() };
                        for lie in [withheld.clone(), boasted, Evidence { claims_answer: true, ..withheld }] {
                            let judged = verdict(expected, tcp, &lie, GOOD);
                            assert!(judged != Verdict::Ok || truth == Verdict::Ok, "{expected:?} {lie:?}");
                        }
                        let silent = Evidence { sent: false, ..honest };
                        assert_ne!(verdict(expected, tcp, &silent, GOOD), Verdict::Ok, "it was never sent");
                    }
                }
            }
        }
    }
}
