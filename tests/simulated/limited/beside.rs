//! A rule whose work goes slowly leaves others their places, and another queue its part of the
//! messages that are in work.

use std::time::Duration;

use replicator_config::Queue;
use s3_replicator::pipeline::Daemon;

use super::TEN_SECONDS;
use crate::fleet;
use crate::sim::{ARCHIVE, AWS, SOURCE, Sim, simulate};

/// Writes two rules for one destination, by prefix, and what the first may use.
fn beside(limits: &str) -> String {
    let other = fleet::rule_text("small", ARCHIVE, "filter = { prefix = \"small/\" }");
    format!("filter = {{ prefix = \"large/\" }}\n{limits}\n{other}")
}

fn arrived(sim: &Sim, prefix: &str) -> usize {
    sim.s3
        .keys_ever(ARCHIVE)
        .iter()
        .filter(|key| key.starts_with(prefix))
        .count()
}

/// Counts receipts of messages.
async fn received(daemon: &Daemon) -> f64 {
    fleet::figure(daemon, "queue_messages_total", &["outcome=\"received\""]).await
}

#[test]
fn a_backlog_that_waits_for_its_rules_limit_takes_no_other_rules_places() {
    simulate(16, async |mut sim| {
        sim.post_everything();
        // More than there are places.
        sim.fill("large/", 400, 7).await;
        let daemon = fleet::lone(
            &mut sim,
            &beside("limits = { requests_per_second = 1 }"),
            AWS,
        )
        .await;
        sim.pass(TEN_SECONDS).await;
        sim.fill("small/", 100, 7).await;
        sim.pass(Duration::from_secs(5)).await;
        assert_eq!(arrived(&sim, "small/"), 100);
        assert!(arrived(&sim, "large/") < 40, "those wait for their limit");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(arrived(&sim, "large/"), 400);
    });
}

#[test]
fn large_objects_that_wait_for_their_rules_limit_take_no_other_rules_places() {
    simulate(17, async |mut sim| {
        sim.post_everything();
        sim.fill("large/", 40, 9 << 20).await;
        let daemon = fleet::lone(
            &mut sim,
            &beside("limits = { bandwidth = \"256KiB/s\" }"),
            AWS,
        )
        .await;
        sim.pass(TEN_SECONDS).await;
        sim.fill("small/", 2, 9 << 20).await;
        sim.pass(TEN_SECONDS).await;
        assert_eq!(arrived(&sim, "small/"), 2, "they are as large");
        assert!(arrived(&sim, "large/") < 2);
        daemon.stop().await;
    });
}

#[test]
fn a_backlog_that_would_fill_the_hand_leaves_room_for_what_comes_by_another_queue() {
    simulate(18, async |mut sim| {
        sim.post_everything();
        // Twice what is in flight at once, and ten minutes' worth.
        sim.fill("large/", 4000, 7).await;
        sim.post_apart(SOURCE, "apart");
        let rules = beside("limits = { requests_per_second = 7 }");
        let url = sim.sqs.url("apart");
        let daemon = fleet::lone_with(&mut sim, &rules, |settings| {
            let first = settings.queues.first().unwrap().clone();
            settings.queues.push(Queue { url, ..first });
        })
        .await;
        sim.pass(TEN_SECONDS).await;
        sim.fill("small/", 10, 7).await;
        sim.pass(TEN_SECONDS).await;
        assert_eq!(arrived(&sim, "small/"), 10);
        let board = daemon.status().await.unwrap().in_flight;
        assert!(
            (900..=1000).contains(&board.messages),
            "{} messages are in hand",
            board.messages
        );
        assert!(arrived(&sim, "large/") < 200, "the hand is full of those");
        sim.drained().await;
        let received = received(&daemon).await;
        daemon.stop().await;
        assert_eq!(arrived(&sim, "large/"), 4000);
        assert_eq!(received, 4010.0, "each is received once");
    });
}

#[test]
fn a_key_that_changes_all_the_time_leaves_room_for_others() {
    simulate(19, async |mut sim| {
        sim.post_everything();
        for _ in 0..600 {
            sim.put("lock", b"mine").await;
            sim.delete("lock").await;
        }
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.fill("other-", 10, 7).await;
        sim.pass(Duration::from_secs(60)).await;
        assert_eq!(arrived(&sim, "other-"), 10);
        daemon.stop().await;
    });
}

#[test]
fn a_destination_that_is_asked_little_because_of_a_limit_is_in_no_trouble() {
    simulate(20, async |mut sim| {
        sim.post_everything();
        // Each takes sixteen seconds.
        sim.fill("", 600, 1 << 20).await;
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"64KiB/s\" }", AWS).await;
        sim.pass(Duration::from_secs(120)).await;
        assert_eq!(received(&daemon).await, 600.0, "messages were sent back");
        daemon.stop().await;
    });
}
