//! Parts that exist only as names in a set, and guests that are a task. Owns faults: any part may
//! be told to fail, to hang or to panic.

mod policy;
mod session;

use super::{Machine, PartError, Parts, SlotView, files};
use crate::vm::plan::VmPlan;
use enisle_guest_proto::{BootCommand, BootConfig, BootEvent, Decoder, Hello, VERSION, encode_control};
use enisle_net::plan::Range;
use enisle_net::policy::CompiledPolicy;
use enisle_vmm::{BoxFuture, Console, Exit, ExitReason};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{mpsc, watch};

/// What a fake guest does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Guest {
    /// Boots, says it is ready, powers off when it is asked to.
    Honest,
    /// Boots, says it is ready, never stops by itself.
    Stubborn,
    /// Never says anything.
    Mute,
    /// Says that its set-up failed.
    Broken,
    /// Boots, says it is ready, and then much that is of no use.
    Talkative,
    /// Boots, says it is ready, and powers off by itself.
    Fleeting,
}

/// What a part does when it is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    Fail,
    Hang,
    Panic,
    /// As on a blocking thread: made later than all others, whether or not somebody waits for it.
    Late,
}

/// Turns of the scheduler until what is late is there.
pub(crate) const TURNS_LATE: usize = 50;

/// What there is, by name, and what shall go wrong.
pub(crate) struct FakeParts {
    pub(crate) things: Arc<Mutex<BTreeSet<String>>>,
    pub(crate) faults: Mutex<Vec<(&'static str, Fault)>>,
    pub(crate) guest: Guest,
    /// What the guests were told, as it came.
    pub(crate) told: mpsc::UnboundedSender<String>,
    gid: u32,
    /// Policies that were put in force, by VM.
    pub(crate) policies: Mutex<BTreeMap<String, CompiledPolicy>>,
    /// The console of every guest that is launched, if it has one.
    pub(crate) console: Mutex<Option<Console>>,
    /// Those that were asked for last.
    pub(crate) ranges: Mutex<Vec<Range>>,
}

impl FakeParts {
    pub(crate) fn new(guest: Guest) -> (Arc<Self>, mpsc::UnboundedReceiver<String>) {
        let (told, hears) = mpsc::unbounded_channel();
        let gid = rustix::process::getegid().as_raw();
        let (things, faults, policies) = (Arc::default(), Mutex::default(), Mutex::default());
        let console = Mutex::default();
        (
            Arc::new(Self { things, faults, guest, told, gid, policies, console, ranges: Mutex::default() }),
            hears,
        )
    }

    pub(crate) fn fault(&self, part: &'static str, fault: Fault) {
        self.faults.lock().unwrap().push((part, fault));
    }

    pub(crate) fn left(&self) -> Vec<String> {
        self.things.lock().unwrap().iter().cloned().collect()
    }

    /// Each fault strikes once.
    async fn strike(&self, part: &'static str) -> Result<(), PartError> {
        let fault = {
            let mut faults = self.faults.lock().unwrap();
            let index = faults.iter().position(|(name, _)| *name == part);
            index.map(|index| faults.remove(index).1)
        };
        match fault {
            None => Ok(()),
            Some(Fault::Fail) => Err(PartError::Io {
                action: "make",
                path: PathBuf::from(part),
                source: io::ErrorKind::StorageFull.into(),
            }),
            Some(Fault::Hang) => std::future::pending().await,
            // Taken by `is_late`, which `make` asks first: only what is made can be late.
            Some(Fault::Late) => Ok(()),
            Some(Fault::Panic) => panic!("asked to panic at {part}"),
        }
    }

    async fn make(&self, part: &'static str, plan: &VmPlan) -> Result<(), PartError> {
        let made = if self.is_late(part) {
            let (things, thing) = (Arc::clone(&self.things), format!("{part} {}", plan.name()));
            let late = tokio::spawn(async move {
                for _ in 0..TURNS_LATE {
                    tokio::task::yield_now().await;
                }
                things.lock().unwrap().insert(thing)
            });
            late.await.unwrap()
        } else {
            self.strike(part).await?;
            self.things.lock().unwrap().insert(format!("{part} {}", plan.name()))
        };
        assert!(made, "{part} made twice");
        Ok(())
    }

    fn is_late(&self, part: &'static str) -> bool {
        let mut faults = self.faults.lock().unwrap();
        let index = faults.iter().position(|fault| *fault == (part, Fault::Late));
        index.map(|index| faults.remove(index)).is_some()
    }

    async fn remove(&self, part: &'static str, fault: &'static str, plan: &VmPlan) -> Result<(), PartError> {
        self.strike(fault).await?;
        self.things.lock().unwrap().remove(&format!("{part} {}", plan.name()));
        Ok(())
    }
}

impl Parts for FakeParts {
    fn make_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(self.make("slot", plan))
    }

