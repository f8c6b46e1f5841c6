//! What a daemon that died leaves running is found by its control group, and nothing else is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use enisle_vmm::{AcceleratorChoice, DetectOptions, ExitReason, ProbeSpec, detect, kill_leftovers, probe};

use crate::bench::{Bench, PATIENCE, boot_files, console_says, ended, image_dir, qemu};

/// Every hierarchy on this machine that may hold our groups.
fn hierarchies() -> Vec<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let target = |line: &str| {
        let fields: Vec<&str> = line.split(' ').collect();
        let v1 = fields[2] == "cgroup"
            && fields[3].split(',').any(|name| ["memory", "pids", "cpu"].contains(&name));
        (v1 || fields[2] == "cgroup2").then(|| PathBuf::from(fields[1]))
    };
    mounts.lines().filter_map(target).collect()
}

/// A process that outlives its parent's interest, in a group of `hierarchy` only.
fn sleeper(hierarchy: &Path, scope: &str) -> Child {
    let group = hierarchy.join(format!("enisle-{scope}/vm.1/nested"));
    fs::create_dir_all(&group).unwrap();
    let child = Command::new("sleep").arg("600").spawn().unwrap();
    fs::write(group.join("cgroup.procs"), child.id().to_string()).unwrap();
    child
}

#[tokio::test(flavor = "multi_thread")]
async fn the_processes_of_one_scope_die_in_every_hierarchy_and_no_others() {
    let (bench, other) = (Bench::new(), Bench::new());
    let places = hierarchies();
    assert!(!places.is_empty());
    let mut doomed: Vec<Child> = places.iter().map(|at| sleeper(at, &bench.scope)).collect();
    // A longer scope that begins with the same letters is another one.
    let neighbour = format!("{}0", other.scope);
    let mut spared: Vec<Child> = places.iter().map(|at| sleeper(at, &neighbour)).collect();
    let killed = kill_leftovers(&bench.scope, PATIENCE).await.unwrap();
    assert_eq!(killed, doomed.len());
    for child in &mut doomed {
        child.wait().unwrap();
    }
    for child in &mut spared {
        assert!(child.try_wait().unwrap().is_none(), "a process of another scope was killed");
    }
    assert_eq!(kill_leftovers(&other.scope, PATIENCE).await.unwrap(), 0);
    bench.assert_nothing_left();
    assert_eq!(kill_leftovers(&neighbour, PATIENCE).await.unwrap(), spared.len());
    for child in &mut spared {
        child.wait().unwrap();
    }
    assert_eq!(kill_leftovers(&bench.scope, PATIENCE).await.unwrap(), 0, "not idempotent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_real_vm_is_swept() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("idle")).await;
    machine.start().await.unwrap();
    console_says(&machine, "vmmtest: ready for idle").await;
    assert_eq!(kill_leftovers(&bench.scope, PATIENCE).await.unwrap(), 2);
    assert_eq!(ended(&machine).await.reason, ExitReason::Crash);
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_scope_that_is_a_path_is_refused() {
    for scope in ["../..", "", "a/b"] {
        kill_leftovers(scope, Duration::from_secs(1)).await.unwrap_err();
    }
}

fn probe_spec(bench: &Bench, initramfs: PathBuf, limit: Duration) -> ProbeSpec {
    ProbeSpec {
        kernel: boot_files().kernel.clone(),
        initramfs,
        dir: bench.dir.path().to_owned(),
        user: bench.user,
        scope: bench.scope.clone(),
        limit,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agents_probe_guest_boots_and_goes() {
    let bench = Bench::new();
    let spec = probe_spec(&bench, image_dir().join("initramfs.cpio"), PATIENCE);
    probe(qemu().await, &spec).await.unwrap();
    bench.assert_nothing_left();
    assert!(!bench.dir.path().join("probe").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_guest_that_hangs_is_a_failure_in_time() {
    let bench = Bench::new();
    // An initramfs without an init: the kernel comes up and panics for want of a root.
    let empty = bench.dir.path().join("empty.cpio");
    fs::write(&empty, [0; 512]).unwrap();
    let failed = probe(qemu().await, &probe_spec(&bench, empty, PATIENCE)).await.unwrap_err();
    let source = std::error::Error::source(&failed).unwrap().to_string();
    assert!(source.contains("did not come up"), "{source}");
    let image = image_dir().join("initramfs.cpio");
    let soon = Duration::from_millis(100);
    let failed = probe(qemu().await, &probe_spec(&bench, image, soon)).await.unwrap_err();
    let source = std::error::Error::source(&failed).unwrap().to_string();
    assert_eq!(source, "the probe guest took longer than 100 ms");
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn detection_falls_back_with_one_warning_or_has_really_booted_kvm() {
    let bench = Bench::new();
    let options = DetectOptions {
        qemu: None,
        vsock_device: None,
        accelerator: AcceleratorChoice::Auto,
        kernel: boot_files().kernel.clone(),
        initramfs: image_dir().join("initramfs.cpio"),
        probe_dir: bench.dir.path().to_owned(),
        cache: bench.dir.path().join("kvm-probe"),
        user: bench.user,
        scope: bench.scope.clone(),
    };
    let detected = detect(&options).await.unwrap();
    match detected.vmm.accelerator() {
        enisle_vmm::Accelerator::Kvm => {
            assert_eq!(detected.warning, None);
            assert!(fs::read_to_string(&options.cache).unwrap().ends_with("\nok\n"));
        }
        enisle_vmm::Accelerator::Tcg => {
            let warning = detected.warning.unwrap();
            assert!(warning.contains("because KVM cannot be used: "), "{warning}");
            let demanded = DetectOptions { accelerator: AcceleratorChoice::Kvm, ..options.clone() };
            let refused = detect(&demanded).await.unwrap_err();
            let source = std::error::Error::source(&refused).unwrap().to_string();
            assert!(source.starts_with("KVM was asked for and cannot be used: "), "{source}");
        }
    }
    bench.assert_nothing_left();
}
