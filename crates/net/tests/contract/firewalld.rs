//! The real firewalld, in the host's namespace, on a message bus of its own.
//!
//! Installing its package would start it on the machine, so `./test` unpacks the package below
//! `target/` instead. The daemon gets mounts and a configuration of its own; its `/run` is empty, so
//! that neither the machine's bus nor its state is in reach.

use std::cell::RefCell;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use enisle_testkit::Netns;
use enisle_testkit::world::CANARY;

use crate::bus::Bus;
use crate::interference::Followed;

const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/firewalld");
const UNPACK: &str = "bash -c '. scripts/bare-machine.sh && need_unpacked_firewalld'";
/// It needs three seconds on an idle machine.
const STARTED: Duration = Duration::from_secs(60);
/// `$0` is the unpacked tree, `$1` a Python program in it. The tree is mounted because firewalld may
/// give up the capability to pass through a user's home.
const SCRIPT: &str = "\
set -e
mount -t tmpfs tmpfs /run
mkdir /run/unpacked
mount --bind \"$0\" /run/unpacked
export PYTHONPATH=/run/unpacked/usr/lib/python3/dist-packages
program=/run/unpacked/usr/$1
shift
exec /usr/bin/python3 -B \"$program\" \"$@\"
";

/// firewalld and its bus, until dropped.
struct Firewalld {
    host: Netns,
    bus: Bus,
    daemon: Option<Child>,
}

impl Firewalld {
    /// Starts it, and waits until its rules are there and it says that it runs.
    fn start(host: &Netns) -> Firewalld {
        assert!(
            Path::new(UNPACKED).join("usr/sbin/firewalld").exists(),
            "there is no firewalld in {UNPACKED}; this unpacks it without starting it: {UNPACK}"
        );
        let bus = Bus::start(host, "firewalld");
        let mut it = Firewalld { host: Netns::from_fd(host.as_fd()).unwrap(), bus, daemon: None };
        it.configure();
        let log = File::create(it.bus.dir().join("log")).unwrap();
        let mut command = it.program("sbin/firewalld", &["--nofork", "--nopid", "--log-target=console"]);
        command.args(it.paths()).stdout(log.try_clone().unwrap()).stderr(log);
        it.daemon = Some(it.host.run(|| command.spawn()).unwrap());
        it.wait_until_it_runs();
        it
    }

    /// The package's own configuration, with what the probes of the host itself need.
    fn configure(&self) {
        let own = self.bus.dir().join("etc");
        std::fs::create_dir(&own).unwrap();
        let conf = Path::new(UNPACKED).join("etc/firewalld/firewalld.conf");
        // Version 2 locks its table by default. That is its own test: nobody can help there.
        let conf = std::fs::read_to_string(conf).unwrap();
        let conf = conf.replace("NftablesTableOwner=yes", "NftablesTableOwner=no");
        std::fs::write(own.join("firewalld.conf"), conf).unwrap();
        let open = format!("--add-port={CANARY}/tcp");
        let mut command = self.program("bin/firewall-offline-cmd", &[&open]);
        command.args(self.paths());
        let output = self.host.output(&mut command).unwrap();
        assert!(output.status.success(), "firewall-offline-cmd {open}: {output:?}");
    }

    fn wait_until_it_runs(&mut self) {
        let start = Instant::now();
        loop {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "firewalld ended: {}", self.log());
            let listed = self.chain("filter_FORWARD");
            // Asked over the bus, it answers when it has started.
            if listed.contains("reject") && self.cmd("--state").status.success() {
                return;
            }
            assert!(start.elapsed() < STARTED, "firewalld does not start:\n{listed}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// A chain of its table, and nothing where there is none.
    fn chain(&self, name: &str) -> String {
        let mut nft = Command::new("nft");
        nft.args(["list", "chain", "inet", "firewalld", name]);
        String::from_utf8(self.host.output(&mut nft).unwrap().stdout).unwrap()
    }

    fn paths(&self) -> [String; 2] {
        let own = self.bus.dir().join("etc");
        [
            format!("--system-config={}", own.display()),
            "--default-config=/run/unpacked/usr/lib/firewalld".into(),
        ]
    }

    /// One of the package's programs, with mounts of its own and on the bus.
    fn program(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "sh", "-c", SCRIPT, UNPACKED, name]).args(args);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address()).env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null());
        command
    }

    fn cmd(&self, option: &str) -> Output {
        self.host.output(&mut self.program("bin/firewall-cmd", &[option])).unwrap()
    }

    fn reload(&self) {
        let output = self.cmd("--reload");
        assert!(output.status.success(), "firewall-cmd --reload: {output:?}\n{}", self.log());
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.bus.dir().join("log")).unwrap_or_default()
    }

    /// Asks it to end as systemd does, and waits until it has.
    fn stop(&mut self) {
        let mut daemon = self.daemon.take().unwrap();
        let pid = rustix::process::Pid::from_child(&daemon);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = daemon.wait().unwrap();
        assert!(status.success(), "firewalld: {status}: {}", self.log());
    }
}

impl Drop for Firewalld {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // Dead already is dead as well.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// The chain that refuses has our two rules, and no other chain has any.
fn has_one_pair(firewalld: &Firewalld, f: &Followed) {
    let mark = "comment \"enisle 0badcafe\"";
    let chain = firewalld.chain("filter_FORWARD");
    assert_eq!(chain.matches(mark).count(), 2, "{chain}");
    let table = f.run("nft", "list table inet firewalld");
    assert_eq!(table.matches(mark).count(), 2, "{table}");
}

#[test]
fn firewalld_is_started_reloaded_and_stopped_around_us() {
    let mut f = Followed::new();
    let mut firewalld = Firewalld::start(f.host());
    f.lost_and_comes_back("firewalld started");
    has_one_pair(&firewalld, &f);
    firewalld.reload();
    f.lost_and_comes_back("firewalld reloaded");
    has_one_pair(&firewalld, &f);
    // And with us at work in the middle of it: it locks everything while it reloads.
    let mut reload = firewalld.program("bin/firewall-cmd", &["--reload"]);
    reload.stdout(Stdio::null());
    let reload = RefCell::new(f.host().run(|| reload.spawn()).unwrap());
    f.until("firewalld's reload", |_| reload.borrow_mut().try_wait().unwrap().is_some());
    let status = reload.into_inner().wait().unwrap();
    assert!(status.success(), "firewall-cmd --reload: {status}: {}", firewalld.log());
    f.comes_back("firewalld reloaded under our eyes");
    has_one_pair(&firewalld, &f);
    firewalld.stop();
    let left = f.run("nft", "list tables");
    assert!(!left.contains("firewalld"), "firewalld leaves something: {left}");
    f.comes_back("firewalld stopped");
    f.rig.engine.close().unwrap();
    let left = f.run("nft", "list ruleset");
    assert!(!left.contains("enisle"), "{left}");
}
