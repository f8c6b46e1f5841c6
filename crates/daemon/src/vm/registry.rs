//! All VMs of the daemon by name.
//!
//! Owns: making owner tasks, and the way down for all of them. Refuses: acting on a VM itself.

mod once;
mod policy;
mod reload;

pub(crate) use once::Once;
use once::patience;
pub(crate) use policy::Wish;
pub(crate) use reload::{Changes, RegroupError};

use super::create::{Made, Workshop};
use super::groups::Groups;
use super::owner::Owner;
use super::plan::{GroupPlan, StateDirs, VmPlan};
use super::table::State;
use super::{Handle, VmError, remove, request};
use crate::access::view;
use crate::chain::Chain;
use crate::events::Events;
use crate::fault::Step;
use crate::metrics::Metrics;
use crate::parts::Parts;
use crate::store::VmRow;
use enisle_api::{CreateVm, EventKind, Group, GroupBridge, GroupNetwork, Removal};
use futures_util::FutureExt;
use futures_util::future::join_all;
use std::collections::BTreeMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio_util::sync::CancellationToken;

/// How long a creation with `wait` takes at most, unless the request says otherwise.
const WAIT_DEFAULT: Duration = Duration::from_secs(120);

/// All VMs. Shared by everything that asks for one.
pub(crate) struct Registry {
    workshop: Workshop,
    groups: Arc<Groups>,
    dirs: StateDirs,
    vms: Arc<Mutex<BTreeMap<String, Handle>>>,
    /// Set when the daemon goes down: no more VMs from then on.
    stopping: CancellationToken,
    /// Held while a VM is looked for or made under an idempotency key.
    keyed: tokio::sync::Mutex<()>,
}

impl Registry {
    pub(crate) fn new(
        workshop: Workshop,
        groups: Arc<Groups>,
        dirs: StateDirs,
        stopping: CancellationToken,
    ) -> Self {
        let keyed = tokio::sync::Mutex::new(());
        Self { workshop, groups, dirs, vms: Arc::default(), stopping, keyed }
    }

    /// Starts a VM: returns when it has its name, its address, and a place in the queue of those that
    /// start.
    pub(crate) fn start(&self, create: &CreateVm) -> Result<Handle, VmError> {
        // Held until it is in the map: who changes the groups sees it, or it is made by the new ones.
        let groups = self.groups.hold();
        let accepted = request::accept(&seen(&groups), create)?;
        let place = self.workshop.queue.enter(u64::from(accepted.vm.ram_mib))?;
        // One lock over "are we stopping?" and the insertion, so that the way down misses none.
        let mut vms = self.lock();
        if self.stopping.is_cancelled() {
            return Err(VmError::ShuttingDown);
        }
        let row = self.workshop.store.reserve(&accepted.vm)?;
        if let Err(fault) = self.workshop.faults.check(Step::Reserve) {
            self.workshop.store.remove(&row.name)?;
            return Err(VmError::Injected { name: row.name, fault });
        }
        if let Some(script) = &accepted.userdata {
            self.workshop.store.set_script(&row.name, script)?;
        }
        let plan = Arc::new(VmPlan::new(row, accepted.group, accepted.userdata, &self.dirs));
        tracing::info!(vm = plan.name(), address = %plan.address(), "creating");
        self.events().tell(EventKind::VmCreated {
            vm: plan.name().to_owned(),
            group: plan.row.group.clone(),
            address: plan.address(),
        });
        let (owner, handle) = Owner::new(Arc::clone(&plan), self.workshop.clone(), place);
        vms.insert(plan.name().to_owned(), handle.clone());
        drop(vms);
        drop(groups);
        tokio::spawn(supervise(owner, plan, self.workshop.clone(), Arc::clone(&self.vms)));
        Ok(handle)
    }

