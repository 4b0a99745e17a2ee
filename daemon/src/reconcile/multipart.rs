//! A large object: parts in flight in parallel, each in the ledger as soon as it is at the
//! destination, so that a restart goes on where it stopped.

use aws_sdk_s3::types::{ChecksumType, CompletedMultipartUpload, CompletedPart};
use replicator_core::deadline::complete_timeout;
use replicator_core::failure::{Dependency, Failure, FailureKind, Reason, error_chain};
use replicator_core::object::Timestamp;
use replicator_core::operation::Operation;
use replicator_core::parts::{self, Layout, Part};
use tracing::warn;

use super::copy::{CopyJob, ReplicaHeaders, Written};
use super::delete;
use super::proof::{self, Choice, Proof, Way};
use super::receipt::{self, Receipt};
use super::snapshot::Snapshot;
use super::unconfirmed::{self, UnconfirmedUpload};
use super::uploading::Uploading;
use crate::accounts::attempt_deadline;
use crate::accounts::error::{Side, from_sdk_error};
use crate::checksum::{Algorithm, Measure, Sum, crc64_header, crc64_joined, crc64_of};
use crate::clock::{self, BootInstant};
use crate::engine::Engine;
use crate::failpoint::Step;
use crate::lease;
use crate::ledger::Parts;
use crate::ledger::records::{TargetKey, Upload, UploadOwner, UploadedPart};
use crate::s3_http::S3Request;
use crate::task::Task;
use crate::xml::{self, NotXml};

/// Copies a version in parts.
pub(crate) async fn copy(copy: &CopyJob<'_>, part_bytes: u64) -> Result<Written, Failure> {
    let dress = copy.read_headers_again().await?;
    let layout = layout(copy, part_bytes)?;
    let parts = parts_of(&layout);
    let way = Way {
        piece_bytes: layout.part_bytes(),
        is_demanded: proof::is_demanded(copy),
    };
    let choice = Proof::choose(&copy.original(), &dress.attributes.stated, way).await?;
    let (upload, mut done) = begin(copy, &dress, &layout).await?;
    let missing: Vec<Part> = parts
        .iter()
        .filter(|part| !done.contains_key(&part.number))
        .copied()
        .collect();
    let uploading = Uploading {
        copy,
        upload: &upload,
        measure: choice.as_ref().ok().and_then(Proof::passing),
    };
    let copied = uploading.upload_all(missing, &mut done).await;
    let finished = match copied {
        Ok(()) => complete(copy, &upload, &parts, &done, &choice).await,
        Err(failure) => Err(failure),
    };
    match finished {
        Ok(written) => Ok(Written {
            tags: dress.tags,
            ..written
        }),
        Err(failure) if is_final(&failure) => {
            match abandon_upload(copy.engine, copy.task, copy.basis).await {
                Ok(()) => Err(failure),
                Err(
                    wait @ Failure {
                        kind: FailureKind::MustWait(_),
                        ..
                    },
                ) => Err(wait),
                Err(left) => {
                    // The ledger still has the upload: the key's next task ends it.
                    warn!(
                        key = copy.task.target.key.as_str(),
                        error = error_chain(&left),
                        "upload not aborted"
                    );
                    Err(failure)
                }
            }
        }
        Err(failure) => Err(failure),
    }
}

/// Aborts the upload that the ledger has for this key: only ever one of our own, and none that may
/// appear yet.
pub(super) async fn abandon_upload(
    engine: &Engine,
    task: &Task,
    basis: &Snapshot,
) -> Result<(), Failure> {
    let Some((upload, _)) = engine.ledger.upload_of(&task.target)? else {
        return Ok(());
    };
    let access = engine.access_to(&task.target.destination)?;
    if let Some(pending) = UnconfirmedUpload::of(&upload, access, basis) {
        pending.allows(None)?;
    }
    abort_upload(engine, &task.target, &upload.upload_id).await?;
    engine.ledger.end_upload(&task.target)
}

