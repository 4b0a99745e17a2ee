//! What others wrote, whatever it says of itself.

use std::time::Duration;

use aws_sdk_s3::types::{ChecksumAlgorithm, ServerSideEncryption};
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::entry::Entry;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, NOT_AWS, QUEUE, SOURCE, Sim, simulate};

#[test]
fn a_replica_that_was_copied_to_another_key_is_no_replica_there() {
    for (unmanaged, shown) in [("overwrite", &b"of b"[..]), ("keep", b"of a")] {
        simulate(1, async |mut sim| {
            let (rule, first) = (
                format!("unmanaged_objects = \"{unmanaged}\""),
                "filter = { prefix = \"a\" }",
            );
            sim.post_everything();
            sim.put("b", b"of b").await;
            let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
            sim.pass(Duration::from_secs(600)).await;
            sim.put("a", b"of a").await;
            let daemon = fleet::lone(&mut sim, first, AWS).await;
            sim.drained().await;
            daemon.stop().await;
            let copy = sim
                .user()
                .copy_object()
                .bucket(ARCHIVE)
                .key("b")
                .copy_source(format!("{ARCHIVE}/a"));
            copy.send().await.unwrap();
            let daemon = fleet::lone(&mut sim, &rule, AWS).await;
            sim.sqs.send(QUEUE, event, Duration::ZERO);
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(
                sim.shown(ARCHIVE, "b").as_deref(),
                Some(shown),
                "{unmanaged}"
            );
        });
    }
}

/// Returns the rule of a daemon that brings what it finds at the destination to the source.
fn rule_back() -> String {
    format!(
        "enabled = false\n[[rules]]\nid = \"back\"\nsource = {{ account = \"archive\", bucket = \"{ARCHIVE}\" }}\n\
        destination = {{ account = \"source\", bucket = \"{SOURCE}\" }}\nsince = \"2020-01-01T00:00:00Z\""
    )
}

#[test]
fn a_replica_does_not_go_back_to_where_it_came_from_whatever_checksum_its_original_has() {
    for bytes in [3, 20 << 20] {
        simulate(2, async |mut sim| {
            sim.post_everything();
            let put = sim
                .user()
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .checksum_algorithm(ChecksumAlgorithm::Crc32);
            put.body(vec![1; bytes].into()).send().await.unwrap();
            let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
            let forth = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            forth.stop().await;
            sim.put("a", b"newer").await;
            // Its event is lost; the one that comes is that of the replica.
            let original = sim.s3.history(SOURCE, "a")[0].clone();
            let replica = sim.s3.history(ARCHIVE, "a")[0].clone();
            let checksum = |entry: &Entry| {
                entry
                    .object
                    .as_ref()
                    .unwrap()
                    .checksum
                    .as_ref()
                    .unwrap()
                    .algorithm
            };
            assert_ne!(checksum(&original), checksum(&replica));
            let told = event
                .replace(&original.version_id, &replica.version_id)
                .replace(SOURCE, ARCHIVE);
            let back = fleet::nth(&mut sim, &rule_back(), AWS, 1).await;
            sim.sqs.send(QUEUE, told, Duration::ZERO);
            sim.drained().await;
            back.stop().await;
            assert_eq!(sim.s3.ever(SOURCE, "a").len(), 2, "{bytes} bytes went back");
        });
    }
}

/// Writes an object at the destination that bears the stamp of the one that is current there, with
/// some of it changed.
async fn forge(sim: &Sim, body: &'static [u8], change: impl Fn(&mut Vec<String>)) {
    let replica = sim
        .user()
        .head_object()
        .bucket(ARCHIVE)
        .key("a")
        .send()
        .await
        .unwrap();
    let stamp = replica.metadata.unwrap()["s3-replicator"].clone();
    let mut fields: Vec<String> = stamp.split(';').map(str::to_owned).collect();
    change(&mut fields);
    let put = sim
        .user()
        .put_object()
        .bucket(ARCHIVE)
        .key("a")
        .metadata("s3-replicator", fields.join(";"));
    put.body(body.to_vec().into()).send().await.unwrap();
}

