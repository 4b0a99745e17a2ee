//! A small object: one GetObject, one PutObject, the body in memory in between.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use replicator_core::failure::Failure;

use super::attributes::{Attributes, dress};
use super::copy::{Copy, Dress, Written, crc64, crc64_header, etag_of};
use crate::accounts::capabilities::Ability;
use crate::accounts::refusal::{Side, failure};

/// Copies a version whose body fits into one part.
pub(crate) async fn copy(copy: &Copy<'_>) -> Result<Written, Failure> {
    let size = copy.version.size_bytes;
    let _paid = copy.engine.budget.pay(size).await;
    copy.engine.limits.bytes(&copy.rule.id, size).await;
    let answer = copy
        .source
        .s3
        .get_object()
        .bucket(copy.task.source.bucket.as_str())
        .key(copy.task.source_key.as_str())
        .version_id(copy.version.version.id.as_str())
        .set_if_match(copy.version.etag.as_ref().map(|etag| etag.quoted()))
        .checksum_mode(ChecksumMode::Enabled)
        .send()
        .await
        .map_err(|error| failure(Side::Source, "GetObject", error))?;
    let dress = copy.dress(Attributes::from(&answer)).await?;
    let body = copy.collect(answer.body, size).await?;
    let crc64 = crc64(&body);
    copy.prove(crc64, &dress.attributes)?;
    put(copy, &dress, ByteStream::from(body), crc64).await
}

async fn put(copy: &Copy<'_>, dress: &Dress, body: ByteStream, crc64: u64) -> Result<Written, Failure> {
    let abilities = &copy.destination.capabilities;
    let (if_match, if_none_match) = copy.conditions(abilities.has(Ability::ConditionalPut));
    let checksum = abilities.has(Ability::Crc64Nvme).then(|| crc64_header(crc64));
    copy.engine.limits.request(&copy.rule.id).await;
    let request = copy
        .destination
        .s3_once
        .put_object()
        .bucket(copy.task.lane.destination.bucket.as_str())
        .key(copy.task.lane.key.as_str())
        .body(body)
        .set_if_match(if_match)
        .set_if_none_match(if_none_match)
        .set_checksum_crc64_nvme(checksum);
    let expires = dress.attributes.expires.clone();
    let answer = dress!(request, &dress.attributes, dress.tags, &dress.encryption)
        .customize()
        .mutate_request(move |request| set_expires(request.headers_mut(), expires.as_deref()))
        .send()
        .await
        .map_err(|error| failure(Side::Write, "PutObject", error))?;
    let etag = etag_of(answer.e_tag(), "PutObject")?;
    Ok(Written { destination_version: answer.version_id, etag })
}

/// Carries `Expires` as the text it is: it may hold a date that no parser takes.
pub(super) fn set_expires(headers: &mut aws_smithy_runtime_api::http::Headers, expires: Option<&str>) {
    if let Some(expires) = expires {
        // A text that no header can hold cannot have come from one.
        let _replaced = headers.try_insert("expires", expires.to_owned());
    }
}
