//! Every answer is held against what was asked or sent. One to another question is none, what it
//! leaves out is asked for, and what contradicts a write is looked into.

use std::time::{Duration, UNIX_EPOCH};

use replicator_core::failure::Reason;
use replicator_fakes::faults::{Effect, Fault, Place};

use crate::fleet;
use crate::judge::{Expect, judge};
use crate::proofs::{CRC64, Written, write};
use crate::sim::{ARCHIVE, AWS, NOT_AWS, SOURCE, simulate};
use crate::spoilt::{LARGE, SMALL, arrived_once, change, spoil};

#[test]
fn an_answer_to_another_question_is_no_answer() {
    const OTHERS: &str = "bytes=0-4194303";
    for (operation, bytes, effect) in [
        (
            "GetObject",
            SMALL,
            Effect::Answer("x-amz-version-id", Some("other")),
        ),
        ("GetObject", SMALL, Effect::WrongETag),
        ("GetObject", SMALL, Effect::Ask("range", Some("bytes=0-99"))),
        (
            "HeadObject",
            LARGE,
            Effect::Answer("x-amz-version-id", Some("other")),
        ),
        ("HeadObject", LARGE, Effect::WrongETag),
        (
            "HeadObject",
            LARGE,
            Effect::Answer("content-length", Some("99")),
        ),
        (
            "GetObject",
            LARGE,
            Effect::Answer("x-amz-version-id", Some("other")),
        ),
        ("GetObject", LARGE, Effect::Ask("range", Some(OTHERS))),
        ("GetObject", LARGE, Effect::Ask("range", None)),
        ("GetObject", LARGE, Effect::Answer("content-range", None)),
        (
            "GetObject",
            LARGE,
            Effect::Answer("content-range", Some("bytes 0-8388607/8388608")),
        ),
    ] {
        simulate(11, async |mut sim| {
            let what = format!("{operation}, {bytes} bytes, {effect:?}");
            spoil(&sim, operation, SOURCE, effect.clone());
            write(&sim, bytes, Written::Plain).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.pass(Duration::from_secs(120)).await;
            assert!(sim.net.faults().hits("spoilt") > 0, "{what}");
            assert!(
                sim.s3.ever(ARCHIVE, "a").is_empty(),
                "{what}: it was taken for the answer"
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
fn a_range_that_is_resumed_is_held_against_what_was_asked_too() {
    simulate(12, async |mut sim| {
        let place = || Place::s3("GetObject").bucket(SOURCE).client("daemon-0");
        sim.net
            .faults()
            .add(Fault::new("broken", place(), Effect::ResetAt(50)).times(1));
        sim.net
            .faults()
            .add(Fault::new("spoilt", place(), Effect::Ask("range", Some("bytes=0-49"))).nth(2));
        write(&sim, SMALL, Written::Plain).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        assert_eq!(sim.net.faults().hits("spoilt"), 1);
        arrived_once(&sim);
        daemon.stop().await;
    });
}

#[test]
fn what_the_answer_to_a_write_leaves_out_is_asked_for() {
    for account in [AWS, NOT_AWS] {
        for (operation, effect) in [
            ("PutObject", Effect::NoETag),
            ("PutObject", Effect::Answer("etag", Some("\"\""))),
            ("PutObject", Effect::Answer("x-amz-version-id", None)),
            ("UploadPart", Effect::NoETag),
            ("CompleteMultipartUpload", Effect::NoETag),
            (
                "CompleteMultipartUpload",
                Effect::Answer("x-amz-version-id", None),
            ),
            ("DeleteObject", Effect::Answer("x-amz-version-id", None)),
        ] {
            simulate(13, async |mut sim| {
                let what = format!("{operation}, {effect:?}");
                sim.post_everything();
                let daemon = fleet::lone(&mut sim, "", account).await;
                spoil(&sim, operation, ARCHIVE, effect.clone());
                change(&sim, Duration::from_secs(1)).await;
                sim.drained().await;
                assert!(sim.net.faults().hits("spoilt") > 0, "{what}");
                assert_eq!(
                    fleet::figure(&daemon, "failures_total", &["OutcomeUnknown"]).await,
                    0.0,
                    "{what}"
                );
                assert!(daemon.status().await.unwrap().parked.is_empty(), "{what}");
                daemon.stop().await;
                assert_eq!(judge(&sim, Expect::EXACT), Vec::<String>::new(), "{what}");
            });
        }
    }
}

#[test]
fn an_answer_that_contradicts_the_write_is_looked_into() {
    let checksum = Effect::Answer(CRC64, Some("AAAAAAAAAAA="));
    for (operation, bytes, effect) in [
        ("PutObject", SMALL, checksum),
        ("CompleteMultipartUpload", LARGE, Effect::WrongETag),
    ] {
        contradict(operation, bytes, &effect, None);
        // The replica holds other bytes, indeed.
        contradict(operation, bytes, &effect, Some(Reason::ChecksumMismatch));
    }
}

fn contradict(operation: &str, bytes: usize, effect: &Effect, damage: Option<Reason>) {
    simulate(14, async |mut sim| {
        let what = format!("{operation}, {damage:?}");
        spoil(&sim, operation, ARCHIVE, effect.clone());
        spoil(
            &sim,
            "CompleteMultipartUpload",
            ARCHIVE,
            Effect::Without("ChecksumCRC64NVME"),
        );
        if damage.is_some() {
            // The byte that a refusal, too, can do without: its XML declaration's.
            spoil(&sim, "GetObject", ARCHIVE, Effect::Corrupt(15));
        }
        write(&sim, bytes, Written::With("CRC32")).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        let status = daemon.status().await.unwrap();
        let reasons: Vec<Reason> = status.parked.iter().map(|it| it.reason).collect();
        assert_eq!(reasons, damage.into_iter().collect::<Vec<_>>(), "{what}");
        assert_eq!(status.unproved, [], "{what}: reading back is a proof");
        sim.net.faults().clear("spoilt");
        sim.pass(fleet::TRIED_WITHIN).await;
        assert!(daemon.status().await.unwrap().parked.is_empty(), "{what}");
        daemon.stop().await;
        let written = 1 + usize::from(damage.is_some());
        assert_eq!(
            sim.s3.ever(ARCHIVE, "a").len(),
            written,
            "{what}: what was refuted is no replica"
        );
    });
}

#[test]
fn a_replica_that_was_read_back_with_other_bytes_is_never_believed_whatever_it_says() {
    for rule in ["", "unmanaged_objects = \"keep\""] {
        simulate(15, async |mut sim| {
            // The bytes change on their way, and nothing goes along that tells.
            let put = || Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("damaged", put(), Effect::CorruptUpload(50)).times(1));
            sim.net
                .faults()
                .add(Fault::new("damaged", put(), Effect::Ask(CRC64, None)).times(1));
            // The source's ETag is no MD5 of the bytes, so the two ETags contradict nothing.
            write(&sim, SMALL, Written::Parts(5, Some("CRC32"))).await;
            let daemon = fleet::lone(&mut sim, rule, AWS).await;
            sim.drained().await;
            let reasons: Vec<Reason> = daemon
                .status()
                .await
                .unwrap()
                .parked
                .iter()
                .map(|it| it.reason)
                .collect();
            assert_eq!(reasons, [Reason::ChecksumMismatch], "{rule}");
            assert_ne!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"), "{rule}");
            sim.pass(fleet::TRIED_WITHIN).await;
            assert!(daemon.status().await.unwrap().parked.is_empty(), "{rule}");
            daemon.stop().await;
            assert_eq!(sim.shown(ARCHIVE, "a"), sim.shown(SOURCE, "a"), "{rule}");
        });
    }
}

#[test]
fn a_write_that_its_checksum_contradicts_is_not_settled_because_it_cannot_be_read_for_now() {
    let (denied, failed) = (
        Effect::refuse(403, "AccessDenied"),
        Effect::refuse(500, "InternalError"),
    );
    // Seven reads are tried thrice each.
    let told = [
        (failed.clone(), 3, (1, 0)),
        (failed, 21, (2, 0)),
        (Effect::slow_down(), 21, (2, 0)),
        (denied, 3, (1, 1)),
    ];
    for (effect, times, (written, unproved)) in told {
        simulate(16, async |mut sim| {
            let put = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
            let wrong = Effect::Answer(CRC64, Some("AAAAAAAAAAA="));
            sim.net
                .faults()
                .add(Fault::new("wrong", put, wrong).times(1));
            let get = Place::s3("GetObject").bucket(ARCHIVE).client("daemon-0");
            sim.net
                .faults()
                .add(Fault::new("unread", get, effect.clone()).times(times));
            write(&sim, SMALL, Written::With("CRC32")).await;
            let daemon = fleet::lone(&mut sim, "", AWS).await;
            sim.drained().await;
            let status = daemon.status().await.unwrap();
            daemon.stop().await;
            assert!(
                sim.net.faults().hits("unread") > 0 && status.parked.is_empty(),
                "{effect:?}"
            );
            assert_eq!(sim.s3.ever(ARCHIVE, "a").len(), written, "{effect:?}");
            assert_eq!(status.unproved.len(), unproved, "{effect:?}");
        });
    }
}

#[test]
fn a_clock_that_is_far_off_is_shown_until_it_is_right() {
    simulate(17, async |mut sim| {
        let heads = Place::s3("PutObject").bucket(ARCHIVE).client("daemon-0");
        let wrong = Effect::Answer("date", Some("Thu, 01 Jan 1970 00:00:00 GMT"));
        sim.net.faults().add(Fault::new("wrong", heads, wrong));
        write(&sim, SMALL, Written::Plain).await;
        let daemon = fleet::lone(&mut sim, "", AWS).await;
        sim.drained().await;
        let now = i64::try_from(
            sim.clock
                .now()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs(),
        )
        .unwrap();
        let status = daemon.status().await.unwrap();
        let [clock] = status.clock_skew.as_slice() else {
            panic!("{:?}", status.clock_skew)
        };
        assert!((clock.ahead_seconds + now).abs() < 60, "{clock:?}");
        sim.net.faults().clear("wrong");
        sim.pass(Duration::from_secs(3600)).await;
        assert_eq!(daemon.status().await.unwrap().clock_skew, []);
        daemon.stop().await;
    });
}
