//! Numbers, bounds, and what is missed.

use super::*;

fn adopted(vm: usize) -> EventKind {
    EventKind::VmAdopted { vm: vm.to_string(), group: "g".into() }
}

fn numbers(batch: &[Event]) -> Vec<u64> {
    batch.iter().map(|event| event.seq).collect()
}

fn all(mut reader: Reader) -> Vec<Event> {
    std::iter::from_fn(|| Some(reader.batch()).filter(|batch| !batch.is_empty())).flatten().collect()
}

#[test]
fn a_reader_gets_what_came_after_its_number() {
    let events = Arc::new(Events::new(3));
    let base = 3 << 32;
    assert_eq!(all(events.reader(None, None)), []);
    assert_eq!(all(events.reader(Some(0), None)), []);
    for n in 0..3 {
        events.tell(adopted(n));
    }
    assert_eq!(numbers(&all(events.reader(None, None))), [base + 1, base + 2, base + 3]);
    assert_eq!(numbers(&all(events.reader(Some(0), None))), [base + 1, base + 2, base + 3]);
    assert_eq!(numbers(&all(events.reader(Some(base + 2), None))), [base + 3]);
    assert_eq!(all(events.reader(Some(base + 3), None)), []);
}

#[test]
fn what_a_reader_missed_is_counted_exactly_and_each_is_missed_or_read() {
    let events = Arc::new(Events::new(1));
    let base = 1u64 << 32;
    let mut slow = events.reader(None, None);
    for n in 0..KEPT + 10 {
        events.tell(adopted(n));
    }
    let first = slow.batch();
    assert_eq!(first[0].what, EventKind::Dropped { count: 10, other_run: false });
    assert_eq!(first[0].seq, base + 10, "going on from there misses no more");
    let read = first.len() - 1 + all(slow).len();
    assert_eq!(read, KEPT);
    assert_eq!(events.counts(), (BTreeMap::from([("vm_adopted", KEPT as u64 + 10)]), 10));
    let old = all(events.reader(Some(base + 4), None));
    assert_eq!(old[0].what, EventKind::Dropped { count: 6, other_run: false });
    assert_eq!(old.len(), 1 + KEPT);
    assert_eq!(all(events.reader(None, None)).len(), KEPT, "who asks for what is kept misses nothing");
}

#[test]
fn a_number_of_another_run_is_noticed_also_when_nothing_has_happened_since() {
    let events = Arc::new(Events::new(2));
    let dropped = EventKind::Dropped { count: 0, other_run: true };
    for since in [(1 << 32) + 5, (9 << 32) + 1] {
        let batch = all(events.reader(Some(since), None));
        assert_eq!((batch.len(), &batch[0].what), (1, &dropped));
        assert_eq!(all(events.reader(Some(batch[0].seq), None)), []);
    }
}

#[test]
fn a_long_reason_is_cut_between_characters() {
    let events = Arc::new(Events::new(1));
    let reason = "ü".repeat(2000);
    events.tell(EventKind::VmFailed { vm: "a".into(), group: "g".into(), reason });
    let EventKind::VmFailed { reason, .. } = &all(events.reader(None, None))[0].what else {
        panic!("another")
    };
    assert_eq!(reason.chars().count(), 513);
}

#[tokio::test]
async fn who_follows_is_woken_and_ends_with_the_daemon() {
    let events = Arc::new(Events::new(1));
    let mut reader = events.reader(None, None);
    let waiting = tokio::spawn(async move {
        let first = reader.next().await;
        (first, reader.next().await)
    });
    tokio::task::yield_now().await;
    events.tell(adopted(1));
    tokio::task::yield_now().await;
    events.close();
    let (first, last) = waiting.await.unwrap();
    assert_eq!((first.unwrap().len(), last), (1, None));
}

fn refused(vm: &str) -> EventKind {
    EventKind::FlowsNotReported { vm: vm.into(), group: "g".into(), count: 1 }
}

fn of(events: &Arc<Events>, since: Option<u64>, only: EventFilter) -> Vec<Event> {
    all(events.reader(since, Some(only)))
}