/// Ends the upload that the ledger has for an idle key, whose work may be another worker's by now;
/// not one that may appear yet, whose record the key's next task needs.
pub(crate) async fn end_upload(engine: &Engine, task: &Task) -> Result<(), Failure> {
    let Some((upload, _)) = engine.ledger.upload_of(&task.target)? else {
        return Ok(());
    };
    if upload
        .may_complete_until
        .is_some_and(|until| until > clock::now())
    {
        return Ok(());
    }
    abort_upload(engine, &task.target, &upload.upload_id).await?;
    // A message may have come meanwhile, and its task have begun another one.
    let known = engine.ledger.upload_of(&task.target)?;
    let is_same = known.is_some_and(|(known, _)| known.upload_id == upload.upload_id);
    if is_same {
        engine.ledger.end_upload(&task.target)
    } else {
        Ok(())
    }
}

pub(super) async fn abort_upload(
    engine: &Engine,
    target: &TargetKey,
    upload_id: &str,
) -> Result<(), Failure> {
    let access = engine.access_to(&target.destination)?;
    let request = access
        .s3
        .abort_multipart_upload()
        .bucket(target.destination.bucket.as_str())
        .key(target.key.as_str())
        .upload_id(upload_id);
    let aborted = engine
        .failpoints
        .around(Step::AbortUpload, Box::pin(request.send()))
        .await;
    match aborted
        .map_err(|error| from_sdk_error(Side::Prepare, Operation::AbortMultipartUpload, error))
    {
        // It was completed or aborted before.
        Ok(_)
        | Err(Failure {
            kind: FailureKind::NotFound,
            ..
        }) => Ok(()),
        Err(failure) => Err(failure),
    }
}

/// An upload is kept for another try unless it can never be completed.
fn is_final(failure: &Failure) -> bool {
    match failure.kind {
        FailureKind::PreconditionFailed
        | FailureKind::ConcurrentWrite
        | FailureKind::SourceVersionMissing
        | FailureKind::NotFound
        | FailureKind::Ineligible(_) => true,
        FailureKind::NotImplemented | FailureKind::FeatureDisabled => true,
        FailureKind::NeedsOperator(reason) => {
            matches!(reason, Reason::ChecksumMismatch | Reason::RequestRefused)
        }
        FailureKind::OutcomeUnknown
        | FailureKind::Transient
        | FailureKind::Throttled
        | FailureKind::MustWait(_) => false,
        FailureKind::Unauthenticated | FailureKind::LeaseUnsure => false,
    }
}

/// Returns the size of the parts of an upload that can be gone on with: what is preferred may have
/// changed since, with a limit.
pub(super) fn begun(copy: &CopyJob<'_>) -> Result<Option<u64>, Failure> {
    let known = copy.engine.ledger.upload_of(&copy.task.target)?;
    let fits = |upload: &Upload| upload.part_bytes <= copy.engine.budget.part_bytes_max();
    Ok(known
        .map(|(upload, _)| upload)
        .filter(|upload| upload.source == copy.version.version && fits(upload))
        .map(|upload| upload.part_bytes))
}

fn layout(copy: &CopyJob<'_>, part_bytes: u64) -> Result<Layout, Failure> {
    let unsupported = |error| {
        Failure::with_source(
            FailureKind::Ineligible(Reason::SrcObjectNotEligible),
            Operation::LayOutParts,
            error,
        )
    };
    let layout = parts::plan_layout(copy.version.size_bytes, part_bytes).map_err(unsupported)?;
    if layout.part_bytes().min(copy.version.size_bytes) > copy.engine.budget.part_bytes_max() {
        let (part, most) = (layout.part_bytes(), copy.engine.budget.part_bytes_max());
        let detail =
            format!("a part has {part} bytes, and large objects have {most} of `memory`: raise it");
        return Err(Failure::with_source(
            FailureKind::NeedsOperator(Reason::MemoryBudgetTooSmall),
            Operation::LayOutParts,
            detail,
        ));
    }
    Ok(layout)
}

