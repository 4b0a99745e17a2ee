//! Answers that say something else than is so. Bytes that changed on the way become no replica,
//! an ETag that no object has misleads no daemon, and all is well once the way is.

use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumAlgorithm;
use bytes::Bytes;
use replicator_core::failure::Reason;
use replicator_fakes::faults::{Effect, Fault, Place};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::sim::{ARCHIVE, AWS, NOT_AWS, SOURCE, Sim, simulate};

pub(crate) const SMALL: usize = 100;
// Two parts.
pub(crate) const LARGE: usize = 12 << 20;

#[test]
fn bytes_that_changed_become_no_replica_where_the_same_content_again_goes_in_a_part_of_its_own() {
    simulate(7, async |mut sim| {
        put(&sim, SMALL, ChecksumAlgorithm::Crc32).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        spoil(&sim, "GetObject", SOURCE, Effect::Corrupt(50));
        put(&sim, SMALL, ChecksumAlgorithm::Crc32).await;
        sim.drained().await;
        let parked = daemon.status().await.unwrap().parked;
        assert_eq!(
            parked.iter().map(|it| it.reason).collect::<Vec<_>>(),
            [Reason::ChecksumMismatch]
        );
        assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 1);
        sim.net.faults().clear("spoilt");
        sim.pass(fleet::TRIED_WITHIN).await;
        daemon.stop().await;
        assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new());
    });
}

#[test]
fn a_body_that_is_shorter_than_its_object_becomes_no_replica() {
    for bytes in [SMALL, LARGE] {
        simulate(2, async |mut sim| {
            // What is lacking is asked for a few times, and each time there is a little more.
            spoil(&sim, "GetObject", SOURCE, Effect::Shorten(10));
            put(&sim, bytes, ChecksumAlgorithm::Crc32).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.pass(Duration::from_secs(600)).await;
            assert!(sim.net.faults().hits("spoilt") > 0);
            assert!(
                sim.s3.ever(ARCHIVE, "a").is_empty(),
                "{bytes} bytes: what came of them is at the destination"
            );
            sim.net.faults().clear("spoilt");
            sim.drained().await;
            sim.pass(fleet::TRIED_WITHIN).await;
            arrived_once(&sim);
            daemon.stop().await;
        });
    }
}

#[test]
fn bytes_that_changed_on_their_way_to_the_destination_are_sent_again() {
    // Where a connection is not encrypted, bodies are signed.
    let all = [
        ("PutObject", SMALL, AWS),
        ("UploadPart", LARGE, AWS),
        ("PutObject", SMALL, NOT_AWS),
        ("UploadPart", LARGE, NOT_AWS),
    ];
    for (operation, bytes, account) in all {
        simulate(3, async |mut sim| {
            let place = Place::s3(operation).bucket(ARCHIVE).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("spoilt", place, Effect::CorruptUpload(50)).times(4));
            put(&sim, bytes, ChecksumAlgorithm::Crc32).await;
            let daemon = fleet::lone(&mut sim, "", account).await;
            sim.drained().await;
            assert_eq!(sim.net.faults().hits("spoilt"), 4, "{operation}");
            assert!(
                daemon.status().await.unwrap().parked.is_empty(),
                "{operation}"
            );
            arrived_once(&sim);
            daemon.stop().await;
        });
    }
}

#[test]
fn an_etag_that_no_object_has_leads_nobody_astray() {
    for operation in [
        "HeadObject",
        "PutObject",
        "UploadPart",
        "CompleteMultipartUpload",
    ] {
        for (seed, every) in [(4, 1), (5, 2), (6, 3)] {
            simulate(seed, async |mut sim| {
                let place = Place::s3(operation).bucket(ARCHIVE).client("daemon-0");
                sim.net.faults().add(
                    Fault::new("wrong", place, Effect::WrongETag)
                        .every(every)
                        .times(3),
                );
                sim.post_everything();
                let daemon = fleet::lone(&mut sim, "", AWS).await;
                change(&sim, Duration::from_secs(seed)).await;
                sim.drained().await;
                let what = format!("{operation}, each {every}");
                assert!(sim.net.faults().hits("wrong") > 0, "{what}: none was wrong");
                assert!(daemon.status().await.unwrap().parked.is_empty(), "{what}");
                daemon.stop().await;
                assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new(), "{what}");
            });
        }
    }
}

/// Writes and deletes what recurs, in one piece and in parts.
pub(crate) async fn change(sim: &Sim, pause: Duration) {
    for body in ["one", "two", "one"] {
        sim.put("a", body.as_bytes()).await;
        let large = ByteStream::from(vec![1; LARGE]);
        sim.user()
            .put_object()
            .bucket(SOURCE)
            .key("a")
            .body(large)
            .send()
            .await
            .unwrap();
        sim.pass(pause).await;
        sim.delete("a").await;
    }
    sim.put("a", b"the last").await;
}

/// Spoils every answer, until it is cleared.
pub(crate) fn spoil(sim: &Sim, operation: &str, bucket: &str, effect: Effect) {
    let place = Place::s3(operation).bucket(bucket).client("daemon-0");
    sim.net.faults().add(Fault::new("spoilt", place, effect));
}

/// Writes an object of so many bytes, no two parts of which are alike.
pub(crate) async fn put(sim: &Sim, bytes: usize, checksum: ChecksumAlgorithm) {
    sim.post_everything();
    let put = sim
        .user()
        .put_object()
        .bucket(SOURCE)
        .key("a")
        .checksum_algorithm(checksum);
    put.body(body(bytes).into()).send().await.unwrap();
}

pub(crate) fn body(bytes: usize) -> Bytes {
    (0..bytes)
        .map(|at| u8::try_from(at / 7 % 251).unwrap())
        .collect()
}

pub(crate) fn arrived_once(sim: &Sim) {
    assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"));
    assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), 1);
    assert!(sim.s3.open_uploads(ARCHIVE).is_empty());
}
