//! The store against real files: what it promises, and files that are not as they should be.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::sync::Barrier;

use super::*;

fn range() -> Range {
    "169.254.100.0/22".parse().unwrap()
}

fn new_vm(name: Option<&str>) -> NewVm {
    NewVm {
        name: name.map(str::to_owned),
        group: "agents".to_owned(),
        range: range(),
        vcpu: 2,
        ram_mib: 512,
        image: "default".to_owned(),
        disk_bytes: 4 << 30,
        created_ms: 1_700_000_000_000,
        lists: PolicySpec::default(),
        labels: BTreeMap::new(),
        lifetime: Lifetime::default(),
    }
}

fn open() -> (tempfile::TempDir, Store) {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::open(&directory.path().join("state")).unwrap();
    (directory, store)
}

fn reserve(store: &Store) -> VmRow {
    store.reserve(&new_vm(None)).unwrap()
}

#[test]
fn names_and_blocks_are_the_lowest_free_ones() {
    let (_directory, store) = open();
    let first = reserve(&store);
    assert_eq!(first.name, "agents-1");
    assert_eq!(first.block.guest().to_string(), "169.254.100.2");
    assert_eq!((first.intent, first.vmm), (Intent::Create, None));
    let second = reserve(&store);
    assert_eq!((second.name.as_str(), second.block), ("agents-2", range().block(1).unwrap()));
    reserve(&store);
    store.remove("agents-2").unwrap();
    let again = reserve(&store);
    assert_eq!((again.name, again.block), (second.name, second.block));
    assert_eq!(reserve(&store).name, "agents-4");
}

#[test]
fn numbers_avoid_names_that_people_chose() {
    let (_directory, store) = open();
    for name in ["agents-2", "agents-01", "agents-x", "agents", "agents-3-1", "agents2-1"] {
        store.reserve(&new_vm(Some(name))).unwrap();
    }
    assert_eq!(reserve(&store).name, "agents-1");
    assert_eq!(reserve(&store).name, "agents-3");
}

#[test]
fn taken_and_illegal_names_are_refused_and_take_no_block() {
    let (_directory, store) = open();
    store.reserve(&new_vm(Some("web"))).unwrap();
    let taken = store.reserve(&new_vm(Some("web"))).unwrap_err();
    assert!(matches!(taken, StoreError::NameTaken { name } if name == "web"));
    let long = "a".repeat(64);
    for name in ["", "-a", "a-", "A", "a b", "../a", "a\0", "ü", &long] {
        let bad = store.reserve(&new_vm(Some(name))).unwrap_err();
        assert!(matches!(bad, StoreError::BadName { .. }), "{name:?}");
    }
    store.reserve(&new_vm(Some(&"a".repeat(63)))).unwrap();
    assert_eq!(store.list().unwrap().len(), 2);
    assert_eq!(reserve(&store).block, range().block(2).unwrap());
}

#[test]
fn a_full_range_says_so_until_a_vm_is_removed() {
    let (_directory, store) = open();
    let vm = NewVm { range: "10.0.0.0/29".parse().unwrap(), ..new_vm(None) };
    store.reserve(&vm).unwrap();
    store.reserve(&vm).unwrap();
    let full = store.reserve(&vm).unwrap_err();
    assert_eq!(
        full.to_string(),
        "group agents is full: its range 10.0.0.0/29 holds 2 VMs; \
         delete one, or give the group a larger range"
    );
    store.mark_delete("agents-1").unwrap();
    assert!(store.reserve(&vm).is_err(), "a VM being deleted still has its block");
    store.remove("agents-1").unwrap();
    assert_eq!(store.reserve(&vm).unwrap().name, "agents-1");
}

#[test]
fn the_highest_block_of_all_is_reachable() {
    let (_directory, store) = open();
    let vm = NewVm { range: "192.168.255.252/30".parse().unwrap(), ..new_vm(None) };
    let row = store.reserve(&vm).unwrap();
    assert_eq!(row.block.guest().to_string(), "192.168.255.254");
    assert_eq!(store.get("agents-1").unwrap(), Some(row));
    assert!(matches!(store.reserve(&vm), Err(StoreError::RangeFull { .. })));
}

