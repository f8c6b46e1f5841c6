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
    /// Events before this place are not kept any more. `seq` is the number of the last of them.
    Dropped {
        /// How many of this run of the daemon the reader missed.
        count: u64,
        /// The reader's last number is of another run of the daemon, whose later events are unknown.
        other_run: bool,
    },
}

impl EventKind {
    /// The group it is about, where it is about one.
    #[must_use]
    pub fn group(&self) -> Option<&str> {
        match self {
            Self::VmCreated { group, .. }
            | Self::VmReady { group, .. }
            | Self::VmAdopted { group, .. }
            | Self::VmStopped { group, .. }
            | Self::VmCrashed { group, .. }
            | Self::VmFailed { group, .. }
            | Self::VmRemoved { group, .. }
            | Self::PolicyChanged { group, .. } => Some(group),
            Self::Dropped { .. } => None,
        }
    }

    /// Its `type`.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::VmCreated { .. } => "vm_created",
            Self::VmReady { .. } => "vm_ready",
            Self::VmAdopted { .. } => "vm_adopted",
            Self::VmStopped { .. } => "vm_stopped",
            Self::VmCrashed { .. } => "vm_crashed",
            Self::VmFailed { .. } => "vm_failed",
            Self::VmRemoved { .. } => "vm_removed",
            Self::PolicyChanged { .. } => "policy_changed",
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
            | Self::VmStopped { vm, .. }
            | Self::VmCrashed { vm, .. }
            | Self::VmFailed { vm, .. }
            | Self::VmRemoved { vm, .. } => Some(vm),
            Self::PolicyChanged { vm, .. } => vm.as_deref(),
            Self::Dropped { .. } => None,
        }
    }
}
