//! E over TCP: bytes, ranges and versions that are not what was asked for become no replica.

use replicator_fakes::s3::traits::Traits;

use crate::world::daemon::Daemon;
use crate::world::eventually;
use crate::world::hostile::{ARCHIVE, Hostile, Reply, SOURCE};

const SMALL: usize = 1_000;
// Three parts of 8 MiB, which is an eighth of the memory.
const LARGE: usize = 20 << 20;

/// Makes a world whose source states nothing of an object but its MD5, as the ETag.
async fn world() -> Hostile {
    let world = Hostile::new().await;
    world.s3.set_traits(Traits {
        adds_checksums: false,
        ..Traits::aws()
    });
    world
}

/// No two parts are alike.
fn body(bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|at| u8::try_from(at / 7 % 251).unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_flipped_bit_of_an_object_with_a_plain_md5_becomes_no_replica() {
    for bytes in [SMALL, LARGE] {
        let world = world().await;
        let flip = Reply::alter(|answer| {
            answer
                .body
                .get_mut(500)
                .into_iter()
                .for_each(|byte| *byte ^= 1);
        });
        world.answer(|seen| seen.is(SOURCE, "GetObject"), flip);
        world.put("a", body(bytes)).await;
        let daemon = Daemon::spawn(&world.config()).ready().await;
        world.drained().await;
        assert_eq!(
            daemon
                .metrics()
                .await
                .sum("parked", &[("reason", "ChecksumMismatch")]),
            1.0,
            "{bytes} bytes"
        );
        assert!(
            world.hits() > 0 && world.s3.ever(ARCHIVE, "a").is_empty(),
            "{bytes} bytes were written"
        );
        assert!(
            daemon.log().contains("the source states etag"),
            "{bytes} bytes: it says what differs"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_range_of_the_right_length_goes_into_no_replica() {
    let world = world().await;
    world.put("a", body(LARGE)).await;
    let first = body(LARGE);
    let wrong = Reply::alter(move |answer| {
        let len = answer.body.len();
        answer.body = first[..len].to_vec();
        answer.set("content-range", format!("bytes 0-{}/{LARGE}", len - 1));
    });
    world.answer(
        |seen| seen.is(SOURCE, "GetObject") && seen.header("range").starts_with("bytes=8388608-"),
        wrong,
    );
    let daemon = Daemon::spawn(&world.config()).ready().await;
    eventually("the wrong range is noticed", async || {
        daemon.log().contains(
            "asked for bytes 8388608-16777215/20971520, and was answered 206 with bytes 0-8388607",
        )
    })
    .await;
    assert!(world.s3.ever(ARCHIVE, "a").is_empty());
    world.clear();
    world.replicated("a").await;
    assert_eq!(world.s3.ever(ARCHIVE, "a").len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn another_version_or_length_is_no_answer() {
    for change in [
        ("x-amz-version-id", "other"),
        ("etag", "\"0cc175b9c0f1b6a831c399e269772661\""),
    ] {
        let world = world().await;
        world.put("a", body(SMALL)).await;
        let other = Reply::alter(move |answer| answer.set(change.0, change.1));
        world.answer(|seen| seen.is(SOURCE, "GetObject"), other);
        let daemon = Daemon::spawn(&world.config()).ready().await;
        eventually("it is noticed", async || {
            daemon.log().contains("asked for ")
        })
        .await;
        assert!(world.s3.ever(ARCHIVE, "a").is_empty(), "{change:?}");
        world.clear();
        world.replicated("a").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_completed_upload_whose_answer_has_an_empty_etag_is_known_by_its_version() {
    let world = world().await;
    let empty = Reply::alter(|answer| {
        let text = String::from_utf8(answer.body.clone()).unwrap();
        let (before, rest) = text.split_once("<ETag>").unwrap();
        let (_, after) = rest.split_once("</ETag>").unwrap();
        answer.body = format!("{before}<ETag></ETag>{after}").into_bytes();
    });
    world.answer(|seen| seen.is(ARCHIVE, "CompleteMultipartUpload"), empty);
    world.put("a", body(LARGE)).await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    world.replicated("a").await;
    world.drained().await;
    assert_eq!(world.hits(), 1, "it was completed once");
    assert_eq!(
        daemon
            .metrics()
            .await
            .sum("failures_total", &[("reason", "OutcomeUnknown")]),
        0.0
    );
    assert_eq!(world.s3.ever(ARCHIVE, "a").len(), 1);
}