#[test]
fn a_row_comes_back_as_it_was_written() {
    let (directory, store) = open();
    let mut row = reserve(&store);
    let vmm = VmmProcess { pid: 4242, start_ticks: 123_456 };
    store.set_vmm("agents-1", vmm).unwrap();
    store.set_running("agents-1", 1700).unwrap();
    store.set_userdata("agents-1", 137).unwrap();
    row.vmm = Some(vmm);
    row.intent = Intent::Run;
    row.ready_after_ms = Some(1700);
    row.userdata_exit = Some(137);
    assert_eq!(store.get("agents-1").unwrap(), Some(row.clone()));
    drop(store);
    let store = Store::open(&directory.path().join("state")).unwrap();
    assert_eq!(store.list().unwrap(), [row]);
}

#[test]
fn readiness_does_not_revive_a_vm_that_is_being_deleted() {
    let (_directory, store) = open();
    reserve(&store);
    assert_eq!(store.mark_delete("agents-1").unwrap().intent, Intent::Delete);
    store.set_running("agents-1", 5).unwrap();
    assert_eq!(store.get("agents-1").unwrap().unwrap().intent, Intent::Delete);
}

#[test]
fn what_is_not_there_is_an_error_except_to_remove() {
    let (_directory, store) = open();
    let vmm = VmmProcess { pid: 1, start_ticks: 1 };
    let results = [
        store.set_vmm("x", vmm),
        store.set_running("x", 1),
        store.set_userdata("x", 1),
        store.mark_delete("x").map(|_| ()),
    ];
    for result in results {
        assert!(matches!(result, Err(StoreError::NoSuchVm { name }) if name == "x"));
    }
    store.remove("x").unwrap();
    assert_eq!(store.get("x").unwrap(), None);
}

#[test]
fn lists_count_as_people_do() {
    let (_directory, store) = open();
    for _ in 0..11 {
        reserve(&store);
    }
    let names: Vec<_> = store.list().unwrap().into_iter().map(|vm| vm.name).collect();
    assert_eq!(names[0], "agents-1");
    assert_eq!(names[8..], ["agents-9", "agents-10", "agents-11"]);
}

#[test]
fn leftovers_are_the_vms_of_earlier_runs_and_the_scope_stays() {
    let (directory, store) = open();
    let scope = store.scope().to_owned();
    assert!(scope.len() == 8 && scope.bytes().all(|b| b.is_ascii_hexdigit()), "{scope}");
    let old = reserve(&store);
    assert!(store.leftovers().unwrap().is_empty());
    drop(store);
    let store = Store::open(&directory.path().join("state")).unwrap();
    assert_eq!(store.scope(), scope);
    let new = reserve(&store);
    assert_eq!(store.leftovers().unwrap(), [old]);
    store.remove("agents-1").unwrap();
    assert!(store.leftovers().unwrap().is_empty());
    assert_eq!(store.list().unwrap(), [new]);
    assert_ne!(open().1.scope(), scope, "another state directory is another scope");
}

/// Whether the daemon runs, was killed, or went down in order.
#[test]
fn a_scope_is_told_without_the_lock_and_looking_changes_nothing() {
    let (directory, store) = open();
    let (state, copy) = (directory.path().join("state"), directory.path().join("killed"));
    let scope = Some(store.scope().to_owned());
    assert_eq!(scope_of(&state), scope, "of one that runs");
    std::fs::create_dir(&copy).unwrap();
    for entry in std::fs::read_dir(&state).unwrap().flatten() {
        std::fs::copy(entry.path(), copy.join(entry.file_name())).unwrap();
    }
    assert_eq!(scope_of(&copy), scope, "of one that was killed");
    drop(store);
    let files = || {
        let names = std::fs::read_dir(&state).unwrap().flatten().map(|entry| entry.file_name());
        names.collect::<std::collections::BTreeSet<_>>()
    };
    let before = files();
    assert_eq!(scope_of(&state), scope, "of one that went down");
    assert_eq!(files(), before);
    assert_eq!(scope_of(directory.path()), None);
}

