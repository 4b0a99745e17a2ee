//! The gates at chosen moments, and through histories of many.

mod shares;

use std::time::{Duration, Instant};

use proptest::prelude::*;
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::operation::Operation;

use super::super::tests::{SILENCE, keyed, place, route, trouble};
use super::*;

const JITTER: f64 = 1.0;

/// A key where it does not matter which.
const ONE: Subject = 1;

/// Lets in as many as there is room for, and returns their entries.
fn fill(gates: &mut Scheduler, route: &Route, now: Instant) -> Vec<Entered> {
    let mut inside = Vec::new();
    loop {
        match gates.line_up(route, ONE, now) {
            Lined::In(entered) => inside.push(entered),
            Lined::Waits(number) => {
                gates.forget(number);
                return inside;
            }
            Lined::Away(_) => return inside,
        }
    }
}

fn fail(gates: &mut Scheduler, route: &Route, times: u32, now: Instant) -> Change {
    let mut change = Change::None;
    for _ in 0..times {
        let Lined::In(entered) = gates.line_up(route, ONE, now) else {
            return change;
        };
        change = gates.record_leave(route, entered, SILENCE, (now, JITTER));
    }
    change
}

#[test]
fn a_destination_that_does_not_answer_keeps_one_task_and_the_others_keep_theirs() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    assert_eq!(fail(&mut gates, &route("sick"), 5, now), Change::Opened);
    assert!(
        matches!(gates.line_up(&route("sick"), ONE, now), Lined::Waits(_)),
        "one waits to try"
    );
    let Lined::Away(wait) = gates.line_up(&route("sick"), ONE, now) else {
        panic!("one is enough")
    };
    assert!(wait >= Duration::from_secs(10));
    assert!(matches!(
        gates.line_up(&route("well"), ONE, now),
        Lined::In(_)
    ));
    let then = gates.wakes_at(&route("sick")).unwrap();
    let admitted = gates.admit_waiting(then);
    assert_eq!(admitted.len(), 1);
    assert!(
        matches!(gates.line_up(&route("sick"), ONE, then), Lined::Away(_)),
        "while one tries, too"
    );
    let change = gates.record_leave(
        &route("sick"),
        admitted[0].2,
        Feedback::Reachable,
        (then, JITTER),
    );
    assert_eq!(change, Change::Closed);
    assert!(matches!(
        gates.line_up(&route("sick"), ONE, then),
        Lined::In(_)
    ));
}

#[test]
fn who_waits_when_a_destination_falls_silent_is_turned_away_but_for_the_first() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    let sick = route("sick");
    let inside = fill(&mut gates, &sick, now);
    let waiting: Vec<u64> = (0..3)
        .filter_map(|_| match gates.line_up(&sick, ONE, now) {
            Lined::Waits(number) => Some(number),
            Lined::In(_) | Lined::Away(_) => None,
        })
        .collect();
    let changes: Vec<Change> = inside
        .into_iter()
        .map(|entered| gates.record_leave(&sick, entered, SILENCE, (now, JITTER)))
        .collect();
    assert_eq!(
        changes
            .iter()
            .filter(|change| **change == Change::Opened)
            .count(),
        1
    );
    let away: Vec<u64> = gates
        .turn_away(&sick.destination, now)
        .into_iter()
        .map(|(number, _)| number)
        .collect();
    assert_eq!(away, waiting[1..]);
    assert!(gates.admit_waiting(now).is_empty());
    assert_eq!(
        gates.admit_waiting(gates.wakes_at(&sick).unwrap())[0].0,
        waiting[0]
    );
}

#[test]
fn trouble_at_the_source_is_not_held_against_the_destination() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    for _ in 0..20 {
        let Lined::In(entered) = gates.line_up(&route("well"), ONE, now) else {
            panic!("turned away")
        };
        let failure =
            Failure::new(FailureKind::Transient, Operation::GetObject).of(Dependency::Source);
        gates.record_leave(
            &route("well"),
            entered,
            Feedback::from_failure(&failure),
            (now, JITTER),
        );
    }
    assert!(
        gates
            .degraded_dependencies()
            .iter()
            .all(|ailing| ailing.name != "well")
    );
}

