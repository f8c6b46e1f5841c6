//! Owns taking over a microVM whose daemon is dead: QEMU listens for the next one on the same
//! sockets, so nothing of the guest is touched.

use std::fs::File;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use rustix::fs::{FileType, Mode, OFlags};
use tokio::net::unix::pipe;
use tokio::time::timeout;

use super::launch::{Built, hand_over};
use super::qmp::Qmp;
use super::sockets::{CONSOLE_SOCKET, CONTROL_SOCKET};
use crate::Accelerator;
use crate::console::Console;
use crate::error::{Cause, OnPath, VmmError};
use crate::estate::{Estate, Process};
use crate::halt::Halt;
use crate::machine::Machine;
use crate::spec::AdoptSpec;
use crate::vsock::{self, DEVICE_SOCKET, HOST_SOCKET};

/// QEMU greets a new client once it has seen the old one go; on a loaded machine.
const GREETING_LIMIT: Duration = Duration::from_secs(30);

/// Takes over, or leaves everything as it was.
pub(super) async fn adopt(accelerator: Accelerator, spec: AdoptSpec) -> Result<Machine, VmmError> {
    let vm = spec.name.clone();
    take_over(accelerator, spec).await.map_err(|source| VmmError::Adopt { vm, source })
}

async fn take_over(accelerator: Accelerator, spec: AdoptSpec) -> Result<Machine, Cause> {
    let AdoptSpec { name, run_dir, user, console, survivor } = spec;
    let halt = Halt::of(&survivor.vmm)?;
    // One that is halted answers nobody. It runs for the milliseconds that the greeting takes.
    let paused = halt.is_paused();
    if paused {
        halt.resume()?;
    }
    // Bound by root in a directory where nobody else may remove them; QEMU has called listen(2) on
    // them since, which makes it the peer.
    let control = vsock::connect_to(&run_dir.join(CONTROL_SOCKET), user.uid).await?;
    let output = vsock::connect_to(&run_dir.join(CONSOLE_SOCKET), user.uid).await?;
    let console = Console::open(&console).await?;
    let (control, report) = timeout(GREETING_LIMIT, Qmp::open(control))
        .await
        .unwrap_or(Err(Cause::TimedOut { what: "QEMU's greeting", limit: GREETING_LIMIT }))?;
    // Whether it answers from its main loop at all.
    control.execute("query-status").await?;
    console.pump(output);
    if paused {
        halt.pause()?;
    }
    let pid = survivor.vmm.pid;
    let vmm = Process::adopted("qemu-system-x86_64", survivor.vmm, stderr_of(pid)?)?;
    let device = survivor.vsock.pid;
    let device = Process::adopted("vhost-device-vsock", survivor.vsock, stderr_of(device)?)?;
    let names = [CONTROL_SOCKET, CONSOLE_SOCKET, DEVICE_SOCKET, HOST_SOCKET];
    let estate = Estate {
        vmm: Some(vmm),
        vsock: Some(device),
        cgroup: Some(survivor.cgroup),
        sockets: names.map(|socket| run_dir.join(socket)).into(),
    };
    let built = Built { pid, console, control, halt, report };
    Ok(hand_over(estate, built, accelerator, (name, user, &run_dir)))
}

/// The reading end of a process's standard error, anew: the pipe is the one its daemon made. What
/// was said while nobody read is lost, and cost the process an error code that it ignores.
fn stderr_of(pid: u32) -> Result<Option<pipe::Receiver>, Cause> {
    let path = format!("/proc/{pid}/fd/2");
    let path = Path::new(&path);
    // Looked at first: opening something else than a pipe could do something.
    let held = match rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        opened => opened.on("look at", path)?,
    };
    let found = rustix::fs::fstat(&held).on("look at", path)?;
    if FileType::from_raw_mode(found.st_mode) != FileType::Fifo {
        return Ok(None);
    }
    let again = format!("/proc/self/fd/{}", held.as_raw_fd());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let fd: OwnedFd = rustix::fs::open(&again, flags, Mode::empty()).on("open", path)?;
    pipe::Receiver::from_file(File::from(fd)).map(Some).on("read from", path)
}