#[test]
fn a_process_of_an_earlier_boot_is_forgotten() {
    let (directory, store) = open();
    reserve(&store);
    let vmm = VmmProcess { pid: 4242, start_ticks: 1 };
    store.set_vmm("agents-1", vmm).unwrap();
    drop(store);
    let state = directory.path().join("state");
    let same_boot = Store::open(&state).unwrap();
    assert_eq!(same_boot.get("agents-1").unwrap().unwrap().vmm, Some(vmm));
    same_boot.connection().execute("UPDATE meta SET value = 'another' WHERE key = 'boot_id'", []).unwrap();
    drop(same_boot);
    let next_boot = Store::open(&state).unwrap();
    assert_eq!(next_boot.get("agents-1").unwrap().unwrap().vmm, None);
}

#[test]
fn two_daemons_exclude_each_other_by_pid() {
    let (directory, store) = open();
    let state = directory.path().join("state");
    let locked = Store::open(&state).unwrap_err();
    assert_eq!(
        locked.to_string(),
        format!(
            "another daemon (pid {}) uses {}; stop it, or give this one another `state_dir`",
            std::process::id(),
            state.display()
        )
    );
    drop(store);
    Store::open(&state).unwrap();
}

#[test]
fn a_stale_lock_file_stops_nobody() {
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("lock"), "4194304999\n".repeat(9)).unwrap();
    Store::open(directory.path()).unwrap();
    let text = fs::read_to_string(directory.path().join("lock")).unwrap();
    assert_eq!(text, format!("{}\n", std::process::id()));
}

#[test]
fn threads_never_get_the_same_name_or_block() {
    let (_directory, store) = open();
    let start = Barrier::new(8);
    let mut rows: Vec<VmRow> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    (0..8).map(|_| reserve(&store)).collect::<Vec<_>>()
                })
            })
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    rows.sort_by_key(|row| row.block);
    let blocks: Vec<_> = rows.iter().map(|row| row.block).collect();
    assert_eq!(blocks, range().blocks().take(64).collect::<Vec<_>>());
    let names: BTreeSet<_> = rows.into_iter().map(|row| row.name).collect();
    assert_eq!(names, (1..=64).map(|n| format!("agents-{n}")).collect());
}

#[test]
fn people_can_read_it_and_nobody_else() {
    let (directory, store) = open();
    reserve(&store);
    let path = directory.path().join("state/state.db");
    let reader = Connection::open(&path).unwrap();
    let address: String = reader.query_row("SELECT address FROM vms", [], |row| row.get(0)).unwrap();
    assert_eq!(address, "169.254.100.2");
    for (name, mode) in [("state.db", 0o600), ("state.db-wal", 0o600), ("lock", 0o600), (".", 0o711)] {
        let metadata = fs::metadata(directory.path().join("state").join(name)).unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, mode, "{name}");
    }
}

#[test]
fn a_newer_schema_is_refused_and_left_alone() {
    let (directory, store) = open();
    store.connection().pragma_update(None, "user_version", 8).unwrap();
    drop(store);
    let state = directory.path().join("state");
    let error = Store::open(&state).unwrap_err();
    assert!(matches!(error, StoreError::TooNew { found: 8, known: 7, .. }), "{error}");
    assert!(error.to_string().contains("newer enisle (schema 8, this one knows 7)"));
    let reader = Connection::open(state.join("state.db")).unwrap();
    let version: u32 = reader.query_row("PRAGMA user_version", [], |row| row.get(0)).unwrap();
    assert_eq!(version, 8);
}

