//! The daemon: configuration, boot, HTTP API, one owner task per VM, state.
//!
//! Owns: composition. This is the only crate in which the network engine, the VMM, images, the
//! guest's protocol and the API meet. Refuses: system calls on networks and processes (those are
//! `enisle-net`'s and `enisle-vmm`'s) and a command line (the CLI's).
//!
//! [`run`] is `enisle up`; [`gc`] is `enisle gc`; [`doctor`] is `enisle doctor`; [`config`] reads the
//! file; [`service`] is its systemd unit; [`dns`] answers what the microVMs ask; everything
//! else is inside.

mod access;
mod boot;
mod chain;
pub mod config;
pub mod dns;
pub mod doctor;
mod events;
mod fault;
pub mod gc;
mod group_file;
mod guest;
mod host;
mod http;
mod listening;
mod logging;
mod metrics;
mod options;
mod parts;
mod private_file;
mod reload;
pub mod service;
mod shutdown;
mod signals;
mod ssh;
pub mod store;
mod survivors;
mod user_file;
mod verify;
mod vm;

pub use boot::run;
pub use fault::{FaultPlan, Step, UnknownFault};
pub use options::{ExitCode, LogFormat, UpOptions, VmsPolicy};
#[doc(hidden)]
pub use verify::fuzz_sniffed;
