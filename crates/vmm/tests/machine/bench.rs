//! The bench of these tests: a guest that does one thing, a description to launch it with,
//! and the checks that nothing is left of it.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use enisle_vmm::{
    Accelerator, CgroupSpec, ConsoleChunk, ConsoleSpec, Exit, Ids, Machine, MachineSpec, Qemu, Vmm,
    kill_leftovers,
};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio::time::timeout;

/// A boot takes two seconds here; this is for a machine that does ten things at once.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const CGROUPS: &str = "/sys/fs/cgroup";

/// One VM's surroundings, apart from every other test's.
pub(crate) struct Bench {
    pub(crate) dir: TempDir,
    pub(crate) scope: String,
    pub(crate) user: Ids,
}

impl Bench {
    pub(crate) fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        // Mode 0700: the VM's user must get along without access to anything above its own.
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("run")).unwrap();
        // Also apart from what another run of these tests may have left.
        let id = 1_950_000_000 + std::process::id() % 400_000 * 100 + number;
        Self { dir, scope: format!("test{:x}-{number}", std::process::id()), user: Ids { uid: id, gid: id } }
    }

    pub(crate) fn run_dir(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    pub(crate) fn log_path(&self) -> PathBuf {
        self.dir.path().join("console.log")
    }

    /// A VM whose guest does `word` (see `init.c`).
    pub(crate) fn spec(&self, word: &str) -> MachineSpec {
        let boot = boot_files();
        MachineSpec {
            name: format!("guest, {word}"),
            run_dir: self.run_dir(),
            vcpu: 1,
            ram_mb: 256,
            kernel: boot.kernel.clone(),
            initramfs: boot.initramfs.clone(),
            cmdline_extra: format!("rdinit=/vmmtest-init vmmtest={word}"),
            disks: Vec::new(),
            nic: None,
            netns: None,
            user: self.user,
            cgroup: CgroupSpec {
                scope: self.scope.clone(),
                name: "vm.1".into(),
                memory_max: Some(640 << 20),
                cpu_milli: Some(1500),
                pids_max: Some(64),
            },
            console: ConsoleSpec::at(self.log_path()),
        }
    }

    pub(crate) async fn launch(&self, spec: MachineSpec) -> Machine {
        qemu().await.launch(spec).await.unwrap()
    }

    /// The VM's directory in one hierarchy.
    pub(crate) fn cgroup(&self, controller: &str) -> PathBuf {
        let scope = format!("enisle-{}", self.scope);
        let v1 = Path::new(CGROUPS).join(controller);
        let root = if v1.is_dir() { v1 } else { PathBuf::from(CGROUPS) };
        root.join(scope).join("vm.1")
    }

    /// Every process that runs as the VM's user.
    pub(crate) fn processes(&self) -> Vec<u32> {
        let mut found = Vec::new();
        for entry in std::fs::read_dir("/proc").unwrap().flatten() {
            let Ok(pid) = entry.file_name().to_string_lossy().parse() else {
                continue;
            };
            let status = std::fs::read_to_string(entry.path().join("status")).unwrap_or_default();
            let uids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
            let uid = uids.and_then(|uids| uids.split_whitespace().next());
            // What has ended and was adopted is init's to reap, whenever that does it.
            let dead = status.lines().any(|line| line.starts_with("State:\tZ"));
            if !dead && uid == Some(&self.user.uid.to_string()) {
                found.push(pid);
            }
        }
        found
    }

    /// No process, no control group, no socket of ours is left.
    pub(crate) fn assert_nothing_left(&self) {
        assert_eq!(self.processes(), Vec::<u32>::new(), "processes");
        let scope = format!("enisle-{}", self.scope);
        let mut roots = vec![PathBuf::from(CGROUPS)];
        roots.extend(std::fs::read_dir(CGROUPS).unwrap().map(|entry| entry.unwrap().path()));
        for root in roots {
            assert!(!root.join(&scope).exists(), "{} in {}", scope, root.display());
        }
        let left: Vec<_> =
            std::fs::read_dir(self.run_dir()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

/// A VM outlives its daemon, and so would one of a test that failed.
impl Drop for Bench {
    fn drop(&mut self) {
        let scope = self.scope.clone();
        let sweep = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build()?;
            runtime.block_on(kill_leftovers(&scope, PATIENCE)).map_err(std::io::Error::other)
        };
        // On a thread of its own: a runtime must not be dropped inside another.
        if let Ok(Err(error)) = std::thread::spawn(sweep).join() {
            eprintln!("{error}");
        }
    }
}

/// The back end of all tests.
pub(crate) async fn qemu() -> &'static Qemu {
    static QEMU: OnceCell<Qemu> = OnceCell::const_new();
    QEMU.get_or_init(|| async { Qemu::find(None, None, Accelerator::Tcg).await.unwrap() }).await
}

/// Waits until the guest has printed `text`; returns the whole console up to there.
pub(crate) async fn console_says(machine: &Machine, text: &str) -> String {
    let (mut said, mut stream) = machine.console().follow().await.unwrap();
    let shown = |said: &[u8]| String::from_utf8_lossy(said).into_owned();
    let wait = async {
        while !shown(&said).contains(text) {
            match stream.next().await {
                Some(ConsoleChunk::Output(bytes)) => said.extend_from_slice(&bytes),
                Some(ConsoleChunk::Skipped(_)) => {}
                None => break,
            }
        }
    };
    let _ = timeout(PATIENCE, wait).await;
    let said = shown(&said);
    assert!(said.contains(text), "no {text:?} on the console: {said}");
    said
}

pub(crate) async fn ended(machine: &Machine) -> Exit {
    timeout(PATIENCE, machine.wait()).await.expect("the guest did not end")
}

pub(crate) struct BootFiles {
    pub(crate) kernel: PathBuf,
    /// The real initramfs with the test's init appended: the kernel unpacks one after the other.
    pub(crate) initramfs: PathBuf,
}

pub(crate) fn image_dir() -> PathBuf {
    let dir = std::env::var_os("ENISLE_TEST_IMAGES").unwrap_or("/var/lib/enisle/images".into());
    PathBuf::from(dir).join("boot")
}

pub(crate) fn boot_files() -> &'static BootFiles {
    static FILES: OnceLock<BootFiles> = OnceLock::new();
    FILES.get_or_init(|| {
        let boot = image_dir();
        let kernel = ["kernel", "vmlinuz"]
            .map(|name| boot.join(name))
            .into_iter()
            .find(|path| path.exists())
            .unwrap_or_else(|| panic!("no kernel in {}: build the images first", boot.display()));
        let mut bytes = std::fs::read(boot.join("initramfs.cpio")).expect("no initramfs");
        bytes.resize(bytes.len().next_multiple_of(512), 0);
        bytes.extend(cpio_entry("vmmtest-init", 0o100_755, &compile_init()));
        bytes.extend(cpio_entry("TRAILER!!!", 0, &[]));
        // Whole or not at all: another run of these tests may be using it.
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR"));
        let fresh = dir.join(format!("vmmtest.{}", std::process::id()));
        std::fs::write(&fresh, bytes).unwrap();
        std::fs::set_permissions(&fresh, PermissionsExt::from_mode(0o644)).unwrap();
        let initramfs = dir.join("vmmtest.cpio");
        std::fs::rename(fresh, &initramfs).unwrap();
        BootFiles { kernel, initramfs }
    })
}

fn compile_init() -> Vec<u8> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/machine/init.c");
    let out = tempfile::tempdir().unwrap();
    let binary = out.path().join("init");
    let compiled = Command::new("cc")
        .args(["-static", "-O1", "-o"])
        .args([&binary, &source])
        .status()
        .expect("a C compiler is needed");
    assert!(compiled.success());
    std::fs::read(binary).unwrap()
}

/// One file in the "new ASCII" format, as in the kernel's `initramfs-buffer-format.rst`.
fn cpio_entry(name: &str, mode: u32, content: &[u8]) -> Vec<u8> {
    let size = u32::try_from(content.len()).unwrap();
    let name_size = u32::try_from(name.len() + 1).unwrap();
    let fields = [1, mode, 0, 0, 1, 0, size, 0, 0, 0, 0, name_size, 0];
    let mut entry = b"070701".to_vec();
    for field in fields {
        entry.extend(format!("{field:08x}").bytes());
    }
    entry.extend(name.bytes());
    entry.push(0);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry.extend(content);
    entry.resize(entry.len().next_multiple_of(4), 0);
    entry
}