#[test]
fn a_file_that_is_no_database_is_damaged() {
    let directory = tempfile::tempdir().unwrap();
    let text = "not a database, but long enough to look like one ".repeat(100);
    fs::write(directory.path().join("state.db"), &text).unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
    let after = fs::read_to_string(directory.path().join("state.db")).unwrap();
    assert_eq!(after, text, "a damaged file is evidence");
}

#[test]
fn broken_pages_are_noticed_when_the_daemon_starts() {
    let (directory, store) = open();
    for _ in 0..200 {
        reserve(&store);
    }
    store.connection().execute_batch("PRAGMA wal_checkpoint(TRUNCATE)").unwrap();
    drop(store);
    let path = directory.path().join("state/state.db");
    let mut bytes = fs::read(&path).unwrap();
    let len = bytes.len();
    assert!(len > 4 * 4096, "{len}");
    // A page of the table of VMs, which opening alone does not read.
    bytes[len - 4096..].fill(0xa5);
    fs::write(&path, bytes).unwrap();
    let error = Store::open(&directory.path().join("state")).unwrap_err();
    assert!(matches!(error, StoreError::Corrupt { .. }), "{error}");
}

#[test]
fn a_full_disk_is_named_and_changes_nothing() {
    let (_directory, store) = open();
    reserve(&store);
    let pages: i64 = store.connection().query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
    store.connection().pragma_update(None, "max_page_count", pages).unwrap();
    let big = NewVm { image: "x".repeat(100_000), ..new_vm(None) };
    let error = store.reserve(&big).unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error}");
    assert_eq!(store.list().unwrap().len(), 1);
    assert_eq!(reserve(&store).name, "agents-2", "what fits still works");
}

#[test]
fn a_read_only_database_is_named() {
    let (_directory, store) = open();
    store.connection().pragma_update(None, "query_only", true).unwrap();
    let error = store.reserve(&new_vm(None)).unwrap_err();
    assert!(matches!(error, StoreError::ReadOnly { .. }), "{error}");
}

#[test]
fn a_state_directory_that_is_a_file_is_named() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let error = Store::open(file.path()).unwrap_err();
    assert!(matches!(&error, StoreError::Io { path, .. } if path == file.path()), "{error}");
}

#[test]
fn a_vms_own_lists_last_and_old_rows_have_none() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let lists = PolicySpec {
        drop: vec!["10.0.0.0/8:1-9/tcp".parse().unwrap(), "8.8.8.8".parse().unwrap()],
        allow: vec!["10.1.1.1:7".parse().unwrap()],
    };
    {
        let store = Store::open(&state).unwrap();
        assert_eq!(reserve(&store).lists, PolicySpec::default());
        store.reserve(&NewVm { lists: lists.clone(), ..new_vm(None) }).unwrap();
        store.set_lists("agents-1", &lists).unwrap();
        store.set_lists("agents-2", &PolicySpec::default()).unwrap();
        assert!(matches!(store.set_lists("nobody", &lists), Err(StoreError::NoSuchVm { .. })));
    }
    let store = Store::open(&state).unwrap();
    assert_eq!(store.get("agents-1").unwrap().unwrap().lists, lists);
    assert_eq!(store.get("agents-2").unwrap().unwrap().lists, PolicySpec::default());
}

#[test]
fn a_groups_changed_lists_outlive_a_crash_and_nothing_else() {
    let lists = |drop: &[&str]| PolicySpec {
        drop: drop.iter().map(|rule| rule.parse().unwrap()).collect(),
        allow: Vec::new(),
    };
    let (file, live) = (lists(&["192.168.1.0/24"]), lists(&["0.0.0.0/0"]));
    let (directory, store) = open();
    assert_eq!(store.group_lists("agents", &file).unwrap(), None);
    store.set_group_lists("agents", &live, &file).unwrap();
    drop(store);
    let state = directory.path().join("state");
    let store = Store::open(&state).unwrap();
    assert_eq!(store.group_lists("agents", &file).unwrap(), Some(live.clone()));
    assert_eq!(store.group_lists("others", &file).unwrap(), None);
    // The file was edited: it holds, also when it is edited back.
    assert_eq!(store.group_lists("agents", &lists(&[])).unwrap(), None);
    assert_eq!(store.group_lists("agents", &file).unwrap(), None);
    store.set_group_lists("agents", &live, &file).unwrap();
    store.forget_group_lists().unwrap();
    assert_eq!(store.group_lists("agents", &file).unwrap(), None);
}

