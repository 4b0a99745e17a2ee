//! How many of the places each destination and rule may have.

use super::*;
use crate::limits::tests::rule;

#[test]
fn a_destination_that_takes_all_it_can_leaves_the_others_their_share() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    assert_eq!(fill(&mut gates, &route("hangs"), now).len(), 128);
    assert_eq!(fill(&mut gates, &route("works"), now).len(), 128);
}

#[test]
fn large_objects_leave_three_quarters_of_a_destination_to_small_ones() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    let bulk = Route {
        is_bulk: true,
        ..route("orders-replica")
    };
    let inside = fill(&mut gates, &bulk, now);
    assert_eq!(inside.len(), 32);
    let Lined::Waits(first) = gates.line_up(&bulk, ONE, now) else {
        panic!("there is no room")
    };
    assert_eq!(
        fill(&mut gates, &route("orders-replica"), now).len(),
        96,
        "whoever waits"
    );
    gates.record_leave(
        &bulk,
        inside[0],
        Feedback::Served { wrote: true },
        (now, JITTER),
    );
    assert_eq!(
        gates
            .admit_waiting(now)
            .into_iter()
            .map(|(number, ..)| number)
            .collect::<Vec<_>>(),
        [first]
    );
}

/// Returns gates for some rules by id and destination, and what leads to them.
fn shared(of: &[(&str, &str)]) -> (Scheduler, Vec<Route>) {
    let all = of.iter().map(|(id, destination)| Rule {
        destination: place(destination),
        ..rule(id)
    });
    let all: Vec<Rule> = all.collect();
    let mut gates = Scheduler::default();
    gates.replace(all.iter());
    (gates, all.iter().map(Route::of).collect())
}

#[test]
fn of_rules_that_share_a_destination_none_takes_every_place() {
    let now = Instant::now();
    for is_bulk in [false, true] {
        let (mut gates, routes) = shared(&[
            ("limited", "replicas"),
            ("other", "replicas"),
            ("alone", "archive"),
        ]);
        let route = |at: usize| Route {
            is_bulk,
            ..routes[at].clone()
        };
        let all = if is_bulk { 32 } else { 128 };
        assert_eq!(fill(&mut gates, &route(0), now).len(), all / 4 * 3);
        assert_eq!(fill(&mut gates, &route(1), now).len(), all / 4);
        assert_eq!(
            fill(&mut gates, &route(2), now).len(),
            all,
            "nobody shares that one"
        );
    }
}

#[test]
fn of_few_places_one_is_left_to_others_too() {
    let (mut gates, routes) = shared(&[("limited", "replicas"), ("other", "replicas")]);
    let now = Instant::now();
    // Of 256 each has eight, and two of those for large objects.
    gates
        .rules
        .extend((0..40).map(|number| (place(&format!("known-{number}")), 1)));
    fill(&mut gates, &route("busy"), now);
    fill(&mut gates, &route("another"), now);
    let bulk = |at: usize| Route {
        is_bulk: true,
        ..routes[at].clone()
    };
    assert_eq!(fill(&mut gates, &bulk(0), now).len(), 1);
    assert_eq!(fill(&mut gates, &bulk(1), now).len(), 1);
}

#[test]
fn a_place_goes_to_the_rule_that_has_the_fewest() {
    let (mut gates, routes) = shared(&[
        ("many", "replicas"),
        ("some", "replicas"),
        ("none", "replicas"),
    ]);
    let now = Instant::now();
    let many = fill(&mut gates, &routes[0], now);
    let some = fill(&mut gates, &routes[1], now);
    let numbers: Vec<u64> = [0, 0, 1, 2]
        .map(|at: usize| match gates.line_up(&routes[at], ONE, now) {
            Lined::Waits(number) => number,
            Lined::In(_) | Lined::Away(_) => panic!("there is no room"),
        })
        .into();
    let mut order = Vec::new();
    for (route, entered) in many
        .iter()
        .map(|entered| (&routes[0], *entered))
        .take(2)
        .chain([(&routes[1], some[0])])
    {
        gates.record_leave(
            route,
            entered,
            Feedback::Served { wrote: true },
            (now, JITTER),
        );
        order.extend(
            gates
                .admit_waiting(now)
                .into_iter()
                .map(|(number, ..)| number),
        );
    }
    assert_eq!(order, [numbers[3], numbers[2], numbers[0]]);
}

#[test]
fn places_are_divided_among_destinations_that_have_work() {
    let (mut gates, now) = (
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
        let entered = fill(&mut gates, &route, now);
        entered.into_iter().for_each(|one| {
            gates.record_leave(&route, one, Feedback::Served { wrote: true }, (now, JITTER));
        });
    }
    let busy = fill(&mut gates, &route("busy"), now);
    assert_eq!(busy.len(), 128);
    assert_eq!(fill(&mut gates, &route("another"), now).len(), 128);
    let third = route("third");
    assert_eq!(
        fill(&mut gates, &third, now).len(),
        8,
        "the others have all others"
    );
    let waiting: Vec<Lined> = (0..100).map(|_| gates.line_up(&third, ONE, now)).collect();
    assert!(waiting.iter().all(|lined| matches!(lined, Lined::Waits(_))));
    let mut entered = 0;
    for one in busy.into_iter().take(100) {
        gates.record_leave(
            &route("busy"),
            one,
            Feedback::Served { wrote: true },
            (now, JITTER),
        );
        entered += gates.admit_waiting(now).len();
    }
    assert_eq!(8 + entered, 85);
}

#[test]
fn other_rules_forget_who_is_idle_and_no_trouble() {
    let (mut gates, now) = (Scheduler::default(), Instant::now());
    let inside = fill(&mut gates, &route("busy"), now);
    fail(&mut gates, &route("dead"), 5, now);
    let Lined::In(idle) = gates.line_up(&route("idle"), ONE, now) else {
        panic!("there is room")
    };
    gates.record_leave(
        &route("idle"),
        idle,
        Feedback::Served { wrote: true },
        (now, JITTER),
    );
    gates.replace([].into_iter());
    assert!(gates.leaves_alone(&place("dead")));
    assert!(
        matches!(gates.line_up(&route("busy"), ONE, now), Lined::Waits(_)),
        "its places are taken still"
    );
    assert_eq!(inside.len(), 128);
    assert!(
        !gates
            .dependencies
            .contains_key(&LimitKey::Destination(place("idle")))
    );
}
