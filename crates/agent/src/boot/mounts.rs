//! The mounts of the guest: what `/init` needs, and the step onto the image's root.
//!
//! Refuses: what the image's own init mounts better (anything in its fstab).

use super::{Step, StepError};
use crate::console::say;
use rustix::mount::{MountFlags, mount, mount_move};
use std::ffi::CStr;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

const NOTHING_SPECIAL: MountFlags = MountFlags::NOSUID.union(MountFlags::NODEV).union(MountFlags::NOEXEC);

/// A kernel file system and where it belongs.
struct Kernel {
    kind: &'static str,
    at: &'static str,
    flags: MountFlags,
    data: Option<&'static CStr>,
}

/// What `/init` itself needs.
const EARLY: [Kernel; 3] = [
    Kernel { kind: "proc", at: "/proc", flags: NOTHING_SPECIAL, data: None },
    Kernel { kind: "sysfs", at: "/sys", flags: NOTHING_SPECIAL, data: None },
    Kernel { kind: "devtmpfs", at: "/dev", flags: MountFlags::NOSUID, data: Some(c"mode=0755") },
];

/// What sessions need before, or without, an init. systemd keeps what is mounted already.
const LATER: [Kernel; 4] = [
    Kernel {
        kind: "devpts",
        at: "/dev/pts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: Some(c"mode=0620,gid=5,ptmxmode=0666"),
    },
    Kernel {
        kind: "tmpfs",
        at: "/dev/shm",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: Some(c"mode=1777"),
    },
    Kernel {
        kind: "tmpfs",
        at: "/run",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: Some(c"mode=0755,size=20%"),
    },
    Kernel { kind: "cgroup2", at: "/sys/fs/cgroup", flags: NOTHING_SPECIAL, data: Some(c"nsdelegate") },
];

fn mount_kernel(what: &Kernel) -> io::Result<()> {
    match fs::create_dir(what.at) {
        Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
        _ => {}
    }
    Ok(mount(what.kind, what.at, what.kind, what.flags, what.data)?)
}

/// Mounts /proc, /sys and /dev in the initramfs.
pub(super) fn early() -> Result<(), StepError> {
    EARLY
        .iter()
        .try_for_each(|what| mount_kernel(what).step(|| format!("mount {} on {}", what.kind, what.at)))
}

/// Makes `new_root` the root of this process, with the kernel's file systems in it, as
/// switch_root(8) does. The initramfs is emptied first: its pages would stay for good.
pub(super) fn switch_root(new_root: &str) -> Result<(), StepError> {
    for what in &EARLY {
        let target = format!("{new_root}{}", what.at);
        place_for_mount(Path::new(&target)).step(|| format!("make {target}"))?;
        mount_move(what.at, &target).step(|| format!("move {} to {target}", what.at))?;
    }
    // The agent's own file goes too; this process and /proc/self/exe keep its contents.
    let _ = fs::remove_dir_all("/lib");
    let _ = fs::remove_file("/init");
    rustix::process::chdir(new_root).step(|| format!("enter {new_root}"))?;
    mount_move(".", "/").step(|| format!("move {new_root} to /"))?;
    rustix::process::chroot(".").step(|| format!("make {new_root} the root"))?;
    rustix::process::chdir("/").step(|| "enter /".to_owned())
}

/// A directory to mount on: an image may lack it, or have a symlink there that would lead the
/// mount elsewhere.
fn place_for_mount(path: &Path) -> io::Result<()> {
    match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => Ok(()),
        Ok(_) => Err(io::Error::new(
            io::ErrorKind::NotADirectory,
            "the image has something else than a directory there",
        )),
        Err(e) if e.kind() == io::ErrorKind::NotFound => fs::create_dir(path),
        Err(e) => Err(e),
    }
}

/// Mounts what sessions need. A failure costs what needs it (a terminal, shared memory), no more.
pub(super) fn complete() {
    for what in &LATER {
        if is_mount_point(what.at) {
            continue;
        }
        if let Err(e) = mount_kernel(what) {
            say(format_args!("mount {} on {}: {e}", what.kind, what.at));
        }
    }
}

fn is_mount_point(path: &str) -> bool {
    let device = |path: &Path| fs::metadata(path).map(|found| found.dev());
    match (device(Path::new(path)), device(&Path::new(path).join(".."))) {
        (Ok(own), Ok(parent)) => own != parent,
        _ => false,
    }
}
