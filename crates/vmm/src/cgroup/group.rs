//! Owns one microVM's group in each hierarchy: made, limited, read back, removed.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use super::hierarchy::{Controller, Hierarchy, Version, mounted};
use super::scope_dir;
use crate::error::{Cause, OnPath};
use crate::spec::CgroupSpec;

/// The period CPU quotas are counted over, in microseconds: the kernel's default.
const CPU_PERIOD_US: u64 = 100_000;
/// Another VM of the scope may be the last to go and take the scope's directory with it
/// between our two `mkdir`s.
const MKDIR_ATTEMPTS: usize = 8;

/// The control groups of one microVM. Synchronous: each call is a few file operations.
#[derive(Debug)]
pub(crate) struct Cgroup {
    parts: Vec<Part>,
}

/// The group in one hierarchy.
#[derive(Debug)]
struct Part {
    version: Version,
    dir: PathBuf,
    scope_dir: PathBuf,
    /// Whether memory is counted here, and so an out-of-memory kill.
    memory: bool,
}

impl Cgroup {
    /// Makes the groups with their limits and reads each limit back. On failure nothing
    /// is left.
    pub(crate) fn create(spec: &CgroupSpec) -> Result<Self, Cause> {
        let mut cgroup = Self { parts: Vec::new() };
        match cgroup.fill(spec) {
            Ok(()) => Ok(cgroup),
            Err(cause) => {
                for left in cgroup.remove() {
                    tracing::warn!(left, "a control group of a failed launch stays");
                }
                Err(cause)
            }
        }
    }

    fn fill(&mut self, spec: &CgroupSpec) -> Result<(), Cause> {
        let mut held = Vec::new();
        for hierarchy in mounted()? {
            if hierarchy.controllers.is_empty() {
                continue;
            }
            if hierarchy.version == Version::V2 {
                delegate(&hierarchy, spec)?;
            }
            let scope_dir = hierarchy.root.join(scope_dir(&spec.scope));
            let dir = scope_dir.join(&spec.name);
            make(&scope_dir, &dir)?;
            self.parts.push(Part {
                version: hierarchy.version,
                memory: hierarchy.controllers.contains(&Controller::Memory),
                scope_dir,
                dir: dir.clone(),
            });
            for &controller in &hierarchy.controllers {
                limit(&dir, hierarchy.version, controller, spec)?;
            }
            held.extend(hierarchy.controllers);
        }
        for (controller, wanted) in [
            (Controller::Memory, spec.memory_max.is_some()),
            (Controller::Pids, spec.pids_max.is_some()),
            (Controller::Cpu, spec.cpu_milli.is_some()),
        ] {
            if wanted && !held.contains(&controller) {
                return Err(Cause::Unsupported(format!(
                    "this kernel offers no `{}` controller in any mounted cgroup hierarchy",
                    controller.name()
                )));
            }
        }
        Ok(())
    }

    /// The groups of a VM of another daemon's, which must exist wherever they would have been made.
    pub(crate) fn find(scope: &str, name: &str) -> Result<Self, Cause> {
        let spec = CgroupSpec {
            scope: scope.to_owned(),
            name: name.to_owned(),
            memory_max: None,
            cpu_milli: None,
            pids_max: None,
        };
        spec.validate()?;
        let mut parts = Vec::new();
        for hierarchy in mounted()? {
            if hierarchy.controllers.is_empty() {
                continue;
            }
            let scope_dir = hierarchy.root.join(scope_dir(scope));
            let dir = scope_dir.join(name);
            std::fs::metadata(&dir).on("look at control group", &dir)?;
            parts.push(Part {
                version: hierarchy.version,
                memory: hierarchy.controllers.contains(&Controller::Memory),
                scope_dir,
                dir,
            });
        }
        Ok(Self { parts })
    }

    /// The processes that are in every one of the groups.
    pub(crate) fn members(&self) -> Result<Vec<u32>, Cause> {
        let mut common: Option<Vec<u32>> = None;
        for part in &self.parts {
            let procs = part.dir.join("cgroup.procs");
            let list = std::fs::read_to_string(&procs).on("read", &procs)?;
            let here: Vec<u32> = list.lines().filter_map(|line| line.parse().ok()).collect();
            common = Some(match common {
                None => here,
                Some(common) => common.into_iter().filter(|pid| here.contains(pid)).collect(),
            });
        }
        Ok(common.unwrap_or_default())
    }

    /// The files through which a process joins, one a hierarchy.
    pub(crate) fn doors(&self) -> Result<Vec<OwnedFd>, Cause> {
        let open = |part: &Part| {
            let procs = part.dir.join("cgroup.procs");
            let file = std::fs::OpenOptions::new().write(true).open(&procs);
            Ok(OwnedFd::from(file.on("open", &procs)?))
        };
        self.parts.iter().map(open).collect()
    }

    /// How many processes the kernel killed here for the memory limit.
    pub(crate) fn oom_kills(&self) -> u64 {
        let count = |part: &Part| {
            let file = match part.version {
                Version::V1 => "memory.oom_control",
                Version::V2 => "memory.events",
            };
            let text = std::fs::read_to_string(part.dir.join(file)).ok()?;
            let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "))?;
            kills.trim().parse::<u64>().ok()
        };
        let counted = self.parts.iter().filter(|part| part.memory);
        counted.filter_map(count).sum()
    }

