//! Tier 0b: every call of every operation fails once, against the kernel in memory; the end state
//! is empty or complete, never between.

use std::sync::{Arc, mpsc};

use crate::bridge::Bridge;
use crate::engine::{Engine, EngineConfig};
use crate::error::NetError;
use crate::kernel::fake::{Fake, State};
use crate::limits::Limits;
use crate::plan::{Block, Range};
use crate::policy::{CompiledPolicy, PolicySpec, compile};
use crate::scope::Scope;
use crate::slot::SlotSpec;

fn range() -> Range {
    "169.254.100.0/22".parse().unwrap()
}

fn block(i: u32) -> Block {
    range().block(i).unwrap()
}

fn policy(allow: &[&str]) -> CompiledPolicy {
    let allow = allow.iter().map(|r| r.parse().unwrap()).collect();
    compile(&PolicySpec { drop: Vec::new(), allow }).unwrap()
}

fn open(kernel: &Arc<Fake>) -> Result<Engine, NetError> {
    let kernel = Arc::clone(kernel);
    Engine::open_on(kernel, EngineConfig { scope: Scope::new(7), ranges: vec![range()] }, &[])
}

fn spec<'a>(i: u32, policy: &'a CompiledPolicy) -> SlotSpec<'a> {
    SlotSpec {
        block: block(i),
        vm_name: "agents-1",
        mtu: 1500,
        policy,
        tap_owner: (1, 1),
        limits: Limits { mbit_up: Some(10), mbit_down: Some(100), ..Limits::default() },
    }
}

/// What remains of the maps is nobody's business once the engine is gone: they go with it.
fn without_host_map(mut state: State) -> State {
    state.hosts.clear();
    state
}

/// Runs `work` on fresh engines, once for each call it makes, that call refused.
fn refused_once(
    prepare: impl Fn(&Engine),
    work: impl Fn(&Engine) -> bool,
    check: impl Fn(&Engine, &Fake, &State, &State, bool, u32),
) {
    let fresh = || {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        prepare(&engine);
        (kernel, engine)
    };
    let (kernel, engine) = fresh();
    kernel.refuse([]);
    assert!(work(&engine), "without a fault it works");
    let complete = kernel.state();
    let calls = kernel.calls();
    assert!(calls > 0);
    for n in 1..=calls {
        let (kernel, engine) = fresh();
        let before = kernel.state();
        kernel.refuse([n]);
        let worked = work(&engine);
        kernel.refuse([]);
        check(&engine, &kernel, &before, &complete, worked, n);
    }
}

#[test]
fn an_engine_opens_whole_or_not_at_all() {
    let kernel = Arc::new(Fake::with_uplink());
    let empty = kernel.state();
    open(&kernel).unwrap().close().unwrap();
    assert_eq!(without_host_map(kernel.state()), empty);
    let kernel = Arc::new(Fake::with_uplink());
    drop(open(&kernel).unwrap());
    for n in 1..=kernel.calls() {
        let kernel = Arc::new(Fake::with_uplink());
        kernel.refuse([n]);
        assert!(open(&kernel).is_err(), "call {n}");
        assert_eq!(without_host_map(kernel.state()), empty, "call {n}");
    }
}

#[test]
fn a_slot_is_made_whole_or_not_at_all() {
    let policy = policy(&["192.168.1.10:5432", "10.1.0.0/16"]);
    let other = compile(&PolicySpec::default()).unwrap();
    refused_once(
        |engine| std::mem::forget(engine.create(&spec(9, &other)).unwrap()),
        |engine| engine.create(&spec(0, &policy)).map(std::mem::forget).is_ok(),
        |engine, kernel, before, complete, worked, n| {
            let state = kernel.state();
            if worked {
                assert_eq!(&state.slots, &complete.slots, "call {n}");
                return;
            }
            assert_eq!(&state, before, "call {n}");
            // And the block is free.
            assert!(engine.create(&spec(0, &policy)).map(std::mem::forget).is_ok(), "call {n}");
        },
    );
}

