//! What the configuration asks of this machine.
//!
//! Owns: images, files, and which networks are in use. Changes nothing. Refuses the last word
//! about ranges: the engine sees more (leases, addresses without a route) when it opens; what is
//! seen here can be reported with its place in the file.

use crate::config::{self, InUse};
use enisle_image::ImageStore;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;
use std::path::Path;

/// Routes of the main table (proc(5)), in the namespace of this process.
const ROUTES: &str = "/proc/self/net/route";
/// Zeroconf's route, which many hosts have on their uplink (RFC 3927). Slots' are more specific.
const ZEROCONF: Ipv4Net = Ipv4Net::new_assert(Ipv4Addr::new(169, 254, 0, 0), 16);

/// This machine.
pub(crate) struct ThisHost;

impl config::Host for ThisHost {
    fn networks(&self) -> Vec<InUse> {
        // Where it cannot be read the engine still refuses, without the place in the file.
        let text = std::fs::read_to_string(ROUTES).unwrap_or_default();
        text.lines().filter_map(route).collect()
    }

    fn images(&self, image_dir: &Path) -> Option<Vec<String>> {
        // One that is broken is reported when a VM wants it; here it would hide the others.
        let images = ImageStore::open(image_dir).list().ok()?;
        Some(images.into_iter().map(|image| image.name).collect())
    }

    fn is_file(&self, path: &Path) -> bool {
        std::fs::File::open(path).and_then(|file| file.metadata()).is_ok_and(|found| found.is_file())
    }
}

/// One line: interface, destination, gateway, four numbers, mask; the three in hex, as they lie in
/// memory. `None` for the heading and for what takes no range.
fn route(line: &str) -> Option<InUse> {
    let fields: Vec<&str> = line.split_ascii_whitespace().collect();
    let [interface, destination, gateway, _, _, _, _, mask, ..] = fields[..] else { return None };
    let address = |field| u32::from_str_radix(field, 16).ok().map(|n| Ipv4Addr::from(n.to_ne_bytes()));
    let net = Ipv4Net::with_netmask(address(destination)?, address(mask)?).ok()?;
    // A default route, or one of the halves that VPNs split it into.
    if net.prefix_len() <= 1 || net == ZEROCONF || is_slot(interface) {
        return None;
    }
    let by = if address(gateway)?.is_unspecified() {
        format!("interface {interface}")
    } else {
        format!("a route by {interface}")
    };
    Some(InUse { net, by })
}

/// Ours from a killed run, or another daemon's; the engine tells them apart by their marks.
fn is_slot(interface: &str) -> bool {
    interface.strip_prefix("en-").is_some_and(|id| id.len() == 8 && u32::from_str_radix(id, 16).is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_take_networks_and_defaults_and_slots_do_not() {
        let text = "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n\
            eth0\t00000000\t0168682D\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
            tun0\t00000080\t0168682D\t0003\t0\t0\t0\t00000080\t0\t0\t0\n\
            docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n\
            eth0\t0000FEA9\t00000000\t0001\t0\t0\t1000\t0000FFFF\t0\t0\t0\n\
            wg0\t0064FEA9\t0100000A\t0003\t0\t0\t0\t00FCFFFF\t0\t0\t0\n\
            en-a9fe6402\t0264FEA9\t00000000\t0005\t0\t0\t0\tFFFFFFFF\t0\t0\t0\n";
        let found: Vec<_> =
            text.lines().filter_map(route).map(|used| (used.net.to_string(), used.by)).collect();
        let expected = [("172.17.0.0/16", "interface docker0"), ("169.254.100.0/22", "a route by wg0")];
        assert_eq!(found, expected.map(|(net, by)| (net.to_owned(), by.to_owned())));
    }
}
