//! Uploads that may appear at a key yet. Requests of a predecessor have landed by the time that its
//! successor begins, but for CompleteMultipartUpload, which S3 may take minutes for: until then the
//! object may appear whatever was written meanwhile (protocol rule 5). The ledger holds until when
//! one of this daemon may, so a restart forgets nothing. An upload that is no longer listed has
//! been completed or aborted, and one that was aborted cannot be completed any more.
//! <https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html>

use std::time::Duration;

use aws_sdk_s3::types::MultipartUpload;
use replicator_core::failure::{Failure, FailureKind, Operation, error_chain};
use replicator_core::object::Timestamp;
use replicator_core::plan::VersionRef;
use replicator_core::retry::{COMPLETE_TIMEOUT_MAX, LANDING, complete_timeout};
use tracing::warn;

use crate::clock;
use crate::engine::Engine;
use crate::failpoint::Step;
use crate::ledger::records::{CurrentEntry, Replica, TargetKey, Upload};
use crate::reconcile::AttemptState;
use crate::reconcile::Context;
use crate::reconcile::execute::copy::CopyJob;
use crate::reconcile::execute::multipart::upload_id;
use crate::reconcile::observe::destination::{DestinationView, Snapshot};
use crate::reconcile::transient;
use crate::s3::accounts::AccountClients;
use crate::s3::accounts::capabilities::Feature;
use crate::s3::accounts::error::{Side, from_sdk_error};
use crate::s3::client::S3Request;

// A wait for uploads may be over sooner than it has to be: so often that is read.
const READ_EVERY: Duration = Duration::from_secs(60);

/// An upload that may appear yet.
#[derive(Debug)]
pub(in crate::reconcile) struct UnconfirmedUpload {
    version: VersionRef,
    left: Duration,
}

impl UnconfirmedUpload {
    /// Finds the one of a key, and removes the record of one that has surely appeared.
    pub(in crate::reconcile) async fn find(
        cx: Context<'_>,
        shown: &DestinationView,
    ) -> Result<Option<Self>, Failure> {
        let (ledger, target) = (&cx.engine.ledger, &cx.task.target);
        let Some((upload, _)) = ledger.upload_of(target)? else {
            return Ok(None);
        };
        if is_seen_since(&upload, shown) && is_used_up(cx, &upload).await {
            ledger.end_upload(target)?;
            return Ok(None);
        }
        Ok(Self::of(&upload, cx.destination, &shown.snapshot))
    }

    /// Decides by what is current: over another object the upload's condition does not hold, where
    /// it has one.
    fn of(upload: &Upload, access: &AccountClients, snapshot: &Snapshot) -> Option<Self> {
        let until = upload.may_complete_until?;
        let may_land = !access.capabilities.always_had(Feature::ConditionalComplete)
            || !matches!(snapshot.entry, CurrentEntry::Object { .. })
            || upload
                .begun_over
                .as_ref()
                .is_none_or(|over| *over == snapshot.entry);
        let now = snapshot
            .now_or_before()
            .filter(|_| !upload.by_our_clock)
            .unwrap_or_else(clock::now);
        let left = Duration::try_from(until - now).unwrap_or_default();
        (may_land && !left.is_zero()).then(|| Self {
            version: upload.source.clone(),
            left,
        })
    }

    /// Says whether a version is what it uploads: to complete it again makes it appear once however
    /// often that is done.
    pub(in crate::reconcile) fn is_of(&self, version: &VersionRef) -> bool {
        *version == self.version
    }

    /// Returns how long to wait before everything is read again: it may have appeared by then.
    pub(in crate::reconcile) fn wait(&self) -> Duration {
        self.left.min(READ_EVERY)
    }
}

/// Returns how long to wait where the record of the key's upload is damaged: that may appear yet.
pub(in crate::reconcile) fn wait_for_damaged(cx: Context<'_>) -> Result<Option<Duration>, Failure> {
    let left = cx.engine.ledger.damaged_upload_wait(&cx.task.target)?;
    Ok(left.map(|left| left.min(READ_EVERY)))
}

/// Says whether a replica of the upload's version is known that was not when the upload was
/// completed.
fn is_seen_since(upload: &Upload, shown: &DestinationView) -> bool {
    let Some(until) = upload.may_complete_until else {
        return false;
    };
    let is_new = |replica: &Replica| {
        replica
            .found
            .is_some_and(|found| clock::saturating_later(found, life(upload.size_bytes)) >= until)
    };
    shown
        .replicas
        .iter()
        .any(|replica| replica.source == upload.source && is_new(replica))
}

/// Says whether an upload can neither be completed nor aborted any more. Without the permission to
/// list its parts it counts as alive, and the writes wait.
async fn is_used_up(cx: Context<'_>, upload: &Upload) -> bool {
    let target = &cx.task.target;
    let request = cx
        .destination
        .s3
        .list_parts()
        .bucket(target.destination.bucket.as_str())
        .key(target.key.as_str())
        .upload_id(&upload.upload_id)
        .max_parts(1);
    let answer = request
        .send()
        .await
        .map_err(|error| from_sdk_error(Side::Prepare, Operation::ListParts, error));
    answer.is_err_and(|failure| failure.kind == FailureKind::NotFound)
}

/// Records until when an upload may appear that is about to be completed.
pub(in crate::reconcile) fn expect(copy: &CopyJob<'_>, upload: &Upload) -> Result<(), Failure> {
    let now = copy.snapshot.now_or_after();
    let appears_until = Some(clock::saturating_later(
        now.unwrap_or_else(clock::now),
        life(copy.version.size_bytes),
    ));
    let upload = Upload {
        may_complete_until: appears_until,
        by_our_clock: now.is_none(),
        ..upload.clone()
    };
    copy.cx
        .engine
        .ledger
        .put_upload(&copy.cx.task.target, &upload)
}

