//! Versions that a rule does not take.

use std::time::Duration;

use aws_sdk_s3::types::ServerSideEncryption;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, QUEUE, SOURCE, Sim, simulate};

#[test]
fn in_latest_mode_the_newest_version_in_scope_is_copied_whatever_is_above_it() {
    let rules = [
        ("delete_markers = false", "marker"),
        ("filter = { size_max = 3 }", "large"),
        ("filter = { suffix = \"a\" }", "nothing"),
    ];
    for (rule, above) in rules {
        simulate(1, async |mut sim| {
            sim.post_everything();
            sim.put("a", b"one").await;
            sim.put("a", b"two").await;
            put_above(&sim, above).await;
            let daemon = fleet::lone(&mut sim, &format!("history = \"latest\"\n{rule}"), AWS).await;
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(
                sim.shown(ARCHIVE, "a").as_deref(),
                Some(&b"two"[..]),
                "{rule}"
            );
            assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 1, "{rule}");
        });
    }
}

async fn put_above(sim: &Sim, what: &str) {
    if what == "marker" {
        sim.delete("a").await;
    } else if what == "large" {
        sim.put("a", b"too large").await;
    }
}

#[test]
fn in_latest_mode_nothing_older_stands_in_for_what_cannot_be_replicated() {
    simulate(2, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"older").await;
        let encrypted = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(b"newer".to_vec().into());
        encrypted
            .server_side_encryption(ServerSideEncryption::AwsKms)
            .send()
            .await
            .unwrap();
        let daemon = fleet::lone(&mut sim, "history = \"latest\"", AWS).await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            0,
            "the rule takes nothing that KMS encrypts"
        );
    });
}

#[test]
fn no_message_draws_a_version_into_scope_that_is_older_than_the_rule() {
    for rule in [
        "# No since.",
        "# No since.\nhistory = \"latest\"",
        "# No since.\nversion_deletes = true",
    ] {
        simulate(3, async |mut sim| {
            sim.post_apart(SOURCE, "unread");
            sim.put("a", b"old").await;
            let forged = sim.sqs.messages("unread").last().unwrap().body.clone();
            sim.pass(Duration::from_secs(3600)).await;
            sim.post_everything();
            let daemon = fleet::lone(&mut sim, rule, AWS).await;
            sim.sqs.send(QUEUE, forged.clone(), Duration::ZERO);
            sim.drained().await;
            assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 0, "{rule}");
            sim.put("a", b"new").await;
            sim.sqs.send(QUEUE, forged, Duration::ZERO);
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"), "{rule}");
            assert_eq!(
                sim.s3.ever(ARCHIVE, "a").len(),
                1,
                "{rule}: the old one is not the rule's"
            );
        });
    }
}
