//! The two rulesets as `nft` reads them back from the kernel, and as it would parse them again.
//!
//! `tests/golden/*.nft` are what was read; `UPDATE_GOLDEN=1` writes them anew.

use std::fs;
use std::path::Path;

use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, SlotSpec};
use enisle_testkit::{Netns, World};

fn compare(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, text).unwrap();
    }
    let golden = fs::read_to_string(&path).unwrap();
    assert_eq!(text, golden, "{} differs from what the kernel holds", path.display());
}

#[test]
fn the_rulesets_are_golden_and_parse() {
    let world = World::new().unwrap();
    // Ranges that touch, one that ends with its pool, and one apart.
    let ranges = ["169.254.100.0/22", "169.254.104.0/24", "10.255.255.0/24"];
    let config = EngineConfig {
        scope: "5eed0001".parse().unwrap(),
        ranges: ranges.iter().map(|r| r.parse().unwrap()).collect(),
    };
    let blocks = [config.ranges[0].block(0).unwrap(), config.ranges[2].block(63).unwrap()];
    let engine = world.host.run(|| Engine::open(config)).unwrap();
    let policy = compile(&PolicySpec::default()).unwrap();
    let slots: Vec<_> = blocks
        .into_iter()
        .zip([Limits::default(), Limits { flows: 100, new_flows_per_s: 7, ..Limits::default() }])
        .map(|(block, limits)| SlotSpec {
            block,
            vm_name: "agents-1",
            mtu: 1500,
            policy: &policy,
            tap_owner: (0, 0),
            limits,
        })
        .map(|spec| engine.create(&spec).unwrap())
        .collect();

    let host = world.host.check("nft", &["-s", "list", "table", "inet", "enisle_5eed0001"], "").unwrap();
    let inside = Netns::from_fd(slots[0].netns()).unwrap();
    let slot = inside.check("nft", &["-s", "list", "ruleset"], "").unwrap();

    // Interfaces are shown by name, so they are parsed where they are.
    world.host.check("nft", &["--check", "-f", "-"], &host).unwrap();
    inside.check("nft", &["--check", "-f", "-"], &slot).unwrap();
    compare("host.nft", &host);
    compare("slot.nft", &slot);
    for slot in slots {
        engine.remove(slot).unwrap();
    }
    engine.close().unwrap();
}
