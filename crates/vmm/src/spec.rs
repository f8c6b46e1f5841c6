//! Owns the plain data a microVM is described with, and the checks that need no system call.
//! Refuses names that could leave their directory and identities that are root.

use std::os::fd::OwnedFd;
use std::path::PathBuf;

use crate::error::Cause;
use crate::survivor::Survivor;

/// Everything a VMM must be told about one microVM.
///
/// Descriptors and paths are the caller's choice and are taken as they are: this crate opens
/// files as root and hands descriptors over, so the VMM's user needs no access to any path.
#[derive(Debug)]
pub struct MachineSpec {
    /// The microVM's name, for messages and as the VMM's process title. Any length.
    pub name: String,
    /// An existing directory, owned by root, for this VM's sockets alone. Its length is
    /// limited: the longest socket path in it must fit 107 bytes (unix(7)).
    ///
    /// Launching sets its group to the VM's and its mode to 1770: the VM's user may add
    /// sockets, and may not rename or remove what root put there.
    pub run_dir: PathBuf,
    /// Virtual CPUs, 1 to 64.
    pub vcpu: u8,
    /// Guest memory in MiB, at least 64.
    pub ram_mb: u32,
    /// The guest kernel: a bzImage, or an ELF image with a PVH note. Its mode must let
    /// "others" read it; the directories above it need not.
    pub kernel: PathBuf,
    /// The initramfs; the same rule as for [`MachineSpec::kernel`].
    pub initramfs: PathBuf,
    /// Appended to the kernel command line the back end needs itself.
    pub cmdline_extra: String,
    /// Disks, in the order the guest sees them (`vda`, `vdb` …). At most 4.
    pub disks: Vec<Disk>,
    /// The network interface, if there is one.
    pub nic: Option<Nic>,
    /// The network namespace every process of this VM runs in; `None` keeps the caller's.
    pub netns: Option<OwnedFd>,
    /// Whom the VM's processes run as.
    pub user: Ids,
    /// The control group the VM's processes are put in, and its limits.
    pub cgroup: CgroupSpec,
    /// Where the serial console goes.
    pub console: ConsoleSpec,
}

/// What must be known of a microVM to take it over.
#[derive(Debug)]
pub struct AdoptSpec {
    /// Its name, for messages.
    pub name: String,
    /// As it was launched with ([`MachineSpec::run_dir`]).
    pub run_dir: PathBuf,
    /// As it was launched with.
    pub user: Ids,
    /// Where its serial console goes on. What it wrote while nobody listened is lost.
    pub console: ConsoleSpec,
    /// Its processes.
    pub survivor: Survivor,
}

/// One disk of a microVM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Disk {
    /// The image file.
    pub path: PathBuf,
    /// For a qcow2 overlay: the **raw** image under it, opened read-only. The name of the
    /// backing file written in the overlay's header is never followed.
    pub backing: Option<PathBuf>,
    /// The format of `path`; never guessed from its content.
    pub format: DiskFormat,
    /// Whether the guest may only read.
    pub read_only: bool,
}

/// The format of a disk image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DiskFormat {
    /// A plain image.
    Raw,
    /// QEMU's copy-on-write format.
    Qcow2,
}

/// The microVM's network interface: an open queue of a tap device.
#[derive(Debug)]
pub struct Nic {
    /// A tap queue opened with `IFF_TAP | IFF_NO_PI | IFF_VNET_HDR`.
    pub tap: OwnedFd,
    /// The MAC address of the guest's side.
    pub mac: [u8; 6],
    /// The MTU announced to the guest, 68 to 65535.
    pub mtu: u16,
}

/// A user and a group id, neither of them 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ids {
    /// The user id.
    pub uid: u32,
    /// The group id.
    pub gid: u32,
}

/// The control group of one microVM: `enisle-<scope>/<name>` in each hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CgroupSpec {
    /// Marks what belongs to one daemon: letters, digits, `-` and `_`, at most 32.
    pub scope: String,
    /// The VM's group in the scope: the same alphabet and `.` inside, at most 128.
    pub name: String,
    /// Bytes of memory all processes of the VM may use together, page cache included.
    /// Guest memory plus [`crate::Vmm::memory_overhead`] is what a healthy VM needs.
    pub memory_max: Option<u64>,
    /// Thousandths of one CPU all threads of the VM may use together: 1500 is one and a half.
    pub cpu_milli: Option<u32>,
    /// Processes and threads together. QEMU wants some 20 plus one a virtual CPU.
    pub pids_max: Option<u32>,
}

/// Where a serial console is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ConsoleSpec {
    /// The log file; the part rotated away has the same name with `.1` at its end.
    pub log_path: PathBuf,
    /// Bytes one of the two files may hold: disk use is at most twice that.
    pub max_bytes: u64,
}

