//! What comes so late that its reason has gone: a write that was planned minutes ago, a version that was deleted for
//! good while it was copied. Each is told step by step, because chance meets it too seldom.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::traits::Traits;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, NOT_AWS, QUEUE, SOURCE, Sim, simulate};

const EXPECT: Expect = Expect { latest: false, version_deletes: false, purges: false, orphans: true, remembers: false };

#[test]
fn a_plan_that_had_to_wait_is_not_carried_out_over_what_came_meanwhile() {
    simulate(1, async |mut sim| {
        sim.post_everything();
        let slow = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        sim.drained().await;
        // The first daemon sees that "one" is current, and takes two minutes to get "two".
        for operation in ["GetObject", "GetObjectTagging"] {
            let place = Place::s3(operation).client("daemon-0");
            sim.net.faults().add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(55))).times(1));
        }
        let two = sim.user().put_object().bucket(SOURCE).key("a").tagging("tier=gold").body(b"two".to_vec().into());
        two.send().await.unwrap();
        deafen(&sim).await;
        // Meanwhile another one brings the key up to date, and what is current looks as it did before.
        let quick = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.put("a", b"one").await;
        sim.drained().await;
        assert_eq!(sim.net.faults().hits("slow"), 2);
        slow.stop().await;
        quick.stop().await;
        assert_eq!(judge(&sim, EXPECT), Vec::<String>::new());
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 3);
    });
}

#[test]
fn a_version_that_is_deleted_for_good_while_its_copy_is_on_the_way_does_not_stay() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        let rule = "version_deletes = true";
        let first = fleet::lone(&mut sim, rule, AWS).await;
        sim.put("a", b"stays").await;
        sim.drained().await;
        // The answer is lost, and the write lands when its daemon waits for it and nobody else knows of it.
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new("late", place, Effect::LandLate(Duration::from_secs(15))).times(1));
        sim.put("a", b"goes").await;
        deafen(&sim).await;
        assert_eq!(sim.net.faults().hits("late"), 1);
        let second = fleet::nth(&mut sim, rule, AWS, 1).await;
        let goes = sim.s3.history(SOURCE, "a").last().unwrap().version_id.clone();
        let delete = sim.user().delete_object().bucket(SOURCE).key("a").version_id(goes);
        delete.send().await.unwrap();
        sim.drained().await;
        first.stop().await;
        second.stop().await;
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 1, "the version is gone at the source");
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    });
}

#[test]
fn what_a_removed_replica_hid_is_not_written_over_by_a_write_from_before() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        let rule = "version_deletes = true";
        let slow = fleet::lone(&mut sim, rule, AWS).await;
        sim.put("a", b"stays").await;
        sim.drained().await;
        // A write over "stays" is on the way, while another daemon writes the same, and has to remove it again.
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(25))).times(1));
        sim.put("a", b"goes").await;
        let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
        deafen(&sim).await;
        assert_eq!(sim.net.faults().hits("slow"), 1);
        let quick = fleet::nth(&mut sim, rule, AWS, 1).await;
        sim.sqs.send(QUEUE, event, Duration::ZERO);
        sim.pass(Duration::from_secs(5)).await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        let goes = sim.s3.history(SOURCE, "a").last().unwrap().version_id.clone();
        sim.user().delete_object().bucket(SOURCE).key("a").version_id(goes).send().await.unwrap();
        sim.drained().await;
        slow.stop().await;
        quick.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 2, "the version that goes was there once");
    });
}

#[test]
fn a_clock_that_jumps_ahead_does_not_shorten_the_fence() {
    simulate(4, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        s3_replicator::clock::simulate((sim.clock.now() + Duration::from_secs(3600)).into());
        sim.user().delete_object().bucket(SOURCE).key("a").send().await.unwrap();
        sim.drained().await;
        daemon.stop().await;
        let writes = sim.net.journal().writes(ARCHIVE);
        let [put, marker] = writes.as_slice() else { panic!("{writes:?}") };
        let waited = marker.sent - put.sent;
        assert!(waited >= Duration::from_secs(66), "the marker waited {waited:?}");
    });
}

#[test]
fn what_a_marker_hides_and_is_written_once_more_does_not_stay_over_a_marker_that_came_meanwhile() {
    for (account, names_markers) in [(AWS, true), (NOT_AWS, false)] {
        simulate(5, async |mut sim| {
            sim.s3.set_traits(Traits { names_markers, ..Traits::aws() });
            sim.post_everything();
            sim.put("a", b"one").await;
            let event = sim.sqs.messages(QUEUE).first().unwrap().body.clone();
            let knows = fleet::nth(&mut sim, "", account, 1).await;
            sim.drained().await;
            undo_a_delete(&sim).await;
            knows.stop().await;
            // Another one finds the object hidden by a marker that it does not know, and its write takes long.
            let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
            sim.net.faults().add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(25))).times(1));
            let slow = fleet::lone(&mut sim, "", account).await;
            sim.sqs.send(QUEUE, event, Duration::ZERO);
            while sim.net.faults().hits("slow") == 0 {
                sim.pass(Duration::from_millis(100)).await;
            }
            deafen(&sim).await;
            let knows = fleet::nth(&mut sim, "", account, 1).await;
            sim.user().delete_object().bucket(SOURCE).key("a").send().await.unwrap();
            sim.drained().await;
            slow.stop().await;
            knows.stop().await;
            assert_eq!(sim.shown(ARCHIVE, "a"), None, "the source shows nothing");
        });
    }
}

