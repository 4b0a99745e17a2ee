//! Answers that never come, to requests that are carried out long after.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{Tag, Tagging};
use replicator_fakes::faults::{Effect, Fault, Place};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, NOT_AWS, SOURCE, Sim, simulate};

#[test]
fn an_upload_that_is_put_together_for_minutes_does_not_show_what_was_deleted_meanwhile() {
    simulate(21, async |mut sim| {
        sim.post_everything();
        let complete = Place::s3("CompleteMultipartUpload").client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("late", complete, Effect::LandLate(Duration::from_secs(300))).times(1));
        // Its id is used up, though nothing shows yet.
        let named = Place::s3("AbortMultipartUpload")
            .or("ListParts")
            .client("daemon-0");
        sim.net.faults().add(Fault::new(
            "used up",
            named,
            Effect::refuse(404, "NoSuchUpload"),
        ));
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(ByteStream::from(vec![7; 20 << 20]));
        put.send().await.unwrap();
        let daemon = fleet::lone(&mut sim, "history = \"latest\"", AWS).await;
        while sim.net.faults().hits("late") == 0 {
            sim.pass(Duration::from_millis(100)).await;
        }
        sim.delete("a").await;
        sim.drained().await;
        sim.pass(Duration::from_secs(400)).await;
        daemon.stop().await;
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            2,
            "the upload appeared, and a marker hides it"
        );
        assert_eq!(sim.shown(ARCHIVE, "a"), None, "the source shows nothing");
    });
}

#[test]
fn an_upload_that_is_timed_by_our_clock_is_not_waited_for_by_the_destinations() {
    simulate(28, async |mut sim| {
        s3_replicator::clock::simulate((sim.clock.now() - Duration::from_secs(3600)).into());
        sim.post_everything();
        let archive = || Place::default().bucket(ARCHIVE).client("daemon-0");
        sim.net.faults().add(Fault::new(
            "undated",
            archive(),
            Effect::Answer("date", None),
        ));
        let late = Effect::LandLate(Duration::from_secs(300));
        sim.net
            .faults()
            .add(Fault::new("late", archive().or("CompleteMultipartUpload"), late).times(1));
        let used_up = Effect::refuse(404, "NoSuchUpload");
        sim.net.faults().add(Fault::new(
            "used up",
            archive().or("AbortMultipartUpload").or("ListParts"),
            used_up,
        ));
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(ByteStream::from(vec![7; 20 << 20]));
        put.send().await.unwrap();
        let daemon = fleet::lone(&mut sim, "history = \"latest\"", AWS).await;
        while sim.net.faults().hits("late") == 0 {
            sim.pass(Duration::from_millis(100)).await;
        }
        sim.net.faults().clear("undated");
        sim.delete("a").await;
        sim.drained().await;
        sim.pass(Duration::from_secs(400)).await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), None, "the source shows nothing");
    });
}

#[test]
fn an_upload_that_may_appear_is_completed_again_and_not_written_whole_though_it_would_be_now() {
    simulate(27, async |mut sim| {
        sim.post_everything();
        let complete = Place::s3("CompleteMultipartUpload").client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("late", complete, Effect::LandLate(Duration::from_secs(300))).times(1));
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(ByteStream::from(vec![7; 7 << 20]));
        put.send().await.unwrap();
        // Under a limit it goes in parts.
        let daemon = fleet::lone(&mut sim, "limits = { bandwidth = \"1MiB/s\" }", AWS).await;
        while sim.net.faults().hits("late") == 0 {
            sim.pass(Duration::from_millis(100)).await;
        }
        daemon.reload_rules(&fleet::settings(&mut sim, "", AWS));
        sim.drained().await;
        sim.pass(Duration::from_secs(400)).await;
        daemon.stop().await;
        let whole = sim.net.journal().writes(ARCHIVE);
        assert!(
            whole
                .iter()
                .all(|write| write.call.operation != "PutObject")
        );
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn an_upload_that_appeared_without_an_answer_is_waited_for_by_nobody() {
    for (rule, account) in [("", AWS), ("", NOT_AWS)] {
        simulate(25, async |mut sim| {
            sim.post_everything();
            let complete = Place::s3("CompleteMultipartUpload").client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("lost", complete, Effect::LoseAnswer).times(1));
            let put = sim
                .user()
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .body(ByteStream::from(vec![7; 20 << 20]));
            put.send().await.unwrap();
            sim.put("a", b"small").await;
            sim.delete("a").await;
            let daemon = fleet::lone(&mut sim, rule, account).await;
            sim.pass(Duration::from_secs(90)).await;
            assert_eq!(
                (sim.net.faults().hits("lost"), sim.waiting()),
                (1, 0),
                "{rule}"
            );
            daemon.stop().await;
            assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
        });
    }
}

#[test]
fn an_upload_whose_completion_was_refused_is_waited_for_by_nobody() {
    simulate(22, async |mut sim| {
        sim.post_everything();
        let complete = Place::s3("CompleteMultipartUpload").client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("refused", complete, Effect::refuse(403, "AccessDenied")).times(1));
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(ByteStream::from(vec![7; 20 << 20]));
        put.send().await.unwrap();
        let daemon = fleet::lone(&mut sim, "history = \"latest\"", AWS).await;
        sim.drained().await;
        // It was parked: the key's next version goes on without a delay.
        sim.put("a", b"small").await;
        sim.pass(Duration::from_secs(120)).await;
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        assert!(sim.s3.open_uploads(ARCHIVE).is_empty());
    });
}

