//! What happened: the life of VMs and changes of policies, numbered.

use crate::Removal;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Event {
    /// Its number. Numbers grow, also over restarts of the daemon, and within one run without gaps: a
    /// reader that goes on with `since` set to the last number it saw misses nothing unnoticed.
    pub seq: u64,
    /// When, milliseconds since the epoch.
    pub time_ms: u64,
    /// What.
    #[serde(flatten)]
    pub what: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
#[non_exhaustive]
pub enum EventKind {
    /// A VM has its name and address, and is being made.
    VmCreated {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
        /// Address of the guest.
        address: Ipv4Addr,
    },
    /// Exec works.
    VmReady {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
        /// Milliseconds from the request.
        after_ms: u64,
    },
    /// A VM of an earlier run of the daemon was taken over, and runs.
    VmAdopted {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
    },
    /// The guest's processors were halted because somebody asked for it.
    VmPaused {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
    },
    /// A paused guest runs on.
    VmResumed {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
    },
    /// Its guest ended: by itself, or because it was asked to.
    VmStopped {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
        /// How.
        reason: String,
    },
    /// Its VMM ended without being asked, or its guest's kernel did.
    VmCrashed {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
        /// How.
        reason: String,
    },
    /// It could not be started, or something of it could not be removed.
    VmFailed {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
        /// Why.
        reason: String,
    },
    /// Nothing of it is left; name and address are free.
    VmRemoved {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
        /// Why.
        removal: Removal,
    },
    /// Other lists are in force.
    PolicyChanged {
        /// The VM whose own lists changed; absent when it was its group's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        vm: Option<String>,
        /// The group.
        group: String,
        /// The new lists' revision.
        revision: String,
    },
    /// A packet from or to a VM's guest was refused. Of one VM at most some in a second are told; the others are
    /// counted.
    FlowRefused {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
        /// `out`: the guest sent it. `in`: it was for the guest.
        direction: FlowDirection,
        /// `tcp`, `udp`, `icmp`, or the protocol's number.
        protocol: String,
        /// As the packet says.
        source: Ipv4Addr,
        /// Of TCP and UDP; not of a fragment other than the first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        source_port: Option<u16>,
        /// As the packet says.
        destination: Ipv4Addr,
        /// Of TCP and UDP; not of a fragment other than the first.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        destination_port: Option<u16>,
        /// Where the rule is written, or which part of the judge refused: as in `refused` of a VM's policy.
        origin: String,
        /// The rule as written, or what that part refuses.
        rule: String,
        /// Refused packets of this VM before this one that were only counted, and not told of yet.
        not_reported: u64,
    },
    /// Refused packets that were only counted, when no later refusal tells how many.
    FlowsNotReported {
        /// The VM.
        vm: String,
        /// Its group.
        group: String,
        /// How many.
        count: u64,
    },
    /// The file was read anew, and holds.
    Reloaded {
        /// Groups that are new.
        added: Vec<String>,
        /// Groups that are not in it any more. Their VMs run on until they are deleted.
        removed: Vec<String>,
        /// Groups with other keys; these hold for new VMs.
        changed: Vec<String>,
        /// Groups with other lists; these hold for running VMs too.
        policies: Vec<String>,
        /// What follows, for people.
        notes: Vec<String>,
    },
    /// The file was read anew and refused. Nothing has changed.
    ReloadFailed {
        /// Why, with the place in the file.
        reason: String,
    },
    /// Events before this place are not kept any more. `seq` is the number of the last of them.
    Dropped {
        /// How many of this run of the daemon the reader missed.
        count: u64,
        /// The reader's last number is of another run of the daemon, whose later events are unknown.
        other_run: bool,
    },
}

/// Which events a reader wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum EventFilter {
    /// Lives of VMs and changes of policies.
    Lifecycle,
    /// Refused flows.
    Refused,
}

impl std::fmt::Display for EventFilter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Lifecycle => "lifecycle",
            Self::Refused => "refused",
        })
    }
}

/// Which way a packet went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum FlowDirection {
    /// The guest sent it.
    Out,
    /// It was for the guest.
    In,
}

impl EventKind {
    /// The group it is about, where it is about one.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        match self {
            Self::VmCreated { group, .. }
            | Self::VmReady { group, .. }
            | Self::VmAdopted { group, .. }
            | Self::VmPaused { group, .. }
            | Self::VmResumed { group, .. }
            | Self::VmStopped { group, .. }
            | Self::VmCrashed { group, .. }
            | Self::VmFailed { group, .. }
            | Self::VmRemoved { group, .. }
            | Self::FlowRefused { group, .. }
            | Self::FlowsNotReported { group, .. }
            | Self::PolicyChanged { group, .. } => Some(group),
            Self::Reloaded { .. } | Self::ReloadFailed { .. } | Self::Dropped { .. } => None,
        }
    }

    /// Whether it is about the daemon and every group of its file.
    #[must_use]
    pub fn is_of_the_file(&self) -> bool {
        matches!(self, Self::Reloaded { .. } | Self::ReloadFailed { .. })
    }

    /// Whom it is for; a note of what was dropped is for everybody.
    #[must_use]
    pub fn filter(&self) -> Option<EventFilter> {
        match self {
            Self::Dropped { .. } => None,
            Self::FlowRefused { .. } | Self::FlowsNotReported { .. } => Some(EventFilter::Refused),
            _ => Some(EventFilter::Lifecycle),
        }
    }

    /// Its `type`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::VmCreated { .. } => "vm_created",
            Self::VmReady { .. } => "vm_ready",
            Self::VmAdopted { .. } => "vm_adopted",
            Self::VmPaused { .. } => "vm_paused",
            Self::VmResumed { .. } => "vm_resumed",
            Self::VmStopped { .. } => "vm_stopped",
            Self::VmCrashed { .. } => "vm_crashed",
            Self::VmFailed { .. } => "vm_failed",
            Self::VmRemoved { .. } => "vm_removed",
            Self::PolicyChanged { .. } => "policy_changed",
            Self::FlowRefused { .. } => "flow_refused",
            Self::FlowsNotReported { .. } => "flows_not_reported",
            Self::Reloaded { .. } => "reloaded",
            Self::ReloadFailed { .. } => "reload_failed",
            Self::Dropped { .. } => "dropped",
        }
    }

    /// The VM it is about, where there is one.
    #[must_use]
    pub fn vm(&self) -> Option<&str> {
        match self {
            Self::VmCreated { vm, .. }
            | Self::VmReady { vm, .. }
            | Self::VmAdopted { vm, .. }
            | Self::VmPaused { vm, .. }
            | Self::VmResumed { vm, .. }
            | Self::VmStopped { vm, .. }
            | Self::VmCrashed { vm, .. }
            | Self::VmFailed { vm, .. }
            | Self::VmRemoved { vm, .. }
            | Self::FlowRefused { vm, .. }
            | Self::FlowsNotReported { vm, .. } => Some(vm),
            Self::PolicyChanged { vm, .. } => vm.as_deref(),
            Self::Reloaded { .. } | Self::ReloadFailed { .. } | Self::Dropped { .. } => None,
        }
    }
}
