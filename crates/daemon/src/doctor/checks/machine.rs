//! The machine: privileges, kernel, VMM, images, limits.

use std::time::UNIX_EPOCH;

use super::super::facts::{Facts, Kvm, YOUNGEST};
use super::super::finding::Finding;
use super::vms;
use crate::config::Hypervisor;

/// Open files of a microVM with some sessions, and of the daemon itself.
const FILES_EACH: u64 = 64;
const FILES: u64 = 1024;
const MIB: u64 = 1 << 20;
/// Less than this is not even a state.
const LEAST_FREE: u64 = 100 * MIB;
/// Overlays grow by what guests write; below this the next one may find the disk full.
const LITTLE_FREE: u64 = 2048 * MIB;

pub(super) fn privileges(facts: &Facts) -> Vec<Finding> {
    if facts.root {
        return Vec::new();
    }
    let found = Finding::warning("privileges", "not run as root, so three things were not checked")
        .why("only root can try the kernel's features, list firewall chains and boot a probe guest")
        .fix("sudo enisle doctor");
    vec![found]
}

pub(super) fn kernel(facts: &Facts) -> Vec<Finding> {
    let Some(features) = &facts.features else { return Vec::new() };
    let Some((name, error)) = features.iter().find_map(|f| Some((f.name, f.error.as_ref()?))) else {
        let what = "the kernel does everything a microVM's network needs (tried in a namespace)";
        return vec![Finding::ok("kernel", what)];
    };
    let fix = if error.contains("/dev/net/tun") {
        "modprobe tun; in a container, pass /dev/net/tun in"
    } else if error.contains("(os error 1)") {
        "run as root with CAP_NET_ADMIN, CAP_SYS_ADMIN and CAP_BPF; in a container, run it privileged"
    } else if error.contains("nf_tables") || error.contains("nfnetlink") {
        "modprobe -a nf_tables nft_ct nft_fib_inet nft_masq nft_reject_inet nft_limit nft_connlimit; a \
         kernel without these modules needs CONFIG_NF_TABLES and CONFIG_NF_CONNTRACK"
    } else {
        "modprobe -a veth tun cls_bpf sch_ingress; a kernel without them needs CONFIG_VETH, CONFIG_TUN, \
         CONFIG_NET_CLS_BPF and CONFIG_BPF_SYSCALL"
    };
    let found = Finding::failure("kernel", format!("the kernel cannot do {name}: {error}"))
        .why("without it no microVM gets a network, so the daemon does not start")
        .fix(fix);
    vec![found]
}

pub(super) fn hypervisor(facts: &Facts) -> Vec<Finding> {
    vec![match &facts.vmm {
        Ok(version) => {
            Finding::ok("hypervisor", format!("QEMU {version} and vhost-device-vsock are here"))
        }
        Err(error) => Finding::failure("hypervisor", error.clone())
            .why("without it no microVM starts")
            .fix("apt-get install qemu-system-x86; vhost-device-vsock belongs beside the enisle program or in /usr/lib/enisle"),
    }]
}

/// Nothing without a VMM, which is a failure of its own.
pub(super) fn kvm(facts: &Facts) -> Vec<Finding> {
    let wish = match &facts.config {
        Some(Ok(config)) => config.hypervisor,
        _ => Hypervisor::Auto,
    };
    if facts.vmm.is_err() {
        return Vec::new();
    }
    let slow = "guests are emulated, several times slower";
    vec![match (&facts.kvm, wish) {
        (_, Hypervisor::QemuTcg) => Finding::note("kvm", format!("the file asks for emulation: {slow}")),
        (Kvm::Works, _) => Finding::ok("kvm", "a probe guest booted with KVM"),
        (Kvm::Likely, _) => Finding::ok("kvm", "/dev/kvm can be used; no probe guest was booted"),
        (Kvm::No(why), Hypervisor::QemuKvm) => {
            Finding::failure("kvm", format!("KVM cannot be used: {why}"))
                .why("the file asks for `hypervisor: qemu-kvm`, so the daemon does not start")
                .fix("switch virtualisation on (firmware, or nested at the cloud), modprobe kvm_intel or kvm_amd; or set `hypervisor: auto`")
        }
        (Kvm::No(why), Hypervisor::Auto) => Finding::warning("kvm", format!("KVM cannot be used: {why}"))
            .why(slow)
            .fix("switch virtualisation on (firmware, or nested at the cloud), then modprobe kvm_intel or kvm_amd"),
    }]
}

