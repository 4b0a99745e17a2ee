//! A large object: parts in flight in parallel, each in the ledger as soon as it is at the
//! destination, so that a restart goes on where it stopped.

use aws_sdk_s3::types::{ChecksumType, CompletedMultipartUpload, CompletedPart};
use replicator_core::failure::{Dependency, Failure, FailureKind, Operation, Reason, error_chain};
use replicator_core::object::ETag;
use replicator_core::parts::{Layout, Part};
use replicator_core::plan::SourceVersion;
use replicator_core::retry::complete_timeout;
use tracing::warn;

use crate::clock::BootInstant;
use crate::failpoint::Step;
use crate::ledger::Parts;
use crate::ledger::records::{Upload, UploadedPart};
use crate::reconcile::Context;
use crate::reconcile::execute::copy::{CopyJob, Written};
use crate::reconcile::execute::uploading::Uploading;
use crate::reconcile::execute::uploads::{self, abandon_upload, abort_unnamed};
use crate::reconcile::object::attributes::ReplicaHeaders;
use crate::reconcile::object::proof::{self, Choice, Proof};
use crate::reconcile::object::version_reader::lay_out;
use crate::s3::accounts::attempt_deadline;
use crate::s3::accounts::error::{Side, from_sdk_error};
use crate::s3::checksum::{Algorithm, Measure, Sum, crc64_header, crc64_joined, crc64_of};
use crate::s3::client::S3Request;
use crate::s3::xml::{self, NotXml};
use crate::sqs::lease;

/// Copies a version in parts.
pub(in crate::reconcile) async fn copy(
    copy: &CopyJob<'_>,
    part_bytes: u64,
) -> Result<Written, Failure> {
    let headers = copy.read_headers_again().await?;
    let layout = layout(copy, part_bytes)?;
    let parts = parts_of(&layout);
    let stated = &headers.attributes.stated;
    let choice = Proof::choose(copy, stated, layout.part_bytes()).await?;
    let (upload, mut done) = begin(copy, &headers, &layout).await?;
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
    let finished = match uploading.upload_all(missing, &mut done).await {
        Ok(()) => complete(copy, &upload, &parts, &done, &choice).await,
        Err(failure) => Err(failure),
    };
    match finished {
        Ok(written) => Ok(Written {
            tags: headers.tags,
            ..written
        }),
        Err(failure) if is_final(&failure) => Err(abandon(copy, failure).await),
        Err(failure) => Err(failure),
    }
}

/// Aborts the upload after a failure; returns that, or that the upload may appear yet.
async fn abandon(copy: &CopyJob<'_>, failure: Failure) -> Failure {
    match abandon_upload(copy.cx, copy.snapshot).await {
        Ok(()) => failure,
        Err(unknown) if unknown.kind == FailureKind::OutcomeUnknown => unknown,
        Err(left) => {
            // The ledger still has the upload: the key's next task ends it.
            warn!(
                key = copy.cx.task.target.key.as_str(),
                error = error_chain(&left),
                "upload not aborted"
            );
            failure
        }
    }
}

/// An upload is kept for another try unless it can never be completed.
fn is_final(failure: &Failure) -> bool {
    matches!(
        failure.kind,
        FailureKind::PreconditionFailed
            | FailureKind::ConcurrentWrite
            | FailureKind::SourceVersionMissing
            | FailureKind::NotFound
            | FailureKind::Ineligible(_)
            | FailureKind::NotImplemented
            | FailureKind::FeatureDisabled
            | FailureKind::NeedsOperator(Reason::ChecksumMismatch | Reason::RequestRefused)
    )
}

/// Returns the part size of an upload that can be resumed: the preferred size may have changed
/// since, with a limit.
pub(in crate::reconcile) fn begun(
    cx: Context<'_>,
    version: &SourceVersion,
) -> Result<Option<u64>, Failure> {
    let known = cx.engine.ledger.upload_of(&cx.task.target)?;
    let fits = |upload: &Upload| upload.part_bytes <= cx.engine.budget.part_bytes_max();
    Ok(known
        .map(|(upload, _)| upload)
        .filter(|upload| upload.source == version.version && fits(upload))
        .map(|upload| upload.part_bytes))
}

fn layout(copy: &CopyJob<'_>, part_bytes: u64) -> Result<Layout, Failure> {
    let layout = lay_out(copy.version.size_bytes, part_bytes)?;
    let (part, max) = (layout.part_bytes(), copy.cx.engine.budget.part_bytes_max());
    if part.min(copy.version.size_bytes) > max {
        let detail =
            format!("a part has {part} bytes, and large objects have {max} of `memory`: raise it");
        let kind = FailureKind::NeedsOperator(Reason::MemoryBudgetTooSmall);
        return Err(Failure::with_source(kind, Operation::LayOutParts, detail));
    }
    Ok(layout)
}

