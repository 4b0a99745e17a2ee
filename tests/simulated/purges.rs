//! Version deletes that may be forged: any writer of the queue can tell of a version that is gone.

use std::time::Duration;

use crate::fleet::{self, TRIED_WITHIN};
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, Sim, simulate};

/// Writes two versions of a key.
async fn put_twice(sim: &Sim, key: &str) {
    sim.put(key, b"one").await;
    sim.put(key, b"two").await;
}

/// Removes the older version of a key at the source.
async fn remove_older(sim: &Sim, key: &str) {
    let older = sim.s3.history(SOURCE, key)[0].version_id.clone();
    sim.purge(key, &older).await;
}

/// Counts the keys whose older replica is gone.
fn removed(sim: &Sim) -> usize {
    sim.s3
        .keys(ARCHIVE)
        .iter()
        .filter(|key| sim.s3.history(ARCHIVE, key).len() == 1)
        .count()
}

#[test]
fn a_version_delete_waits_so_long_that_the_daemon_can_be_stopped() {
    simulate(1, async |mut sim| {
        let rule = "version_deletes = true\nversion_delete_delay = \"1h\"";
        sim.post_everything();
        put_twice(&sim, "a").await;
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        sim.drained().await;
        // Lifecycle removes it, and the bucket does not notify of that.
        sim.post_apart(SOURCE, "unread");
        remove_older(&sim, "a").await;
        let forged = sim.sqs.messages("unread").last().unwrap().body.clone();
        assert!(forged.contains("ObjectRemoved:Delete\""), "{forged}");
        sim.post_everything();
        sim.sqs.send(QUEUE, forged, Duration::ZERO);
        sim.put("a", b"three").await;
        sim.pass(Duration::from_secs(59 * 60)).await;
        assert_eq!(
            sim.s3.history(ARCHIVE, "a").len(),
            3,
            "what else happens to the key does not wait"
        );
        daemon.stop().await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(
            sim.s3.history(ARCHIVE, "a").len(),
            3,
            "the rule was changed in time"
        );
    });
}

#[test]
fn a_version_delete_that_has_waited_is_carried_out() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        put_twice(&sim, "a").await;
        let daemon = fleet::lone(
            &mut sim,
            "version_deletes = true\nversion_delete_delay = \"1h\"",
            AWS,
        )
        .await;
        sim.drained().await;
        remove_older(&sim, "a").await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(removed(&sim), 1);
    });
}

#[test]
fn a_version_delete_is_carried_out_though_the_queues_clock_is_months_ahead() {
    for is_restarted in [false, true] {
        simulate(2, async |mut sim| {
            let rule = "version_deletes = true\nversion_delete_delay = \"1h\"";
            let ours = sim.clock.now() - Duration::from_secs(100 * 24 * 60 * 60);
            s3_replicator::clock::simulate(ours.into());
            sim.post_everything();
            put_twice(&sim, "a").await;
            let mut daemon = fleet::lone(&mut sim, rule, AWS).await;
            sim.drained().await;
            remove_older(&sim, "a").await;
            sim.pass(Duration::from_secs(60)).await;
            if is_restarted {
                daemon.stop().await;
                daemon = fleet::lone(&mut sim, rule, AWS).await;
            }
            sim.pass(Duration::from_secs(58 * 60)).await;
            assert_eq!(removed(&sim), 0, "restarted: {is_restarted}");
            sim.pass(Duration::from_secs(10 * 60)).await;
            assert_eq!(removed(&sim), 1, "restarted: {is_restarted}");
            daemon.stop().await;
        });
    }
}

#[test]
fn version_deletes_beyond_the_quota_of_an_hour_wait_where_they_are_seen_and_none_is_lost() {
    for is_restarted in [false, true] {
        simulate(3, async |mut sim| {
            let rule = "version_deletes = true\nversion_deletes_per_hour = 2";
            let parked = &["reason=\"VersionDeletesPerHour\""];
            sim.post_everything();
            let keys = ["a", "b", "c", "d", "e"];
            for key in keys {
                put_twice(&sim, key).await;
            }
            let mut daemon = fleet::lone(&mut sim, rule, AWS).await;
            sim.drained().await;
            for key in keys {
                remove_older(&sim, key).await;
            }
            sim.drained().await;
            if is_restarted {
                daemon.stop().await;
                daemon = fleet::lone(&mut sim, rule, AWS).await;
            }
            sim.pass(Duration::from_secs(40 * 60)).await;
            assert_eq!(removed(&sim), 2);
            assert_eq!(fleet::figure(&daemon, "parked", parked).await, 3.0);
            // Its neighbours go on.
            sim.put("a", b"three").await;
            sim.pass(Duration::from_secs(60)).await;
            assert_eq!(sim.shown(ARCHIVE, "a").as_deref(), Some(&b"three"[..]));
            sim.pass(3 * TRIED_WITHIN).await;
            assert_eq!(fleet::figure(&daemon, "parked", parked).await, 0.0);
            daemon.stop().await;
            for key in keys {
                let [source, replica] =
                    [SOURCE, ARCHIVE].map(|bucket| sim.s3.history(bucket, key).len());
                assert_eq!(source, replica, "{key}");
            }
        });
    }
}

#[test]
fn only_an_event_of_a_version_that_was_deleted_removes_a_replica() {
    simulate(4, async |mut sim| {
        sim.post_everything();
        put_twice(&sim, "a").await;
        let created = sim.sqs.messages(QUEUE)[0].body.clone();
        let daemon = fleet::lone(&mut sim, "version_deletes = true", AWS).await;
        sim.drained().await;
        sim.post_apart(SOURCE, "unread");
        remove_older(&sim, "a").await;
        for kind in [
            "ObjectRemoved:DeleteMarkerCreated",
            "ObjectTagging:Delete",
            "ObjectCreated:Put",
            "ObjectAcl:Put",
        ] {
            let forged = created.replace("ObjectCreated:Put", kind);
            assert!(forged.contains(kind), "{forged}");
            sim.sqs.send(QUEUE, forged, Duration::ZERO);
        }
        sim.drained().await;
        assert_eq!(removed(&sim), 0);
        sim.sqs.send(
            QUEUE,
            created.replace("ObjectCreated:Put", "LifecycleExpiration:Delete"),
            Duration::ZERO,
        );
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(
            removed(&sim),
            1,
            "lifecycle's deletes travel where the bucket notifies of them"
        );
    });
}
