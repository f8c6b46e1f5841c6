//! One VM as decided: everything its parts are made from.
//!
//! Owns: the paths and numbers that follow from a VM's name and block. Refuses: making anything.

use crate::config::Group;
use crate::parts::{PartError, mode};
use crate::store::VmRow;
use enisle_guest_proto::GuestNet;
use enisle_net::WarmSpec;
use enisle_net::plan::Block;
use enisle_net::policy::{self, CompileError, CompiledPolicy, PolicySpec};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

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
    /// One for all plans that the group has had while this daemon runs.
    lists: Arc<GroupLists>,
}

#[derive(Debug)]
struct GroupLists {
    /// The group's policy of this moment: the file's, until somebody changes it live.
    now: RwLock<PolicySpec>,
    /// The file's, as it was read last.
    file: Mutex<PolicySpec>,
}

impl GroupPlan {
    /// The plan of a group as configured.
    ///
    /// # Errors
    /// Its policy cannot be enforced.
    pub(crate) fn new(config: Group) -> Result<Self, CompileError> {
        let lists = config.network.policy.clone();
        Self::under(config, lists)
    }

    /// The plan of a group under other lists than the configured ones.
    ///
    /// # Errors
    /// They cannot be enforced.
    pub(crate) fn under(config: Group, lists: PolicySpec) -> Result<Self, CompileError> {
        policy::compile(&lists)?;
        let file = Mutex::new(config.network.policy.clone());
        Ok(Self { config, lists: Arc::new(GroupLists { now: RwLock::new(lists), file }) })
    }

    /// The plan of the same group by a file that was read anew. VMs keep the plan they were made by;
    /// lists are for all of them, and change by [`GroupPlan::lists_to_change`] as ever.
    pub(crate) fn renewed(&self, config: Group) -> Self {
        Self { config, lists: Arc::clone(&self.lists) }
    }

    /// Whether lists `drop` and `allow` mean something for its VMs.
    ///
    /// # Errors
    /// [`PartError::NotInMode`] where not.
    pub(crate) fn has_lists(&self) -> Result<(), PartError> {
        let mode = self.config.network.mode;
        match mode.has_lists() {
            true => Ok(()),
            false => Err(PartError::NotInMode { mode: mode.name(), what: "has no lists `drop` and `allow`" }),
        }
    }

    /// The lists that the file had when it was read last.
    pub(crate) fn file_lists(&self) -> PolicySpec {
        self.lists.file.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The file has others. The caller holds [`GroupPlan::lists_to_change`].
    pub(crate) fn set_file_lists(&self, lists: PolicySpec) {
        *self.lists.file.lock().unwrap_or_else(PoisonError::into_inner) = lists;
    }

    /// The group's lists. Whoever makes a VM's network holds them until others can find it, so that
    /// no change passes it by. Blocks while a change is made, some milliseconds.
    pub(crate) fn lists(&self) -> RwLockReadGuard<'_, PolicySpec> {
        // A panic elsewhere leaves lists that are whole: they are replaced at once.
        self.lists.now.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The group's lists for a change, also of one VM's own: nobody makes a VM's network meanwhile,
    /// and nobody else changes a policy in this group.
    pub(crate) fn lists_to_change(&self) -> RwLockWriteGuard<'_, PolicySpec> {
        self.lists.now.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One VM as decided.
pub(crate) struct VmPlan {
    pub(crate) row: VmRow,
    pub(crate) group: Arc<GroupPlan>,
    /// Its own lists of this moment; the row's are those it was made with.
    own: Mutex<PolicySpec>,
    /// What the guest is told of its network; nothing while that is not decided.
    guest_net: Mutex<Option<GuestNet>>,
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
        let own = Mutex::new(row.lists.clone());
        let guest_net = Mutex::new(mode::planned(&group.config.network, row.block));
        let (run_dir, home) = (dirs.run_of(row.block), dirs.home_of(&row.name));
        Self { row, group, own, guest_net, userdata, run_dir, home }
    }

    /// What the guest is told of its network; `None` while its network's mode has not decided.
    pub(crate) fn guest_net(&self) -> Option<GuestNet> {
        self.guest_net.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Its network is made.
    pub(crate) fn set_guest_net(&self, net: GuestNet) {
        *self.guest_net.lock().unwrap_or_else(PoisonError::into_inner) = Some(net);
    }

    /// The VM's address; 0.0.0.0 while nobody has decided.
    pub(crate) fn address(&self) -> Ipv4Addr {
        self.guest_net().map_or(Ipv4Addr::UNSPECIFIED, |net| net.address)
    }

    /// The VM's own lists.
    pub(crate) fn own_lists(&self) -> PolicySpec {
        self.own.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Replaces them. The caller holds [`GroupPlan::lists_to_change`].
    pub(crate) fn set_own_lists(&self, lists: PolicySpec) {
        *self.own.lock().unwrap_or_else(PoisonError::into_inner) = lists;
    }

    /// The policy of the VM under these lists of its group.
    pub(crate) fn compile(&self, group: &PolicySpec) -> Result<CompiledPolicy, CompileError> {
        policy::compile_narrowed(group, &self.own_lists())
    }

    pub(crate) fn name(&self) -> &str {
        &self.row.name
    }

    pub(crate) fn block(&self) -> Block {
        self.row.block
    }

    /// User and group id of the VM's processes.
    pub(crate) fn uid(&self) -> u32 {
        uid_of(self.row.block)
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

fn uid_of(block: Block) -> u32 {
    FIRST_UID + (block.id() & UID_BITS)
}

/// The slot of whichever VM of a group gets this block.
pub(crate) fn slot_of(group: &GroupPlan, block: Block) -> WarmSpec {
    let uid = uid_of(block);
    WarmSpec { block, mtu: u32::from(MTU), tap_owner: (uid, uid), limits: group.config.network.limits }
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
