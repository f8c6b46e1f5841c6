//! What is told of VMs: each life from its beginning to its end, with the reasons.

use super::*;
use enisle_api::{EventKind, PolicyLists};

/// The kinds of what was told, with the reason where there is one.
fn told(bench: &Bench) -> Vec<String> {
    let mut reader = bench.registry.events().reader(None, None);
    let kind = |what: &EventKind| match what {
        EventKind::VmStopped { reason, .. } => format!("stopped: {reason}"),
        EventKind::VmCrashed { reason, .. } => format!("crashed: {reason}"),
        EventKind::VmFailed { reason, .. } => format!("failed: {reason}"),
        EventKind::VmRemoved { removal, .. } => format!("removed: {removal}"),
        other => {
            let json = serde_json::to_value(other).unwrap();
            json["type"].as_str().unwrap().trim_start_matches("vm_").to_owned()
        }
    };
    reader.batch().iter().map(|event| kind(&event.what)).collect()
}

#[tokio::test]
async fn a_life_in_order() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    let lists = PolicyLists { drop: vec!["8.8.8.8".into()], allow: vec![] };
    let wish = |dry_run| super::super::registry::Wish { lists: lists.clone(), dry_run, expected: None };
    bench.registry.set_vm_policy("agents-1", wish(true)).await.unwrap();
    bench.registry.set_vm_policy("agents-1", wish(false)).await.unwrap();
    vm.remove(Removal::Deleted).await.unwrap();
    let life = ["created", "ready", "policy_changed", "stopped: guest powered off", "removed: deleted"];
    assert_eq!(told(&bench), life, "a dry run changes nothing and tells nothing");
}

#[tokio::test]
async fn ends_have_their_reasons() {
    let bench_of = |guest| bench(guest, FaultPlan::default());

    let bench = bench_of(Guest::Honest);
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    vm.machine_now().unwrap().kill().await;
    reaches(&vm, State::Failed).await;
    assert_eq!(told(&bench), ["created", "ready", "crashed: its VMM was killed: exit code 0"]);
    bench.registry.stop_all(&CancellationToken::new()).await;
    assert_eq!(told(&bench).last().unwrap(), "removed: shutdown");

    let bench = bench_of(Guest::Broken);
    assert!(bench.registry.start_and_wait(&waiting()).await.is_err());
    let reason = "failed: the guest's set-up failed: mount /dev/vda: no [2J disk";
    assert_eq!(told(&bench), ["created", reason, "removed: abandoned"]);

    let bench = bench_of(Guest::Stubborn);
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    tokio::time::pause();
    vm.remove(Removal::Deleted).await.unwrap();
    tokio::time::resume();
    let end = ["stopped: killed: it did not stop within 10 s", "removed: deleted"];
    assert_eq!(told(&bench)[2..], end);

    let bench = bench_of(Guest::Honest);
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    bench.parts.fault("remove slot", Fault::Fail);
    assert!(vm.remove(Removal::Deleted).await.is_err());
    assert!(told(&bench).last().unwrap().starts_with("failed: could not be removed entirely: "));

    let bench = bench_of(Guest::Fleeting);
    bench.parts.fault("vmm", Fault::Panic);
    bench.registry.start(&CreateVm::default()).unwrap();
    bench.bare().await;
    assert_eq!(told(&bench), ["created", "removed: lost"]);

    // One that is never ready, however late the clock strikes.
    let bench = bench_of(Guest::Mute);
    let create = CreateVm { ttl_ms: Some(1), ..CreateVm::default() };
    bench.registry.start(&create).unwrap();
    bench.bare().await;
    assert_eq!(told(&bench), ["created", "removed: ttl"]);
}
