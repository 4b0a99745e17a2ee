//! Uploads in parts.

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};

use super::*;
use crate::case::word;
use crate::ground::content;

pub(super) const CASES: &[Case] = &[
    case!(
        "an upload begun before a put and completed after it is not current",
        UPLOADS,
        below_put,
        "current: 2, history: 2 1"
    ),
    case!(
        "an upload begun before a delete and completed after it stays hidden",
        UPLOADS,
        below_marker,
        "current: -, history: - 2 1"
    ),
    case!(
        "of two uploads the one begun last is current, whichever ends last",
        UPLOADS,
        two_uploads,
        "current: 2, history: 2 1"
    ),
    case!(
        "the ETag of an upload of one part",
        CHECKSUMS,
        etag,
        "9affad555af89da9b0bfcd5e45bc93da-1"
    ),
    case!(
        "CompleteMultipartUpload with a wrong ETag of a part",
        COMPLETE,
        wrong_part,
        "400 InvalidPart"
    ),
    case!(
        "CompleteMultipartUpload with parts in descending order",
        COMPLETE,
        wrong_order,
        "400 InvalidPartOrder"
    ),
    case!(
        "CompleteMultipartUpload with a small part before the last",
        COMPLETE,
        small_part,
        "400 EntityTooSmall"
    ),
    case!(
        "AbortMultipartUpload twice",
        ABORT,
        abort_twice,
        "ok, 404 NoSuchUpload"
    ),
    case!(
        "CompleteMultipartUpload of an aborted upload",
        COMPLETE,
        complete_aborted,
        "404 NoSuchUpload"
    ),
    case!(
        "CompleteMultipartUpload with the CRC64NVME of the whole, right and wrong",
        CHECKSUMS,
        whole_checksum,
        "ok, 400 BadDigest"
    ),
];

// Of "x".
const CRC64: &str = "Lb1nAmRU5LE=";

/// The state of a key after all.
async fn told(ground: &Ground) -> String {
    format!(
        "current: {}, history: {}",
        ground.current("key").await,
        ground.history("key").await
    )
}

async fn below_put(ground: Ground) -> String {
    let upload = ground.upload("key", 1).await;
    ground.put("key", 2).await;
    ground.complete("key", upload).await;
    told(&ground).await
}

async fn below_marker(ground: Ground) -> String {
    ground.put("key", 1).await;
    let upload = ground.upload("key", 2).await;
    ground.mark("key").await;
    ground.complete("key", upload).await;
    told(&ground).await
}

async fn two_uploads(ground: Ground) -> String {
    let first = ground.upload("key", 1).await;
    let second = ground.upload("key", 2).await;
    ground.complete("key", second).await;
    ground.complete("key", first).await;
    told(&ground).await
}

async fn etag(ground: Ground) -> String {
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
    head.e_tag.unwrap().trim_matches('"').to_owned()
}

async fn complete(ground: &Ground, upload: &str, parts: Vec<CompletedPart>) -> String {
    let parts = CompletedMultipartUpload::builder()
        .set_parts(Some(parts))
        .build();
    let request = ground
        .s3
        .complete_multipart_upload()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    word(
        &request
            .upload_id(upload)
            .multipart_upload(parts)
            .send()
            .await,
    )
}

async fn wrong_part(ground: Ground) -> String {
    let upload = ground.begin("key").await;
    ground.part("key", &upload, 1, 1).await;
    let part = CompletedPart::builder()
        .part_number(1)
        .e_tag("\"d41d8cd98f00b204e9800998ecf8427e\"")
        .build();
    complete(&ground, &upload, vec![part]).await
}

async fn wrong_order(ground: Ground) -> String {
    let upload = ground.begin("key").await;
    let one = ground.part("key", &upload, 1, 5 << 20).await;
    let two = ground.part("key", &upload, 2, 1).await;
    complete(&ground, &upload, vec![two, one]).await
}

async fn small_part(ground: Ground) -> String {
    let upload = ground.begin("key").await;
    let one = ground.part("key", &upload, 1, 1).await;
    let two = ground.part("key", &upload, 2, 1).await;
    complete(&ground, &upload, vec![one, two]).await
}

async fn abort(ground: &Ground, upload: &str) -> String {
    let request = ground
        .s3
        .abort_multipart_upload()
        .bucket(&ground.bucket)
        .key(ground.key("key"));
    word(&request.upload_id(upload).send().await)
}

async fn abort_twice(ground: Ground) -> String {
    let upload = ground.begin("key").await;
    [abort(&ground, &upload).await, abort(&ground, &upload).await].join(", ")
}

async fn complete_aborted(ground: Ground) -> String {
    let upload = ground.begin("key").await;
    let part = ground.part("key", &upload, 1, 1).await;
    abort(&ground, &upload).await;
    complete(&ground, &upload, vec![part]).await
}

async fn whole_checksum(ground: Ground) -> String {
    let mut words = Vec::new();
    for checksum in [CRC64, "AAAAAAAAAAA="] {
        let request = ground
            .s3
            .create_multipart_upload()
            .bucket(&ground.bucket)
            .key(ground.key("key"));
        let request = request
            .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
            .checksum_type(ChecksumType::FullObject);
        let upload = request.send().await.unwrap().upload_id.unwrap();
        let request = ground
            .s3
            .upload_part()
            .bucket(&ground.bucket)
            .key(ground.key("key"))
            .upload_id(&upload);
        let part = request
            .part_number(1)
            .body(content(1))
            .checksum_crc64_nvme(CRC64)
            .send()
            .await
            .unwrap();
        let part = CompletedPart::builder()
            .part_number(1)
            .checksum_crc64_nvme(CRC64)
            .set_e_tag(part.e_tag)
            .build();
        let parts = CompletedMultipartUpload::builder().parts(part).build();
        let request = ground
            .s3
            .complete_multipart_upload()
            .bucket(&ground.bucket)
            .key(ground.key("key"));
        let request = request
            .upload_id(upload)
            .multipart_upload(parts)
            .checksum_type(ChecksumType::FullObject);
        words.push(word(&request.checksum_crc64_nvme(checksum).send().await));
    }
    words.join(", ")
}
