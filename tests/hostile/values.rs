//! What is told of an object in headers, over real connections: bytes that are no text, more
//! entries than clients like, metadata that no header can hold, and requests that say how long they
//! are.

use bytes::Bytes;
use http::{HeaderValue, Request};
use replicator_fakes::s3::traits::Traits;

use crate::world::daemon::Daemon;
use crate::world::hostile::{ARCHIVE, Hostile, Reply, SOURCE};

/// A body that goes whole, and one that goes in two parts.
const SIZES: [(&str, usize); 2] = [("small", 100), ("large", 12 << 20)];

#[tokio::test(flavor = "multi_thread")]
async fn latin_1_in_headers_arrives_as_it_is() {
    let world = Hostile::new().await;
    world.s3.set_traits(Traits {
        takes_raw_values: true,
        ..Traits::aws()
    });
    for (key, bytes) in SIZES {
        let disposition = (
            "content-disposition".to_owned(),
            b"attachment; filename=\"caf\xe9  1.txt\"".to_vec(),
        );
        put_raw(
            &world,
            key,
            bytes,
            &[
                (
                    "x-amz-meta-name".to_owned(),
                    b"caf\xe9 \t \"a,  b\"".to_vec(),
                ),
                disposition,
            ],
        )
        .await;
    }
    let daemon = Daemon::spawn(&world.config()).ready().await;
    for (key, _) in SIZES {
        arrives_as_it_is(&world, key).await;
    }
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn as_many_entries_as_2_kb_have_room_for_arrive() {
    let world = Hostile::new().await;
    let entries: Vec<_> = (0..120)
        .map(|n| (format!("x-amz-meta-{n:03}"), format!("{n}").into_bytes()))
        .collect();
    for (key, bytes) in SIZES {
        put_raw(&world, key, bytes, &entries).await;
    }
    let daemon = Daemon::spawn(&world.config()).ready().await;
    for (key, _) in SIZES {
        arrives_as_it_is(&world, key).await;
    }
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn metadata_that_the_source_cannot_tell_parks_what_has_it() {
    let world = Hostile::new().await;
    let reads = |operation: &'static str| {
        move |seen: &crate::world::request::Seen| seen.is(SOURCE, operation)
    };
    for operation in ["GetObject", "HeadObject"] {
        world.answer(
            reads(operation),
            Reply::alter(|answer| answer.set("x-amz-missing-meta", "2")),
        );
    }
    for (key, bytes) in SIZES {
        put_raw(&world, key, bytes, &[]).await;
    }
    let daemon = Daemon::spawn(&world.config()).ready().await;
    world.drained().await;
    assert_eq!(
        daemon
            .metrics()
            .await
            .sum("parked", &[("reason", "SrcMetadataUnreadable")]),
        2.0
    );
    assert!(
        SIZES
            .iter()
            .all(|(key, _)| world.s3.ever(ARCHIVE, key).is_empty())
    );
    drop(daemon);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_brings_no_body_says_so_to_stores_that_insist() {
    let world = Hostile::new().await;
    for (key, bytes) in SIZES {
        put_raw(&world, key, bytes, &[]).await;
    }
    world.s3.set_traits(Traits {
        wants_lengths: true,
        ..Traits::aws()
    });
    let daemon = Daemon::spawn(&world.config()).ready().await;
    for (key, _) in SIZES {
        world.replicated(key).await;
    }
    let begun: Vec<_> = world
        .journal()
        .into_iter()
        .filter(|seen| seen.is(ARCHIVE, "CreateMultipartUpload"))
        .collect();
    assert!(
        !begun.is_empty()
            && begun
                .iter()
                .all(|seen| seen.headers["content-length"] == "0"),
        "{begun:?}"
    );
    drop(daemon);
}

/// Writes an object whose headers no SDK would send, past the proxy.
async fn put_raw(world: &Hostile, key: &str, bytes: usize, headers: &[(String, Vec<u8>)]) {
    // What S3 says of an object without a type of its own.
    let mut put = Request::put(format!("http://s3/{SOURCE}/{key}"))
        .header("content-type", "binary/octet-stream");
    for (name, value) in headers {
        put = put.header(name, HeaderValue::from_bytes(value).unwrap());
    }
    let answer = world
        .s3
        .call(put.body(Bytes::from(vec![1; bytes])).unwrap(), "user")
        .await;
    assert_eq!(answer.status(), 200, "{answer:?}");
}

async fn arrives_as_it_is(world: &Hostile, key: &str) {
    world.replicated(key).await;
    let headers = |bucket| {
        world.s3.history(bucket, key)[0]
            .object
            .as_ref()
            .unwrap()
            .headers
            .clone()
    };
    let mut replica = headers(ARCHIVE);
    assert!(
        replica.remove("x-amz-meta-s3-replicator").is_some(),
        "every replica has a stamp"
    );
    assert_eq!(replica, headers(SOURCE), "{key}");
}
