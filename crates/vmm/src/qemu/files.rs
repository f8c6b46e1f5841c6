//! Owns opening the files of a microVM, so that QEMU gets descriptors and needs no paths.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::Path;

use rustix::fs::{FileType, Mode, OFlags};

use super::command::DiskFds;
use crate::error::{Cause, OnPath};
use crate::spec::{Disk, MachineSpec};

/// Descriptors to hand over, which the command line names by number.
#[derive(Debug, Default)]
pub(super) struct Handed {
    pub(super) fds: Vec<OwnedFd>,
}

impl Handed {
    /// Keeps a descriptor until the VMM has its own copy; returns its number.
    pub(super) fn keep(&mut self, fd: impl Into<OwnedFd>) -> RawFd {
        let fd = fd.into();
        let number = fd.as_raw_fd();
        self.fds.push(fd);
        number
    }
}

/// The files of a VM as descriptors' numbers.
#[derive(Debug)]
pub(super) struct Opened {
    pub(super) kernel: RawFd,
    pub(super) initramfs: RawFd,
    pub(super) disks: Vec<DiskFds>,
}

pub(super) fn open(spec: &MachineSpec, handed: &mut Handed) -> Result<Opened, Cause> {
    Ok(Opened {
        kernel: handed.keep(open_boot(&spec.kernel)?),
        initramfs: handed.keep(open_boot(&spec.initramfs)?),
        disks: spec.disks.iter().map(|disk| open_disk(disk, handed)).collect::<Result<_, _>>()?,
    })
}

/// QEMU opens kernel and initramfs again through `/proc/self/fd`, as the VM's user: the
/// directories do not matter then, the file's own mode does.
fn open_boot(path: &Path) -> Result<OwnedFd, Cause> {
    let fd = open_image(path, OFlags::RDONLY)?;
    let mode = rustix::fs::fstat(&fd).on("look at", path)?.st_mode;
    if mode & 0o004 == 0 {
        return Err(Cause::Unsuitable {
            path: path.to_owned(),
            problem: "cannot be read by the VM's user; run `chmod o+r` on it".into(),
        });
    }
    Ok(fd)
}

fn open_disk(disk: &Disk, handed: &mut Handed) -> Result<DiskFds, Cause> {
    let access = if disk.read_only { OFlags::RDONLY } else { OFlags::RDWR };
    let image = handed.keep(open_image(&disk.path, access)?);
    let backing = match &disk.backing {
        Some(path) => Some(handed.keep(open_image(path, OFlags::RDONLY)?)),
        None => None,
    };
    Ok(DiskFds { format: disk.format, read_only: disk.read_only, image, backing })
}

fn open_image(path: &Path, access: OFlags) -> Result<OwnedFd, Cause> {
    // Not blocking: a FIFO in a file's place must not hold the launch up.
    let flags = access | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let fd = rustix::fs::open(path, flags, Mode::empty()).on("open", path)?;
    let found = rustix::fs::fstat(&fd).on("look at", path)?;
    match FileType::from_raw_mode(found.st_mode) {
        FileType::RegularFile | FileType::BlockDevice => Ok(fd),
        _ => Err(Cause::Unsuitable {
            path: path.to_owned(),
            problem: "is neither a file nor a block device".into(),
        }),
    }
}
