//! Other groups while VMs run: the file was read anew.
//!
//! ```text
//! nobody makes a VM ─▶ what cannot be? ─▶ compile all ─▶ ranges ─▶ switch all ─▶ remember ─▶ launch
//!                                                         └─ either fails: the ranges of before
//! ```
//!
//! Owns: that order, and that a file holds as a whole or not at all. Refuses: reading it, and keys
//! that are not about groups (`crate::reload`).

use super::{Handle, Registry};
use crate::chain::Chain;
use crate::config::Group;
use crate::parts::PartError;
use crate::store::StoreError;
use crate::vm::plan::{GroupPlan, VmPlan};
use crate::vm::policy;
use enisle_api::EventKind;
use enisle_net::plan::Range;
use enisle_net::policy::{CompileError, CompiledPolicy, PolicySpec};
use std::sync::{Arc, RwLockWriteGuard};

/// VMs that a message names before it only counts.
const NAMED: usize = 5;

/// Why the groups stay as they are.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegroupError {
    /// The daemon goes down.
    #[error("the daemon is stopping")]
    Stopping,
    /// A bridge comes, goes or changes.
    #[error(
        "group `{group}`: bridges are made, changed and removed when the daemon starts; put the group's keys `mode`, \
         `bridge`, `gateway`, `range`, `isolate_ports`, `uplink` and `route_between` back, or restart the daemon"
    )]
    Bridge {
        /// The group.
        group: String,
    },
    /// VMs have addresses of the range that is to go.
    #[error(
        "group `{group}`: `network.range` cannot become {range} while it has microVMs with addresses outside \
         it ({vms}); delete them first, or put the old range back"
    )]
    RangeInUse {
        /// The group.
        group: String,
        /// The new range.
        range: Range,
        /// The VMs.
        vms: String,
    },
    /// A range cannot grow, shrink or move by a part: slots that wait for a VM have addresses in the old one.
    #[error(
        "group `{group}`: `network.range` {range} overlaps {old}, which is in use until the daemon ends: put the old range \
         back, take one beside it, or restart the daemon"
    )]
    RangeOverlaps {
        /// The group.
        group: String,
        /// Its new range.
        range: Range,
        /// One of before.
        old: Range,
    },
    /// VMs of a group that is not in the file have addresses there.
    #[error(
        "group `{group}`: `network.range` {range} overlaps {other}, which microVMs of the removed group `{of}` \
         still have ({vms}); delete them first, or take another range"
    )]
    RangeHeld {
        /// The new group.
        group: String,
        /// Its range.
        range: Range,
        /// The range of the removed group.
        other: Range,
        /// The removed group.
        of: String,
        /// Its VMs.
        vms: String,
    },
    /// New lists that cannot be enforced together with a VM's own.
    #[error("group `{group}`: its lists do not fit those of VM {vm}: {source}")]
    Unenforceable {
        /// The group.
        group: String,
        /// The VM.
        vm: String,
        /// Why.
        source: CompileError,
    },
    /// The network refuses.
    #[error("the network could not be changed, and is as before")]
    Network(#[source] PartError),
}

/// What a file has changed.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Changes {
    /// Groups that are new.
    pub(crate) added: Vec<String>,
    /// Groups that are not in the file any more.
    pub(crate) removed: Vec<String>,
    /// Groups with other keys.
    pub(crate) changed: Vec<String>,
    /// Groups whose lists are others; they hold for running VMs too.
    pub(crate) policies: Vec<String>,
    /// What follows, for people.
    pub(crate) notes: Vec<String>,
}

/// A group whose lists in the file are others.
struct Relisted {
    group: Arc<GroupPlan>,
    lists: PolicySpec,
}

