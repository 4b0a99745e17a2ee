//! A large object: parts in flight in parallel, each in the ledger as soon as it is at the
//! destination, so that a restart goes on where it stopped.

use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart};
use futures::{StreamExt, stream};
use replicator_core::failure::{Failure, Kind, Reason, chain};
use replicator_core::fence::{body_timeout, complete_timeout};
use replicator_core::parts::{self, Layout, Part};
use tokio::time::Instant;
use tracing::warn;

use super::abreast::{Abreast, WIDTH_MAX};
use super::attributes::set_headers;
use super::basis::Basis;
use super::copy::{CRC64_NVME, Copy, Dress, Written, crc64, crc64_header, crc64_joined, etag_of};
use super::pending::{self, Pending};
use super::remove;
use crate::accounts::capabilities::Ability;
use crate::accounts::deadline;
use crate::accounts::refusal::{Side, failure};
use crate::engine::{Due, Engine};
use crate::failpoint::Step;
use crate::fanout::Body;
use crate::ledger::Parts;
use crate::ledger::records::{Upload, UploadedPart, Whose};
use crate::task::Task;
use crate::wire::{Call, Refusal};

// A connection that breaks costs one part, a few times, before the whole task waits.
const PART_ATTEMPTS: u32 = 3;

/// Copies a version in parts.
pub(crate) async fn copy(copy: &Copy<'_>, part_bytes: u64) -> Result<Written, Failure> {
    let dress = copy.dress_anew().await?;
    let layout = layout(copy, part_bytes)?;
    let parts = parts_of(&layout);
    let (upload, mut done) = begin(copy, &dress, &layout).await?;
    let missing: Vec<Part> = parts.iter().filter(|part| !done.contains_key(&part.number)).copied().collect();
    let copied = upload_all(copy, &upload, missing, &mut done).await;
    let finished = match copied {
        Ok(()) => complete(copy, &upload, &parts, &done, &dress).await,
        Err(failure) => Err(failure),
    };
    match finished {
        Ok(written) => {
            copy.engine.ledger.end_upload(&copy.task.lane)?;
            Ok(written)
        }
        Err(failure) if is_final(&failure) => match abandon(copy.engine, copy.task, copy.basis).await {
            Ok(()) => Err(failure),
            Err(wait @ Failure { kind: Kind::TooYoung(_), .. }) => Err(wait),
            Err(left) => {
                // The ledger still has the upload: the key's next task ends it.
                warn!(key = %copy.task.lane.key, error = %chain(&left), "upload not aborted");
                Err(failure)
            }
        },
        Err(failure) => Err(failure),
    }
}

/// Aborts the upload that the ledger knows for this key: only ever one of our own, and none that may appear yet.
pub(super) async fn abandon(engine: &Engine, task: &Task, basis: &Basis) -> Result<(), Failure> {
    let Some((upload, _)) = engine.ledger.upload(&task.lane)? else { return Ok(()) };
    let access = engine.access(&task.lane.destination)?;
    if let Some(pending) = Pending::of(&upload, access, basis) {
        pending.allows(None)?;
    }
    let request = access
        .s3
        .abort_multipart_upload()
        .bucket(task.lane.destination.bucket.as_str())
        .key(task.lane.key.as_str())
        .upload_id(&upload.upload_id);
    let aborted = engine.failpoints.around(Step::AbortUpload, Box::pin(request.send())).await;
    let aborted = aborted.map_err(|error| failure(Side::Prepare, "AbortMultipartUpload", error));
    match aborted {
        // NoSuchUpload: it was completed or aborted before.
        Ok(_) | Err(Failure { kind: Kind::Conflict | Kind::Contended, .. }) => engine.ledger.end_upload(&task.lane),
        Err(failure) => Err(failure),
    }
}

/// An upload is kept for another try unless it can never be completed.
fn is_final(failure: &Failure) -> bool {
    match failure.kind {
        Kind::Conflict | Kind::Contended | Kind::Gone | Kind::Unsupported(_) | Kind::NotImplemented => true,
        Kind::Refused(reason) => matches!(reason, Reason::ChecksumMismatch | Reason::RequestRefused),
        Kind::Unanswered | Kind::Transient | Kind::Throttled | Kind::TooYoung(_) => false,
    }
}

/// Returns the size of the parts of an upload that can be gone on with: what is preferred may have changed since, with a
/// limit.
pub(super) fn begun(copy: &Copy<'_>) -> Result<Option<u64>, Failure> {
    let known = copy.engine.ledger.upload(&copy.task.lane)?.filter(|_| !copy.distinct);
    let fits = |upload: &Upload| upload.part_bytes <= copy.engine.budget.part_bytes_max();
    Ok(known
        .map(|(upload, _)| upload)
        .filter(|upload| upload.source == copy.version.version && fits(upload))
        .map(|upload| upload.part_bytes))
}

