//! A daemon that lost its ledger reads the destination back, whatever others left there.

use std::time::Duration;

use aws_sdk_s3::types::{Tag, Tagging};

use replicator_fakes::faults::{Effect, Fault, Place};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, simulate};

#[test]
fn of_two_replicas_of_one_version_the_one_that_is_shown_gets_the_tags() {
    simulate(7, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        sim.put("a", b"two").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();

        // A user restores the replica from elsewhere, its stamp included.
        let replica = sim
            .user()
            .head_object()
            .bucket(ARCHIVE)
            .key("a")
            .send()
            .await
            .unwrap();
        let again = sim
            .user()
            .put_object()
            .bucket(ARCHIVE)
            .key("a")
            .set_metadata(replica.metadata);
        again.body(b"two".to_vec().into()).send().await.unwrap();
        let tag = Tag::builder().key("tier").value("gold").build().unwrap();
        let tagging = Tagging::builder().tag_set(tag.clone()).build().unwrap();
        sim.user()
            .put_object_tagging()
            .bucket(SOURCE)
            .key("a")
            .tagging(tagging)
            .send()
            .await
            .unwrap();

        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let shown = sim
            .user()
            .get_object_tagging()
            .bucket(ARCHIVE)
            .key("a")
            .send()
            .await
            .unwrap();
        assert_eq!(shown.tag_set, [tag]);
        assert_eq!(
            sim.s3.history(ARCHIVE, "a").len(),
            3,
            "nothing had to be written"
        );
    });
}

#[test]
fn a_marker_that_is_taken_back_goes_though_no_ledger_knows_whose_it_is() {
    take_back(1);
}

#[test]
fn of_two_markers_that_are_taken_back_the_second_counts_as_unknown_too() {
    take_back(2);
}

#[test]
fn one_answer_with_a_wrong_etag_does_not_make_a_replica_foreign() {
    for hide in [false, true] {
        simulate(10, async move |mut sim| {
            sim.post_everything();
            sim.put("a", b"one").await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            if hide {
                sim.delete("a").await;
            }
            sim.drained().await;
            daemon.stop().await;
            std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
            let place = Place::s3("HeadObject").bucket(ARCHIVE);
            // Of a hidden object the second answer is the first that has an ETag.
            let wrong = Fault::new("wrong", place, Effect::WrongETag).times(1 + u64::from(hide));
            sim.net.faults().add(wrong);
            sim.put("a", b"two").await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            daemon.stop().await;
            assert!(sim.net.faults().hits("wrong") > 0);
            assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
            assert_eq!(
                sim.s3.ever(ARCHIVE, "a").len(),
                sim.s3.ever(SOURCE, "a").len()
            );
        });
    }
}

/// Hides an object by so many markers, has the ledger lost, and takes the markers back one after
/// the other.
fn take_back(markers: usize) {
    simulate(8, async move |mut sim| {
        let rule = "version_deletes = true";
        sim.post_everything();
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        let mut marked = Vec::new();
        for _ in 0..markers {
            marked.push(sim.delete("a").await);
            // The next is younger than the one at the destination, and cannot be taken for it.
            sim.drained().await;
            sim.pass(Duration::from_secs(2)).await;
        }
        daemon.stop().await;
        std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
        assert_eq!(sim.shown(ARCHIVE, "a"), None);

        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        for marker in marked {
            sim.purge("a", &marker).await;
            sim.drained().await;
        }
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            2,
            "what was hidden is not written once more"
        );
    });
}

#[test]
fn a_replica_with_little_room_for_its_stamp_follows_a_version_delete_that_is_heard_of_late() {
    simulate(9, async |mut sim| {
        let rule = "version_deletes = true";
        sim.post_everything();
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .metadata("all", "x".repeat(1_980));
        let goes = put
            .body(b"goes".to_vec().into())
            .send()
            .await
            .unwrap()
            .version_id
            .unwrap();
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        sim.drained().await;
        daemon.stop().await;
        std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
        sim.post_apart(SOURCE, APART);
        sim.purge("a", &goes).await;
        sim.put("a", b"stays").await;
        let [deleted, created] = sim.sqs.messages(APART).try_into().unwrap();
        // What was put is heard of first, by a ledger that only the stamp can tell what is there.
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        sim.sqs.send(QUEUE, created.body, Duration::ZERO);
        sim.drained().await;
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 2);
        sim.sqs.send(QUEUE, deleted.body, Duration::ZERO);
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(
            sim.s3.history(ARCHIVE, "a").len(),
            1,
            "its original was deleted for good"
        );
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    });
}

const APART: &str = "events-apart";