impl Registry {
    /// Takes other groups. Nothing that runs is restarted; what is new is launched. Blocks for
    /// milliseconds, longer with many VMs whose policy changes.
    pub(crate) fn regroup(&self, wanted: &[Group]) -> Result<Changes, RegroupError> {
        let mut groups = self.groups.change();
        if self.stopping.is_cancelled() {
            return Err(RegroupError::Stopping);
        }
        let handles = self.list();
        let ranges = ranges_of(wanted, &handles)?;
        same_bridges(wanted, &groups)?;
        overlapping(wanted, &groups)?;
        let mut changes = Changes::default();
        let (mut plans, mut relisted, mut launches) = (Vec::new(), Vec::new(), Vec::new());
        for group in wanted {
            let present = groups.iter().find(|plan| plan.config.name == group.name);
            let members = || handles.iter().filter(|handle| handle.plan.row.group == group.name);
            // One that was removed and comes back has its lists with its VMs.
            let known = present.or_else(|| members().next().map(|handle| &handle.plan.group));
            let more = compare(present.map(|plan| &plan.config), group, members(), &mut changes);
            launches.push((group.name.clone(), more));
            plans.push(match known {
                Some(known) => {
                    if known.file_lists() != group.network.policy {
                        let lists = group.network.policy.clone();
                        relisted.push(Relisted { group: Arc::clone(known), lists });
                    }
                    Arc::new(known.renewed(group.clone()))
                }
                // The file was read: its lists compile.
                None => Arc::new(GroupPlan::new(group.clone()).map_err(|source| {
                    RegroupError::Unenforceable { group: group.name.clone(), vm: "-".to_owned(), source }
                })?),
            });
        }
        for gone in groups.iter().filter(|plan| !wanted.iter().any(|group| group.name == plan.config.name)) {
            changes.remove(&gone.config.name, &handles);
        }
        self.put_in_force(&groups, &handles, &ranges, &relisted)?;
        changes.policies = relisted.iter().map(|relisted| relisted.group.config.name.clone()).collect();
        *groups = plans;
        drop(groups);
        self.workshop.parts.freed();
        for (group, more) in launches {
            self.start_some(&group, more);
        }
        Ok(changes)
    }

    /// Ranges and policies: both, or neither.
    fn put_in_force(
        &self,
        present: &[Arc<GroupPlan>],
        handles: &[Handle],
        ranges: &[Range],
        relisted: &[Relisted],
    ) -> Result<(), RegroupError> {
        // Nobody else takes more than one.
        let mut locked: Vec<RwLockWriteGuard<'_, PolicySpec>> =
            relisted.iter().map(|relisted| relisted.group.lists_to_change()).collect();
        let policies = compile_all(relisted, handles)?;
        let parts = &self.workshop.parts;
        parts.set_ranges(ranges).map_err(RegroupError::Network)?;
        if let Err(error) = parts.switch(&policies) {
            let before: Vec<Group> = present.iter().map(|plan| plan.config.clone()).collect();
            // They were right a moment ago.
            let before = ranges_of(&before, handles).unwrap_or_default();
            if let Err(left) = parts.set_ranges(&before) {
                tracing::error!("cannot put the ranges back: {}", Chain(&left));
            }
            return Err(RegroupError::Network(error));
        }
        for (lists, Relisted { group, lists: new }) in locked.iter_mut().zip(relisted) {
            (**lists).clone_from(new);
            group.set_file_lists(new.clone());
            let name = &group.config.name;
            // Killed before this, the next daemon finds lists for another file, and forgets them.
            self.remember(self.workshop.store.forget_lists_of(name));
            let revision = policy::revision(new);
            tracing::info!(group = name, revision, "policy changed by the file");
            self.events().tell(EventKind::PolicyChanged { vm: None, group: name.clone(), revision });
        }
        Ok(())
    }

    fn remember(&self, outcome: Result<(), StoreError>) {
        if let Err(error) = outcome {
            tracing::error!("cannot write the state: {}", Chain(&error));
        }
    }
}

/// Bridges are as they were.
fn same_bridges(wanted: &[Group], present: &[Arc<GroupPlan>]) -> Result<(), RegroupError> {
    let old = |name: &str| present.iter().find(|plan| plan.config.name == name).map(|plan| &plan.config);
    for group in wanted {
        let before = old(&group.name).and_then(|group| group.network.bridge.as_ref());
        if before != group.network.bridge.as_ref() {
            return Err(RegroupError::Bridge { group: group.name.clone() });
        }
    }
    for plan in present.iter().filter(|plan| plan.config.network.bridge.is_some()) {
        if !wanted.iter().any(|group| group.name == plan.config.name) {
            return Err(RegroupError::Bridge { group: plan.config.name.clone() });
        }
    }
    Ok(())
}

/// New ranges that overlap one of before without being it.
fn overlapping(wanted: &[Group], present: &[Arc<GroupPlan>]) -> Result<(), RegroupError> {
    let old: Vec<Range> = present.iter().map(|plan| plan.config.network.range).collect();
    for group in wanted.iter().filter(|group| !old.contains(&group.network.range)) {
        let range = group.network.range;
        if let Some(old) = old.iter().find(|old| old.overlaps(&range)) {
            return Err(RegroupError::RangeOverlaps { group: group.name.clone(), range, old: *old });
        }
    }
    Ok(())
}

