//! A launch that fails says at which step and why, and leaves nothing: every step once.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use enisle_vmm::{Accelerator, Disk, DiskFormat, MachineSpec, Nic, Qemu, Step, Vmm, VmmError};

use crate::bench::{Bench, qemu};

/// Launches what must fail; returns the step, and the message with all its causes.
async fn fails(qemu: &Qemu, spec: MachineSpec) -> (Step, String) {
    let error = qemu.launch(spec).await.unwrap_err();
    let mut text = error.to_string();
    let mut next = std::error::Error::source(&error);
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    match error {
        VmmError::Launch { step, .. } => (step, text),
        other => panic!("{other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn at_every_step() {
    type Spoil = fn(&Bench, &mut MachineSpec);
    let cases: [(Step, &str, Spoil); 10] = [
        (Step::Validate, "`vcpu` must be 1 to 64", |_, spec| spec.vcpu = 0),
        (Step::Validate, "`user` a VMM never runs as root", |_, spec| spec.user.uid = 0),
        (Step::Validate, "longer than 2047 bytes", |_, spec| {
            spec.cmdline_extra = "x".repeat(2048);
        }),
        (Step::Sockets, "open run directory /nonexistent", |_, spec| {
            spec.run_dir = PathBuf::from("/nonexistent");
        }),
        (Step::Files, "open /nonexistent/vmlinuz: No such file", |_, spec| {
            spec.kernel = PathBuf::from("/nonexistent/vmlinuz");
        }),
        (Step::Files, "chmod o+r", |bench, spec| {
            let secret = bench.dir.path().join("vmlinuz");
            std::fs::write(&secret, "x").unwrap();
            std::fs::set_permissions(&secret, PermissionsExt::from_mode(0o600)).unwrap();
            spec.kernel = secret;
        }),
        (Step::Files, "neither a file nor a block device", |_, spec| {
            spec.disks.push(Disk {
                path: "/dev/zero".into(),
                backing: None,
                format: DiskFormat::Raw,
                read_only: true,
            });
        }),
        (Step::Console, "open console log /nonexistent/log", |_, spec| {
            spec.console.log_path = PathBuf::from("/nonexistent/log");
        }),
        // More than the machine's pid numbers: the kernel refuses it.
        (Step::Cgroup, "pids.max", |_, spec| spec.cgroup.pids_max = Some(u32::MAX)),
        // The namespace's descriptor is none: the child fails before it executes anything.
        (Step::VsockDevice, "enter the control group and namespace for", |_, spec| {
            spec.netns = Some(std::fs::File::open("/dev/null").unwrap().into());
        }),
    ];
    for (step, words, spoil) in cases {
        let bench = Bench::new();
        let mut spec = bench.spec("off");
        spoil(&bench, &mut spec);
        let (failed_at, message) = fails(qemu().await, spec).await;
        assert_eq!(failed_at, step, "{message}");
        assert!(message.contains(words), "{message}");
        bench.assert_nothing_left();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn when_qemu_refuses_its_last_words_are_in_the_message() {
    let bench = Bench::new();
    let mut spec = bench.spec("off");
    // A descriptor that is no tap.
    spec.nic = Some(Nic {
        tap: std::fs::File::open("/dev/null").unwrap().into(),
        mac: [2, 0, 0, 0, 0, 1],
        mtu: 1500,
    });
    let (step, message) = fails(qemu().await, spec).await;
    assert_eq!(step, Step::Control, "{message}");
    assert!(message.contains("its processes said: ") && message.contains("TUNGETIFF"), "{message}");
    assert!(message.contains("qemu-system-x86_64 ended early: exit code 1"), "{message}");
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn when_a_program_does_something_else() {
    let bench = Bench::new();
    let script = |name: &str, body: &str| {
        let path = bench.dir.path().join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
        std::fs::set_permissions(&path, PermissionsExt::from_mode(0o755)).unwrap();
        path
    };
    let quits = script("quits", "echo 'no device today' >&2; exit 3");
    let fake = Qemu::find(None, Some(&quits), Accelerator::Tcg).await.unwrap();
    let (step, message) = fails(&fake, bench.spec("off")).await;
    // A script needs its path, which the VM's user cannot walk: it may fail either way.
    assert_eq!(step, Step::VsockDevice, "{message}");
    bench.assert_nothing_left();
    let liar = script("liar", "echo 'QEMU emulator version 9.0.0'");
    let copy = bench.dir.path().join("true");
    std::fs::copy("/bin/true", &copy).unwrap();
    let fake = Qemu::find(Some(&liar), Some(&copy), Accelerator::Tcg).await.unwrap();
    let (step, message) = fails(&fake, bench.spec("off")).await;
    assert_eq!(step, Step::VsockDevice, "{message}");
    assert!(message.contains("vhost-device-vsock ended early: exit code 0"), "{message}");
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_named_with_the_places_looked_at() {
    let missing = Path::new("/nonexistent/qemu");
    let error = Qemu::find(Some(missing), None, Accelerator::Tcg).await.unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert_eq!(source, "qemu-system-x86_64 was not found; looked at /nonexistent/qemu");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_control_group_in_use_is_not_taken_over() {
    let bench = Bench::new();
    let first = bench.launch(bench.spec("idle")).await;
    let second = Bench::new();
    let mut spec = second.spec("idle");
    spec.cgroup = bench.spec("idle").cgroup;
    let (step, message) = fails(qemu().await, spec).await;
    assert_eq!(step, Step::Cgroup, "{message}");
    assert!(message.contains("busy"), "{message}");
    second.assert_nothing_left();
    assert_eq!(first.exit(), None, "the first VM was hurt");
    first.kill().await;
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_in_a_sockets_place_is_not_removed() {
    let bench = Bench::new();
    let precious = bench.run_dir().join("qmp.sock");
    std::fs::write(&precious, "mine").unwrap();
    let (step, message) = fails(qemu().await, bench.spec("off")).await;
    assert_eq!(step, Step::Sockets, "{message}");
    assert!(message.contains("is in the way and no socket"), "{message}");
    assert_eq!(std::fs::read(&precious).unwrap(), b"mine");
    std::fs::remove_file(precious).unwrap();
    bench.assert_nothing_left();
}
