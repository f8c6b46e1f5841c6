//! Three slots in the range 169.254.100.0/22 of the network namespace it is started in, held until
//! it is killed: the process that `tests/crash.rs` and `tests/adopt.rs` kill. Needs root; run it in a namespace of its own.

use enisle_net::plan::Range;
use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, SlotSpec};
use std::error::Error;
use std::os::fd::AsRawFd;

fn main() -> Result<(), Box<dyn Error>> {
    let range: Range = "169.254.100.0/22".parse()?;
    let engine = Engine::open(EngineConfig { scope: "00c0de01".parse()?, ranges: vec![range] })?;
    let policy = compile(&PolicySpec::default())?;
    let mut slots = Vec::new();
    for block in range.blocks().take(3) {
        let spec = SlotSpec {
            block,
            vm_name: "doomed",
            mtu: 1500,
            policy: &policy,
            tap_owner: (0, 0),
            limits: Limits::default(),
        };
        slots.push(engine.create(&spec)?);
    }
    let namespaces: Vec<String> = slots.iter().map(|slot| slot.netns().as_raw_fd().to_string()).collect();
    println!("slots: {}", slots.len());
    println!("namespaces: {}", namespaces.join(" "));
    loop {
        std::thread::park();
    }
}