    fn remove_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(self.remove("slot", "remove slot", plan))
    }

    fn set_ranges(&self, ranges: &[Range]) -> Result<(), PartError> {
        let mut faults = self.faults.lock().unwrap();
        if let Some(index) = faults.iter().position(|fault| *fault == ("ranges", Fault::Fail)) {
            faults.remove(index);
            return Err(PartError::Panicked("changing ranges"));
        }
        *self.ranges.lock().unwrap() = ranges.to_vec();
        Ok(())
    }

    fn freed(&self) {}

    fn view_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<SlotView, PartError>> {
        // There is no wire here.
        Box::pin(async { Err(PartError::NoSlot(plan.block())) })
    }

    fn make_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<UnixListener, PartError>> {
        Box::pin(async {
            self.make("channel", plan).await?;
            files::make_dir(&plan.home)?;
            files::make_run_dir(&plan.run_dir, &plan.boot_socket(), self.gid)
        })
    }

    fn remove_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(async {
            self.remove("channel", "remove channel", plan).await?;
            files::remove_dir(&plan.run_dir)
        })
    }

    fn make_disk<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(self.make("disk", plan))
    }

    fn remove_disk<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(self.remove("disk", "remove disk", plan))
    }

    fn remove_home<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(async {
            self.strike("remove home").await?;
            files::remove_dir(&plan.home)
        })
    }

    fn adopt_slot<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(self.make("slot", plan))
    }

    fn adopt_channel<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<UnixListener, PartError>> {
        Box::pin(async {
            self.make("channel", plan).await?;
            files::make_dir(&plan.home)?;
            files::make_dir(&plan.run_dir)?;
            files::rebind(&plan.boot_socket(), self.gid)
        })
    }

    fn adopt<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<Arc<dyn Machine>, PartError>> {
        Box::pin(async {
            assert!(self.left().contains(&format!("slot {}", plan.name())), "no slot at adoption");
            self.make("vmm", plan).await?;
            let machine = FakeMachine {
                plan: Arc::clone(plan),
                things: Arc::clone(&self.things),
                guest: self.guest,
                told: self.told.clone(),
                exit: watch::channel(None).0,
                console: None,
                start_fails: false,
                paused: AtomicBool::new(self.strike("paused").await.is_err()),
                pause_fails: AtomicBool::new(false),
            };
            // Its agent looks for the daemon until it finds it.
            let (plan, guest, told) = (Arc::clone(plan), self.guest, self.told.clone());
            let (things, exit) = (Arc::clone(&self.things), machine.exit.clone());
            tokio::spawn(async move {
                while !plan.boot_socket().exists() {
                    tokio::task::yield_now().await;
                    if exit.borrow().is_some() {
                        return;
                    }
                }
                if let Some(reason) = live(&plan, guest, &told).await {
                    end(&exit, &things, plan.name(), reason);
                }
            });
            let adopted: Arc<dyn Machine> = Arc::new(machine);
            Ok(adopted)
        })
    }

    fn kill_survivor<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<(), PartError>> {
        Box::pin(async {
            // Nobody may have kept the other end.
            let _ = self.told.send(format!("killed {}", plan.name()));
            Ok(())
        })
    }

    fn launch<'a>(&'a self, plan: &'a Arc<VmPlan>) -> BoxFuture<'a, Result<Arc<dyn Machine>, PartError>> {
        Box::pin(async {
            // Something there must be before a VMM may be.
            let things = self.left();
            for part in ["slot", "channel", "disk"] {
                assert!(things.contains(&format!("{part} {}", plan.name())), "no {part} at launch");
            }
            self.make("vmm", plan).await?;
            let console = self.console.lock().unwrap().clone();
            let machine = FakeMachine {
                plan: Arc::clone(plan),
                things: Arc::clone(&self.things),
                guest: self.guest,
                told: self.told.clone(),
                exit: watch::channel(None).0,
                console,
                start_fails: self.strike("start").await.is_err(),
                paused: AtomicBool::new(false),
                pause_fails: AtomicBool::new(self.strike("pause").await.is_err()),
            };
            Ok(Arc::new(machine) as Arc<dyn Machine>)
        })
    }
}

struct FakeMachine {
    plan: Arc<VmPlan>,
    things: Arc<Mutex<BTreeSet<String>>>,
    guest: Guest,
    told: mpsc::UnboundedSender<String>,
    exit: watch::Sender<Option<Exit>>,
    console: Option<Console>,
    start_fails: bool,
    paused: AtomicBool,
    /// Once.
    pause_fails: AtomicBool,
}

/// As the real one: dropping the last handle kills.
impl Drop for FakeMachine {
    fn drop(&mut self) {
        end(&self.exit, &self.things, self.plan.name(), ExitReason::Killed);
    }
}

fn end(exit: &watch::Sender<Option<Exit>>, things: &Mutex<BTreeSet<String>>, name: &str, reason: ExitReason) {
    things.lock().unwrap().remove(&format!("vmm {name}"));
    let ended = Exit {
        reason,
        code: Some(0),
        signal: None,
        detail: "exit code 0".into(),
        stderr: String::new(),
        leftovers: Vec::new(),
    };
    exit.send_if_modified(|exit| exit.is_none().then(|| *exit = Some(ended)).is_some());
}

