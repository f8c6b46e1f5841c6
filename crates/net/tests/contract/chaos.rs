//! Random operations on slots, with the promise checked after each one.
//!
//! An operation makes, removes or recycles a slot, switches its policy, loses its VMM, flushes the host's
//! firewall, or loses the daemon with everything it held. Whatever happened before, a guest reaches
//! what its policy of this instant allows and nothing else, and the host holds what belongs to the
//! live slots and nothing else.
//!
//! The seed of each run is printed; `ENISLE_CHAOS_SEED` repeats one, `ENISLE_CHAOS_RUNS` makes more.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::fd::OwnedFd;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use enisle_net::plan::Range;
use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, Slot};
use enisle_testkit::World;
use enisle_testkit::probe::Kind;
use enisle_testkit::tap::TapGuest;
use enisle_testkit::world::{CANARY, ECHO, LAN, METADATA, OTHER_SERVER, SERVER, UPLINK};

use crate::rig::{Vm, claimed, create, lists, open};

const SCOPE: &str = "0c4a0500";
const RANGE: &str = "169.254.100.0/26";
const OPERATIONS: usize = 200;
/// Slots at a time: few, so that blocks are used again at once.
const MOST: usize = 5;
/// Guests asked after each operation.
const ASKED: usize = 2;

/// `splitmix64` (Steele, Lea, Flood 2014): all a test needs of chance.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.next() % u64::try_from(n).unwrap()).unwrap()
    }
}

/// A policy, and what it says about the three addresses that tell policies apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rules {
    Default,
    DropServer,
    Nothing,
    AllowList,
    OpenLan,
}

impl Rules {
    const ALL: [Rules; 5] =
        [Rules::Default, Rules::DropServer, Rules::Nothing, Rules::AllowList, Rules::OpenLan];

    fn spec(self) -> PolicySpec {
        match self {
            Rules::Default => lists(&[], &[]),
            Rules::DropServer => lists(&["93.184.216.0/24"], &[]),
            Rules::Nothing => lists(&["0.0.0.0/0"], &[]),
            Rules::AllowList => lists(&["0.0.0.0/0"], &["93.184.216.34:7"]),
            Rules::OpenLan => lists(&[], &["192.168.1.0/24"]),
        }
    }

    fn allows(self, addr: Ipv4Addr) -> bool {
        match addr {
            SERVER => matches!(self, Rules::Default | Rules::AllowList | Rules::OpenLan),
            OTHER_SERVER => matches!(self, Rules::Default | Rules::DropServer | Rules::OpenLan),
            LAN => self == Rules::OpenLan,
            _ => false,
        }
    }
}

/// What is done to the system.
#[derive(Debug, Clone, Copy)]
enum Operation {
    New(Rules),
    Delete(usize),
    Set(usize, Rules),
    /// The VMM dies: its tap is closed, then the daemon removes the slot.
    LoseVmm(usize),
    /// The VMM dies, and its slot is the next VM's, or goes where it is not clean.
    Recycle(usize, Rules),
    /// The slot goes while its VMM still has the tap.
    DeleteUnderVmm(usize),
    /// Somebody flushes the firewall, and the daemon hears of it.
    Flush,
    /// The daemon is killed and started again. Its VMMs live on, and hold their namespaces.
    LoseDaemon,
}

struct Tenant {
    vm: Vm,
    rules: Rules,
}

/// One run: a world, a daemon's engine, its guests, and everything done so far.
struct Run {
    world: World,
    /// `None` only while the daemon is dead.
    engine: Option<Engine>,
    tenants: Vec<Tenant>,
    chance: Chance,
    history: Vec<String>,
    /// Slots that became another VM's: some in every run, or they are not tried.
    recycled: usize,
    seed: u64,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let recent = self.history.len().saturating_sub(12);
        write!(f, "ENISLE_CHAOS_SEED={} after {}", self.seed, self.history[recent..].join("; "))
    }
}

impl Run {
    fn new(seed: u64) -> Run {
        let world = World::new().unwrap();
        let engine = Some(open(&world, SCOPE, RANGE));
        Run {
            world,
            engine,
            tenants: Vec::new(),
            chance: Chance(seed),
            history: Vec::new(),
            recycled: 0,
            seed,
        }
    }

    fn engine(&self) -> &Engine {
        self.engine.as_ref().unwrap()
    }

    fn choose(&mut self) -> Operation {
        let rules = Rules::ALL[self.chance.below(Rules::ALL.len())];
        let live = self.tenants.len();
        if live == 0 || (live < MOST && self.chance.below(3) == 0) {
            return Operation::New(rules);
        }
        let which = self.chance.below(live);
        match self.chance.below(20) {
            0..=5 => Operation::Set(which, rules),
            6..=8 => Operation::Recycle(which, rules),
            9..=11 => Operation::Delete(which),
            12..=14 => Operation::LoseVmm(which),
            15..=16 => Operation::DeleteUnderVmm(which),
            17..=18 => Operation::Flush,
            _ => Operation::LoseDaemon,
        }
    }

    fn apply(&mut self, operation: Operation) {
        match operation {
            Operation::New(rules) => self.make(rules),
            Operation::Set(which, rules) => {
                let policy = compile(&rules.spec()).unwrap();
                self.engine().set_policy(&self.tenants[which].vm.slot, &policy).unwrap();
                self.tenants[which].rules = rules;
            }
            Operation::Delete(which) | Operation::LoseVmm(which) => {
                let Vm { slot, guest } = self.tenants.remove(which).vm;
                drop(guest);
                self.remove(slot);
            }
            Operation::Recycle(which, rules) => self.recycle(which, rules),
            Operation::DeleteUnderVmm(which) => {
                let Vm { slot, guest } = self.tenants.remove(which).vm;
                self.remove(slot);
                drop(guest);
            }
            Operation::Flush => {
                self.world.host.check("nft", &["flush", "ruleset"], "").unwrap();
                // Nothing is open in between, whoever notices when.
                self.check(false);
                self.world.host.run(|| self.engine().refresh()).unwrap();
            }
            Operation::LoseDaemon => self.lose_daemon(),
        }
    }