#[test]
fn a_warm_slot_is_made_whole_or_not_at_all_and_can_be_discarded() {
    let policy = policy(&[]);
    refused_once(
        |_| (),
        |engine| engine.prepare(&spec(0, &policy).warm()).map(std::mem::forget).is_ok(),
        |engine, kernel, before, complete, worked, n| {
            assert!(!worked, "call {n}");
            assert_eq!(&kernel.state(), before, "call {n}");
            let warm = engine.prepare(&spec(0, &policy).warm()).unwrap();
            assert_eq!(kernel.state().links, complete.links, "call {n}");
            assert!(kernel.state().slots.is_empty(), "call {n}: it is judged for nobody");
            let taken = engine.create(&spec(0, &policy));
            assert!(matches!(taken, Err(NetError::BlockTaken(_))), "call {n}");
            engine.discard(warm).unwrap();
            assert_eq!(&kernel.state(), before, "call {n}");
        },
    );
}

#[test]
fn a_claimed_slot_is_what_a_made_one_is() {
    let policy = policy(&["192.168.1.10:5432"]);
    let claim = |engine: &Engine| {
        let warm = engine.prepare(&spec(0, &policy).warm()).unwrap();
        engine.claim(warm, "agents-1", &policy)
    };
    let made = {
        let kernel = Arc::new(Fake::with_uplink());
        std::mem::forget(open(&kernel).unwrap().create(&spec(0, &policy)).unwrap());
        kernel.state()
    };
    let kernel = Arc::new(Fake::with_uplink());
    let engine = open(&kernel).unwrap();
    let warm = engine.prepare(&spec(0, &policy).warm()).unwrap();
    kernel.refuse([]);
    let slot = engine.claim(warm, "agents-1", &policy).unwrap();
    let calls = kernel.calls();
    engine.name(&slot, "agents-1").unwrap();
    std::mem::forget(slot);
    let claimed = kernel.state();
    // But for the tenant's number, which is never used again.
    let mut slots = claimed.slots.clone();
    for (id, slot) in &mut slots {
        let of_made = made.slots[id].tenant;
        assert_ne!(std::mem::replace(&mut slot.tenant, of_made), of_made);
    }
    assert_eq!((&claimed.links, &slots, &claimed.tables), (&made.links, &made.slots, &made.tables));
    for n in 1..=calls {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        let empty = kernel.state();
        let warm = engine.prepare(&spec(0, &policy).warm()).unwrap();
        kernel.refuse([n]);
        let failed = engine.claim(warm, "agents-1", &policy);
        kernel.refuse([]);
        assert!(failed.is_err(), "call {n}");
        assert_eq!(kernel.state(), empty, "call {n}");
        assert!(claim(&engine).map(std::mem::forget).is_ok(), "call {n}: the block is free");
    }
}

#[test]
fn what_removal_leaves_is_named_kept_from_others_and_reclaimed() {
    let policy = policy(&["192.168.1.10:5432"]);
    let pristine = Arc::new(Fake::with_uplink());
    let engine = open(&pristine).unwrap();
    let empty = pristine.state();
    drop(engine);
    let kernel = Arc::new(Fake::with_uplink());
    let engine = open(&kernel).unwrap();
    let slot = engine.create(&spec(0, &policy)).unwrap();
    kernel.refuse([]);
    engine.remove(slot).unwrap();
    assert_eq!(kernel.state(), empty);
    for n in 1..=kernel.calls() {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        let slot = engine.create(&spec(0, &policy)).unwrap();
        kernel.refuse([n]);
        let error = engine.remove(slot).unwrap_err();
        kernel.refuse([]);
        assert_eq!(error.left().len(), 1, "call {n}: {error}");
        assert!(error.to_string().contains("left behind"), "{error}");
        let taken = engine.create(&spec(0, &policy));
        assert!(matches!(taken, Err(NetError::BlockTaken(_))), "call {n}");
        assert_eq!(engine.reclaim().unwrap(), 1, "call {n}");
        let mut state = kernel.state();
        // Rows of a policy nobody has any more only take room.
        state.addresses.clear();
        state.ports.clear();
        assert_eq!(state, empty, "call {n}");
        assert!(engine.create(&spec(0, &policy)).map(std::mem::forget).is_ok(), "call {n}");
    }
}

