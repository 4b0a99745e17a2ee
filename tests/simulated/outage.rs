//! A destination that is down, a queue that is dead, a connection that hangs: the others go on,
//! what can tell says so, and everything arrives when the cause has gone.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use s3_replicator::failpoint::{Failpoint, Failpoints, Phase, Step};
use s3_replicator::pipeline::Daemon;

use crate::fleet::{self, Plan};
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, MIRROR, SOURCE, Sim, simulate};

// What comes in a minute, beside two keys that change: more in an hour than the 64 MiB of the
// daemon hold.
const SMALL_A_MINUTE: usize = 24;
const LARGE_A_MINUTE: usize = 2;
const LARGE_BYTES: usize = 1 << 20;

#[test]
fn an_hour_without_one_destination_holds_up_no_other_and_loses_nothing() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, &fleet::mirrored(""), AWS).await;
        sim.net.faults().add(Fault::new(
            "down",
            Place::default().bucket(ARCHIVE),
            Effect::Unreachable,
        ));
        for minute in 0..60 {
            let key = format!("key-{}", minute % 7);
            sim.put(&key, if minute % 2 == 0 { b"even" } else { b"odd" })
                .await;
            sim.fill(&format!("small-{minute}-"), SMALL_A_MINUTE, 100)
                .await;
            sim.fill(&format!("large-{minute}-"), LARGE_A_MINUTE, LARGE_BYTES)
                .await;
            for _ in 0..6 {
                sim.pass(Duration::from_secs(10)).await;
                assert_within_budget(&daemon).await;
            }
            for key in sim.s3.keys(SOURCE) {
                assert_eq!(
                    sim.shown(MIRROR, &key),
                    sim.shown(SOURCE, &key),
                    "{key} lags at {minute}"
                );
            }
            assert!(sim.s3.keys(ARCHIVE).is_empty());
        }
        let in_hand = daemon.status().await.unwrap().in_flight.messages;
        assert!(
            in_hand < 200,
            "what cannot be done waits in the queue, not here: {in_hand}"
        );
        sim.net.faults().clear("down");
        while sim.waiting() > 0 {
            sim.pass(Duration::from_secs(5)).await;
            assert_within_budget(&daemon).await;
        }
        assert_eq!(
            fleet::figure(&daemon, "memory_bytes", &["kind=\"used\""]).await,
            0.0,
            "all is paid back"
        );
        daemon.stop().await;
        assert_eq!(sim.s3.keys(ARCHIVE), sim.s3.keys(SOURCE));
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
    });
}

/// Sees that bodies take no more memory than they may have.
async fn assert_within_budget(daemon: &Daemon) {
    let used = fleet::figure(daemon, "memory_bytes", &["kind=\"used\""]).await;
    let budget = fleet::figure(daemon, "memory_bytes", &["kind=\"budget\""]).await;
    assert!(budget > 0.0 && used <= budget, "{used} of {budget} bytes");
}

#[test]
fn a_backlog_for_a_destination_that_does_not_answer_leaves_the_hand_to_others() {
    // The queue gives them all out first, and some twice. A write that is not answered is given up
    // after 46 s; until five were, the circuit stays closed.
    let hung = (Effect::Silence { lands: false }, 120);
    for (seed, (effect, patience)) in [(7, (Effect::Unreachable, 60)), (8, hung)] {
        simulate(seed, async |mut sim| {
            sim.post_everything();
            // Half as many again as are in flight at once.
            sim.fill("down/", 3000, 7).await;
            let place = Place::default().bucket(ARCHIVE).client("daemon-0");
            sim.net.faults().add(Fault::new("down", place, effect));
            let other = fleet::rule_text("other", MIRROR, "filter = { prefix = \"up/\" }");
            let daemon = fleet::lone(
                &mut sim,
                &format!("filter = {{ prefix = \"down/\" }}\n{other}"),
                AWS,
            )
            .await;
            sim.put("up/first", b"behind all of them").await;
            sim.pass(Duration::from_secs(patience)).await;
            assert!(sim.shown(MIRROR, "up/first").is_some(), "the hand is full");
            for minute in 0..10 {
                let key = format!("up/{minute}");
                sim.put(&key, b"later").await;
                sim.pass(Duration::from_secs(10)).await;
                assert!(sim.shown(MIRROR, &key).is_some(), "{key} lags");
                sim.pass(Duration::from_secs(50)).await;
            }
            sim.net.faults().clear("down");
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.s3.keys(ARCHIVE).len(), 3000);
        });
    }
}

#[test]
fn a_dead_queue_is_told_and_forgiven() {
    simulate(2, async |mut sim| {
        let place = Place::service(replicator_fakes::journal::Service::Sqs);
        let looks = health_follows(&mut sim, place, Effect::Unreachable, 1).await;
        let told: Vec<bool> = looks.iter().map(|look| look.is_told).collect();
        assert!(
            !told[0] && told[told.len() / 2] && told.is_sorted(),
            "forgiven while it was dead: {told:?}"
        );
    });
}

