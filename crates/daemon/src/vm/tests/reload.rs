//! The file is read anew: it holds as a whole or not at all, and what runs runs on.

use super::*;
use crate::config::Group;
use crate::vm::registry::{RegroupError, Wish};
use enisle_api::{EventKind, PolicyLists};

/// Groups of a file: name, count, range, what is dropped.
fn groups(of: &[(&str, u32, &str, &str)]) -> Vec<Group> {
    let group = |(name, count, range, drop): &(&str, u32, &str, &str)| {
        format!(
            "    - name: {name}\n      count: {count}\n      network:\n        mode: isolated\n        \
             range: {range}\n        dns: [9.9.9.9]\n        drop: [{drop}]\n"
        )
    };
    let text = format!("config:\n  host_groups:\n{}", of.iter().map(group).collect::<String>());
    config::parse("test.yaml", &text, &AnyHost).unwrap().groups
}

const AGENTS: &str = "169.254.100.0/29";
const OTHERS: &str = "169.254.101.0/29";

impl Bench {
    fn dropped(&self, group: &str) -> Vec<String> {
        self.registry.groups().iter().find(|g| g.name == group).unwrap().network.drop.clone()
    }

    fn names(&self) -> Vec<String> {
        self.registry.list().iter().map(|vm| vm.name().to_owned()).collect()
    }

    async fn all_ready(&self) {
        for vm in self.registry.list() {
            vm.ready(SOON).await.unwrap();
        }
    }

    async fn end(&self) {
        assert!(self.registry.stop_all(&CancellationToken::new()).await.is_empty());
        self.assert_bare();
    }
}

#[tokio::test]
async fn groups_come_and_go_and_what_runs_runs_on() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    bench.registry.start_configured();
    bench.all_ready().await;
    let before: Vec<_> = bench.registry.list().iter().map(|vm| vm.show().created_ms).collect();
    let file = groups(&[("agents", 2, AGENTS, "8.8.8.8"), ("others", 1, OTHERS, "")]);
    let changes = bench.registry.regroup(&file).unwrap();
    assert_eq!((changes.added, changes.policies), (vec!["others".to_owned()], vec!["agents".to_owned()]));
    assert!(changes.removed.is_empty() && changes.changed.is_empty());
    bench.all_ready().await;
    assert_eq!(bench.names(), ["agents-1", "agents-2", "others-1"]);
    assert_eq!(bench.dropped("agents"), ["8.8.8.8"]);
    assert_eq!(bench.parts.policies.lock().unwrap().len(), 2, "in force on both that ran");
    assert_eq!(bench.parts.ranges.lock().unwrap().len(), 2);

    let changes = bench.registry.regroup(&file).unwrap();
    assert!(changes.is_empty() && changes.notes.is_empty(), "{changes:?}");

    // Fewer: nobody goes; removed: neither, but no more come, and the range stays as long as they do.
    let changes = bench.registry.regroup(&groups(&[("others", 0, OTHERS, "")])).unwrap();
    assert_eq!((changes.removed, changes.changed), (vec!["agents".to_owned()], vec!["others".to_owned()]));
    assert!(changes.notes.iter().any(|n| n.contains("agents-1, agents-2 run on")), "{:?}", changes.notes);
    assert_eq!(bench.names().len(), 3);
    assert_eq!(bench.parts.ranges.lock().unwrap().len(), 2);
    let create = CreateVm { group: Some("agents".into()), ..CreateVm::default() };
    assert!(matches!(bench.registry.start(&create), Err(VmError::NoSuchGroup { .. })));
    let now: Vec<_> = bench.registry.list()[..2].iter().map(|vm| vm.show().created_ms).collect();
    assert_eq!(now, before);

    // It comes back with the lists of its VMs, and as many as are missing.
    bench.registry.get("agents-1").unwrap().remove(Removal::Deleted).await.unwrap();
    let file = groups(&[("agents", 2, AGENTS, "8.8.8.8"), ("others", 0, OTHERS, "")]);
    let changes = bench.registry.regroup(&file).unwrap();
    assert!(changes.policies.is_empty(), "{changes:?}");
    bench.all_ready().await;
    assert_eq!(bench.names(), ["agents-1", "agents-2", "others-1"]);
    bench.end().await;
}

