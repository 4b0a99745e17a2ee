//! Objects: content, metadata, tags, checksums, copies.

use aws_sdk_s3::types::{ChecksumMode, StorageClass, Tag, Tagging};

use super::*;
use crate::case::word;
use crate::ground::content;

pub(super) const CASES: &[Case] = &[
    case!(
        "system and user metadata come back as they were sent",
        METADATA,
        metadata,
        "text/x-poem no-store inline la a=1"
    ),
    case!("an Expires that is no date", GET, expires, "never"),
    case!(
        "an object without a type",
        METADATA,
        default_type,
        "binary/octet-stream"
    ),
    case!(
        "an object of another storage class names it",
        METADATA,
        storage_class,
        "STANDARD_IA"
    ),
    case!(
        "ranges of an object",
        GET,
        ranges,
        "bytes 1-2/4, 416 InvalidRange"
    ),
    case!(
        "the same content has the same ETag, in one part another",
        CHECKSUMS,
        same_etag,
        "true false"
    ),
    case!(
        "GetObject of a version that is not current",
        GET,
        old_version,
        "1"
    ),
    case!(
        "PutObject with the CRC64NVME, right and wrong",
        CHECKSUMS,
        crc64,
        "ok, 400 BadDigest"
    ),
    case!(
        "PutObject with the SHA256, right and wrong",
        CHECKSUMS,
        sha256,
        "ok, 400 BadDigest"
    ),
    case!(
        "HeadObject tells a checksum to those who ask",
        CHECKSUMS,
        told_checksum,
        "Lb1nAmRU5LE= FULL_OBJECT"
    ),
    case!(
        "HeadObject tells the checksum that S3 adds by itself",
        CHECKSUMS,
        own_checksum,
        "Lb1nAmRU5LE= FULL_OBJECT"
    ),
    case!(
        "tags of a version that is not current",
        TAGS,
        tags,
        "old=1, new: none"
    ),
    case!("HeadObject counts tags", HEAD, tag_count, "2"),
    case!(
        "CopyObject keeps metadata and tags but not the storage class",
        COPY,
        copy,
        "a=1 tags=1 STANDARD"
    ),
    case!(
        "CopyObject of an older version onto its own key",
        RESTORING,
        copy_version,
        "1"
    ),
    case!(
        "CopyObject onto itself without a change",
        COPY,
        copy_itself,
        "400 InvalidRequest"
    ),
];

// The checksums of "x".
const CRC64: &str = "Lb1nAmRU5LE=";
const SHA256: &str = "LXEWQrcmsEQBYnyp+6wy9chTD7GQPMTbAiWHF5IaSIE=";

async fn metadata(ground: Ground) -> String {
    let key = ground.key("key");
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(&key)
        .content_type("text/x-poem");
    let request = request
        .cache_control("no-store")
        .content_disposition("inline")
        .content_language("la");
    request.metadata("a", "1").send().await.unwrap();
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(key)
        .send()
        .await
        .unwrap();
    let user = head
        .metadata
        .unwrap_or_default()
        .remove("a")
        .unwrap_or_default();
    let texts = [
        head.content_type,
        head.cache_control,
        head.content_disposition,
        head.content_language,
    ];
    let texts: Vec<String> = texts
        .into_iter()
        .map(|text| text.unwrap_or_else(|| "none".to_owned()))
        .collect();
    format!("{} a={user}", texts.join(" "))
}

async fn expires(ground: Ground) -> String {
    let key = ground.key("key");
    // The SDK would not send it.
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(&key)
        .customize()
        .mutate_request(|request| {
            request.headers_mut().insert("expires", "never");
        });
    let put = request.send().await;
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(key)
        .send()
        .await;
    head.ok()
        .and_then(|head| head.expires_string)
        .unwrap_or_else(|| word(&put))
}

async fn default_type(ground: Ground) -> String {
    let key = ground.key("key");
    // The SDK would say what S3 says.
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(&key)
        .customize()
        .mutate_request(|request| {
            request.headers_mut().remove("content-type");
        });
    request.send().await.unwrap();
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(key)
        .send()
        .await
        .unwrap();
    head.content_type.unwrap_or_default()
}

async fn storage_class(ground: Ground) -> String {
    let key = ground.key("key");
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(&key)
        .storage_class(StorageClass::StandardIa);
    request.send().await.unwrap();
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(key)
        .send()
        .await
        .unwrap();
    head.storage_class
        .map_or("none".to_owned(), |class| class.as_str().to_owned())
}

async fn ranges(ground: Ground) -> String {
    ground.put("key", 4).await;
    let get = |range: &str| {
        ground
            .s3
            .get_object()
            .bucket(&ground.bucket)
            .key(ground.key("key"))
            .range(range)
    };
    let inside = get("bytes=1-2")
        .send()
        .await
        .unwrap()
        .content_range
        .unwrap_or_default();
    format!("{inside}, {}", word(&get("bytes=4-").send().await))
}

