//! Which rows the table has: of a world, or of the machine as it is.
//!
//! Owns: the targets, what is expected of each, and from where its positive control asks.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, ToSocketAddrs as _};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::Context as _;
use enisle_testkit::Netns;
use enisle_testkit::probe::{Kind, Outcome, Target, ask};
use enisle_testkit::server::{Servers, Service};
use enisle_testkit::world::{self, CANARY, ECHO};
use serde_json::Value;

use crate::guest;
use crate::state::State;

const CONTROL_LIMIT: Duration = Duration::from_secs(2);
/// AWS, GCP, Azure and others serve it on port 80.
const HTTP: u16 = 80;

/// Where a positive control asks from.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// A namespace of the world, or the machine's own.
    Namespace(&'static str),
    /// The sibling itself: nobody else is permitted to reach it.
    Sibling,
    /// Nothing here could tell; the reason.
    Nowhere(String),
}

/// One row before it is asked.
#[derive(Debug, Clone)]
pub(crate) struct Row {
    /// What the target is, for people.
    pub(crate) name: String,
    /// What is asked.
    pub(crate) target: Target,
    /// Whether the guest must reach it; refused otherwise.
    pub(crate) reached: bool,
    /// Where the positive control asks from.
    pub(crate) control: Place,
}

/// The rows, and what must live while they are asked.
pub(crate) struct Rows {
    /// In the order of the table.
    pub(crate) rows: Vec<Row>,
    namespaces: Vec<(&'static str, Netns)>,
    /// Listeners on the machine's own addresses.
    _servers: Option<Servers>,
    /// Without a world, a control that fails means that nothing is there, not that something broke.
    pub(crate) may_be_absent: bool,
}

impl Rows {
    /// The positive control of a row that asks from a namespace.
    pub(crate) fn control(&self, from: &str, target: Target) -> Option<Outcome> {
        let (_, ns) = self.namespaces.iter().find(|(name, _)| *name == from)?;
        Some(ns.run(|| ask(target, CONTROL_LIMIT)))
    }

    fn add(&mut self, name: &str, target: Target, reached: bool, control: Place) {
        self.rows.push(Row { name: name.to_owned(), target, reached, control });
    }

    /// TCP, UDP and ping of one address.
    fn add_all(&mut self, name: &str, at: (Ipv4Addr, u16), reached: bool, from: &'static str) {
        let (addr, port) = at;
        for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
            let port = if kind == Kind::Ping { 0 } else { port };
            self.add(name, Target { kind, addr, port }, reached, Place::Namespace(from));
        }
    }

    /// The sibling's listener, to be started by the caller.
    pub(crate) fn add_sibling(&mut self, addr: Ipv4Addr) {
        for kind in [Kind::Tcp, Kind::Udp, Kind::Ping] {
            let port = if kind == Kind::Ping { 0 } else { guest::PORT };
            self.add("sibling microVM", Target { kind, addr, port }, false, Place::Sibling);
        }
    }

    /// The daemon's API on a TCP port.
    pub(crate) fn add_api(&mut self, at: SocketAddrV4) {
        let target = Target { kind: Kind::Connect, addr: *at.ip(), port: at.port() };
        self.add("daemon's API", target, false, Place::Namespace("host"));
    }

    /// The rows of a world.
    pub(crate) fn of_world(state: &Path, drop: Option<&str>) -> anyhow::Result<Rows> {
        let state = State::read(state)?;
        let mut namespaces = Vec::new();
        for name in ["host", "internet", "lan"] {
            namespaces.push((name, state.namespace(name)?));
        }
        let mut rows = Rows { rows: Vec::new(), namespaces, _servers: None, may_be_absent: false };
        let dropped = match drop {
            Some(text) => text.parse().with_context(|| format!("--drop {text}: no address"))?,
            None => world::LAN,
        };
        let other_lan = if dropped == world::LAN_2 { world::LAN } else { world::LAN_2 };
        rows.add_all("Internet", (world::SERVER, ECHO), true, "host");
        rows.add_all("LAN host", (other_lan, ECHO), false, "host");
        rows.add_all("`drop` network", (dropped, ECHO), false, "host");
        rows.add_all("host, uplink", (world::UPLINK, CANARY), false, "internet");
        rows.add_all("host, LAN", (world::HOST_LAN, CANARY), false, "lan");
        rows.add_all("host, docker0", (world::HOST_DOCKER, CANARY), false, "host");
        let ssh = Target { kind: Kind::Tcp, addr: world::UPLINK, port: 22 };
        rows.add("host, SSH", ssh, false, Place::Namespace("internet"));
        rows.add_all("neighbour on uplink", (world::NEIGHBOUR, ECHO), false, "host");
        let http = Target { kind: Kind::Connect, addr: world::METADATA, port: HTTP };
        rows.add("cloud metadata", http, false, Place::Namespace("host"));
        let ping = Target { kind: Kind::Ping, addr: world::METADATA, port: 0 };
        rows.add("cloud metadata", ping, false, Place::Namespace("host"));
        Ok(rows)
    }

