//! What comes so late that its reason has gone: a write that was planned minutes ago, a version
//! that was deleted permanently while it was copied. Each is told step by step, because chance
//! meets it too seldom.

mod purged;
mod unanswered;

use std::time::Duration;

use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::journal::Service;
use replicator_fakes::s3::traits::Traits;

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, NOT_AWS, QUEUE, SOURCE, Sim, simulate};

#[test]
fn a_plan_that_had_to_wait_is_not_carried_out_over_what_came_meanwhile() {
    simulate(1, async |mut sim| {
        sim.share();
        sim.post_everything();
        let slow = fleet::lone(&mut sim, "", AWS).await;
        sim.put("a", b"one").await;
        sim.drained().await;
        // The first daemon sees that "one" is current, and takes two minutes to get "two".
        for operation in ["GetObject", "GetObjectTagging"] {
            let place = Place::s3(operation).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(55))).times(1));
        }
        let two = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .tagging("tier=gold")
            .body(b"two".to_vec().into());
        two.send().await.unwrap();
        deafen(&sim, 0).await;
        // Meanwhile another one brings the key up to date, and what is current looks as it did
        // before.
        let quick = fleet::nth(&mut sim, "", AWS, 1).await;
        sim.put("a", b"one").await;
        sim.drained().await;
        assert_eq!(sim.net.faults().hits("slow"), 2);
        slow.stop().await;
        quick.stop().await;
        assert_eq!(judge(&sim, Expect::IN_DOUBT), Vec::<String>::new());
        assert_eq!(sim.s3.history(ARCHIVE, "a").len(), 3);
    });
}

#[test]
fn what_a_marker_hides_and_is_written_once_more_does_not_stay_over_a_marker_that_came_meanwhile() {
    for (account, names_markers) in [(AWS, true), (NOT_AWS, false)] {
        simulate(5, async |mut sim| {
            sim.share();
            sim.s3.set_traits(Traits {
                names_markers,
                ..Traits::aws()
            });
            sim.post_everything();
            sim.put("a", b"one").await;
            let event = sim.sqs.messages(QUEUE).first().unwrap().body.clone();
            let knows = fleet::nth(&mut sim, "", account, 1).await;
            sim.drained().await;
            undo_a_delete(&sim).await;
            knows.stop().await;
            // Another one finds the object hidden by a marker that it does not know, and its write
            // takes long.
            let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(25))).times(1));
            let slow = fleet::lone(&mut sim, "", account).await;
            sim.sqs.send(QUEUE, event, Duration::ZERO);
            while sim.net.faults().hits("slow") == 0 {
                sim.pass(Duration::from_millis(100)).await;
            }
            deafen(&sim, 0).await;
            let knows = fleet::nth(&mut sim, "", account, 1).await;
            sim.delete("a").await;
            sim.drained().await;
            slow.stop().await;
            knows.stop().await;
            assert_eq!(sim.shown(ARCHIVE, "a"), None, "the source shows nothing");
        });
    }
}

#[test]
fn what_was_written_in_latest_mode_is_looked_at_again_before_the_message_goes() {
    simulate(11, async |mut sim| {
        sim.share();
        sim.post_everything();
        let rule = "history = \"latest\"";
        let slow = fleet::lone(&mut sim, rule, AWS).await;
        sim.put("a", b"one").await;
        sim.drained().await;
        // Its condition is an ETag that comes back meanwhile.
        let place = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("slow", place, Effect::Delay(Duration::from_secs(28))).times(1));
        sim.put("a", b"two").await;
        deafen(&sim, 0).await;
        assert_eq!(sim.net.faults().hits("slow"), 1);
        let quick = fleet::nth(&mut sim, rule, AWS, 1).await;
        for _ in 0..2 {
            sim.put("a", b"one").await;
            sim.pass(Duration::from_secs(5)).await;
        }
        sim.drained().await;
        slow.stop().await;
        quick.stop().await;
        assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    });
}

#[test]
fn an_upload_that_lands_below_what_is_current_is_skipped_and_put_on_record() {
    simulate(13, async |mut sim| {
        sim.post_everything();
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        let user = sim.user();
        let upload = user
            .create_multipart_upload()
            .bucket(SOURCE)
            .key("a")
            .send()
            .await
            .unwrap()
            .upload_id;
        sim.pass(Duration::from_secs(5)).await;
        sim.put("a", b"newer").await;
        sim.drained().await;
        complete(&sim, upload).await;
        let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
        sim.drained().await;
        assert_eq!(sim.s3.history(SOURCE, "a").len(), 2);
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            1,
            "it is older than what is shown"
        );
        let superseded = ["operation=\"put\"", "outcome=\"superseded\""];
        assert_eq!(
            fleet::figure(&daemon, "operations_total", &superseded).await,
            1.0
        );
        assert_eq!(
            fleet::figure(&daemon, "failures_total", &["reason=\"ArrivedLate\""]).await,
            1.0
        );
        // What is on record needs no question.
        let asked = |sim: &Sim| {
            sim.net
                .journal()
                .select(|entry| entry.call.service == Service::S3)
                .len()
        };
        let before = asked(&sim);
        sim.sqs.send(QUEUE, event, Duration::ZERO);
        sim.drained().await;
        assert_eq!(asked(&sim), before);
        assert_eq!(
            fleet::figure(&daemon, "failures_total", &["reason=\"ArrivedLate\""]).await,
            1.0,
            "told once"
        );
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

/// Completes an upload of one part.
pub(crate) async fn complete(sim: &Sim, upload: Option<String>) {
    let user = sim.user();
    let part = user
        .upload_part()
        .bucket(SOURCE)
        .key("a")
        .set_upload_id(upload.clone())
        .part_number(1);
    let etag = part
        .body(b"older".to_vec().into())
        .send()
        .await
        .unwrap()
        .e_tag;
    let part = CompletedPart::builder()
        .part_number(1)
        .set_e_tag(etag)
        .build();
    let parts = CompletedMultipartUpload::builder().parts(part).build();
    let complete = user
        .complete_multipart_upload()
        .bucket(SOURCE)
        .key("a")
        .set_upload_id(upload);
    complete.multipart_upload(parts).send().await.unwrap();
}

/// Deletes, and deletes the marker.
async fn undo_a_delete(sim: &Sim) {
    let marker = sim.delete("a").await;
    sim.drained().await;
    sim.purge("a", &marker).await;
    sim.drained().await;
}

/// Lets a daemon go on with what it has, and hear of nothing more.
async fn deafen(sim: &Sim, number: usize) {
    sim.pass(Duration::from_secs(1)).await;
    let place = Place::sqs("ReceiveMessage").client(&format!("daemon-{number}"));
    sim.net
        .faults()
        .add(Fault::new("deaf", place, Effect::Unreachable));
    // As long as a poll takes that is under way.
    sim.pass(Duration::from_secs(6)).await;
}
