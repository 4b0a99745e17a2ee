//! Keys of KMS that can be used and cannot, and what S3 says of them.

use aws_sdk_s3::types::{ChecksumMode, ServerSideEncryption};

use super::*;
use crate::case::word;
use crate::ground::{KeyState, content};

pub(super) const CASES: &[Case] = &[
    case!(
        "PutObject under a key that is enabled, disabled, pending deletion, unknown",
        ERRORS,
        put,
        "ok, 400 KMS.DisabledException, 400 KMS.KMSInvalidStateException, 400 KMS.NotFoundException"
    ),
    case!(
        "CreateMultipartUpload under a key that is enabled, disabled, pending deletion, unknown",
        ERRORS,
        begin,
        "ok, 400 KMS.DisabledException, 400 KMS.KMSInvalidStateException, 400 KMS.NotFoundException"
    ),
    case!(
        "GetObject of what a key encrypted that is enabled, disabled, pending deletion since",
        ERRORS,
        get,
        "ok, 400 KMS.DisabledException, 400 KMS.KMSInvalidStateException"
    ),
    case!(
        "HeadObject of what a disabled key encrypted, without and with its checksums",
        HEAD,
        head,
        "ok, 400"
    ),
    case!(
        "PutObject under KMS that names no key, and what is told of it",
        SSE,
        unnamed,
        "ok, aws:kms"
    ),
    case!(
        "the ETag of what a key encrypts is not the MD5",
        OBJECT,
        etag,
        "another"
    ),
    case!(
        "a key that is given by its id is told by its ARN",
        SSE,
        told,
        "its ARN"
    ),
    case!(
        "DescribeKey of a key that is enabled, disabled, pending deletion, unknown",
        KEY_STATES,
        describe,
        "Enabled, Disabled, PendingDeletion, 400 NotFoundException"
    ),
];

// What lies encrypted under a key that never was cannot be.
const ONCE_USABLE: [KeyState; 3] = [
    KeyState::Enabled,
    KeyState::Disabled,
    KeyState::PendingDeletion,
];

async fn put(ground: Ground) -> String {
    let mut words = Vec::new();
    for state in KeyState::ALL {
        let key = ground.key_in(state).await;
        words.push(ground.put_under("key", &key).await);
    }
    words.join(", ")
}

async fn begin(ground: Ground) -> String {
    let mut words = Vec::new();
    for state in KeyState::ALL {
        let request = ground
            .s3
            .create_multipart_upload()
            .bucket(&ground.bucket)
            .key(ground.key("key"));
        let request = request.server_side_encryption(ServerSideEncryption::AwsKms);
        words.push(word(
            &request
                .ssekms_key_id(ground.key_in(state).await)
                .send()
                .await,
        ));
    }
    words.join(", ")
}

async fn get(ground: Ground) -> String {
    let mut words = Vec::new();
    for state in ONCE_USABLE {
        let key = ground.key_in(KeyState::Enabled).await;
        ground.put_under("key", &key).await;
        ground.turn(&key, state).await;
        words.push(word(
            &ground
                .s3
                .get_object()
                .bucket(&ground.bucket)
                .key(ground.key("key"))
                .send()
                .await,
        ));
    }
    words.join(", ")
}

async fn head(ground: Ground) -> String {
    let key = ground.key_in(KeyState::Enabled).await;
    ground.put_under("key", &key).await;
    ground.turn(&key, KeyState::Disabled).await;
    let head = || {
        ground
            .s3
            .head_object()
            .bucket(&ground.bucket)
            .key(ground.key("key"))
    };
    let asking = head().checksum_mode(ChecksumMode::Enabled);
    format!(
        "{}, {}",
        word(&head().send().await),
        word(&asking.send().await)
    )
}

async fn unnamed(ground: Ground) -> String {
    let put = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .body(content(1));
    let put = word(
        &put.server_side_encryption(ServerSideEncryption::AwsKms)
            .send()
            .await,
    );
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .send()
        .await
        .unwrap();
    format!(
        "{put}, {}",
        head.server_side_encryption
            .map(|told| told.to_string())
            .unwrap_or_default()
    )
}

async fn etag(ground: Ground) -> String {
    let plain = ground.put("plain", 1).await.etag;
    let key = ground.key_in(KeyState::Enabled).await;
    ground.put_under("key", &key).await;
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .send()
        .await
        .unwrap();
    if head.e_tag == Some(plain) {
        "the same"
    } else {
        "another"
    }
    .to_owned()
}

async fn told(ground: Ground) -> String {
    let arn = ground.key_in(KeyState::Enabled).await;
    ground
        .put_under("key", arn.rsplit('/').next().unwrap())
        .await;
    let head = ground
        .s3
        .head_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .send()
        .await
        .unwrap();
    if head.ssekms_key_id == Some(arn) {
        "its ARN"
    } else {
        "otherwise"
    }
    .to_owned()
}

async fn describe(ground: Ground) -> String {
    let mut words = Vec::new();
    for state in KeyState::ALL {
        words.push(ground.describe_key(&ground.key_in(state).await).await);
    }
    words.join(", ")
}
