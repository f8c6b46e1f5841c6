//! The same network by somebody who knows the tools: `ip -batch` twice, `nft -f` once, the veth's
//! peer born in its namespace.

use std::process::Command;

use anyhow::Result;
use enisle_testkit::World;

use super::{Peer, check};

const RULES: &str = "
table ip vms {
  set links { typeof iifname; }
  chain input { type filter hook input priority 0; iifname @links reject; }
  chain forward {
    type filter hook forward priority 0;
    iifname @links ip daddr { 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, 169.254.0.0/16 } reject
    oifname @links ct state != { established, related } drop
  }
  chain postrouting { type nat hook postrouting priority 100; ip saddr 10.88.0.0/16 oifname eth0 masquerade; }
}";

/// The host with its constant rules.
pub(super) struct Batch {
    world: World,
}

impl Batch {
    pub(super) fn new() -> Result<Batch> {
        let world = World::new()?;
        world.host.set_sysctl("net/ipv4/ip_forward", "1")?;
        world.host.check("nft", &["-f", "-"], RULES)?;
        Ok(Batch { world })
    }

    fn run(&self, program: &str, args: &[&str], input: &str) -> Result<()> {
        check(&self.world.host, Command::new(program).args(args), input).map(drop)
    }
}

impl Peer for Batch {
    fn what(&self) -> &str {
        "ip -batch + nft -f"
    }

    fn target(&self) -> f64 {
        50.0
    }

    fn create(&mut self, i: usize) -> Result<()> {
        let (name, net) = (format!("vmb{i}"), format!("10.88.{i}"));
        let host = format!(
            "netns add {name}\nlink add vethb{i} type veth peer name eth1 netns {name}\n\
             addr add {net}.1/24 dev vethb{i}\nlink set vethb{i} up\n"
        );
        self.run("ip", &["-batch", "-"], &host)?;
        let inside = format!(
            "link set lo up\naddr add {net}.2/24 dev eth1\nlink set eth1 up\ntuntap add dev tap0 mode tap\n\
             addr add 192.168.127.1/30 dev tap0\nlink set tap0 up\nroute add default via {net}.1\n"
        );
        self.run("ip", &["-n", &name, "-batch", "-"], &inside)?;
        self.run("nft", &["-f", "-"], &format!("add element ip vms links {{ \"vethb{i}\" }}\n"))
    }

    fn remove(&mut self, i: usize) -> Result<()> {
        self.run("nft", &["-f", "-"], &format!("delete element ip vms links {{ \"vethb{i}\" }}\n"))?;
        // The veth goes with the namespace, later; here it is waited for, since its name is used again.
        self.run("ip", &["link", "del", &format!("vethb{i}")], "")?;
        self.run("ip", &["netns", "del", &format!("vmb{i}")], "")
    }
}
