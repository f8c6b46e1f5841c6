//! Policies in words.
//!
//! Owns: how entries, rules and judgements are shown, and reading a destination. Refuses: deciding
//! anything.

use super::policy::PolicyError;
use crate::parts::policy::{Found, Observed};
use enisle_api::{PolicyEntry, PolicyVerdict, RefusedPackets, RuleShown, Why};
use enisle_net::policy::{CompiledPolicy, Effect, Origin, Proto, RuleId, Verdict};
use enisle_net::{Decider, Judgement, Question, Refuser};
use std::collections::BTreeMap;

pub(crate) fn verdict(verdict: Verdict) -> PolicyVerdict {
    match verdict {
        Verdict::Allow => PolicyVerdict::Allow,
        Verdict::Refuse => PolicyVerdict::Refuse,
    }
}

/// A policy by address.
pub(crate) fn entries(policy: &CompiledPolicy) -> Vec<PolicyEntry> {
    let show = |effect: Effect| {
        let destination = match effect.ports {
            None => effect.net.to_string(),
            Some((proto, first, last)) if first == last => format!("{}:{first}/{proto}", effect.net),
            Some((proto, first, last)) => format!("{}:{first}-{last}/{proto}", effect.net),
        };
        let RuleShown { origin, rule } = rule(policy, effect.rule);
        PolicyEntry { destination, verdict: verdict(effect.verdict), origin, rule }
    };
    policy.effects().into_iter().map(show).collect()
}

/// A rule with its place.
fn rule(policy: &CompiledPolicy, id: RuleId) -> RuleShown {
    match policy.rule(id) {
        Some(info) => RuleShown { origin: origin(info.origin), rule: info.text.clone() },
        None => RuleShown { origin: "unknown".to_owned(), rule: format!("rule {}", id.0) },
    }
}

/// The first rules of a policy, by number.
pub(crate) fn first_rules(policy: &CompiledPolicy, most: usize) -> Box<[RuleShown]> {
    let shown = policy.rules().iter().take(most);
    shown.map(|info| RuleShown { origin: origin(info.origin), rule: info.text.clone() }).collect()
}

/// Refusers other than rules: a name, and what they refuse.
pub(crate) fn refuser(by: Refuser) -> Option<(&'static str, &'static str)> {
    match by {
        Refuser::Rule(_) => None,
        Refuser::Form => Some(("form", "other protocols, IP options, other kinds of ICMP (row 8)")),
        Refuser::Multicast => Some(("multicast", "multicast and broadcast (row 7)")),
        Refuser::Gateway => Some(("gateway", "anything but DNS on the gateway (row 11)")),
        Refuser::Host => Some(("host", "this host, its networks, other microVMs (rows 3 to 5)")),
        Refuser::Nothing => Some(("nothing", "no policy holds the address")),
        Refuser::OtherRules => Some(("other rules", "rules beyond the 256 that are counted apart")),
    }
}

fn origin(origin: Origin) -> String {
    match origin {
        Origin::Drop(_) | Origin::Allow(_) => format!("group {origin}"),
        _ => origin.to_string(),
    }
}

/// Refused packets by who refused them, the most first.
pub(crate) fn refused(policy: &CompiledPolicy, observed: &Observed) -> Vec<RefusedPackets> {
    let mut all: Vec<RefusedPackets> = observed
        .refused
        .iter()
        .filter(|refused| refused.packets > 0)
        .map(|refused| {
            let RuleShown { origin, rule } = match (refused.by, refuser(refused.by)) {
                (Refuser::Rule(id), _) => rule(policy, id),
                (_, Some((origin, text))) => RuleShown { origin: origin.to_owned(), rule: text.to_owned() },
                (_, None) => RuleShown { origin: "unknown".to_owned(), rule: String::new() },
            };
            RefusedPackets { origin, rule, packets: refused.packets }
        })
        .collect();
    all.sort_by(|a, b| (b.packets, &a.origin).cmp(&(a.packets, &b.origin)));
    all
}

/// The judge's counters by name.
pub(crate) fn counters(observed: &Observed) -> BTreeMap<String, u64> {
    let s = &observed.stats;
    [
        ("out_allowed", s.out_allowed),
        ("out_refused", s.out_refused),
        ("out_service", s.out_service),
        ("out_arp", s.out_arp),
        ("out_frame", s.out_frame),
        ("out_spoofed", s.out_spoofed),
        ("out_malformed", s.out_malformed),
        ("in_allowed", s.in_allowed),
        ("in_refused", s.in_refused),
        ("in_unsolicited", s.in_unsolicited),
        ("in_malformed", s.in_malformed),
        ("in_limited", s.in_limited),
        ("out_limited", s.out_limited),
        ("flows_refused", s.flows_refused),
    ]
    .into_iter()
    .map(|(name, count)| (name.to_owned(), count))
    .collect()
}

/// Reads `address[:port][/protocol]`. With a port and no protocol it is about TCP, without either
/// about ICMP.
pub(crate) fn question(text: &str) -> Result<Question, PolicyError> {
    let bad = || PolicyError::BadDestination(text.chars().take(64).collect());
    let (ends, proto) = match text.split_once('/') {
        Some((ends, proto)) => (ends, Some(proto)),
        None => (text, None),
    };
    let (address, port) = match ends.split_once(':') {
        Some((address, port)) => {
            let number = port.parse::<u16>().ok().filter(|p| *p > 0 && !port.starts_with('+'));
            (address, Some(number.ok_or_else(bad)?))
        }
        None => (ends, None),
    };
    let proto = match (proto, port) {
        (Some("tcp") | None, Some(_)) => Proto::Tcp,
        (Some("udp"), Some(_)) => Proto::Udp,
        (Some("icmp") | None, None) => Proto::Icmp,
        _ => return Err(bad()),
    };
    Ok(Question { destination: address.parse().map_err(|_| bad())?, proto, port })
}