    /// Takes over a VM of an earlier run, which lives. Its owner removes it where that fails. Also
    /// while the daemon goes down: what is not owned could not be removed.
    pub(crate) fn adopt(&self, row: VmRow) -> Result<Handle, VmError> {
        let groups = self.groups.all();
        let group = groups.iter().find(|group| group.config.name == row.group);
        let Some(group) = group else {
            let known = groups.iter().map(|group| group.config.name.as_str()).collect::<Vec<_>>();
            return Err(VmError::NoSuchGroup { name: row.group, known: known.join(", ") });
        };
        let script = self.workshop.store.script(&row.name)?;
        let plan = Arc::new(VmPlan::new(row, Arc::clone(group), script, &self.dirs));
        let (owner, handle) = Owner::adopting(Arc::clone(&plan), self.workshop.clone());
        self.lock().insert(plan.name().to_owned(), handle.clone());
        tokio::spawn(supervise(owner, plan, self.workshop.clone(), Arc::clone(&self.vms)));
        Ok(handle)
    }

    /// Starts a VM and waits until exec works in it, within the request's time. One that fails, or
    /// is not waited for to the end, is removed again.
    pub(crate) async fn start_and_wait(&self, create: &CreateVm) -> Result<Handle, VmError> {
        self.wait_for(Unready::new(self.start(create)?), create).await
    }

    async fn wait_for(&self, guard: Unready, create: &CreateVm) -> Result<Handle, VmError> {
        let handle = &guard.handle;
        match handle.ready(patience(create)).await {
            Ok(()) => Ok(guard.keep()),
            Err(error) => {
                // What could not be removed is in the log and in the list of VMs.
                let _ = handle.remove(Removal::Abandoned).await;
                Err(match error {
                    VmError::Failed { name, reason } => VmError::StartFailed { name, reason },
                    other => other,
                })
            }
        }
    }

    /// What happened.
    pub(crate) fn events(&self) -> &Arc<Events> {
        &self.workshop.events
    }

    /// What was measured.
    pub(crate) fn metrics(&self) -> &Arc<Metrics> {
        &self.workshop.metrics
    }

    /// How many VMs wait for their turn, and how many start.
    pub(crate) fn queued(&self) -> (usize, usize) {
        self.workshop.queue.sizes()
    }

    /// What its VMs are made of.
    pub(crate) fn parts(&self) -> &dyn Parts {
        &*self.workshop.parts
    }

    /// One VM that the caller sees.
    pub(crate) fn get(&self, name: &str) -> Result<Handle, VmError> {
        let found = self.lock().get(name).filter(|vm| view::sees(&vm.plan.row.group)).cloned();
        found.ok_or_else(|| VmError::NoSuchVm { name: name.to_owned() })
    }

    /// All VMs that the caller sees: by group, then by length and letters of the name, so that 10 comes after 9.
    pub(crate) fn list(&self) -> Vec<Handle> {
        let vms = self.lock();
        let mut all: Vec<Handle> =
            vms.values().filter(|vm| view::sees(&vm.plan.row.group)).cloned().collect();
        drop(vms);
        all.sort_by(|a, b| {
            let key = |handle: &Handle| {
                (handle.plan.row.group.clone(), handle.name().len(), handle.name().to_owned())
            };
            key(a).cmp(&key(b))
        });
        all
    }

    /// The groups that the caller sees.
    fn seen_groups(&self) -> Vec<Arc<GroupPlan>> {
        seen(&self.groups.hold())
    }

    /// The groups that the caller sees, as configured.
    pub(crate) fn groups(&self) -> Vec<Group> {
        let handles = self.list();
        let show = |group: &Arc<GroupPlan>| {
            let config = &group.config;
            let lists = super::policy::show(&group.lists());
            let members = handles.iter().filter(|handle| handle.plan.row.group == config.name).count();
            Group {
                name: config.name.clone(),
                count: config.count,
                vms: u32::try_from(members).unwrap_or(u32::MAX),
                capacity: config.network.range.capacity(),
                vcpu: config.vcpu,
                ram_mb: config.ram_mib,
                network: GroupNetwork {
                    mode: config.network.mode.name().to_owned(),
                    range: config.network.range.to_string(),
                    bridge: config.network.bridge.as_ref().map(shown),
                    drop: lists.drop,
                    allow: lists.allow,
                },
            }
        };
        self.seen_groups().iter().map(show).collect()
    }

    /// Starts the VMs that the file asks for and that are not there yet; returns at once.
    pub(crate) fn start_configured(&self) {
        for group in self.groups.all() {
            let lives = |vm: &&Handle| matches!(vm.state(), State::Running | State::Paused);
            let runs = |vm: &&Handle| vm.plan.row.group == group.config.name && lives(vm);
            let adopted = self.list().iter().filter(runs).count();
            self.start_some(&group.config.name, (group.config.count as usize).saturating_sub(adopted));
        }
    }

