//! The life of VMs, with parts that exist only as names: whatever fails, whenever, nothing of a
//! VM is left.

mod adopt;
mod events;
mod halt;
mod lifetime;
mod policy;
mod queued;
mod reload;
mod request_ids;

use super::create::Workshop;
use super::groups::Groups;
use super::plan::{GroupPlan, StateDirs, VmPlan};
use super::queue::Queue;
use super::registry::Registry;
use super::table::State;
use super::{Handle, VmError};
use crate::config::{self, AnyHost};
use crate::events::Events;
use crate::fault::{FaultPlan, Step};
use crate::parts::fake::{FakeParts, Fault, Guest, TURNS_LATE};
use crate::store::Store;
use enisle_api::{CreateVm, Removal, VmState};
use enisle_vmm::ExitReason;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

const FILE: &str = "config:\n  host_groups:\n    - name: agents\n      count: 2\n      network:\n        \
                    mode: isolated\n        range: 169.254.100.0/29\n        dns: [9.9.9.9]\n";
const SOON: Duration = Duration::from_secs(10);

fn group_plans(file: &str) -> Vec<Arc<GroupPlan>> {
    let config = config::parse("test.yaml", file, &AnyHost).unwrap();
    let plan = |group: &config::Group| Arc::new(GroupPlan::new(group.clone()).unwrap());
    config.groups.iter().map(plan).collect()
}

/// The plan of the first VM, with a script, below a directory.
pub(crate) fn plan(dir: &std::path::Path, script: Option<&str>) -> Arc<VmPlan> {
    plan_of(&group_plans(FILE), dir, script)
}

/// The same with keys for logging in: together they may be more than a configuration can hold.
pub(crate) fn plan_with_keys(dir: &std::path::Path, keys: &[String]) -> Arc<VmPlan> {
    let read = |key| group_plans(&format!("{FILE}      ssh_keys: [{key}]\n"))[0].config.ssh_keys.clone();
    let mut groups = group_plans(FILE);
    Arc::get_mut(&mut groups[0]).unwrap().config.ssh_keys = keys.iter().flat_map(read).collect();
    plan_of(&groups, dir, None)
}

fn plan_of(groups: &[Arc<GroupPlan>], dir: &std::path::Path, script: Option<&str>) -> Arc<VmPlan> {
    let store = Store::open(&dir.join("store")).unwrap();
    let accepted = super::request::accept(groups, &CreateVm::default()).unwrap();
    let row = store.reserve(&accepted.vm).unwrap();
    Arc::new(VmPlan::new(row, accepted.group, script.map(str::to_owned), &StateDirs::new(dir)))
}

/// A daemon without HTTP, on a directory of its own.
pub(crate) struct Bench {
    pub(crate) registry: Arc<Registry>,
    pub(crate) parts: Arc<FakeParts>,
    pub(crate) store: Arc<Store>,
    pub(crate) stopping: CancellationToken,
    told: mpsc::UnboundedReceiver<String>,
    dir: tempfile::TempDir,
}

pub(crate) fn bench(guest: Guest, faults: FaultPlan) -> Bench {
    bench_with(guest, faults, 9)
}

/// The same where only so many VMs start at once.
fn bench_with(guest: Guest, faults: FaultPlan, at_once: usize) -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let (parts, told) = FakeParts::new(guest);
    let store = Arc::new(Store::open(dir.path()).unwrap());
    let groups = group_plans(FILE);
    let queue = Queue::new(at_once, || None);
    let workshop = Workshop {
        parts: parts.clone(),
        store: Arc::clone(&store),
        faults,
        queue,
        events: Arc::new(Events::new(1)),
        metrics: Arc::new(crate::metrics::Metrics::new()),
    };
    let stopping = CancellationToken::new();
    let registry = {
        let groups = Groups::new(groups);
        Arc::new(Registry::new(workshop, groups, StateDirs::new(dir.path()), stopping.clone()))
    };
    Bench { registry, parts, store, stopping, told, dir }
}

impl Bench {
    /// The next of what guests were told, or tell.
    pub(crate) async fn told(&mut self) -> String {
        self.told.recv().await.unwrap()
    }