    fn make(&mut self, rules: Rules) {
        let range: Range = RANGE.parse().unwrap();
        let taken = |block| self.tenants.iter().any(|t| t.vm.block() == block);
        let block = range.blocks().find(|b| !taken(*b)).unwrap();
        let vm = create(&self.world, self.engine(), block, &rules.spec());
        self.tenants.push(Tenant { vm, rules });
    }

    fn recycle(&mut self, which: usize, rules: Rules) {
        let Vm { slot, guest } = self.tenants.remove(which).vm;
        drop(guest);
        let (tell, told) = mpsc::channel();
        // Slots that were made just now have sockets that the kernel has not let go: those go.
        match self.engine().recycle(slot, move |gone| tell.send(gone).unwrap()) {
            Ok(warm) => {
                self.recycled += 1;
                let vm = claimed(self.engine(), warm, &rules.spec());
                self.tenants.push(Tenant { vm, rules });
            }
            Err(_) => {
                while told.try_recv().map(Result::unwrap).is_err() {
                    assert!(self.engine().see_off(), "{self}");
                }
            }
        }
    }

    fn remove(&mut self, slot: Slot) {
        let block = slot.block();
        if let Err(error) = self.engine().remove(slot) {
            panic!("{block} cannot be removed: {error} {:?}\n{self}", error.left());
        }
    }

    /// What SIGKILL leaves: every descriptor of the daemon is closed and nothing else is done. The
    /// VMMs' are not: each holds its namespace and its tap until the next daemon has killed it.
    fn lose_daemon(&mut self) {
        let hold = |Tenant { vm, .. }: Tenant| {
            let netns = vm.slot.netns().try_clone_to_owned().unwrap();
            (vm.guest, netns)
        };
        let survivors: Vec<(TapGuest, OwnedFd)> = self.tenants.drain(..).map(hold).collect();
        self.engine = None;
        self.engine = Some(open(&self.world, SCOPE, RANGE));
        drop(survivors);
        self.world.host.run(|| self.engine().reclaim()).unwrap();
    }

    /// What the host holds is what the live slots need.
    fn check_host(&self) {
        let deadline = Instant::now() + Duration::from_secs(10);
        let expected = self.tenants.len();
        loop {
            let links = self.world.host.check("ip", &["-o", "link"], "").unwrap();
            let links = links.lines().filter(|l| l.contains(": en-")).count();
            let table = format!("enisle_{SCOPE}");
            let slots = self.world.host.check("nft", &["list", "set", "inet", &table, "slots"], "").unwrap();
            let slots = slots.matches(" . ").count() - 1;
            if (links, slots) == (expected, expected) {
                return;
            }
            // A namespace nobody holds any more goes from a work queue (cleanup_net).
            assert!(
                Instant::now() < deadline,
                "{expected} slots, but {links} links and {slots} elements\n{self}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// A guest reaches what its policy allows, where anybody is connected at all, and nothing else.
    fn check(&mut self, connected: bool) {
        for _ in 0..ASKED.min(self.tenants.len()) {
            let which = self.chance.below(self.tenants.len());
            let sibling = self.tenants[self.chance.below(self.tenants.len())].vm.block();
            let mut targets =
                vec![(SERVER, ECHO), (OTHER_SERVER, ECHO), (LAN, ECHO), (UPLINK, CANARY), (METADATA, ECHO)];
            if sibling != self.tenants[which].vm.block() {
                targets.push((sibling.guest(), ECHO));
            }
            for (addr, port) in targets {
                self.check_target(which, addr, port, connected);
            }
        }
    }

    fn check_target(&mut self, which: usize, addr: Ipv4Addr, port: u16, connected: bool) {
        let Tenant { vm, rules } = &mut self.tenants[which];
        let allowed = rules.allows(addr);
        if allowed && !connected {
            return;
        }
        let outcome = vm.ask(Kind::Tcp, addr, port);
        let right = if allowed { outcome.reached() } else { outcome.refused() };
        let (block, rules) = (vm.block(), *rules);
        assert!(right, "{block} with {rules:?} asks {addr}:{port}: {outcome}\n{self}");
    }

    fn go(mut self) {
        for _ in 0..OPERATIONS {
            let operation = self.choose();
            self.history.push(format!("{operation:?}"));
            self.apply(operation);
            self.check(true);
            self.check_host();
        }
        for tenant in std::mem::take(&mut self.tenants) {
            self.remove(tenant.vm.slot);
        }
        self.check_host();
        assert!(self.recycled > 0, "{self}");
        self.engine().close().unwrap();
        let left = self.world.host.check("nft", &["list", "ruleset"], "").unwrap();
        assert!(left.is_empty(), "{left}\n{self}");
    }
}

#[test]
fn whatever_happens_the_promise_holds() {
    let number = |name| std::env::var(name).ok().map(|text| text.parse::<u64>().unwrap());
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let mut seeds = Chance(u64::from(clock.subsec_nanos()) ^ clock.as_secs());
    let runs = number("ENISLE_CHAOS_RUNS").unwrap_or(2);
    for run in 1..=runs {
        let seed = number("ENISLE_CHAOS_SEED").unwrap_or_else(|| seeds.next());
        println!("run {run} of {runs}: ENISLE_CHAOS_SEED={seed}");
        Run::new(seed).go();
    }
}
