//! A destination that another tool filled: what is proved equal is not written again, what is not
//! proved is, and later versions are appended in order.

use std::time::Duration;

use aws_sdk_s3::types::{ChecksumAlgorithm, ServerSideEncryption};
use bytes::Bytes;
use replicator_core::object::parse_rfc3339;
use replicator_fakes::faults::{Effect, Fault, Place};

use s3_replicator::verify::{VerifyOptions, verify};

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, NOT_AWS, QUEUE, SOURCE, Sim, simulate};

const ADOPT: &str = "unmanaged_objects = \"adopt\"";

/// Writes an object to a bucket, as a tool that reads it and puts it does.
async fn put(sim: &Sim, bucket: &str, key: &str, body: impl Into<Bytes>) {
    let put = sim.user().put_object().bucket(bucket).key(key);
    let put = put.body(body.into().into());
    put.send().await.unwrap();
}

/// Returns the bodies that a key of the destination has, oldest first; none is a marker.
fn bodies(sim: &Sim, key: &str) -> Vec<Option<Bytes>> {
    let history = sim.s3.history(ARCHIVE, key);
    let body = |entry: &std::sync::Arc<replicator_fakes::s3::entry::Entry>| {
        entry.object.as_ref().map(|object| object.bytes.clone())
    };
    history.iter().map(body).collect()
}

/// Counts what daemons wrote to the destination.
fn written(sim: &Sim) -> usize {
    let writes = sim.net.journal().writes(ARCHIVE);
    let by_daemon = writes.iter().filter(|write| write.client != "user");
    by_daemon.count()
}

/// Has a daemon do what is in the queue, and returns how often it said that an object is foreign.
async fn work(sim: &mut Sim, rule: &str, account: &str) -> f64 {
    let daemon = fleet::lone(sim, rule, account).await;
    sim.drained().await;
    let labels = ["reason=\"DstObjectForeign\""];
    let foreign = fleet::figure(&daemon, "failures_total", &labels).await;
    daemon.stop().await;
    foreign
}

/// Returns the exit code of `verify`.
async fn verified(sim: &mut Sim, rule: &str) -> u8 {
    let settings = fleet::settings(sim, rule, AWS);
    let options = VerifyOptions {
        rule: settings.rules[0].id.clone(),
        as_of: parse_rfc3339("2999-01-01T00:00:00Z"),
        ..VerifyOptions::default()
    };
    let given = sim.given("user");
    let code = verify(&settings, &options, Some(&given), |_| {}).await;
    code.unwrap()
}

#[test]
fn what_a_tool_copied_is_not_written_again_and_later_versions_follow_it() {
    for (history, account) in [("exact", AWS), ("exact", NOT_AWS), ("latest", AWS)] {
        simulate(1, async |mut sim| {
            sim.post_everything();
            for key in ["a", "b"] {
                put(&sim, SOURCE, key, "one").await;
                put(&sim, ARCHIVE, key, "one").await;
            }
            let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
            let rule = format!("{ADOPT}\nhistory = \"{history}\"");
            assert_eq!(work(&mut sim, &rule, account).await, 0.0);
            assert_eq!(written(&sim), 0, "{history} {}", sim.net.journal());
            sim.pass(Duration::from_secs(2)).await;
            put(&sim, SOURCE, "a", "two").await;
            sim.sqs.send(QUEUE, event.clone(), Duration::ZERO);
            work(&mut sim, &rule, account).await;
            assert_eq!(bodies(&sim, "a"), [Some("one".into()), Some("two".into())]);
            // A new ledger adopts it again.
            std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
            sim.sqs.send(QUEUE, event, Duration::ZERO);
            work(&mut sim, &rule, account).await;
            assert_eq!(written(&sim), 1, "{history}");
        });
    }
}