    /// Removes the groups, and their scope's when it is empty. Calling it again is a no-op;
    /// what could not be removed is described, one line each.
    pub(crate) fn remove(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for part in self.parts.drain(..) {
            if let Err(error) = remove_dir(&part.dir) {
                left.push(format!("control group {}: {error}", part.dir.display()));
            }
            // Others of the scope may still live in it.
            let _ = std::fs::remove_dir(&part.scope_dir);
        }
        left
    }
}

/// Makes the group's directory, which must be new or an empty leftover.
fn make(scope_dir: &Path, dir: &Path) -> Result<(), Cause> {
    let mut last = io::Error::from(io::ErrorKind::NotFound);
    for _ in 0..MKDIR_ATTEMPTS {
        match std::fs::create_dir(scope_dir) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                return Err(Cause::io("make control group", scope_dir, error));
            }
            _ => {}
        }
        match std::fs::create_dir(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                // Limits of a former run must not linger; a group in use refuses to go.
                remove_dir(dir).on("replace the old control group", dir)?;
                last = error;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => last = error,
            Err(error) => return Err(Cause::io("make control group", dir, error)),
        }
    }
    Err(Cause::io("make control group", dir, last))
}

pub(super) fn remove_dir(dir: &Path) -> io::Result<()> {
    if_there(std::fs::remove_dir(dir)).map(|_| ())
}

/// `None` if a group was removed before it was asked, or while it was: a file of it that is open
/// by then answers ENODEV (`kernfs_get_active` in fs/kernfs/file.c).
pub(super) fn if_there<T>(asked: io::Result<T>) -> io::Result<Option<T>> {
    match asked {
        Ok(answer) => Ok(Some(answer)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::NODEV.raw_os_error()) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Version 2 gives a group the controllers its parent hands down.
fn delegate(hierarchy: &Hierarchy, spec: &CgroupSpec) -> Result<(), Cause> {
    let scope_dir = hierarchy.root.join(scope_dir(&spec.scope));
    if let Err(error) = std::fs::create_dir(&scope_dir)
        && error.kind() != io::ErrorKind::AlreadyExists
    {
        return Err(Cause::io("make control group", &scope_dir, error));
    }
    let names: Vec<String> =
        hierarchy.controllers.iter().map(|controller| format!("+{}", controller.name())).collect();
    for dir in [&hierarchy.root, &scope_dir] {
        let control = dir.join("cgroup.subtree_control");
        std::fs::write(&control, names.join(" ")).on("enable controllers in", &control)?;
    }
    Ok(())
}

fn limit(dir: &Path, version: Version, controller: Controller, spec: &CgroupSpec) -> Result<(), Cause> {
    match controller {
        Controller::Memory => spec.memory_max.map_or(Ok(()), |max| limit_memory(dir, version, max)),
        Controller::Pids => spec.pids_max.map_or(Ok(()), |max| set(&dir.join("pids.max"), &max.to_string())),
        Controller::Cpu => spec.cpu_milli.map_or(Ok(()), |milli| limit_cpu(dir, version, milli)),
    }
}

fn limit_memory(dir: &Path, version: Version, max: u64) -> Result<(), Cause> {
    // The kernel counts in pages and would round silently.
    let max = (max & !(rustix::param::page_size() as u64 - 1)).to_string();
    let (file, swap, swap_max) = match version {
        // Memory and swap together: the same figure means no swap on top.
        Version::V1 => ("memory.limit_in_bytes", "memory.memsw.limit_in_bytes", max.as_str()),
        Version::V2 => ("memory.max", "memory.swap.max", "0"),
    };
    set(&dir.join(file), &max)?;
    // Absent where the kernel does not account swap.
    let swap = dir.join(swap);
    if swap.exists() {
        set(&swap, swap_max)?;
    }
    if version == Version::V2 {
        // Half a VM is of no use to anybody.
        set(&dir.join("memory.oom.group"), "1")?;
    }
    Ok(())
}

fn limit_cpu(dir: &Path, version: Version, milli: u32) -> Result<(), Cause> {
    let quota = u64::from(milli) * CPU_PERIOD_US / 1000;
    match version {
        Version::V1 => {
            set(&dir.join("cpu.cfs_period_us"), &CPU_PERIOD_US.to_string())?;
            set(&dir.join("cpu.cfs_quota_us"), &quota.to_string())
        }
        Version::V2 => set(&dir.join("cpu.max"), &format!("{quota} {CPU_PERIOD_US}")),
    }
}

/// Writes a limit and reads it back: a limit that did not take is a failure.
fn set(file: &Path, value: &str) -> Result<(), Cause> {
    std::fs::write(file, value).on("set", file)?;
    let now = std::fs::read_to_string(file).on("read back", file)?;
    if now.trim_end() == value {
        return Ok(());
    }
    Err(Cause::Unsuitable {
        path: file.to_owned(),
        problem: format!("took `{}` for `{value}`", now.trim_end()),
    })
}
