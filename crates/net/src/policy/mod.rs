//! Policy as a value: rules an operator writes, and the compiled form the judge looks up.
//!
//! Owns: the grammar of a rule, the built-in floor, the compiler, and judging over the compiled
//! form. Refuses: system calls, map layouts, where in a file a rule was written (the daemon adds
//! file and line to the index that errors carry here).
//!
//! # Which rule wins
//!
//! For one address, protocol and port, of all rules that match:
//!
//! 1. the longest prefix;
//! 2. at equal length, a rule with ports over one without;
//! 3. at equal specificity `drop`, then `allow`, then the floor, then the default (allow).
//!
//! Nothing else counts: neither the order of the lists, nor how wide a port range is, nor whether
//! a protocol was named. So of two port rules on one network `drop` wins wherever both match.
//! A rule with ports says nothing about ICMP, nor about another protocol than it names; for those
//! the next rule in this order decides.

mod compile;
mod compiled;
mod effect;
mod floor;
mod layer;
#[cfg(test)]
mod oracle;
mod ports;
mod rule;

use serde::{Deserialize, Serialize};

pub use compile::{CompileError, MAX_PORT_ENTRIES, MAX_RULES, compile, compile_narrowed};
pub use compiled::{CompiledPolicy, Entry, Origin, PortEntry, PortsId, RuleId, RuleInfo};
pub use effect::Effect;
pub use floor::{FLOOR, FloorRow};
pub use ports::{PortPrefix, PortRange};
pub use rule::{ParseRuleError, Proto, Rule};

/// What happens to a packet. Refused means answered at once and counted (ENGINE.md §1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// The packet passes.
    Allow,
    /// The packet is answered with a reset or admin-prohibited.
    Refuse,
}

/// The two lists of a group or of a VM. Two empty lists mean the floor and nothing else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct PolicySpec {
    /// Refused.
    pub drop: Vec<Rule>,
    /// Opened, where no rule of at least the same specificity drops.
    pub allow: Vec<Rule>,
}
