//! The queue with memory that a test gives it: who starts, who waits and what for.

use super::*;
use futures_util::FutureExt;

fn plenty() -> Option<Memory> {
    Some(Memory { total: 100_000, available: 100_000 })
}

/// Room for two of 1,000 MiB that have not touched their memory yet, and not for three.
fn scarce() -> Option<Memory> {
    Some(Memory { total: 4_000, available: 2_256 })
}

fn taken(place: &mut Place) -> Option<Turn> {
    place.turn().now_or_never().flatten()
}

#[test]
fn so_many_start_at_once_and_the_others_come_in_their_order() {
    let queue = Queue::new(2, plenty);
    let mut places: Vec<Place> = (0..5).map(|_| queue.enter(512).unwrap()).collect();
    let mut turns: Vec<Option<Turn>> = places.iter_mut().map(taken).collect();
    assert_eq!(turns.iter().map(Option::is_some).collect::<Vec<_>>(), [true, true, false, false, false]);
    assert_eq!(places[1].ticket().waiting(), None);
    assert_eq!(places[2].ticket().waiting(), Some(Waiting::Next { starting: 2 }));
    assert_eq!(places[4].ticket().waiting(), Some(Waiting::Behind { before: 2, starting: 2 }));
    // One is ready, one fails: each lets in exactly the next.
    turns[0].as_mut().unwrap().settle();
    let third = taken(&mut places[2]);
    assert!(third.is_some() && taken(&mut places[3]).is_none());
    turns[1] = None;
    assert!(taken(&mut places[3]).is_some(), "and given back at once");
    assert!(taken(&mut places[4]).is_some());
}

#[test]
fn who_leaves_is_not_waited_for_also_with_a_turn_it_never_took() {
    let queue = Queue::new(1, plenty);
    let first = queue.enter(1).unwrap();
    let second = queue.enter(1).unwrap();
    let mut third = queue.enter(1).unwrap();
    drop(second);
    assert_eq!(third.ticket().waiting(), Some(Waiting::Next { starting: 1 }));
    // It had its turn and never asked.
    drop(first);
    assert!(taken(&mut third).is_some());
    assert!(queue.lock().starting.is_empty() && queue.lock().waiting.is_empty() && queue.lock().living == 0);
}

#[test]
fn memory_that_is_promised_is_waited_for_and_nobody_is_overtaken() {
    let queue = Queue::new(9, scarce);
    let (mut a, mut b, mut c) =
        (queue.enter(1_000).unwrap(), queue.enter(1_000).unwrap(), queue.enter(1_000).unwrap());
    let mut small = queue.enter(64).unwrap();
    let (first, second) = (taken(&mut a), taken(&mut b));
    assert!(first.is_some() && second.is_some());
    assert!(taken(&mut c).is_none(), "2,000 of 2,000 MiB are promised");
    let why = c.ticket().waiting().unwrap();
    assert_eq!(why, Waiting::Memory { asked: 1_000, free: 0 });
    assert!(why.to_string().contains("1000 MiB of memory are asked for, 0 MiB are free"), "{why}");
    assert!(taken(&mut small).is_none(), "it would fit, and comes later");
    drop(first);
    assert!(taken(&mut c).is_some());
    assert!(taken(&mut small).is_some());
}

#[test]
fn what_lives_can_end_a_wait_and_nothing_else_does() {
    fn none() -> Option<Memory> {
        Some(Memory { total: 4_000, available: 300 })
    }
    let queue = Queue::new(9, none);
    let living = queue.of_living();
    let mut place = queue.enter(512).unwrap();
    assert!(taken(&mut place).is_none(), "its deletion would free memory");
    drop(living);
    assert!(taken(&mut place).is_some(), "nothing of ours will free any more");
}

#[test]
fn what_can_never_fit_is_refused_with_figures() {
    let queue = Queue::new(9, scarce);
    let refused = queue.enter(3_745).err().unwrap().to_string();
    assert!(refused.contains("3745 MiB") && refused.contains("4000 MiB"), "{refused}");
    assert!(queue.enter(3_744).is_ok());
    assert!(Queue::new(9, || None).enter(u64::from(u32::MAX)).is_ok(), "where nothing is known");
}

#[test]
fn this_machines_memory_is_read() {
    let memory = this_host().unwrap();
    assert!(memory.total >= memory.available && memory.available > 0, "{memory:?}");
    assert_eq!(parse("MemTotal: 2048 kB\nMemFree: 1 kB\n"), None);
    let both = "MemTotal:        2048 kB\nMemAvailable:    1024 kB\n";
    assert_eq!(parse(both), Some(Memory { total: 2, available: 1 }));
}
