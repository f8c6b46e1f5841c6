//! What the doctor looks at, as plain data.
//!
//! Owns: gathering it, by reading and by what the parts themselves offer (the network engine's
//! survey, the VMM's detection). Refuses: judging it (`checks`), and changing the host.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use enisle_image::ImageStore;
use enisle_net::survey::{self, Feature, ForwardChain, Settings};
use enisle_vmm::{Accelerator, AcceleratorChoice, DetectOptions, Ids, Qemu, Vmm as _};
use rustix::process::{Resource, getrlimit};

use super::DoctorOptions;
use crate::boot::{PROBE_UID, boot_files};
use crate::chain::Chain;
use crate::config::{self, Config, Look};
use crate::dns::Upstreams;
use crate::host::ThisHost;

/// Where systemd-networkd reads from, first things first (systemd.network(5)).
const NETWORKD: [&str; 4] = [
    "/etc/systemd/network",
    "/run/systemd/network",
    "/usr/local/lib/systemd/network",
    "/usr/lib/systemd/network",
];
/// Where things are unless a file says otherwise.
const IMAGE_DIR: &str = "/var/lib/enisle/images";
const STATE_DIR: &str = "/var/lib/enisle";
/// The scope of a probe guest; no daemon has it.
const SCOPE: &str = "ffffffff";

/// Everything at once. An error is for people; `None` means it was not asked for.
#[derive(Debug, Clone)]
pub(super) struct Facts {
    pub(super) root: bool,
    /// The configuration that was given; an error is the complaint about it, whole.
    pub(super) config: Option<Result<Config, String>>,
    /// Only root can try.
    pub(super) features: Option<Vec<Feature>>,
    /// The VMM's version.
    pub(super) vmm: Result<String, String>,
    pub(super) kvm: Kvm,
    /// Kernel and initramfs.
    pub(super) boot_files: Result<(), String>,
    pub(super) image_dir: PathBuf,
    pub(super) images: Result<Vec<String>, String>,
    pub(super) settings: Result<Settings, String>,
    /// Only root can read them.
    pub(super) chains: Option<Result<Vec<ForwardChain>, String>>,
    /// iptables-legacy has a filter table.
    pub(super) legacy_iptables: bool,
    /// Programs that manage firewalls or interfaces and run here.
    pub(super) programs: Vec<Program>,
    /// `.network` files, path and text, in the order of their directories.
    pub(super) networkd: Vec<(String, String)>,
    /// NetworkManager's configuration, all files together.
    pub(super) network_manager: String,
    pub(super) resolvers: Vec<SocketAddr>,
    /// Controllers of the control groups, of both versions.
    pub(super) controllers: Vec<String>,
    /// Free bytes where the state will be.
    pub(super) free: Result<u64, String>,
    pub(super) state_dir: PathBuf,
    /// The hard limit of open files; `None` is none.
    pub(super) open_files: Option<u64>,
    pub(super) now: SystemTime,
}

/// Hardware acceleration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kvm {
    /// A guest booted with it.
    Works,
    /// It cannot be used, and why.
    No(String),
    /// The device can be opened; no guest was booted.
    Likely,
}

/// Programs with opinions about the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Program {
    Docker,
    Firewalld,
    Ufw,
    Networkd,
    NetworkManager,
}

pub(super) fn gather(options: &DoctorOptions) -> Facts {
    let root = rustix::process::geteuid().is_root();
    let config = options.file.as_deref().map(load);
    let given = config.as_ref().and_then(|c| c.as_ref().ok());
    let image_dir = given.map_or_else(|| IMAGE_DIR.into(), |c| c.image_dir.clone());
    let state_dir = given.map_or_else(|| STATE_DIR.into(), |c| c.state_dir.clone());
    let images = ImageStore::open(&image_dir);
    let files = boot_paths(given, &images);
    let (vmm, kvm) = hypervisor(options.quick || !root, files.as_ref().ok());
    Facts {
        root,
        features: root.then(survey::features),
        vmm,
        kvm,
        boot_files: files.map(drop),
        images: images
            .list()
            .map(|list| list.into_iter().map(|image| image.name).collect())
            .map_err(|e| Chain(&e).to_string()),
        image_dir,
        settings: survey::settings().map_err(|e| Chain(&e).to_string()),
        chains: root.then(|| survey::forward_chains().map_err(|e| Chain(&e).to_string())),
        legacy_iptables: read("/proc/self/net/ip_tables_names").lines().any(|l| l == "filter"),
        programs: programs(),
        networkd: NETWORKD.iter().flat_map(|dir| texts(Path::new(dir), "network")).collect(),
        network_manager: network_manager(),
        resolvers: Upstreams::host().servers().to_vec(),
        controllers: controllers(),
        free: free(&state_dir),
        state_dir,
        open_files: getrlimit(Resource::Nofile).maximum,
        now: SystemTime::now(),
        config,
    }
}

