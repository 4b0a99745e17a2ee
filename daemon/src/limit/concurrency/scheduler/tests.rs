//! The scheduler at chosen moments, and through histories of many.

mod shares;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use replicator_core::failure::{Failure, FailureKind, Operation};

use super::super::limiter::Answered;
use super::super::tests::{SILENCE, keyed, place, route, trouble};
use super::*;

const JITTER: f64 = 1.0;

/// A key where it does not matter which.
const ONE: Subject = 1;

/// Lets in as many as there is room for, and returns their entries.
fn fill(scheduler: &mut Scheduler, route: &Route, now: Instant) -> Vec<Slot> {
    let mut inside = Vec::new();
    loop {
        match scheduler.enqueue(route, ONE, now) {
            Placement::Admitted(slot) => inside.push(slot),
            Placement::Queued(number) => {
                scheduler.remove_waiting(number);
                return inside;
            }
            Placement::TurnedAway(_) => return inside,
        }
    }
}

fn fail(scheduler: &mut Scheduler, route: &Route, times: u32, now: Instant) -> Change {
    let mut change = Change::None;
    for _ in 0..times {
        let Placement::Admitted(slot) = scheduler.enqueue(route, ONE, now) else {
            return change;
        };
        change = scheduler.release(route, slot, SILENCE, (now, JITTER));
    }
    change
}

#[test]
fn a_destination_that_does_not_answer_keeps_one_task_and_the_others_keep_theirs() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    assert_eq!(fail(&mut scheduler, &route("sick"), 5, now), Change::Opened);
    assert!(
        matches!(
            scheduler.enqueue(&route("sick"), ONE, now),
            Placement::Queued(_)
        ),
        "one waits to try"
    );
    let Placement::TurnedAway(wait) = scheduler.enqueue(&route("sick"), ONE, now) else {
        panic!("one is enough")
    };
    assert!(wait >= Duration::from_secs(10));
    assert!(matches!(
        scheduler.enqueue(&route("well"), ONE, now),
        Placement::Admitted(_)
    ));
    let then = scheduler.wakes_at(&route("sick")).unwrap();
    let admitted = scheduler.admit_waiting(then);
    assert_eq!(admitted.len(), 1);
    assert!(
        matches!(
            scheduler.enqueue(&route("sick"), ONE, then),
            Placement::TurnedAway(_)
        ),
        "while one tries, too"
    );
    let change = scheduler.release(
        &route("sick"),
        admitted[0].2,
        Feedback::Reachable,
        (then, JITTER),
    );
    assert_eq!(change, Change::Closed);
    assert!(matches!(
        scheduler.enqueue(&route("sick"), ONE, then),
        Placement::Admitted(_)
    ));
}

#[test]
fn tasks_that_wait_when_a_destination_falls_silent_are_turned_away_but_for_the_first() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    let sick = route("sick");
    let inside = fill(&mut scheduler, &sick, now);
    let waiting: Vec<u64> = (0..3)
        .filter_map(|_| match scheduler.enqueue(&sick, ONE, now) {
            Placement::Queued(number) => Some(number),
            Placement::Admitted(_) | Placement::TurnedAway(_) => None,
        })
        .collect();
    let changes: Vec<Change> = inside
        .into_iter()
        .map(|slot| scheduler.release(&sick, slot, SILENCE, (now, JITTER)))
        .collect();
    assert_eq!(
        changes
            .iter()
            .filter(|change| **change == Change::Opened)
            .count(),
        1
    );
    let away: Vec<u64> = scheduler
        .turn_away(&sick.destination, now)
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(away, waiting[1..]);
    assert!(scheduler.admit_waiting(now).is_empty());
    assert_eq!(
        scheduler.admit_waiting(scheduler.wakes_at(&sick).unwrap())[0].0,
        waiting[0]
    );
}

#[test]
fn trouble_at_the_source_is_not_held_against_the_destination() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    for _ in 0..20 {
        let Placement::Admitted(slot) = scheduler.enqueue(&route("well"), ONE, now) else {
            panic!("turned away")
        };
        let failure =
            Failure::new(FailureKind::Transient, Operation::GetObject).of(Dependency::Source);
        scheduler.release(
            &route("well"),
            slot,
            Feedback::from_failure(&failure, &Answered::default()),
            (now, JITTER),
        );
    }
    assert!(
        scheduler
            .degraded_dependencies()
            .iter()
            .all(|degraded| degraded.name != "well")
    );
}

/// Lets a key in, which fails with 500 though it got other answers.
fn refuse(scheduler: &mut Scheduler, subject: Subject, now: Instant) {
    let Placement::Admitted(slot) = scheduler.enqueue(&route("well"), subject, now) else {
        panic!("{subject} is turned away")
    };
    let answer = Feedback::Failed(trouble(Dependency::Destination, Some(500), true));
    scheduler.release(&route("well"), slot, answer, (now, JITTER));
}