impl Machine for FakeMachine {
    fn pid(&self) -> u32 {
        std::process::id()
    }

    fn start(&self) -> BoxFuture<'_, Result<(), PartError>> {
        Box::pin(async {
            if self.start_fails {
                return Err(PartError::Panicked("starting the guest"));
            }
            let (plan, things) = (Arc::clone(&self.plan), Arc::clone(&self.things));
            let (guest, told, exit) = (self.guest, self.told.clone(), self.exit.clone());
            tokio::spawn(async move {
                if let Some(reason) = live(&plan, guest, &told).await {
                    end(&exit, &things, plan.name(), reason);
                }
            });
            Ok(())
        })
    }

    fn pause(&self) -> Result<(), PartError> {
        if self.pause_fails.swap(false, Ordering::Relaxed) {
            return Err(PartError::Panicked("pausing the guest"));
        }
        self.paused.store(true, Ordering::Relaxed);
        let _ = self.told.send("pause".to_owned());
        Ok(())
    }

    fn resume(&self) -> Result<(), PartError> {
        if self.paused.swap(false, Ordering::Relaxed) {
            let _ = self.told.send("resume".to_owned());
        }
        Ok(())
    }

    fn is_paused(&self) -> bool {
        self.paused.load(Ordering::Relaxed)
    }

    fn power_button(&self) -> BoxFuture<'_, Result<(), PartError>> {
        // Nobody may have kept the other end.
        let _ = self.told.send("power button".to_owned());
        Box::pin(async { Ok(()) })
    }

    fn connect(&self) -> BoxFuture<'_, Result<UnixStream, PartError>> {
        Box::pin(async {
            let far = PartError::io("connect to", "the fake guest");
            let (daemon, guest) = UnixStream::pair().map_err(far)?;
            tokio::spawn(session::serve(guest, self.told.clone()));
            Ok(daemon)
        })
    }

    fn kill(&self) -> BoxFuture<'_, Exit> {
        end(&self.exit, &self.things, self.plan.name(), ExitReason::Killed);
        self.wait()
    }

    fn wait(&self) -> BoxFuture<'_, Exit> {
        let mut exit = self.exit.subscribe();
        Box::pin(async move { exit.wait_for(Option::is_some).await.unwrap().clone().unwrap() })
    }

    fn vmm_log(&self) -> String {
        "fake-vmm: running\n".to_owned()
    }

    fn console(&self) -> Option<Console> {
        self.console.clone()
    }
}

/// A guest's life; how it ends by itself.
async fn live(plan: &VmPlan, guest: Guest, told: &mpsc::UnboundedSender<String>) -> Option<ExitReason> {
    if guest == Guest::Mute {
        return None;
    }
    let mut socket = UnixStream::connect(plan.boot_socket()).await.ok()?;
    let mut decoder = Decoder::default();
    say(&mut socket, &Hello { version: VERSION, agent: "fake".into(), booted: false }).await;
    let config: BootConfig = hear(&mut socket, &mut decoder).await?;
    let _ = told.send(format!("you are {}", config.hostname));
    let first = match guest {
        Guest::Broken => BootEvent::Failed { step: "mount /dev/vda".into(), error: "no\x1b[2J disk".into() },
        _ => BootEvent::Ready {},
    };
    say(&mut socket, &first).await;
    if guest == Guest::Talkative {
        for code in 0..20 {
            let error = "not at all".to_owned();
            say(&mut socket, &BootEvent::Failed { step: "nothing".into(), error }).await;
            say(&mut socket, &BootEvent::UserdataDone { code }).await;
        }
    }
    if guest == Guest::Fleeting {
        return Some(ExitReason::GuestShutdown);
    }
    while let Some(command) = hear::<BootCommand>(&mut socket, &mut decoder).await {
        let _ = told.send(format!("{command:?}"));
        if matches!(command, BootCommand::Userdata { last: true, .. }) {
            say(&mut socket, &BootEvent::UserdataDone { code: 3 }).await;
        }
        if matches!(command, BootCommand::Shutdown {}) && guest != Guest::Stubborn {
            return Some(ExitReason::GuestShutdown);
        }
    }
    None
}

pub(crate) async fn say<T: serde::Serialize>(socket: &mut UnixStream, message: &T) {
    let mut bytes = Vec::new();
    encode_control(message, &mut bytes).unwrap();
    // The other side may have gone away.
    let _ = socket.write_all(&bytes).await;
}

pub(crate) async fn hear<T: serde::de::DeserializeOwned>(
    socket: &mut UnixStream,
    decoder: &mut Decoder,
) -> Option<T> {
    let mut buffer = [0; 4096];
    loop {
        if let Some(frame) = decoder.next_frame().unwrap() {
            return Some(frame.control().unwrap());
        }
        match socket.read(&mut buffer).await {
            Ok(0) | Err(_) => return None,
            Ok(read) => decoder.feed(&buffer[..read]),
        }
    }
}