fn layout(copy: &Copy<'_>, part_bytes: u64) -> Result<Layout, Failure> {
    let unsupported = |error| Failure::caused(Kind::Unsupported(Reason::SrcObjectNotEligible), "part layout", error);
    // Other boundaries give another ETag for the same content (protocol rule 4).
    let mut layout = parts::layout(copy.version.size_bytes, part_bytes).map_err(unsupported)?;
    if copy.distinct {
        layout = parts::layout(copy.version.size_bytes, layout.part_bytes() + (1 << 20)).map_err(unsupported)?;
    }
    if layout.part_bytes().min(copy.version.size_bytes) > copy.engine.budget.part_bytes_max() {
        let (part, most) = (layout.part_bytes(), copy.engine.budget.part_bytes_max());
        let detail = format!("a part has {part} bytes, and large objects have {most} of `memory`: raise it");
        return Err(Failure::caused(Kind::Refused(Reason::MemoryBudgetTooSmall), "part layout", detail));
    }
    Ok(layout)
}

/// Goes on with the upload that the ledger knows, if it is for this version and nothing was
/// written since it began; otherwise begins a new one.
async fn begin(copy: &Copy<'_>, dress: &Dress, layout: &Layout) -> Result<(Upload, Parts), Failure> {
    let over = copy.basis.entry.to_string();
    if let Some((upload, done)) = copy.engine.ledger.upload(&copy.task.lane)? {
        let same = upload.source == copy.version.version && upload.entry == over;
        if same && upload.part_bytes == layout.part_bytes() && upload.dress == dress.digest() {
            return Ok((upload, done));
        }
        abandon(copy.engine, copy.task, copy.basis).await?;
    }
    let upload = Upload {
        upload_id: create(copy, dress).await?,
        source: copy.version.version.clone(),
        part_bytes: layout.part_bytes(),
        dress: dress.digest(),
        entry: over,
        appears_until: None,
        whose: Some(whose(copy.task, copy.version.size_bytes)),
    };
    copy.engine.ledger.put_upload(&copy.task.lane, &upload)?;
    Ok((upload, Parts::new()))
}

fn whose(task: &Task, size_bytes: u64) -> Whose {
    let (lane, source, source_key) = (task.lane.clone(), task.source.clone(), task.source_key.clone());
    Whose { lane, source, source_key, size_bytes }
}

async fn create(copy: &Copy<'_>, dress: &Dress) -> Result<String, Failure> {
    let checked = copy.destination.capabilities.has(Ability::Crc64Nvme);
    copy.engine.limits.request(copy.payer(true)).await;
    let request = copy
        .destination
        .s3_once
        .create_multipart_upload()
        .bucket(copy.task.lane.destination.bucket.as_str())
        .key(copy.task.lane.key.as_str())
        .set_checksum_algorithm(checked.then_some(ChecksumAlgorithm::Crc64Nvme))
        .set_checksum_type(checked.then_some(ChecksumType::FullObject));
    let headers = dress.headers();
    let request = request.customize().mutate_request(move |request| set_headers(request.headers_mut(), &headers));
    let answer = copy.engine.failpoints.around(Step::CreateUpload, Box::pin(request.send())).await;
    let answer = answer.map_err(|error| failure(Side::Prepare, "CreateMultipartUpload", error))?;
    answer
        .upload_id
        .ok_or_else(|| Failure::caused(Kind::Transient, "CreateMultipartUpload", "the answer has no upload id"))
}

/// Uploads parts, and writes each down. After a failure none begins, but those on their way come to their end: they are not
/// to be sent again.
async fn upload_all(copy: &Copy<'_>, upload: &Upload, missing: Vec<Part>, done: &mut Parts) -> Result<(), Failure> {
    let abreast = Abreast::new();
    let mut copies =
        stream::iter(missing).map(|part| upload_part(copy, upload, part, &abreast)).buffer_unordered(WIDTH_MAX);
    let mut result = Ok(());
    while let Some(copied) = copies.next().await {
        match copied {
            Ok(Some(part)) => {
                copy.engine.ledger.put_part(&copy.task.lane, &part)?;
                done.insert(part.number, part);
                copy.engine.pulse.moved(&copy.task.lane);
            }
            Ok(None) => {}
            Err(failure) => {
                abreast.end();
                result = result.and(Err(failure));
            }
        }
    }
    result
}

async fn upload_part(
    copy: &Copy<'_>,
    upload: &Upload,
    part: Part,
    abreast: &Abreast,
) -> Result<Option<UploadedPart>, Failure> {
    let Some(_room) = abreast.begin().await else { return Ok(None) };
    let mut attempts_left = PART_ATTEMPTS;
    loop {
        attempts_left -= 1;
        match try_part(copy, upload, part, abreast).await {
            // Where the last one was not answered in all its time, neither is the next, and its memory is lacking elsewhere.
            Err(Refusal { failure, is_held_up: false, .. }) if failure.kind == Kind::Transient && attempts_left > 0 => {
            }
            result => return Ok(result?),
        }
    }
}

