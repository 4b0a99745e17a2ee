//! Keys that are gone for good, on both sides: the ledger forgets them, and what is said of them
//! later, or once more, writes nothing. What may matter yet stays on record.

use std::time::Duration;

use replicator_config::Settings;
use replicator_fakes::faults::{Effect, Fault, Place};
use s3_replicator::ledger::directory;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, Sim, simulate};

const APART: &str = "events-apart";

/// Longer than any message waits.
const OLD: Duration = Duration::from_secs(15 * 24 * 3600);

/// The first look through the ledger comes after an hour.
const LOOKED: Duration = Duration::from_secs(4000);

/// Counts the versions that the ledger of a daemon that has stopped knows.
fn on_record(settings: &Settings) -> usize {
    let counts = directory::check(settings).unwrap();
    let (_, counts) = counts.split_once(" is whole: ").unwrap();
    counts.split_once(" replicas").unwrap().0.parse().unwrap()
}

/// Deletes all that the source has of a key for good, and has the destination lose some of it.
async fn remove(sim: &Sim, key: &str, sides: [bool; 2]) {
    let versions = |bucket: &str| {
        let history = sim.s3.history(bucket, key).into_iter();
        history
            .map(|entry| entry.version_id.clone())
            .collect::<Vec<_>>()
    };
    if sides[0] {
        for version in versions(SOURCE) {
            sim.purge(key, &version).await;
        }
    }
    if sides[1] {
        for version in versions(ARCHIVE) {
            sim.s3.lose(ARCHIVE, key, &version);
        }
    }
}

/// Has all events sent again that there ever were, in their order.
fn send_all(sim: &Sim) {
    for message in sim.sqs.messages(APART) {
        sim.sqs.send(QUEUE, message.body, Duration::ZERO);
    }
}

#[test]
fn late_and_repeated_events_of_a_key_that_was_forgotten_write_nothing() {
    let rules = ["", "version_deletes = true", "history = \"latest\""];
    for (rule, is_shared) in rules
        .into_iter()
        .flat_map(|rule| [(rule, false), (rule, true)])
    {
        simulate(1, async |mut sim| {
            if is_shared {
                sim.share();
            }
            sim.post_apart(SOURCE, APART);
            sim.put("gone", b"one").await;
            sim.put("gone", b"two").await;
            sim.delete("gone").await;
            sim.put("gone", b"three").await;
            sim.put("here", b"one").await;
            let settings = fleet::settings(&mut sim, rule, AWS);
            let daemon = fleet::lone(&mut sim, rule, AWS).await;
            send_all(&sim);
            sim.drained().await;
            remove(&sim, "gone", [true, true]).await;
            daemon.stop().await;
            let before = on_record(&settings);
            assert!(before > 1, "{rule}: {before}");

            sim.pass(OLD).await;
            let daemon = fleet::lone(&mut sim, rule, AWS).await;
            let sent = sim.net.journal().len();
            sim.pass(LOOKED).await;
            let calls = sim.net.journal().entries().into_iter().skip(sent);
            let calls = calls.filter(|entry| entry.call.operation != "ReceiveMessage");
            let mut operations: Vec<String> = calls.map(|entry| entry.call.operation).collect();
            assert!(operations.len() <= 4, "{operations:?}");
            operations.dedup();
            assert_eq!(operations, ["ListObjectVersions"], "{rule}");
            daemon.stop().await;
            assert_eq!(
                on_record(&settings),
                1,
                "{rule}: what is there is on record"
            );

            let ever = sim.s3.ever(ARCHIVE, "gone").len();
            let daemon = fleet::lone(&mut sim, rule, AWS).await;
            for _ in 0..2 {
                send_all(&sim);
                sim.drained().await;
            }
            assert_eq!(sim.s3.ever(ARCHIVE, "gone").len(), ever, "{rule}");
            assert_eq!(sim.s3.history(ARCHIVE, "gone").len(), 0, "{rule}");
            assert_eq!(sim.s3.history(ARCHIVE, "here").len(), 1, "{rule}");
            // The key begins anew.
            sim.put("gone", b"four").await;
            sim.delete("gone").await;
            sim.put("gone", b"five").await;
            send_all(&sim);
            sim.drained().await;
            daemon.stop().await;
            let shown = sim.s3.history(ARCHIVE, "gone").len();
            let wanted = if rule.contains("latest") { 1 } else { 3 };
            assert_eq!(shown, wanted, "{rule}");
            assert_eq!(sim.shown(ARCHIVE, "gone").as_deref(), Some(&b"five"[..]));
        });
    }
}

#[test]
fn what_either_bucket_has_what_is_young_and_what_is_parked_stays_on_record() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        for key in [
            "source only",
            "destination only",
            "both",
            "hidden",
            "parked",
            "gone",
        ] {
            sim.put(key, b"one").await;
        }
        sim.delete("hidden").await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        let denied = Place::s3("PutObject").bucket(ARCHIVE).key("parked");
        let denied = Fault::new("denied", denied, Effect::refuse(403, "AccessDenied"));
        sim.net.faults().add(denied);
        sim.put("parked", b"two").await;
        sim.drained().await;
        daemon.stop().await;
        sim.s3.silence(SOURCE);
        remove(&sim, "source only", [false, true]).await;
        remove(&sim, "destination only", [true, false]).await;
        // Its marker is left at the destination alone.
        remove(&sim, "hidden", [true, false]).await;
        let replica = sim.s3.history(ARCHIVE, "hidden")[0].version_id.clone();
        sim.s3.lose(ARCHIVE, "hidden", &replica);
        remove(&sim, "parked", [true, true]).await;
        remove(&sim, "gone", [true, true]).await;
        sim.pass(OLD).await;

        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("young", b"one").await;
        sim.drained().await;
        remove(&sim, "young", [true, true]).await;
        sim.drained().await;
        let before = on_record(&settings);
        sim.pass(LOOKED).await;
        daemon.stop().await;
        assert_eq!(before - on_record(&settings), 1, "only that which is gone");
    });
}

#[test]
fn a_key_that_has_work_is_not_forgotten() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        sim.s3.silence(SOURCE);
        remove(&sim, "a", [true, true]).await;
        sim.pass(OLD).await;

        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.post_everything();
        let slow = Place::s3("PutObject").bucket(ARCHIVE);
        let slow = Fault::new("slow", slow, Effect::Delay(Duration::from_secs(30)));
        sim.net.faults().add(slow.times(1));
        sim.pass(Duration::from_secs(3590)).await;
        sim.put("a", b"two").await;
        while sim.net.faults().hits("slow") == 0 {
            sim.pass(Duration::from_millis(10)).await;
        }
        // Both lists are empty now, and the object is on its way.
        sim.s3.silence(SOURCE);
        remove(&sim, "a", [true, false]).await;
        let lists = || {
            let entries = sim.net.journal().entries().into_iter();
            let lists = entries.filter(|entry| entry.call.operation == "ListObjectVersions");
            lists.count()
        };
        let before = lists();
        sim.pass(Duration::from_secs(25)).await;
        assert_eq!(lists() - before, 4, "it was looked for");
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 1);
        assert_eq!(on_record(&settings), 2);
    });
}