#[test]
fn a_slot_is_taken_back_whole_or_taken_away() {
    let policy = policy(&["192.168.1.10:5432"]);
    let unshaped = SlotSpec { limits: Limits::default(), ..spec(0, &policy) };
    let fresh = || {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        let empty = kernel.state();
        let slot = engine.create(&unshaped).unwrap();
        (kernel, engine, empty, slot)
    };
    let (kernel, engine, empty, slot) = fresh();
    kernel.refuse([]);
    let warm = engine.recycle(slot, |_| panic!("it does not go")).unwrap();
    let calls = kernel.calls();
    assert!(kernel.state().slots.is_empty(), "it is judged for nobody");
    let taken = engine.create(&unshaped);
    assert!(matches!(taken, Err(NetError::BlockTaken(_))));
    let slot = engine.claim(warm, "agents-2", &policy).unwrap();
    assert!(kernel.state().slots.contains_key(&block(0).id()));
    engine.remove(slot).unwrap();
    assert_eq!(kernel.state(), empty);
    for n in 1..=calls {
        let (kernel, engine, empty, slot) = fresh();
        let (tell, told) = mpsc::channel();
        kernel.refuse([n]);
        let error = engine.recycle(slot, move |gone| tell.send(gone).unwrap()).unwrap_err();
        kernel.refuse([]);
        assert!(matches!(error, NetError::Unclean { .. }), "call {n}: {error}");
        assert!(kernel.state().slots.is_empty() || n == 1, "call {n}: not cut off");
        assert!(told.try_recv().is_err(), "call {n}: told before it was gone");
        assert!(engine.see_off(), "call {n}");
        told.try_recv().unwrap().unwrap();
        let mut state = kernel.state();
        // Rows of a policy nobody has any more only take room.
        state.addresses.clear();
        state.ports.clear();
        assert_eq!(state, empty, "call {n}");
        assert!(engine.create(&unshaped).map(std::mem::forget).is_ok(), "call {n}: the block is not free");
    }
}

#[test]
fn slots_that_go_together_do_not_share_a_failure() {
    let policy = policy(&["10.1.0.0/16"]);
    let fresh = || {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        let empty = kernel.state();
        let (tell, told) = mpsc::channel();
        for i in 0..3 {
            let (slot, tell) = (engine.create(&spec(i, &policy)).unwrap(), tell.clone());
            engine.hand_over(slot, move |gone| tell.send((i, gone)).unwrap());
        }
        (kernel, engine, empty, told)
    };
    let (kernel, engine, empty, told) = fresh();
    assert!(kernel.state().slots.is_empty(), "cut off at once");
    assert_eq!(told.try_iter().count(), 0, "but not gone");
    kernel.refuse([]);
    assert!(engine.see_off());
    assert!(told.try_iter().all(|(_, gone)| gone.is_ok()));
    assert_eq!(kernel.state(), empty);
    for n in 1..=kernel.calls() {
        let (kernel, engine, empty, told) = fresh();
        kernel.refuse([n]);
        assert!(engine.see_off());
        kernel.refuse([]);
        let gone: Vec<_> = told.try_iter().collect();
        assert_eq!(gone.len(), 3, "call {n}");
        let stuck = gone.iter().filter(|(_, gone)| gone.is_err()).count();
        assert!(stuck <= 1, "call {n}: {gone:?}");
        assert_eq!(engine.reclaim().unwrap(), stuck, "call {n}");
        let mut state = kernel.state();
        state.addresses.clear();
        state.ports.clear();
        assert_eq!(state, empty, "call {n}");
    }
    engine.stop_waiting();
    assert!(!engine.see_off(), "nobody is left");
}

#[test]
fn a_policy_changes_whole_or_not_at_all() {
    let (old, new) = (policy(&["10.1.0.0/16"]), policy(&["192.168.1.10:1-1000/tcp"]));
    let kernel = Arc::new(Fake::with_uplink());
    let engine = open(&kernel).unwrap();
    let slot = engine.create(&spec(0, &old)).unwrap();
    kernel.refuse([]);
    engine.set_policy(&slot, &new).unwrap();
    let complete = kernel.state();
    for n in 1..=kernel.calls() {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        let slot = engine.create(&spec(0, &old)).unwrap();
        let before = kernel.state();
        kernel.refuse([n]);
        let changed = engine.set_policy(&slot, &new);
        kernel.refuse([]);
        let state = kernel.state();
        let id = state.slots[&block(0).id()].policy;
        let mine = |s: &State| {
            let rows: Vec<_> = s.addresses.iter().filter(|(p, _)| *p == id).map(|(_, e)| *e).collect();
            let ports: Vec<_> = s.ports.iter().filter(|(p, _)| *p == id).map(|(_, r)| *r).collect();
            (rows, ports)
        };
        match changed {
            Err(_) => assert_eq!(mine(&state), mine(&before), "call {n}"),
            // In force, whatever came after it.
            Ok(()) => assert_eq!(mine(&state), mine(&complete), "call {n}"),
        }
    }
}

