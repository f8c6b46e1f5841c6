//! A small world: `internet` ─ `host` ─ `lan`.
//!
//! ```text
//!  internet                            host                              lan
//!  93.184.216.34 server        eth0 45.83.104.10/24          lan0 192.168.1.10/24
//!  8.8.8.8       DNS           lan0 192.168.1.1/24           lan1 10.20.0.10/24
//!  151.101.1.69  another       lan1 10.20.0.1/24             169.254.169.254 (metadata)
//!  host0 45.83.104.1/24        docker0 172.17.0.1/16
//!        45.83.104.77 neighbour on the host's own public subnet
//! ```
//!
//! Owns: addresses, links, routes, listeners. Every server address echoes on TCP 7 and 443 and on
//! UDP 7, says who asked on TCP 9, serves HTTP on 80 and zeros on 5001; the host echoes on TCP 22,
//! TCP 7777 and UDP 7777. Everything answers ping. `host` has forwarding off, as a fresh machine.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::Context as _;

use crate::netns::Netns;
use crate::probe::{Kind, Outcome, Target, ask};
use crate::server::{Servers, Service};

/// The host's address on its uplink.
pub const UPLINK: Ipv4Addr = Ipv4Addr::new(45, 83, 104, 10);
/// The host's default gateway.
pub const ROUTER: Ipv4Addr = Ipv4Addr::new(45, 83, 104, 1);
/// A machine beside the host on its public subnet.
pub const NEIGHBOUR: Ipv4Addr = Ipv4Addr::new(45, 83, 104, 77);
/// A server on the Internet.
pub const SERVER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 34);
/// A resolver on the Internet; answers every name with [`SERVER`].
pub const RESOLVER: Ipv4Addr = Ipv4Addr::new(8, 8, 8, 8);
/// Another server on the Internet, for policies to refuse.
pub const OTHER_SERVER: Ipv4Addr = Ipv4Addr::new(151, 101, 1, 69);
/// The host's address on its first LAN.
pub const HOST_LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 1);
/// A machine on the first LAN.
pub const LAN: Ipv4Addr = Ipv4Addr::new(192, 168, 1, 10);
/// The host's address on its second LAN.
pub const HOST_LAN_2: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 1);
/// A machine on the second LAN.
pub const LAN_2: Ipv4Addr = Ipv4Addr::new(10, 20, 0, 10);
/// The host's address on an empty bridge-like interface.
pub const HOST_DOCKER: Ipv4Addr = Ipv4Addr::new(172, 17, 0, 1);
/// The cloud's metadata service, reachable for the host.
pub const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);

/// Port that echoes, TCP and UDP, everywhere but on the host.
pub const ECHO: u16 = 7;
/// TCP port that tells the peer's address.
pub const WHO_AM_I: u16 = 9;
/// TCP port that sends zeros.
pub const SOURCE: u16 = 5001;
/// Port that echoes on the host, TCP and UDP.
pub const CANARY: u16 = 7777;

/// The namespaces with everything in them. Dropping it takes them away.
#[derive(Debug)]
pub struct World {
    /// Plays the machine the daemon runs on.
    pub host: Netns,
    /// Router and servers.
    pub internet: Netns,
    /// Machines on the host's private networks.
    pub lan: Netns,
    /// Listeners; more may be added.
    pub servers: Servers,
}

impl World {
    /// Builds a world; about 50 ms.
    ///
    /// # Errors
    /// Without root or `ip`.
    pub fn new() -> anyhow::Result<World> {
        let world = World {
            host: Netns::new()?,
            internet: Netns::new()?,
            lan: Netns::new()?,
            servers: Servers::new()?,
        };
        world.connect().context("cannot connect the world's namespaces")?;
        world.listen().context("cannot open the world's listeners")?;
        Ok(world)
    }