fn load(file: &Path) -> Result<Config, String> {
    config::load(file, &ThisHost).map_err(|errors| errors.render(Look::Plain))
}

fn boot_paths(config: Option<&Config>, images: &ImageStore) -> Result<(PathBuf, PathBuf), String> {
    match config {
        Some(config) => boot_files(config, images).map_err(|e| Chain(&e).to_string()),
        None => images.boot().map(|b| (b.kernel, b.initramfs)).map_err(|e| Chain(&e).to_string()),
    }
}

fn hypervisor(quick: bool, files: Option<&(PathBuf, PathBuf)>) -> (Result<String, String>, Kvm) {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return (Err(error.to_string()), Kvm::No(error.to_string())),
    };
    runtime.block_on(async {
        let found = Qemu::find(None, None, Accelerator::Tcg).await;
        let version = found.map(|q| q.version().to_owned()).map_err(|e| Chain(&e).to_string());
        let kvm = match (Qemu::find(None, None, Accelerator::Kvm).await, files) {
            (Err(error), _) => Kvm::No(Chain(&error).to_string()),
            (Ok(_), Some(files)) if !quick => probe(files).await,
            (Ok(_), _) => Kvm::Likely,
        };
        (version, kvm)
    })
}

/// Boots a guest with KVM, in a directory that is removed afterwards.
async fn probe((kernel, initramfs): &(PathBuf, PathBuf)) -> Kvm {
    let dir = PathBuf::from(format!("/run/enisle-doctor-{}", std::process::id()));
    if let Err(error) = std::fs::create_dir(&dir) {
        return Kvm::No(format!("cannot make {}: {error}", dir.display()));
    }
    let options = DetectOptions {
        qemu: None,
        vsock_device: None,
        accelerator: AcceleratorChoice::Kvm,
        kernel: kernel.clone(),
        initramfs: initramfs.clone(),
        probe_dir: dir.clone(),
        cache: dir.join("verdict"),
        user: Ids { uid: PROBE_UID, gid: PROBE_UID },
        scope: SCOPE.to_owned(),
    };
    let found = enisle_vmm::detect(&options).await;
    if let Err(error) = std::fs::remove_dir_all(&dir) {
        tracing::warn!("cannot remove {}: {error}", dir.display());
    }
    match found {
        Ok(_) => Kvm::Works,
        Err(error) => Kvm::No(Chain(&error).to_string()),
    }
}

/// Empty where it cannot be read: what is not there says nothing.
fn read(path: impl AsRef<Path>) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

/// Files of a directory with an extension, and their texts.
fn texts(dir: &Path, extension: &str) -> Vec<(String, String)> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path());
    let wanted = entries.filter(|path| path.extension().is_some_and(|e| e == extension));
    wanted.map(|path| (path.display().to_string(), read(&path))).collect()
}

fn network_manager() -> String {
    let mut text = read("/etc/NetworkManager/NetworkManager.conf");
    for dir in ["/etc/NetworkManager/conf.d", "/run/NetworkManager/conf.d", "/usr/lib/NetworkManager/conf.d"]
    {
        for (_, more) in texts(Path::new(dir), "conf") {
            text.push('\n');
            text.push_str(&more);
        }
    }
    text
}

/// By what they leave behind while they run.
fn programs() -> Vec<Program> {
    let ufw = read("/etc/ufw/ufw.conf").lines().any(|l| l.trim().eq_ignore_ascii_case("ENABLED=yes"));
    let there = |path: &str| Path::new(path).exists();
    let all = [
        (Program::Docker, there("/run/docker.sock") || there("/run/docker.pid")),
        (Program::Firewalld, there("/run/firewalld.pid") || there("/run/firewalld")),
        (Program::Ufw, ufw),
        (Program::Networkd, there("/run/systemd/netif/state")),
        (
            Program::NetworkManager,
            there("/run/NetworkManager/NetworkManager.pid") || there("/run/NetworkManager"),
        ),
    ];
    all.into_iter().filter(|(_, here)| *here).map(|(program, _)| program).collect()
}

/// From both versions' mounts (cgroups(7)).
fn controllers() -> Vec<String> {
    let unified = read("/sys/fs/cgroup/cgroup.controllers");
    let mut names: Vec<String> = unified.split_whitespace().map(str::to_owned).collect();
    for line in read("/proc/self/mounts").lines() {
        let mut fields = line.split(' ').skip(2);
        if let (Some("cgroup"), Some(options)) = (fields.next(), fields.next()) {
            names.extend(options.split(',').map(str::to_owned));
        }
    }
    names
}

/// Of the nearest directory that exists.
fn free(dir: &Path) -> Result<u64, String> {
    let there = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    let found = rustix::fs::statvfs(there).map_err(|e| format!("{}: {e}", there.display()))?;
    Ok(found.f_bavail.saturating_mul(found.f_frsize))
}

/// A clock before this was never set: Enisle is younger.
pub(super) const YOUNGEST: Duration = Duration::from_secs(1_735_689_600);
