//! Drives one VMM process for one microVM, from plain data.
//!
//! Owns: starting a VMM confined (own user, namespace, control group, seccomp, descriptors),
//! talking to it, keeping its console, noticing its end at once, and removing all of it.
//! Refuses: to know networks, guest protocols, policies or the API. A network interface
//! arrives as an open tap queue, a namespace as a descriptor.
//!
//! A microVM outlives the daemon that launched it: its processes hold all they need, and listen
//! for the next one. Only dropping a [`Machine`] while the runtime lives ends it.
//!
//! Entry points: [`detect`] chooses a back end, [`Vmm::launch`] makes a [`Machine`],
//! [`Survivor::find`] and [`Vmm::adopt`] take over one of a daemon that died,
//! [`kill_leftovers`] sweeps what else that daemon has left running.

mod cgroup;
mod confine;
mod console;
mod detect;
mod error;
mod estate;
mod halt;
mod machine;
mod pace;
mod probe;
mod program;
mod qemu;
mod spec;
mod supervise;
mod survivor;
mod vsock;

use std::future::Future;
use std::pin::Pin;

pub use cgroup::{Leftover, kill_group, kill_leftovers, kill_leftovers_except, leftovers};
pub use console::{Attached, Console, ConsoleChunk, ConsoleStream, NotTyped, Seat, Viewer};
pub use detect::{AcceleratorChoice, DetectOptions, Detected, detect};
pub use error::{Cause, Said, Step, VmmError};
pub use machine::{Exit, ExitReason, Machine};
pub use probe::{ProbeSpec, probe};
pub use qemu::Qemu;
pub use spec::{AdoptSpec, CgroupSpec, ConsoleSpec, Disk, DiskFormat, Ids, MachineSpec, Nic};
pub use survivor::{Survivor, start_ticks};

/// A boxed future that may move between threads.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// How guest code is executed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Accelerator {
    /// The processor runs it, through `/dev/kvm`.
    Kvm,
    /// It is translated in software: works anywhere, several times slower.
    Tcg,
}

impl std::fmt::Display for Accelerator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kvm => "kvm",
            Self::Tcg => "tcg",
        })
    }
}

/// A back end: one kind of VMM, found and checked, able to launch microVMs.
pub trait Vmm: Send + Sync {
    /// What users call it: `qemu`.
    fn name(&self) -> &'static str;

    /// Its version, as it says itself.
    fn version(&self) -> &str;

    /// How its guests are executed.
    fn accelerator(&self) -> Accelerator;

    /// Bytes the VM's processes need beside the guest's memory: add them to
    /// [`CgroupSpec::memory_max`].
    fn memory_overhead(&self) -> u64;

    /// Starts a microVM's processes and stops short of its first instruction:
    /// [`Machine::start`] lets the guest run.
    ///
    /// Either everything is there when the future resolves, or nothing is left. A dropped
    /// future undoes what was done as well. Must be called in a tokio runtime.
    ///
    /// # Errors
    /// [`VmmError::Launch`] with the step that failed and what the processes said.
    fn launch(&self, spec: MachineSpec) -> BoxFuture<'static, Result<Machine, VmmError>>;

    /// Takes over a running microVM that this kind of VMM was launched for by another daemon,
    /// which is dead. The guest does not notice. Must be called in a tokio runtime.
    ///
    /// How such a VM ends is known from what its VMM reports; exit code and signal are not, as
    /// the kernel tells them to parents only.
    ///
    /// # Errors
    /// [`VmmError::Adopt`]; the VM is as it was then, and [`kill_group`] ends it.
    fn adopt(&self, spec: AdoptSpec) -> BoxFuture<'static, Result<Machine, VmmError>>;
}
