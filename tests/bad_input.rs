//! Bad input loses nothing and is named: it is counted, kept where an operator can look at it, and
//! the work beside it goes on.

use aws_sdk_s3::types::BucketVersioningStatus;
use serde_json::json;

use crate::world::daemon::Daemon;
use crate::world::localstack::SOURCE;
use crate::world::{World, eventually};

/// Returns a notification as S3 sends it; the key is encoded by the caller.
pub(crate) fn created(bucket: &str, encoded_key: &str, version: &str) -> String {
    let record = json!({
        "eventVersion": "2.1",
        "eventSource": "aws:s3",
        "awsRegion": SOURCE.region,
        "eventTime": "2026-01-01T00:00:00.000Z",
        "eventName": "ObjectCreated:Put",
        "s3": {
            "s3SchemaVersion": "1.0",
            "bucket": { "name": bucket, "arn": format!("arn:aws:s3:::{bucket}") },
            "object": { "key": encoded_key, "size": 5, "versionId": version, "sequencer": "0055AED6DCD90281E5" },
        },
    });
    json!({ "Records": [record] }).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_version_that_is_gone_before_it_was_read_is_recorded_as_gone() {
    let world = World::new().await;
    world.put("report", "kept").await;
    let version = world.put("report", "lost").await;
    let delete = SOURCE
        .s3()
        .delete_object()
        .bucket(&world.source)
        .key("report")
        .version_id(version);
    delete.send().await.unwrap();
    let daemon = world.start().await;
    world.drained(&daemon).await;
    world.assert_equal().await;
    let gone = daemon
        .metrics()
        .await
        .sum("operations_total", &[("outcome", "gone")]);
    assert!(gone >= 1.0, "{gone} operations were gone");
    assert_eq!(
        world.parked.depth().await,
        0,
        "there is nothing left to retry"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_plus_signs_for_spaces_means_spaces() {
    let world = World::new().await;
    // No event of S3's own, so that only the one below can tell of the key; LocalStack writes %20.
    SOURCE.silence(&world.source).await;
    let version = world.put("a b+c/ü", "spaced").await;
    let daemon = world.start().await;
    world
        .queue
        .send(created(&world.source, "a+b%2Bc/%C3%BC", &version))
        .await;
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    assert_eq!(compared["replicas"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn several_records_in_one_message_all_count() {
    let world = World::new().await;
    SOURCE.silence(&world.source).await;
    let mut records = Vec::new();
    for key in ["one", "two", "three"] {
        let version = world.put(key, key).await;
        let event: serde_json::Value =
            serde_json::from_str(&created(&world.source, key, &version)).unwrap();
        records.push(event["Records"][0].clone());
    }
    let daemon = world.start().await;
    world
        .queue
        .send(json!({ "Records": records }).to_string())
        .await;
    world.drained(&daemon).await;
    let compared = world.assert_equal().await;
    assert_eq!(compared["replicas"], 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_destination_without_versioning_is_named() {
    let world = World::new().await;
    let daemon = Daemon::spawn(&world.config()).ready().await;
    let suspended = aws_sdk_s3::types::VersioningConfiguration::builder()
        .status(BucketVersioningStatus::Suspended);
    let archive = crate::world::localstack::ARCHIVE.s3();
    let request = archive
        .put_bucket_versioning()
        .bucket(&world.archive)
        .versioning_configuration(suspended.build());
    request.send().await.unwrap();
    world.put("report", "first").await;
    eventually("the reason is counted", async || {
        daemon
            .metrics()
            .await
            .sum("failures_total", &[("reason", "DstBucketUnversioned")])
            > 0.0
    })
    .await;
}
