//! What there is to count of slots: the seam between `/metrics` and the network.
//!
//! Owns: the shape of the counts. Refuses: names of metrics (`metrics`), and taking the counts (`network`).

use super::real::RealParts;
use enisle_net::VERDICTS;
use enisle_net::policy::Origin;
use std::collections::BTreeMap;
use std::fmt;

/// Places in a group's list that get a count of their own. Those of a VM's own lists, which whoever may use
/// the API writes, have one together.
const PLACES: usize = 64;

/// Who refused a packet, as a label: of a bounded number, whatever the lists are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum RuleLabel {
    /// A rule of the policy.
    Rule(Origin),
    /// The judge itself, by the row's name as `GET /v1/vms/NAME/policy` has it.
    Judge(&'static str),
    /// Any list of a VM's own.
    OfVm,
    /// Places that have no count of their own.
    Other,
}

impl From<Origin> for RuleLabel {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Default | Origin::Floor(_) => Self::Rule(origin),
            Origin::Drop(place) | Origin::Allow(place) if place < PLACES => Self::Rule(origin),
            Origin::Drop(_) | Origin::Allow(_) => Self::Other,
            Origin::VmDrop(_) | Origin::VmAllow(_) => Self::OfVm,
        }
    }
}

impl fmt::Display for RuleLabel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rule(origin) => write!(f, "{origin}"),
            Self::Judge(name) => f.write_str(name),
            Self::OfVm => f.write_str("vm"),
            Self::Other => f.write_str("other"),
        }
    }
}

/// What became of the packets of a group's VMs, those that are gone included. Never less than before.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// In the order of [`VERDICTS`].
    pub(crate) packets: [u64; VERDICTS.len()],
    pub(crate) bytes: [u64; VERDICTS.len()],
    pub(crate) flows_refused: u64,
    pub(crate) refused: BTreeMap<RuleLabel, u64>,
}

/// Slots since the daemon began.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct SlotCounts {
    /// Given to a VM, made for it.
    pub(crate) made: u64,
    /// Given to a VM, made ahead of time or left by another.
    pub(crate) claimed: u64,
    /// Left by a VM and kept for the next.
    pub(crate) recycled: u64,
    /// Left by a VM and taken away.
    pub(crate) removed: u64,
    /// Could not be removed.
    pub(crate) stuck: usize,
    /// Nobody's, and ready.
    pub(crate) warm: usize,
    /// As many may be.
    pub(crate) warm_limit: usize,
}

/// All of it.
#[derive(Debug, Default)]
pub(crate) struct Meters {
    pub(crate) traffic: BTreeMap<String, Traffic>,
    pub(crate) slots: SlotCounts,
}

/// Who can be asked.
pub(crate) trait MeterParts {
    /// Reads every counter: some hundred microseconds a slot, on a blocking thread.
    fn meters(&self) -> Meters;
}

impl MeterParts for RealParts {
    fn meters(&self) -> Meters {
        self.network.meters()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_few_whatever_the_lists_are() {
        let of = |origin| RuleLabel::from(origin).to_string();
        assert_eq!(of(Origin::Floor(5)), "floor row 5");
        assert_eq!((of(Origin::Drop(63)), of(Origin::Drop(64))), ("drop[63]".into(), "other".into()));
        assert_eq!((of(Origin::VmDrop(0)), of(Origin::VmAllow(7))), ("vm".into(), "vm".into()));
        let lists = (0..100_000).flat_map(|i| [Origin::Drop(i), Origin::Allow(i), Origin::VmDrop(i)]);
        let labels: std::collections::BTreeSet<RuleLabel> = lists.map(RuleLabel::from).collect();
        assert_eq!(labels.len(), 2 * PLACES + 2);
    }
}
