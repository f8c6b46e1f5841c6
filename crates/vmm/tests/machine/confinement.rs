//! What a VM's processes are not allowed, read back from the kernel.

use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use enisle_vmm::{ExitReason, Nic};
use rustix::fs::{Mode, OFlags};
use tokio::time::timeout;

use crate::bench::{Bench, PATIENCE, boot_files, console_says};

const MAC: [u8; 6] = [0x02, 0, 0xa9, 0xfe, 0x64, 0x02];

/// A namespace of its own with a persistent tap in it, and an open queue of that tap.
fn namespace_with_tap() -> (OwnedFd, OwnedFd) {
    // The thread ends here: nothing else ever runs in its namespace.
    let made = std::thread::spawn(|| {
        enter_new_netns();
        let netns = rustix::fs::open("/proc/thread-self/ns/net", OFlags::CLOEXEC, Mode::empty());
        (netns.unwrap(), open_tap())
    });
    made.join().unwrap()
}

#[expect(unsafe_code, reason = "unsharing is unsafe for descriptors only, which stay shared here")]
fn enter_new_netns() {
    // SAFETY: the descriptor table is not unshared.
    unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
}

#[expect(unsafe_code, reason = "TUNSETIFF has no safe wrapper")]
fn open_tap() -> OwnedFd {
    let flags = OFlags::RDWR | OFlags::CLOEXEC | OFlags::NONBLOCK;
    let tap = rustix::fs::open("/dev/net/tun", flags, Mode::empty()).unwrap();
    // SAFETY: all zeroes is a valid `ifreq`.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (place, byte) in request.ifr_name.iter_mut().zip(b"tap0") {
        *place = byte.cast_signed();
    }
    let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_UP;
    request.ifr_ifru.ifru_flags = i16::try_from(wanted & !libc::IFF_UP).unwrap();
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    assert_eq!(unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &mut request) }, 0);
    request.ifr_ifru.ifru_flags = i16::try_from(libc::IFF_UP).unwrap();
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None);
    let socket = socket.unwrap();
    // SAFETY: SIOCSIFFLAGS reads one `ifreq`, with the name filled in above.
    let up = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) };
    assert_eq!(up, 0);
    tap
}

fn status(pid: u32, field: &str) -> String {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(&format!("{field}:")));
    line.unwrap().trim().to_owned()
}

fn descriptors(pid: u32) -> Vec<String> {
    let list = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
    let target = |entry: fs::DirEntry| fs::read_link(entry.path()).ok();
    let targets = list.flatten().filter_map(target);
    targets.map(|path| path.to_string_lossy().into_owned()).collect()
}

fn controllers_of(pid: u32) -> Vec<String> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap();
    let ours = groups.lines().filter(|line| line.contains("/enisle-"));
    ours.map(str::to_owned).collect()
}

