//! Conditions on writes and reads.

use super::*;
use crate::case::word;
use crate::ground::content;

pub(super) const CASES: &[Case] = &[
    case!(
        "PutObject If-None-Match: * over nothing, an object, a delete marker",
        WRITES,
        put_first,
        "ok, 412 PreconditionFailed, ok"
    ),
    case!(
        "PutObject If-Match: another ETag over nothing, an object, a delete marker",
        WRITES,
        put_over_another,
        "404 NoSuchKey, 412 PreconditionFailed, 404 NoSuchKey"
    ),
    case!(
        "PutObject If-Match: the current ETag",
        WRITES,
        put_over_this,
        "ok"
    ),
    case!(
        "PutObject If-Match: the ETag of an older version",
        WRITES,
        put_over_older,
        "412 PreconditionFailed"
    ),
    case!(
        "CompleteMultipartUpload If-None-Match: * over nothing, an object, a delete marker",
        WRITES,
        complete_first,
        "ok, 412 PreconditionFailed, ok"
    ),
    case!(
        "CompleteMultipartUpload If-Match: another ETag over nothing, an object, a delete marker",
        WRITES,
        complete_over_another,
        "404 NoSuchKey, 412 PreconditionFailed, 404 NoSuchKey"
    ),
    case!(
        "CompleteMultipartUpload If-Match: the current ETag",
        WRITES,
        complete_over_this,
        "ok"
    ),
    case!(
        "CompleteMultipartUpload If-None-Match: * when the object was deleted since the upload began",
        WRITES,
        complete_after_delete,
        "409 ConditionalRequestConflict"
    ),
    case!(
        "CopyObject If-None-Match: * over nothing, an object, a delete marker",
        WRITES,
        copy_first,
        "ok, 412 PreconditionFailed, ok"
    ),
    case!(
        "CopyObject If-Match: another ETag over nothing, an object, a delete marker",
        WRITES,
        copy_over_another,
        "404 NoSuchKey, 412 PreconditionFailed, 404 NoSuchKey"
    ),
    case!(
        "CopyObject x-amz-copy-source-if-match: the right and another ETag",
        COPY,
        copy_from,
        "ok, 412 PreconditionFailed"
    ),
    case!(
        "DeleteObject If-Match: another ETag over an object",
        DELETES,
        delete_another,
        "412 PreconditionFailed, current: 1"
    ),
    case!(
        "DeleteObject If-Match: the current ETag",
        DELETES,
        delete_this,
        "ok, history: - 1"
    ),
    case!(
        "DeleteObject If-Match: * over an object, a delete marker",
        DELETES,
        delete_any,
        "ok, 412 PreconditionFailed, history of the latter: - 1"
    ),
    case!(
        "GetObject If-Match: another ETag, If-None-Match: the current one",
        READS,
        read,
        "412 PreconditionFailed, 304"
    ),
];

/// The MD5 of nothing, which no object here has.
const ANOTHER: &str = "\"d41d8cd98f00b204e9800998ecf8427e\"";