/// Lets a key in, which fails with 500 though it got other answers.
fn refuse(gates: &mut Scheduler, subject: Subject, now: Instant) {
    let Lined::In(entered) = gates.line_up(&route("well"), subject, now) else {
        panic!("{subject} is turned away")
    };
    let answer = Feedback::Failed(trouble(Dependency::Destination, Some(500), true));
    gates.record_leave(&route("well"), entered, answer, (now, JITTER));
}

fn write(gates: &mut Scheduler, subject: Subject, now: Instant) -> Change {
    let Lined::In(entered) = gates.line_up(&route("well"), subject, now) else {
        panic!("{subject} is turned away")
    };
    gates.record_leave(
        &route("well"),
        entered,
        Feedback::Served { wrote: true },
        (now, JITTER),
    )
}

#[test]
fn few_keys_that_fail_however_often_close_no_destination() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    for _ in 0..20 {
        (0..4).for_each(|subject| refuse(&mut gates, subject, now));
    }
    assert!(!gates.leaves_alone(&place("well")));
}

#[test]
fn many_keys_that_fail_hold_up_no_key_that_would_be_written_and_not_once_more() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    (0..8).for_each(|subject| refuse(&mut gates, subject, now));
    assert!(
        gates.leaves_alone(&place("well")),
        "they may be all there is"
    );
    let Lined::Waits(number) = gates.line_up(&route("well"), 7, now) else {
        panic!("it has failed")
    };
    assert_eq!(write(&mut gates, 100, now), Change::Closed);
    gates.forget(number);
    for _ in 0..20 {
        (0..8).for_each(|subject| refuse(&mut gates, subject, now));
    }
    assert!(!gates.leaves_alone(&place("well")), "they fail alone");
    let is_own = |subject| gates.is_own(&route("well"), subject, (Dependency::Destination, true));
    assert!((0..8).all(is_own));
    assert_eq!(
        fail(&mut gates, &route("well"), 5, now),
        Change::None,
        "one of them, whatever it meets"
    );
}

#[test]
fn a_destination_that_fails_every_key_is_to_blame() {
    let (mut gates, mut now) = (Scheduler::default(), Instant::now());
    (0..16).for_each(|subject| refuse(&mut gates, subject, now));
    assert!(
        matches!(gates.line_up(&route("well"), 100, now), Lined::Waits(_)),
        "it would fail as well"
    );
    let is_own = |subject| gates.is_own(&route("well"), subject, (Dependency::Destination, true));
    assert!(!(0..16).any(is_own));
    now = gates.wakes_at(&route("well")).unwrap();
    assert_eq!(gates.admit_waiting(now).len(), 1);
}

#[test]
fn a_throttled_key_slows_down_all_who_use_it_and_nobody_else() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    let (one, other) = (keyed("tokyo", "hot"), keyed("paris", "hot"));
    let inside = fill(&mut gates, &one, now);
    for entered in inside {
        gates.record_leave(
            &one,
            entered,
            Feedback::Throttled(Dependency::DestinationKey),
            (now, JITTER),
        );
    }
    assert_eq!(fill(&mut gates, &other, now).len(), 64, "half of 128");
    assert_eq!(fill(&mut gates, &one, now).len(), 0);
    assert_eq!(
        fill(&mut gates, &keyed("paris", "cool"), now).len(),
        64,
        "what is left of its share"
    );
}

#[test]
fn a_key_that_is_throttled_while_others_are_served_narrows_nothing() {
    let (mut gates, well, now) = (Scheduler::default(), route("well"), Instant::now());
    let [Lined::In(one), Lined::In(other)] =
        [1, 2].map(|subject| gates.line_up(&well, subject, now))
    else {
        panic!()
    };
    let throttled = Feedback::Throttled(Dependency::Source);
    assert_eq!(
        gates.record_leave(&well, one, throttled, (now, JITTER)),
        Change::Narrowed(Dependency::Source),
        "it may be any key"
    );
    gates.record_leave(
        &well,
        other,
        Feedback::Served { wrote: true },
        (now, JITTER),
    );
    for _ in 0..10 {
        let Lined::In(one) = gates.line_up(&well, 1, now) else {
            panic!("there is room")
        };
        assert_eq!(
            gates.record_leave(&well, one, throttled, (now, JITTER)),
            Change::None
        );
    }
}

