//! Other people's chains that would drop what our own table accepts.
//!
//! Owns: which chains those are (Docker's and ufw's `FORWARD` with its policy `drop`, firewalld's
//! with its last rule), and the one pair of accepts for each range that goes to their head. An
//! accept in our own table never beats another table's drop, so this is the only way. Refuses:
//! reading and writing them (`engine`), and opening anything else: the pair names our interfaces and
//! our addresses, the way back only answers, and our own table still judges every packet.
//!
//! Each daemon has its own pairs, marked by a comment with its scope, and removes only those.

use crate::bridge::Placed;
use crate::nft::{Always, Batch, ChainSeen, Command, Family, Policy, Rule, RuleSeen};
use crate::plan::Range;
use crate::scope::Scope;

/// How the names of slots' interfaces begin (`plan`), and those of no distribution's.
pub(crate) const PREFIX: &str = "en-";
/// How the comment of every daemon's pairs begins.
const MARK: &str = "enisle ";

/// Whether a chain is at the forward hook and not an Enisle's.
pub(crate) fn is_foreign_forward(chain: &ChainSeen) -> bool {
    chain.forward && !chain.table.name.starts_with("enisle_")
}

/// Whether a chain would refuse a packet that none of its rules matches.
pub(crate) fn refuses(chain: &ChainSeen, rules: &[RuleSeen]) -> bool {
    let last = rules.iter().rev().find(|r| !r.note_begins(MARK));
    chain.policy == Some(Policy::Drop) || last.is_some_and(|r| r.always == Always::Refuses)
}

/// The comment of a daemon's pairs.
pub(crate) fn mark(scope: Scope) -> String {
    format!("{MARK}{scope}")
}

/// Handles of the rules with this comment, in order.
pub(crate) fn marked(rules: &[RuleSeen], mark: &str) -> Vec<u64> {
    rules.iter().filter(|r| r.is_noted(mark)).map(|r| r.handle).collect()
}

/// Whether the rules `handles` are what is marked, and nothing but Enisle's own is before them.
pub(crate) fn holds(rules: &[RuleSeen], mark: &str, handles: &[u64]) -> bool {
    let before = rules.iter().take_while(|r| r.note_begins(MARK));
    let at_head: Vec<u64> = before.filter(|r| r.is_noted(mark)).map(|r| r.handle).collect();
    at_head == handles && marked(rules, mark) == handles
}

/// What is let through for one range.
pub(crate) struct Pair {
    range: Range,
    /// How the names of the interfaces begin; a whole name ends with NUL.
    interface: String,
    /// Not only answers come in.
    reachable: bool,
}

/// One for each range.
pub(crate) fn pairs(ranges: &[Range], placed: &[Placed]) -> Vec<Pair> {
    let of = |range: &Range| match placed.iter().find(|placed| placed.bridge.range == *range) {
        Some(placed) => {
            Pair { range: *range, interface: format!("{}\0", placed.bridge.name), reachable: true }
        }
        None => Pair { range: *range, interface: PREFIX.to_owned(), reachable: false },
    };
    ranges.iter().map(of).collect()
}

/// One transaction that takes `old` away and puts the pairs for `ranges` at the chain's head.
pub(crate) fn put(chain: &ChainSeen, old: &[u64], pairs: &[Pair], how: Form, mark: &str) -> Batch {
    let Batch(mut commands) = remove(chain, old);
    // Each goes to the head, so the last comes first.
    for rule in pairs.iter().flat_map(|of| pair(of, chain.table.family, how)).rev() {
        let (table, name) = (chain.table.clone(), chain.name.clone());
        commands.push(Command::InsertRule(table, name, rule, mark.to_owned()));
    }
    Batch(commands)
}

/// Takes rules away.
pub(crate) fn remove(chain: &ChainSeen, handles: &[u64]) -> Batch {
    let delete = |h: &u64| Command::DeleteRule(chain.table.clone(), chain.name.clone(), *h);
    Batch(handles.iter().map(delete).collect())
}

