//! VMs of an earlier run: taken over whole, or removed whole.

use super::*;
use crate::store::{VmRow, VmmProcess};

/// A VM that an earlier run has left running, with a script of which it had no word yet.
fn left_running(bench: &Bench) -> VmRow {
    let groups = group_plans(FILE);
    let accepted = super::super::request::accept(&groups, &CreateVm::default()).unwrap();
    let row = bench.store.reserve(&accepted.vm).unwrap();
    bench.store.set_script(&row.name, "echo hello").unwrap();
    bench.store.set_vmm(&row.name, VmmProcess { pid: std::process::id(), start_ticks: 1 }).unwrap();
    bench.store.set_running(&row.name, 4321).unwrap();
    bench.store.get(&row.name).unwrap().unwrap()
}

#[tokio::test]
async fn an_adopted_vm_runs_at_once_is_counted_and_goes_like_any_other() {
    let mut bench = bench(Guest::Honest, FaultPlan::default());
    let row = left_running(&bench);
    let vm = bench.registry.adopt(row).unwrap();
    vm.settled().await;
    let shown = vm.show();
    assert_eq!((shown.state, shown.ready_after_ms), (VmState::Running, Some(4321)), "as it was");
    assert!(shown.pid.is_some());
    vm.ready(SOON).await.unwrap();

    // Its agent comes back, is told again who it is, and gets the script that had no outcome.
    assert_eq!(bench.told.recv().await.unwrap(), "you are agents-1");
    assert_eq!(bench.told.recv().await.unwrap(), "Userdata(10 bytes, last: true)");
    timeout(SOON, async {
        while vm.show().userdata_exit != Some(3) {
            tokio::task::yield_now().await;
        }
    })
    .await
    .unwrap();
    assert_eq!(bench.store.script("agents-1").unwrap(), None, "no secret is kept longer than needed");
    assert_eq!(vm.show().ready_after_ms, Some(4321), "it was ready long ago");

    // The file asks for two: one more.
    bench.registry.start_configured();
    assert_eq!(bench.registry.list().len(), 2);
    bench.registry.stop_all(&CancellationToken::new()).await;
    bench.bare().await;
}

#[tokio::test]
async fn a_paused_vm_is_adopted_as_it_is() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let row = left_running(&bench);
    bench.parts.fault("paused", Fault::Fail);
    let vm = bench.registry.adopt(row).unwrap();
    vm.settled().await;
    assert_eq!(vm.show().state, VmState::Paused);
    // The file asks for two: one more.
    bench.registry.start_configured();
    assert_eq!(bench.registry.list().len(), 2);
    vm.resume().await.unwrap();
    vm.ready(SOON).await.unwrap();
    bench.registry.stop_all(&CancellationToken::new()).await;
    bench.bare().await;
}

#[tokio::test]
async fn a_vm_that_cannot_be_taken_over_is_killed_and_removed() {
    for part in ["slot", "vmm", "channel"] {
        let mut bench = bench(Guest::Honest, FaultPlan::default());
        let row = left_running(&bench);
        bench.parts.fault(part, Fault::Fail);
        let vm = bench.registry.adopt(row).unwrap();
        vm.settled().await;
        assert_ne!(vm.state(), State::Running, "{part}");
        bench.bare().await;
        // What nobody owned was killed; what was owned already was killed by its owner.
        let killed = bench.told.try_recv().is_ok_and(|told| told == "killed agents-1");
        assert_eq!(killed, part != "channel", "{part}");
    }
}

#[tokio::test]
async fn a_vm_is_adopted_while_the_daemon_goes_down_so_that_it_is_removed() {
    let bench = bench(Guest::Stubborn, FaultPlan::default());
    let row = left_running(&bench);
    bench.stopping.cancel();
    let vm = bench.registry.adopt(row).unwrap();
    vm.settled().await;
    let hurry = CancellationToken::new();
    hurry.cancel();
    assert!(bench.registry.stop_all(&hurry).await.is_empty());
    bench.bare().await;
}

#[tokio::test]
async fn a_vm_without_a_group_is_nobodys() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let row = VmRow { group: "gone".to_owned(), ..left_running(&bench) };
    assert!(matches!(bench.registry.adopt(row), Err(VmError::NoSuchGroup { .. })));
}
