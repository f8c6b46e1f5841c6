//! Isolated networking for microVMs: slots, policy, the judge.
//!
//! Owns: the contract of `docs/networking.md`: an isolated microVM reaches what its policy allows
//! and nothing else. Refuses: VMs, processes, DNS, configuration files; and any process of `ip`,
//! `nft`, `iptables` or `sysctl`: everything is done by system calls in `kernel`.
//!
//! `plan` and `policy` are pure. [`Engine`] makes [`Slot`]s; both are synchronous and block for
//! milliseconds.

mod bridge;
mod engine;
mod error;
#[cfg(test)]
mod faults;
mod foreign;
mod host_table;
mod join;
mod judge;
mod kernel;
mod limits;
#[doc(hidden)]
pub mod measure;
mod netlink;
mod nft;
mod pace;
pub mod plan;
mod policies;
pub mod policy;
mod reports;
mod scope;
mod slot;
mod slot_table;
mod surroundings;
pub mod survey;
mod wires;

pub use bridge::Bridge;
pub use engine::{
    Decider, Engine, EngineConfig, HostFact, Judgement, Measured, NetLeftovers, Question, Refused, Refuser,
    leftovers, reclaim,
};
pub use error::{NetError, Step, StepError};
pub use judge::{SlotStats, VERDICTS};
pub use kernel::KernelError;
pub use kernel::monitor::{Change, Monitor};
pub use kernel::packet::{PacketSocket, Passed};
pub use limits::Limits;
pub use netlink::conntrack::LiveFlow;
pub use reports::{Bell, RefusedFlow, Reports, Tenant, Woken};
pub use scope::{Scope, ScopeError};
pub use slot::{Slot, SlotSpec, WarmSlot, WarmSpec};
pub use wires::Wires;

/// Entering a network namespace on a thread that is thrown away afterwards.
pub mod netns {
    pub use crate::kernel::netns::{current, run_in};
}
