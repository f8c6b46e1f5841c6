//! How the daemon comes up: what it checks, what it clears away first, in which order.
//!
//! ```text
//! configuration ─▶ root? ─▶ state lock ─▶ API socket, TCP and SSH ports ─▶ survivors found, the rest of an earlier
//!   run removed ─▶ VMM found ─▶ network engine ─▶ survivors adopted ─▶ API answers ─▶ READY
//!   ─▶ configured VMs start
//! ```
//!
//! Owns: the order. Nothing is touched before the whole file is right, and no packet can pass
//! before the engine stands. Refuses: the way down, which is `shutdown`'s.

use crate::access::Tokens;
use crate::access::attempts::{Attempts, DELAY};
use crate::chain::Chain;
use crate::config::{self, Config, ConfigErrors, Look};
use crate::events::Events;
use crate::host::ThisHost;
use crate::http::{self, App, ListenError, Listener};
use crate::listening::{self, ListeningError};
use crate::logging;
use crate::metrics::Metrics;
use crate::options::{ExitCode, LogFormat, UpOptions};
use crate::parts::mode::slots::Slots;
use crate::parts::mode::{Bridge, Isolated, Modes};
use crate::parts::names::NameServers;
use crate::parts::network::{Network, NetworkError};
use crate::parts::real::RealParts;
use crate::parts::{PartError, departures, refusals, warm_up, watch};
use crate::reload;
use crate::shutdown;
use crate::signals::{self, Wishes};
use crate::ssh;
use crate::store::{Store, StoreError, VmRow};
use crate::survivors::{self, Found};
use crate::vm::create::Workshop;
use crate::vm::groups::Groups;
use crate::vm::plan::{GroupPlan, StateDirs};
use crate::vm::queue::{self, Queue};
use crate::vm::registry::Registry;
use enisle_api::Version;
use enisle_image::{ImageError, ImageStore};
use enisle_net::policy::CompileError;
use enisle_vmm::{AcceleratorChoice, DetectOptions, Ids, Vmm, VmmError};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

/// Whom a probe of the VMM runs as; below the first VM's.
pub(crate) const PROBE_UID: u32 = 1_899_999_999;

