//! Owns finding the mounted hierarchies and which controllers each can limit with.

use std::path::{Path, PathBuf};

use crate::error::{Cause, OnPath};

/// The controllers a microVM is limited by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Controller {
    Memory,
    Pids,
    Cpu,
}

impl Controller {
    pub(super) const ALL: [Self; 3] = [Self::Memory, Self::Pids, Self::Cpu];

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Pids => "pids",
            Self::Cpu => "cpu",
        }
    }
}

/// The two interfaces of cgroups(7).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Version {
    V1,
    V2,
}

/// One mounted hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Hierarchy {
    pub(super) root: PathBuf,
    pub(super) version: Version,
    /// Those of [`Controller::ALL`] it holds; may be none for version 2 beside version 1.
    pub(super) controllers: Vec<Controller>,
}

/// Every hierarchy that holds, or could hold, a group of ours.
pub(super) fn mounted() -> Result<Vec<Hierarchy>, Cause> {
    let mounts = Path::new("/proc/self/mounts");
    let table = std::fs::read_to_string(mounts).on("read", mounts)?;
    let mut found: Vec<Hierarchy> = Vec::new();
    for mount in table.lines() {
        let Some(hierarchy) = parse(mount)? else {
            continue;
        };
        // The same hierarchy may be mounted twice, for instance for a container.
        let seen = found
            .iter()
            .any(|known| known.version == hierarchy.version && known.controllers == hierarchy.controllers);
        if !seen {
            found.push(hierarchy);
        }
    }
    Ok(found)
}

/// One line of `/proc/self/mounts`: source, target, type, options (proc(5)).
fn parse(mount: &str) -> Result<Option<Hierarchy>, Cause> {
    let mut fields = mount.split(' ').skip(1);
    let (Some(root), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
        return Ok(None);
    };
    let root = PathBuf::from(root);
    match kind {
        "cgroup" => {
            let controllers = named(options.split(','));
            Ok((!controllers.is_empty()).then_some(Hierarchy { root, version: Version::V1, controllers }))
        }
        "cgroup2" => {
            let list = root.join("cgroup.controllers");
            let names = std::fs::read_to_string(&list).on("read", &list)?;
            Ok(Some(Hierarchy { controllers: named(names.split_whitespace()), root, version: Version::V2 }))
        }
        _ => Ok(None),
    }
}

fn named<'a>(words: impl Iterator<Item = &'a str>) -> Vec<Controller> {
    let words: Vec<&str> = words.collect();
    Controller::ALL.into_iter().filter(|controller| words.contains(&controller.name())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_v1_mount_names_its_controllers() {
        let line = "cgroup /sys/fs/cgroup/cpu,cpuacct cgroup rw,nosuid,cpu,cpuacct 0 0";
        let hierarchy = parse(line).unwrap().unwrap();
        assert_eq!(hierarchy.controllers, [Controller::Cpu]);
        assert_eq!(hierarchy.version, Version::V1);
    }

    #[test]
    fn hierarchies_without_a_limit_of_ours_and_other_mounts_are_none() {
        for line in [
            "cgroup /sys/fs/cgroup/freezer cgroup rw,freezer 0 0",
            "cgroup /sys/fs/cgroup/systemd cgroup rw,name=systemd 0 0",
            "tmpfs /sys/fs/cgroup tmpfs rw,mode=755 0 0",
            "",
        ] {
            assert_eq!(parse(line).unwrap(), None, "{line}");
        }
    }
}
