//! What a predecessor at the key may have left on its way: requests have landed by the time that
//! its successor begins, but for CompleteMultipartUpload, which S3 may take minutes for. An upload
//! that is no longer listed has been completed or aborted, and one that was aborted cannot be
//! completed any more.
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html>

use aws_sdk_s3::types::MultipartUpload;
use replicator_core::deadline::{COMPLETE_TIMEOUT_MAX, LANDING};
use replicator_core::failure::{Failure, FailureKind, error_chain};
use replicator_core::operation::Operation;
use tracing::warn;

use super::unconfirmed::LOOK_EVERY;
use super::{AttemptState, multipart};
use crate::accounts::AccountClients;
use crate::accounts::error::{Side, from_sdk_error};
use crate::engine::Engine;
use crate::ledger::records::TargetKey;
use crate::task::Task;

/// Leaves no upload at the key that can be completed, but for the one that the ledger goes on with.
/// Where it cannot be told which daemon began an upload, or what there is, waits as long as S3 may
/// take to complete one.
pub(super) async fn settle_uploads(
    engine: &Engine,
    task: &Task,
    memory: &mut AttemptState,
) -> Result<(), Failure> {
    let age = memory.age();
    let settled = match end_uploads(engine, task).await {
        Ok(settled) => settled,
        // These pass, and the next attempt lists again.
        Err(failure)
            if matches!(
                failure.kind,
                FailureKind::Transient | FailureKind::Throttled | FailureKind::Unauthenticated
            ) =>
        {
            return Err(failure);
        }
        Err(failure) => {
            tell(engine, task, &failure);
            false
        }
    };
    let left = (COMPLETE_TIMEOUT_MAX + LANDING).saturating_sub(age);
    if settled || left.is_zero() {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::MustWait(left.min(LOOK_EVERY)),
        Operation::CompleteMultipartUpload,
    ))
}

/// Each key of the destination says the same.
fn tell(engine: &Engine, task: &Task, failure: &Failure) {
    let place = &task.target.destination;
    if !engine.uploads_untold.seen_recently(place) {
        engine.uploads_untold.mark_seen(place);
        let (bucket, error) = (place.bucket.as_str(), error_chain(failure));
        warn!(
            bucket,
            error,
            "cannot tell what uploads there are (s3:ListBucketMultipartUploads), keys wait ten minutes"
        );
    }
}

/// Says whether no upload is left that another worker may have sent the completion of.
async fn end_uploads(engine: &Engine, task: &Task) -> Result<bool, Failure> {
    let (target, access) = (&task.target, engine.access_to(&task.target.destination)?);
    let known = engine
        .ledger
        .upload_of(target)?
        .map(|(upload, _)| upload.upload_id);
    let unknown = |upload: &MultipartUpload| upload.upload_id() != known.as_deref();
    let (listed, mut is_settled) = list(access, target).await?;
    if !listed.iter().any(unknown) {
        return Ok(is_settled);
    }
    learn_principal(engine, access, target).await?;
    let own = access.principal.get();
    for upload in listed.iter().filter(|upload| unknown(upload)) {
        match upload
            .upload_id()
            .filter(|_| own.is_some() && own == principal_of(upload).as_ref())
        {
            Some(id) => multipart::abort_upload(engine, target, id).await?,
            // It may be a worker's that had another role.
            None => is_settled = false,
        }
    }
    Ok(is_settled)
}

/// Finds out by an upload under which principal this daemon begins uploads, once for each account.
/// If that one cannot be aborted after all, the next look at the key aborts it as any other.
async fn learn_principal(
    engine: &Engine,
    access: &AccountClients,
    target: &TargetKey,
) -> Result<(), Failure> {
    if access.principal.get().is_some() {
        return Ok(());
    }
    let own = begin(access, target).await?;
    let listed = list(access, target).await;
    let is_own = |upload: &&MultipartUpload| upload.upload_id() == Some(&own);
    let begun = listed
        .as_ref()
        .ok()
        .and_then(|(listed, _)| listed.iter().find(is_own));
    if let Some(principal) = begun.and_then(principal_of) {
        let _known_already = access.principal.set(principal);
    }
    multipart::abort_upload(engine, target, &own).await?;
    listed.map(drop)
}

/// Lists the uploads of a key, and says whether those are all.
async fn list(
    access: &AccountClients,
    target: &TargetKey,
) -> Result<(Vec<MultipartUpload>, bool), Failure> {
    let request = access.s3.list_multipart_uploads();
    let request = request
        .bucket(target.destination.bucket.as_str())
        .prefix(target.key.as_str());
    let listed = request.send().await.map_err(|error| {
        from_sdk_error(Side::Destination, Operation::ListMultipartUploads, error)
    })?;
    let is_own = |upload: &MultipartUpload| upload.key() == Some(target.key.as_str());
    // AWS lists by key, and the key itself comes before all that begin with it: so it is on the
    // first page, unless it fills that alone.
    let goes_on = listed.uploads().last().is_some_and(is_own) || !access.is_aws;
    let is_whole = !(listed.is_truncated.unwrap_or(false) && goes_on);
    Ok((
        listed
            .uploads
            .unwrap_or_default()
            .into_iter()
            .filter(is_own)
            .collect(),
        is_whole,
    ))
}

/// Begins an upload, of which a list says what principal began it.
async fn begin(access: &AccountClients, target: &TargetKey) -> Result<String, Failure> {
    let request = access.s3_once.create_multipart_upload();
    let request = request
        .bucket(target.destination.bucket.as_str())
        .key(target.key.as_str());
    let begun = request
        .send()
        .await
        .map_err(|error| from_sdk_error(Side::Prepare, Operation::CreateMultipartUpload, error))?;
    let unnamed = || {
        Failure::with_source(
            FailureKind::Transient,
            Operation::CreateMultipartUpload,
            "the answer has no upload id",
        )
    };
    begun.upload_id.ok_or_else(unnamed)
}

/// Names the principal that began an upload: of a role its sessions are one.
fn principal_of(upload: &MultipartUpload) -> Option<String> {
    let id = upload.initiator()?.id()?;
    let is_session = id.contains(":assumed-role/");
    Some(
        if is_session {
            id.rsplit_once('/').map_or(id, |(role, _)| role)
        } else {
            id
        }
        .to_owned(),
    )
}
