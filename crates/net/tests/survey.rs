//! What a host is like, told right and without changing it.

use enisle_net::survey::{self, ForwardChain};
use enisle_net::{Engine, EngineConfig};
use enisle_testkit::World;
use enisle_testkit::listing::Listing;

/// The host's own namespace; the machine's BPF objects are looked at elsewhere.
fn look(world: &World) -> Vec<String> {
    Listing::of_network(&world.host).unwrap()
}

#[test]
fn networks_are_taken_by_addresses_routes_and_other_daemons() {
    let world = World::new().unwrap();
    let ip = |line: &str| {
        let args: Vec<&str> = line.split(' ').collect();
        world.host.check("ip", &args, "").unwrap();
    };
    ip("addr add 10.55.0.1/24 dev lan0 noprefixroute");
    ip("route add 10.66.0.0/16 via 192.168.1.10");
    ip("route add unreachable 10.67.0.0/16 table 7");
    let config = EngineConfig {
        scope: "5eed0001".parse().unwrap(),
        ranges: vec!["169.254.100.0/22".parse().unwrap()],
    };
    let engine = world.host.run(|| Engine::open(config)).unwrap();
    let us = std::process::id();
    let taken = |own: bool| -> Vec<String> {
        let taken = world.host.run(|| survey::taken(|pid| own && pid == us, None)).unwrap();
        taken.into_iter().map(|t| format!("{} {}", t.net, t.by)).collect()
    };
    let all = taken(false);
    for expected in [
        "10.55.0.0/24 interface lan0",
        "10.66.0.0/16 a route by lan0",
        "10.67.0.0/16 a route to nowhere",
        "172.17.0.0/16 interface docker0",
        &format!("169.254.100.0/22 another daemon (process {us})"),
    ] {
        assert!(all.iter().any(|line| line == expected), "{expected}: {all:#?}");
    }
    assert!(!all.iter().any(|line| line.starts_with("0.0.0.0/0")), "{all:#?}");
    assert!(!taken(true).iter().any(|line| line.contains("another daemon")));
    engine.close().unwrap();
}

#[test]
fn chains_that_refuse_and_settings_are_told() {
    let world = World::new().unwrap();
    let chains = || world.host.run(survey::forward_chains).unwrap();
    assert_eq!(chains(), []);
    world.host.check("iptables-nft", &["-P", "FORWARD", "DROP"], "").unwrap();
    let expected = ForwardChain {
        table: "table ip filter".into(),
        chain: "FORWARD".into(),
        refuses: true,
        locked: false,
    };
    assert_eq!(chains(), std::slice::from_ref(&expected));
    world.host.check("iptables-nft", &["-P", "FORWARD", "ACCEPT"], "").unwrap();
    assert_eq!(chains(), [ForwardChain { refuses: false, ..expected }]);

    let settings = world.host.run(survey::settings).unwrap();
    assert_eq!((settings.ip_forward, settings.rp_filter), (Some(false), Some(0)));
    assert_eq!(settings.uplinks, ["eth0"]);
    world.host.set_sysctl("net/ipv4/ip_forward", "1").unwrap();
    world.host.check("ip", &["route", "del", "default"], "").unwrap();
    let settings = world.host.run(survey::settings).unwrap();
    assert_eq!(settings.ip_forward, Some(true));
    assert!(settings.uplinks.is_empty());
}

#[test]
fn the_kernel_is_tried_without_a_trace() {
    let world = World::new().unwrap();
    let before = look(&world);
    let tried = world.host.run(survey::features);
    assert!(tried.len() >= 4 && tried.iter().all(|f| f.error.is_none()), "{tried:#?}");
    assert_eq!(look(&world), before);
}