    /// Starts so many VMs of a group; what cannot be started is in the log.
    fn start_some(&self, group: &str, number: usize) {
        let create = CreateVm { group: Some(group.to_owned()), ..CreateVm::default() };
        for _ in 0..number {
            if let Err(error) = self.start(&create) {
                tracing::error!(group, "cannot start a VM: {}", Chain(&error));
            }
        }
    }

    /// Stops and removes every VM; resolves when that is over. Cancelling `hurry` kills what is
    /// still given time. No VM can be made afterwards.
    ///
    /// Returns the VMs of which something is left.
    pub(crate) async fn stop_all(&self, hurry: &CancellationToken) -> Vec<VmError> {
        self.stopping.cancel();
        let handles = self.list();
        let removals = join_all(handles.iter().map(|handle| handle.remove(Removal::Shutdown)));
        let outcomes = tokio::select! {
            outcomes = removals => outcomes,
            () = hurry.cancelled() => {
                join_all(handles.iter().map(Handle::hurry)).await;
                join_all(handles.iter().map(|handle| handle.remove(Removal::Shutdown))).await
            }
        };
        outcomes.into_iter().filter_map(Result::err).collect()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Handle>> {
        lock(&self.vms)
    }
}

/// A panic elsewhere leaves a map that is whole: every change of it is one call.
fn lock(vms: &Mutex<BTreeMap<String, Handle>>) -> MutexGuard<'_, BTreeMap<String, Handle>> {
    vms.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs an owner task. A defect in it must not leave a VM that nobody owns.
async fn supervise(
    owner: Owner,
    plan: Arc<VmPlan>,
    workshop: Workshop,
    vms: Arc<Mutex<BTreeMap<String, Handle>>>,
) {
    let ended = AssertUnwindSafe(owner.run()).catch_unwind().await;
    if ended.is_err() {
        tracing::error!(vm = plan.name(), "a defect: its owner task panicked; removing the VM");
        // The owner's handles are dropped: the VMM is being killed.
        let cleared = remove::clear(&workshop, &plan, Made::default()).await;
        let forgotten = remove::forget(&workshop, &plan).await;
        for left in [cleared, forgotten].into_iter().filter_map(Result::err) {
            tracing::error!(vm = plan.name(), "{left}");
        }
    }
    {
        let mut vms = lock(&vms);
        // Its name is free again: another VM may have it already.
        if vms.get(plan.name()).is_some_and(|handle| Arc::ptr_eq(&handle.plan, &plan)) {
            vms.remove(plan.name());
        }
    }
    let (waiting, removal) = ended.unwrap_or((Vec::new(), Removal::Lost));
    workshop.events.tell(EventKind::VmRemoved {
        vm: plan.name().to_owned(),
        group: plan.row.group.clone(),
        removal,
    });
    // Only now, so that who waited does not find it in the list any more.
    for waiting in waiting {
        // Who asked may have gone away.
        let _ = waiting.send(Ok(()));
    }
}

/// A VM that somebody waits for. Dropped before it was kept, it is removed: its client is gone.
pub(crate) struct Unready {
    handle: Handle,
    kept: bool,
}

impl Unready {
    /// A VM that goes when this goes.
    pub(crate) fn new(handle: Handle) -> Self {
        Self { handle, kept: false }
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    fn keep(mut self) -> Handle {
        self.kept = true;
        self.handle.clone()
    }
}

impl Drop for Unready {
    fn drop(&mut self) {
        if !self.kept {
            self.handle.give_up();
        }
    }
}

fn shown(bridge: &enisle_net::Bridge) -> GroupBridge {
    GroupBridge {
        name: bridge.name.clone(),
        gateway: bridge.gateway.addr(),
        subnet: bridge.gateway.trunc().to_string(),
        isolate_ports: bridge.isolate_ports,
        uplink: bridge.uplink.clone(),
        route_between: bridge.route_between,
    }
}

/// Those of the groups that the caller sees.
fn seen(groups: &[Arc<GroupPlan>]) -> Vec<Arc<GroupPlan>> {
    groups.iter().filter(|group| view::sees(&group.config.name)).cloned().collect()
}
