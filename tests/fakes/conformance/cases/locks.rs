//! Object Lock.

use std::time::{Duration, SystemTime};

use aws_sdk_s3::primitives::DateTime;
use aws_sdk_s3::types::{ObjectLockLegalHoldStatus, ObjectLockMode};

use super::*;
use crate::case::word;
use crate::ground::content;

pub(super) const CASES: &[Case] = &[
    case!(
        "removing a version under GOVERNANCE, without and with bypass",
        LOCK,
        governance,
        "403 AccessDenied, ok"
    ),
    case!(
        "removing a version under COMPLIANCE, with bypass",
        LOCK,
        compliance,
        "403 AccessDenied"
    ),
    case!(
        "removing a version under legal hold",
        LOCK,
        legal_hold,
        "403 AccessDenied"
    ),
    case!("a delete marker over a locked version", LOCK, marker, "ok"),
    case!(
        "retention where the bucket has no Object Lock",
        LOCK,
        without,
        "400 InvalidRequest"
    ),
];

// Of "x": Object Lock wants bodies proved.
const CRC64: &str = "Lb1nAmRU5LE=";

/// Half a minute from now: what a test locks permanently it cannot clean up.
fn soon() -> DateTime {
    #[allow(
        clippy::disallowed_methods,
        reason = "the stores read their own clocks"
    )]
    let now = SystemTime::now();
    DateTime::from(now + Duration::from_secs(30))
}

async fn retained(ground: &Ground, mode: ObjectLockMode) -> String {
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.locked)
        .key(ground.key("key"))
        .body(content(1));
    let request = request
        .checksum_crc64_nvme(CRC64)
        .object_lock_mode(mode)
        .object_lock_retain_until_date(soon());
    request.send().await.unwrap().version_id.unwrap()
}

async fn remove(ground: &Ground, version: &str, bypass: bool) -> String {
    let request = ground
        .s3
        .delete_object()
        .bucket(&ground.locked)
        .key(ground.key("key"))
        .version_id(version);
    word(
        &request
            .set_bypass_governance_retention(bypass.then_some(true))
            .send()
            .await,
    )
}

async fn governance(ground: Ground) -> String {
    let version = retained(&ground, ObjectLockMode::Governance).await;
    [
        remove(&ground, &version, false).await,
        remove(&ground, &version, true).await,
    ]
    .join(", ")
}

async fn compliance(ground: Ground) -> String {
    let version = retained(&ground, ObjectLockMode::Compliance).await;
    remove(&ground, &version, true).await
}

async fn legal_hold(ground: Ground) -> String {
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.locked)
        .key(ground.key("key"))
        .body(content(1));
    let request = request
        .object_lock_legal_hold_status(ObjectLockLegalHoldStatus::On)
        .checksum_crc64_nvme(CRC64);
    let version = request.send().await.unwrap().version_id.unwrap();
    remove(&ground, &version, true).await
}

async fn marker(ground: Ground) -> String {
    retained(&ground, ObjectLockMode::Governance).await;
    word(
        &ground
            .s3
            .delete_object()
            .bucket(&ground.locked)
            .key(ground.key("key"))
            .send()
            .await,
    )
}

async fn without(ground: Ground) -> String {
    let request = ground
        .s3
        .put_object()
        .bucket(&ground.bucket)
        .key(ground.key("key"))
        .body(content(1));
    let request = request
        .object_lock_mode(ObjectLockMode::Governance)
        .object_lock_retain_until_date(soon());
    word(&request.send().await)
}
