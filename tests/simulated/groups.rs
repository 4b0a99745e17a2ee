//! Work that goes through queues of message groups: which daemon does which part of it, and when a
//! group's work ends.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::{Entry, Service};
use s3_replicator::pipeline::Role;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, MIRROR, MIRROR_WORK, NOT_AWS, QUEUE, SOURCE, Sim, WORK, simulate};

/// Says whether a daemon ever asked for this.
fn asked(sim: &Sim, client: &str, holds: impl Fn(&Entry) -> bool) -> bool {
    !sim.net
        .journal()
        .select(|entry| entry.client == client && holds(entry))
        .is_empty()
}

#[test]
fn a_router_and_a_worker_do_what_one_daemon_does() {
    simulate(1, async |mut sim| {
        sim.share();
        sim.post_everything();
        let router = fleet::nth_as(&mut sim, Role::Router, 0).await;
        let worker = fleet::nth_as(&mut sim, Role::Worker, 1).await;
        sim.fill("some-", 20, 100).await;
        sim.put("a", b"one").await;
        sim.delete("a").await;
        sim.drained().await;
        let (status, ailment) = (router.status().await.unwrap(), router.ailment().await);
        assert!(status.ready && ailment.is_none(), "{ailment:?}");
        router.stop().await;
        worker.stop().await;
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        assert!(
            !asked(&sim, "daemon-0", |entry| entry.call.service == Service::S3),
            "the router asks no bucket"
        );
        let is_event = |entry: &Entry| {
            entry.call.operation == "ReceiveMessage" && entry.call.bucket.as_deref() == Some(QUEUE)
        };
        assert!(asked(&sim, "daemon-0", is_event) && !asked(&sim, "daemon-1", is_event));
    });
}

#[test]
fn a_work_queue_that_hangs_holds_up_no_other() {
    simulate(2, async |mut sim| {
        sim.share();
        sim.post_everything();
        let place = Place::sqs("SendMessageBatch")
            .bucket(WORK)
            .client("daemon-0");
        sim.net.faults().add(Fault::new(
            "hang",
            place,
            Effect::Delay(Duration::from_secs(120)),
        ));
        let mirror = format!(
            "work_queue = \"{}\"\nfilter = {{ prefix = \"mirror/\" }}",
            sim.sqs.url(MIRROR_WORK)
        );
        let rule = format!(
            "filter = {{ prefix = \"archive/\" }}\n{}",
            fleet::rule_text("mirror", MIRROR, &mirror)
        );
        let daemon = fleet::lone(&mut sim, &rule, AWS).await;
        for number in 0..200 {
            sim.put(&format!("archive/{number}"), b"one").await;
        }
        sim.pass(Duration::from_secs(2)).await;
        for number in 0..20 {
            sim.put(&format!("mirror/{number}"), b"one").await;
        }
        sim.pass(Duration::from_secs(5)).await;
        let arrived = |bucket, prefix: &str, keys| {
            (0..keys)
                .filter(|number| sim.shown(bucket, &format!("{prefix}/{number}")).is_some())
                .count()
        };
        assert_eq!(
            (
                arrived(MIRROR, "mirror", 20),
                arrived(ARCHIVE, "archive", 200)
            ),
            (20, 0)
        );
        sim.net.faults().clear("hang");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(arrived(ARCHIVE, "archive", 200), 200);
    });
}