async fn try_part(
    copy: &Copy<'_>,
    upload: &Upload,
    part: Part,
    abreast: &Abreast,
) -> Result<Option<UploadedPart>, Refusal> {
    let (due, _share) = tokio::select! {
        biased;
        () = abreast.over() => return Ok(None),
        admitted = copy.admitted(part, true) => admitted,
    };
    let began = Instant::now();
    let body = match due {
        Due::Have(body) => body,
        Due::Read(lead, paid) => {
            let (head, chunks, crc64) = copy.original().part(part).await?;
            lead.share(Body { head, read: began, chunks, crc64, paid })
        }
    };
    copy.engine.limits.may_send(copy.payer(true)).await;
    let checked = copy.destination.capabilities.has(Ability::Crc64Nvme);
    let lane = &copy.task.lane;
    let call = Call::part(&lane.destination.bucket, &lane.key, (&upload.upload_id, part.number), body.chunks.clone())
        .within(body_timeout(part.len))
        .header(CRC64_NVME, checked.then(|| crc64_header(body.crc64)).as_deref());
    let answer = copy.engine.failpoints.around(Step::UploadPart, Box::pin(copy.destination.wire.send(call))).await?;
    let etag = etag_of(answer.into_head().header("etag"), "UploadPart")?;
    abreast.took(part, began.elapsed());
    Ok(Some(UploadedPart { number: part.number, etag, crc64: body.crc64 }))
}

async fn complete(
    copy: &Copy<'_>,
    upload: &Upload,
    parts: &[Part],
    done: &Parts,
    dress: &Dress,
) -> Result<Written, Failure> {
    let crc64 = joined(parts, done);
    copy.prove(crc64, &dress.attributes)?;
    copy.foresight.check_parts(done.values().map(|part| &part.etag))?;
    let abilities = &copy.destination.capabilities;
    let (if_match, if_none_match) = copy.conditions(abilities.has(Ability::ConditionalComplete));
    let checked = abilities.has(Ability::Crc64Nvme);
    let part = |part: &UploadedPart| {
        CompletedPart::builder()
            .part_number(i32::try_from(part.number).unwrap_or(i32::MAX))
            .e_tag(part.etag.quoted())
            .set_checksum_crc64_nvme(checked.then(|| crc64_header(part.crc64)))
            .build()
    };
    let parts = CompletedMultipartUpload::builder().set_parts(Some(done.values().map(part).collect())).build();
    copy.engine.limits.request(copy.payer(true)).await;
    // What is current must still be what the upload was begun over (protocol rule 9).
    let looked = copy.basis.verify(copy.destination, copy.task).await?;
    remove::confirm(copy.source, copy.task, &copy.version.version.id, looked).await?;
    let request = copy
        .destination
        .s3_once
        .complete_multipart_upload()
        .bucket(copy.task.lane.destination.bucket.as_str())
        .key(copy.task.lane.key.as_str())
        .upload_id(&upload.upload_id)
        .multipart_upload(parts)
        .set_checksum_crc64_nvme(checked.then(|| crc64_header(crc64)))
        .set_checksum_type(checked.then_some(ChecksumType::FullObject))
        .set_if_match(if_match)
        .set_if_none_match(if_none_match)
        .customize()
        .config_override(deadline(complete_timeout(copy.version.size_bytes)));
    let sent = Instant::now();
    pending::expect(copy, upload)?;
    let answer = copy.engine.failpoints.around(Step::CompleteUpload, Box::pin(request.send())).await;
    let answer = answer.map_err(|error| failure(Side::Write, "CompleteMultipartUpload", error));
    // A refused one does not land; but one that was sent before and not answered may.
    if answer.as_ref().is_err_and(|failure| failure.kind != Kind::Unanswered) {
        copy.engine.ledger.put_upload(&copy.task.lane, upload)?;
    }
    let answer = answer?;
    let etag = etag_of(answer.e_tag(), "CompleteMultipartUpload")?;
    Ok(Written { destination_version: answer.version_id, etag, sent })
}

fn joined(parts: &[Part], done: &Parts) -> u64 {
    let lengths = parts.iter().map(|part| part.len);
    done.values().zip(lengths).fold(crc64(&[]), |whole, (part, len)| crc64_joined(whole, part.crc64, len))
}

/// Lists the parts; an empty object that must be uploaded in parts has one, which is empty.
fn parts_of(layout: &Layout) -> Vec<Part> {
    let parts: Vec<Part> = layout.parts().collect();
    if parts.is_empty() { vec![Part { number: 1, offset: 0, len: 0 }] } else { parts }
}