/// Goes on with the upload that the ledger has, if it is for this version and nothing was written
/// since it began; otherwise begins a new one.
async fn begin(
    copy: &CopyJob<'_>,
    headers: &ReplicaHeaders,
    layout: &Layout,
) -> Result<(Upload, Parts), Failure> {
    let (ledger, task) = (&copy.cx.engine.ledger, copy.cx.task);
    let over = Some(copy.snapshot.entry.clone());
    // An upload that was begun with checksums goes on with them, and one without goes on without.
    let headers_digest = headers.digest() ^ u64::from(!copy.extras.checked);
    let kms_key = headers.key.as_ref().and_then(|key| key.arn.clone());
    if let Some((upload, done)) = ledger.upload_of(&task.target)? {
        let is_same = upload.source == copy.version.version
            && upload.begun_over == over
            && upload.part_bytes == layout.part_bytes()
            && upload.headers_digest == headers_digest
            // An alias may name another key by now, but not because KMS is silent.
            && (kms_key.is_none() || upload.kms_key.is_none() || upload.kms_key == kms_key);
        if is_same {
            lease::confirm_held().await?;
            return Ok((upload, done));
        }
        abandon_upload(copy.cx, copy.snapshot).await?;
    }
    let upload = Upload {
        upload_id: create(copy, headers).await?,
        source: copy.version.version.clone(),
        part_bytes: layout.part_bytes(),
        headers_digest,
        kms_key,
        begun_over: over,
        may_complete_until: None,
        by_our_clock: false,
        size_bytes: copy.version.size_bytes,
    };
    ledger.put_upload(&task.target, &upload)?;
    Ok((upload, Parts::new()))
}

async fn create(copy: &CopyJob<'_>, headers: &ReplicaHeaders) -> Result<String, Failure> {
    let (cx, target, checked) = (copy.cx, &copy.cx.task.target, copy.extras.checked);
    // The next worker ends an upload that was cut off, if its message is a redelivery.
    lease::confirm_held().await?;
    cx.engine.limits.request(copy.payer_for(true)).await;
    let call = S3Request::create_multipart_upload(&target.destination.bucket, &target.key)
        .header("x-amz-checksum-algorithm", checked.then_some("CRC64NVME"))
        .header("x-amz-checksum-type", checked.then_some("FULL_OBJECT"));
    let request = Box::pin(cx.destination.wire.text(headers.on(call)));
    let since = copy.snapshot.now_or_before();
    let answer = cx
        .engine
        .failpoints
        .around(Step::CreateUpload, request)
        .await;
    let cause = match answer
        .map(|(_, text)| upload_id(&text))
        .map_err(Failure::from)
    {
        Ok(Some(id)) => return Ok(id),
        Ok(None) => "the answer has no upload id".into(),
        Err(failure) if failure.is_unreadable => error_chain(&failure),
        Err(failure) => return Err(failure),
    };
    if let Err(left) = abort_unnamed(copy, since).await {
        warn!(key = %target.key, error = %error_chain(&left), "an upload without a known id may be left open");
    }
    let unreadable = FailureKind::NeedsOperator(Reason::AnswerUnreadable);
    Err(
        Failure::with_source(unreadable, Operation::CreateMultipartUpload, cause)
            .of(Dependency::Destination),
    )
}

/// Reads the id of an upload that was begun.
pub(in crate::reconcile) fn upload_id(text: &str) -> Option<String> {
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
    let (cx, target, checked) = (copy.cx, &copy.cx.task.target, copy.extras.checked);
    let (if_match, if_none_match) = copy.conditions();
    cx.engine.limits.request(copy.payer_for(true)).await;
    copy.snapshot.confirm(cx, &copy.version.version.id).await?;
    let request = cx
        .destination
        .s3_once
        .complete_multipart_upload()
        .bucket(target.destination.bucket.as_str())
        .key(target.key.as_str())
        .upload_id(&upload.upload_id)
        .multipart_upload(completed_parts(done, checked))
        .set_checksum_crc64_nvme(checked.then(|| crc64_header(crc64)))
        .set_checksum_type(checked.then_some(ChecksumType::FullObject))
        .set_if_match(if_match)
        .set_if_none_match(if_none_match)
        .customize()
        .config_override(attempt_deadline(complete_timeout(copy.version.size_bytes)));
    let (during, sent) = (Operation::CompleteMultipartUpload, BootInstant::now());
    uploads::expect(copy, upload)?;
    let answer = cx
        .engine
        .failpoints
        .around(Step::CompleteUpload, Box::pin(request.send()))
        .await;
    let answer = match answer.map_err(|error| from_sdk_error(Side::Write, during, error)) {
        Ok(answer) => answer,
        Err(failure) => {
            // A refused one does not land; but one that was sent before and not answered may.
            if failure.kind != FailureKind::OutcomeUnknown {
                cx.engine.ledger.put_upload(target, upload)?;
            }
            return Err(failure);
        }
    };
    let answered = proof::compare_complete(&answer, crc64, done);
    let etag = answer.e_tag().and_then(|etag| ETag::try_from(etag).ok());
    let version = answer.version_id().map(str::to_owned);
    let written = Box::pin(Written::complete(copy, during, (etag, version), sent)).await?;
    cx.engine.ledger.end_upload(target)?;
    let known = (crc64, copy.version.size_bytes, unproved);
    Box::pin(proof::check_written(copy, written, answered, known)).await
}

fn completed_parts(done: &Parts, checked: bool) -> CompletedMultipartUpload {
    let part = |part: &UploadedPart| {
        CompletedPart::builder()
            .part_number(i32::try_from(part.number).unwrap_or(i32::MAX))
            .e_tag(part.etag.to_quoted())
            .set_checksum_crc64_nvme(checked.then(|| crc64_header(part.crc64)))
            .build()
    };
    CompletedMultipartUpload::builder()
        .set_parts(Some(done.values().map(part).collect()))
        .build()
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