/// Goes on with the upload that the ledger has, if it is for this version and nothing was written
/// since it began; otherwise begins a new one.
async fn begin(
    copy: &CopyJob<'_>,
    dress: &ReplicaHeaders,
    layout: &Layout,
) -> Result<(Upload, Parts), Failure> {
    let over = Some(copy.basis.entry.clone());
    // An upload that was begun with checksums goes on with them, and one without goes on without.
    let dress_digest = dress.digest() ^ u64::from(!copy.extras.checked);
    if let Some((upload, done)) = copy.engine.ledger.upload_of(&copy.task.target)? {
        let same = upload.source == copy.version.version && upload.begun_over == over;
        if same && upload.part_bytes == layout.part_bytes() && upload.headers_digest == dress_digest
        {
            return Ok((upload, done));
        }
        abandon_upload(copy.engine, copy.task, copy.basis).await?;
    }
    let upload = Upload {
        upload_id: create(copy, dress).await?,
        source: copy.version.version.clone(),
        part_bytes: layout.part_bytes(),
        headers_digest: dress_digest,
        begun_over: over,
        may_complete_until: None,
        by_our_clock: false,
        owner: Some(whose(copy.task, copy.version.size_bytes)),
    };
    copy.engine.ledger.put_upload(&copy.task.target, &upload)?;
    Ok((upload, Parts::new()))
}

fn whose(task: &Task, size_bytes: u64) -> UploadOwner {
    let (target, source, source_key) = (
        task.target.clone(),
        task.source.clone(),
        task.source_key.clone(),
    );
    UploadOwner {
        target,
        source,
        source_key,
        size_bytes,
    }
}

async fn create(copy: &CopyJob<'_>, dress: &ReplicaHeaders) -> Result<String, Failure> {
    let checked = copy.extras.checked;
    copy.engine.limits.request(copy.payer_for(true)).await;
    let target = &copy.task.target;
    let call = S3Request::create_multipart_upload(&target.destination.bucket, &target.key)
        .header("x-amz-checksum-algorithm", checked.then_some("CRC64NVME"))
        .header("x-amz-checksum-type", checked.then_some("FULL_OBJECT"));
    let request = Box::pin(copy.destination.wire.text(dress.on(call)));
    let since = copy.basis.now_or_before();
    let answer = copy
        .engine
        .failpoints
        .around(Step::CreateUpload, request)
        .await;
    let unnamed = match answer
        .map(|(_, text)| upload_id(&text))
        .map_err(Failure::from)
    {
        Ok(Some(id)) => return Ok(id),
        Ok(None) => "the answer has no upload id".into(),
        Err(failure) if failure.is_unreadable => error_chain(&failure),
        Err(failure) => return Err(failure),
    };
    if let Err(left) = abort_unnamed(copy, since).await {
        warn!(key = %copy.task.target.key, error = %error_chain(&left), "an upload without a known id may be left open");
    }
    let unreadable = FailureKind::NeedsOperator(Reason::AnswerUnreadable);
    Err(
        Failure::with_source(unreadable, Operation::CreateMultipartUpload, unnamed)
            .of(Dependency::Destination),
    )
}

/// Aborts the uploads of a key that were begun since a moment of the destination's clock: its
/// answer did not name the one that it may have begun, and each attempt would leave one more.
/// Another daemon at the same key begins its own anew.
async fn abort_unnamed(copy: &CopyJob<'_>, since: Option<Timestamp>) -> Result<(), Failure> {
    let (target, during) = (&copy.task.target, Operation::ListMultipartUploads);
    let since = since.ok_or_else(|| {
        Failure::with_source(
            FailureKind::Transient,
            during,
            "the destination does not say when it is",
        )
    })?;
    let request = copy.destination.s3.list_multipart_uploads();
    let request = request
        .bucket(target.destination.bucket.as_str())
        .prefix(target.key.as_str());
    let listed = request
        .send()
        .await
        .map_err(|error| from_sdk_error(Side::Destination, during, error))?;
    for upload in listed.uploads() {
        let is_new = upload
            .initiated()
            .is_some_and(|at| at.secs() >= since.unix_timestamp());
        let is_ours = is_new && upload.key() == Some(target.key.as_str());
        if let Some(id) = upload.upload_id().filter(|_| is_ours) {
            abort_upload(copy.engine, target, id).await?;
        }
    }
    Ok(())
}

fn upload_id(text: &str) -> Option<String> {
    let mut id = None;
    xml::visit_elements(text, |path, text| {
        if path == ["InitiateMultipartUploadResult", "UploadId"] {
            id = Some(text.into_owned()).filter(|id| !id.is_empty());
        }
        Ok::<_, NotXml>(())
    })
    .ok()?;
    id
}

