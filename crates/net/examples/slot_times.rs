//! How long slots take to come and go: `slot_times [HOW_MANY]`, in a network namespace of its own.
//! Needs root. The figures are those of ENGINE.md §5.

use std::io;
use std::time::{Duration, Instant};

use enisle_net::plan::Range;
use enisle_net::policy::{PolicySpec, compile};
use enisle_net::{Engine, EngineConfig, Limits, Slot, SlotSpec, WarmSpec};
use enisle_testkit::World;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let count = std::env::args().nth(1).map_or(Ok(256), |n| n.parse::<usize>())?;
    let world = World::new()?;
    let range: Range = "10.99.0.0/16".parse()?;
    let config = EngineConfig { scope: "00000001".parse()?, ranges: vec![range] };
    let start = Instant::now();
    let engine = world.host.run(|| Engine::open(config))?;
    println!("open             {:>8.2} ms", ms(start.elapsed()));

    let policy = compile(&PolicySpec::default())?;
    let mut slots: Vec<Slot> = Vec::with_capacity(count);
    let mut create = Vec::with_capacity(count);
    for block in range.blocks().take(count) {
        let spec = SlotSpec {
            block,
            vm_name: "agents-1",
            mtu: 1500,
            policy: &policy,
            tap_owner: (0, 0),
            limits: Limits::default(),
        };
        let start = Instant::now();
        slots.push(engine.create(&spec)?);
        create.push(start.elapsed());
    }
    print("create", create)?;
    let mut claim = Vec::with_capacity(count);
    for block in range.blocks().skip(count).take(count.min(256)) {
        let spec = WarmSpec { block, mtu: 1500, tap_owner: (0, 0), limits: Limits::default() };
        let warm = engine.prepare(&spec)?;
        let start = Instant::now();
        let slot = engine.claim(warm, "agents-1", &policy)?;
        claim.push(start.elapsed());
        engine.remove(slot)?;
    }
    print("claim", claim)?;

    let other = compile(&PolicySpec { drop: vec!["8.8.8.0/24".parse()?], allow: Vec::new() })?;
    let mut switch = Vec::with_capacity(count);
    for slot in &slots {
        let start = Instant::now();
        engine.set_policy(slot, &other)?;
        switch.push(start.elapsed());
    }
    print("set_policy", switch)?;

    let start = Instant::now();
    engine.refresh()?;
    println!("refresh          {:>8.2} ms with {count} slots", ms(start.elapsed()));

    let half = slots.split_off(count / 2);
    let mut remove = Vec::with_capacity(count);
    for slot in slots {
        let start = Instant::now();
        engine.remove(slot)?;
        remove.push(start.elapsed());
    }
    print("remove", remove)?;

    let (start, left) = (Instant::now(), half.len());
    std::thread::scope(|scope| {
        let workers: Vec<_> = half
            .into_iter()
            .map(|slot| scope.spawn(|| engine.remove(slot).map_err(io::Error::other)))
            .collect();
        workers.into_iter().try_for_each(|w| w.join().unwrap_or_else(|p| std::panic::resume_unwind(p)))
    })?;
    println!("remove together  {:>8.2} ms for {left}", ms(start.elapsed()));
    engine.close()?;
    Ok(())
}

fn print(what: &str, mut times: Vec<Duration>) -> Result<(), &'static str> {
    times.sort_unstable();
    let at = |share: usize| times.get(times.len() * share / 100).copied().ok_or("nothing was measured");
    println!("{what:<16} {:>8.2} ms p50 {:>8.2} ms p95", ms(at(50)?), ms(at(95)?));
    Ok(())
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
