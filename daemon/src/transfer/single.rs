//! A small object: one GetObject, one PutObject, the body in memory in between.

use std::sync::Arc;

use replicator_core::failure::Failure;
use replicator_core::fence::body_timeout;
use replicator_core::parts::Part;
use tokio::time::Instant;

use super::attributes::Attributes;
use super::copy::{CRC64_NVME, Copy, Dress, Written, crc64_header, etag_of};
use super::{proof, remove};
use crate::accounts::capabilities::Ability;
use crate::budget::Paid;
use crate::engine::Due;
use crate::failpoint::Step;
use crate::fanout::{Body, Lead};
use crate::wire::Call;

/// Copies a version whose body fits into one part.
pub(crate) async fn copy(copy: &Copy<'_>) -> Result<Written, Failure> {
    let whole = Part { number: 1, offset: 0, len: copy.version.size_bytes };
    let (due, _share) = copy.admitted(whole, false).await;
    let (body, dress) = match due {
        Due::Have(body) => {
            let dress = copy.dress(Attributes::from(&body.head), body.read, true).await?;
            (body, dress)
        }
        Due::Read(lead, paid) => read(copy, whole, lead, paid).await?,
    };
    copy.engine.limits.may_send(copy.payer(false)).await;
    let dress = if dress.is_old() { copy.dress_anew().await? } else { dress };
    copy.foresight.check(copy.version, &dress.attributes, &body.chunks)?;
    copy.prove(body.crc64, &dress.attributes)?;
    put(copy, &dress, &body).await
}

/// Reads the object, here and for whoever else has to write it. That it is not to be replicated is known before its body
/// has come.
async fn read(copy: &Copy<'_>, whole: Part, mut lead: Lead<'_>, paid: Paid) -> Result<(Arc<Body>, Dress), Failure> {
    let (original, read) = (copy.original(), Instant::now());
    let (head, body) = copy.source.wire.send(original.get().checksums()).await?.split();
    let attributes = Attributes::from(&head);
    if copy.claimed_origin(&attributes).is_some() {
        // The destination is asked first, and the others do not wait for that.
        lead.step_aside();
    }
    let dress = copy.dress(attributes, read, true).await?;
    let (chunks, crc64) = original.finish(whole, body).await?;
    proof::check(&head, &chunks)?;
    Ok((lead.share(Body { head, read, chunks, crc64, paid }), dress))
}

async fn put(copy: &Copy<'_>, dress: &Dress, body: &Body) -> Result<Written, Failure> {
    let abilities = &copy.destination.capabilities;
    let (if_match, if_none_match) = copy.conditions(abilities.has(Ability::ConditionalPut));
    let checksum = abilities.has(Ability::Crc64Nvme).then(|| crc64_header(body.crc64));
    if let Some(looked) = copy.basis.renew(copy.destination, copy.task).await? {
        remove::confirm(copy.source, copy.task, &copy.version.version.id, looked).await?;
    }
    let lane = &copy.task.lane;
    let mut call = Call::put(&lane.destination.bucket, &lane.key, body.chunks.clone())
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
