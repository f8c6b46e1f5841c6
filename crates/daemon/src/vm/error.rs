//! What can go wrong when something is asked of a VM. Owns the words; `http::problem` owns the
//! codes.

use crate::store::StoreError;
use std::time::Duration;

/// Why a VM was not made, or does not do what was asked.
#[derive(Debug, thiserror::Error)]
pub(crate) enum VmError {
    /// No VM of this name.
    #[error("there is no VM named {name:?}")]
    NoSuchVm {
        /// As asked.
        name: String,
    },
    /// No group of this name.
    #[error("there is no group named {name:?}; there are: {known}")]
    NoSuchGroup {
        /// As asked.
        name: String,
        /// Those that exist.
        known: String,
    },
    /// None was named and there are several, or none.
    #[error("which group? there are: {known}")]
    GroupNeeded {
        /// Those that exist.
        known: String,
    },
    /// A value is out of its range.
    #[error("`{field}` {rule}")]
    OutOfRange {
        /// The field of the request.
        field: &'static str,
        /// What it must be.
        rule: &'static str,
    },
    /// More memory than this host has.
    #[error(transparent)]
    TooLarge(#[from] super::queue::TooLarge),
    /// A label that is none.
    #[error("label {key:?}: {rule}")]
    BadLabel {
        /// Its key.
        key: String,
        /// What it must be.
        rule: &'static str,
    },
    /// An idempotency key that is none.
    #[error("Idempotency-Key must be 1 to 255 printable ASCII characters")]
    BadKey,
    /// An idempotency key of another request.
    #[error("this Idempotency-Key was used for another request, which made VM {vm}")]
    KeyReused {
        /// The VM.
        vm: String,
    },
    /// An idempotency key of a VM that is gone.
    #[error("this Idempotency-Key made VM {vm}, which is gone")]
    KeyGone {
        /// The VM.
        vm: String,
    },
    /// The store refuses.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// A test asked for it.
    #[error("VM {name} could not be started: step `{step}` of its creation failed: {fault}", step = fault.0)]
    Injected {
        /// The VM.
        name: String,
        /// The step.
        fault: crate::fault::InjectedFault,
    },
    /// Lists or a destination that are refused.
    #[error(transparent)]
    Policy(#[from] super::policy::PolicyError),
    /// The network could not be changed or read.
    #[error(transparent)]
    Network(Box<crate::parts::PartError>),
    /// There is no slot yet, or no more.
    #[error("VM {name} has no network at the moment")]
    NoNetwork {
        /// The VM.
        name: String,
    },
    /// The daemon goes down.
    #[error("the daemon is going down")]
    ShuttingDown,
    /// It failed.
    #[error("VM {name} failed: {reason}")]
    Failed {
        /// The VM.
        name: String,
        /// Why.
        reason: String,
    },
    /// It was to be started and failed, and was removed again.
    #[error("VM {name} could not be started: {reason}")]
    StartFailed {
        /// The VM.
        name: String,
        /// Why.
        reason: String,
    },
    /// It takes too long.
    #[error("VM {name} was not ready within {} s", patience.as_secs_f32())]
    NotReady {
        /// The VM.
        name: String,
        /// How long.
        patience: Duration,
    },
    /// It is paused.
    #[error("VM {name} is paused")]
    Paused {
        /// The VM.
        name: String,
    },
    /// It is not so far that it could be paused or resumed.
    #[error("VM {name} is {state}: only a VM that runs is paused, and only a paused one resumed")]
    NotRunning {
        /// The VM.
        name: String,
        /// What it is.
        state: enisle_api::VmState,
    },
    /// Its VMM did not do so.
    #[error("VM {name} could not be {done}")]
    NotHalted {
        /// The VM.
        name: String,
        /// `paused` or `resumed`.
        done: &'static str,
        /// Why.
        #[source]
        source: Box<crate::parts::PartError>,
    },
    /// It is on its way out.
    #[error("VM {name} is being stopped")]
    Stopping {
        /// The VM.
        name: String,
    },
    /// Something of it could not be removed.
    #[error("VM {name} {reason}")]
    Stuck {
        /// The VM.
        name: String,
        /// What is left and why.
        reason: String,
    },
    /// Too many streams.
    #[error("VM {name} has {} streams open, which is the limit", super::lifetime::MAX_STREAMS)]
    TooManyStreams {
        /// The VM.
        name: String,
    },
    /// Others are before this one, and none of them comes to an end.
    #[error("VM {name} has not come to this within {} s: it is still busy starting what was asked before", super::lifetime::TURN_PATIENCE.as_secs())]
    Busy {
        /// The VM.
        name: String,
    },
    /// Its network cannot be looked at.
    #[error("cannot look at the network of VM {name}")]
    Verify {
        /// The VM.
        name: String,
        /// Why.
        #[source]
        source: crate::parts::PartError,
    },
    /// The kernel gives no random numbers.
    #[error("the kernel gives no random numbers")]
    NoRandomness,
    /// Its console's log cannot be read.
    #[error("cannot read the console's log of VM {name}")]
    Log {
        /// The VM.
        name: String,
        /// The kernel's answer.
        #[source]
        source: std::io::Error,
    },
}

impl From<crate::parts::PartError> for VmError {
    fn from(error: crate::parts::PartError) -> Self {
        Self::Network(Box::new(error))
    }
}