#[test]
fn a_connection_that_hangs_is_told_and_forgiven() {
    simulate(3, async |mut sim| {
        let place = Place::s3("PutObject").bucket(ARCHIVE);
        let looks = health_follows(&mut sim, place, Effect::Silence { lands: false }, 1).await;
        assert!(
            looks.iter().any(|look| look.is_told),
            "half an hour of trouble and /healthz says nothing"
        );
        // Between two tries there is nothing in flight that a restart could help; that it does not
        // answer is still known.
        let ailing: Vec<bool> = looks.iter().map(|look| look.is_ailing).collect();
        assert!(
            ailing[ailing.len() / 2] && ailing.is_sorted(),
            "forgotten while it hung: {ailing:?}"
        );
    });
}

#[test]
fn a_source_that_fails_whatever_it_is_asked_is_told_and_forgiven() {
    for (seed, place) in [(5, Place::default()), (6, Place::s3("GetObject"))] {
        simulate(seed, async |mut sim| {
            let internal = Effect::refuse(500, "InternalError");
            let looks = health_follows(&mut sim, place.clone().bucket(SOURCE), internal, 8).await;
            let [told, ailing] = [|look: &Look| look.is_told, |look: &Look| look.is_ailing]
                .map(|is| looks.iter().map(is).collect::<Vec<bool>>());
            assert!(
                told[told.len() / 2] && told.is_sorted(),
                "forgotten between two tries: {told:?}, {place:?}"
            );
            assert!(
                ailing[ailing.len() / 2] && ailing.is_sorted(),
                "{ailing:?}, {place:?}"
            );
        });
    }
}

#[test]
fn a_lane_that_is_stuck_is_told_while_others_get_on_and_goes_on_after_a_restart() {
    simulate(4, async |mut sim| {
        sim.post_everything();
        let member = fleet::members(&mut sim, &Plan::of_one("", AWS)).remove(0);
        // The first task that comes there never gets on.
        let at = Failpoint {
            step: Step::PutObject,
            moment: Phase::Before,
        };
        let daemon = member
            .start(Failpoints::armed_at(Some(at), 1, |_| {}))
            .await;
        sim.put("stuck", b"one").await;
        let mut waited = Duration::ZERO;
        while daemon.ailment().await.is_none() {
            assert!(
                waited < Duration::from_secs(1200),
                "stuck for {waited:?} and /healthz says nothing"
            );
            sim.pass(Duration::from_secs(30)).await;
            sim.put("well", b"again").await;
            waited += Duration::from_secs(30);
        }
        assert!(waited > Duration::from_secs(600) && sim.s3.keys(ARCHIVE) == ["well"]);
        let told = daemon.ailment().await.unwrap();
        assert!(
            told.contains(&format!(
                "s3://{ARCHIVE}/stuck is worked on and has not moved"
            )),
            "{told}"
        );
        daemon.stop().await;
        let daemon = member.start(Failpoints::default()).await;
        sim.drained().await;
        assert_eq!(daemon.ailment().await, None, "the cause is gone");
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

/// What the daemon says of itself.
#[derive(Debug)]
struct Look {
    /// `/healthz` complains.
    is_told: bool,
    /// `status` names a bucket that is left alone.
    is_ailing: bool,
}

/// Lets something break for half an hour and sees the health come back by itself; returns what was
/// said meanwhile.
async fn health_follows(sim: &mut Sim, place: Place, effect: Effect, keys: usize) -> Vec<Look> {
    sim.post_everything();
    let daemon = fleet::lone(sim, "", AWS).await;
    sim.put("a", b"one").await;
    sim.drained().await;
    assert_eq!(daemon.ailment().await, None);
    sim.net
        .faults()
        .add(Fault::new("trouble", place.client("daemon-0"), effect));
    sim.fill("b", keys, 3).await;
    let mut looks = Vec::new();
    for _ in 0..60 {
        sim.pass(Duration::from_secs(30)).await;
        let is_ailing = !daemon.status().await.unwrap().degraded.is_empty();
        looks.push(Look {
            is_told: daemon.ailment().await.is_some(),
            is_ailing,
        });
    }
    sim.net.faults().clear("trouble");
    sim.drained().await;
    sim.pass(Duration::from_secs(60)).await;
    assert_eq!(daemon.ailment().await, None, "the trouble is over");
    assert!(
        daemon.status().await.unwrap().degraded.is_empty(),
        "the trouble is over"
    );
    daemon.stop().await;
    assert_eq!(sim.s3.keys(ARCHIVE), sim.s3.keys(SOURCE));
    looks
}