    /// Nothing of any VM is left, anywhere.
    #[track_caller]
    fn assert_bare(&self) {
        assert_eq!(self.parts.left(), [] as [String; 0]);
        assert_eq!(self.store.list().unwrap(), []);
        assert!(self.registry.list().is_empty());
        for dir in ["run", "vms"] {
            let left: Vec<_> =
                std::fs::read_dir(self.dir.path().join(dir)).into_iter().flatten().flatten().collect();
            assert!(left.is_empty(), "{left:?}");
        }
    }

    async fn bare(&self) {
        let all_gone = async {
            while !self.registry.list().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, all_gone).await.expect("VMs stay");
        self.assert_bare();
    }
}

/// For a test that reads the log. A process with one subscriber takes a line's interest from the thread that says
/// it first, which may be another test's without any (tracing-core's `has_just_one`); with a second one it asks both.
pub(crate) fn two_subscribers() {
    static SECOND: std::sync::OnceLock<tracing::Dispatch> = std::sync::OnceLock::new();
    let silent = || tracing_subscriber::fmt().with_writer(std::io::sink).finish();
    SECOND.get_or_init(|| tracing::Dispatch::new(silent()));
}

fn waiting() -> CreateVm {
    CreateVm { wait: true, ..CreateVm::default() }
}

async fn reaches(vm: &Handle, state: State) {
    let mut status = vm.status.clone();
    let reached = timeout(SOON, status.wait_for(|status| status.state == state)).await;
    assert!(matches!(reached, Ok(Ok(_))), "{:?} instead of {state:?}", vm.show());
}