/// What is open beside the standard streams and the kernel's anonymous objects.
fn strange(descriptors: &[String], bench: &Bench) -> Vec<String> {
    let known = ["socket:", "pipe:", "anon_inode:", "/memfd:", "/dev/null", "/dev/net/tun"];
    let ours = |target: &String| {
        known.iter().any(|prefix| target.starts_with(prefix))
            || Path::new(target) == boot_files().kernel
            || Path::new(target) == boot_files().initramfs
    };
    assert!(!descriptors.iter().any(|target| target.contains(&bench.log_path().display().to_string())));
    descriptors.iter().filter(|target| !ours(target)).cloned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn both_processes_are_confined() {
    let bench = Bench::new();
    // Bait: open in this process without close-on-exec, so a careless child would inherit it.
    let bait = rustix::fs::open("/etc/hostname", OFlags::RDONLY, Mode::empty()).unwrap();
    let (netns, tap) = namespace_with_tap();
    let netns_inode = rustix::fs::fstat(&netns).unwrap().st_ino;
    let mut spec = bench.spec("net");
    spec.netns = Some(netns);
    spec.nic = Some(Nic { tap, mac: MAC, mtu: 1400 });
    let machine = bench.launch(spec).await;
    machine.start().await.unwrap();
    let console = console_says(&machine, "vmmtest: sent").await;
    assert!(console.contains("vmmtest: mac 02:00:a9:fe:64:02"), "{console}");
    assert!(console.contains("vmmtest: mtu 1400"), "{console}");

    let processes = bench.processes();
    assert_eq!(processes.len(), 2);
    for &pid in &processes {
        let id = bench.user.uid.to_string();
        let four = [id.as_str(); 4].join("\t");
        assert_eq!((status(pid, "Uid"), status(pid, "Gid")), (four.clone(), four));
        assert_eq!(status(pid, "Groups"), "");
        assert_eq!(status(pid, "NoNewPrivs"), "1");
        for set in ["CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"] {
            assert_eq!(status(pid, set), "0".repeat(16), "{set}");
        }
        assert_eq!(fs::metadata(format!("/proc/{pid}/ns/net")).unwrap().ino(), netns_inode);
        assert_eq!(fs::read(format!("/proc/{pid}/environ")).unwrap(), b"");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap(), bench.run_dir());
        assert!(!controllers_of(pid).is_empty());
        let limits = fs::read_to_string(format!("/proc/{pid}/limits")).unwrap();
        assert!(limits.lines().any(|line| line.starts_with("Max core file size        0 ")));
        let open = descriptors(pid);
        assert_eq!(strange(&open, &bench), Vec::<String>::new(), "of {open:?}");
    }
    // QEMU's own sandbox: mode 2 is a filter (proc(5)).
    assert_eq!(status(machine.pid(), "Seccomp"), "2");
    assert_eq!(status(machine.pid(), "Umask"), "0077");
    assert!(descriptors(machine.pid()).iter().any(|target| target == "/dev/net/tun"));

    // The guest's frame has arrived on the tap in that namespace, and in no other.
    let counters = fs::read_to_string(format!("/proc/{}/net/dev", machine.pid())).unwrap();
    let tap = counters.lines().find_map(|line| line.trim().strip_prefix("tap0:")).unwrap();
    assert_ne!(tap.split_whitespace().nth(1), Some("0"), "{counters}");

    machine.kill().await;
    drop(bait);
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn sockets_are_for_root_and_the_vms_user_only() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("idle")).await;
    let dir = fs::metadata(bench.run_dir()).unwrap();
    assert_eq!((dir.uid(), dir.gid(), dir.mode() & 0o7777), (0, bench.user.gid, 0o1770));
    for entry in fs::read_dir(bench.run_dir()).unwrap() {
        let entry = entry.unwrap();
        let found = entry.metadata().unwrap();
        let name = entry.file_name().into_string().unwrap();
        let owner = if name.starts_with('v') { bench.user.uid } else { 0 };
        assert_eq!(found.uid(), owner, "{name}");
        assert_eq!(found.mode() & 0o077, 0, "{name}");
    }
    machine.kill().await;
    bench.assert_nothing_left();
}

#[tokio::test(flavor = "multi_thread")]
async fn limits_are_in_the_kernel() {
    let bench = Bench::new();
    let machine = bench.launch(bench.spec("idle")).await;
    let read = |controller: &str, names: [&str; 2]| {
        let dir = bench.cgroup(controller);
        let file = names.iter().map(|name| dir.join(name)).find(|file| file.exists()).unwrap();
        fs::read_to_string(file).unwrap().trim().to_owned()
    };
    let memory = read("memory", ["memory.limit_in_bytes", "memory.max"]);
    assert_eq!(memory, (640_u64 << 20).to_string());
    assert_eq!(read("pids", ["pids.max", "pids.max"]), "64");
    let cpu = read("cpu", ["cpu.cfs_quota_us", "cpu.max"]);
    assert_eq!(cpu.split(' ').next(), Some("150000"));
    let members = fs::read_to_string(bench.cgroup("pids").join("cgroup.procs")).unwrap();
    assert_eq!(members.lines().count(), 2, "{members}");
    assert_eq!(machine.kill().await.reason, ExitReason::Killed);
    bench.assert_nothing_left();
}

/// The fd table of this very process must not grow with every VM.
#[tokio::test(flavor = "multi_thread")]
async fn a_vm_that_is_gone_leaves_no_descriptor_in_the_daemon() {
    let bench = Bench::new();
    let mine = |what: &str| {
        let list = descriptors(std::process::id());
        list.iter().filter(|target| target.contains(what)).count()
    };
    let machine = bench.launch(bench.spec("off")).await;
    machine.start().await.unwrap();
    let run_dir = bench.dir.path().display().to_string();
    assert!(mine(&run_dir) > 0, "the console log is open while it runs");
    assert!(Path::new(&format!("/proc/{}", machine.pid())).exists());
    timeout(PATIENCE, machine.wait()).await.unwrap();
    drop(machine);
    // Closing a file happens in the runtime's background.
    let closed = async {
        while mine(&run_dir) > 0 {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, closed).await.expect("a descriptor of a VM that is gone stays open");
    bench.assert_nothing_left();
}