/// The answer to a question.
pub(crate) fn why(vm: &str, policy: &CompiledPolicy, asked: &Question, found: &Found) -> Why {
    let Question { destination, proto, port } = *asked;
    let kernel = &found.kernel;
    let won = kernel.rule.map(|id| rule(policy, id));
    let beaten = match kernel.decider {
        Decider::Gateway | Decider::Service => Vec::new(),
        _ => policy.rules_about(destination, proto, port),
    };
    let beaten = beaten.into_iter().filter(|id| Some(*id) != kernel.rule).map(|id| rule(policy, id));
    Why {
        vm: vm.to_owned(),
        destination,
        port,
        protocol: proto.to_string(),
        verdict: verdict(kernel.verdict),
        decided_by: decider(kernel).to_owned(),
        reason: reason(kernel, won.as_ref(), policy.reaches_nothing()),
        rule: won,
        kernel_rule: kernel.rule.map(|id| id.0),
        beaten: beaten.collect(),
        mismatch: (kernel != &found.expected).then(|| mismatch(policy, found)),
    }
}

fn decider(judgement: &Judgement) -> &'static str {
    match judgement.decider {
        Decider::Policy => "policy",
        Decider::Host(_) => "host",
        Decider::Gateway => "gateway",
        Decider::Service => "dns",
        Decider::Nothing => "nothing",
    }
}

fn reason(judgement: &Judgement, won: Option<&RuleShown>, egress_none: bool) -> String {
    match (judgement.decider, won) {
        (Decider::Policy, Some(won)) => format!("{} {}", won.origin, won.rule),
        (Decider::Policy, None) => "the policy".to_owned(),
        (Decider::Host(fact), _) => format!("{fact}"),
        (Decider::Gateway, _) => "the gateway serves nothing but DNS".to_owned(),
        (Decider::Service, _) if egress_none => {
            "the gateway's DNS; it answers REFUSED, because nothing may leave".to_owned()
        }
        (Decider::Service, _) => "the gateway's DNS".to_owned(),
        (Decider::Nothing, _) => "the judge knows no policy for it".to_owned(),
    }
}

fn mismatch(policy: &CompiledPolicy, found: &Found) -> String {
    let say = |judgement: &Judgement| {
        let won = judgement.rule.map(|id| rule(policy, id));
        format!("{} ({})", verdict(judgement.verdict), reason(judgement, won.as_ref(), false))
    };
    format!(
        "the kernel says {}, the policy as written says {}; this is a defect: set the policy again, and report it",
        say(&found.kernel),
        say(&found.expected)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_net::policy::{PolicySpec, compile};

    #[test]
    fn destinations_are_read_or_refused() {
        let q = |text: &str| question(text).map(|q| (q.destination.to_string(), q.proto, q.port)).ok();
        let address = "8.8.8.8".to_owned();
        assert_eq!(q("8.8.8.8"), Some((address.clone(), Proto::Icmp, None)));
        assert_eq!(q("8.8.8.8/icmp"), Some((address.clone(), Proto::Icmp, None)));
        assert_eq!(q("8.8.8.8:53"), Some((address.clone(), Proto::Tcp, Some(53))));
        assert_eq!(q("8.8.8.8:53/udp"), Some((address, Proto::Udp, Some(53))));
        for bad in
            ["", "x", "8.8.8.8:0", "8.8.8.8:+5", "8.8.8.8/udp", "8.8.8.8:1/icmp", "8.8.8.8:1/gre", "::1"]
        {
            assert_eq!(q(bad), None, "{bad}");
        }
    }

    #[test]
    fn a_mismatch_is_said_and_agreement_is_not() {
        let lists = |drop: &str| PolicySpec { drop: vec![drop.parse().unwrap()], allow: Vec::new() };
        let policy = compile(&lists("8.8.8.8")).unwrap();
        let asked = question("8.8.8.8:53").unwrap();
        let (judged, rule) = policy.judge(asked.destination, asked.proto, asked.port);
        let right = Judgement { verdict: judged, decider: Decider::Policy, rule: Some(rule) };
        let same = why("vm", &policy, &asked, &Found { kernel: right, expected: right });
        assert_eq!((same.verdict, same.mismatch), (PolicyVerdict::Refuse, None));
        assert_eq!(same.reason, "group drop[0] 8.8.8.8");
        assert_eq!(same.beaten.iter().map(|r| r.origin.as_str()).collect::<Vec<_>>(), ["default"]);
        let wrong = Judgement { verdict: Verdict::Allow, decider: Decider::Policy, rule: Some(RuleId(0)) };
        let other = why("vm", &policy, &asked, &Found { kernel: wrong, expected: right });
        assert_eq!(other.verdict, PolicyVerdict::Allow, "the kernel's word counts");
        let said = other.mismatch.unwrap();
        assert!(said.contains("kernel says allow") && said.contains("says refuse"), "{said}");
    }
}
