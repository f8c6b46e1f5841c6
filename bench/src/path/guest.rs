//! A guest's kernel without a guest: a namespace with a NIC (another tap), the forwarder between it
//! and the path, and a server on the far side.

use std::fs::File;

use anyhow::{Context as _, Result};
use enisle_testkit::queue::{persistent_tap, set_offloads};
use enisle_testkit::tap::Ident;
use enisle_testkit::{Netns, World};

use super::ends::Server;
use super::forwarder::Forwarder;
use super::track::Track;

/// Where the VMM's thread runs; the guest and the server run on the other CPU.
pub(super) const VMM_CPU: usize = 1;

/// Everything between a client in the guest and a server on the Internet.
pub(super) struct Machine {
    pub(super) netns: Netns,
    pub(super) server: Server,
    nic: File,
    wire: File,
}

impl Machine {
    /// The guest at the end of a track, up and addressed. Frames flow once [`Machine::connect`] was
    /// called.
    pub(super) fn new(track: &Track, world: &World) -> Result<Machine> {
        let (netns, nic) = Netns::new_with(|| persistent_tap("eth0"))?;
        rustix::io::ioctl_fionbio(&nic, true)?;
        let Ident { mac, ip, gateway, .. } = track.ident;
        let mac = mac.map(|b| format!("{b:02x}")).join(":");
        let prefix = track.prefix;
        netns.set_sysctl("net/ipv6/conf/eth0/disable_ipv6", "1")?;
        let batch = format!(
            "link set eth0 address {mac}\naddr add {ip}/{prefix} dev eth0\nlink set lo up\nlink set eth0 up\n\
             route add default via {gateway}\n"
        );
        netns.check("ip", &["-batch", "-"], &batch)?;
        let server = Server::start(&world.internet)?;
        Ok(Machine { netns, server, nic, wire: track.tap.try_clone()? })
    }

    /// Frames flow while the answer lives; with segments larger than the MTU or without, in both
    /// directions.
    pub(super) fn connect(&self, offloads: bool, cpu: usize) -> Result<Forwarder> {
        for queue in [&self.nic, &self.wire] {
            set_offloads(queue, offloads).context("set a tap's offloads")?;
        }
        Forwarder::start(self.nic.try_clone()?, self.wire.try_clone()?, cpu)
    }
}
