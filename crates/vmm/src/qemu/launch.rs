//! Owns the launch of one microVM with QEMU: the order of its steps, and their undoing.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::{Duration, Instant};

use tokio::sync::watch;
use tokio::time::timeout;

use super::command::{NicFds, Plan, render};
use super::files::{self, Handed, Opened};
use super::qmp::Qmp;
use super::sockets::{CONSOLE_SOCKET, CONTROL_SOCKET, prepare_run_dir, refuse_foreign, rendezvous};
use super::{Qemu, Shared, TCG_CACHE_MB};
use crate::Accelerator;
use crate::cgroup::Cgroup;
use crate::confine::{Confinement, Program, spawn};
use crate::console::Console;
use crate::error::{Cause, Step, VmmError};
use crate::estate::{Estate, Process};
use crate::halt::Halt;
use crate::machine::{Inner, Machine};
use crate::spec::{Ids, MachineSpec};
use crate::supervise::{GuestReport, Watched, early_end};
use crate::vsock::{self, Appearance, DEVICE_SOCKET, HOST_SOCKET};

/// From QEMU's start to its greeting: building the machine and mapping the guest's memory,
/// on a loaded machine.
const GREETING_LIMIT: Duration = Duration::from_secs(30);
/// Linux cuts the rest off (`COMMAND_LINE_SIZE` on x86, with its NUL).
const MAX_CMDLINE: usize = 2047;

/// A launch in progress: what exists so far, and the step being taken.
struct Launch {
    qemu: Qemu,
    step: Step,
    begun: Instant,
    estate: Estate,
}

/// What a successful launch leaves to be watched and used.
pub(super) struct Built {
    pub(super) pid: u32,
    pub(super) console: Console,
    pub(super) control: Qmp,
    pub(super) halt: Halt,
    pub(super) report: watch::Receiver<GuestReport>,
}

/// Launches, or undoes all of it and says which step failed.
pub(super) async fn launch(qemu: Qemu, mut spec: MachineSpec) -> Result<Machine, VmmError> {
    let mut launch = Launch { qemu, step: Step::Validate, begun: Instant::now(), estate: Estate::default() };
    match launch.build(&mut spec).await {
        Ok(built) => {
            let accelerator = launch.qemu.shared.accelerator;
            Ok(hand_over(launch.estate, built, accelerator, (spec.name, spec.user, &spec.run_dir)))
        }
        Err(source) => {
            for left in launch.estate.dismantle().await {
                tracing::warn!(vm = %spec.name, left, "something of a failed launch stays");
            }
            Err(VmmError::Launch { said: launch.estate.said(), vm: spec.name, step: launch.step, source })
        }
    }
}

impl Launch {
    async fn build(&mut self, spec: &mut MachineSpec) -> Result<Built, Cause> {
        spec.validate()?;
        let cmdline = cmdline(&self.qemu.shared, spec)?;
        let mut handed = Handed::default();

        self.go_on(Step::Sockets);
        let run_dir = spec.run_dir.clone();
        prepare_run_dir(&run_dir, spec.user)?;
        let (for_qemu, control) = rendezvous(&mut self.estate, &run_dir, CONTROL_SOCKET).await?;
        let control_fd = handed.keep(for_qemu);
        let (for_qemu, output) = rendezvous(&mut self.estate, &run_dir, CONSOLE_SOCKET).await?;
        let console_fd = handed.keep(for_qemu);

        self.go_on(Step::Files);
        let Opened { kernel, initramfs, disks } = files::open(spec, &mut handed)?;
        let nic = spec.nic.take().map(|nic| NicFds { mac: nic.mac, mtu: nic.mtu, tap: handed.keep(nic.tap) });

        self.go_on(Step::Console);
        let console = Console::open(&spec.console).await?;

        self.go_on(Step::Cgroup);
        let confinement = self.confine(spec).await?;

        self.go_on(Step::VsockDevice);
        let vhost_vsock = handed.keep(self.start_vsock_device(spec, &confinement).await?);

        self.go_on(Step::Spawn);
        let plan = Plan {
            name: spec.name.clone(),
            accelerator: self.qemu.shared.accelerator,
            tcg_cache_mb: TCG_CACHE_MB,
            vcpu: spec.vcpu,
            ram_mb: spec.ram_mb,
            cmdline,
            kernel,
            initramfs,
            disks,
            nic,
            control: control_fd,
            console: console_fd,
            vhost_vsock,
        };
        let pid = self.start_qemu(&plan, handed, &confinement)?;
        console.pump(output);

        self.go_on(Step::Control);
        let (control, report) = self.greet(control).await?;
        Ok(Built { pid, console, control, halt: Halt::of_child(pid)?, report })
    }

    /// What follows is of this step.
    fn go_on(&mut self, step: Step) {
        tracing::debug!(done = %self.step, since_the_call = ?self.begun.elapsed(), "launch");
        self.step = step;
    }