/// Dropped events, and the others.
fn split(all: &[Event]) -> (u64, usize) {
    let dropped = all.iter().filter_map(|event| match event.what {
        EventKind::Dropped { count, .. } => Some(count),
        _ => None,
    });
    let notes = dropped.clone().count();
    (dropped.sum(), all.len() - notes)
}

#[test]
fn a_flood_of_refusals_pushes_no_other_event_out_and_is_missed_by_its_readers_only() {
    let events = Arc::new(Events::new(1));
    let mut slow = events.reader(None, None);
    let mut slow_life = events.reader(None, Some(EventFilter::Lifecycle));
    let mut slow_refused = events.reader(None, Some(EventFilter::Refused));
    for n in 0..10 {
        events.tell(adopted(n));
        for _ in 0..REFUSED_KEPT {
            events.tell(refused("loud"));
        }
    }
    let told = 10 * (REFUSED_KEPT as u64 + 1);
    for since in [None, Some(0), Some((1 << 32) + 1)] {
        let life = of(&events, since, EventFilter::Lifecycle);
        let begun = usize::from(since == Some((1 << 32) + 1));
        assert_eq!(
            split(&life),
            (0, 10 - begun),
            "{since:?}: the others are all there, and nothing is missed"
        );
    }
    assert_eq!(
        split(&of(&events, Some(0), EventFilter::Refused)),
        (told - 10 - REFUSED_KEPT as u64, REFUSED_KEPT)
    );
    assert_eq!(split(&of(&events, None, EventFilter::Refused)), (0, REFUSED_KEPT));
    let drain = |reader: &mut Reader| -> Vec<Event> {
        std::iter::from_fn(|| Some(reader.batch()).filter(|batch| !batch.is_empty())).flatten().collect()
    };
    let both = drain(&mut slow);
    let (dropped, kept) = split(&both);
    assert_eq!((dropped + kept as u64, kept), (told, 10 + REFUSED_KEPT), "each is read or counted");
    assert!(both.windows(2).all(|two| two[0].seq < two[1].seq), "in their order");
    assert_eq!(split(&drain(&mut slow_life)), (0, 10));
    assert_eq!(split(&drain(&mut slow_refused)), (told - 10 - REFUSED_KEPT as u64, REFUSED_KEPT));
    events.tell(refused("late"));
    assert_eq!(
        (drain(&mut slow).len(), drain(&mut slow_life).len(), drain(&mut slow_refused).len()),
        (1, 0, 1)
    );
}

#[test]
fn a_reader_of_one_kind_goes_on_after_numbers_of_the_other() {
    let events = Arc::new(Events::new(1));
    let base = 1u64 << 32;
    for n in 0..4 {
        events.tell(adopted(n));
        events.tell(refused("x"));
    }
    assert_eq!(numbers(&of(&events, Some(base + 4), EventFilter::Lifecycle)), [base + 5, base + 7]);
    assert_eq!(numbers(&of(&events, Some(base + 5), EventFilter::Refused)), [base + 6, base + 8]);
    assert_eq!(of(&events, Some(base + 7), EventFilter::Lifecycle), []);
    for n in 0..KEPT {
        events.tell(adopted(n));
    }
    // Three of the lifecycle and three refused came after it.
    assert_eq!(split(&of(&events, Some(base + 2), EventFilter::Lifecycle)), (3, KEPT));
    assert_eq!(split(&of(&events, Some(base + 2), EventFilter::Refused)), (0, 3));
    assert_eq!(split(&all(events.reader(Some(base + 2), None))), (3, KEPT + 3));
    for _ in 0..REFUSED_KEPT {
        events.tell(refused("x"));
    }
    // Neither ring reaches back so far: at most so many.
    assert_eq!(split(&of(&events, Some(base + 2), EventFilter::Lifecycle)), (4, KEPT));
    assert_eq!(split(&all(events.reader(Some(base + 2), None))), (6, KEPT + REFUSED_KEPT));
}
