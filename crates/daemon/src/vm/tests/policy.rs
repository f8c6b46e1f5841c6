//! Policies change for all they are about, in memory, store and parts, or for none.

use super::*;
use crate::vm::registry::Wish;
use enisle_api::{PolicyLists, PolicyVerdict};
use enisle_net::policy::{CompiledPolicy, PolicySpec, Proto, Verdict};

fn lists(drop: &[&str], allow: &[&str]) -> PolicyLists {
    let list = |l: &[&str]| l.iter().map(|e| (*e).to_owned()).collect();
    PolicyLists { drop: list(drop), allow: list(allow) }
}

fn wish(drop: &[&str]) -> Wish {
    Wish { lists: lists(drop, &[]), dry_run: false, expected: None }
}

fn spec(drop: &[&str]) -> PolicySpec {
    PolicySpec { drop: drop.iter().map(|e| e.parse().unwrap()).collect(), allow: Vec::new() }
}

fn passes(policy: &CompiledPolicy, address: [u8; 4]) -> bool {
    policy.judge(address.into(), Proto::Icmp, None).0 == Verdict::Allow
}

impl Bench {
    /// The policy that was put in force last.
    fn in_force(&self, vm: &str) -> Option<CompiledPolicy> {
        self.parts.policies.lock().unwrap().get(vm).cloned()
    }

    fn row_lists(&self, vm: &str) -> PolicySpec {
        self.store.get(vm).unwrap().unwrap().lists
    }
}

#[tokio::test]
async fn a_bad_entry_of_a_new_vm_is_refused_before_anything_is_made() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    for (drop, allow) in [(&["8.8.8.8", "8.8.8.8/24"][..], &[][..]), (&[], &["127.0.0.1"])] {
        let PolicyLists { drop, allow } = lists(drop, allow);
        let create = CreateVm { drop, allow, ..waiting() };
        let error = bench.registry.start_and_wait(&create).await.err().unwrap();
        let VmError::Policy(error) = error else { panic!("{error}") };
        assert!(error.pointer().is_some_and(|p| p == "/drop/1" || p == "/allow/0"), "{error}");
        bench.assert_bare();
    }
    let create = CreateVm { drop: vec!["8.8.8.8".into()], ..waiting() };
    let vm = bench.registry.start_and_wait(&create).await.unwrap();
    assert_eq!(bench.row_lists(vm.name()), spec(&["8.8.8.8"]));
    let shown = bench.registry.vm_policy(vm.name()).await.unwrap();
    let entry = shown.entries.iter().find(|e| e.destination == "8.8.8.8/32").unwrap();
    assert_eq!((entry.verdict, entry.origin.as_str()), (PolicyVerdict::Refuse, "vm drop[0]"));
    vm.remove(Removal::Deleted).await.unwrap();
}

#[tokio::test]
async fn a_vms_lists_change_everywhere_or_nowhere() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    let change = bench.registry.set_vm_policy("agents-1", wish(&["8.8.8.8"])).await.unwrap();
    assert_eq!(change.added.len(), 1);
    assert_eq!(bench.row_lists("agents-1"), spec(&["8.8.8.8"]));
    assert!(!passes(&bench.in_force("agents-1").unwrap(), [8, 8, 8, 8]));
    assert!(passes(&bench.in_force("agents-1").unwrap(), [9, 9, 9, 9]));

    bench.parts.fault("switch", Fault::Fail);
    bench.registry.set_vm_policy("agents-1", wish(&["9.9.9.9"])).await.unwrap_err();
    let dry = Wish { dry_run: true, ..wish(&["9.9.9.9"]) };
    let dry = bench.registry.set_vm_policy("agents-1", dry).await.unwrap();
    assert_eq!((dry.removed.len(), dry.added.len()), (1, 1));
    let late = Wish { expected: Some(dry.revision), ..wish(&[]) };
    bench.registry.set_vm_policy("agents-1", late).await.unwrap_err();
    bench.registry.set_vm_policy("agents-1", wish(&["9.9.9"])).await.unwrap_err();
    assert_eq!(bench.row_lists("agents-1"), spec(&["8.8.8.8"]), "none of these changed anything");
    assert!(passes(&bench.in_force("agents-1").unwrap(), [9, 9, 9, 9]));
    let shown = bench.registry.vm_policy("agents-1").await.unwrap();
    assert_eq!((shown.lists, &shown.revision), (lists(&["8.8.8.8"], &[]), &change.revision));
    let right = Wish { expected: Some(change.revision), ..wish(&[]) };
    bench.registry.set_vm_policy("agents-1", right).await.unwrap();
    assert!(passes(&bench.in_force("agents-1").unwrap(), [8, 8, 8, 8]));
    vm.remove(Removal::Deleted).await.unwrap();
}

#[tokio::test]
async fn a_groups_lists_change_for_all_its_vms_and_later_ones_or_for_none() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let first = bench.registry.start_and_wait(&waiting()).await.unwrap();
    let create = CreateVm { drop: vec!["9.9.9.9".into()], ..waiting() };
    let second = bench.registry.start_and_wait(&create).await.unwrap();
    bench.parts.fault("switch", Fault::Fail);
    bench.registry.set_group_policy("agents", wish(&["8.8.8.8"])).await.unwrap_err();
    assert_eq!(bench.registry.group_policy("agents").await.unwrap().lists, lists(&[], &[]));
    assert!(bench.in_force("agents-1").is_none());

    let change = bench.registry.set_group_policy("agents", wish(&["8.8.8.8"])).await.unwrap();
    assert_eq!(change.vms, ["agents-1", "agents-2"]);
    for (vm, nine) in [("agents-1", true), ("agents-2", false)] {
        let policy = bench.in_force(vm).unwrap();
        assert!(!passes(&policy, [8, 8, 8, 8]), "{vm}");
        assert_eq!(passes(&policy, [9, 9, 9, 9]), nine, "{vm} keeps its own lists");
    }
    assert_eq!(bench.registry.groups()[0].network.drop, ["8.8.8.8"]);
    second.remove(Removal::Deleted).await.unwrap();
    let later = bench.registry.start_and_wait(&waiting()).await.unwrap();
    assert_eq!(later.name(), "agents-2");
    let shown = bench.registry.vm_policy("agents-2").await.unwrap();
    let entry = shown.entries.iter().find(|e| e.destination == "8.8.8.8/32").unwrap();
    assert_eq!(entry.origin, "group drop[0]");
    // A change of the VM's own lists goes on from the group's present ones.
    bench.registry.set_vm_policy("agents-2", wish(&["1.1.1.1"])).await.unwrap();
    assert!(!passes(&bench.in_force("agents-2").unwrap(), [8, 8, 8, 8]));
    assert!(bench.registry.set_group_policy("nobody", wish(&[])).await.is_err());
    first.remove(Removal::Deleted).await.unwrap();
    assert!(bench.registry.set_vm_policy("agents-1", wish(&[])).await.is_err());
    later.remove(Removal::Deleted).await.unwrap();
}
