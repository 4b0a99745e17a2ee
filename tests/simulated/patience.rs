//! Trouble that lasts is asked about ever more seldom, and work whose lease is lost ends. Both
//! are in the journal.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, NOT_AWS, SOURCE, Sim, simulate};

// A delivery is tried five times, and each try asks three times.
const ASKED_A_DELIVERY_MAX: usize = 5 * 3;

// What lies between two tries of one delivery is shorter, and what lies between two deliveries is
// longer.
const REST_MIN: Duration = Duration::from_secs(20);

#[test]
fn what_fails_for_hours_is_tried_ever_more_seldom_and_parked_after_one() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        let place = Place::s3("GetObject")
            .bucket(SOURCE)
            .key("sick")
            .client("daemon-0");
        sim.net.faults().add(Fault::new(
            "trouble",
            place,
            Effect::refuse(500, "InternalError"),
        ));
        let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
        sim.put("sick", b"one").await;
        let mut parked = None;
        // The others get on: it is for its own sake that it is asked so seldom.
        for number in 0..1080 {
            sim.put(&format!("well-{}", number % 7), b"one").await;
            sim.pass(Duration::from_secs(10)).await;
            if !daemon.status().await.unwrap().parked.is_empty() {
                parked.get_or_insert(sim.net.journal().now());
            }
        }
        let parked = parked.unwrap();
        assert!(
            parked > Duration::from_secs(3600) && parked < Duration::from_secs(3600 + 900 + 120),
            "{parked:?}"
        );
        assert_ever_more_seldom(&deliveries(&sim), parked);
        sim.net.faults().clear("trouble");
        sim.pass(fleet::TRIED_WITHIN).await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "sick"), sim.shown(SOURCE, "sick"));
    });
}

/// Sees how often a key in trouble was asked for, and how long it rested in between, until it was
/// parked and since.
fn assert_ever_more_seldom(deliveries: &[Vec<Duration>], parked: Duration) {
    let asked: Vec<usize> = deliveries.iter().map(Vec::len).collect();
    assert!(
        asked
            .iter()
            .all(|asked| (2..=ASKED_A_DELIVERY_MAX).contains(asked)),
        "{asked:?}"
    );
    let rests: Vec<Duration> = deliveries
        .windows(2)
        .map(|pair| pair[1][0] - pair[0][pair[0].len() - 1])
        .collect();
    let is_before = |delivery: &&Vec<Duration>| delivery[0] < parked;
    let handed_back = deliveries.iter().filter(is_before).count() - 1;
    let (before, after) = rests.split_at(handed_back);
    // Doubled each time, and no less than half of that: in an hour from half a minute to a quarter
    // of an hour.
    let (growing, longest) = before.split_at(4);
    assert!(
        growing.windows(2).all(|pair| pair[0] < pair[1]),
        "{rests:?}"
    );
    let whole = Duration::from_secs(15 * 60);
    assert!(
        longest
            .iter()
            .all(|rest| *rest > whole / 2 - REST_MIN && *rest < whole + REST_MIN),
        "{rests:?}"
    );
    assert!(longest.len() >= 2, "{rests:?}");
    // What is parked is tried after 5, 10, 20, 40 minutes, or half of that.
    assert!((2..=6).contains(&after.len()), "{rests:?}");
}

/// Lists when the key in trouble was asked for, delivery by delivery.
fn deliveries(sim: &Sim) -> Vec<Vec<Duration>> {
    let mut deliveries: Vec<Vec<Duration>> = Vec::new();
    for asked in sim
        .net
        .journal()
        .select(|entry| entry.faults.iter().any(|name| name == "trouble"))
    {
        match deliveries
            .last_mut()
            .filter(|last| asked.sent - last[last.len() - 1] < REST_MIN)
        {
            Some(delivery) => delivery.push(asked.sent),
            None => deliveries.push(vec![asked.sent]),
        }
    }
    deliveries
}

#[test]
fn a_lane_whose_lease_is_lost_ends_before_another_may_have_its_message() {
    simulate(2, async |mut sim| {
        sim.share();
        sim.post_everything();
        let leases = Place::sqs("ChangeMessageVisibilityBatch").client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("unreachable", leases, Effect::Unreachable));
        // The message is hidden for a minute, of which this leaves a moment.
        let reads = Place::s3("GetObject").client("daemon-0");
        sim.net.faults().add(Fault::new(
            "slow",
            reads,
            Effect::Delay(Duration::from_secs(55)),
        ));
        let slow = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        while sim.net.faults().hits("slow") == 0 {
            sim.pass(Duration::from_millis(100)).await;
        }
        let polls = Place::sqs("ReceiveMessage").client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("deaf", polls, Effect::Unreachable));
        let quick = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.drained().await;
        sim.pass(Duration::from_secs(120)).await;
        let writers: Vec<String> = sim
            .net
            .journal()
            .writes(ARCHIVE)
            .into_iter()
            .map(|write| write.client)
            .collect();
        assert_eq!(writers, ["daemon-1"]);
        assert_eq!(
            fleet::figure(&slow, "queue_messages_total", &["outcome=\"lease_lost\""]).await,
            1.0
        );
        slow.stop().await;
        quick.stop().await;
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
    });
}