#[tokio::test]
async fn a_raised_count_launches_what_is_missing_and_nothing_else_does() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    assert!(bench.registry.regroup(&groups(&[("agents", 0, AGENTS, "")])).is_ok());
    assert_eq!(bench.names(), [] as [&str; 0]);
    bench.registry.start_and_wait(&waiting()).await.unwrap();
    bench.registry.regroup(&groups(&[("agents", 2, AGENTS, "")])).unwrap();
    bench.all_ready().await;
    assert_eq!(bench.names(), ["agents-1", "agents-2"], "the one there is counts");
    bench.registry.get("agents-1").unwrap().remove(Removal::Deleted).await.unwrap();
    bench.registry.regroup(&groups(&[("agents", 2, AGENTS, "8.8.8.8")])).unwrap();
    assert_eq!(bench.names(), ["agents-2"], "one that somebody deleted stays deleted");
    bench.end().await;
}

#[tokio::test]
async fn lists_of_the_api_hold_until_the_file_has_others() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let wish = |drop: &str| {
        let lists = PolicyLists { drop: vec![drop.to_owned()], allow: Vec::new() };
        Wish { lists, dry_run: false, expected: None }
    };
    let file = |drop: &str| groups(&[("agents", 0, AGENTS, drop)]);
    let stored = |drop: &str| bench.store.group_lists("agents", &file(drop)[0].network.policy).unwrap();
    bench.registry.set_group_policy("agents", wish("1.1.1.1")).await.unwrap();
    let changes = bench.registry.regroup(&groups(&[("agents", 1, AGENTS, "")])).unwrap();
    assert!(changes.policies.is_empty());
    assert_eq!(bench.dropped("agents"), ["1.1.1.1"], "the file says what it said");
    bench.all_ready().await;
    bench.registry.regroup(&file("8.8.8.8")).unwrap();
    assert_eq!(bench.dropped("agents"), ["8.8.8.8"], "the operator has spoken since");
    assert_eq!(stored("8.8.8.8"), None);
    bench.registry.set_group_policy("agents", wish("9.9.9.9")).await.unwrap();
    assert_eq!(stored("8.8.8.8").unwrap().drop.len(), 1, "after a crash it holds on, for this file");
    bench.end().await;
}

#[tokio::test]
async fn what_cannot_be_changes_nothing() {
    let bench = bench(Guest::Honest, FaultPlan::default());
    let vm = bench.registry.start_and_wait(&waiting()).await.unwrap();
    let file = groups(&[("agents", 2, AGENTS, ""), ("others", 1, OTHERS, "")]);
    let same = || {
        assert_eq!(bench.names(), ["agents-1"]);
        assert_eq!(bench.registry.groups().len(), 1);
        assert_eq!(bench.dropped("agents"), [] as [&str; 0]);
    };
    let refused =
        |of: &[(&str, u32, &str, &str)]| bench.registry.regroup(&groups(of)).unwrap_err().to_string();
    let said = refused(&[("agents", 1, OTHERS, "8.8.8.8")]);
    assert!(said.contains("network.range") && said.contains("agents-1"), "{said}");
    same();
    let said = refused(&[("others", 1, "169.254.100.0/28", "")]);
    assert!(said.contains("removed group `agents`") && said.contains("agents-1"), "{said}");
    same();
    let bridge = group_plans(
        "config:\n  host_groups:\n    - name: lab\n      network: {bridge: lab0, gateway: 10.77.0.1/24}\n",
    );
    let mut bridged = file.clone();
    bridged.push(bridge[0].config.clone());
    let error = bench.registry.regroup(&bridged).unwrap_err();
    assert!(matches!(error, RegroupError::Bridge { .. }), "{error}");
    same();
    for part in ["ranges", "switch"] {
        bench.parts.faults.lock().unwrap().push((part, Fault::Fail));
        let mut other = file.clone();
        other[0].network.policy = groups(&[("agents", 2, AGENTS, "8.8.8.8")])[0].network.policy.clone();
        let error = bench.registry.regroup(&other).unwrap_err();
        assert!(matches!(error, RegroupError::Network(_)), "{error}");
        same();
    }
    assert_eq!(bench.parts.ranges.lock().unwrap().len(), 1, "put back");
    let said = refused(&[("agents", 1, "169.254.100.0/28", "")]);
    assert!(said.contains("`agents`") && said.contains("restart"), "it grows: {said}");
    same();
    vm.remove(Removal::Deleted).await.unwrap();
    bench.registry.regroup(&groups(&[("agents", 1, OTHERS, "")])).expect("nobody has the old range any more");
    bench.all_ready().await;
    let told = bench.registry.events().reader(Some(0), None).batch();
    assert!(!told.iter().any(|e| matches!(e.what, EventKind::PolicyChanged { .. })), "{told:?}");
    bench.end().await;
    assert!(matches!(bench.registry.regroup(&file), Err(RegroupError::Stopping)));
    bench.assert_bare();
}
