//! VMs that go by themselves: when their time is over, or nobody uses them. Time passes as soon as
//! nothing else can happen.

use super::*;
use crate::store::Lifetime;
use std::collections::BTreeMap;
use tokio::time::{Instant, sleep};

const MINUTE: u64 = 60_000;

/// Runs the clock until the VM is gone; how long that took, in seconds.
async fn until_gone(vm: &Handle) -> u64 {
    let begun = Instant::now();
    let mut status = vm.status.clone();
    // Its owner ends with it.
    let _ = status.wait_for(|status| status.state == State::Gone).await;
    begun.elapsed().as_secs()
}

#[tokio::test]
async fn a_vms_time_is_over_whatever_it_does() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let create = CreateVm { ttl_ms: Some(30 * MINUTE), ..waiting() };
    let vm = bench.registry.start_and_wait(&create).await.unwrap();
    let shown = vm.show();
    assert_eq!(shown.expires_ms, Some(shown.created_ms + 30 * MINUTE));
    let place = vm.stream_place().unwrap();
    tokio::time::pause();
    let took = until_gone(&vm).await;
    assert!((1795..=1815).contains(&took), "{took}");
    assert_eq!(vm.show().reason.as_deref(), Some("its time to live of 1800 s is over"));
    drop(place);
    bench.bare().await;
}

#[tokio::test]
async fn an_idle_vm_goes_and_a_used_one_stays() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let create = CreateVm { idle_timeout_ms: Some(10 * MINUTE), ..waiting() };
    let vm = bench.registry.start_and_wait(&create).await.unwrap();
    tokio::time::pause();
    sleep(Duration::from_secs(599)).await;
    // At the last moment, and several at once, for longer than it may be idle.
    let places = [vm.stream_place().unwrap(), vm.stream_place().unwrap()];
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(vm.state(), State::Running);
    let [first, second] = places;
    drop(first);
    sleep(Duration::from_secs(3600)).await;
    assert_eq!(vm.state(), State::Running, "one is still open");
    drop(second);
    sleep(Duration::from_secs(599)).await;
    assert_eq!(vm.state(), State::Running, "idleness counts from the end of the last one");
    let took = until_gone(&vm).await;
    assert!((1..=11).contains(&took), "{took}");
    assert_eq!(vm.show().reason.as_deref(), Some("no stream was open for 600 s"));
    bench.bare().await;
}

#[tokio::test]
async fn a_failed_vm_expires_and_is_never_idle() {
    let bench = bench(Guest::Fleeting, FaultPlan::default());
    let create = CreateVm { ttl_ms: Some(60 * MINUTE), idle_timeout_ms: Some(MINUTE), ..CreateVm::default() };
    let vm = bench.registry.start(&create).unwrap();
    reaches(&vm, State::Failed).await;
    tokio::time::pause();
    sleep(Duration::from_secs(3500)).await;
    assert_eq!(vm.state(), State::Failed, "its console is kept for whoever wants to see it");
    until_gone(&vm).await;
    bench.bare().await;
}

#[tokio::test]
async fn lifetimes_and_labels_outlive_a_daemon() {
    let groups = group_plans(FILE);
    for (created_ms, living) in [(1, false), (super::super::lifetime::now_ms(), true)] {
        let bench = bench(Guest::Honest, FaultPlan::default());
        let labels: BTreeMap<_, _> = [("job".to_owned(), "7".to_owned())].into();
        let create = CreateVm { labels: labels.clone(), ..CreateVm::default() };
        let mut new = super::super::request::accept(&groups, &create).unwrap().vm;
        new.created_ms = created_ms;
        new.lifetime = Lifetime { ttl_ms: Some(60 * MINUTE), idle_timeout_ms: Some(10 * MINUTE) };
        let row = bench.store.reserve(&new).unwrap();
        bench.store.set_running(&row.name, 1).unwrap();
        let row = bench.store.get(&row.name).unwrap().unwrap();
        let vm = bench.registry.adopt(row).unwrap();
        assert_eq!(vm.show().labels, labels);
        if living {
            reaches(&vm, State::Running).await;
        }
        tokio::time::pause();
        let took = until_gone(&vm).await;
        // The rest is the time for an orderly stop.
        let expected = if living { 595..=615 } else { 0..=15 };
        assert!(expected.contains(&took), "what is over goes at once, idleness begins anew: {took}");
        tokio::time::resume();
        bench.bare().await;
    }
}

#[tokio::test]
async fn lifetimes_and_labels_that_are_none_are_refused() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let refused = |create: CreateVm| bench.registry.start(&create).err().unwrap().to_string();
    for ms in [0, 31_536_000_001, u64::MAX] {
        assert!(refused(CreateVm { ttl_ms: Some(ms), ..CreateVm::default() }).contains("ttl_ms"));
        assert!(refused(CreateVm { idle_timeout_ms: Some(ms), ..CreateVm::default() }).contains("idle"));
    }
    let labels = [("a b".to_owned(), String::new())].into();
    assert!(refused(CreateVm { labels, ..CreateVm::default() }).contains("a b"));
    bench.assert_bare();
}