/// The ranges there must be: those of the file, and those that VMs of removed groups still have.
fn ranges_of(wanted: &[Group], handles: &[Handle]) -> Result<Vec<Range>, RegroupError> {
    let mut all: Vec<Range> = wanted.iter().map(|group| group.network.range).collect();
    for group in wanted {
        let range = group.network.range;
        let outside = |plan: &VmPlan| plan.row.group == group.name && !range.contains(plan.block());
        let vms = names(handles.iter().filter(|handle| outside(&handle.plan)));
        if let Some(vms) = vms {
            return Err(RegroupError::RangeInUse { group: group.name.clone(), range, vms });
        }
    }
    for plan in handles.iter().map(|handle| &handle.plan) {
        let held = plan.group.config.network.range;
        if all.contains(&held)
            || all.iter().any(|range| range.contains(plan.block()) && !held.overlaps(range))
        {
            continue;
        }
        if wanted.iter().any(|group| group.name == plan.row.group) {
            // Its group has another range by now, which holds it: see above.
            continue;
        }
        if let Some(group) = wanted.iter().find(|group| group.network.range.overlaps(&held)) {
            let of = plan.row.group.clone();
            let vms = names(handles.iter().filter(|handle| handle.plan.row.group == of)).unwrap_or_default();
            let (range, group) = (group.network.range, group.name.clone());
            return Err(RegroupError::RangeHeld { group, range, other: held, of, vms });
        }
        all.push(held);
    }
    Ok(all)
}

fn compile_all(
    relisted: &[Relisted],
    handles: &[Handle],
) -> Result<Vec<(Arc<VmPlan>, CompiledPolicy)>, RegroupError> {
    let mut policies = Vec::new();
    for Relisted { group, lists } in relisted {
        let group = &group.config.name;
        for plan in handles.iter().map(|handle| &handle.plan).filter(|plan| plan.row.group == *group) {
            let compiled = plan.compile(lists).map_err(|source| RegroupError::Unenforceable {
                group: group.clone(),
                vm: plan.name().to_owned(),
                source,
            })?;
            policies.push((Arc::clone(plan), compiled));
        }
    }
    Ok(policies)
}

/// Notes what is new about a group; how many VMs are to be launched.
fn compare<'a>(
    old: Option<&Group>,
    new: &Group,
    members: impl Iterator<Item = &'a Handle>,
    changes: &mut Changes,
) -> usize {
    let name = &new.name;
    let members: Vec<&Handle> = members.collect();
    let there = members.iter().filter(|vm| vm.usable().is_ok()).count();
    let wanted = new.count as usize;
    let missing = wanted.saturating_sub(there);
    let Some(old) = old else {
        changes.added.push(name.clone());
        changes.notes.push(format!("group {name} is new: {missing} launched"));
        return missing;
    };
    let keys = [
        ("vcpu", old.vcpu != new.vcpu),
        ("ram", old.ram_mib != new.ram_mib),
        ("image", old.image != new.image),
        ("disk", old.disk_bytes != new.disk_bytes),
        ("userdata", old.userdata != new.userdata),
        ("ssh_keys", old.ssh_keys != new.ssh_keys),
        ("network.range", old.network.range != new.network.range),
        ("network.dns", old.network.dns != new.network.dns),
        ("network.limits", old.network.limits != new.network.limits),
        ("network.warm_slots", old.network.warm_slots != new.network.warm_slots),
    ];
    let keys: Vec<&str> = keys.iter().filter(|(_, other)| *other).map(|(key, _)| *key).collect();
    if !keys.is_empty() {
        changes.notes.push(format!("group {name}: {} for new microVMs only", keys.join(", ")));
    }
    let mut more = 0;
    if new.count > old.count {
        more = missing;
        changes.notes.push(format!("group {name}: count {} -> {wanted}: {missing} launched", old.count));
    } else if new.count < old.count {
        let surplus = there.saturating_sub(wanted);
        let note = format!(
            "group {name}: count {} -> {wanted}: {surplus} more run on until they are deleted",
            old.count
        );
        changes.notes.push(note);
    }
    if !keys.is_empty() || new.count != old.count {
        changes.changed.push(name.clone());
    }
    more
}

impl Changes {
    fn remove(&mut self, group: &str, handles: &[Handle]) {
        self.removed.push(group.to_owned());
        let left = names(handles.iter().filter(|handle| handle.plan.row.group == group));
        self.notes.push(match left {
            Some(vms) => format!("group {group} is gone: {vms} run on until they are deleted"),
            None => format!("group {group} is gone"),
        });
    }

    /// Whether the file says what the last one said.
    pub(crate) fn is_empty(&self) -> bool {
        let lists = [&self.added, &self.removed, &self.changed, &self.policies];
        lists.iter().all(|list| list.is_empty())
    }
}

/// The first of these VMs, and how many more; `None` for none.
fn names<'a>(handles: impl Iterator<Item = &'a Handle>) -> Option<String> {
    let names: Vec<&str> = handles.map(Handle::name).collect();
    let more = names.len().saturating_sub(NAMED);
    let first = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match more {
        _ if names.is_empty() => None,
        0 => Some(first),
        more => Some(format!("{first} and {more} more")),
    }
}
