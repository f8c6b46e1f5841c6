//! The real parts: slots of `enisle-net`, overlays of `enisle-image`, machines of `enisle-vmm`.
//!
//! Owns: translating a VM's plan into their words. Refuses: blocking the runtime; what blocks runs
//! on a blocking thread to its end, so a part is whole or not there.

use super::mode::Modes;
use super::network::Network;
use super::{Machine, PartError, Parts, SlotView, files};
use crate::survivors::KILL_LIMIT;
use crate::vm::plan::VmPlan;
use enisle_guest_proto::AGENT_PORT;
use enisle_image::ImageStore;
use enisle_net::plan::Range;
use enisle_vmm::{
    AdoptSpec, BoxFuture, CgroupSpec, Console, ConsoleSpec, Disk, DiskFormat, Exit, Ids, MachineSpec, Nic,
    Survivor, Vmm,
};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::net::{UnixListener, UnixStream};

/// Names of interfaces stay those of the kernel: the agent looks for the only one.
const CMDLINE: &str = "net.ifnames=0";
/// Threads and processes of one VM: QEMU wants some 20, its helpers a few, and one a virtual CPU.
const BASE_PIDS: u32 = 64;

/// Makes and removes real parts.
pub(crate) struct RealParts {
    pub(crate) scope: String,
    pub(crate) network: Arc<Network>,
    pub(crate) modes: Arc<Modes>,
    pub(crate) vmm: Arc<dyn Vmm>,
    pub(crate) images: ImageStore,
    pub(crate) kernel: PathBuf,
    pub(crate) initramfs: PathBuf,
    /// Living VMs of an earlier run, by name, until they are adopted.
    pub(crate) survivors: Mutex<BTreeMap<String, Survivor>>,
}

/// Runs what blocks, to its end.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, PartError> + Send + 'static,
) -> Result<T, PartError> {
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.unwrap_or(Err(PartError::Panicked(what)))
}

impl RealParts {
    fn spec(&self, plan: &VmPlan, (nic, netns): (Nic, OwnedFd), base: PathBuf) -> MachineSpec {
        let uid = plan.uid();
        let row = &plan.row;
        MachineSpec {
            name: row.name.clone(),
            run_dir: plan.run_dir.clone(),
            vcpu: row.vcpu,
            ram_mb: row.ram_mib,
            kernel: self.kernel.clone(),
            initramfs: self.initramfs.clone(),
            cmdline_extra: CMDLINE.to_owned(),
            disks: vec![Disk {
                path: plan.disk(),
                backing: Some(base),
                format: DiskFormat::Qcow2,
                read_only: false,
            }],
            nic: Some(nic),
            netns: Some(netns),
            user: Ids { uid, gid: uid },
            cgroup: CgroupSpec {
                scope: self.scope.clone(),
                name: row.name.clone(),
                memory_max: Some((u64::from(row.ram_mib) << 20) + self.vmm.memory_overhead()),
                // One more than it has: its device threads must not starve its processors.
                cpu_milli: Some((u32::from(row.vcpu) + 1) * 1000),
                pids_max: Some(BASE_PIDS + u32::from(row.vcpu)),
            },
            console: ConsoleSpec::at(plan.console_log()),
        }
    }

    async fn start(&self, plan: &VmPlan) -> Result<Arc<dyn Machine>, PartError> {
        let nic = self.modes.of(plan).nic(plan)?;
        let base = self.images.image(&plan.row.image).map_err(image)?.path;
        let machine = self.vmm.launch(self.spec(plan, nic, base)).await.map_err(vmm)?;
        Ok(Arc::new(RealMachine(machine)))
    }
}

impl RealParts {
    fn survivors(&self) -> MutexGuard<'_, BTreeMap<String, Survivor>> {
        self.survivors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn take_over_slot(&self, plan: &Arc<VmPlan>) -> Result<(), PartError> {
        let netns = {
            let survivors = self.survivors();
            let survivor = survivors.get(plan.name()).ok_or(PartError::NoSlot(plan.block()))?;
            survivor.netns().try_clone_to_owned().map_err(PartError::io("duplicate", "a namespace"))?
        };
        plan.set_guest_net(self.modes.of(plan).adopt(plan, netns).await?);
        Ok(())
    }

