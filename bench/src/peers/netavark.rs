//! netavark, Podman's network program: its bridge with masquerade, without a name server. It makes
//! no tap and refuses nothing.

use std::net::Ipv4Addr;
use std::process::Command;

use anyhow::{Context as _, Result};
use enisle_testkit::{Netns, World};
use serde_json::{Value, json};

use super::{Peer, check, path_of};

const PROGRAM: &str = "/usr/lib/podman/netavark";

/// netavark and its host.
pub(super) struct Netavark {
    world: World,
    inside: Vec<Netns>,
}

impl Netavark {
    pub(super) fn new() -> Result<Netavark> {
        Ok(Netavark { world: World::new()?, inside: Vec::new() })
    }

    fn run(&self, command: &str, i: usize) -> Result<()> {
        let netns = self.inside.get(i).context("no such namespace")?;
        let mut program = Command::new(PROGRAM);
        program.args(["--config", "/run/netavark", command]).arg(path_of(netns));
        check(&self.world.host, &mut program, &config(i)?.to_string()).map(drop)
    }
}

fn config(i: usize) -> Result<Value> {
    let address = Ipv4Addr::new(10, 91, 0, u8::try_from(i + 2)?);
    Ok(json!({
        "container_id": format!("{i:064x}"), "container_name": format!("vm{i}"),
        "networks": { "bench": { "interface_name": "eth0", "static_ips": [address] } },
        "network_info": { "bench": {
            "name": "bench", "id": format!("{:064x}", 0xbe_u32), "driver": "bridge",
            "network_interface": "podman9", "subnets": [{ "subnet": "10.91.0.0/24", "gateway": "10.91.0.1" }],
            "ipv6_enabled": false, "internal": false, "dns_enabled": false,
            "ipam_options": { "driver": "host-local" },
        } },
    }))
}

impl Peer for Netavark {
    fn what(&self) -> &str {
        "netavark"
    }

    fn target(&self) -> f64 {
        20.0
    }

    fn create(&mut self, i: usize) -> Result<()> {
        self.inside.push(Netns::new()?);
        self.run("setup", i)
    }

    fn remove(&mut self, i: usize) -> Result<()> {
        self.run("teardown", i)?;
        if i + 1 == self.inside.len() {
            self.inside.clear();
        }
        Ok(())
    }
}