async fn complete(
    copy: &CopyJob<'_>,
    upload: &Upload,
    parts: &[Part],
    done: &Parts,
    choice: &Choice,
) -> Result<Written, Failure> {
    let crc64 = joined(parts, done);
    let unproved = match choice {
        Ok(proof) => {
            proof
                .conclude(copy, (&pieces(parts, done, proof.measure()), crc64))
                .await?
        }
        Err(cause) => Some(*cause),
    };
    let (if_match, if_none_match) = copy.conditions();
    let checked = copy.extras.checked;
    let part = |part: &UploadedPart| {
        CompletedPart::builder()
            .part_number(i32::try_from(part.number).unwrap_or(i32::MAX))
            .e_tag(part.etag.to_quoted())
            .set_checksum_crc64_nvme(checked.then(|| crc64_header(part.crc64)))
            .build()
    };
    let parts = CompletedMultipartUpload::builder()
        .set_parts(Some(done.values().map(part).collect()))
        .build();
    copy.engine.limits.request(copy.payer_for(true)).await;
    // What that takes counts against the age of the reading.
    lease::confirm_held().await?;
    if let Some(looked) = copy.basis.renew_if_old(copy.destination, copy.task).await? {
        delete::confirm_source(copy.source, copy.task, &copy.version.version.id, looked).await?;
    }
    let request = copy
        .destination
        .s3_once
        .complete_multipart_upload()
        .bucket(copy.task.target.destination.bucket.as_str())
        .key(copy.task.target.key.as_str())
        .upload_id(&upload.upload_id)
        .multipart_upload(parts)
        .set_checksum_crc64_nvme(checked.then(|| crc64_header(crc64)))
        .set_checksum_type(checked.then_some(ChecksumType::FullObject))
        .set_if_match(if_match)
        .set_if_none_match(if_none_match)
        .customize()
        .config_override(attempt_deadline(complete_timeout(copy.version.size_bytes)));
    lease::confirm_held().await?;
    let sent = BootInstant::now();
    unconfirmed::expect(copy, upload)?;
    let answer = copy
        .engine
        .failpoints
        .around(Step::CompleteUpload, Box::pin(request.send()))
        .await;
    let answer = answer
        .map_err(|error| from_sdk_error(Side::Write, Operation::CompleteMultipartUpload, error));
    // A refused one does not land; but one that was sent before and not answered may.
    if answer
        .as_ref()
        .is_err_and(|failure| failure.kind != FailureKind::OutcomeUnknown)
    {
        copy.engine.ledger.put_upload(&copy.task.target, upload)?;
    }
    let answer = answer?;
    let answered = receipt::compare_complete(&answer, crc64, done);
    let written = Box::pin(Receipt::of_complete(&answer, sent).completed(copy)).await?;
    copy.engine.ledger.end_upload(&copy.task.target)?;
    Box::pin(receipt::settle(copy, written, answered, (crc64, unproved))).await
}

/// Lists the checksums by which the source's own is made; what an older version of the program
/// uploaded has none.
fn pieces(parts: &[Part], done: &Parts, measure: Measure) -> Vec<Sum> {
    let uploaded = parts.iter().zip(done.values());
    match measure == Measure::whole_object(Algorithm::Crc64Nvme) {
        true => uploaded
            .map(|(part, uploaded)| Sum::of_crc64(uploaded.crc64, part.len))
            .collect(),
        false => uploaded
            .flat_map(|(_, uploaded)| uploaded.sums.clone())
            .collect(),
    }
}

fn joined(parts: &[Part], done: &Parts) -> u64 {
    let lengths = parts.iter().map(|part| part.len);
    done.values()
        .zip(lengths)
        .fold(crc64_of(&[]), |whole, (part, len)| {
            crc64_joined(whole, part.crc64, len)
        })
}

/// Lists the parts; an empty object that must be uploaded in parts has one, which is empty.
fn parts_of(layout: &Layout) -> Vec<Part> {
    let parts: Vec<Part> = layout.parts().collect();
    if parts.is_empty() {
        vec![Part {
            number: 1,
            offset: 0,
            len: 0,
        }]
    } else {
        parts
    }
}
