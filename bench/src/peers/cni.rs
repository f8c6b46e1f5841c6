//! CNI: the plugins `bridge` and `ptp` with `host-local` addresses and masquerade, from Debian's
//! `containernetworking-plugins`. They make no tap and refuse nothing.

use std::process::Command;

use anyhow::{Context as _, Result};
use enisle_testkit::{Netns, World};
use serde_json::{Value, json};

use super::{Peer, check, path_of};

const PLUGINS: &str = "/usr/lib/cni";

/// Which plugin.
#[derive(Debug, Clone, Copy)]
pub(super) enum Kind {
    Bridge,
    Ptp,
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Bridge => "bridge",
            Kind::Ptp => "ptp",
        }
    }
}

/// One plugin and its host.
pub(super) struct Cni {
    kind: Kind,
    what: String,
    config: Value,
    world: World,
    inside: Vec<Netns>,
}

impl Cni {
    pub(super) fn new(kind: Kind) -> Result<Cni> {
        let name = kind.name();
        let mut config = json!({
            "cniVersion": "0.4.0", "name": format!("bench-{name}"), "type": name, "ipMasq": true,
            "ipam": {
                "type": "host-local", "subnet": "10.90.0.0/16", "dataDir": "/run/cni",
                "routes": [{ "dst": "0.0.0.0/0" }],
            },
        });
        if matches!(kind, Kind::Bridge) {
            config["bridge"] = "cni0".into();
            config["isGateway"] = true.into();
        }
        let what = format!("CNI {name}");
        Ok(Cni { kind, what, config, world: World::new()?, inside: Vec::new() })
    }

    fn run(&self, command: &str, i: usize) -> Result<()> {
        let netns = self.inside.get(i).context("no such namespace")?;
        let name = self.kind.name();
        let mut plugin = Command::new(format!("{PLUGINS}/{name}"));
        plugin
            .env("CNI_COMMAND", command)
            .env("CNI_CONTAINERID", format!("{name}-{i}"))
            .env("CNI_NETNS", path_of(netns))
            .env("CNI_IFNAME", "eth0")
            .env("CNI_PATH", PLUGINS);
        check(&self.world.host, &mut plugin, &self.config.to_string()).map(drop)
    }
}

impl Peer for Cni {
    fn what(&self) -> &str {
        &self.what
    }

    fn target(&self) -> f64 {
        15.0
    }

    fn create(&mut self, i: usize) -> Result<()> {
        self.inside.push(Netns::new()?);
        self.run("ADD", i)
    }

    fn remove(&mut self, i: usize) -> Result<()> {
        self.run("DEL", i)?;
        if i + 1 == self.inside.len() {
            self.inside.clear();
        }
        Ok(())
    }
}