#[test]
fn several_policies_change_all_or_none() {
    let old = policy(&["10.1.0.0/16"]);
    let new = [policy(&["192.168.1.10:1-1000/tcp"]), policy(&[]), policy(&["192.168.1.10:1-1000/tcp"])];
    let fresh = || {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        let slots: Vec<_> = (0..3).map(|i| engine.create(&spec(i, &old)).unwrap()).collect();
        (kernel, engine, slots)
    };
    let set = |engine: &Engine, slots: &[crate::slot::Slot]| {
        let changes: Vec<_> = slots.iter().zip(&new).collect();
        engine.set_policies(&changes)
    };
    let (kernel, engine, slots) = fresh();
    kernel.refuse([]);
    set(&engine, &slots).unwrap();
    let (mut refused, calls) = (0, kernel.calls());
    for n in 1..=calls {
        let (kernel, engine, slots) = fresh();
        kernel.refuse([n]);
        let done = set(&engine, &slots);
        kernel.refuse([]);
        refused += u32::from(done.is_err());
        for (slot, new) in slots.iter().zip(&new) {
            let (right, wrong) = if done.is_ok() { (new, &old) } else { (&old, new) };
            assert_eq!(engine.compare(slot, right).unwrap(), Vec::<String>::new(), "call {n}");
            assert_ne!(engine.compare(slot, wrong).unwrap(), Vec::<String>::new(), "call {n}");
        }
        // Nothing is stuck: it works the next time.
        set(&engine, &slots).unwrap();
        assert_eq!(engine.compare(&slots[0], &new[0]).unwrap(), Vec::<String>::new(), "call {n}");
    }
    assert!(refused > 10 && refused < calls, "{refused} of {calls}");
}

#[test]
fn a_slot_is_adopted_whole_or_taken_away() {
    let policy = policy(&["192.168.1.10:5432", "10.1.0.0/16"]);
    // A daemon that died: its maps went with it, links and table stay.
    let crashed = || {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        std::mem::forget(engine.create(&spec(0, &policy)).unwrap());
        kernel.lose_maps();
        kernel
    };
    let beside = |kernel: &Arc<Fake>| {
        let config = EngineConfig { scope: Scope::new(7), ranges: vec![range()] };
        Engine::open_on(Arc::<Fake>::clone(kernel), config, &[(block(0), Limits::default())]).unwrap()
    };
    let netns = || std::fs::File::open("/dev/null").unwrap().into();
    let kernel = crashed();
    let engine = beside(&kernel);
    kernel.refuse([]);
    std::mem::forget(engine.adopt(&spec(0, &policy), netns()).unwrap());
    let (complete, calls) = (kernel.state(), kernel.calls());
    assert!(complete.slots.contains_key(&block(0).id()));
    for n in 1..=calls {
        let kernel = crashed();
        let engine = beside(&kernel);
        kernel.refuse([n]);
        let adopted = engine.adopt(&spec(0, &policy), netns());
        kernel.refuse([]);
        assert!(adopted.is_err(), "call {n}");
        let state = kernel.state();
        assert!(!state.links.contains_key(&block(0).host_ifindex()), "call {n}: not cut off");
        assert!(state.slots.is_empty() && state.addresses.is_empty() && state.ports.is_empty(), "call {n}");
        assert!(engine.create(&spec(0, &policy)).map(std::mem::forget).is_ok(), "call {n}: not free");
    }
}

#[test]
fn a_repair_that_fails_anywhere_is_finished_by_the_next() {
    let policy = policy(&[]);
    let broken = || {
        let kernel = Arc::new(Fake::with_uplink());
        let engine = open(&kernel).unwrap();
        std::mem::forget(engine.create(&spec(0, &policy)).unwrap());
        let right = kernel.state();
        kernel.interfere(|state| {
            state.tables.clear();
            state.links.values_mut().for_each(|link| link.forwarding = false);
        });
        kernel.refuse([]);
        (kernel, engine, right)
    };
    let (kernel, engine, right) = broken();
    engine.refresh().unwrap();
    assert_eq!(kernel.state().tables, right.tables);
    assert!(kernel.state().links.values().all(|link| link.forwarding));
    let calls = kernel.calls();
    for n in 1..=calls {
        let (kernel, engine, right) = broken();
        kernel.refuse([n]);
        // A slot's interface that cannot be put right is only told of.
        let _ = engine.refresh();
        kernel.refuse([]);
        engine.refresh().unwrap();
        assert_eq!(kernel.state().tables, right.tables, "call {n}");
        assert!(kernel.state().links.values().all(|link| link.forwarding), "call {n}");
    }
}

