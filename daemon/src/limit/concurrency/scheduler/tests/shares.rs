//! How many of the slots each destination and rule may have.

use super::*;
use crate::limit::quotas::tests::rule;

#[test]
fn a_destination_that_takes_all_it_can_leaves_the_others_their_share() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    assert_eq!(fill(&mut scheduler, &route("hangs"), now).len(), 128);
    assert_eq!(fill(&mut scheduler, &route("works"), now).len(), 128);
}

#[test]
fn large_objects_leave_three_quarters_of_a_destination_to_small_ones() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    let bulk = Route {
        is_bulk: true,
        ..route("orders-replica")
    };
    let inside = fill(&mut scheduler, &bulk, now);
    assert_eq!(inside.len(), 32);
    let Placement::Queued(first) = scheduler.enqueue(&bulk, ONE, now) else {
        panic!("there is no room")
    };
    assert_eq!(
        fill(&mut scheduler, &route("orders-replica"), now).len(),
        96,
        "large ones wait"
    );
    scheduler.release(
        &bulk,
        inside[0],
        Feedback::Served { wrote: true },
        (now, JITTER),
    );
    assert_eq!(
        scheduler
            .admit_waiting(now)
            .into_iter()
            .map(|(number, ..)| number)
            .collect::<Vec<_>>(),
        [first]
    );
}

/// Returns scheduler for some rules by id and destination, and what leads to them.
fn shared(of: &[(&str, &str)]) -> (Scheduler, Vec<Route>) {
    let all = of.iter().map(|(id, destination)| Rule {
        destination: place(destination),
        ..rule(id)
    });
    let all: Vec<Rule> = all.collect();
    let mut scheduler = Scheduler::default();
    scheduler.replace(all.iter());
    (scheduler, all.iter().map(Route::of).collect())
}

#[test]
fn of_rules_that_share_a_destination_none_takes_every_slot() {
    let now = Instant::now();
    for is_bulk in [false, true] {
        let (mut scheduler, routes) = shared(&[
            ("limited", "replicas"),
            ("other", "replicas"),
            ("alone", "archive"),
        ]);
        let route = |at: usize| Route {
            is_bulk,
            ..routes[at].clone()
        };
        let all = if is_bulk { 32 } else { 128 };
        assert_eq!(fill(&mut scheduler, &route(0), now).len(), all / 4 * 3);
        assert_eq!(fill(&mut scheduler, &route(1), now).len(), all / 4);
        assert_eq!(
            fill(&mut scheduler, &route(2), now).len(),
            all,
            "no rule shares that one"
        );
    }
}

#[test]
fn of_few_slots_one_is_left_to_others_too() {
    let (mut scheduler, routes) = shared(&[("limited", "replicas"), ("other", "replicas")]);
    let now = Instant::now();
    // Of 256 each has eight, and two of those for large objects.
    scheduler
        .rules
        .extend((0..40).map(|number| (place(&format!("known-{number}")), 1)));
    fill(&mut scheduler, &route("busy"), now);
    fill(&mut scheduler, &route("another"), now);
    let bulk = |at: usize| Route {
        is_bulk: true,
        ..routes[at].clone()
    };
    assert_eq!(fill(&mut scheduler, &bulk(0), now).len(), 1);
    assert_eq!(fill(&mut scheduler, &bulk(1), now).len(), 1);
}

#[test]
fn a_slot_goes_to_the_rule_that_has_the_fewest() {
    let (mut scheduler, routes) = shared(&[
        ("many", "replicas"),
        ("some", "replicas"),
        ("none", "replicas"),
    ]);
    let now = Instant::now();
    let many = fill(&mut scheduler, &routes[0], now);
    let some = fill(&mut scheduler, &routes[1], now);
    let numbers: Vec<u64> = [0, 0, 1, 2]
        .map(|at: usize| match scheduler.enqueue(&routes[at], ONE, now) {
            Placement::Queued(number) => number,
            Placement::Admitted(_) | Placement::TurnedAway(_) => panic!("there is no room"),
        })
        .into();
    let mut order = Vec::new();
    for (route, slot) in many
        .iter()
        .map(|slot| (&routes[0], *slot))
        .take(2)
        .chain([(&routes[1], some[0])])
    {
        scheduler.release(route, slot, Feedback::Served { wrote: true }, (now, JITTER));
        order.extend(
            scheduler
                .admit_waiting(now)
                .into_iter()
                .map(|(number, ..)| number),
        );
    }
    assert_eq!(order, [numbers[3], numbers[2], numbers[0]]);
}

#[test]
fn slots_are_divided_among_destinations_that_have_work() {
    let (mut scheduler, now) = (
        Scheduler {
            rules: (0..32)
                .map(|number| (place(&format!("known-{number}")), 1))
                .collect(),
            ..Scheduler::default()
        },
        Instant::now(),
    );
    for number in 0..8 {
        let route = route(&format!("idle-{number}"));
        let slot = fill(&mut scheduler, &route, now);
        slot.into_iter().for_each(|one| {
            scheduler.release(&route, one, Feedback::Served { wrote: true }, (now, JITTER));
        });
    }
    let busy = fill(&mut scheduler, &route("busy"), now);
    assert_eq!(busy.len(), 128);
    assert_eq!(fill(&mut scheduler, &route("another"), now).len(), 128);
    let third = route("third");
    assert_eq!(
        fill(&mut scheduler, &third, now).len(),
        8,
        "the others have all others"
    );
    let waiting: Vec<Placement> = (0..100)
        .map(|_| scheduler.enqueue(&third, ONE, now))
        .collect();
    assert!(
        waiting
            .iter()
            .all(|lined| matches!(lined, Placement::Queued(_)))
    );
    let mut slot = 0;
    for one in busy.into_iter().take(100) {
        scheduler.release(
            &route("busy"),
            one,
            Feedback::Served { wrote: true },
            (now, JITTER),
        );
        slot += scheduler.admit_waiting(now).len();
    }
    assert_eq!(8 + slot, 85);
}

#[test]
fn other_rules_forget_limiters_that_are_idle_and_not_degraded() {
    let (mut scheduler, now) = (Scheduler::default(), Instant::now());
    let inside = fill(&mut scheduler, &route("busy"), now);
    fail(&mut scheduler, &route("dead"), 5, now);
    let Placement::Admitted(idle) = scheduler.enqueue(&route("idle"), ONE, now) else {
        panic!("there is room")
    };
    scheduler.release(
        &route("idle"),
        idle,
        Feedback::Served { wrote: true },
        (now, JITTER),
    );
    scheduler.replace([].into_iter());
    assert!(scheduler.is_circuit_open(&place("dead")));
    assert!(
        matches!(
            scheduler.enqueue(&route("busy"), ONE, now),
            Placement::Queued(_)
        ),
        "its slots are taken still"
    );
    assert_eq!(inside.len(), 128);
    assert!(
        !scheduler
            .limiters
            .contains_key(&LimitKey::Destination(place("idle")))
    );
}