#[test]
fn labels_and_lifetimes_last_and_old_rows_have_none() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let labels: BTreeMap<_, _> = [("a/b".to_owned(), "x\"y ü".to_owned())].into();
    let lifetime = Lifetime { ttl_ms: Some(1_800_000), idle_timeout_ms: Some(31_536_000_000) };
    {
        let store = Store::open(&state).unwrap();
        reserve(&store);
        // Back to the schema before, with a row.
        let older = "ALTER TABLE vms DROP COLUMN labels; ALTER TABLE vms DROP COLUMN ttl_ms;
             ALTER TABLE vms DROP COLUMN idle_timeout_ms; DROP TABLE idempotency_keys; DROP TABLE tokens;
             PRAGMA user_version = 4;";
        store.connection().execute_batch(older).unwrap();
    }
    Store::open(&state)
        .unwrap()
        .reserve(&NewVm { labels: labels.clone(), lifetime, ..new_vm(None) })
        .unwrap();
    let store = Store::open(&state).unwrap();
    let row = store.get("agents-2").unwrap().unwrap();
    assert_eq!((row.labels, row.lifetime), (labels, lifetime));
    let row = store.get("agents-1").unwrap().unwrap();
    assert_eq!((row.labels, row.lifetime), (BTreeMap::new(), Lifetime::default()));
}

#[test]
fn keys_last_a_day_and_go_with_a_vm_that_never_was_ready() {
    let directory = tempfile::tempdir().unwrap();
    let state = directory.path().join("state");
    let now = 1_700_000_000_000;
    let used = |vm: &str| KeyUse { request: "r".to_owned(), vm: vm.to_owned(), created_ms: now };
    {
        let store = Store::open(&state).unwrap();
        for key in ["ready", "unready"] {
            let vm = reserve(&store).name;
            store.set_key_use(key, &used(&vm), now).unwrap();
        }
        store.set_running("agents-1", 1).unwrap();
    }
    let store = Store::open(&state).unwrap();
    assert_eq!(store.key_use("ready", now).unwrap(), Some(used("agents-1")));
    assert_eq!(store.key_use("other", now).unwrap(), None);
    store.remove("agents-1").unwrap();
    store.remove("agents-2").unwrap();
    assert_eq!(
        store.key_use("ready", now + KEY_MS - 1).unwrap(),
        Some(used("agents-1")),
        "also when it is gone"
    );
    assert_eq!(store.key_use("unready", now).unwrap(), None, "it may be tried again");
    assert_eq!(store.key_use("ready", now + KEY_MS).unwrap(), None);
    store.set_key_use("later", &used("x"), now + KEY_MS).unwrap();
    assert_eq!(store.key_use("ready", now).unwrap(), None, "what is too old is not kept");
}

#[test]
fn keys_are_bounded_and_the_oldest_go() {
    let (_directory, store) = open();
    let used = KeyUse { request: String::new(), vm: "x".to_owned(), created_ms: 0 };
    store
        .connection()
        .execute_batch(
            "BEGIN; WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 10000)
        INSERT INTO idempotency_keys SELECT 'k' || i, '', 'x', 0, 1000 + i FROM n; COMMIT",
        )
        .unwrap();
    store.set_key_use("newest", &used, 20_000).unwrap();
    assert_eq!(store.key_use("k1", 20_000).unwrap(), None);
    for key in ["k2", "k10000", "newest"] {
        assert!(store.key_use(key, 20_000).unwrap().is_some(), "{key}");
    }
}
