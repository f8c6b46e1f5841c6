//! Three slots in the range 169.254.100.0/22 of the network namespace it is started in, held until
//! it is killed: the process that `tests/crash.rs` kills. Needs root; run it in a namespace of its own.

use enisle_net::plan::Range;
use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, SlotSpec};
use std::error::Error;

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
    println!("slots: {}", slots.len());
    loop {
        std::thread::park();
    }
}