fn write(scheduler: &mut Scheduler, subject: Subject, now: Instant) -> Change {
    let Placement::Admitted(slot) = scheduler.enqueue(&route("well"), subject, now) else {
        panic!("{subject} is turned away")
    };
    scheduler.release(
        &route("well"),
        slot,
        Feedback::Served { wrote: true },
        (now, JITTER),
    )
}

#[test]
fn few_keys_that_fail_however_often_open_no_circuit() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    for _ in 0..20 {
        (0..4).for_each(|subject| refuse(&mut scheduler, subject, now));
    }
    assert!(!scheduler.is_circuit_open(&place("well")));
}

#[test]
fn many_keys_that_fail_hold_up_no_key_that_would_be_written_and_not_once_more() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    (0..8).for_each(|subject| refuse(&mut scheduler, subject, now));
    assert!(
        scheduler.is_circuit_open(&place("well")),
        "they may be all there is"
    );
    let Placement::Queued(number) = scheduler.enqueue(&route("well"), 7, now) else {
        panic!("it has failed")
    };
    assert_eq!(write(&mut scheduler, 100, now), Change::Closed);
    scheduler.remove_waiting(number);
    for _ in 0..20 {
        (0..8).for_each(|subject| refuse(&mut scheduler, subject, now));
    }
    assert!(
        !scheduler.is_circuit_open(&place("well")),
        "they fail alone"
    );
    let is_own =
        |subject| scheduler.is_own(&route("well"), subject, (Dependency::Destination, true));
    assert!((0..8).all(is_own));
    assert_eq!(
        fail(&mut scheduler, &route("well"), 5, now),
        Change::None,
        "one of them, whatever it meets"
    );
}

#[test]
fn a_destination_that_fails_every_key_is_to_blame() {
    let (mut scheduler, mut now) = (Scheduler::default(), Instant::now());
    (0..16).for_each(|subject| refuse(&mut scheduler, subject, now));
    assert!(
        matches!(
            scheduler.enqueue(&route("well"), 100, now),
            Placement::Queued(_)
        ),
        "it would fail as well"
    );
    let is_own =
        |subject| scheduler.is_own(&route("well"), subject, (Dependency::Destination, true));
    assert!(!(0..16).any(is_own));
    now = scheduler.wakes_at(&route("well")).unwrap();
    assert_eq!(scheduler.admit_waiting(now).len(), 1);
}

#[test]
fn a_throttled_key_slows_down_all_routes_that_use_it_and_no_other() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    let (one, other) = (keyed("tokyo", "hot"), keyed("paris", "hot"));
    let inside = fill(&mut scheduler, &one, now);
    for slot in inside {
        scheduler.release(
            &one,
            slot,
            Feedback::Throttled(Dependency::DestinationKey),
            (now, JITTER),
        );
    }
    assert_eq!(fill(&mut scheduler, &other, now).len(), 64, "half of 128");
    assert_eq!(fill(&mut scheduler, &one, now).len(), 0);
    assert_eq!(
        fill(&mut scheduler, &keyed("paris", "cool"), now).len(),
        64,
        "what is left of its share"
    );
}

#[test]
fn a_key_that_is_throttled_while_others_are_served_narrows_nothing() {
    let (mut scheduler, well, now) = (Scheduler::default(), route("well"), Instant::now());
    let [Placement::Admitted(one), Placement::Admitted(other)] =
        [1, 2].map(|subject| scheduler.enqueue(&well, subject, now))
    else {
        panic!()
    };
    let throttled = Feedback::Throttled(Dependency::Source);
    assert_eq!(
        scheduler.release(&well, one, throttled, (now, JITTER)),
        Change::Narrowed(Dependency::Source),
        "it may be any key"
    );
    scheduler.release(
        &well,
        other,
        Feedback::Served { wrote: true },
        (now, JITTER),
    );
    for _ in 0..10 {
        let Placement::Admitted(one) = scheduler.enqueue(&well, 1, now) else {
            panic!("there is room")
        };
        assert_eq!(
            scheduler.release(&well, one, throttled, (now, JITTER)),
            Change::None
        );
    }
}

#[test]
fn a_throttled_destination_narrows_for_all_its_routes_together() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    let inside = fill(&mut scheduler, &route("slow"), now);
    let mut changes = Vec::new();
    for slot in inside {
        changes.push(scheduler.release(
            &route("slow"),
            slot,
            Feedback::Throttled(Dependency::Destination),
            (now, JITTER),
        ));
    }
    assert_eq!(changes[0], Change::Narrowed(Dependency::Destination));
    assert_eq!(
        fill(&mut scheduler, &keyed("slow", "k"), now).len()
            + fill(&mut scheduler, &route("slow"), now).len(),
        64
    );
    assert_eq!(
        scheduler.degraded_dependencies()[0].concurrency_limit,
        Some(64)
    );
}

