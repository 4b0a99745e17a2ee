//! Versions that were deleted permanently meanwhile.

use std::time::Duration;

use replicator_fakes::faults::{Effect, Fault, Place};

use super::deafen;
use crate::fleet;
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, simulate};

#[test]
fn a_version_that_is_deleted_for_good_while_its_copy_is_on_the_way_does_not_stay() {
    simulate(2, async |mut sim| {
        sim.share();
        sim.post_everything();
        let rule = "version_deletes = true";
        let first = fleet::lone(&mut sim, rule, AWS).await;
        sim.put("a", b"stays").await;
        sim.drained().await;
        // The answer is lost, and the write lands when its daemon waits for it and no other daemon
        // has a record of it.
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("late", place, Effect::LandLate(Duration::from_secs(15))).times(1));
        sim.put("a", b"goes").await;
        deafen(&sim, 0).await;
        assert_eq!(sim.net.faults().hits("late"), 1);
        let second = fleet::nth(&mut sim, rule, AWS, 1).await;
        sim.purge("a", &sim.newest("a")).await;
        sim.drained().await;
        first.stop().await;
        second.stop().await;
        assert_eq!(
            sim.s3.history(ARCHIVE, "a").len(),
            1,
            "the version is gone at the source"
        );
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    });
}

#[test]
fn a_write_does_not_rest_on_a_look_from_before_its_source_was_asked() {
    simulate(6, async |mut sim| {
        sim.share();
        let rule = "version_deletes = true";
        sim.post_everything();
        // List and body together take so long that the destination is looked at again, and then the
        // source takes long to say whether it still has the version.
        let slow = [
            ("list", "ListObjectVersions", 8, 1),
            ("body", "GetObject", 10, 1),
            ("question", "HeadObject", 70, 2),
        ];
        for (name, operation, seconds, times) in slow {
            let place = Place::s3(operation).bucket(SOURCE).client("daemon-0");
            sim.net.faults().add(
                Fault::new(name, place, Effect::Delay(Duration::from_secs(seconds))).times(times),
            );
        }
        sim.put("a", b"one").await;
        let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
        let slow = fleet::lone(&mut sim, rule, AWS).await;
        deafen(&sim, 0).await;
        sim.pass(Duration::from_secs(15)).await;
        assert_eq!(sim.net.faults().hits("question"), 1);
        let quick = fleet::nth(&mut sim, rule, AWS, 1).await;
        sim.sqs.send(QUEUE, event, Duration::ZERO);
        sim.delete("a").await;
        sim.drained().await;
        assert_eq!(
            (
                sim.net.faults().hits("body"),
                sim.net.faults().hits("question")
            ),
            (1, 2)
        );
        slow.stop().await;
        quick.stop().await;
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            2,
            "one object and the marker that hides it"
        );
    });
}

#[test]
fn a_version_that_is_gone_before_a_marker_was_seen_does_not_stay() {
    simulate(7, async |mut sim| {
        sim.share();
        sim.post_everything();
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(20))).times(1));
        let slow = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        deafen(&sim, 0).await;
        assert_eq!(sim.net.faults().hits("slow"), 1);
        // It is deleted permanently, and the key as well. A daemon that sees nothing of it has no
        // need of a marker.
        sim.purge("a", &sim.newest("a")).await;
        sim.delete("a").await;
        let quick = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.drained().await;
        slow.stop().await;
        quick.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), None, "the source shows nothing");
    });
}

#[test]
fn a_marker_that_a_removal_bares_does_not_hide_what_the_source_shows() {
    simulate(9, async |mut sim| {
        sim.share();
        sim.post_everything();
        let rule = "version_deletes = true";
        let knows = fleet::lone(&mut sim, rule, AWS).await;
        sim.put("a", b"one").await;
        let marker = sim.delete("a").await;
        sim.put("a", b"two").await;
        sim.drained().await;
        knows.stop().await;
        // The daemon that hears that the marker was taken back did not write it, and sees what
        // stands above it.
        let hears = fleet::nth(&mut sim, rule, AWS, 1).await;
        sim.purge("a", &marker).await;
        sim.drained().await;
        hears.stop().await;
        assert_eq!(
            sim.s3.history(ARCHIVE, "a").len(),
            3,
            "nobody knew which entry the marker was"
        );
        let knows = fleet::lone(&mut sim, rule, AWS).await;
        sim.purge("a", &sim.newest("a")).await;
        sim.drained().await;
        knows.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 1);
    });
}

#[test]
fn a_version_delete_that_is_not_answered_is_waited_for() {
    simulate(9, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(
            &mut sim,
            "version_deletes = true\nversion_delete_delay = \"0s\"",
            AWS,
        )
        .await;
        sim.put("a", b"one").await;
        sim.delete("a").await;
        sim.drained().await;
        let place = Place::s3("DeleteObject").bucket(ARCHIVE);
        sim.net
            .faults()
            .add(Fault::new("late", place, Effect::LandLate(Duration::from_secs(15))).times(1));
        sim.purge("a", &sim.newest("a")).await;
        while sim.net.faults().hits("late") == 0 {
            sim.pass(Duration::from_millis(100)).await;
        }
        // The marker is still there, and would pass for the replica of this one.
        sim.delete("a").await;
        sim.drained().await;
        daemon.stop().await;
        sim.net.quiet().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), None, "the source shows nothing");
    });
}

#[test]
fn a_marker_that_is_taken_back_while_the_version_below_is_copied_is_not_written() {
    simulate(11, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let marker = sim.delete("a").await;
        let place = Place::s3("GetObject").bucket(SOURCE);
        sim.net
            .faults()
            .add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(20))).times(1));
        let daemon = fleet::lone(&mut sim, "version_deletes = true", AWS).await;
        while sim.net.faults().hits("slow") == 0 {
            sim.pass(Duration::from_millis(100)).await;
        }
        sim.purge("a", &marker).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            1,
            "the marker was gone when it was to be written"
        );
    });
}

#[test]
fn a_marker_is_written_though_every_list_takes_longer_than_a_reading_may_be_old() {
    simulate(12, async |mut sim| {
        sim.post_everything();
        let place = Place::s3("ListObjectVersions").bucket(SOURCE);
        sim.net.faults().add(Fault::new(
            "slow",
            place,
            Effect::Delay(Duration::from_secs(16)),
        ));
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "version_deletes = true", AWS).await;
        sim.drained().await;
        sim.delete("a").await;
        sim.drained().await;
        let parked = daemon.status().await.unwrap().parked;
        daemon.stop().await;
        assert!(parked.is_empty(), "{parked:?}");
        assert_eq!(sim.shown(ARCHIVE, "a"), None, "the source shows nothing");
    });
}
