//! Pausing, resuming, and what becomes of a paused VM.

use super::*;

/// A VM that runs, and has told what a guest tells.
async fn running(bench: &mut Bench) -> Handle {
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    assert_eq!(bench.told().await, "you are agents-1");
    vm
}

#[tokio::test]
async fn a_vm_is_paused_and_runs_on_and_either_may_be_asked_twice() {
    let mut bench = bench(Guest::Honest, FaultPlan::default());
    let vm = running(&mut bench).await;
    for _ in 0..2 {
        vm.pause().await.unwrap();
        assert_eq!(vm.show().state, VmState::Paused);
    }
    assert_eq!(bench.told().await, "pause");
    assert!(vm.usable().is_ok());
    assert!(matches!(vm.answers(), Err(VmError::Paused { .. })), "nobody inside would answer");
    assert!(matches!(vm.ready(SOON).await, Err(VmError::Paused { .. })));
    for _ in 0..2 {
        vm.resume().await.unwrap();
        assert_eq!(vm.show().state, VmState::Running);
    }
    assert_eq!(bench.told().await, "resume", "the VMM was asked once for each");
    vm.ready(SOON).await.unwrap();
    vm.remove(Removal::Deleted).await.unwrap();
    bench.bare().await;
}

#[tokio::test]
async fn wishes_of_many_are_fulfilled_in_their_order() {
    let mut bench = bench(Guest::Honest, FaultPlan::default());
    let vm = running(&mut bench).await;
    let wishes: Vec<_> = (0..20)
        .map(|i| {
            let vm = vm.clone();
            async move { if i % 2 == 0 { vm.pause().await } else { vm.resume().await } }
        })
        .collect();
    for outcome in futures_util::future::join_all(wishes).await {
        outcome.unwrap();
    }
    assert_eq!(vm.state(), State::Running, "the last one's");
    for _ in 0..10 {
        assert_eq!((bench.told().await, bench.told().await), ("pause".to_owned(), "resume".to_owned()));
    }
    vm.remove(Removal::Deleted).await.unwrap();
    bench.bare().await;
}

#[tokio::test]
async fn a_paused_vm_is_removed_in_an_orderly_way_and_killed_at_once_in_a_hurry() {
    for hurry in [false, true] {
        let mut bench = bench(Guest::Honest, FaultPlan::default());
        let vm = running(&mut bench).await;
        vm.pause().await.unwrap();
        assert_eq!(bench.told().await, "pause");
        if hurry {
            vm.hurry().await;
        } else {
            vm.remove(Removal::Deleted).await.unwrap();
            assert_eq!(bench.told().await, "resume", "else it could not hear");
            assert_eq!(bench.told().await, "Shutdown");
        }
        bench.bare().await;
        assert!(matches!(vm.pause().await, Err(VmError::Stopping { .. })));
    }
}

#[tokio::test]
async fn what_the_vmm_refuses_is_said_and_the_vm_runs_on() {
    let mut bench = bench(Guest::Honest, FaultPlan::default());
    bench.parts.fault("pause", Fault::Fail);
    let vm = running(&mut bench).await;
    assert!(matches!(vm.pause().await, Err(VmError::NotHalted { done: "paused", .. })));
    assert_eq!(vm.state(), State::Running);
    vm.pause().await.unwrap();
    assert_eq!(vm.state(), State::Paused, "the next wish is another one");
    vm.remove(Removal::Deleted).await.unwrap();
    bench.bare().await;
}

#[tokio::test]
async fn only_a_vm_that_runs_is_paused() {
    let bench = bench(Guest::Mute, FaultPlan::default());
    let vm = bench.registry.start(&CreateVm::default()).unwrap();
    reaches(&vm, State::Booting).await;
    for outcome in [vm.pause().await, vm.resume().await] {
        assert!(matches!(outcome, Err(VmError::NotRunning { state: VmState::Booting, .. })), "{outcome:?}");
    }
    vm.remove(Removal::Deleted).await.unwrap();
    bench.bare().await;
}

#[tokio::test]
async fn a_paused_vm_is_not_idle_but_its_time_ends() {
    const MINUTE: u64 = 60_000;
    let mut bench = bench(Guest::Honest, FaultPlan::default());
    let create = CreateVm { idle_timeout_ms: Some(MINUTE), ttl_ms: Some(60 * MINUTE), ..waiting() };
    let vm = bench.registry.start_and_wait(&create).await.unwrap();
    assert_eq!(bench.told().await, "you are agents-1");
    vm.pause().await.unwrap();
    tokio::time::pause();
    tokio::time::sleep(Duration::from_secs(30 * 60)).await;
    assert_eq!(vm.state(), State::Paused);
    let mut status = vm.status.clone();
    // Its owner ends with it.
    let _ = status.wait_for(|status| status.state == State::Gone).await;
    assert_eq!(vm.show().reason.as_deref(), Some("its time to live of 3600 s is over"));
    bench.bare().await;
}
