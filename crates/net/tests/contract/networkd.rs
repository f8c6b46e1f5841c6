//! The real systemd-networkd, with a file that matches every interface, in the host's namespace.
//!
//! It gets mounts of its own, so that its files and its state are nobody else's. `/sys` is read-only
//! there, which tells it that no udev will announce interfaces.

use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use enisle_testkit::Netns;

use crate::interference::Followed;

/// It needs a second on an idle machine.
const STARTED: Duration = Duration::from_secs(30);
const SCRIPT: &str = "\
set -e
mount -t tmpfs tmpfs /run
mount -t tmpfs tmpfs /etc/systemd/network
mount -t sysfs -o ro sysfs /sys
printf '[Match]\\nName=eth0 lan0 lan1 docker0* lo\\n[Link]\\nUnmanaged=yes\\n' > /etc/systemd/network/05-world.network
printf '[Match]\\nName=*\\n[Network]\\nAddress=10.77.0.1/24\\nConfigureWithoutCarrier=yes\\n' \\
  > /etc/systemd/network/50-all.network
exec /usr/lib/systemd/systemd-networkd
";

/// Running until dropped.
struct Networkd(Child);

impl Networkd {
    fn start(host: &Netns) -> Networkd {
        let start = || {
            let mut command = Command::new("unshare");
            command.args(["--mount", "sh", "-c", SCRIPT]);
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn()
        };
        Networkd(host.run(start).unwrap())
    }
}

impl Drop for Networkd {
    fn drop(&mut self) {
        // Dead already is dead as well.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn a_networkd_that_matches_everything_takes_nothing_from_us() {
    let mut f = Followed::new();
    let (veth, guest) = (f.rig.vms[0].block().host_veth(), f.rig.vms[0].block().guest());
    let mut networkd = Networkd::start(f.host());
    let addressed = |f: &Followed| f.run("ip", &format!("-o -4 addr show dev {veth}")).contains("10.77.0.1");
    let start = Instant::now();
    while !addressed(&f) {
        assert_eq!(networkd.0.try_wait().unwrap(), None, "systemd-networkd ended");
        assert!(start.elapsed() < STARTED, "networkd does not take our interface: no test");
        std::thread::sleep(Duration::from_millis(50));
    }
    f.closed("networkd gave our interface an address");
    f.comes_back("networkd");
    let right = |f: &Followed| {
        let route = f.run("ip", &format!("-o route show {guest}"));
        let neighbour = f.run("ip", &format!("-o neigh show dev {veth} nud permanent"));
        route.contains(veth.as_str()) && neighbour.contains("PERMANENT") && !addressed(f)
    };
    f.until("our interface is ours again", right);
    assert_eq!(networkd.0.try_wait().unwrap(), None, "systemd-networkd ended");

    // Its interface comes up anew: networkd sets it up again, and drops routes that are not its own.
    f.run("ip", &format!("link set {veth} down"));
    f.lost_and_comes_back("the interface down under networkd");
    f.until("our interface is ours again", right);
    drop(networkd);
    f.comes_back("without networkd");
}
