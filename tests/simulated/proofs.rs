//! Whatever the source states of its bytes proves a replica, and what nothing proves is counted
//! by its cause.

use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::types::{ChecksumAlgorithm, CompletedMultipartUpload, CompletedPart};
use replicator_core::failure::Reason;
use replicator_fakes::faults::{Effect, Fault, Place};
use replicator_fakes::s3::traits::Traits;
use s3_replicator::admin::Unproved;
use s3_replicator::pipeline::Daemon;

use crate::fleet;
use crate::sim::{ARCHIVE, AWS, NOT_AWS, SOURCE, Sim, simulate};
use crate::spoilt::{LARGE, SMALL, arrived_once, body, put, spoil};

/// Where a PutObject says what was put.
pub(crate) const CRC64: &str = "x-amz-checksum-crc64nvme";

/// How the source got an object, and what it states of its bytes for that.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Written {
    /// Its MD5, as the ETag, and nothing else.
    Plain,
    /// A checksum of the whole.
    With(&'static str),
    /// What its parts of so many MiB make: an ETag, and a checksum of their checksums.
    Parts(usize, Option<&'static str>),
    /// The same of parts of 5, 6 and 4 MiB, which look like three of 5.
    Unequal(&'static str),
}

/// No proof costs too much.
const ALWAYS: &str = "verify = \"always\"";

#[test]
fn bytes_that_changed_on_their_way_from_the_source_become_no_replica() {
    use Written::{Parts, Plain, With};
    for (bytes, written, rule, account) in [
        (SMALL, Plain, "", AWS),
        (SMALL, With("CRC32"), "", AWS),
        (SMALL, With("CRC32C"), "", AWS),
        (SMALL, With("SHA1"), "", AWS),
        (SMALL, With("SHA256"), "", AWS),
        (SMALL, With("CRC64NVME"), "", AWS),
        (6 << 20, Parts(5, None), "", AWS),
        (6 << 20, Parts(5, Some("SHA256")), "", AWS),
        (SMALL, Parts(5, Some("CRC32")), "", AWS),
        // The checksums of parts join to that of the whole, or of the source's own parts wherever
        // those end.
        (LARGE, With("CRC64NVME"), "", AWS),
        (LARGE, With("CRC32"), "", AWS),
        (LARGE, With("CRC32C"), "", AWS),
        (LARGE, Parts(5, Some("CRC32")), "", AWS),
        (LARGE, Parts(5, Some("CRC32C")), "", AWS),
        // Those that do not join have to end where the source's do.
        (LARGE, Parts(8, Some("SHA256")), "", AWS),
        // The others take a second read.
        (LARGE, Plain, ALWAYS, AWS),
        (LARGE, Plain, "", NOT_AWS),
        (LARGE, With("SHA256"), ALWAYS, AWS),
        (LARGE, Parts(5, Some("SHA1")), ALWAYS, AWS),
        (LARGE, Parts(5, None), ALWAYS, AWS),
    ] {
        simulate(1, async |mut sim| {
            let what = format!("{bytes} bytes, {written:?}, {rule:?}, {account:?}");
            spoil(&sim, "GetObject", SOURCE, Effect::Corrupt(50));
            write(&sim, bytes, written).await;
            let daemon = fleet::lone(&mut sim, rule, account).await;
            sim.drained().await;
            let parked = daemon.status().await.unwrap().parked;
            assert_eq!(
                parked.iter().map(|it| it.reason).collect::<Vec<_>>(),
                [Reason::ChecksumMismatch],
                "{what}"
            );
            assert!(
                sim.s3.ever(ARCHIVE, "a").is_empty(),
                "{what}: they are at the destination"
            );
            assert!(
                sim.s3.open_uploads(ARCHIVE).is_empty(),
                "{what}: an upload is left"
            );
            sim.net.faults().clear("spoilt");
            sim.pass(fleet::TRIED_WITHIN).await;
            assert!(daemon.status().await.unwrap().parked.is_empty(), "{what}");
            arrived_once(&sim);
            assert_eq!(daemon.status().await.unwrap().unproved, [], "{what}");
            daemon.stop().await;
        });
    }
}

#[test]
fn what_is_written_without_a_proof_is_counted_by_its_cause() {
    use Written::{Parts, Plain, Unequal, With};
    for (bytes, written, cause) in [
        (15 << 20, Unequal("CRC32"), Unproved::PartsUnknown),
        (LARGE, Plain, Unproved::CostsTooMuch),
        (LARGE, With("SHA256"), Unproved::CostsTooMuch),
        (LARGE, Parts(5, Some("SHA256")), Unproved::CostsTooMuch),
        (LARGE, Parts(5, None), Unproved::CostsTooMuch),
    ] {
        simulate(8, async |mut sim| {
            write(&sim, bytes, written).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            arrived_once(&sim);
            assert_unproved(&daemon, &[cause]).await;
            daemon.stop().await;
        });
    }
}

#[test]
fn what_no_answer_proves_is_counted_by_its_cause() {
    use Written::{Parts, Plain, With};
    for (operation, bucket, effect, written, cause) in [
        // A store that knows no parts of objects, and one whose first part tells nothing of the
        // others.
        (
            "HeadObject",
            SOURCE,
            Effect::Answer("x-amz-mp-parts-count", None),
            Parts(5, None),
            Unproved::PartsUnknown,
        ),
        (
            "HeadObject",
            SOURCE,
            Effect::Answer("x-amz-mp-parts-count", Some("3")),
            Parts(5, None),
            Unproved::PartsUnknown,
        ),
        (
            "GetObject",
            SOURCE,
            Effect::Answer("x-amz-server-side-encryption", Some("aws:fsx")),
            Plain,
            Unproved::NothingStated,
        ),
        (
            "PutObject",
            ARCHIVE,
            Effect::Answer(CRC64, None),
            With("CRC32"),
            Unproved::AnswerSilent,
        ),
    ] {
        simulate(9, async |mut sim| {
            let bytes = if matches!(written, Parts(..)) {
                6 << 20
            } else {
                SMALL
            };
            spoil(&sim, operation, bucket, effect.clone());
            if cause == Unproved::AnswerSilent {
                // Under a key of KMS an ETag is no MD5.
                spoil(
                    &sim,
                    operation,
                    bucket,
                    Effect::Answer("x-amz-server-side-encryption", Some("aws:kms")),
                );
            }
            write(&sim, bytes, written).await;
            let daemon = fleet::lone(&mut sim, "encryption.mode = \"bucket-default\"", AWS).await;
            sim.drained().await;
            arrived_once(&sim);
            assert_unproved(&daemon, &[cause]).await;
            daemon.stop().await;
        });
    }
}

#[test]
fn what_something_in_between_says_of_a_part_leaves_nothing_unproved() {
    for status in [400, 405, 416, 501] {
        simulate(20, async |mut sim| {
            let heads = Place::s3("HeadObject").bucket(SOURCE).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("in between", heads, Effect::refuse(status, "")).times(2));
            write(&sim, 6 << 20, Written::Parts(5, None)).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            assert_eq!(sim.net.faults().hits("in between"), 2, "{status}");
            arrived_once(&sim);
            assert_eq!(daemon.status().await.unwrap().unproved, [], "{status}");
            daemon.stop().await;
        });
    }
}

#[test]
fn an_etag_of_parts_is_believed_of_a_store_that_was_seen_to_make_it_of_their_md5s() {
    for is_known in [false, true] {
        simulate(15, async |mut sim| {
            let daemon = fleet::lone(&mut sim, "", NOT_AWS).await;
            if is_known {
                write(&sim, LARGE, Written::Parts(5, None)).await;
                sim.drained().await;
                assert_eq!(daemon.status().await.unwrap().unproved, []);
            }
            spoil(&sim, "GetObject", SOURCE, Effect::Corrupt(50));
            write(&sim, LARGE, Written::Parts(6, None)).await;
            sim.drained().await;
            let reasons: Vec<Reason> = daemon
                .status()
                .await
                .unwrap()
                .parked
                .iter()
                .map(|it| it.reason)
                .collect();
            match is_known {
                true => assert_eq!(reasons, [Reason::ChecksumMismatch]),
                false => assert_unproved(&daemon, &[Unproved::NothingStated]).await,
            }
            daemon.stop().await;
        });
    }
}

#[test]
fn a_bit_that_changed_once_is_read_again_at_once() {
    simulate(10, async |mut sim| {
        spoil_once(&sim, "GetObject", SOURCE, Effect::Corrupt(50));
        write(&sim, SMALL, Written::Plain).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        arrived_once(&sim);
        assert_eq!(fleet::figure(&daemon, "failures_total", &[]).await, 0.0);
        daemon.stop().await;
    });
}

/// Says why nothing proves the one replica of the rule.
async fn assert_unproved(daemon: &Daemon, causes: &[Unproved]) {
    let counts = daemon.status().await.unwrap().unproved;
    assert_eq!(
        counts.iter().map(|count| count.cause).collect::<Vec<_>>(),
        causes
    );
    for count in counts {
        let labels = [
            "rule=\"orders\"",
            &format!("cause=\"{}\"", count.cause.as_str()),
        ];
        assert_eq!(
            (
                count.replicas,
                fleet::figure(daemon, "unproved_total", &labels).await
            ),
            (1, 1.0)
        );
    }
}

/// Spoils one answer.
fn spoil_once(sim: &Sim, operation: &str, bucket: &str, effect: Effect) {
    let place = Place::s3(operation).bucket(bucket).client("daemon-0");
    sim.net
        .faults()
        .add(Fault::new("spoilt", place, effect).times(1));
}

/// Writes such an object so that the source states no more of it than told.
pub(crate) async fn write(sim: &Sim, bytes: usize, written: Written) {
    sim.s3.set_traits(Traits {
        adds_checksums: false,
        ..Traits::aws()
    });
    match written {
        Written::With(checksum) => put(sim, bytes, ChecksumAlgorithm::from(checksum)).await,
        Written::Plain => {
            sim.post_everything();
            let put = bare(sim)
                .put_object()
                .bucket(SOURCE)
                .key("a")
                .body(body(bytes).into());
            put.send().await.unwrap();
        }
        Written::Parts(part_mib, checksum) => {
            sim.post_everything();
            upload(
                sim,
                body(bytes).chunks(part_mib << 20),
                checksum.map(ChecksumAlgorithm::from),
            )
            .await;
        }
        Written::Unequal(checksum) => {
            sim.post_everything();
            let body = body(bytes);
            let parts = [
                &body[..5 << 20],
                &body[5 << 20..11 << 20],
                &body[11 << 20..],
            ];
            upload(
                sim,
                parts.into_iter(),
                Some(ChecksumAlgorithm::from(checksum)),
            )
            .await;
        }
    }
}

async fn upload<'a>(
    sim: &Sim,
    all: impl Iterator<Item = &'a [u8]>,
    checksum: Option<ChecksumAlgorithm>,
) {
    let user = if checksum.is_some() {
        sim.user()
    } else {
        bare(sim)
    };
    let create = user
        .create_multipart_upload()
        .bucket(SOURCE)
        .key("a")
        .set_checksum_algorithm(checksum.clone());
    let upload = create.send().await.unwrap().upload_id.unwrap();
    let mut parts = Vec::new();
    for (number, part) in (1..).zip(all) {
        let call = user
            .upload_part()
            .bucket(SOURCE)
            .key("a")
            .upload_id(&upload)
            .part_number(number);
        let call = call
            .set_checksum_algorithm(checksum.clone())
            .body(part.to_vec().into());
        let etag = call.send().await.unwrap().e_tag.unwrap();
        parts.push(
            CompletedPart::builder()
                .part_number(number)
                .e_tag(etag)
                .build(),
        );
    }
    let parts = CompletedMultipartUpload::builder()
        .set_parts(Some(parts))
        .build();
    let complete = user
        .complete_multipart_upload()
        .bucket(SOURCE)
        .key("a")
        .upload_id(upload);
    complete.multipart_upload(parts).send().await.unwrap();
}

/// Returns a client that adds no checksum of its own.
fn bare(sim: &Sim) -> aws_sdk_s3::Client {
    let config = aws_sdk_s3::config::Builder::from(&sim.sdk("user"));
    let config = config.request_checksum_calculation(RequestChecksumCalculation::WhenRequired);
    aws_sdk_s3::Client::from_conf(config.force_path_style(true).build())
}