#[test]
fn the_circuit_of_a_destination_that_throttles_even_one_at_a_time_opens_in_the_end() {
    let (mut scheduler, mut now) = (Scheduler::default(), Instant::now());
    let mut asked = 0;
    while !scheduler.is_circuit_open(&place("slow")) {
        assert!(asked < 20, "asked again and again");
        if let Placement::Admitted(slot) = scheduler.enqueue(&route("slow"), ONE, now) {
            scheduler.release(
                &route("slow"),
                slot,
                Feedback::Throttled(Dependency::Destination),
                (now, JITTER),
            );
            asked += 1;
        } else {
            panic!("no other task is there");
        }
        now = scheduler.wakes_at(&route("slow")).unwrap_or(now);
    }
}

#[derive(Debug, Clone, Copy)]
enum Happening {
    Come(usize, Subject),
    Leave(usize, Feedback),
    GiveUp(usize),
    Wait(u64),
}

fn happenings() -> impl Strategy<Value = Vec<Happening>> {
    let answer = prop_oneof![
        1 => Just(Feedback::None),
        1 => Just(Feedback::Served { wrote: true }),
        1 => Just(Feedback::Throttled(Dependency::Destination)),
        1 => Just(Feedback::Throttled(Dependency::DestinationKey)),
        1 => Just(Feedback::Throttled(Dependency::Source)),
        3 => Just(SILENCE),
        2 => Just(Feedback::Failed(trouble(Dependency::Destination, Some(500), true))),
        1 => Just(Feedback::Failed(trouble(Dependency::Source, Some(500), true))),
        1 => Just(Feedback::Reachable),
    ];
    let happening = prop_oneof![
        4 => (0..4usize, 0..30u64).prop_map(|(which, subject)| Happening::Come(which, subject)),
        4 => (any::<usize>(), answer).prop_map(|(one, answer)| Happening::Leave(one, answer)),
        1 => any::<usize>().prop_map(Happening::GiveUp),
        2 => (0..70_000u64).prop_map(Happening::Wait),
    ];
    proptest::collection::vec(happening, 1..250)
}

proptest! {
    #[test]
    fn whatever_happens_no_task_is_forgotten_and_no_slot_is_lost(all in happenings()) {
        let routes = [route("tokyo"), keyed("tokyo", "k"), keyed("paris", "k"), route("paris")];
        let (mut scheduler, mut now) = (Scheduler::default(), Instant::now());
        let mut inside: Vec<(Route, Slot)> = Vec::new();
        let mut waiting: Vec<u64> = Vec::new();
        for happening in all {
            match happening {
                Happening::Come(which, subject) => match scheduler.enqueue(&routes[which], subject, now) {
                    Placement::Admitted(slot) => inside.push((routes[which].clone(), slot)),
                    Placement::Queued(number) => waiting.push(number),
                    Placement::TurnedAway(wait) => prop_assert!(wait <= Duration::from_secs(60)),
                },
                Happening::Leave(one, answer) if !inside.is_empty() => {
                    let (route, slot) = inside.swap_remove(one % inside.len());
                    scheduler.release(&route, slot, answer, (now, JITTER));
                    for (number, _) in scheduler.turn_away(&route.destination, now) {
                        waiting.retain(|waiting| *waiting != number);
                    }
                }
                Happening::GiveUp(one) if !waiting.is_empty() => {
                    let number = waiting.swap_remove(one % waiting.len());
                    scheduler.remove_waiting(number);
                }
                Happening::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                Happening::Leave(..) | Happening::GiveUp(_) => {}
            }
            for (number, route, slot) in scheduler.admit_waiting(now) {
                prop_assert!(waiting.contains(&number));
                waiting.retain(|waiting| *waiting != number);
                inside.push((route, slot));
            }
        }
        // When all tasks leave, and time goes on, every waiting task comes in.
        while !inside.is_empty() || !waiting.is_empty() {
            for (route, slot) in inside.drain(..) {
                scheduler.release(&route, slot, Feedback::Served { wrote: true }, (now, JITTER));
            }
            now += Duration::from_secs(60);
            for (number, route, slot) in scheduler.admit_waiting(now) {
                waiting.retain(|waiting| *waiting != number);
                inside.push((route, slot));
            }
            prop_assert!(!inside.is_empty() || waiting.is_empty(), "{waiting:?} wait for no task");
        }
        now += Duration::from_secs(60);
        for route in &routes {
            let Placement::Admitted(slot) = scheduler.enqueue(route, ONE, now) else { panic!("no task is there, and none is admitted") };
            scheduler.release(route, slot, Feedback::Served { wrote: true }, (now, JITTER));
        }
    }
}