#[test]
fn an_upload_that_did_not_land_and_is_gone_is_begun_anew_in_time() {
    simulate(24, async |mut sim| {
        sim.post_everything();
        let complete = Place::s3("CompleteMultipartUpload").client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("lost", complete, Effect::Silence { lands: false }).times(1));
        let put = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(ByteStream::from(vec![7; 20 << 20]));
        put.send().await.unwrap();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        while sim.net.faults().hits("lost") == 0 {
            sim.pass(Duration::from_millis(100)).await;
        }
        // A user's lifecycle rule ends it.
        let upload = sim.s3.open_uploads(ARCHIVE).remove(0).upload_id;
        let abort = sim
            .user()
            .abort_multipart_upload()
            .bucket(ARCHIVE)
            .key("a")
            .upload_id(upload);
        abort.send().await.unwrap();
        sim.pass(Duration::from_secs(3600)).await;
        assert_eq!(sim.waiting(), 0, "it waits for ever");
        daemon.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    });
}

#[test]
fn tags_whose_answer_was_lost_do_not_come_back_over_later_ones() {
    simulate(23, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        sim.drained().await;
        let place = Place::s3("PutObjectTagging")
            .bucket(ARCHIVE)
            .client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("late", place, Effect::LandLate(Duration::from_secs(12))).times(1));
        tag(&sim, "first").await;
        while sim.net.faults().hits("late") == 0 {
            sim.pass(Duration::from_millis(10)).await;
        }
        tag(&sim, "second").await;
        sim.drained().await;
        sim.pass(Duration::from_secs(60)).await;
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

async fn tag(sim: &Sim, value: &str) {
    let tag = Tag::builder().key("tier").value(value).build().unwrap();
    let tagging = Tagging::builder().tag_set(tag).build().unwrap();
    sim.user()
        .put_object_tagging()
        .bucket(SOURCE)
        .key("a")
        .tagging(tagging)
        .send()
        .await
        .unwrap();
}

#[test]
fn tags_that_land_after_their_lease_is_lost_are_not_the_last_word() {
    simulate(24, async |mut sim| {
        sim.share();
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        sim.drained().await;
        let slow = Place::s3("GetObjectTagging")
            .bucket(SOURCE)
            .client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("slow", slow, Effect::Delay(Duration::from_secs(22))).times(1));
        let place = Place::s3("PutObjectTagging")
            .bucket(ARCHIVE)
            .client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("late", place, Effect::LandLate(Duration::from_secs(15))).times(1));
        tag(&sim, "first").await;
        while sim.net.faults().hits("slow") == 0 {
            sim.pass(Duration::from_millis(10)).await;
        }
        let deaf = Place::sqs("ReceiveMessage").client("daemon-0");
        sim.net.faults().add(Fault::new("deaf", deaf, Effect::Drop));
        while sim.net.faults().hits("late") == 0 {
            sim.pass(Duration::from_millis(10)).await;
        }
        tag(&sim, "second").await;
        let other = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.redeliver_hidden();
        sim.drained().await;
        sim.pass(Duration::from_secs(600)).await;
        daemon.stop().await;
        other.stop().await;
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
    });
}
