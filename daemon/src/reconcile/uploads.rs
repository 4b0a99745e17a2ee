//! Uploads that may appear at a key yet. Requests of a predecessor have landed by the time that its
//! successor begins, but for CompleteMultipartUpload, which S3 may take minutes for: until then the
//! object may appear whatever was written meanwhile (protocol rule 5). The ledger holds until when
//! one of this daemon may, so a restart forgets nothing. An upload that is no longer listed has been
//! completed or aborted, and one that was aborted cannot be completed any more.
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html>

use std::time::Duration;

use aws_sdk_s3::types::MultipartUpload;
use replicator_core::deadline::{COMPLETE_TIMEOUT_MAX, LANDING, complete_timeout};
use replicator_core::failure::{Failure, FailureKind, error_chain};
use replicator_core::operation::Operation;
use replicator_core::plan::VersionRef;
use tracing::warn;

use super::copy::CopyJob;
use super::destination::DestinationView;
use super::destination::Snapshot;
use super::{AttemptState, multipart};
use crate::accounts::AccountClients;
use crate::accounts::capabilities::Feature;
use crate::accounts::error::{Side, from_sdk_error};
use crate::clock;
use crate::engine::Engine;
use crate::ledger::records::{CurrentEntry, Replica, TargetKey, Upload};
use crate::task::Task;

// Looked at again this often: what is waited for may have appeared.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(60);

/// An upload that may appear yet.
#[derive(Debug)]
pub(super) struct UnconfirmedUpload {
    version: VersionRef,
    left: Duration,
}

impl UnconfirmedUpload {
    /// Finds the one of a key, and removes the record of one that has surely appeared.
    pub(super) async fn at(
        engine: &Engine,
        task: &Task,
        shown: &DestinationView,
    ) -> Result<Option<Self>, Failure> {
        let Some((upload, _)) = engine.ledger.upload_of(&task.target)? else {
            return Ok(None);
        };
        let access = engine.access_to(&task.target.destination)?;
        if is_seen_since(&upload, shown) && is_used_up(access, task, &upload).await {
            engine.ledger.end_upload(&task.target)?;
            return Ok(None);
        }
        Ok(Self::of(&upload, access, &shown.snapshot))
    }

    /// Tells by what is current: over another object its condition does not hold, where it has one.
    pub(super) fn of(upload: &Upload, access: &AccountClients, basis: &Snapshot) -> Option<Self> {
        let until = upload.may_complete_until?;
        let may_land = !access.capabilities.always_had(Feature::ConditionalComplete)
            || !matches!(basis.entry, CurrentEntry::Object { .. })
            || upload
                .begun_over
                .as_ref()
                .is_none_or(|over| *over == basis.entry);
        let now = basis
            .now_or_before()
            .filter(|_| !upload.by_our_clock)
            .unwrap_or_else(clock::now);
        let left = Duration::try_from(until - now).unwrap_or_default();
        (may_land && !left.is_zero()).then(|| Self {
            version: upload.source.clone(),
            left,
        })
    }

    /// Lets nothing be done but complete it again, which makes it appear once however often that is
    /// done.
    pub(super) fn allows(&self, version: Option<&VersionRef>) -> Result<(), Failure> {
        match version == Some(&self.version) {
            true => Ok(()),
            false => Err(Failure::new(
                FailureKind::MustWait(self.left.min(LOOK_EVERY)),
                Operation::CompleteMultipartUpload,
            )),
        }
    }
}

/// Says whether a replica of the upload's version is known that was not when the upload was
/// completed.
fn is_seen_since(upload: &Upload, shown: &DestinationView) -> bool {
    let size_bytes = upload.owner.as_ref().map(|whose| whose.size_bytes);
    let Some((until, size_bytes)) = upload.may_complete_until.zip(size_bytes) else {
        return false;
    };
    let is_new = |replica: &Replica| {
        replica
            .found
            .is_some_and(|found| clock::saturating_later(found, life(size_bytes)) >= until)
    };
    shown
        .replicas
        .iter()
        .any(|replica| replica.source == upload.source && is_new(replica))
}

/// Says whether an upload can neither be completed nor aborted any more. Without the permission to
/// list its parts it counts as alive, and the writes wait.
async fn is_used_up(access: &AccountClients, task: &Task, upload: &Upload) -> bool {
    let request = access
        .s3
        .list_parts()
        .bucket(task.target.destination.bucket.as_str())
        .key(task.target.key.as_str())
        .upload_id(&upload.upload_id)
        .max_parts(1);
    let answer = request
        .send()
        .await
        .map_err(|error| from_sdk_error(Side::Prepare, Operation::ListParts, error));
    answer.is_err_and(|failure| failure.kind == FailureKind::NotFound)
}

/// Writes down until when an upload may appear that is about to be completed.
pub(super) fn expect(copy: &CopyJob<'_>, upload: &Upload) -> Result<(), Failure> {
    let now = copy.basis.now_or_after();
    let appears_until = Some(clock::saturating_later(
        now.unwrap_or_else(clock::now),
        life(copy.version.size_bytes),
    ));
    let upload = Upload {
        may_complete_until: appears_until,
        by_our_clock: now.is_none(),
        ..upload.clone()
    };
    copy.engine.ledger.put_upload(&copy.task.target, &upload)
}

/// How long after its completion an upload of this size may appear.
fn life(size_bytes: u64) -> Duration {
    complete_timeout(size_bytes) + LANDING
}

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