    /// The rows of this machine.
    pub(crate) fn of_machine(drop: Option<&str>) -> anyhow::Result<Rows> {
        let here = Netns::current()?;
        let own = own_addresses(&here)?;
        let (servers, port) = canary(&here, &own)?;
        let mut rows = Rows {
            rows: Vec::new(),
            namespaces: vec![("host", here)],
            _servers: Some(servers),
            may_be_absent: true,
        };
        let (target, control) = internet();
        rows.add("Internet", target, true, control);
        let (target, control) = dropped(drop)?;
        rows.add("`drop` network", target, false, control);
        for addr in own {
            rows.add_all("host itself", (addr, port), false, "host");
        }
        if let Some(addr) = default_gateway(&rows.namespaces[0].1)? {
            let ping = Target { kind: Kind::Ping, addr, port: 0 };
            rows.add("LAN, the host's gateway", ping, false, Place::Namespace("host"));
        }
        let http = Target { kind: Kind::Connect, addr: world::METADATA, port: HTTP };
        rows.add("cloud metadata", http, false, Place::Namespace("host"));
        Ok(rows)
    }
}

fn dropped(drop: Option<&str>) -> anyhow::Result<(Target, Place)> {
    let nothing = Target { kind: Kind::Connect, addr: Ipv4Addr::UNSPECIFIED, port: 0 };
    let Some(text) = drop else {
        let reason = "no --drop ADDR:PORT was given".to_owned();
        return Ok((nothing, Place::Nowhere(reason)));
    };
    let at: SocketAddrV4 = text.parse().with_context(|| format!("--drop {text}: no address:port"))?;
    Ok((Target { addr: *at.ip(), port: at.port(), ..nothing }, Place::Namespace("host")))
}

/// Every address of the machine but loopback, which would be the guest's own.
fn own_addresses(ns: &Netns) -> anyhow::Result<Vec<Ipv4Addr>> {
    let text = ns.check("ip", &["-j", "-4", "addr", "show", "up"], "")?;
    let links: Vec<Value> = serde_json::from_str(&text).context("`ip -j addr` printed no JSON")?;
    let infos = links.iter().flat_map(|l| l["addr_info"].as_array().into_iter().flatten());
    let addrs = infos.filter_map(|a| a["local"].as_str()?.parse::<Ipv4Addr>().ok());
    Ok(addrs.filter(|a| !a.is_loopback()).collect())
}

/// The canary that must not be reached: TCP and UDP, on the same free port.
fn canary(ns: &Netns, own: &[Ipv4Addr]) -> anyhow::Result<(Servers, u16)> {
    let servers = Servers::new()?;
    let port = servers.tcp(ns, 0, Service::Echo)?;
    for addr in own {
        servers.udp_echo(ns, *addr, port)?;
    }
    Ok((servers, port))
}

fn default_gateway(ns: &Netns) -> anyhow::Result<Option<Ipv4Addr>> {
    let text = ns.check("ip", &["-j", "-4", "route", "show", "default"], "")?;
    let routes: Vec<Value> = serde_json::from_str(&text).unwrap_or_default();
    Ok(routes.iter().find_map(|r| r["gateway"].as_str()?.parse().ok()))
}

/// The host's package mirror: the one server that even a closed-off machine knows to be there.
fn internet() -> (Target, Place) {
    let unknown = Target { kind: Kind::Connect, addr: Ipv4Addr::UNSPECIFIED, port: 0 };
    let Some(at) = package_mirror() else {
        return (unknown, Place::Nowhere("this machine knows no server on the Internet".to_owned()));
    };
    let target = Target { addr: *at.ip(), port: at.port(), ..unknown };
    if is_special(*at.ip()) {
        let reason = format!("the package mirror {} is no Internet address", at.ip());
        return (target, Place::Nowhere(reason));
    }
    (target, Place::Namespace("host"))
}

/// The proxy apt uses, else the server of its first index.
fn package_mirror() -> Option<SocketAddrV4> {
    let first_line = |program: &str, args: &[&str]| {
        let output = Command::new(program).args(args).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        text.lines().next().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty())
    };
    let proxy = first_line("apt-config", &["shell", "P", "Acquire::http::Proxy"]);
    let proxy = proxy.map(|l| l.trim_start_matches("P='").trim_end_matches('\'').to_owned());
    let uri = proxy.or_else(|| first_line("apt-get", &["indextargets", "--format", "$(URI)"]))?;
    let (scheme, rest) = uri.split_once("://")?;
    let host = rest.split('/').next()?.rsplit('@').next()?;
    let port = if scheme == "https" { 443 } else { HTTP };
    let address = if host.contains(':') { host.to_owned() } else { format!("{host}:{port}") };
    address.to_socket_addrs().ok()?.find_map(|a| match a {
        SocketAddr::V4(v4) => Some(v4),
        SocketAddr::V6(_) => None,
    })
}

/// Not on the public Internet, so a guest is right to be refused.
fn is_special(addr: Ipv4Addr) -> bool {
    let [a, b, ..] = addr.octets();
    addr.is_private()
        || addr.is_loopback()
        || addr.is_link_local()
        || addr.is_documentation()
        || (a == 100 && b & 0xc0 == 64)
        || (a == 198 && b & 0xfe == 18)
        || a == 0
        || a >= 224
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn special_addresses_are_no_internet() {
        for special in ["10.1.2.3", "100.127.0.1", "198.19.0.1", "0.1.2.3", "240.0.0.1"] {
            assert!(is_special(special.parse().unwrap()), "{special}");
        }
        for public in ["8.8.8.8", "100.128.0.1", "198.20.0.1", "223.255.255.255"] {
            assert!(!is_special(public.parse().unwrap()), "{public}");
        }
    }
}
