//! VMs that wait for their turn to start.

use super::*;

#[tokio::test]
async fn one_starts_after_the_other_in_order_and_a_queued_one_says_so_and_can_be_deleted() {
    let bench = bench_with(Guest::Mute, FaultPlan::default(), 1);
    let first = bench.registry.start(&CreateVm::default()).unwrap();
    let second = bench.registry.start(&CreateVm::default()).unwrap();
    reaches(&first, State::Booting).await;
    let shown = second.show();
    assert_eq!(shown.state, VmState::Creating);
    assert_eq!(shown.reason.as_deref(), Some("queued: the next; 1 are starting"));
    assert_eq!(first.show().reason, None);
    assert!(!bench.parts.left().iter().any(|part| part.ends_with("agents-2")), "nothing of it is made");
    timeout(SOON, second.remove(Removal::Deleted)).await.unwrap().unwrap();
    assert!(bench.registry.get("agents-2").is_err(), "out of the queue at once");

    // The next one comes when the first is gone.
    let third = bench.registry.start(&CreateVm::default()).unwrap();
    assert!(third.show().reason.is_some());
    first.remove(Removal::Deleted).await.unwrap();
    reaches(&third, State::Booting).await;
    third.remove(Removal::Deleted).await.unwrap();
    bench.assert_bare();
}

#[tokio::test]
async fn a_vm_that_is_ready_lets_the_next_one_start() {
    let bench = bench_with(Guest::Honest, FaultPlan::default(), 1);
    bench.registry.start_configured();
    for vm in bench.registry.list() {
        vm.ready(SOON).await.unwrap();
    }
    assert_eq!(bench.registry.list().len(), 2);
    bench.registry.stop_all(&CancellationToken::new()).await;
    bench.bare().await;
}

#[tokio::test]
async fn one_that_fails_or_is_never_ready_gives_its_turn_back() {
    for (guest, part) in [(Guest::Honest, Some("slot")), (Guest::Broken, None), (Guest::Fleeting, None)] {
        let bench = bench_with(guest, FaultPlan::default(), 1);
        if let Some(part) = part {
            bench.parts.fault(part, Fault::Fail);
        }
        let first = bench.registry.start(&CreateVm::default()).unwrap();
        let second = bench.registry.start(&CreateVm::default()).unwrap();
        reaches(&first, State::Failed).await;
        reaches(&second, if part.is_some() { State::Running } else { State::Failed }).await;
        bench.registry.stop_all(&CancellationToken::new()).await;
        bench.bare().await;
    }
}

#[tokio::test]
async fn a_guest_that_says_nothing_stops_the_queue_for_a_minute_at_most() {
    let bench = bench_with(Guest::Mute, FaultPlan::default(), 1);
    let first = bench.registry.start(&CreateVm::default()).unwrap();
    let second = bench.registry.start(&CreateVm::default()).unwrap();
    reaches(&first, State::Booting).await;
    assert!(second.show().reason.is_some());
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(61)).await;
    tokio::time::resume();
    reaches(&second, State::Booting).await;
    assert_eq!(first.state(), State::Booting, "it goes on");
    bench.registry.stop_all(&CancellationToken::new()).await;
    bench.bare().await;
}
