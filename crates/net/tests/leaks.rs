//! BPF objects and descriptors go with the engine. Alone in its process: it counts the process's
//! own descriptors.

use std::collections::BTreeMap;
use std::fs;

use enisle_net::plan::Range;
use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, SlotSpec};
use enisle_testkit::World;

/// Descriptors of this process by kind.
fn descriptors() -> BTreeMap<String, usize> {
    let mut kinds = BTreeMap::new();
    for entry in fs::read_dir("/proc/self/fd").unwrap() {
        let Ok(to) = fs::read_link(entry.unwrap().path()) else { continue };
        let kind = to.to_string_lossy().split('[').next().unwrap_or_default().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    kinds
}

#[test]
fn descriptors_go_with_slots_and_engine() {
    let world = World::new().unwrap();
    let before = descriptors();
    let range: Range = "169.254.100.0/22".parse().unwrap();
    let config = EngineConfig { scope: "00000001".parse().unwrap(), ranges: vec![range] };
    let engine = world.host.run(|| Engine::open(config)).unwrap();
    let policy = compile(&PolicySpec::default()).unwrap();
    let spec = |block| SlotSpec {
        block,
        vm_name: "x",
        mtu: 1500,
        policy: &policy,
        tap_owner: (0, 0),
        limits: Limits::default(),
    };
    // The first removal opens a subscription that is kept for the next ones.
    engine.remove(engine.create(&spec(range.block(0).unwrap())).unwrap()).unwrap();
    let open = descriptors();
    // Two programs for each form of the judge: routed, and of a port.
    assert!(open["anon_inode:bpf-map"] >= 5 && open["anon_inode:bpf-prog"] == 4, "{open:?}");

    let slots: Vec<_> = range.blocks().take(20).map(|block| engine.create(&spec(block)).unwrap()).collect();
    let during = descriptors();
    // A namespace and the tap's queue for each, until a VMM takes the queue.
    assert_eq!(during["net:"] - open["net:"], 20, "{during:?}");
    assert_eq!(during["/dev/net/tun"], 20, "{during:?}");
    assert_eq!(during["anon_inode:bpf-map"], open["anon_inode:bpf-map"]);
    for slot in slots {
        engine.remove(slot).unwrap();
    }
    assert_eq!(descriptors(), open);
    engine.close().unwrap();
    drop(engine);
    assert_eq!(descriptors(), before);
}
