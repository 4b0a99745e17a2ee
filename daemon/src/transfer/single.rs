//! A small object: one GetObject, one PutObject, the body in memory in between.

use replicator_core::failure::Failure;
use replicator_core::fence::body_timeout;
use replicator_core::parts::Part;
use tokio::time::Instant;

use super::attributes::Attributes;
use super::copy::{CRC64_NVME, Copy, Dress, Written, crc64_header, etag_of};
use super::{proof, remove};
use crate::accounts::capabilities::Ability;
use crate::failpoint::Step;
use crate::wire::{Call, Chunks};

/// Copies a version whose body fits into one part.
pub(crate) async fn copy(copy: &Copy<'_>) -> Result<Written, Failure> {
    let size = copy.version.size_bytes;
    let _paid = copy.engine.admit(&copy.rule.id, size).await;
    let original = copy.original();
    let (head, body) = copy.source.wire.send(original.get().checksums()).await?.split();
    let dress = copy.dress(Attributes::from(&head), true).await?;
    let (body, crc64) = original.finish(Part { number: 1, offset: 0, len: size }, body).await?;
    proof::check(&head, &body)?;
    copy.foresight.check(copy.version, &dress.attributes, &body)?;
    copy.prove(crc64, &dress.attributes)?;
    put(copy, &dress, body, crc64).await
}

async fn put(copy: &Copy<'_>, dress: &Dress, body: Chunks, crc64: u64) -> Result<Written, Failure> {
    let abilities = &copy.destination.capabilities;
    let (if_match, if_none_match) = copy.conditions(abilities.has(Ability::ConditionalPut));
    let checksum = abilities.has(Ability::Crc64Nvme).then(|| crc64_header(crc64));
    if let Some(looked) = copy.basis.renew(copy.destination, copy.task).await? {
        remove::confirm(copy.source, copy.task, &copy.version.version.id, looked).await?;
    }
    let lane = &copy.task.lane;
    let mut call = Call::put(&lane.destination.bucket, &lane.key, body)
        .within(body_timeout(copy.version.size_bytes))
        .header("if-match", if_match.as_deref())
        .header("if-none-match", if_none_match.as_deref())
        .header(CRC64_NVME, checksum.as_deref());
    for (name, value) in dress.headers() {
        call = call.header(&name, Some(&value));
    }
    let sent = Instant::now();
    let answer = copy.engine.failpoints.around(Step::PutObject, Box::pin(copy.destination.wire.send(call))).await?;
    let answer = answer.into_head();
    let etag = etag_of(answer.header("etag"), "PutObject")?;
    Ok(Written { destination_version: answer.version_id(), etag, sent })
}