impl ConsoleSpec {
    /// The default bound of a console log file: 1 MiB, twice.
    pub const DEFAULT_MAX_BYTES: u64 = 1 << 20;

    /// A console log at `log_path` with the default bound.
    pub fn at(log_path: impl Into<PathBuf>) -> Self {
        Self { log_path: log_path.into(), max_bytes: Self::DEFAULT_MAX_BYTES }
    }
}

/// Disks a machine may have: with network, vsock and random source they fill the seven
/// virtio-mmio transports of a `microvm` that are of use.
const MAX_DISKS: usize = 4;
const MAX_VCPU: u8 = 64;
const MIN_RAM_MB: u32 = 64;
const MIN_MTU: u16 = 68;
/// `sun_path` without its final NUL, unix(7).
const MAX_SOCKET_PATH: usize = 107;
/// The longest file name a back end adds to the run directory: `vsock.sock_4294967295`.
const LONGEST_SOCKET_NAME: usize = 21;

impl MachineSpec {
    /// Checks everything that can be judged without asking the kernel.
    pub(crate) fn validate(&self) -> Result<(), Cause> {
        if self.name.is_empty() || self.name.chars().any(char::is_control) {
            return Err(Cause::invalid("name", "must be printable and not empty"));
        }
        if !(1..=MAX_VCPU).contains(&self.vcpu) {
            return Err(Cause::invalid("vcpu", "must be 1 to 64"));
        }
        if self.ram_mb < MIN_RAM_MB {
            return Err(Cause::invalid("ram_mb", "must be at least 64"));
        }
        if self.user.uid == 0 || self.user.gid == 0 {
            return Err(Cause::invalid("user", "a VMM never runs as root"));
        }
        if self.nic.as_ref().is_some_and(|nic| nic.mtu < MIN_MTU) {
            return Err(Cause::invalid("nic.mtu", "must be at least 68"));
        }
        if self.cmdline_extra.chars().any(char::is_control) {
            return Err(Cause::invalid("cmdline_extra", "must be one printable line"));
        }
        if self.run_dir.as_os_str().len() + 1 + LONGEST_SOCKET_NAME > MAX_SOCKET_PATH {
            return Err(Cause::invalid(
                "run_dir",
                "is too long: sockets in it would exceed the 107 bytes of unix(7)",
            ));
        }
        self.validate_disks()?;
        self.cgroup.validate()
    }

    fn validate_disks(&self) -> Result<(), Cause> {
        if self.disks.len() > MAX_DISKS {
            return Err(Cause::invalid("disks", "at most 4"));
        }
        for disk in &self.disks {
            if disk.backing.is_some() && disk.format != DiskFormat::Qcow2 {
                return Err(Cause::invalid("disks", "only a qcow2 disk has a backing file"));
            }
        }
        Ok(())
    }
}

impl CgroupSpec {
    /// Names become directory names under `/sys/fs/cgroup`: nothing that could leave it.
    pub(crate) fn validate(&self) -> Result<(), Cause> {
        validate_scope(&self.scope)?;
        let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
        if !(1..=128).contains(&self.name.len())
            || !self.name.bytes().all(named)
            || self.name.starts_with('.')
        {
            return Err(Cause::invalid(
                "cgroup.name",
                "must be 1 to 128 letters, digits, `-`, `_` or `.` and not start with `.`",
            ));
        }
        Ok(())
    }
}

/// Checks a scope before it becomes part of a directory's name.
pub(crate) fn validate_scope(scope: &str) -> Result<(), Cause> {
    let named = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if (1..=32).contains(&scope.len()) && scope.bytes().all(named) {
        return Ok(());
    }
    Err(Cause::invalid("cgroup.scope", "must be 1 to 32 letters, digits, `-` or `_`"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cgroup(scope: &str, name: &str) -> CgroupSpec {
        CgroupSpec {
            scope: scope.into(),
            name: name.into(),
            memory_max: None,
            cpu_milli: None,
            pids_max: None,
        }
    }

    #[test]
    fn cgroup_names_cannot_leave_their_directory() {
        for name in ["..", ".", "a/b", "", "a\n", ".hidden", &"x".repeat(129)] {
            assert!(cgroup("s", name).validate().is_err(), "{name:?}");
        }
        for scope in ["", "a/b", "..", "a b", &"x".repeat(33)] {
            assert!(cgroup(scope, "vm").validate().is_err(), "{scope:?}");
        }
        let long = format!("isolated-agents-{}", "9".repeat(60));
        cgroup("0a1b2c3d", &long).validate().unwrap();
    }
}
