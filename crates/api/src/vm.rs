//! Resources: groups, VMs, the daemon itself.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::Ipv4Addr;

/// The daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `ok`, or `stopping` while the daemon goes down.
    pub status: String,
}

/// What runs here.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Version {
    /// Version of the daemon.
    pub enisle: String,
    /// Scope of this daemon: 8 hex digits that mark everything it makes on the host.
    pub scope: String,
    /// Process id of the daemon.
    pub pid: u32,
    /// VMM in use, for example `qemu 7.2.22 (tcg)`.
    pub hypervisor: String,
}

/// A host group as configured.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Group {
    /// Name of the group.
    pub name: String,
    /// VMs launched with the daemon.
    pub count: u32,
    /// VMs that exist now.
    pub vms: u32,
    /// VMs that the range can hold.
    pub capacity: u32,
    /// Virtual CPUs of a VM unless it asks for others.
    pub vcpu: u8,
    /// Memory of a VM in MiB unless it asks for another size.
    pub ram_mb: u32,
    /// Network of the group.
    pub network: GroupNetwork,
}

/// A group's network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupNetwork {
    /// `isolated` or `bridge`.
    pub mode: String,
    /// Range of /30 blocks, CIDR.
    pub range: String,
    /// The bridge, in mode `bridge`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bridge: Option<GroupBridge>,
    /// Destinations refused on top of the built-in floor.
    pub drop: Vec<String>,
    /// Destinations allowed against the floor.
    pub allow: Vec<String>,
}

/// The bridge that a group's VMs are on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GroupBridge {
    /// Its interface on the host.
    pub name: String,
    /// The VMs' gateway.
    pub gateway: Ipv4Addr,
    /// The network on it, CIDR.
    pub subnet: String,
    /// VMs do not reach each other.
    pub isolate_ports: bool,
    /// The host's interface that is a port of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uplink: Option<String>,
    /// Packets pass between it and others that say so, too.
    pub route_between: bool,
}

/// Asks for a VM.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct CreateVm {
    /// Group; may be left out when there is only one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub group: Option<String>,
    /// Name: 1 to 63 of `a-z`, `0-9`, `-`, not at the ends `-`. Default `GROUP-N`, lowest free N.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Virtual CPUs, 1 to 64.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vcpu: Option<u8>,
    /// Memory in MiB, 64 to 1048576.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ram_mb: Option<u32>,
    /// Script run once on first boot, instead of the group's; at most 256 KiB.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userdata: Option<String>,
    /// Destinations refused to this VM, beyond what its group refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub drop: Vec<String>,
    /// Exceptions from `drop`; they open nothing that the group refuses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub allow: Vec<String>,
    /// Marks to find it by, at most 64. A key is 1 to 63 of `A-Z`, `a-z`, `0-9`, `.`, `_`, `/`, `-`, a letter or digit
    /// first; a value at most 256 bytes without control characters.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Remove it this many milliseconds after its creation, 1 to 31536000000 (a year).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ttl_ms: Option<u64>,
    /// Remove it once no stream (exec, shell, copy, forward) was open for this many milliseconds since
    /// it was ready, 1 to 31536000000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
    /// Answer only when exec would work.
    #[serde(default)]
    pub wait: bool,
    /// With `wait`: give up after this many milliseconds and delete the VM. Default 120000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_ms: Option<u64>,
}

/// By hand: a first-boot script may hold secrets, which must not reach a log.
impl std::fmt::Debug for CreateVm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateVm")
            .field("group", &self.group)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

/// One microVM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Vm {
    /// Name, unique on this daemon.
    pub name: String,
    /// Group.
    pub group: String,
    /// State.
    pub state: VmState,
    /// Why it is in this state, when that needs a reason.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Network mode.
    pub mode: String,
    /// Address of the guest.
    pub address: Ipv4Addr,
    /// Its gateway.
    pub gateway: Ipv4Addr,
    /// Virtual CPUs.
    pub vcpu: u8,
    /// Memory in MiB.
    pub ram_mb: u32,
    /// Image.
    pub image: String,
    /// Process id of the VMM, while there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pid: Option<u32>,
    /// Creation time, milliseconds since the epoch.
    pub created_ms: u64,
    /// Milliseconds from the request to "exec works".
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ready_after_ms: Option<u64>,
    /// Exit status of the first-boot script, once it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub userdata_exit: Option<i32>,
    /// Its marks.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// It is removed at this time, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expires_ms: Option<u64>,
    /// It is removed after being idle for this many milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_ms: Option<u64>,
}

/// Why a VM was removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[non_exhaustive]
pub enum Removal {
    /// Somebody asked for it.
    Deleted,
    /// Its time to live was over.
    Ttl,
    /// It was idle for too long.
    Idle,
    /// Whoever had it made did not wait until it was ready, or it did not become ready in time.
    Abandoned,
    /// The daemon was stopped.
    Shutdown,
    /// A VM of an earlier run that could not be taken over, or a defect; the daemon's log has more.
    Lost,
}

impl std::fmt::Display for Removal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Deleted => "deleted",
            Self::Ttl => "ttl",
            Self::Idle => "idle",
            Self::Abandoned => "abandoned",
            Self::Shutdown => "shutdown",
            Self::Lost => "lost",
        })
    }
}

/// State of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VmState {
    /// Slot, disk and VMM are being made.
    Creating,
    /// The guest boots; its agent has not answered yet.
    Booting,
    /// Exec works.
    Running,
    /// Its processors are halted, its memory stays; resuming it lets it run on.
    Paused,
    /// It is being stopped and removed.
    Stopping,
    /// The VMM ended without being asked, or the start failed; `reason` says why.
    Failed,
}

impl std::fmt::Display for VmState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Creating => "creating",
            Self::Booting => "booting",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopping => "stopping",
            Self::Failed => "failed",
        })
    }
}
