//! Lists of a VM or a group as somebody asks for them.
//!
//! Owns: reading them, naming the entry that is wrong, revisions, and what a change comes to.
//! Refuses: putting anything in force (`registry::policy`), the grammar of an entry (`enisle-net`).

use super::explain;
use enisle_api::{PolicyEntry, PolicyLists};
use enisle_net::policy::{CompileError, CompiledPolicy, Origin, PolicySpec, Rule};
use std::collections::BTreeSet;

/// Longest entry in bytes: two addresses' worth of digits, a range of ports and a protocol fit.
const MAX_ENTRY: usize = 64;

/// Why lists are refused. Nothing was changed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PolicyError {
    /// An entry is none.
    #[error("{list}[{index}]: {reason}")]
    BadEntry {
        /// Of which list.
        list: &'static str,
        /// From 0.
        index: usize,
        /// What is wrong and what would be right.
        reason: String,
    },
    /// Entries that cannot be enforced.
    #[error("{}{source}", of_vm(vm))]
    Unenforceable {
        /// The VM whose own lists do not fit the change of its group.
        vm: Option<String>,
        /// Why; names the entry.
        source: CompileError,
    },
    /// Somebody was faster.
    #[error("the policy of {name} is at revision {present} by now, not at {expected}")]
    Changed {
        /// The VM or group.
        name: String,
        /// What the request was made for.
        expected: String,
        /// What holds.
        present: String,
    },
    /// A destination that is none.
    #[error("`{0}` is no destination")]
    BadDestination(String),
}

fn of_vm(vm: &Option<String>) -> String {
    vm.as_ref().map(|vm| format!("VM {vm}: ")).unwrap_or_default()
}

impl PolicyError {
    /// The place in the request, as a JSON pointer.
    pub(crate) fn pointer(&self) -> Option<String> {
        match self {
            Self::BadEntry { list, index, .. } => Some(format!("/{list}/{index}")),
            Self::Unenforceable { vm: None, source } => match source.place() {
                Origin::Drop(i) | Origin::VmDrop(i) => Some(format!("/drop/{i}")),
                Origin::Allow(i) | Origin::VmAllow(i) => Some(format!("/allow/{i}")),
                Origin::Default | Origin::Floor(_) => None,
            },
            _ => None,
        }
    }
}

/// Reads lists.
pub(crate) fn parse(drop: &[String], allow: &[String]) -> Result<PolicySpec, PolicyError> {
    Ok(PolicySpec { drop: parse_list("drop", drop)?, allow: parse_list("allow", allow)? })
}

fn parse_list(list: &'static str, entries: &[String]) -> Result<Vec<Rule>, PolicyError> {
    let read = |(index, text): (usize, &String)| {
        let bad = |reason| PolicyError::BadEntry { list, index, reason };
        if text.len() > MAX_ENTRY {
            return Err(bad(format!("an entry has at most {MAX_ENTRY} bytes")));
        }
        text.parse::<Rule>().map_err(|e| bad(e.to_string()))
    };
    entries.iter().enumerate().map(read).collect()
}

/// Lists as the API shows them.
pub(crate) fn show(spec: &PolicySpec) -> PolicyLists {
    let list = |rules: &[Rule]| rules.iter().map(ToString::to_string).collect();
    PolicyLists { drop: list(&spec.drop), allow: list(&spec.allow) }
}

/// Names the content of lists: equal ones have the same. FNV-1a, for it is no secret.
pub(crate) fn revision(spec: &PolicySpec) -> String {
    let mut hash: u64 = 0xcbf2_9ce4_8422_2325;
    let entries =
        |mark: &str, rules: &[Rule]| rules.iter().map(|rule| format!("{mark}{rule};")).collect::<String>();
    for byte in entries("-", &spec.drop).bytes().chain(entries("+", &spec.allow).bytes()) {
        hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    format!("{hash:016x}")
}

/// Refuses a change that was made for other lists than those there are.
pub(crate) fn check_revision(
    name: &str,
    present: &PolicySpec,
    expected: Option<&str>,
) -> Result<(), PolicyError> {
    let present = revision(present);
    match expected {
        Some(expected) if expected != present => {
            Err(PolicyError::Changed { name: name.to_owned(), expected: expected.to_owned(), present })
        }
        _ => Ok(()),
    }
}

/// Entries that hold no more, and those that hold instead: by what they decide, wherever it was
/// written.
pub(crate) fn difference(old: &CompiledPolicy, new: &CompiledPolicy) -> (Vec<PolicyEntry>, Vec<PolicyEntry>) {
    let (old, new) = (explain::entries(old), explain::entries(new));
    let minus = |a: &[PolicyEntry], b: &[PolicyEntry]| {
        let there: BTreeSet<_> = b.iter().map(|e| (&e.destination, e.verdict)).collect();
        a.iter().filter(|e| !there.contains(&(&e.destination, e.verdict))).cloned().collect()
    };
    (minus(&old, &new), minus(&new, &old))
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_net::policy::{compile, compile_narrowed};

    fn list(entries: &[&str]) -> Vec<String> {
        entries.iter().map(|e| (*e).to_owned()).collect()
    }

    #[test]
    fn a_bad_entry_is_named_with_its_place() {
        let good = list(&["10.0.0.0/8", "8.8.8.8:53/udp"]);
        let spec = parse(&good, &good[1..]).unwrap();
        assert_eq!((show(&spec).drop, show(&spec).allow), (good.clone(), good[1..].to_vec()));
        let error = parse(&good, &list(&["1.1.1.1", "1.1.1.1/24"])).unwrap_err();
        assert_eq!(error.pointer().unwrap(), "/allow/1");
        assert!(error.to_string().contains("1.1.1.0/24"), "{error}");
        let long = parse(&["1".repeat(1_000_000)], &[]).unwrap_err();
        assert!(long.to_string().len() < 100, "{long}");
        let never = parse(&[], &list(&["8.8.8.8", "127.0.0.1"])).unwrap();
        for compiled in [compile(&never), compile_narrowed(&PolicySpec::default(), &never)] {
            let error = PolicyError::Unenforceable { vm: None, source: compiled.unwrap_err() };
            assert_eq!(error.pointer().unwrap(), "/allow/1");
        }
    }

    #[test]
    fn revisions_follow_content() {
        let a = parse(&list(&["10.0.0.0/8"]), &[]).unwrap();
        let b = parse(&[], &list(&["10.0.0.0/8"])).unwrap();
        assert_ne!(revision(&a), revision(&b));
        assert_ne!(revision(&a), revision(&PolicySpec::default()));
        assert_eq!(revision(&a), revision(&a.clone()));
        assert!(check_revision("x", &a, None).is_ok());
        assert!(check_revision("x", &a, Some(&revision(&a))).is_ok());
        assert!(check_revision("x", &a, Some(&revision(&b))).is_err());
    }

    #[test]
    fn a_difference_has_what_changes_and_nothing_else() {
        let old = compile(&parse(&list(&["8.8.8.0/24", "9.9.9.9:53"]), &[]).unwrap()).unwrap();
        let new = compile(&parse(&list(&["9.9.9.9:53", "8.8.4.4"]), &[]).unwrap()).unwrap();
        let (removed, added) = difference(&old, &new);
        let destinations = |e: &[PolicyEntry]| e.iter().map(|e| e.destination.clone()).collect::<Vec<_>>();
        assert_eq!(destinations(&removed), ["8.8.8.0/24"]);
        assert_eq!(destinations(&added), ["8.8.4.4/32"]);
        assert_eq!(added[0].origin, "group drop[1]");
    }
}