/// How long after its completion an upload of this size may appear.
fn life(size_bytes: u64) -> Duration {
    complete_timeout(size_bytes) + LANDING
}

/// Aborts the upload that the ledger has for this key: only ever one of our own, and none that may
/// appear yet.
pub(in crate::reconcile) async fn abandon_upload(
    cx: Context<'_>,
    snapshot: &Snapshot,
) -> Result<(), Failure> {
    let (engine, target) = (cx.engine, &cx.task.target);
    let Some((upload, _)) = engine.ledger.upload_of(target)? else {
        return Ok(());
    };
    if UnconfirmedUpload::of(&upload, cx.destination, snapshot).is_some() {
        let (kind, operation) = (
            FailureKind::OutcomeUnknown,
            Operation::CompleteMultipartUpload,
        );
        return Err(Failure::new(kind, operation));
    }
    abort_upload(engine, target, &upload.upload_id).await?;
    engine.ledger.end_upload(target)
}

async fn abort_upload(engine: &Engine, target: &TargetKey, upload_id: &str) -> Result<(), Failure> {
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
        Err(failure) if failure.kind != FailureKind::NotFound => Err(failure),
        Ok(_) | Err(_) => Ok(()),
    }
}

/// Ends the uploads at the key that another worker may have sent the completion of, all but the one
/// that the ledger goes on with. Where the daemon that began an upload, or the list of uploads, is
/// unknown, returns how long to wait: S3 may take minutes to complete one.
pub(in crate::reconcile) async fn end_predecessors(
    cx: Context<'_>,
    state: &mut AttemptState,
) -> Result<Option<Duration>, Failure> {
    let age = state.age();
    let are_ended = match end_unknown(cx).await {
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
            warn_once(cx, &failure);
            false
        }
        Ok(are_ended) => are_ended,
    };
    let left = (COMPLETE_TIMEOUT_MAX + LANDING).saturating_sub(age);
    Ok((!are_ended && !left.is_zero()).then(|| left.min(READ_EVERY)))
}

/// Logs for the whole destination, because each of its keys meets the same failure.
fn warn_once(cx: Context<'_>, failure: &Failure) {
    let (place, unlisted) = (&cx.task.target.destination, &cx.engine.unlistable_uploads);
    if !unlisted.seen_recently(place) {
        unlisted.mark_seen(place);
        let (bucket, error) = (place.bucket.as_str(), error_chain(failure));
        warn!(
            bucket,
            error,
            "cannot tell what uploads there are (s3:ListBucketMultipartUploads), keys wait ten minutes"
        );
    }
}

/// Says whether no upload is left that another worker may have sent the completion of.
async fn end_unknown(cx: Context<'_>) -> Result<bool, Failure> {
    let (engine, target, access) = (cx.engine, &cx.task.target, cx.destination);
    let known = engine
        .ledger
        .upload_of(target)?
        .map(|(upload, _)| upload.upload_id);
    let unknown = |upload: &MultipartUpload| upload.upload_id() != known.as_deref();
    let (listed, mut is_whole) = list(access, target).await?;
    if !listed.iter().any(unknown) {
        return Ok(is_whole);
    }
    learn_principal(engine, access, target).await?;
    let own = access.principal.get();
    for upload in listed.iter().filter(|upload| unknown(upload)) {
        match upload
            .upload_id()
            .filter(|_| own.is_some() && own == principal_of(upload).as_ref())
        {
            Some(id) => abort_upload(engine, target, id).await?,
            // It may be a worker's that had another role.
            None => is_whole = false,
        }
    }
    Ok(is_whole)
}

/// Finds out by an upload under which principal this daemon begins uploads, once for each account.
/// If that one cannot be aborted after all, the key's next takeover aborts it as any other.
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
    abort_upload(engine, target, &own).await?;
    listed.map(drop)
}

/// Aborts the uploads of a key that were begun since a moment of the destination's clock: an answer
/// did not name the one that it may have begun, and each attempt would leave one more. Another
/// daemon at the same key begins its own anew.
pub(in crate::reconcile) async fn abort_unnamed(
    copy: &CopyJob<'_>,
    since: Option<Timestamp>,
) -> Result<(), Failure> {
    let cx = copy.cx;
    let no_date = || {
        let cause = "the destination does not say when it is";
        transient(DURING, cause)
    };
    let since = since.ok_or_else(no_date)?.unix_timestamp();
    let (listed, _) = list(cx.destination, &cx.task.target).await?;
    let is_new =
        |upload: &&MultipartUpload| upload.initiated().is_some_and(|at| at.secs() >= since);
    for id in listed
        .iter()
        .filter(is_new)
        .filter_map(MultipartUpload::upload_id)
    {
        abort_upload(cx.engine, &cx.task.target, id).await?;
    }
    Ok(())
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
    let listed = request
        .send()
        .await
        .map_err(|error| from_sdk_error(Side::Destination, DURING, error))?;
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

/// Begins an upload, of which a list names the principal that began it.
async fn begin(access: &AccountClients, target: &TargetKey) -> Result<String, Failure> {
    let call = S3Request::create_multipart_upload(&target.destination.bucket, &target.key);
    let (_, text) = access.wire.text(call).await?;
    let none = || {
        transient(
            Operation::CreateMultipartUpload,
            "the answer has no upload id",
        )
    };
    upload_id(&text).ok_or_else(none)
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

const DURING: Operation = Operation::ListMultipartUploads;