#[test]
fn a_write_does_not_rest_on_a_look_from_before_its_source_was_asked() {
    simulate(6, async |mut sim| {
        let rule = "version_deletes = true";
        sim.post_everything();
        // The body takes so long that the destination is looked at again, and then the source takes long to say whether
        // it still has the version.
        for (name, operation, seconds, times) in [("body", "GetObject", 17, 1), ("question", "HeadObject", 70, 2)] {
            let place = Place::s3(operation).bucket(SOURCE).client("daemon-0");
            sim.net.faults().add(Fault::new(name, place, Effect::Delay(Duration::from_secs(seconds))).times(times));
        }
        sim.put("a", b"one").await;
        let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
        let slow = fleet::lone(&mut sim, rule, AWS).await;
        deafen(&sim).await;
        sim.pass(Duration::from_secs(15)).await;
        assert_eq!(sim.net.faults().hits("question"), 1);
        let quick = fleet::nth(&mut sim, rule, AWS, 1).await;
        sim.sqs.send(QUEUE, event, Duration::ZERO);
        sim.user().delete_object().bucket(SOURCE).key("a").send().await.unwrap();
        sim.drained().await;
        assert_eq!((sim.net.faults().hits("body"), sim.net.faults().hits("question")), (1, 2));
        slow.stop().await;
        quick.stop().await;
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 2, "one object and the marker that hides it");
    });
}

#[test]
fn a_version_that_is_gone_before_a_marker_was_seen_does_not_stay() {
    simulate(7, async |mut sim| {
        sim.post_everything();
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(20))).times(1));
        let slow = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        deafen(&sim).await;
        assert_eq!(sim.net.faults().hits("slow"), 1);
        // It is deleted for good, and the key as well. Who sees nothing of it has no need of a marker.
        let gone = sim.s3.history(SOURCE, "a").last().unwrap().version_id.clone();
        sim.user().delete_object().bucket(SOURCE).key("a").version_id(gone).send().await.unwrap();
        sim.user().delete_object().bucket(SOURCE).key("a").send().await.unwrap();
        let quick = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.drained().await;
        slow.stop().await;
        quick.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), None, "the source shows nothing");
    });
}

#[test]
fn content_in_parts_that_the_source_no_longer_lists_waits_for_writes_over_it() {
    simulate(8, async |mut sim| {
        sim.post_everything();
        let large = || ByteStream::from(vec![7; 20 << 20]);
        let first = put(&sim, large()).await;
        let slow = fleet::nth(&mut sim, "", AWS, 0).await;
        sim.drained().await;
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(28))).times(1));
        put(&sim, ByteStream::from_static(b"two")).await;
        let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
        deafen(&sim).await;
        assert_eq!(sim.net.faults().hits("slow"), 1);
        let quick = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.sqs.send(QUEUE, event, Duration::ZERO);
        sim.pass(Duration::from_secs(3)).await;
        sim.user().delete_object().bucket(SOURCE).key("a").version_id(first).send().await.unwrap();
        put(&sim, large()).await;
        sim.drained().await;
        slow.stop().await;
        quick.stop().await;
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 3, "the small one is not written over the large one once more");
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    });
}

/// Writes an object in one request; returns its version.
async fn put(sim: &Sim, body: ByteStream) -> String {
    let put = sim.user().put_object().bucket(SOURCE).key("a").body(body).send().await;
    put.unwrap().version_id.unwrap()
}

/// Deletes, and deletes the marker.
async fn undo_a_delete(sim: &Sim) {
    let marker = sim.user().delete_object().bucket(SOURCE).key("a").send().await.unwrap();
    sim.drained().await;
    let undelete = sim.user().delete_object().bucket(SOURCE).key("a").set_version_id(marker.version_id);
    undelete.send().await.unwrap();
    sim.drained().await;
}

/// Lets the first daemon go on with what it has, and hear of nothing more.
async fn deafen(sim: &Sim) {
    sim.pass(Duration::from_secs(1)).await;
    sim.net.faults().add(Fault::new("deaf", Place::sqs("ReceiveMessage").client("daemon-0"), Effect::Unreachable));
    // As long as a poll takes that is under way.
    sim.pass(Duration::from_secs(6)).await;
}
