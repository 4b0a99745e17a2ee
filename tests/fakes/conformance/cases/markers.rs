//! Versions, delete markers, and buckets that keep none.

use aws_sdk_s3::types::BucketVersioningStatus;

use super::*;
use crate::case::word;
use crate::ground::{Page, content};

pub(super) const CASES: &[Case] = &[
    case!(
        "a delete marker over a delete marker",
        MARKERS,
        marker_over_marker,
        "history: - - 1"
    ),
    case!(
        "a delete marker over nothing",
        MARKERS,
        marker_over_nothing,
        "history: -"
    ),
    case!(
        "HeadObject of a deleted key",
        HEAD,
        head_deleted,
        "404, x-amz-delete-marker: true, its version is named"
    ),
    case!(
        "GetObject of a deleted key",
        GET,
        get_deleted,
        "404 NoSuchKey, x-amz-delete-marker: true, its version is named"
    ),
    case!(
        "HeadObject of a delete marker by its version",
        HEAD,
        head_marker,
        "405, x-amz-delete-marker: true"
    ),
    case!(
        "GetObject of a delete marker by its version",
        GET,
        get_marker,
        "405 MethodNotAllowed, x-amz-delete-marker: true"
    ),
    case!(
        "a delete marker is removed by its version",
        MARKERS,
        remove_marker,
        "current: 1, history: 1"
    ),
    case!(
        "a version is removed by its id, twice",
        DELETE,
        remove_twice,
        "ok, ok, history: 2"
    ),
    case!(
        "HeadObject of a version that was removed",
        HEAD,
        head_removed,
        "404"
    ),
    case!(
        "version ids of ten puts of a key",
        VERSIONS,
        ids,
        "10 different"
    ),
    case!(
        "PutObject under suspended versioning replaces null and keeps the rest",
        SUSPENDED,
        suspended,
        "history: 3 1"
    ),
    case!(
        "DeleteObject under suspended versioning replaces null by a delete marker",
        SUSPENDED,
        suspended_delete,
        "null, history: - 1"
    ),
    case!(
        "PutObject without versioning names no version",
        SUSPENDED,
        unversioned,
        "no version"
    ),
];

async fn marker_over_marker(ground: Ground) -> String {
    ground.put("key", 1).await;
    ground.mark("key").await;
    ground.mark("key").await;
    format!("history: {}", ground.history("key").await)
}

async fn marker_over_nothing(ground: Ground) -> String {
    ground.mark("key").await;
    format!("history: {}", ground.history("key").await)
}

/// Tells an error with what its headers say of a marker.
macro_rules! told {
    ($result:expr, $marker:expr) => {{
        let result = $result;
        let headers = result
            .as_ref()
            .err()
            .and_then(|error| error.raw_response())
            .map(|answer| answer.headers());
        let header = |name: &str| {
            headers
                .and_then(|headers| headers.get(name))
                .unwrap_or("none")
                .to_owned()
        };
        let named = header("x-amz-version-id") == $marker;
        (
            format!(
                "{}, x-amz-delete-marker: {}",
                word(&result),
                header("x-amz-delete-marker")
            ),
            named,
        )
    }};
}

fn with_version((told, named): (String, bool)) -> String {
    format!(
        "{told}, its version is {}",
        if named { "named" } else { "not named" }
    )
}

async fn head_deleted(ground: Ground) -> String {
    ground.put("key", 1).await;
    let marker = ground.mark("key").await;
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    with_version(told!(head.send().await, marker))
}

async fn get_deleted(ground: Ground) -> String {
    ground.put("key", 1).await;
    let marker = ground.mark("key").await;
    let get = ground
        .s3
        .get_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    with_version(told!(get.send().await, marker))
}

async fn head_marker(ground: Ground) -> String {
    ground.put("key", 1).await;
    let marker = ground.mark("key").await;
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    told!(head.version_id(&marker).send().await, marker).0
}

async fn get_marker(ground: Ground) -> String {
    ground.put("key", 1).await;
    let marker = ground.mark("key").await;
    let get = ground
        .s3
        .get_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    told!(get.version_id(&marker).send().await, marker).0
}

async fn remove_marker(ground: Ground) -> String {
    ground.put("key", 1).await;
    let marker = ground.mark("key").await;
    let request = ground
        .s3
        .delete_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    request.version_id(marker).send().await.unwrap();
    format!(
        "current: {}, history: {}",
        ground.current("key").await,
        ground.history("key").await
    )
}

async fn remove_twice(ground: Ground) -> String {
    let version = ground.put("key", 1).await.version;
    ground.put("key", 2).await;
    let mut words = Vec::new();
    for _ in 0..2 {
        let request = ground
            .s3
            .delete_object()
            .bucket(&ground.bucket)
            .key(ground.key("key"));
        words.push(word(&request.version_id(&version).send().await));
    }
    format!(
        "{}, history: {}",
        words.join(", "),
        ground.history("key").await
    )
}

async fn head_removed(ground: Ground) -> String {
    let version = ground.put("key", 1).await.version;
    ground.put("key", 2).await;
    let request = ground
        .s3
        .delete_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    request.version_id(&version).send().await.unwrap();
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    word(&head.version_id(version).send().await)
}

async fn ids(ground: Ground) -> String {
    let mut ids = Vec::new();
    for _ in 0..10 {
        ids.push(ground.put("key", 1).await.version);
    }
    ids.sort();
    ids.dedup();
    format!("{} different", ids.len())
}

/// A bucket with a version of one byte and, under suspension, two more of 2 and 3.
async fn suspend(ground: &Ground) -> String {
    let bucket = ground.own_bucket().await;
    let put = |bytes| {
        ground
            .s3
            .put_object()
            .bucket(&bucket)
            .key("key")
            .body(content(bytes))
    };
    ground
        .set_versioning(&bucket, BucketVersioningStatus::Enabled)
        .await;
    put(1).send().await.unwrap();
    ground
        .set_versioning(&bucket, BucketVersioningStatus::Suspended)
        .await;
    put(2).send().await.unwrap();
    put(3).send().await.unwrap();
    bucket
}

async fn history(ground: &Ground, bucket: &str) -> String {
    let page = ground.page(bucket, "key", &Page::default()).await;
    page.into_iter()
        .map(|entry| entry.what)
        .collect::<Vec<_>>()
        .join(" ")
}

async fn suspended(ground: Ground) -> String {
    let bucket = suspend(&ground).await;
    format!("history: {}", history(&ground, &bucket).await)
}

async fn suspended_delete(ground: Ground) -> String {
    let bucket = suspend(&ground).await;
    let marker = ground
        .s3
        .delete_object()
        .bucket(&bucket)
        .key("key")
        .send()
        .await
        .unwrap();
    let version = marker.version_id.unwrap_or_else(|| "no version".to_owned());
    format!("{version}, history: {}", history(&ground, &bucket).await)
}

async fn unversioned(ground: Ground) -> String {
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.unversioned)
        .key(ground.key("key"));
    let version = request.send().await.unwrap().version_id;
    version.unwrap_or_else(|| "no version".to_owned())
}
