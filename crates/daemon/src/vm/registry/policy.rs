//! Policies of VMs and groups: shown, changed while guests run, explained.
//!
//! ```text
//! read the lists ─▶ lock the group ─▶ right revision? ─▶ compile all ─▶ store ─▶ switch all ─▶ remember
//!                                                         └ dry run ends here     └ fails: store the old
//! ```
//!
//! Owns: that order, and that a change holds for all VMs it is about or for none. Refuses: what
//! policies mean (`vm::policy`, `vm::explain`).

use super::{Handle, Registry, lock};
use crate::chain::Chain;
use crate::parts::PartError;
use crate::vm::VmError;
use crate::vm::create::Workshop;
use crate::vm::plan::{GroupPlan, VmPlan};
use crate::vm::policy::{self, PolicyError};
use crate::vm::{explain, request};
use enisle_api::{CutFlow, EventKind, Policy, PolicyChange, PolicyLists, Why};
use enisle_net::LiveFlow;
use enisle_net::policy::{CompileError, CompiledPolicy, PolicySpec, compile, compile_narrowed};
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

/// Entries that an answer holds at most: some 6 MB.
const MAX_ENTRIES: usize = 50_000;

/// A change as asked for: full replacement of both lists.
#[derive(Debug)]
pub(crate) struct Wish {
    pub(crate) lists: PolicyLists,
    /// Only say what would change.
    pub(crate) dry_run: bool,
    /// The revision it was made for.
    pub(crate) expected: Option<String>,
}

impl Registry {
    /// A VM's policy, with what was counted while it has its network.
    pub(crate) async fn vm_policy(&self, name: &str) -> Result<Policy, VmError> {
        let (plan, workshop) = (self.get(name)?.plan, self.workshop.clone());
        on_a_thread(move || {
            let group = plan.group.lists();
            let own = plan.own_lists();
            let compiled = compile_narrowed(&group, &own).map_err(|e| unenforceable(None, e))?;
            let mut shown = show(plan.name(), &own, &compiled);
            only_what_holds(&plan.group, &mut shown);
            shown.group_lists = Some(policy::show(&group));
            match workshop.parts.observe(&plan) {
                Ok(observed) => {
                    shown.counters = explain::counters(&observed);
                    shown.refused = explain::refused(&compiled, &observed);
                }
                Err(PartError::NoSlot(_)) => {}
                Err(error) => return Err(error.into()),
            }
            Ok(shown)
        })
        .await
    }

    /// A group's policy of this moment.
    pub(crate) async fn group_policy(&self, name: &str) -> Result<Policy, VmError> {
        let group = self.group(name)?;
        on_a_thread(move || {
            let lists = group.lists();
            let compiled = compile(&lists).map_err(|e| unenforceable(None, e))?;
            let mut shown = show(&group.config.name, &lists, &compiled);
            only_what_holds(&group, &mut shown);
            Ok(shown)
        })
        .await
    }

    /// Replaces a VM's own lists, in the store and in force.
    pub(crate) async fn set_vm_policy(&self, name: &str, wish: Wish) -> Result<PolicyChange, VmError> {
        let handle = self.get(name)?;
        handle.usable()?;
        let (plan, workshop) = (handle.plan, self.workshop.clone());
        on_a_thread(move || change_vm(&workshop, &plan, &wish)).await
    }

    /// Replaces a group's lists, for all its VMs, and those made until the daemon stops. A crash does not end it.
    pub(crate) async fn set_group_policy(&self, name: &str, wish: Wish) -> Result<PolicyChange, VmError> {
        let (group, workshop, vms) = (self.group(name)?, self.workshop.clone(), Arc::clone(&self.vms));
        on_a_thread(move || change_group(&workshop, &group, &vms, &wish)).await
    }

    /// What becomes of a packet from a VM, and why.
    pub(crate) async fn why(&self, name: &str, destination: &str) -> Result<Why, VmError> {
        let asked = explain::question(destination)?;
        let handle = self.get(name)?;
        let (plan, workshop) = (handle.plan.clone(), self.workshop.clone());
        let answer = on_a_thread(move || {
            // Held: no change comes between the two answers that are compared.
            let group = plan.group.lists();
            let compiled = plan.compile(&group).map_err(|e| unenforceable(None, e))?;
            let found = workshop.parts.why(&plan, &compiled, &asked)?;
            Ok(explain::why(plan.name(), &compiled, &asked, &found))
        });
        match answer.await {
            Err(VmError::Network(error)) if matches!(*error, PartError::NoSlot(_)) => {
                Err(VmError::NoNetwork { name: name.to_owned() })
            }
            answer => answer,
        }
    }

    fn group(&self, name: &str) -> Result<Arc<GroupPlan>, VmError> {
        request::find_group(&self.seen_groups(), Some(name)).map(Arc::clone)
    }
}

/// Runs what blocks, to its end, also when nobody waits for it any more.
async fn on_a_thread<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, VmError> + Send + 'static,
) -> Result<T, VmError> {
    let panicked = |_| VmError::from(PartError::Panicked("work on a policy"));
    let span = tracing::Span::current();
    tokio::task::spawn_blocking(move || span.in_scope(work)).await.map_err(panicked)?
}

fn unenforceable(vm: Option<&VmPlan>, source: CompileError) -> VmError {
    PolicyError::Unenforceable { vm: vm.map(|vm| vm.name().to_owned()), source }.into()
}

/// In a mode without lists nothing of a policy is in force, the floor included.
fn only_what_holds(group: &GroupPlan, shown: &mut Policy) {
    if group.has_lists().is_err() {
        shown.entries.clear();
        shown.entries_total = 0;
    }
}