/// Why the daemon did not come up.
#[derive(Debug, thiserror::Error)]
pub(crate) enum BootError {
    /// Namespaces, cgroups and taps are root's.
    #[error("the daemon must run as root; try: sudo enisle up")]
    NotRoot,
    /// The runtime.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// Signals.
    #[error("cannot listen for signals")]
    Signals(#[source] io::Error),
    /// The state directory.
    #[error("cannot use the daemon's state")]
    Store(#[from] StoreError),
    /// The API's socket.
    #[error("cannot open the API")]
    Listen(#[from] ListenError),
    /// The API on TCP.
    #[error("cannot serve the API on TCP")]
    Listening(#[from] ListeningError),
    /// The consoles' port.
    #[error("cannot serve consoles over SSH")]
    Ssh(#[from] ssh::SshError),
    /// A killed run's files.
    #[error("cannot remove what an earlier run left")]
    Files(#[from] PartError),
    /// No VMM, or processes of a killed run.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The boot files.
    #[error("cannot boot a guest")]
    Image(#[from] ImageError),
    /// The network engine.
    #[error("cannot set up the network")]
    Network(#[from] NetworkError),
    /// The kernel's notifications.
    #[error("cannot follow the host's network")]
    Watch(#[source] io::Error),
    /// The thread that tells of refused packets.
    #[error("cannot tell of refused packets")]
    Refusals(#[source] io::Error),
    /// The thread that makes slots ahead of time.
    #[error("cannot keep slots ready; `warm_slots: 0` does without")]
    Warm(#[source] io::Error),
    /// A policy that the configuration let pass.
    #[error("group {group}: its policy does not compile")]
    Policy {
        /// The group.
        group: String,
        /// Why.
        #[source]
        source: CompileError,
    },
    /// Work on a blocking thread panicked.
    #[error("a defect: {0} panicked")]
    Panicked(&'static str),
    /// Asked to stop before it was up.
    #[error("asked to stop")]
    Stopped,
}

/// `enisle up`: runs the daemon until it is asked to stop. Blocks.
///
/// Complaints about the configuration and a failure to come up go to standard error, everything
/// later is logged.
#[must_use]
pub fn run(options: &UpOptions) -> ExitCode {
    if let Err(error) = logging::init(options.log_format, &options.log_level) {
        eprintln!("enisle: {}", Chain(&error));
        return ExitCode::Failed;
    }
    let load = || config::load(&options.file, &ThisHost).map_err(Refused::File);
    let outcome = match options.check {
        true => load().map(|_| println!("{} is right", options.file.display())).map(|()| ExitCode::Stopped),
        false => listening(|runtime, wishes| Ok(start(load()?, options, runtime, wishes)?)),
    };
    match outcome {
        Ok(code) => code,
        Err(Refused::File(errors)) => {
            complain(&errors, options.log_format);
            ExitCode::BadConfig
        }
        Err(Refused::Boot(error)) => failed(&error),
    }
}

/// Why there is no daemon.
enum Refused {
    /// The file is wrong.
    File(ConfigErrors),
    /// It did not come up.
    Boot(BootError),
}

impl From<BootError> for Refused {
    fn from(error: BootError) -> Self {
        Self::Boot(error)
    }
}

fn failed(error: &BootError) -> ExitCode {
    match error {
        BootError::Stopped => ExitCode::Stopped,
        error => {
            tracing::error!("{}", Chain(error));
            ExitCode::Failed
        }
    }
}

/// Takes signals before anything else: one that comes early must not end the process half-way.
fn listening<T>(
    work: impl FnOnce(&tokio::runtime::Runtime, Wishes) -> Result<T, Refused>,
) -> Result<T, Refused> {
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().map_err(BootError::Runtime)?;
    let wishes = {
        let _entered = runtime.enter();
        signals::listen().map_err(BootError::Signals)?
    };
    let done = work(&runtime, wishes);
    // What is left on blocking threads has nothing to undo any more.
    runtime.shutdown_background();
    done
}

fn complain(errors: &ConfigErrors, format: LogFormat) {
    match format {
        LogFormat::Json => eprintln!("{}", errors.to_json()),
        LogFormat::Human if io::stderr().is_terminal() => {
            let width =
                rustix::termios::tcgetwinsize(io::stderr()).map_or(80, |size| usize::from(size.ws_col));
            eprintln!("{}", errors.render(Look::Terminal { width }));
        }
        LogFormat::Human => eprintln!("{}", errors.render(Look::Plain)),
    }
}

fn start(
    config: Config,
    options: &UpOptions,
    runtime: &tokio::runtime::Runtime,
    wishes: Wishes,
) -> Result<ExitCode, BootError> {
    if !rustix::process::geteuid().is_root() {
        return Err(BootError::NotRoot);
    }
    raise_open_files();
    runtime.block_on(up(config, options, wishes))
}

/// Raises the limit of open files as far as it goes: a VM takes some dozen, and each of its sessions more.
fn raise_open_files() {
    let most = getrlimit(Resource::Nofile).maximum;
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }) {
        tracing::warn!(
            "the limit of open files stays low: {error}; many VMs may need `LimitNOFILE=` in the unit"
        );
    }
}

/// A daemon that is up.
pub(crate) struct Up {
    pub(crate) wishes: Wishes,
    pub(crate) registry: Arc<Registry>,
    pub(crate) network: Arc<Network>,
    pub(crate) api: JoinHandle<()>,
    /// Reads the file anew; ends with the wish to stop.
    pub(crate) reloads: JoinHandle<()>,
    /// Ends the API.
    pub(crate) close_api: CancellationToken,
    /// Consoles over SSH, where the file asks for them.
    pub(crate) ssh: Option<ssh::Server>,
    pub(crate) dirs: StateDirs,
    /// Held to the end: its lock keeps a second daemon away.
    pub(crate) store: Arc<Store>,
}

async fn up(config: Config, options: &UpOptions, wishes: Wishes) -> Result<ExitCode, BootError> {
    let UpOptions { vms, faults, .. } = *options;
    let state_dir = config.state_dir.clone();
    let store = Arc::new(blocking("opening the state", move || Store::open(&state_dir)).await??);
    let scope = store.scope().to_owned();
    let tokens = Tokens::open(Arc::clone(&store))?;
    let listener = Listener::bind(&config.api)?;
    let (bound, entrances) = listening::open(&config, options.insecure_loopback).await?;
    let ssh = bind_ssh(&config).await?;
    let dirs = StateDirs::new(&config.state_dir);
    if vms.stop {
        store.forget_group_lists()?;
    }
    let groups = plan_groups(&config, &store)?;
    let found = if vms.stop { Vec::new() } else { survivors::find(&store, &groups)? };
    survivors::clear_others(&store, &dirs, &found).await?;
    let images = ImageStore::open(&config.image_dir);
    let (kernel, initramfs) = boot_files(&config, &images)?;
    let vmm = tokio::select! {
        vmm = find_vmm(&config, &scope, &kernel, &initramfs) => vmm?,
        () = wishes.stop.cancelled() => {
            if !vms.keep {
                survivors::clear_others(&store, &dirs, &[]).await?;
            }
            return Err(BootError::Stopped);
        }
    };
    let network = open_network(&config, &scope, &found).await?;
    let (events, metrics) = (Arc::new(Events::new(store.run())), Arc::new(Metrics::new()));
    start_threads(&network).await?;
    let version = version(&scope, &*vmm);
    tracing::info!(scope, hypervisor = version.hypervisor, api = %config.api.display(), "up");
    faults.announce();
    let slots = Arc::new(Slots { network: Arc::clone(&network), names: NameServers::new() });
    let (rows, living): (Vec<_>, Vec<_>) =
        found.into_iter().map(|found| (found.row.clone(), (found.row.name, found.survivor))).unzip();
    let parts = Arc::new(RealParts {
        scope,
        network: Arc::clone(&network),
        modes: Arc::new(Modes { isolated: Isolated(Arc::clone(&slots)), bridge: Bridge(slots) }),
        vmm,
        images,
        kernel,
        initramfs,
        survivors: Mutex::new(living.into_iter().collect()),
    });
    let queue = Queue::new(config.start_at_once.map_or_else(at_once, |n| n as usize), queue::this_host);
    let workshop =
        Workshop { parts, store: Arc::clone(&store), faults, queue, events: Arc::clone(&events), metrics };
    let groups = Groups::new(groups);
    let registry = Arc::new(Registry::new(workshop, Arc::clone(&groups), dirs.clone(), wishes.stop.clone()));
    adopt(&registry, rows).await;
    // What was refused of those that live has a name from here on.
    refusals::keep(Arc::clone(&network), events).map_err(BootError::Refusals)?;
    warm_up::keep(Arc::clone(&network), Arc::clone(&store), groups).map_err(BootError::Warm)?;
    let app = App {
        registry: Arc::clone(&registry),
        version,
        stopping: wishes.stop.clone(),
        tokens,
        attempts: Attempts::new(DELAY),
        entrances,
        scraping: Arc::default(),
    };
    let keys = Arc::new(ssh::Keys::of(&config));
    let ssh = ssh.map(|ssh| ssh::serve(ssh, Arc::clone(&keys), Arc::clone(&registry)));
    let close_api = CancellationToken::new();
    let api = tokio::spawn(http::serve_all(listener, bound, Arc::new(app), close_api.clone()));
    if !wishes.stop.is_cancelled() {
        registry.start_configured();
    }
    shutdown::notify(&[sd_notify::NotifyState::Ready]);
    let target = reload::Target { file: options.file.clone(), registry: Arc::clone(&registry), keys };
    let reloads =
        tokio::spawn(reload::follow(target, config, Arc::clone(&wishes.reload), wishes.stop.clone()));
    let up = Up { wishes, registry, network, api, reloads, close_api, ssh, dirs, store };
    if vms.keep {
        shutdown::wait_and_leave(up).await;
    }
    Ok(shutdown::wait_and_stop(up).await)
}

/// Starts what follows the kernel; takes the network away again where that fails.
async fn start_threads(network: &Arc<Network>) -> Result<(), BootError> {
    let threads = watch::follow(Arc::clone(network)).and_then(|()| departures::keep(Arc::clone(network)));
    let Err(error) = threads else { return Ok(()) };
    let network = Arc::clone(network);
    let closed = blocking("removing the network", move || network.close()).await?;
    Err(closed.map_or_else(BootError::Network, |()| BootError::Watch(error)))
}

async fn bind_ssh(config: &Config) -> Result<Option<ssh::Listener>, ssh::SshError> {
    match config.ssh {
        Some(at) => ssh::Listener::bind(at, &config.state_dir).await.map(Some),
        None => Ok(None),
    }
}

fn version(scope: &str, vmm: &dyn Vmm) -> Version {
    Version {
        enisle: env!("CARGO_PKG_VERSION").to_owned(),
        scope: scope.to_owned(),
        pid: std::process::id(),
        hypervisor: format!("{} {} ({})", vmm.name(), vmm.version(), vmm.accelerator()),
    }
}

/// Runs what blocks, to its end.
pub(crate) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, BootError> {
    tokio::task::spawn_blocking(work).await.map_err(|_| BootError::Panicked(what))
}

async fn open_network(config: &Config, scope: &str, found: &[Found]) -> Result<Arc<Network>, BootError> {
    let ranges: Vec<_> = config.groups.iter().map(|group| group.network.range).collect();
    let bridges = config.groups.iter().filter_map(|group| group.network.bridge.clone()).collect();
    let (scope, blocks) = (scope.to_owned(), survivors::blocks(found));
    let open = move || Network::open(&scope, ranges, bridges, &blocks);
    Ok(Arc::new(blocking("setting up the network", open).await??))
}

/// Takes over the VMs of an earlier run; returns when each is running or being removed.
async fn adopt(registry: &Registry, rows: Vec<VmRow>) {
    let mut adopted = Vec::new();
    for row in rows {
        let name = row.name.clone();
        match registry.adopt(row) {
            Ok(handle) => adopted.push(handle),
            Err(error) => tracing::error!(vm = name, "cannot adopt it: {}", Chain(&error)),
        }
    }
    for handle in adopted {
        handle.settled().await;
    }
}

/// The kernel and the initramfs guests boot with.
pub(crate) fn boot_files(config: &Config, images: &ImageStore) -> Result<(PathBuf, PathBuf), ImageError> {
    match (&config.kernel, &config.initramfs) {
        (Some(kernel), Some(initramfs)) => Ok((kernel.clone(), initramfs.clone())),
        (kernel, initramfs) => {
            let built = images.boot()?;
            Ok((kernel.clone().unwrap_or(built.kernel), initramfs.clone().unwrap_or(built.initramfs)))
        }
    }
}

async fn find_vmm(
    config: &Config,
    scope: &str,
    kernel: &Path,
    initramfs: &Path,
) -> Result<Arc<dyn Vmm>, VmmError> {
    let options = DetectOptions {
        qemu: None,
        vsock_device: None,
        accelerator: match config.hypervisor {
            config::Hypervisor::Auto => AcceleratorChoice::Auto,
            config::Hypervisor::QemuKvm => AcceleratorChoice::Kvm,
            config::Hypervisor::QemuTcg => AcceleratorChoice::Tcg,
        },
        kernel: kernel.to_owned(),
        initramfs: initramfs.to_owned(),
        probe_dir: config.state_dir.join("run/probe"),
        cache: config.state_dir.join("kvm-probe.json"),
        user: Ids { uid: PROBE_UID, gid: PROBE_UID },
        scope: scope.to_owned(),
    };
    let found = enisle_vmm::detect(&options).await?;
    if let Some(warning) = found.warning {
        tracing::warn!("{warning}");
    }
    Ok(found.vmm)
}

/// Groups as configured; after a crash under the lists that were in force, if the file is the same.
fn plan_groups(config: &Config, store: &Store) -> Result<Vec<Arc<GroupPlan>>, BootError> {
    let plan = |group: &config::Group| {
        let lists = store.group_lists(&group.name, &group.network.policy)?;
        let planned = match lists {
            None => GroupPlan::new(group.clone()),
            Some(lists) => {
                tracing::warn!(
                    group = group.name,
                    "its policy is the one that was set while the daemon ran before, until it is stopped in order"
                );
                GroupPlan::under(group.clone(), lists)
            }
        };
        planned.map(Arc::new).map_err(|source| BootError::Policy { group: group.name.clone(), source })
    };
    config.groups.iter().map(plan).collect()
}

/// VMs that are being made or boot at the same time: a few more than there are processors.
fn at_once() -> usize {
    std::thread::available_parallelism().map_or(1, std::num::NonZero::get) + 2
}