#[test]
fn what_is_not_proved_equal_is_written_again_and_said() {
    for history in ["exact", "latest"] {
        simulate(2, async |mut sim| {
            sim.post_everything();
            put(&sim, SOURCE, "a", "one").await;
            put(&sim, ARCHIVE, "a", "two").await;
            let rule = format!("{ADOPT}\nhistory = \"{history}\"");
            assert!(work(&mut sim, &rule, AWS).await > 0.0);
            assert_eq!(bodies(&sim, "a"), [Some("two".into()), Some("one".into())]);
        });
    }
}

#[test]
fn without_adopt_equal_bytes_are_written_again() {
    simulate(3, async |mut sim| {
        sim.post_everything();
        put(&sim, SOURCE, "a", "one").await;
        put(&sim, ARCHIVE, "a", "one").await;
        work(&mut sim, "", AWS).await;
        assert_eq!(bodies(&sim, "a").len(), 2);
    });
}

/// Writes an object whose ETag is no digest, with a checksum or without one.
async fn put_encrypted(sim: &Sim, bucket: &str, body: &'static [u8], checksum: bool) {
    let put = sim.user().put_object().bucket(bucket).key("a");
    let put = put.server_side_encryption(ServerSideEncryption::AwsKms);
    let algorithm = checksum.then_some(ChecksumAlgorithm::Crc32);
    let put = put.set_checksum_algorithm(algorithm);
    put.body(body.to_vec().into()).send().await.unwrap();
}

#[test]
fn objects_whose_etags_differ_are_compared_by_checksums() {
    for (body, adopted) in [(&b"one"[..], true), (b"two", false)] {
        simulate(4, async |mut sim| {
            sim.post_everything();
            put_encrypted(&sim, SOURCE, b"one", true).await;
            put_encrypted(&sim, ARCHIVE, body, true).await;
            let etags = [SOURCE, ARCHIVE].map(|bucket| {
                let history = sim.s3.history(bucket, "a");
                history[0].object.as_ref().unwrap().etag.clone()
            });
            assert_ne!(etags[0], etags[1]);
            let rule = format!("{ADOPT}\nsse_kms_objects = true");
            work(&mut sim, &rule, AWS).await;
            assert_eq!(written(&sim) == 0, adopted, "{}", sim.net.journal());
        });
    }
}

#[test]
fn an_object_of_equal_size_of_which_nothing_is_stated_is_written_again() {
    simulate(5, async |mut sim| {
        sim.post_everything();
        put_encrypted(&sim, SOURCE, b"one", true).await;
        put_encrypted(&sim, ARCHIVE, b"one", true).await;
        // A store that states no checksum.
        for name in ["x-amz-checksum-crc32", "x-amz-checksum-crc64nvme"] {
            let head = Place::s3("HeadObject").bucket(ARCHIVE).client("daemon-0");
            let silent = Fault::new("silent", head, Effect::Answer(name, None));
            sim.net.faults().add(silent);
        }
        let rule = format!("{ADOPT}\nsse_kms_objects = true");
        assert!(work(&mut sim, &rule, AWS).await > 0.0);
        assert_eq!(written(&sim), 1);
    });
}

#[test]
fn what_native_replication_wrote_is_known_by_its_version_ids_markers_included() {
    simulate(6, async |mut sim| {
        sim.post_everything();
        put_encrypted(&sim, SOURCE, b"one", false).await;
        sim.pass(Duration::from_secs(2)).await;
        put_encrypted(&sim, SOURCE, b"two", false).await;
        sim.pass(Duration::from_secs(2)).await;
        sim.delete("a").await;
        sim.pass(Duration::from_secs(2)).await;
        put_encrypted(&sim, SOURCE, b"six", false).await;
        sim.s3.replicate(SOURCE, ARCHIVE, "a");
        let rule = format!("{ADOPT}\nsse_kms_objects = true\ndelete_markers = true");
        assert_eq!(work(&mut sim, &rule, AWS).await, 0.0);
        assert_eq!(written(&sim), 0, "{}", sim.net.journal());
        assert_eq!(verified(&mut sim, &rule).await, 0);
        let others = "sse_kms_objects = true\ndelete_markers = true";
        assert_eq!(
            verified(&mut sim, others).await,
            2,
            "nothing is adopted by another rule"
        );
        sim.delete("a").await;
        put(&sim, SOURCE, "a", "ten").await;
        work(&mut sim, &rule, AWS).await;
        let expected = [
            Some("one"),
            Some("two"),
            None,
            Some("six"),
            None,
            Some("ten"),
        ];
        let expected = expected.map(|body| body.map(Bytes::from));
        assert_eq!(bodies(&sim, "a"), expected);
    });
}

