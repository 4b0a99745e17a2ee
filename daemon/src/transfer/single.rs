//! A small object: one GetObject, one PutObject, the body in memory in between.

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::ChecksumMode;
use aws_smithy_runtime_api::http::Headers;
use replicator_core::failure::Failure;
use replicator_core::fence::body_timeout;

use super::attributes::{Attributes, dress};
use super::copy::{Copy, Dress, Written, crc64, crc64_header, etag_of};
use super::pinned::collect;
use super::remove;
use crate::accounts::capabilities::Ability;
use crate::accounts::deadline;
use crate::accounts::refusal::{Side, failure};
use crate::failpoint::Step;

/// Copies a version whose body fits into one part.
pub(crate) async fn copy(copy: &Copy<'_>) -> Result<Written, Failure> {
    let size = copy.version.size_bytes;
    // The rate first: who waits for it must not hold memory that others could use.
    copy.engine.limits.bytes(&copy.rule.id, size).await;
    let _paid = copy.engine.budget.pay(size).await;
    let request = copy.original().get().checksum_mode(ChecksumMode::Enabled);
    let answer = request.send().await.map_err(|error| failure(Side::Source, "GetObject", error))?;
    let dress = copy.dress(Attributes::from(&answer)).await?;
    let body = collect(answer.body, size).await?;
    copy.foresight.check(copy.version, &dress.attributes, &body)?;
    let crc64 = crc64(&body);
    copy.prove(crc64, &dress.attributes)?;
    put(copy, &dress, ByteStream::from(body), crc64).await
}

async fn put(copy: &Copy<'_>, dress: &Dress, body: ByteStream, crc64: u64) -> Result<Written, Failure> {
    let abilities = &copy.destination.capabilities;
    let (if_match, if_none_match) = copy.conditions(abilities.has(Ability::ConditionalPut));
    let checksum = abilities.has(Ability::Crc64Nvme).then(|| crc64_header(crc64));
    copy.engine.limits.request(&copy.rule.id).await;
    if copy.basis.renew(copy.destination, copy.task).await? {
        remove::confirm(copy.source, copy.task, &copy.version.version.id).await?;
    }
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
    let headers = dress.attributes.headers();
    let request = dress!(request, &dress.attributes, dress.tags, &dress.encryption)
        .customize()
        .config_override(deadline(body_timeout(copy.version.size_bytes)))
        .mutate_request(move |request| set_headers(request.headers_mut(), &headers));
    let answer = copy.engine.failpoints.around(Step::PutObject, Box::pin(request.send())).await;
    let answer = answer.map_err(|error| failure(Side::Write, "PutObject", error))?;
    let etag = etag_of(answer.e_tag(), "PutObject")?;
    Ok(Written { destination_version: answer.version_id, etag })
}

/// Adds headers as the texts they are, before the request is signed.
pub(super) fn set_headers(headers: &mut Headers, all: &[(String, String)]) {
    for (name, value) in all {
        // A name or value that no header can hold cannot have come from one.
        let _replaced = headers.try_insert(name.clone(), value.clone());
    }
}
