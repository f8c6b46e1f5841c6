//! Which name servers guests are told.
//!
//! Owns: choosing them, once at start. Refuses: answering names.

use enisle_net::policy::{CompiledPolicy, Proto, Verdict};
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;

/// resolv.conf(5): MAXNS.
const MAX_SERVERS: usize = 3;
const DNS_PORT: u16 = 53;
/// The host's own view first; then what systemd-resolved hides behind 127.0.0.53.
const FILES: [&str; 2] = ["/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"];

/// The host's resolvers that a guest could use: IPv4, not the host itself. At most 3.
pub(crate) fn host_resolvers() -> Vec<Ipv4Addr> {
    FILES.iter().map(|file| usable(Path::new(file))).find(|found| !found.is_empty()).unwrap_or_default()
}

fn usable(file: &Path) -> Vec<Ipv4Addr> {
    parse(&std::fs::read_to_string(file).unwrap_or_default())
}

fn parse(text: &str) -> Vec<Ipv4Addr> {
    let words = text.lines().map(str::split_ascii_whitespace);
    let servers = words.filter_map(|mut words| {
        if words.next() != Some("nameserver") {
            return None;
        }
        match words.next()?.parse() {
            Ok(IpAddr::V4(address)) if !address.is_loopback() && !address.is_unspecified() => Some(address),
            _ => None,
        }
    });
    servers.take(MAX_SERVERS).collect()
}

/// Says once for a group what its guests will not be able to ask.
pub(crate) fn warn(group: &str, servers: &[Ipv4Addr], policy: &CompiledPolicy) {
    if servers.is_empty() {
        tracing::warn!(
            group,
            "no name server for the guests: the host has none but on its own loopback; set `network.dns`"
        );
    }
    let refused =
        |server: &&Ipv4Addr| policy.judge(**server, Proto::Udp, Some(DNS_PORT)).0 == Verdict::Refuse;
    let refused: Vec<String> = servers.iter().filter(refused).map(ToString::to_string).collect();
    if !refused.is_empty() {
        tracing::warn!(
            group,
            "the group's policy refuses its name server {}: names will not resolve in its guests; set `network.dns`, \
             or allow it as `{}:53`",
            refused.join(" and "),
            refused[0]
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_and_ipv6_servers_are_of_no_use_to_a_guest() {
        let text = "# 9.9.9.9\nnameserver 127.0.0.53\nnameserver ::1\nnameserver fe80::1%eth0\n search lan\n\
                    nameserver 192.168.1.1 # router\noptions edns0\nnameserver\n  nameserver 1.1.1.1\n";
        assert_eq!(parse(text), [Ipv4Addr::new(192, 168, 1, 1), Ipv4Addr::new(1, 1, 1, 1)]);
        assert_eq!(parse(&"nameserver 9.9.9.9\n".repeat(5)).len(), MAX_SERVERS);
        assert_eq!(parse(""), [] as [Ipv4Addr; 0]);
    }
}