    /// The namespaces by name.
    #[must_use]
    pub fn namespaces(&self) -> [(&'static str, &Netns); 3] {
        [("host", &self.host), ("internet", &self.internet), ("lan", &self.lan)]
    }

    /// Asks from one of the namespaces, waiting at most two seconds.
    #[must_use]
    pub fn ask(&self, from: &Netns, kind: Kind, addr: Ipv4Addr, port: u16) -> Outcome {
        from.run(|| ask(Target { kind, addr, port }, Duration::from_secs(2)))
    }

    fn connect(&self) -> anyhow::Result<()> {
        self.host.link("eth0", &self.internet, "host0")?;
        self.host.link("lan0", &self.lan, "lan0")?;
        self.host.link("lan1", &self.lan, "lan1")?;
        let batch = |ns: &Netns, text: String| ns.check("ip", &["-batch", "-"], &text).map(drop);
        batch(
            &self.internet,
            format!(
                "link set lo up\naddr add {ROUTER}/24 dev host0\naddr add {NEIGHBOUR}/24 dev host0\n\
                 addr add {SERVER}/32 dev lo\naddr add {RESOLVER}/32 dev lo\n\
                 addr add {OTHER_SERVER}/32 dev lo\n"
            ),
        )?;
        batch(
            &self.lan,
            format!(
                "link set lo up\naddr add {LAN}/24 dev lan0\naddr add {LAN_2}/24 dev lan1\n\
                 addr add {METADATA}/32 dev lo\nroute add default via {HOST_LAN}\n"
            ),
        )?;
        batch(
            &self.host,
            format!(
                "link set lo up\naddr add {UPLINK}/24 dev eth0\naddr add {HOST_LAN}/24 dev lan0\n\
                 addr add {HOST_LAN_2}/24 dev lan1\nlink add docker0 type veth peer \
                 name docker0c\nlink set docker0 up\nlink set docker0c up\naddr add {HOST_DOCKER}/16 dev docker0\n\
                 route add default via {ROUTER}\nroute add {METADATA} via {LAN} dev lan0\n"
            ),
        )?;
        for (_, ns) in self.namespaces() {
            // New namespaces may inherit the machine's settings (net.core.devconf_inherit_init_net).
            ns.set_sysctl("net/ipv4/ip_forward", "0")?;
            for scope in ["all", "default", "lo"] {
                ns.set_sysctl(&format!("net/ipv4/conf/{scope}/rp_filter"), "0")?;
            }
        }
        Ok(())
    }

    fn listen(&self) -> anyhow::Result<()> {
        for ns in [&self.internet, &self.lan] {
            for (port, service) in [
                (ECHO, Service::Echo),
                (443, Service::Echo),
                (WHO_AM_I, Service::WhoAmI),
                (80, Service::Http),
                (SOURCE, Service::Source),
            ] {
                self.servers.tcp(ns, port, service)?;
            }
        }
        for addr in [ROUTER, NEIGHBOUR, SERVER, RESOLVER, OTHER_SERVER] {
            self.servers.udp_echo(&self.internet, addr, ECHO)?;
        }
        for addr in [LAN, LAN_2, METADATA] {
            self.servers.udp_echo(&self.lan, addr, ECHO)?;
        }
        self.servers.dns(&self.internet, RESOLVER, SERVER)?;
        for port in [22, CANARY] {
            self.servers.tcp(&self.host, port, Service::Echo)?;
        }
        for addr in [UPLINK, HOST_LAN, HOST_LAN_2, HOST_DOCKER, Ipv4Addr::LOCALHOST] {
            self.servers.udp_echo(&self.host, addr, CANARY)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn everything_that_must_be_refused_to_a_guest_answers_the_host() {
        let world = World::new().unwrap();
        for addr in [SERVER, RESOLVER, OTHER_SERVER, ROUTER, NEIGHBOUR, LAN, LAN_2, METADATA] {
            for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
                let outcome = world.ask(&world.host, kind, addr, ECHO);
                assert!(outcome.reached(), "{kind:?} {addr}: {outcome}");
            }
        }
        for (from, addr) in [
            (&world.internet, UPLINK),
            (&world.lan, HOST_LAN),
            (&world.lan, HOST_LAN_2),
            (&world.host, HOST_DOCKER),
            (&world.host, Ipv4Addr::LOCALHOST),
        ] {
            for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
                let outcome = world.ask(from, kind, addr, CANARY);
                assert!(outcome.reached(), "{kind:?} {addr}: {outcome}");
            }
        }
    }

    #[test]
    fn a_closed_port_and_a_dead_address_are_told_apart() {
        let world = World::new().unwrap();
        let closed = world.ask(&world.host, Kind::Tcp, SERVER, 4);
        assert!(closed.refused() && closed.how == "reset", "{closed}");
        assert!(world.ask(&world.host, Kind::Udp, SERVER, 4).refused());
        let nowhere = Ipv4Addr::new(93, 184, 216, 35);
        let dead = world.ask(&world.host, Kind::Ping, nowhere, 0);
        assert!(!dead.reached(), "{dead}");
    }
}
