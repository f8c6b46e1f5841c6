//! The guest's static network: lo, and the interface with the right MAC as eth0.

use super::netlink::{ENSURE, Netlink, Request};
use anyhow::Context;
use enisle_guest_proto::GuestNet;
use std::fs;
use std::net::Ipv4Addr;

const RTM_NEWLINK: u16 = 16;
const RTM_NEWADDR: u16 = 20;
const RTM_NEWROUTE: u16 = 24;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const AF_INET: u8 = 2;
const IFF_UP: u32 = 1;
const NAME: &str = "eth0";

/// Raises the loopback interface; the kernel gives it its addresses.
pub(super) fn raise_loopback() -> anyhow::Result<()> {
    Ok(Netlink::open()?.ask(&link_request(index_of("lo")?, IFF_UP))?)
}

/// Names the interface with `net.mac` eth0 and gives it its address, MTU and default route.
pub(super) fn configure(net: &GuestNet) -> anyhow::Result<()> {
    let current = find_by_mac(net.mac)?;
    let index = index_of(&current)?;
    let netlink = Netlink::open()?;
    let mut change = link_request(index, 0).attribute(IFLA_MTU, &u32::from(net.mtu).to_ne_bytes());
    if current != NAME {
        change = change.attribute(IFLA_IFNAME, c"eth0".to_bytes_with_nul());
    }
    netlink.ask(&change).with_context(|| format!("name {current} {NAME} with MTU {}", net.mtu))?;
    netlink
        .ask(&address_request(index, net))
        .with_context(|| format!("add {}/{}", net.address, net.prefix_len))?;
    netlink.ask(&link_request(index, IFF_UP)).context("raise it")?;
    netlink
        .ask(&route_request(index, net.gateway))
        .with_context(|| format!("default route via {}", net.gateway))
}

fn find_by_mac(mac: [u8; 6]) -> anyhow::Result<String> {
    let wanted = mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut seen = Vec::new();
    for entry in fs::read_dir("/sys/class/net")? {
        let path = entry?.path();
        let address = fs::read_to_string(path.join("address")).unwrap_or_default();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if address.trim() == wanted {
            return Ok(name);
        }
        seen.push(format!("{name} {}", address.trim()));
    }
    anyhow::bail!("no interface has MAC {wanted}; there are: {}", seen.join(", "))
}

fn index_of(name: &str) -> anyhow::Result<u32> {
    let path = format!("/sys/class/net/{name}/ifindex");
    let text = fs::read_to_string(&path).with_context(|| path.clone())?;
    text.trim().parse().with_context(|| path)
}

/// `struct ifinfomsg`: family, padding, type, index, flags, change mask.
fn link_request(index: u32, flags: u32) -> Request {
    let mut fixed = vec![0; 4];
    for field in [index, flags, flags] {
        fixed.extend_from_slice(&field.to_ne_bytes());
    }
    Request::new(RTM_NEWLINK, 0, &fixed)
}

/// `struct ifaddrmsg`: family, prefix length, flags, scope, index.
fn address_request(index: u32, net: &GuestNet) -> Request {
    let mut fixed = vec![AF_INET, net.prefix_len, 0, 0];
    fixed.extend_from_slice(&index.to_ne_bytes());
    let host_bits = u32::MAX.checked_shr(u32::from(net.prefix_len)).unwrap_or(0);
    let broadcast = Ipv4Addr::from(u32::from(net.address) | host_bits);
    Request::new(RTM_NEWADDR, ENSURE, &fixed)
        .attribute(IFA_LOCAL, &net.address.octets())
        .attribute(IFA_ADDRESS, &net.address.octets())
        .attribute(IFA_BROADCAST, &broadcast.octets())
}

/// `struct rtmsg`: family, prefix lengths, TOS, table main, protocol boot, scope universe, type
/// unicast, flags.
fn route_request(index: u32, gateway: Ipv4Addr) -> Request {
    let fixed = [AF_INET, 0, 0, 0, 254, 3, 0, 1, 0, 0, 0, 0];
    Request::new(RTM_NEWROUTE, ENSURE, &fixed)
        .attribute(RTA_GATEWAY, &gateway.octets())
        .attribute(RTA_OIF, &index.to_ne_bytes())
}
