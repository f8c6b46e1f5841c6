//! The real NetworkManager, with a connection that matches every interface, in the host's namespace.
//!
//! Installing its package would start it on the machine, so `./test` unpacks the package below
//! `target/` instead. It gets a bus, mounts and a configuration of its own; `/sys` is read-only there,
//! which tells it that no udev will announce interfaces.

use std::fs::File;
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enisle_testkit::Netns;
use enisle_testkit::probe::Kind;
use enisle_testkit::world::CANARY;

use crate::bus::Bus;
use crate::interference::Followed;

const UNPACKED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../target/tools/network-manager");
const UNPACK: &str = "bash -c '. scripts/bare-machine.sh && need_unpacked_network_manager'";
/// How long it may take over anything. It needs two seconds on an idle machine.
const DONE: Duration = Duration::from_secs(60);
/// It manages whatever there is but for the world's own interfaces, and touches nothing but networks.
const CONFIGURATION: &str = "\
[main]
plugins=keyfile
dns=none
rc-manager=unmanaged
systemd-resolved=false
hostname-mode=none
auth-polkit=false
no-auto-default=*
[keyfile]
path=DIR/connections
unmanaged-devices=interface-name:lo;interface-name:eth0;interface-name:lan*;interface-name:docker0*
[device]
match-device=*
managed=1
";
/// What it gives every interface.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 1);
const CONNECTION: &str = "\
[connection]
id=everything
uuid=4c6c1d0e-6d0e-4d39-9d3f-4a5e1d6f7a11
type=ethernet
autoconnect=true
multi-connect=3
[match]
interface-name=*
[ipv4]
method=manual
address1=10.77.0.1/24
[ipv6]
method=disabled
";
/// `$0` is the unpacked tree, the rest a program in it and its arguments. Libraries that the machine
/// has not are in the tree as well.
const SCRIPT: &str = "\
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /var/lib
mount -t sysfs -o ro sysfs /sys
mkdir /run/NetworkManager /var/lib/NetworkManager
libraries=$(echo \"$0\"/usr/lib/*-linux-gnu \"$0\"/lib/*-linux-gnu)
export LD_LIBRARY_PATH=$(echo \"$libraries\" | tr ' ' ':')
program=$0/usr/$1
shift
exec \"$program\" \"$@\"
";

/// NetworkManager and its bus, until dropped.
struct NetworkManager {
    host: Netns,
    bus: Bus,
    daemon: Option<Child>,
}

impl NetworkManager {
    fn start(host: &Netns) -> NetworkManager {
        assert!(
            Path::new(UNPACKED).join("usr/sbin/NetworkManager").exists(),
            "there is no NetworkManager in {UNPACKED}; this unpacks it without starting it: {UNPACK}"
        );
        let bus = Bus::start(host, "network-manager");
        let mut it = NetworkManager { host: Netns::from_fd(host.as_fd()).unwrap(), bus, daemon: None };
        it.configure();
        let dir = it.bus.dir();
        let log = File::create(dir.join("log")).unwrap();
        let mut command = it.program("sbin/NetworkManager", &["--debug", "--log-level=INFO"]);
        command.arg(format!("--config={}", dir.join("nm.conf").display()));
        for option in ["--config-dir", "--system-config-dir"] {
            command.arg(format!("{option}={}", dir.join("none").display()));
        }
        command.stdout(log.try_clone().unwrap()).stderr(log);
        it.daemon = Some(it.host.run(|| command.spawn()).unwrap());
        it
    }

    fn configure(&self) {
        let dir = self.bus.dir();
        let text = CONFIGURATION.replace("DIR", dir.to_str().unwrap());
        std::fs::write(dir.join("nm.conf"), text).unwrap();
        std::fs::create_dir(dir.join("connections")).unwrap();
        let file = dir.join("connections/everything.nmconnection");
        // It takes no connection that others may read.
        let mut file = File::options().write(true).create_new(true).mode(0o600).open(file).unwrap();
        std::io::Write::write_all(&mut file, CONNECTION.as_bytes()).unwrap();
    }

    /// One of the package's programs, with mounts of its own and on the bus.
    fn program(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--uts", "sh", "-c", SCRIPT, UNPACKED, name]).args(args);
        command.env("DBUS_SYSTEM_BUS_ADDRESS", self.bus.address()).env("LC_ALL", "C.UTF-8");
        command.stdin(Stdio::null());
        command
    }

    fn nmcli(&self, line: &str) -> String {
        let args: Vec<&str> = line.split(' ').collect();
        let output = self.host.output(&mut self.program("bin/nmcli", &args)).unwrap();
        assert!(output.status.success(), "nmcli {line}: {output:?}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    /// Waits, with nobody at work but NetworkManager, until something holds.
    fn until(&mut self, what: &str, holds: impl Fn(&NetworkManager) -> bool) {
        let start = Instant::now();
        while !holds(self) {
            let ended = self.daemon.as_mut().unwrap().try_wait().unwrap();
            assert_eq!(ended, None, "NetworkManager ended: {}", self.log());
            assert!(start.elapsed() < DONE, "{what}: not in time\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
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
        assert!(status.success(), "NetworkManager: {status}: {}", self.log());
    }
}

impl Drop for NetworkManager {
    fn drop(&mut self) {
        if let Some(daemon) = &mut self.daemon {
            // Dead already is dead as well.
            let _ = daemon.kill();
            let _ = daemon.wait();
        }
    }
}

/// Waits, with nobody at work but NetworkManager, until our interface has its address.
fn takes(manager: &mut NetworkManager, f: &mut Followed, how: &str) {
    let veth = f.rig.vms[0].block().host_veth();
    manager.until(how, |_| addressed(f));
    let state = format!("-g GENERAL.STATE device show {veth}");
    manager.until(how, |m| m.nmcli(&state).starts_with("100 "));
    let own = f.rig.world.ask(f.host(), Kind::Tcp, OWN, CANARY);
    assert!(own.reached(), "control {OWN}: {own}");
    let outcome = f.rig.vm().guest.ask(Kind::Tcp, OWN, CANARY, Duration::from_millis(200));
    assert!(!outcome.reached(), "{how}: the address it gave our interface: {outcome}");
    f.closed(how);
}

fn addressed(f: &Followed) -> bool {
    let veth = f.rig.vms[0].block().host_veth();
    f.run("ip", &format!("-o -4 addr show dev {veth}")).contains(&OWN.to_string())
}

/// Our interface is up without an address of any kind, now or to come, and has its route and its neighbour.
fn ours(f: &Followed) -> bool {
    let (veth, guest) = (f.rig.vms[0].block().host_veth(), f.rig.vms[0].block().guest());
    let up = f.run("ip", &format!("-d -o link show up dev {veth}"));
    let addresses = f.run("ip", &format!("-o addr show dev {veth}"));
    let route = f.run("ip", &format!("-o route show {guest}"));
    let neighbour = f.run("ip", &format!("-o neigh show dev {veth} nud permanent"));
    let right = [&up, &route].iter().all(|text| text.contains(veth.as_str()));
    right && neighbour.contains("PERMANENT") && up.contains("addrgenmode none") && addresses.is_empty()
}

/// Connected, with an interface that is ours.
fn is_right(f: &mut Followed, after: &str) {
    f.comes_back(after);
    f.until(after, ours);
}

#[test]
fn a_network_manager_that_matches_everything_takes_nothing_from_us() {
    let mut f = Followed::new();
    let veth = f.rig.vms[0].block().host_veth().as_str().to_owned();
    assert!(ours(&f));
    let mut manager = NetworkManager::start(f.host());
    takes(&mut manager, &mut f, "NetworkManager took our interface");
    is_right(&mut f, "NetworkManager");
    // It takes it anew, and drops what is not its own.
    for line in [format!("device reapply {veth}"), format!("connection up everything ifname {veth}")] {
        manager.nmcli(&line);
        takes(&mut manager, &mut f, &line);
        is_right(&mut f, &line);
    }
    // It takes everything down that it manages, and up again.
    manager.nmcli("networking off");
    let up = format!("-o link show up dev {veth}");
    manager.until("networking off", |_| f.run("ip", &up).is_empty());
    f.lost_and_comes_back("networking off");
    f.until("our interface is ours again", ours);
    manager.nmcli("networking on");
    takes(&mut manager, &mut f, "networking on");
    is_right(&mut f, "networking on");
    // It is told to insist: its address is taken away again, but not for ever at once.
    let mut put_back = 0;
    loop {
        manager.nmcli(&format!("device reapply {veth}"));
        manager.until("a fight", |_| addressed(&f));
        f.rig.engine.refresh().unwrap();
        if addressed(&f) {
            break;
        }
        put_back += 1;
        assert!(put_back < 30, "a fight knows no bounds");
    }
    assert!(f.rig.engine.postponed().is_some(), "it will be tried again");
    f.closed("a fight");
    is_right(&mut f, "a fight");

    manager.stop();
    is_right(&mut f, "NetworkManager stopped");
    let vm = f.rig.vms.remove(0);
    f.rig.engine.remove(vm.slot).unwrap();
    f.rig.engine.close().unwrap();
    let (links, rules) = (f.run("ip", "-o link show"), f.run("nft", "list ruleset"));
    assert!(!links.contains(&veth) && !rules.contains("enisle"), "{links}{rules}");
}