pub(super) fn boot_files(facts: &Facts) -> Vec<Finding> {
    vec![match &facts.boot_files {
        Ok(()) => Finding::ok("kernel-image", "the guests' kernel and initramfs are built"),
        Err(error) => Finding::failure("kernel-image", error.clone())
            .why("microVMs boot with it")
            .fix("sudo enisle image build"),
    }]
}

pub(super) fn images(facts: &Facts) -> Vec<Finding> {
    let dir = facts.image_dir.display();
    vec![match &facts.images {
        Ok(images) if !images.is_empty() => {
            Finding::ok("images", format!("{} in {dir}: {}", images.len(), images.join(", ")))
        }
        Ok(_) => Finding::failure("images", format!("there is no image in {dir}"))
            .why("a microVM's disk is a copy of one")
            .fix("sudo enisle image build"),
        Err(error) => Finding::failure("images", error.clone())
            .why("a microVM's disk is a copy of an image")
            .fix("sudo enisle image build"),
    }]
}

pub(super) fn control_groups(facts: &Facts) -> Vec<Finding> {
    let here = |name: &&str| facts.controllers.iter().any(|c| c == name);
    let missing: Vec<&str> = ["memory", "cpu", "pids"].into_iter().filter(|name| !here(name)).collect();
    if missing.is_empty() {
        return vec![Finding::ok("control-groups", "memory, cpu and pids can be limited")];
    }
    let what = format!("these controllers of control groups are missing: {}", missing.join(", "));
    let found = Finding::failure("control-groups", what)
        .why("each microVM's processes are limited by them, so that none starves the host")
        .fix("mount -t cgroup2 none /sys/fs/cgroup; on some boards also boot with cgroup_enable=memory");
    vec![found]
}

pub(super) fn limits(facts: &Facts) -> Vec<Finding> {
    vec![disk(facts), open_files(facts), clock(facts)]
}

fn disk(facts: &Facts) -> Finding {
    let dir = facts.state_dir.display();
    let free = match &facts.free {
        Ok(free) => *free,
        Err(error) => return Finding::warning("disk", format!("cannot see how much is free: {error}")),
    };
    let what = format!("{} MiB are free for {dir}", free / MIB);
    let found = match free {
        LITTLE_FREE.. => return Finding::ok("disk", what),
        LEAST_FREE.. => Finding::warning("disk", what),
        _ => Finding::failure("disk", what),
    };
    found
        .why("what guests write is kept there; a full disk stops them")
        .fix("free some space, or set `state_dir` to a larger file system")
}

fn open_files(facts: &Facts) -> Finding {
    let needed = FILES + FILES_EACH * vms(facts);
    match facts.open_files {
        Some(limit) if limit < needed => Finding::warning(
            "open-files",
            format!("a process may open {limit} files"),
        )
        .why(format!("with the microVMs of the file the daemon may need {needed}"))
        .fix(
            "systemctl edit enisle: [Service] LimitNOFILE=1048576; or ulimit -Hn in the shell that starts it",
        ),
        Some(limit) => Finding::ok("open-files", format!("a process may open {limit} files")),
        None => Finding::ok("open-files", "a process may open any number of files"),
    }
}

fn clock(facts: &Facts) -> Finding {
    if facts.now.duration_since(UNIX_EPOCH).is_ok_and(|now| now >= YOUNGEST) {
        return Finding::ok("clock", "the clock was set");
    }
    Finding::warning("clock", "the clock was never set: it shows a time before Enisle was made")
        .why("guests take their time from the host, and no TLS certificate is valid then")
        .fix("timedatectl set-ntp true")
}