/// Has the ledger of the first daemon lost.
fn lose_disk(sim: &Sim) {
    std::fs::remove_dir_all(sim.dir.path().join("daemon-0")).unwrap();
}

#[test]
fn a_stamp_from_the_year_9999_makes_nothing_late() {
    for account in [AWS, NOT_AWS] {
        for is_dated_so in [false, true] {
            claim_the_future(("", false), is_dated_so, account);
            claim_the_future(("another", false), is_dated_so, account);
            claim_the_future(("another", true), is_dated_so, account);
        }
    }
}

/// Writes over a replica what says that it is one of the year 9999: of the same version, or of
/// another one. The store may date itself, and the object, so.
fn claim_the_future((version, is_disk_lost): (&str, bool), is_dated_so: bool, account: &str) {
    simulate(3, async |mut sim| {
        sim.post_everything();
        sim.put("a", b"one").await;
        let daemon = fleet::lone(&mut sim, "", account).await;
        sim.drained().await;
        daemon.stop().await;
        let change = |stamp: &mut Vec<String>| {
            stamp[2].push_str(version);
            "253402300799000".clone_into(&mut stamp[3]);
        };
        forge(&sim, b"one", change).await;
        if is_dated_so {
            let head = Place::s3("HeadObject").bucket(ARCHIVE).client("daemon-0");
            for name in ["date", "last-modified"] {
                let future = Effect::Answer(name, Some("Fri, 31 Dec 9999 23:59:59 GMT"));
                sim.net
                    .faults()
                    .add(Fault::new("future", head.clone(), future));
            }
        }
        if is_disk_lost {
            lose_disk(&sim);
        }
        let daemon = fleet::lone(&mut sim, "", account).await;
        for body in [b"two", b"six"] {
            sim.put("a", body).await;
            sim.drained().await;
            assert_eq!(
                sim.shown(ARCHIVE, "a").as_deref(),
                Some(&body[..]),
                "{version} {is_disk_lost} {is_dated_so}"
            );
        }
        assert!(
            fleet::figure(&daemon, "failures_total", &["reason=\"StampNotBorneOut\""]).await > 0.0
        );
        assert_eq!(
            fleet::figure(&daemon, "failures_total", &["reason=\"ArrivedLate\""]).await,
            0.0
        );
        daemon.stop().await;
    });
}

#[test]
fn a_stamp_that_was_copied_over_other_bytes_makes_no_replica() {
    for body in [&b"two"[..], b"longer"] {
        simulate(4, async |mut sim| {
            sim.post_everything();
            sim.put("a", b"one").await;
            let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            daemon.stop().await;
            forge(&sim, body, |_| {}).await;
            lose_disk(&sim);
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.sqs.send(QUEUE, event, Duration::ZERO);
            sim.drained().await;
            daemon.stop().await;
            assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
        });
    }
}

#[test]
fn a_real_replica_is_known_by_its_stamp_whatever_its_etag_and_whatever_became_of_its_original() {
    let key = "arn:aws:kms:eu-central-1:222222222222:key/one";
    let to_kms = format!("encryption = {{ mode = \"kms\", key = \"{key}\" }}");
    let from_kms = "sse_kms_objects = true\nencryption = { mode = \"s3\" }";
    for is_gone in [false, true] {
        read_back("", None, 3, is_gone);
        read_back("", None, 9 << 20, is_gone);
        read_back(&to_kms, None, 3, is_gone);
        read_back(from_kms, Some(ServerSideEncryption::AwsKms), 3, is_gone);
    }
}