#[tokio::test]
async fn a_vm_comes_up_with_its_identity_and_goes_when_it_is_asked_to() {
    let mut bench = bench(Guest::Honest, FaultPlan::default());
    let create = CreateVm { userdata: Some("é".repeat(3000)), ..waiting() };
    let vm = bench.registry.start_and_wait(&create).await.unwrap();
    let shown = vm.show();
    assert_eq!((shown.name.as_str(), shown.state), ("agents-1", VmState::Running));
    assert_eq!(shown.address, Ipv4Addr::new(169, 254, 100, 2));
    assert!(shown.ready_after_ms.is_some() && shown.pid.is_some());
    let row = bench.store.get("agents-1").unwrap().unwrap();
    assert!(row.vmm.is_some() && row.ready_after_ms.is_some());
    assert_eq!(bench.told.recv().await.unwrap(), "you are agents-1");
    let parts: Vec<String> = [bench.told.recv().await, bench.told.recv().await, bench.told.recv().await]
        .into_iter()
        .flatten()
        .collect();
    assert_eq!(
        parts,
        [
            "Userdata(2048 bytes, last: false)",
            "Userdata(2048 bytes, last: false)",
            "Userdata(1904 bytes, last: true)"
        ]
    );
    timeout(SOON, async {
        while vm.show().userdata_exit != Some(3) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    vm.remove(Removal::Deleted).await.unwrap();
    assert_eq!(bench.told.recv().await.unwrap(), "Shutdown");
    bench.assert_bare();
}

#[tokio::test]
async fn a_fault_after_any_step_undoes_all_of_them_and_names_the_step() {
    for step in Step::ALL {
        let bench = bench(Guest::Honest, FaultPlan::failing(step));
        let error = bench.registry.start_and_wait(&waiting()).await.err().expect("it fails");
        assert!(error.to_string().contains(&format!("`{step}`")), "{error}");
        bench.assert_bare();
    }
}

#[tokio::test]
async fn a_part_that_fails_undoes_what_was_made_before_it() {
    for part in ["slot", "channel", "disk", "vmm", "start"] {
        let bench = bench(Guest::Honest, FaultPlan::default());
        bench.parts.fault(part, Fault::Fail);
        let error = bench.registry.start_and_wait(&waiting()).await.err().expect("it fails");
        assert!(matches!(error, VmError::StartFailed { .. }), "{part}: {error}");
        bench.assert_bare();
        bench.registry.start_and_wait(&waiting()).await.expect("the fault strikes once");
    }
}

#[tokio::test]
async fn a_part_that_fails_while_others_are_being_made_leaves_none_of_them() {
    let together = ["slot", "channel", "disk"];
    for fails in together {
        for fault in [Fault::Fail, Fault::Panic] {
            let bench = bench(Guest::Honest, FaultPlan::default());
            bench.parts.fault(fails, fault);
            for late in together.into_iter().filter(|part| *part != fails) {
                bench.parts.fault(late, Fault::Late);
            }
            let error = bench.registry.start_and_wait(&waiting()).await.err().expect("it fails");
            assert!(error.to_string().contains(&format!("`{fails}`")), "{error}");
            // What nobody waited for would be made by now.
            for _ in 0..2 * TURNS_LATE {
                tokio::task::yield_now().await;
            }
            bench.assert_bare();
        }
    }
}

#[tokio::test]
async fn deleting_while_parts_are_being_made_waits_for_them() {
    for late in ["slot", "channel", "disk"] {
        let bench = bench(Guest::Honest, FaultPlan::default());
        bench.parts.fault(late, Fault::Late);
        let vm = bench.registry.start(&CreateVm::default()).unwrap();
        tokio::task::yield_now().await;
        timeout(SOON, vm.remove(Removal::Deleted)).await.unwrap().unwrap();
        for _ in 0..2 * TURNS_LATE {
            tokio::task::yield_now().await;
        }
        bench.assert_bare();
    }
}

#[tokio::test]
async fn a_defect_in_a_part_leaves_no_vm_without_an_owner() {
    for part in ["vmm", "remove disk"] {
        let bench = bench(Guest::Fleeting, FaultPlan::default());
        bench.parts.fault(part, Fault::Panic);
        bench.registry.start(&CreateVm::default()).unwrap();
        bench.bare().await;
    }
}

#[tokio::test]
async fn what_goes_wrong_inside_is_told_and_kept_until_it_is_deleted() {
    for (guest, reason) in [
        (Guest::Fleeting, "guest powered off"),
        (Guest::Broken, "the guest's set-up failed: mount /dev/vda: no [2J disk"),
    ] {
        let bench = bench(guest, FaultPlan::default());
        let vm = bench.registry.start(&CreateVm::default()).unwrap();
        reaches(&vm, State::Failed).await;
        assert_eq!(vm.show().reason.as_deref(), Some(reason));
        assert_eq!(vm.show().pid, None);
        assert_eq!(bench.parts.left(), [] as [String; 0], "slot and disk are gone at once");
        assert!(bench.dir.path().join("vms/agents-1").exists(), "its log is kept");
        assert!(matches!(vm.ready(SOON).await, Err(VmError::Failed { .. })));
        vm.remove(Removal::Deleted).await.unwrap();
        bench.assert_bare();
    }
}

#[tokio::test]
async fn a_guests_later_words_change_nothing() {
    for (script, exit) in [(None, None), (Some("x"), Some(0))] {
        let mut bench = bench(Guest::Talkative, FaultPlan::default());
        let create = CreateVm { userdata: script.map(str::to_owned), ..waiting() };
        let vm = bench.registry.start_and_wait(&create).await.unwrap();
        // What it is told last, it is told after all of its words were read.
        assert_eq!(bench.told.recv().await.unwrap(), "you are agents-1");
        if script.is_some() {
            assert_eq!(bench.told.recv().await.unwrap(), "Userdata(1 bytes, last: true)");
        }
        vm.remove(Removal::Deleted).await.unwrap();
        assert_eq!(bench.told.recv().await.unwrap(), "Shutdown");
        let shown = vm.show();
        assert_eq!((shown.userdata_exit, shown.reason), (exit, None));
    }
}

#[tokio::test]
async fn a_vmm_that_dies_is_noticed() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    let exit = vm.machine_now().unwrap().kill().await;
    assert_eq!(exit.reason, ExitReason::Killed);
    reaches(&vm, State::Failed).await;
    assert_eq!(vm.show().reason.as_deref(), Some("its VMM was killed: exit code 0"));
    assert!(vm.guest_ended().await.to_string().contains("its VMM was killed"));
}

#[tokio::test]
async fn a_client_that_does_not_wait_to_the_end_leaves_nothing() {
    // While a step hangs, while the guest boots.
    for (guest, hang) in [(Guest::Honest, Some("vmm")), (Guest::Mute, None)] {
        let bench = bench(guest, FaultPlan::default());
        if let Some(part) = hang {
            bench.parts.fault(part, Fault::Hang);
        }
        let gone = timeout(Duration::from_millis(200), bench.registry.start_and_wait(&waiting())).await;
        assert!(gone.is_err(), "it waits");
        bench.bare().await;
    }
}

#[tokio::test]
async fn a_wait_has_its_bound() {
    let bench = bench(Guest::Mute, FaultPlan::default());
    let create = CreateVm { timeout_ms: Some(100), ..waiting() };
    let error = bench.registry.start_and_wait(&create).await.err().unwrap();
    assert!(matches!(error, VmError::NotReady { .. }), "{error}");
    bench.assert_bare();
}

#[tokio::test]
async fn deleting_while_it_is_made_calls_the_creation_off() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    bench.parts.fault("vmm", Fault::Hang);
    let vm = bench.registry.start(&CreateVm::default()).unwrap();
    timeout(SOON, vm.remove(Removal::Deleted)).await.unwrap().unwrap();
    bench.assert_bare();
}

