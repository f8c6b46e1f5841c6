//! Who a VM may talk to: lists, their change, and why a packet passes or not.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The two lists of a group or of a VM, as written. Entries: `CIDR`, `address`, or
/// `address[/length]:port[-port][/tcp or /udp]`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct PolicyLists {
    /// Refused.
    #[serde(default)]
    pub drop: Vec<String>,
    /// Opened: of a group against `drop` and the floor, of a VM against its own `drop` alone.
    #[serde(default)]
    pub allow: Vec<String>,
}

/// What happens to a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
pub enum PolicyVerdict {
    /// It passes.
    Allow,
    /// It is answered with a reset or admin-prohibited.
    Refuse,
}

impl std::fmt::Display for PolicyVerdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Refuse => "refuse",
        })
    }
}

/// The policy of a group, or of a VM: its group's, narrowed by its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Policy {
    /// The VM or the group.
    pub name: String,
    /// Names the present content of `lists`; also the `ETag`.
    pub revision: String,
    /// Its own lists.
    pub lists: PolicyLists,
    /// Of a VM: its group's lists.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group_lists: Option<PolicyLists>,
    /// Nothing at all is let out, and DNS is refused.
    pub egress_none: bool,
    /// What it comes to, by address: of the entries that hold a packet, the one with the longest
    /// network decides, and of these one with ports. At most 50,000.
    pub entries: Vec<PolicyEntry>,
    /// How many entries there are.
    pub entries_total: usize,
    /// Of a VM that has its network: packets the judge has seen, by what it did with them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub counters: BTreeMap<String, u64>,
    /// Packets of the guest that were refused, by who refused them, since the VM was started or
    /// its policy changed last.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub refused: Vec<RefusedPackets>,
}

/// One network, and what happens to packets for it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub struct PolicyEntry {
    /// `network`, or `network:port[-port]/protocol`.
    pub destination: String,
    /// What happens.
    pub verdict: PolicyVerdict,
    /// Where the rule that says so was written: `group drop[3]`, `vm allow[0]`, `floor row 5`.
    pub origin: String,
    /// That rule.
    pub rule: String,
}

/// Packets that somebody refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedPackets {
    /// Where the rule was written, or `form` (protocol, IP options), `multicast`, `gateway`, `host`
    /// (addresses of this host, its networks and other microVMs), `other rules`.
    pub origin: String,
    /// The rule, or what the word stands for.
    pub rule: String,
    /// How many.
    pub packets: u64,
}

/// A change of policy, made or (with `dry_run`) only judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct PolicyChange {
    /// The VM or the group.
    pub name: String,
    /// Nothing was changed.
    pub dry_run: bool,
    /// The revision of the lists after the change.
    pub revision: String,
    /// Entries that hold no more.
    pub removed: Vec<PolicyEntry>,
    /// Entries that hold instead.
    pub added: Vec<PolicyEntry>,
    /// The VMs it is about.
    pub vms: Vec<String>,
    /// With `dry_run`: flows of these VMs that the change would cut.
    pub cuts: Vec<CutFlow>,
}

/// A flow that a guest has begun and may not go on with.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct CutFlow {
    /// The VM.
    pub vm: String,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// Whom it talks to.
    pub destination: std::net::Ipv4Addr,
    /// The port there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// The guest's port.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_port: Option<u16>,
}

/// Why a VM may or may not talk to a destination: what the kernel's own maps say.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Why {
    /// The VM.
    pub vm: String,
    /// The destination.
    pub destination: std::net::Ipv4Addr,
    /// The port there.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
    /// `tcp`, `udp` or `icmp`.
    pub protocol: String,
    /// What happens.
    pub verdict: PolicyVerdict,
    /// Who says so: `policy`, `host`, `gateway`, `dns` or `nothing`.
    pub decided_by: String,
    /// In words.
    pub reason: String,
    /// The rule of the policy that won.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<RuleShown>,
    /// The number the kernel's map gave for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_rule: Option<u32>,
    /// The rules it beat, the most specific first.
    pub beaten: Vec<RuleShown>,
    /// Set when the kernel holds something else than the policy as written. It must not be.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mismatch: Option<String>,
}

/// A rule and where it was written.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RuleShown {
    /// `group drop[3]`, `vm allow[0]`, `floor row 5`, `default`.
    pub origin: String,
    /// As written.
    pub rule: String,
}