#[test]
fn a_marker_that_native_replication_wrote_last_hides_nothing_twice() {
    simulate(7, async |mut sim| {
        sim.post_everything();
        put(&sim, SOURCE, "a", "one").await;
        sim.pass(Duration::from_secs(2)).await;
        sim.delete("a").await;
        sim.s3.replicate(SOURCE, ARCHIVE, "a");
        let rule = format!("{ADOPT}\ndelete_markers = true");
        work(&mut sim, &rule, AWS).await;
        assert_eq!(written(&sim), 0, "{}", sim.net.journal());
        put(&sim, SOURCE, "a", "two").await;
        work(&mut sim, &rule, AWS).await;
        assert_eq!(
            bodies(&sim, "a"),
            [Some("one".into()), None, Some("two".into())]
        );
    });
}

#[test]
fn of_versions_with_equal_bytes_the_newest_that_can_be_it_is_meant() {
    // The copy was made after all versions, or before the second.
    for (is_early, expected) in [(false, vec!["one"]), (true, vec!["one", "two", "one"])] {
        simulate(8, async |mut sim| {
            sim.post_everything();
            put(&sim, SOURCE, "a", "one").await;
            if is_early {
                put(&sim, ARCHIVE, "a", "one").await;
            }
            for body in ["two", "one"] {
                sim.pass(Duration::from_secs(300)).await;
                put(&sim, SOURCE, "a", body).await;
            }
            if !is_early {
                put(&sim, ARCHIVE, "a", "one").await;
            }
            work(&mut sim, ADOPT, AWS).await;
            let expected: Vec<_> = expected
                .iter()
                .map(|body| Some(Bytes::from(*body)))
                .collect();
            assert_eq!(bodies(&sim, "a"), expected, "{is_early}");
        });
    }
}

#[test]
fn an_old_copy_draws_no_version_into_a_rules_scope() {
    simulate(9, async |mut sim| {
        sim.post_everything();
        put(&sim, SOURCE, "a", "one").await;
        put(&sim, ARCHIVE, "a", "one").await;
        sim.pass(Duration::from_secs(300)).await;
        put(&sim, SOURCE, "a", "two").await;
        sim.pass(Duration::from_secs(300)).await;
        let daemon =
            fleet::lone_with(&mut sim, ADOPT, |settings| settings.rules[0].since = None).await;
        sim.drained().await;
        assert_eq!(written(&sim), 0, "both are older than the rule");
        put(&sim, SOURCE, "a", "six").await;
        sim.drained().await;
        daemon.stop().await;
        assert_eq!(bodies(&sim, "a"), [Some("one".into()), Some("six".into())]);
    });
}

#[test]
fn adopted_objects_get_the_tags_of_their_originals() {
    simulate(10, async |mut sim| {
        sim.post_everything();
        let tagged = sim
            .user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .tagging("tier=gold");
        tagged
            .body("one".as_bytes().to_vec().into())
            .send()
            .await
            .unwrap();
        put(&sim, ARCHIVE, "a", "one").await;
        work(&mut sim, ADOPT, AWS).await;
        let history = sim.s3.history(ARCHIVE, "a");
        assert_eq!(history.len(), 1);
        assert_eq!(history[0].object.as_ref().unwrap().tags["tier"], "gold");
    });
}