#[tokio::test]
async fn a_guest_that_will_not_stop_gets_the_button_and_is_killed() {
    let mut bench = bench(Guest::Stubborn, FaultPlan::default());
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    // From here on time passes as soon as nothing else can happen.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    vm.remove(Removal::Deleted).await.unwrap();
    assert_eq!(begun.elapsed().as_secs(), 10);
    let mut told = Vec::new();
    while let Ok(words) = bench.told.try_recv() {
        told.push(words);
    }
    assert_eq!(told, ["you are agents-1", "Shutdown", "power button"]);
    bench.assert_bare();
}

#[tokio::test]
async fn the_daemon_stops_all_and_makes_no_more() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    bench.registry.start_configured();
    assert_eq!(bench.registry.list().len(), 2, "the range holds two");
    let stuck = timeout(SOON, bench.registry.stop_all(&CancellationToken::new())).await.unwrap();
    assert!(stuck.is_empty());
    bench.assert_bare();
    assert!(matches!(bench.registry.start(&CreateVm::default()), Err(VmError::ShuttingDown)));
}

#[tokio::test]
async fn a_second_request_to_stop_kills_at_once() {
    let bench = bench(Guest::Stubborn, FaultPlan::default());
    bench.registry.start_and_wait(&waiting()).await.unwrap();
    let hurry = CancellationToken::new();
    let registry = Arc::clone(&bench.registry);
    let stopping = tokio::spawn({
        let hurry = hurry.clone();
        async move { registry.stop_all(&hurry).await.len() }
    });
    bench.stopping.cancelled().await;
    hurry.cancel();
    assert_eq!(timeout(Duration::from_secs(5), stopping).await.unwrap().unwrap(), 0);
    bench.assert_bare();
}

#[tokio::test]
async fn what_cannot_be_removed_is_said_and_can_be_tried_again() {
    for part in ["remove slot", "remove disk", "remove channel", "remove home"] {
        let bench = bench(Guest::Honest, FaultPlan::default());
        let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
        bench.parts.fault(part, Fault::Fail);
        let error = vm.remove(Removal::Deleted).await.unwrap_err();
        assert!(error.to_string().contains("could not be removed entirely"), "{error}");
        assert_eq!(vm.show().state, VmState::Failed, "it can be seen");
        assert!(bench.store.get("agents-1").unwrap().is_some(), "name and block stay taken");
        vm.remove(Removal::Deleted).await.unwrap();
        bench.assert_bare();
    }
}

#[tokio::test]
async fn requests_are_judged_before_anything_is_made() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let refused = |create: CreateVm| bench.registry.start(&create).err().unwrap().to_string();
    assert!(refused(CreateVm { group: Some("x".into()), ..CreateVm::default() }).contains("agents"));
    assert!(refused(CreateVm { vcpu: Some(0), ..CreateVm::default() }).contains("vcpu"));
    assert!(refused(CreateVm { ram_mb: Some(63), ..CreateVm::default() }).contains("ram_mb"));
    assert!(refused(CreateVm { name: Some("../x".into()), ..CreateVm::default() }).contains("../x"));
    assert!(
        refused(CreateVm { userdata: Some("x".repeat(256 * 1024 + 1)), ..CreateVm::default() })
            .contains("KiB")
    );
    bench.assert_bare();
}

#[tokio::test]
async fn a_name_is_free_again_at_once() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    for _ in 0..20 {
        let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
        assert_eq!(vm.name(), "agents-1");
        vm.remove(Removal::Deleted).await.unwrap();
        assert!(bench.registry.get("agents-1").is_err());
    }
    bench.assert_bare();
}
