//! One VM as decided: everything its parts are made from.
//!
//! Owns: the paths and numbers that follow from a VM's name and block. Refuses: making anything.

use crate::config::Group;
use crate::store::VmRow;
use enisle_net::plan::Block;
use enisle_net::policy::{CompiledPolicy, PolicySpec};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Uids of VMs start here, far above those of people and services.
const FIRST_UID: u32 = 1_900_000_000;
/// Bits of a block's number that make a uid: two ranges would have to be 256 MiB of addresses
/// apart for two VMs to share one.
const UID_BITS: u32 = 0x00FF_FFFF;
/// Link MTU in bytes. Smaller paths are found by path MTU discovery.
pub(crate) const MTU: u16 = 1500;

/// What a group decides for its VMs.
#[derive(Debug)]
pub(crate) struct GroupPlan {
    pub(crate) config: Group,
    pub(crate) policy: CompiledPolicy,
}

impl GroupPlan {
    /// Whether its policy is egress `none`, row 14 of `docs/networking.md`: everything is dropped and
    /// nothing is opened. A name that is looked up would carry data out all the same.
    pub(crate) fn reaches_nothing(&self) -> bool {
        let PolicySpec { drop, allow } = &self.config.network.policy;
        allow.is_empty() && drop.iter().any(|rule| rule.net().prefix_len() == 0 && rule.ports().is_none())
    }
}

/// One VM as decided.
pub(crate) struct VmPlan {
    pub(crate) row: VmRow,
    pub(crate) group: Arc<GroupPlan>,
    /// Script for the first boot.
    pub(crate) userdata: Option<String>,
    /// Sockets; a short path, for `sun_path`.
    pub(crate) run_dir: PathBuf,
    /// Disk and console log.
    pub(crate) home: PathBuf,
}

/// By hand: a first-boot script may hold secrets.
impl std::fmt::Debug for VmPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("VmPlan")
            .field("row", &self.row)
            .field("run_dir", &self.run_dir)
            .finish_non_exhaustive()
    }
}

impl VmPlan {
    pub(crate) fn new(row: VmRow, group: Arc<GroupPlan>, userdata: Option<String>, dirs: &StateDirs) -> Self {
        Self { run_dir: dirs.run_of(row.block), home: dirs.home_of(&row.name), row, group, userdata }
    }

    pub(crate) fn name(&self) -> &str {
        &self.row.name
    }

    pub(crate) fn block(&self) -> Block {
        self.row.block
    }

    /// User and group id of the VM's processes.
    pub(crate) fn uid(&self) -> u32 {
        FIRST_UID + (self.row.block.id() & UID_BITS)
    }

    pub(crate) fn disk(&self) -> PathBuf {
        self.home.join("disk.qcow2")
    }

    pub(crate) fn console_log(&self) -> PathBuf {
        self.home.join("console.log")
    }

    /// Where the guest's boot connection arrives: `<vsock socket>_<port>`.
    pub(crate) fn boot_socket(&self) -> PathBuf {
        self.run_dir.join(format!("vsock.sock_{}", enisle_guest_proto::BOOT_PORT))
    }
}

/// Places in the state directory.
#[derive(Debug, Clone)]
pub(crate) struct StateDirs {
    state: PathBuf,
}

impl StateDirs {
    pub(crate) fn new(state: &Path) -> Self {
        Self { state: state.to_owned() }
    }

    /// Directories of sockets, by block.
    pub(crate) fn run(&self) -> PathBuf {
        self.state.join("run")
    }

    /// Directories of disks and logs, by name.
    pub(crate) fn vms(&self) -> PathBuf {
        self.state.join("vms")
    }

    pub(crate) fn run_of(&self, block: Block) -> PathBuf {
        self.run().join(format!("{:08x}", u32::from(block.guest())))
    }

    pub(crate) fn home_of(&self, name: &str) -> PathBuf {
        self.vms().join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{self, AnyHost};
    use enisle_net::policy;
    use std::net::Ipv4Addr;

    #[test]
    fn only_a_policy_that_opens_nothing_reaches_nothing() {
        let group = |lists: &str| {
            let file = format!(
                "config:\n  host_groups:\n    - name: agents\n      count: 1\n      network:\n        \
                 mode: isolated\n        range: 169.254.100.0/29\n{lists}"
            );
            let group = config::parse("test.yaml", &file, &AnyHost).unwrap().groups[0].clone();
            let policy = policy::compile(&group.network.policy).unwrap();
            GroupPlan { config: group, policy }.reaches_nothing()
        };
        let all = "        drop: ['0.0.0.0/0', '192.168.1.0/24']\n";
        assert!(group(all));
        for lists in [
            String::new(),
            format!("{all}        allow: ['140.82.112.0/20:443']\n"),
            "        drop: ['192.168.1.0/24']\n".to_owned(),
            "        drop: ['0.0.0.0/0:443']\n".to_owned(),
        ] {
            assert!(!group(&lists), "{lists}");
        }
    }

    #[test]
    fn the_longest_socket_path_fits() {
        // The configuration allows 64 bytes of state directory; unix(7) allows 107 of path.
        let dirs = StateDirs::new(Path::new(&format!("/{}", "s".repeat(63))));
        let block = Block::from_guest(Ipv4Addr::new(169, 254, 100, 2));
        let longest = dirs.run_of(block).join("vsock.sock_4294967295");
        assert!(longest.as_os_str().len() <= 107, "{}", longest.display());
        assert!(dirs.run_of(block).ends_with("run/a9fe6402"));
    }
}
