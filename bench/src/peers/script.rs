//! The peer most people have: a shell script of `ip` and `iptables`, one process a step.
//!
//! Owns: the script, written as the guides of Firecracker and its users write theirs, with the
//! private networks refused, which is the least an isolated VM needs.

use std::process::Command;

use anyhow::Result;
use enisle_testkit::World;

use super::{Peer, check};

const CREATE: &str = "
ip netns add vm$N
ip link add veth$N type veth peer name vpeer$N
ip link set vpeer$N netns vm$N
ip addr add $NET.1/24 dev veth$N
ip link set veth$N up
ip netns exec vm$N ip addr add $NET.2/24 dev vpeer$N
ip netns exec vm$N ip link set vpeer$N up
ip netns exec vm$N ip link set lo up
ip netns exec vm$N ip tuntap add tap0 mode tap
ip netns exec vm$N ip addr add 192.168.127.1/30 dev tap0
ip netns exec vm$N ip link set tap0 up
ip netns exec vm$N ip route add default via $NET.1
ip netns exec vm$N sysctl -q -w net.ipv4.ip_forward=1
ip netns exec vm$N iptables -t nat -A POSTROUTING -o vpeer$N -j MASQUERADE
iptables -A INPUT -i veth$N -j REJECT
for net in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16; do
    iptables -A FORWARD -i veth$N -d $net -j REJECT
done
iptables -A FORWARD -i veth$N -o eth0 -j ACCEPT
iptables -A FORWARD -i eth0 -o veth$N -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables -t nat -A POSTROUTING -s $NET.0/24 -o eth0 -j MASQUERADE
";

const REMOVE: &str = "
iptables -t nat -D POSTROUTING -s $NET.0/24 -o eth0 -j MASQUERADE
iptables -D FORWARD -i eth0 -o veth$N -m conntrack --ctstate ESTABLISHED,RELATED -j ACCEPT
iptables -D FORWARD -i veth$N -o eth0 -j ACCEPT
for net in 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16 169.254.0.0/16; do
    iptables -D FORWARD -i veth$N -d $net -j REJECT
done
iptables -D INPUT -i veth$N -j REJECT
ip netns del vm$N
ip link del veth$N 2>/dev/null || true
";

/// The script and its host.
pub(super) struct Script {
    world: World,
}

impl Script {
    pub(super) fn new() -> Result<Script> {
        let world = World::new()?;
        world.host.set_sysctl("net/ipv4/ip_forward", "1")?;
        Ok(Script { world })
    }

    fn run(&self, script: &str, i: usize) -> Result<()> {
        let mut shell = Command::new("sh");
        shell.args(["-e", "-c", script]).env("N", format!("s{i}")).env("NET", format!("10.88.{i}"));
        check(&self.world.host, &mut shell, "").map(drop)
    }
}

impl Peer for Script {
    fn what(&self) -> &str {
        "script of ip and iptables"
    }

    fn target(&self) -> f64 {
        50.0
    }

    fn create(&mut self, i: usize) -> Result<()> {
        self.run(CREATE, i)
    }

    fn remove(&mut self, i: usize) -> Result<()> {
        self.run(REMOVE, i)
    }
}
