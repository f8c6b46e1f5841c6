//! Two hands on one block: whoever comes second waits for the first.

use super::*;
use enisle_net::Limits;
use enisle_net::plan::Range;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(60);
const QUIET: Duration = Duration::from_millis(100);

fn spec(i: u32) -> WarmSpec {
    let range: Range = "169.254.100.0/22".parse().unwrap();
    WarmSpec { block: range.block(i).unwrap(), mtu: 1500, tap_owner: (1, 1), limits: Limits::default() }
}

/// A maker each of whose works can be held up: it says that it has begun, and waits to be let go.
struct Slow {
    begun: SyncSender<Block>,
    go_on: Mutex<Receiver<()>>,
    made: Mutex<BTreeSet<Block>>,
}

impl Slow {
    fn hold(&self, block: Block) {
        self.begun.send(block).unwrap();
        self.go_on.lock().unwrap().recv_timeout(LIMIT).unwrap();
    }
}

impl Maker for Slow {
    type Slot = Block;

    fn prepare(&self, spec: &WarmSpec) -> Result<Block, NetError> {
        self.hold(spec.block);
        let new = self.made.lock().unwrap().insert(spec.block);
        if new { Ok(spec.block) } else { Err(NetError::BlockTaken(spec.block)) }
    }

    fn discard(&self, slot: Block) -> Result<(), NetError> {
        self.hold(slot);
        assert!(self.made.lock().unwrap().remove(&slot), "{slot} is not there");
        Ok(())
    }
}

struct Bench {
    warm: Arc<Warm<Block>>,
    maker: Arc<Slow>,
    begun: Receiver<Block>,
    go_on: SyncSender<()>,
}

impl Bench {
    fn new() -> Bench {
        let (begun, told) = sync_channel(16);
        let (go_on, waits) = sync_channel(16);
        let maker = Slow { begun, go_on: Mutex::new(waits), made: Mutex::default() };
        Bench { warm: Arc::default(), maker: Arc::new(maker), begun: told, go_on }
    }

    /// Runs something that works on blocks, on a thread of its own; tells when it is over.
    fn run<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Warm<Block>, &Slow) -> T + Send + 'static,
    ) -> Receiver<T> {
        let (over, told) = sync_channel(1);
        let (warm, maker) = (Arc::clone(&self.warm), Arc::clone(&self.maker));
        std::thread::spawn(move || over.send(work(&warm, &maker)));
        told
    }

    fn fill(&self, specs: Vec<WarmSpec>) -> Receiver<bool> {
        self.run(move |warm, maker| warm.fill(maker, &Wanted { next: specs, later: Vec::new() }).is_ok())
    }

    /// What a VM finds on its block.
    fn want(&self, block: Block) -> Receiver<Option<Block>> {
        self.run(move |warm, _| warm.want(block).1)
    }

    fn begins(&self) -> Block {
        self.begun.recv_timeout(LIMIT).unwrap()
    }

    /// With one slot that is ready.
    fn with_one() -> (Bench, WarmSpec) {
        let (bench, spec) = (Bench::new(), spec(0));
        let filled = bench.fill(vec![spec]);
        assert_eq!(bench.begins(), spec.block);
        bench.go_on.send(()).unwrap();
        assert!(filled.recv_timeout(LIMIT).unwrap());
        (bench, spec)
    }
}

fn waits<T: std::fmt::Debug + PartialEq>(told: &Receiver<T>) {
    assert_eq!(told.recv_timeout(QUIET), Err(RecvTimeoutError::Timeout), "it did not wait");
}

#[test]
fn a_slot_that_is_ready_is_its_vms_at_once() {
    let (bench, spec) = Bench::with_one();
    assert_eq!(bench.want(spec.block).recv_timeout(LIMIT), Ok(Some(spec.block)));
    assert_eq!(bench.want(spec.block).recv_timeout(LIMIT), Ok(None), "and nobody else's");
}

#[test]
fn a_vm_gets_the_slot_that_is_just_being_made() {
    let (bench, spec) = (Bench::new(), spec(0));
    let filled = bench.fill(vec![spec]);
    bench.begins();
    let found = bench.want(spec.block);
    waits(&found);
    bench.go_on.send(()).unwrap();
    assert_eq!(found.recv_timeout(LIMIT), Ok(Some(spec.block)));
    assert!(filled.recv_timeout(LIMIT).unwrap());
}

#[test]
fn a_vm_waits_while_the_slot_on_its_block_is_taken_away() {
    let (bench, spec) = Bench::with_one();
    let emptied = bench.fill(Vec::new());
    assert_eq!(bench.begins(), spec.block, "it is taken away");
    let found = bench.want(spec.block);
    waits(&found);
    bench.go_on.send(()).unwrap();
    assert_eq!(found.recv_timeout(LIMIT), Ok(None));
    assert!(bench.maker.made.lock().unwrap().is_empty(), "the block is free by then");
    assert!(emptied.recv_timeout(LIMIT).unwrap());
}

#[test]
fn nothing_is_made_while_a_vm_waits_for_its_slot() {
    let bench = Bench::new();
    let (wanted, none) = bench.warm.want(spec(7).block);
    assert_eq!(none, None);
    let filled = bench.fill(vec![spec(0)]);
    waits(&filled);
    assert!(bench.begun.try_recv().is_err());
    drop(wanted);
    bench.begins();
    bench.go_on.send(()).unwrap();
    assert!(filled.recv_timeout(LIMIT).unwrap());
}

#[test]
fn closing_waits_for_what_is_under_way_and_leaves_none() {
    for under_way in [vec![spec(0), spec(1)], Vec::new()] {
        let (bench, _) = Bench::with_one();
        let filled = bench.fill(under_way);
        bench.begins();
        let closed = bench.run(|warm, maker| warm.close(maker).is_ok());
        waits(&closed);
        for _ in 0..4 {
            bench.go_on.send(()).unwrap();
        }
        assert_eq!(closed.recv_timeout(LIMIT), Ok(true));
        assert!(filled.recv_timeout(LIMIT).unwrap());
        assert!(bench.maker.made.lock().unwrap().is_empty());
        assert!(!bench.warm.due(), "it is over");
        assert!(bench.fill(vec![spec(3)]).recv_timeout(LIMIT).unwrap());
        assert!(bench.maker.made.lock().unwrap().is_empty(), "nothing is made afterwards");
    }
}

#[test]
fn work_that_panics_keeps_nobody_waiting() {
    let (bench, spec) = Bench::with_one();
    let emptied = bench.fill(Vec::new());
    bench.begins();
    // What it is about to take away is gone: it panics.
    bench.maker.made.lock().unwrap().clear();
    bench.go_on.send(()).unwrap();
    assert_eq!(emptied.recv_timeout(LIMIT), Err(RecvTimeoutError::Disconnected));
    assert_eq!(bench.want(spec.block).recv_timeout(LIMIT), Ok(None));
}