async fn same_etag(ground: Ground) -> String {
    let first = ground.put("key", 1).await.etag;
    let second = ground.put("key", 1).await.etag;
    let upload = ground.upload("key", 1).await;
    ground.complete("key", upload).await;
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .send()
        .await
        .unwrap();
    format!("{} {}", first == second, head.e_tag == Some(first))
}

async fn old_version(ground: Ground) -> String {
    let version = ground.put("key", 1).await.version;
    ground.put("key", 2).await;
    let get = ground
        .s3
        .get_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .version_id(version);
    get.send()
        .await
        .unwrap()
        .content_length
        .unwrap_or(0)
        .to_string()
}

async fn crc64(ground: Ground) -> String {
    let put = |checksum| {
        let request = ground
            .s3
            .put_object()
            .bucket(&ground.bucket)
            .key(ground.key("key"))
            .body(content(1));
        request.checksum_crc64_nvme(checksum).send()
    };
    [word(&put(CRC64).await), word(&put("AAAAAAAAAAA=").await)].join(", ")
}

async fn sha256(ground: Ground) -> String {
    let put = |checksum| {
        let request = ground
            .s3
            .put_object()
            .bucket(&ground.bucket)
            .key(ground.key("key"))
            .body(content(1));
        request.checksum_sha256(checksum).send()
    };
    let wrong = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU=";
    [word(&put(SHA256).await), word(&put(wrong).await)].join(", ")
}

async fn told(ground: &Ground) -> String {
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    let head = head
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .unwrap();
    let kind = head
        .checksum_type
        .map_or("none".to_owned(), |kind| kind.as_str().to_owned());
    format!(
        "{} {kind}",
        head.checksum_crc64_nvme
            .unwrap_or_else(|| "none".to_owned())
    )
}

async fn told_checksum(ground: Ground) -> String {
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .body(content(1));
    request.checksum_crc64_nvme(CRC64).send().await.unwrap();
    told(&ground).await
}

async fn own_checksum(ground: Ground) -> String {
    ground.put("key", 1).await;
    told(&ground).await
}

async fn tags(ground: Ground) -> String {
    let key = ground.key("key");
    let old = ground.put("key", 1).await.version;
    let new = ground.put("key", 2).await.version;
    let tagging = Tagging::builder()
        .tag_set(Tag::builder().key("old").value("1").build().unwrap())
        .build()
        .unwrap();
    let request = ground
        .s3
        .put_object_tagging()
        .bucket(&ground.bucket)
        .key(&key)
        .version_id(&old);
    request.tagging(tagging).send().await.unwrap();
    let mut found = Vec::new();
    for version in [old, new] {
        let request = ground
            .s3
            .get_object_tagging()
            .bucket(&ground.bucket)
            .key(&key)
            .version_id(version);
        let tags = request.send().await.unwrap().tag_set;
        found.push(
            tags.iter()
                .map(|tag| format!("{}={}", tag.key, tag.value))
                .collect::<String>(),
        );
    }
    format!(
        "{}, new: {}",
        found[0],
        if found[1].is_empty() {
            "none"
        } else {
            &found[1]
        }
    )
}

async fn tag_count(ground: Ground) -> String {
    let key = ground.key("key");
    ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(&key)
        .tagging("a=1&b=2")
        .send()
        .await
        .unwrap();
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(key)
        .send()
        .await
        .unwrap();
    head.tag_count
        .map_or("none".to_owned(), |count| count.to_string())
}

async fn copy(ground: Ground) -> String {
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(ground.key("from"))
        .metadata("a", "1");
    request
        .tagging("t=1")
        .storage_class(StorageClass::StandardIa)
        .send()
        .await
        .unwrap();
    let source = format!("{}/{}", ground.bucket, ground.key("from"));
    let to = ground.key("to");
    ground
        .s3
        .copy_object()
        .bucket(&ground.bucket)
        .key(&to)
        .copy_source(source)
        .send()
        .await
        .unwrap();
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(&to)
        .send()
        .await
        .unwrap();
    let tags = ground
        .s3
        .get_object_tagging()
        .bucket(&ground.bucket)
        .key(to)
        .send()
        .await
        .unwrap()
        .tag_set;
    let user = head
        .metadata
        .unwrap_or_default()
        .remove("a")
        .unwrap_or_default();
    let class = head.storage_class.unwrap_or(StorageClass::Standard);
    format!("a={user} tags={} {}", tags.len(), class.as_str())
}

async fn copy_version(ground: Ground) -> String {
    let version = ground.put("key", 1).await.version;
    ground.put("key", 2).await;
    let source = format!(
        "{}/{}?versionId={version}",
        ground.bucket,
        ground.key("key")
    );
    let request = ground
        .s3
        .copy_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .copy_source(source);
    match request.send().await {
        Ok(_) => ground.current("key").await,
        refused => word(&refused),
    }
}

async fn copy_itself(ground: Ground) -> String {
    ground.put("key", 1).await;
    let source = format!("{}/{}", ground.bucket, ground.key("key"));
    let request = ground
        .s3
        .copy_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .copy_source(source);
    word(&request.send().await)
}