fn show(name: &str, lists: &PolicySpec, compiled: &CompiledPolicy) -> Policy {
    let mut entries = explain::entries(compiled);
    let entries_total = entries.len();
    entries.truncate(MAX_ENTRIES);
    Policy {
        name: name.to_owned(),
        revision: policy::revision(lists),
        lists: policy::show(lists),
        group_lists: None,
        egress_none: compiled.reaches_nothing(),
        entries,
        entries_total,
        counters: BTreeMap::new(),
        refused: Vec::new(),
    }
}

fn change_vm(workshop: &Workshop, plan: &Arc<VmPlan>, wish: &Wish) -> Result<PolicyChange, VmError> {
    plan.group.has_lists()?;
    let new = policy::parse(&wish.lists.drop, &wish.lists.allow)?;
    let group = plan.group.lists_to_change();
    let old = plan.own_lists();
    policy::check_revision(plan.name(), &old, wish.expected.as_deref())?;
    let compiled = |own| compile_narrowed(&group, own).map_err(|e| unenforceable(None, e));
    let (before, after) = (compiled(&old)?, compiled(&new)?);
    let mut change = describe(plan.name(), &new, &before, &after);
    change.vms.push(plan.name().to_owned());
    if wish.dry_run {
        change.dry_run = true;
        change.cuts = cuts(workshop, plan, &before, &after)?;
        return Ok(change);
    }
    // First the store: should the daemon be killed now, the next one puts these in force.
    workshop.store.set_lists(plan.name(), &new)?;
    if let Err(error) = workshop.parts.switch(&[(Arc::clone(plan), after)]) {
        if let Err(left) = workshop.store.set_lists(plan.name(), &old) {
            tracing::error!(vm = plan.name(), "cannot write the state: {}", Chain(&left));
        }
        return Err(error.into());
    }
    plan.set_own_lists(new);
    tracing::info!(vm = plan.name(), revision = change.revision, "policy changed");
    workshop.events.tell(EventKind::PolicyChanged {
        vm: Some(plan.name().to_owned()),
        group: plan.row.group.clone(),
        revision: change.revision.clone(),
    });
    Ok(change)
}

fn change_group(
    workshop: &Workshop,
    group: &Arc<GroupPlan>,
    vms: &Mutex<BTreeMap<String, Handle>>,
    wish: &Wish,
) -> Result<PolicyChange, VmError> {
    group.has_lists()?;
    let new = policy::parse(&wish.lists.drop, &wish.lists.allow)?;
    let name = &group.config.name;
    let mut lists = group.lists_to_change();
    policy::check_revision(name, &lists, wish.expected.as_deref())?;
    let before = compile(&lists).map_err(|e| unenforceable(None, e))?;
    let after = compile(&new).map_err(|e| unenforceable(None, e))?;
    // Who is not among them yet makes its network when we are done, under the new lists.
    let members: Vec<Arc<VmPlan>> = lock(vms)
        .values()
        .filter(|handle| handle.plan.row.group == *name)
        .map(|handle| Arc::clone(&handle.plan))
        .collect();
    let mut change = describe(name, &new, &before, &after);
    change.vms = members.iter().map(|plan| plan.name().to_owned()).collect();
    let mut policies = Vec::with_capacity(members.len());
    for plan in members {
        let compiled = plan.compile(&new).map_err(|e| unenforceable(Some(&plan), e))?;
        policies.push((plan, compiled));
    }
    if wish.dry_run {
        change.dry_run = true;
        for (plan, after) in &policies {
            let before = plan.compile(&lists).map_err(|e| unenforceable(Some(plan), e))?;
            change.cuts.extend(cuts(workshop, plan, &before, after)?);
        }
        return Ok(change);
    }
    // As for one VM: a killed daemon's change holds on.
    let file = group.file_lists();
    workshop.store.set_group_lists(name, &new, &file)?;
    if let Err(error) = workshop.parts.switch(&policies) {
        if let Err(left) = workshop.store.set_group_lists(name, &lists, &file) {
            tracing::error!(group = name, "cannot write the state: {}", Chain(&left));
        }
        return Err(error.into());
    }
    *lists = new;
    tracing::info!(
        group = name,
        revision = change.revision,
        vms = policies.len(),
        "policy changed until the daemon stops; the file has it from then on"
    );
    workshop.events.tell(EventKind::PolicyChanged {
        vm: None,
        group: name.clone(),
        revision: change.revision.clone(),
    });
    Ok(change)
}

fn describe(name: &str, lists: &PolicySpec, before: &CompiledPolicy, after: &CompiledPolicy) -> PolicyChange {
    let (mut removed, mut added) = policy::difference(before, after);
    removed.truncate(MAX_ENTRIES);
    added.truncate(MAX_ENTRIES);
    PolicyChange {
        name: name.to_owned(),
        dry_run: false,
        revision: policy::revision(lists),
        removed,
        added,
        vms: Vec::new(),
        cuts: Vec::new(),
    }
}

fn cuts(
    workshop: &Workshop,
    plan: &VmPlan,
    before: &CompiledPolicy,
    after: &CompiledPolicy,
) -> Result<Vec<CutFlow>, VmError> {
    let show = |flow: LiveFlow| CutFlow {
        vm: plan.name().to_owned(),
        protocol: match flow.proto {
            6 => "tcp",
            17 => "udp",
            _ => "icmp",
        }
        .to_owned(),
        destination: flow.destination,
        port: flow.port,
        source_port: flow.source_port,
    };
    Ok(workshop.parts.cut_by(plan, before, after)?.into_iter().map(show).collect())
}