/// Replicates three versions, perhaps removes the newest at the source, and has the ledger lost.
fn read_back(rule: &str, encryption: Option<ServerSideEncryption>, bytes: usize, is_gone: bool) {
    simulate(5, async |mut sim| {
        sim.post_everything();
        for byte in 0..3 {
            let put = sim
                .user()
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .body(vec![byte; bytes].into());
            put.set_server_side_encryption(encryption.clone())
                .send()
                .await
                .unwrap();
            sim.pass(Duration::from_secs(2)).await;
        }
        let event = sim.sqs.messages(QUEUE).last().unwrap().body.clone();
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        sim.drained().await;
        daemon.stop().await;
        if is_gone {
            sim.purge("a", &sim.newest("a")).await;
        }
        lose_disk(&sim);
        let daemon = fleet::lone(&mut sim, rule, AWS).await;
        sim.sqs.send(QUEUE, event, Duration::ZERO);
        sim.drained().await;
        let doubted =
            fleet::figure(&daemon, "failures_total", &["reason=\"StampNotBorneOut\""]).await;
        daemon.stop().await;
        assert_eq!(
            (sim.s3.ever(ARCHIVE, "a").len(), doubted),
            (3, 0.0),
            "{rule} {bytes} {is_gone}"
        );
    });
}

const BACK: &str = "events-back";

/// Waits until neither of the two queues has a message.
async fn both_drained(sim: &Sim) {
    for _ in 0..1_000 {
        sim.drained().await;
        let depth = sim.sqs.depth(BACK);
        if depth.visible + depth.hidden + depth.delayed == 0 && sim.waiting() == 0 {
            return;
        }
    }
    panic!("the queues never become empty");
}

#[test]
fn an_older_version_that_is_restored_on_one_side_is_shown_on_both() {
    for shown in ["one", "two"] {
        simulate(6, async |mut sim| {
            sim.post_everything();
            sim.post_apart(ARCHIVE, BACK);
            let url = sim.sqs.url(BACK);
            let forth = fleet::lone(&mut sim, "", AWS).await;
            let back = fleet::nth_with(&mut sim, &rule_back(), 1, |settings| {
                settings.queues[0].url = url;
            })
            .await;
            for body in [&b"one"[..], b"two"] {
                sim.put("a", body).await;
                both_drained(&sim).await;
            }
            assert_eq!(sim.s3.ever(SOURCE, "a").len(), 2, "no replica goes back");
            let history = sim.s3.history(ARCHIVE, "a");
            let replica = history
                .iter()
                .find(|entry| entry.object.as_ref().unwrap().bytes == shown)
                .unwrap();
            let from = format!("{ARCHIVE}/a?versionId={}", replica.version_id);
            let restore = sim
                .user()
                .copy_object()
                .bucket(ARCHIVE)
                .key("a")
                .copy_source(from);
            restore.send().await.unwrap();
            both_drained(&sim).await;
            for daemon in [&forth, &back] {
                assert_eq!(fleet::figure(daemon, "parked", &[]).await, 0.0);
            }
            forth.stop().await;
            back.stop().await;
            for bucket in [SOURCE, ARCHIVE] {
                assert_eq!(
                    sim.shown(bucket, "a").as_deref(),
                    Some(shown.as_bytes()),
                    "{bucket}"
                );
                assert!(
                    sim.s3.ever(bucket, "a").len() <= 3,
                    "nothing goes back and forth"
                );
            }
        });
    }
}

#[test]
fn a_replica_that_is_overtaken_before_its_event_is_read_does_not_go_back() {
    simulate(7, async |mut sim| {
        sim.post_everything();
        sim.post_apart(ARCHIVE, BACK);
        let forth = fleet::lone(&mut sim, "", AWS).await;
        for body in [&b"one"[..], b"two", b"six"] {
            sim.put("a", body).await;
            sim.pass(Duration::from_secs(3)).await;
        }
        sim.drained().await;
        let url = sim.sqs.url(BACK);
        let back = fleet::nth_with(&mut sim, &rule_back(), 1, |settings| {
            settings.queues[0].url = url;
        })
        .await;
        both_drained(&sim).await;
        forth.stop().await;
        back.stop().await;
        let bodies = |bucket| -> Vec<_> {
            sim.s3
                .ever(bucket, "a")
                .iter()
                .map(|entry| entry.object.as_ref().unwrap().bytes.clone())
                .collect()
        };
        assert_eq!(bodies(SOURCE), [&b"one"[..], b"two", b"six"]);
        assert_eq!(bodies(ARCHIVE), bodies(SOURCE));
    });
}