#[test]
fn a_work_queue_that_takes_nothing_is_told_of_and_loses_nothing() {
    simulate(6, async |mut sim| {
        sim.share();
        sim.post_everything();
        let place = Place::sqs("SendMessageBatch").bucket(WORK);
        sim.net.faults().add(Fault::new(
            "denied",
            place,
            Effect::refuse(403, "AccessDenied"),
        ));
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        for number in 0..50 {
            sim.put(&format!("key-{number}"), b"one").await;
        }
        sim.pass(Duration::from_secs(600)).await;
        let (metrics, ailment) = (daemon.metrics().await.unwrap(), daemon.ailment().await);
        assert!(metrics.contains("reason=\"NotRouted\""), "{metrics}");
        assert!(ailment.is_some(), "nothing has moved for ten minutes");
        sim.net.faults().clear("denied");
        sim.drained().await;
        assert_eq!(daemon.ailment().await, None);
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn what_a_dead_worker_had_in_flight_does_not_delay_other_keys() {
    simulate(7, async |mut sim| {
        sim.share();
        sim.post_everything();
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new(
            "silence",
            place,
            Effect::Delay(Duration::from_secs(600)),
        ));
        let first = fleet::lone(&mut sim, "", AWS).await;
        for number in 0..600 {
            sim.put(&format!("old/{number}"), b"one").await;
        }
        sim.pass(Duration::from_secs(3)).await;
        drop(first);
        let redelivered = sim
            .sqs
            .messages(WORK)
            .iter()
            .filter(|message| message.receives > 0)
            .count();
        assert!(
            redelivered >= 500,
            "{redelivered} fill all places of a worker"
        );
        sim.redeliver_hidden();
        let second = fleet::nth(&mut sim, "", AWS, 1).await;
        // The polls that the dead one left have ended by then.
        sim.pass(Duration::from_secs(6)).await;
        for number in 0..20 {
            sim.put(&format!("new/{number}"), b"one").await;
        }
        sim.pass(Duration::from_secs(10)).await;
        let arrived = |prefix: &str| {
            sim.s3
                .keys(ARCHIVE)
                .iter()
                .filter(|key| key.starts_with(prefix))
                .count()
        };
        assert_eq!(arrived("new/"), 20, "they wait for no predecessor");
        assert!(arrived("old/") < 600, "these do");
        sim.drained().await;
        second.stop().await;
        assert_eq!(arrived("old/"), 600);
    });
}

#[test]
fn work_that_may_follow_a_crash_is_not_handed_back_as_fresh() {
    simulate(3, async |mut sim| {
        sim.share();
        sim.post_everything();
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new(
            "silence",
            place,
            Effect::Delay(Duration::from_secs(600)),
        ));
        let first = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        while sim.net.faults().hits("silence") == 0 {
            sim.pass(Duration::from_millis(100)).await;
        }
        drop(first);
        sim.redeliver_hidden();
        let second = fleet::nth(&mut sim, "", AWS, 1).await;
        // It has the message, and waits for what the first one sent.
        sim.pass(Duration::from_secs(2)).await;
        second.stop().await;
        let left = sim.sqs.messages(WORK);
        let told: Vec<_> = left
            .iter()
            .map(|message| (message.receives, message.attributes.len()))
            .collect();
        assert_eq!(
            told,
            [(2, 0)],
            "the next worker has to know that it follows another"
        );
    });
}

#[test]
fn two_daemons_without_a_work_queue_say_that_they_are_not_alone() {
    for account in [AWS, NOT_AWS] {
        simulate(4, async move |mut sim| {
            sim.post_everything();
            let daemons = [
                fleet::lone(&mut sim, "", account).await,
                fleet::nth(&mut sim, "", account, 1).await,
            ];
            sim.pass(Duration::from_secs(60)).await;
            for number in 0..20 {
                sim.put(&format!("key-{}", number % 3), b"one").await;
                sim.pass(Duration::from_secs(1)).await;
            }
            sim.drained().await;
            let mut told = Vec::new();
            for daemon in daemons {
                told.extend(daemon.status().await.unwrap().second_daemon);
                daemon.stop().await;
            }
            assert!(
                told.iter().any(|told| told.contains("work_queue")),
                "{account}: {told:?}"
            );
        });
    }
}

#[test]
fn what_fails_for_its_own_sake_is_parked_though_no_daemon_lives_long_enough_to_count() {
    simulate(5, async |mut sim| {
        sim.share();
        sim.post_everything();
        let place = Place::s3("GetObject").bucket(SOURCE).key("sick");
        sim.net.faults().add(Fault::new(
            "trouble",
            place,
            Effect::refuse(500, "InternalError"),
        ));
        sim.put("sick", b"one").await;
        for number in 0..100 {
            let daemon = fleet::nth(&mut sim, "", AWS, number % 2).await;
            // Others get on, so it is for its own sake. What is parked is tried again soon at first.
            let mut is_parked = false;
            for other in 0..30 {
                sim.put(&format!("well-{number}-{other}"), b"one").await;
                sim.pass(Duration::from_secs(30)).await;
                is_parked |= !daemon.status().await.unwrap().parked.is_empty();
            }
            daemon.stop().await;
            if is_parked {
                return assert!(number > 5, "it was parked after {number} lives");
            }
        }
        panic!("it is tried for ever: {:?}", sim.sqs.messages(WORK));
    });
}