#[test]
fn a_throttled_destination_narrows_for_all_its_routes_together() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    let inside = fill(&mut gates, &route("slow"), now);
    let mut changes = Vec::new();
    for entered in inside {
        changes.push(gates.record_leave(
            &route("slow"),
            entered,
            Feedback::Throttled(Dependency::Destination),
            (now, JITTER),
        ));
    }
    assert_eq!(changes[0], Change::Narrowed(Dependency::Destination));
    assert_eq!(
        fill(&mut gates, &keyed("slow", "k"), now).len()
            + fill(&mut gates, &route("slow"), now).len(),
        64
    );
    assert_eq!(gates.degraded_dependencies()[0].concurrency_limit, Some(64));
}

#[test]
fn who_throttles_even_one_at_a_time_is_left_alone_in_the_end() {
    let (mut gates, mut now) = (Scheduler::default(), Instant::now());
    let mut asked = 0;
    while !gates.leaves_alone(&place("slow")) {
        assert!(asked < 20, "asked again and again");
        if let Lined::In(entered) = gates.line_up(&route("slow"), ONE, now) {
            gates.record_leave(
                &route("slow"),
                entered,
                Feedback::Throttled(Dependency::Destination),
                (now, JITTER),
            );
            asked += 1;
        } else {
            panic!("nobody else is there");
        }
        now = gates.wakes_at(&route("slow")).unwrap_or(now);
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
    fn whatever_happens_nobody_is_forgotten_and_no_place_is_lost(all in happenings()) {
        let routes = [route("tokyo"), keyed("tokyo", "k"), keyed("paris", "k"), route("paris")];
        let (mut gates, mut now) = (Scheduler::default(), Instant::now());
        let mut inside: Vec<(Route, Entered)> = Vec::new();
        let mut waiting: Vec<u64> = Vec::new();
        for happening in all {
            match happening {
                Happening::Come(which, subject) => match gates.line_up(&routes[which], subject, now) {
                    Lined::In(entered) => inside.push((routes[which].clone(), entered)),
                    Lined::Waits(number) => waiting.push(number),
                    Lined::Away(wait) => prop_assert!(wait <= Duration::from_secs(60)),
                },
                Happening::Leave(one, answer) if !inside.is_empty() => {
                    let (route, entered) = inside.swap_remove(one % inside.len());
                    gates.record_leave(&route, entered, answer, (now, JITTER));
                    for (number, _) in gates.turn_away(&route.destination, now) {
                        waiting.retain(|waiting| *waiting != number);
                    }
                }
                Happening::GiveUp(one) if !waiting.is_empty() => {
                    let number = waiting.swap_remove(one % waiting.len());
                    gates.forget(number);
                }
                Happening::Wait(milliseconds) => now += Duration::from_millis(milliseconds),
                Happening::Leave(..) | Happening::GiveUp(_) => {}
            }
            for (number, route, entered) in gates.admit_waiting(now) {
                prop_assert!(waiting.contains(&number));
                waiting.retain(|waiting| *waiting != number);
                inside.push((route, entered));
            }
        }
        // When all tasks leave, and time goes on, every waiting task comes in.
        while !inside.is_empty() || !waiting.is_empty() {
            for (route, entered) in inside.drain(..) {
                gates.record_leave(&route, entered, Feedback::Served { wrote: true }, (now, JITTER));
            }
            now += Duration::from_secs(60);
            for (number, route, entered) in gates.admit_waiting(now) {
                waiting.retain(|waiting| *waiting != number);
                inside.push((route, entered));
            }
            prop_assert!(!inside.is_empty() || waiting.is_empty(), "{waiting:?} wait for nobody");
        }
        now += Duration::from_secs(60);
        for route in &routes {
            let Lined::In(entered) = gates.line_up(route, ONE, now) else { panic!("nobody is there, and no way in") };
            gates.record_leave(route, entered, Feedback::Served { wrote: true }, (now, JITTER));
        }
    }
}