#[test]
fn slots_with_equal_policies_share_one_copy() {
    let kernel = Arc::new(Fake::with_uplink());
    let engine = open(&kernel).unwrap();
    let slots: Vec<_> = (0..3).map(|i| engine.create(&spec(i, &policy(&["10.1.0.0/16"]))).unwrap()).collect();
    let rows = kernel.state().addresses.len();
    assert_eq!(rows, policy(&["10.1.0.0/16"]).entries().len());
    for slot in slots {
        engine.remove(slot).unwrap();
    }
    assert!(kernel.state().addresses.is_empty());
}

#[test]
fn a_refusal_names_step_and_cause() {
    let kernel = Arc::new(Fake::with_uplink());
    let engine = open(&kernel).unwrap();
    kernel.refuse([4]);
    let error = engine.create(&spec(0, &policy(&[]))).unwrap_err();
    assert_eq!(error.to_string(), "cannot make the slot of `agents-1` (169.254.100.0/30)");
    let mut chain = Vec::new();
    let mut source = std::error::Error::source(&error);
    while let Some(e) = source {
        chain.push(e.to_string());
        source = e.source();
    }
    assert_eq!(chain[..2], ["the veth pair", "create_veth"]);
}

fn bridge() -> Bridge {
    Bridge {
        name: "lab0".into(),
        gateway: "10.77.0.1/24".parse().unwrap(),
        range: "10.77.0.128/25".parse().unwrap(),
        isolate_ports: true,
        uplink: None,
        route_between: false,
    }
}

fn open_bridged(kernel: &Arc<Fake>) -> Result<Engine, NetError> {
    let ranges = vec![range(), bridge().range];
    let kernel = Arc::clone(kernel);
    Engine::open_among(kernel, EngineConfig { scope: Scope::new(7), ranges }, vec![bridge()], &[])
}

#[test]
fn an_engine_with_a_bridge_opens_whole_or_not_at_all() {
    let kernel = Arc::new(Fake::with_uplink());
    let empty = kernel.state();
    let engine = open_bridged(&kernel).unwrap();
    let made = kernel.state();
    assert!(made.links.values().any(|link| link.name == "lab0" && link.is_bridge));
    assert!(made.host_addresses.iter().any(|address| address.net == bridge().gateway));
    engine.close().unwrap();
    assert_eq!(without_host_map(kernel.state()), empty);
    let kernel = Arc::new(Fake::with_uplink());
    drop(open_bridged(&kernel).unwrap());
    for n in 1..=kernel.calls() {
        let kernel = Arc::new(Fake::with_uplink());
        kernel.refuse([n]);
        assert!(open_bridged(&kernel).is_err(), "call {n}");
        assert_eq!(without_host_map(kernel.state()), empty, "call {n}");
    }
}

#[test]
fn a_slot_on_a_bridge_is_made_whole_or_not_at_all() {
    let policy = policy(&[]);
    let on_bridge = || SlotSpec { block: bridge().range.block(0).unwrap(), ..spec(0, &policy) };
    let kernel = Arc::new(Fake::with_uplink());
    let engine = open_bridged(&kernel).unwrap();
    let before = kernel.state();
    kernel.refuse([]);
    let slot = engine.create(&on_bridge()).unwrap();
    let calls = kernel.calls();
    let of_slot = |state: &State| state.links.get(&slot.block().host_ifindex()).cloned().unwrap();
    let lab0 = before.links.values().find(|link| link.name == "lab0").unwrap().index;
    let port = of_slot(&kernel.state());
    assert_eq!((port.master, port.isolated_port, port.forwarding), (Some(lab0), true, false));
    engine.remove(slot).unwrap();
    assert_eq!(kernel.state(), before);
    for n in 1..=calls {
        kernel.refuse([n]);
        let made = engine.create(&on_bridge());
        kernel.refuse([]);
        match made {
            Ok(slot) => engine.remove(slot).unwrap(),
            Err(error) => assert!(error.left().is_empty(), "call {n}: {error}"),
        }
        assert_eq!(kernel.state(), before, "call {n}");
    }
}