/// What a write says.
#[derive(Clone, Copy)]
enum Condition {
    First,
    Over(&'static str),
}

impl Condition {
    fn headers(self) -> (Option<String>, Option<String>) {
        match self {
            Self::First => (None, Some("*".to_owned())),
            Self::Over(etag) => (Some(etag.to_owned()), None),
        }
    }
}

async fn puts(ground: Ground, condition: Condition) -> String {
    ground.three_states().await;
    let mut words = Vec::new();
    for state in STATES {
        let (over, first) = condition.headers();
        let request = ground
            .s3
            .put_object()
            .bucket(&ground.bucket)
            .key(ground.key(state))
            .body(content(2));
        words.push(word(
            &request
                .set_if_match(over)
                .set_if_none_match(first)
                .send()
                .await,
        ));
    }
    words.join(", ")
}

async fn put_first(ground: Ground) -> String {
    puts(ground, Condition::First).await
}

async fn put_over_another(ground: Ground) -> String {
    puts(ground, Condition::Over(ANOTHER)).await
}

async fn put_over_this(ground: Ground) -> String {
    let etag = ground.put("key", 1).await.etag;
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .body(content(2));
    word(&request.if_match(etag).send().await)
}

async fn put_over_older(ground: Ground) -> String {
    let etag = ground.put("key", 1).await.etag;
    ground.put("key", 2).await;
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .body(content(3));
    word(&request.if_match(etag).send().await)
}

async fn complete_one(
    ground: &Ground,
    key: &str,
    condition: (Option<String>, Option<String>),
) -> String {
    let (upload, parts) = ground.upload(key, 2).await;
    let request = ground
        .s3
        .complete_multipart_upload()
        .bucket(&ground.bucket)
        .key(ground.key(key));
    let request = request.upload_id(upload).multipart_upload(parts);
    word(
        &request
            .set_if_match(condition.0)
            .set_if_none_match(condition.1)
            .send()
            .await,
    )
}

async fn completes(ground: Ground, condition: Condition) -> String {
    ground.three_states().await;
    let mut words = Vec::new();
    for state in STATES {
        words.push(complete_one(&ground, state, condition.headers()).await);
    }
    words.join(", ")
}

async fn complete_first(ground: Ground) -> String {
    completes(ground, Condition::First).await
}

async fn complete_over_another(ground: Ground) -> String {
    completes(ground, Condition::Over(ANOTHER)).await
}

async fn complete_over_this(ground: Ground) -> String {
    let etag = ground.put("key", 1).await.etag;
    complete_one(&ground, "key", (Some(etag), None)).await
}

async fn complete_after_delete(ground: Ground) -> String {
    ground.put("key", 1).await;
    let (upload, parts) = ground.upload("key", 2).await;
    ground.mark("key").await;
    let request = ground
        .s3
        .complete_multipart_upload()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    word(
        &request
            .upload_id(upload)
            .multipart_upload(parts)
            .if_none_match("*")
            .send()
            .await,
    )
}

async fn copies(ground: Ground, condition: Condition) -> String {
    ground.three_states().await;
    ground.put("from", 2).await;
    let source = format!("{}/{}", ground.bucket, ground.key("from"));
    let mut words = Vec::new();
    for state in STATES {
        let (over, first) = condition.headers();
        let request = ground
            .s3
            .copy_object()
            .bucket(&ground.bucket)
            .key(ground.key(state))
            .copy_source(&source);
        words.push(word(
            &request
                .set_if_match(over)
                .set_if_none_match(first)
                .send()
                .await,
        ));
    }
    words.join(", ")
}

async fn copy_first(ground: Ground) -> String {
    copies(ground, Condition::First).await
}

async fn copy_over_another(ground: Ground) -> String {
    copies(ground, Condition::Over(ANOTHER)).await
}

async fn copy_from(ground: Ground) -> String {
    let etag = ground.put("from", 2).await.etag;
    let source = format!("{}/{}", ground.bucket, ground.key("from"));
    let mut words = Vec::new();
    for etag in [etag.as_str(), ANOTHER] {
        let request = ground
            .s3
            .copy_object()
            .bucket(&ground.bucket)
            .key(ground.key("to"))
            .copy_source(&source);
        words.push(word(&request.copy_source_if_match(etag).send().await));
    }
    words.join(", ")
}

async fn delete_if(ground: &Ground, key: &str, etag: &str) -> String {
    let request = ground
        .s3
        .delete_object()
        .bucket(&ground.bucket)
        .key(ground.key(key));
    word(&request.if_match(etag).send().await)
}

async fn delete_another(ground: Ground) -> String {
    ground.put("key", 1).await;
    let word = delete_if(&ground, "key", ANOTHER).await;
    format!("{word}, current: {}", ground.current("key").await)
}

async fn delete_this(ground: Ground) -> String {
    let etag = ground.put("key", 1).await.etag;
    let word = delete_if(&ground, "key", &etag).await;
    format!("{word}, history: {}", ground.history("key").await)
}

async fn delete_any(ground: Ground) -> String {
    ground.three_states().await;
    let words = [
        delete_if(&ground, "object", "*").await,
        delete_if(&ground, "marker", "*").await,
    ];
    format!(
        "{}, history of the latter: {}",
        words.join(", "),
        ground.history("marker").await
    )
}

async fn read(ground: Ground) -> String {
    let etag = ground.put("key", 1).await.etag;
    let get = || {
        ground
            .s3
            .get_object()
            .bucket(&ground.bucket)
            .key(ground.key("key"))
    };
    let words = [
        word(&get().if_match(ANOTHER).send().await),
        word(&get().if_none_match(etag).send().await),
    ];
    words.join(", ")
}
