//! A daemon that lost its ledger reads the destination back, whatever others left there; and a
//! command does, before the daemon starts.

use std::time::Duration;

use aws_sdk_s3::types::{Tag, Tagging};

use replicator_config::Settings;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Service;
use s3_replicator::ledger::directory;
use s3_replicator::verify::records;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, Sim, simulate};

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

/// Has the ledger of the first daemon lost, and read back by the command.
async fn rebuild(sim: &Sim, settings: &Settings, is_lost: bool) -> Result<String, String> {
    if is_lost {
        std::fs::remove_dir_all(settings.state_dir.join("ledger")).unwrap();
    }
    let given = sim.given("rebuild");
    let said = records::rebuild(settings, "orders", Some(&given)).await;
    said.map_err(|error| format!("{error:#}"))
}

/// Counts requests of the command.
fn heads(sim: &Sim) -> usize {
    let entries = sim.net.journal().entries().into_iter();
    let heads =
        entries.filter(|entry| entry.client == "rebuild" && entry.call.operation == "HeadObject");
    heads.count()
}

#[test]
fn a_rebuilt_ledger_answers_what_the_lost_one_answered() {
    for (rule, replicas) in [("", 4), ("history = \"latest\"", 3)] {
        simulate(11, async |mut sim| {
            sim.post_apart(SOURCE, APART);
            sim.put("a", b"one").await;
            sim.put("a", b"two").await;
            sim.put("b", b"one").await;
            let tight = sim.user().put_object().bucket(SOURCE).key("tight");
            let tight = tight.metadata("all", "x".repeat(1_980));
            tight.body(b"one".to_vec().into()).send().await.unwrap();
            let events = sim.sqs.messages(APART);
            let settings = fleet::settings(&mut sim, rule, AWS);
            let daemon = fleet::lone(&mut sim, rule, AWS).await;
            for event in &events {
                sim.sqs.send(QUEUE, event.body.clone(), Duration::ZERO);
                sim.drained().await;
            }
            let busy = rebuild(&sim, &settings, false).await.unwrap_err();
            assert!(busy.contains("in use") && busy.contains("stop"), "{busy}");
            daemon.stop().await;

            let said = rebuild(&sim, &settings, true).await.unwrap();
            let all = format!("3 keys: {replicas} replicas read back, 0 were on record, 0 ");
            assert!(said.starts_with(&all), "{rule}: {said}");
            let before = heads(&sim);
            let said = rebuild(&sim, &settings, false).await.unwrap();
            let none = format!("3 keys: 0 replicas read back, {replicas} were on record");
            assert!(said.starts_with(&none), "{rule}: {said}");
            assert_eq!(heads(&sim), before, "what is on record costs lists alone");

            let before = sim.net.journal().len();
            let daemon = fleet::lone(&mut sim, rule, AWS).await;
            // In latest mode the first version has no replica, and no record any more.
            for event in events.into_iter().skip(1) {
                sim.sqs.send(QUEUE, event.body, Duration::ZERO);
            }
            sim.drained().await;
            daemon.stop().await;
            let calls = sim.net.journal().entries().into_iter().skip(before);
            let to_s3 = calls.filter(|entry| entry.call.service == Service::S3);
            let to_s3: Vec<String> = to_s3.map(|entry| entry.call.operation).collect();
            assert_eq!(to_s3, Vec::<String>::new(), "{rule}");
        });
    }
}

#[test]
fn what_nothing_proves_is_not_read_back() {
    simulate(12, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let user = sim.user();
        let head = user.head_object().bucket(ARCHIVE).key("a");
        let replica = head.send().await.unwrap();
        // Below and above the replica: its stamp with other bytes, at another key, and no stamp.
        for (key, body, metadata) in [
            ("a", "two", replica.metadata.clone()),
            ("b", "one", replica.metadata),
            ("c", "one", None),
        ] {
            let put = user.put_object().bucket(ARCHIVE).key(key);
            let put = put
                .set_metadata(metadata)
                .body(body.as_bytes().to_vec().into());
            put.send().await.unwrap();
        }
        let marker = user.delete_object().bucket(ARCHIVE).key("a");
        marker.send().await.unwrap();
        let said = rebuild(&sim, &settings, true).await.unwrap();
        let all = "3 keys: 1 replicas read back, 0 were on record, 3 objects";
        assert!(said.starts_with(all), "{said}");
        let counts = directory::check(&settings).unwrap();
        assert!(counts.contains(": 1 replicas"), "{counts}");
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 3, "nothing is written");
    });
}

#[test]
fn a_rebuild_that_breaks_off_goes_on() {
    simulate(13, async |mut sim| {
        sim.post_everything();
        sim.fill("a/", 200, 10).await;
        let settings = fleet::settings(&mut sim, "", AWS);
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        let place = Place::service(Service::S3).bucket(ARCHIVE).key("a/50");
        let denied = Fault::new("denied", place, Effect::refuse(403, "AccessDenied"));
        sim.net.faults().add(denied);
        let broken = rebuild(&sim, &settings, true).await.unwrap_err();
        assert!(broken.contains("run it again"), "{broken}");
        sim.net.faults().clear("denied");
        let before = heads(&sim);
        let said = rebuild(&sim, &settings, false).await.unwrap();
        let again = heads(&sim) - before;
        assert!(again <= 100, "{again} of 200 were read again");
        assert!(
            said.contains(", 0 objects are not proved to be replicas, 0 keys"),
            "{said}"
        );
        let counts = directory::check(&settings).unwrap();
        assert!(counts.contains(": 200 replicas"), "{counts}");
    });
}
