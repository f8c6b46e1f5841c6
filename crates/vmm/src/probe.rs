//! Owns the probe: whether a back end can really boot a guest here, found out by booting one.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::timeout;

use crate::console::{ConsoleChunk, ConsoleStream};
use crate::error::{Cause, VmmError};
use crate::machine::Machine;
use crate::spec::{CgroupSpec, ConsoleSpec, Ids, MachineSpec};
use crate::{ExitReason, Vmm};

/// What the agent prints when the kernel command line says `enisle.probe`.
const PROBE_OK: &[u8] = b"ENISLE-PROBE-OK";
const RAM_MB: u32 = 256;

/// What a probe guest is made of.
#[derive(Debug, Clone)]
pub struct ProbeSpec {
    /// The guest kernel.
    pub kernel: PathBuf,
    /// The initramfs with our agent.
    pub initramfs: PathBuf,
    /// A directory of root's in which the probe may make its own.
    pub dir: PathBuf,
    /// Whom the probe's processes run as.
    pub user: Ids,
    /// The daemon's scope, for the probe's control group.
    pub scope: String,
    /// How long the guest may take until it has powered itself off.
    pub limit: Duration,
}

/// Boots one guest with `vmm` and waits until it has said that it is up and has gone again.
/// Leaves nothing.
///
/// # Errors
/// When the guest cannot be launched, says something else, or takes too long; then the
/// message has the end of what it said.
pub async fn probe(vmm: &dyn Vmm, spec: &ProbeSpec) -> Result<(), VmmError> {
    let run_dir = spec.dir.join("probe");
    let failed = |source| VmmError::Launch {
        vm: "probe".into(),
        step: crate::Step::Sockets,
        said: Default::default(),
        source,
    };
    remove_dir(&run_dir).map_err(failed)?;
    std::fs::create_dir_all(&run_dir).map_err(|error| failed(Cause::io("make", &run_dir, error)))?;
    let probed = boot(vmm, spec, run_dir.clone()).await;
    remove_dir(&run_dir).map_err(failed)?;
    probed
}

fn remove_dir(dir: &std::path::Path) -> Result<(), Cause> {
    match std::fs::remove_dir_all(dir) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Cause::io("remove", dir, error)),
        _ => Ok(()),
    }
}

async fn boot(vmm: &dyn Vmm, spec: &ProbeSpec, run_dir: PathBuf) -> Result<(), VmmError> {
    let machine = vmm
        .launch(MachineSpec {
            name: "probe".into(),
            console: ConsoleSpec::at(run_dir.join("console.log")),
            run_dir,
            vcpu: 1,
            ram_mb: RAM_MB,
            kernel: spec.kernel.clone(),
            initramfs: spec.initramfs.clone(),
            cmdline_extra: "enisle.probe".into(),
            disks: Vec::new(),
            nic: None,
            netns: None,
            user: spec.user,
            cgroup: CgroupSpec {
                scope: spec.scope.clone(),
                name: "probe".into(),
                memory_max: Some((u64::from(RAM_MB) << 20) + vmm.memory_overhead()),
                cpu_milli: None,
                pids_max: Some(64),
            },
        })
        .await?;
    let watched = timeout(spec.limit, watch(&machine)).await;
    // Also when it has ended by itself: this waits until nothing of it is left.
    machine.kill().await;
    watched
        .unwrap_or(Err(Cause::TimedOut { what: "the probe guest", limit: spec.limit }))
        .map_err(|source| VmmError::Control { vm: "probe".into(), action: "boot a guest", source })
}

/// Lets the guest run, and compares what it says and how it ends.
async fn watch(machine: &Machine) -> Result<(), Cause> {
    let console = machine.console();
    let read = |error| Cause::io("read", console.log_path(), error);
    let (mut said, mut stream) = console.follow().await.map_err(read)?;
    machine.start().await.map_err(|failed| Cause::Unsupported(failed.to_string()))?;
    read_to_end(&mut said, &mut stream).await;
    let exit = machine.wait().await;
    let ok = said.windows(PROBE_OK.len()).any(|window| window == PROBE_OK);
    if ok && matches!(exit.reason, ExitReason::GuestShutdown | ExitReason::GuestReset) {
        return Ok(());
    }
    let tail = String::from_utf8_lossy(&said[said.len().saturating_sub(200)..]).into_owned();
    Err(Cause::Unsupported(format!(
        "the probe guest did not come up ({}); its console ended with {tail:?}{}",
        exit.detail,
        crate::Said(exit.stderr),
    )))
}

async fn read_to_end(said: &mut Vec<u8>, stream: &mut ConsoleStream) {
    while let Some(chunk) = stream.next().await {
        if let ConsoleChunk::Output(bytes) = chunk {
            said.extend_from_slice(&bytes);
        }
    }
}