    async fn confine(&mut self, spec: &mut MachineSpec) -> Result<Confinement, Cause> {
        let wanted = spec.cgroup.clone();
        let made = tokio::task::spawn_blocking(move || Cgroup::create(&wanted)).await;
        let made = made.map_err(|lost| Cause::Unsupported(format!("a task was lost: {lost}")))?;
        let cgroup = self.estate.cgroup.insert(made?);
        Ok(Confinement {
            user: spec.user,
            device_group: self.qemu.shared.device_group,
            netns: spec.netns.take(),
            cgroups: cgroup.doors()?,
            run_dir: spec.run_dir.clone(),
        })
    }

    /// Starts the device and connects to it on the VMM's behalf.
    async fn start_vsock_device(
        &mut self,
        spec: &MachineSpec,
        confinement: &Confinement,
    ) -> Result<OwnedFd, Cause> {
        for name in [DEVICE_SOCKET, HOST_SOCKET] {
            let path = spec.run_dir.join(name);
            refuse_foreign(&path)?;
            self.estate.adopt_socket(path)?;
        }
        let appearance = Appearance::watch(&spec.run_dir)?;
        let program = vsock::program(&self.qemu.shared.vsock_device);
        let name = program.name;
        let spawned = spawn(program, confinement)?;
        self.estate.vsock = Some(Process::new(name, spawned)?);
        let stream = tokio::select! {
            connected = appearance.connect(&spec.run_dir, spec.user.uid) => connected?,
            cause = early_end(&mut self.estate) => return Err(cause),
        };
        let stream = stream
            .into_std()
            .map_err(|error| Cause::io("hand over", spec.run_dir.join(DEVICE_SOCKET), error))?;
        Ok(stream.into())
    }

    fn start_qemu(&mut self, plan: &Plan, handed: Handed, confinement: &Confinement) -> Result<u32, Cause> {
        let program = Program {
            name: "qemu-system-x86_64",
            path: self.qemu.shared.binary.clone(),
            args: render(plan),
            fds: handed.fds,
            open_files: 1024,
            file_size: None,
        };
        let name = program.name;
        let spawned = spawn(program, confinement)?;
        let process = self.estate.vmm.insert(Process::new(name, spawned)?);
        Ok(process.pid)
    }

    async fn greet(
        &mut self,
        control: tokio::net::UnixStream,
    ) -> Result<(Qmp, watch::Receiver<GuestReport>), Cause> {
        let greeting = timeout(GREETING_LIMIT, Qmp::open(control));
        let greeted = tokio::select! {
            greeted = greeting => greeted,
            cause = early_end(&mut self.estate) => return Err(cause),
        };
        match greeted {
            // QEMU closes its connection a moment before it has ended: its last words and
            // its status say more than that.
            Ok(Err(Cause::Gone | Cause::Protocol(_))) => Err(early_end(&mut self.estate).await),
            Ok(done) => done,
            Err(_) => Err(Cause::TimedOut { what: "QEMU's greeting", limit: GREETING_LIMIT }),
        }
    }
}

/// From here on the supervisor owns what was made.
pub(super) fn hand_over(
    estate: Estate,
    built: Built,
    accelerator: Accelerator,
    (name, user, run_dir): (String, Ids, &Path),
) -> Machine {
    let (kill, killed) = watch::channel(false);
    let (publish, exit) = watch::channel(None);
    let words = estate.words();
    let watched = Watched {
        vm: name.clone(),
        estate,
        report: built.report,
        console: built.console.clone(),
        kill: killed,
    };
    tokio::spawn(watched.run(publish));
    Machine::new(Inner {
        name,
        accelerator,
        pid: built.pid,
        uid: user.uid,
        vsock_path: run_dir.join(HOST_SOCKET),
        console: built.console,
        control: Box::new(built.control),
        halt: built.halt,
        words,
        kill,
        exit,
    })
}

/// What every guest is told, and then what this one is.
fn cmdline(qemu: &Shared, spec: &MachineSpec) -> Result<String, Cause> {
    // A reset by triple fault is the one that ends this machine in QEMU at once; a panic
    // resets at once as well.
    let mut cmdline = String::from("console=ttyS0 reboot=t panic=-1");
    if qemu.accelerator == Accelerator::Tcg {
        // On a busy host translated code loses timer interrupts. The kernel would then not
        // find its timer, or take the host's steady counter for the unsteady one.
        cmdline.push_str(" no_timer_check tsc=reliable");
        if let Some(khz) = qemu.tsc_khz {
            cmdline.push_str(&format!(" tsc_early_khz={khz}"));
        }
    }
    if !spec.cmdline_extra.is_empty() {
        cmdline.push(' ');
        cmdline.push_str(&spec.cmdline_extra);
    }
    if cmdline.len() > MAX_CMDLINE {
        return Err(Cause::invalid(
            "cmdline_extra",
            format!("makes the kernel command line longer than {MAX_CMDLINE} bytes"),
        ));
    }
    Ok(cmdline)
}
