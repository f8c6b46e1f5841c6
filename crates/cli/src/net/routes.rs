//! `enisle net routes`.

use crate::Failure;
use crate::table::{print, print_json};
use crate::vm::Context;
use clap::Args;
use enisle_client::api::Group;
use serde::Serialize;
use std::net::{IpAddr, Ipv4Addr, UdpSocket};

/// A network of documentation (RFC 5737): the way there is the way to anywhere, and nothing is sent.
const ANYWHERE: (Ipv4Addr, u16) = (Ipv4Addr::new(192, 0, 2, 1), 9);

#[derive(Debug, Args)]
#[command(after_help = "\
Prints the commands by which a machine of the LAN reaches the microVMs on bridges through this host.
Groups in other modes are not reached from outside and have none. Nothing is run.

Examples:
  enisle net routes
  enisle net routes --via 192.168.1.5
  enisle net routes --json | jq -r .[].linux")]
pub(crate) struct RoutesArgs {
    /// The daemon's host, as the neighbours know it; without it this machine's own address.
    #[arg(long, value_name = "ADDRESS")]
    via: Option<Ipv4Addr>,
}

/// One subnet, and how three systems are told of it.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Route {
    group: String,
    subnet: String,
    via: Ipv4Addr,
    linux: String,
    macos: String,
    windows: String,
}

pub(super) async fn run(context: &Context, args: &RoutesArgs) -> Result<u8, Failure> {
    let groups = context.client.groups().await?;
    let via = match args.via {
        Some(via) => via,
        None => own_address().ok_or_else(|| {
            Failure::usage("this machine has no way to anywhere, so its address is not known")
                .hint("name the address of the daemon's host: --via ADDRESS")
        })?,
    };
    let routes = routes(&groups, via);
    if context.json {
        print_json(&routes)?;
    } else {
        print(&text(&routes))?;
    }
    Ok(0)
}

/// The address that packets to elsewhere bear.
fn own_address() -> Option<Ipv4Addr> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).ok()?;
    socket.connect(ANYWHERE).ok()?;
    match socket.local_addr().ok()?.ip() {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}

fn routes(groups: &[Group], via: Ipv4Addr) -> Vec<Route> {
    let route = |group: &Group| {
        let bridge = group.network.bridge.as_ref()?;
        let (address, length) = bridge.subnet.split_once('/')?;
        let length: u32 = length.parse().ok().filter(|length| (1..=32).contains(length))?;
        let mask = Ipv4Addr::from(u32::MAX << (32 - length));
        let subnet = &bridge.subnet;
        Some(Route {
            group: group.name.clone(),
            subnet: subnet.clone(),
            via,
            linux: format!("sudo ip route add {subnet} via {via}"),
            macos: format!("sudo route -n add -net {subnet} {via}"),
            windows: format!("route -p add {address} mask {mask} {via}"),
        })
    };
    groups.iter().filter_map(route).collect()
}

fn text(routes: &[Route]) -> String {
    if routes.is_empty() {
        return "no group is on a bridge: there is nothing to route\n".to_owned();
    }
    let line = |route: &Route| {
        format!(
            "{} ({})\n  Linux    {}\n  macOS    {}\n  Windows  {}\n",
            route.group, route.subnet, route.linux, route.macos, route.windows
        )
    };
    crate::table::visible_lines(&routes.iter().map(line).collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;
    use enisle_client::api::{GroupBridge, GroupNetwork};

    fn group(name: &str, bridge: Option<&str>) -> Group {
        let bridge = bridge.map(|subnet| GroupBridge {
            name: "lab0".into(),
            gateway: "10.77.0.1".parse().unwrap(),
            subnet: subnet.into(),
            isolate_ports: false,
            uplink: None,
            route_between: false,
        });
        let network = GroupNetwork {
            mode: "bridge".into(),
            range: "10.77.0.128/25".into(),
            bridge,
            drop: Vec::new(),
            allow: Vec::new(),
        };
        Group { name: name.into(), count: 1, vms: 0, capacity: 32, vcpu: 1, ram_mb: 512, network }
    }

    #[test]
    fn each_system_is_told_in_its_own_words_and_only_of_bridges() {
        let via = Ipv4Addr::new(192, 168, 1, 5);
        let found = routes(&[group("agents", None), group("lab", Some("10.76.0.0/15"))], via);
        let [lab] = &found[..] else { panic!("{found:?}") };
        assert_eq!(lab.linux, "sudo ip route add 10.76.0.0/15 via 192.168.1.5");
        assert_eq!(lab.macos, "sudo route -n add -net 10.76.0.0/15 192.168.1.5");
        assert_eq!(lab.windows, "route -p add 10.76.0.0 mask 255.254.0.0 192.168.1.5");
        assert!(text(&found).starts_with("lab (10.76.0.0/15)\n  Linux    sudo ip"));
        assert!(text(&routes(&[group("agents", None)], via)).contains("nothing to route"));
    }
}