    async fn take_over(&self, plan: &VmPlan) -> Result<Arc<dyn Machine>, PartError> {
        let survivor = self.survivors().remove(plan.name()).ok_or(PartError::NoSlot(plan.block()))?;
        let uid = plan.uid();
        let spec = AdoptSpec {
            name: plan.name().to_owned(),
            run_dir: plan.run_dir.clone(),
            user: Ids { uid, gid: uid },
            console: ConsoleSpec::at(plan.console_log()),
            survivor,
        };
        Ok(Arc::new(RealMachine(self.vmm.adopt(spec).await.map_err(vmm)?)))
    }
}

fn vmm(error: enisle_vmm::VmmError) -> PartError {
    PartError::Vmm(Box::new(error))
}

fn image(error: enisle_image::ImageError) -> PartError {
    PartError::Image(Box::new(error))
}

impl Parts for RealParts {
    fn make_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(async {
            plan.set_guest_net(self.modes.of(plan).make(plan).await?);
            Ok(())
        })
    }

    fn remove_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        self.modes.of(plan).remove(plan)
    }

    fn set_ranges(&self, ranges: &[Range]) -> Result<(), PartError> {
        self.network.set_ranges(ranges)
    }

    fn freed(&self) {
        self.network.nudge();
    }

    fn view_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<SlotView, PartError>> {
        let (modes, plan) = (Arc::clone(&self.modes), Arc::clone(plan));
        Box::pin(blocking("looking at a slot", move || modes.of(&plan).view(&plan)))
    }

    fn make_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<UnixListener, PartError>> {
        // Microseconds, and binding needs the runtime's thread.
        Box::pin(async move {
            files::make_dir(&plan.home)?;
            files::make_run_dir(&plan.run_dir, &plan.boot_socket(), plan.uid())
        })
    }

    fn remove_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        let dir = plan.run_dir.clone();
        Box::pin(blocking("removing a directory", move || files::remove_dir(&dir)))
    }

    fn make_disk<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        let (images, plan) = (self.images.clone(), Arc::clone(plan));
        Box::pin(blocking("making a disk", move || {
            // As for the channel, which is made at the same time.
            files::make_dir(&plan.home)?;
            let base = images.image(&plan.row.image).map_err(image)?;
            // A disk that is smaller than its image would cut it off.
            let size = plan.row.disk_bytes.max(base.virtual_size);
            enisle_image::create_overlay(&base, &plan.disk(), size).map_err(image)
        }))
    }

    fn remove_disk<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        let disk = plan.disk();
        Box::pin(blocking("removing a disk", move || files::remove_file(&disk)))
    }

    fn remove_home<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        let dir = plan.home.clone();
        Box::pin(blocking("removing a directory", move || files::remove_dir(&dir)))
    }

    fn adopt_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(self.take_over_slot(plan))
    }

    fn adopt_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<UnixListener, PartError>> {
        // As for `make_channel`.
        Box::pin(async move { files::rebind(&plan.boot_socket(), plan.uid()) })
    }

    fn adopt<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<Arc<dyn Machine>, PartError>> {
        Box::pin(self.take_over(plan))
    }

    fn kill_survivor<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        // Its descriptors are held no longer than it lives.
        drop(self.survivors().remove(plan.name()));
        Box::pin(async move {
            let killed = enisle_vmm::kill_group(&self.scope, plan.name(), KILL_LIMIT).await;
            killed.map(drop).map_err(vmm)
        })
    }

    fn launch<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<Arc<dyn Machine>, PartError>> {
        Box::pin(self.start(plan))
    }
}

/// A machine of `enisle-vmm`.
struct RealMachine(enisle_vmm::Machine);

impl Machine for RealMachine {
    fn pid(&self) -> u32 {
        self.0.pid()
    }

    fn start(&self) -> BoxFuture<'_, Result<(), PartError>> {
        Box::pin(async { self.0.start().await.map_err(vmm) })
    }

    fn pause(&self) -> Result<(), PartError> {
        self.0.pause().map_err(vmm)
    }

    fn resume(&self) -> Result<(), PartError> {
        self.0.resume().map_err(vmm)
    }

    fn is_paused(&self) -> bool {
        self.0.is_paused()
    }

    fn power_button(&self) -> BoxFuture<'_, Result<(), PartError>> {
        Box::pin(async { self.0.power_button().await.map_err(vmm) })
    }

    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, PartError>> {
        Box::pin(async { self.0.connect_vsock(AGENT_PORT).await.map_err(vmm) })
    }

    fn kill(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.0.kill())
    }

    fn wait(&self) -> BoxFuture<'_, Exit> {
        Box::pin(self.0.wait())
    }

    fn vmm_log(&self) -> String {
        self.0.vmm_log()
    }

    fn console(&self) -> Option<Console> {
        Some(self.0.console().clone())
    }
}