/// How "an answer" is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    /// `ct state established,related`
    Native,
    /// By iptables' own match, because `iptables -S` refuses to list a table with another's in it.
    Iptables,
}

/// The form for a chain: iptables-nft calls its tables and chains like this.
pub(crate) fn form(chain: &ChainSeen) -> Form {
    match (chain.table.family, chain.table.name.as_str(), chain.name.as_str()) {
        (Family::Ip, "filter" | "mangle" | "security", "FORWARD") => Form::Iptables,
        _ => Form::Native,
    }
}

fn pair(of: &Pair, family: Family, form: Form) -> [Rule; 2] {
    let r = || match family {
        Family::Inet => Rule::new().ipv4(),
        // iptables-nft knows no `meta nfproto`, and here it would say nothing.
        Family::Ip | Family::Netdev => Rule::new(),
    };
    let from = r().ipv4_source_within(of.range.net()).iifname_begins(&of.interface);
    let to = r().ipv4_destination_within(of.range.net()).oifname_begins(&of.interface);
    let to = match form {
        _ if of.reachable => to,
        Form::Native => to.ct_established(),
        Form::Iptables => to.xt_established(),
    };
    [from.counter().accept(), to.counter().accept()]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nft::Table;

    fn chain(family: Family, table: &str, name: &str, policy: Policy) -> ChainSeen {
        let table = Table { family, name: table.into() };
        ChainSeen { table, name: name.into(), handle: 1, forward: true, policy: Some(policy) }
    }

    fn rule(handle: u64, comment: Option<&str>, always: Always) -> RuleSeen {
        let note = comment.map(crate::nft::note).unwrap_or_default();
        RuleSeen { chain: "FORWARD".into(), handle, note, always }
    }

    #[test]
    fn docker_ufw_and_firewalld_refuse_and_an_open_chain_does_not() {
        let docker = chain(Family::Ip, "filter", "FORWARD", Policy::Drop);
        let firewalld = chain(Family::Inet, "firewalld", "filter_FORWARD", Policy::Accept);
        let jump = rule(4, None, Always::No);
        assert!(refuses(&docker, std::slice::from_ref(&jump)));
        assert!(!refuses(&firewalld, std::slice::from_ref(&jump)));
        assert!(refuses(&firewalld, &[jump, rule(5, None, Always::Refuses)]));
        assert!(is_foreign_forward(&docker));
        assert!(!is_foreign_forward(&chain(Family::Inet, "enisle_0badcafe", "forward", Policy::Accept)));
    }

    #[test]
    fn the_pair_stands_at_the_head_apart_from_other_daemons() {
        let (own, other) = ("enisle 0badcafe", "enisle 00c0ffee");
        let ours = [rule(7, Some(own), Always::No), rule(8, Some(own), Always::No)];
        let theirs = rule(3, Some(other), Always::No);
        let docker = rule(4, None, Always::No);
        let [a, b] = ours.clone();
        assert!(holds(&[theirs.clone(), a.clone(), b.clone(), docker.clone()], own, &[7, 8]));
        assert!(!holds(&[docker.clone(), a.clone(), b.clone()], own, &[7, 8]), "behind Docker's");
        assert!(!holds(&[a.clone(), docker.clone()], own, &[7, 8]), "one was deleted");
        assert!(!holds(&[b.clone(), a.clone(), docker], own, &[7, 8]), "swapped");
        assert!(!holds(&[a, b], own, &[]), "an earlier run's");
        assert!(holds(&[theirs], own, &[]));
    }

    #[test]
    fn only_what_is_given_is_removed() {
        let chain = chain(Family::Ip, "filter", "FORWARD", Policy::Drop);
        let range = "169.254.100.0/22".parse().unwrap();
        let Batch(commands) = put(&chain, &[7, 8], &pairs(&[range], &[]), form(&chain), "enisle 0badcafe");
        let deleted = commands.iter().filter(|c| matches!(c, Command::DeleteRule(_, _, 7 | 8))).count();
        assert_eq!((deleted, commands.len()), (2, 4));
    }
}
