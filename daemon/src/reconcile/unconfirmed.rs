//! An upload whose completion got no answer. S3 may take minutes to put it together, and until then
//! it may appear at its key whatever was written there meanwhile (protocol rule 5). The ledger
//! holds until when, so a restart forgets nothing.

use std::time::Duration;

use replicator_core::deadline::{LANDING, complete_timeout};
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::operation::Operation;
use replicator_core::plan::VersionRef;

use super::copy::CopyJob;
use super::destination::DestinationView;
use super::snapshot::Snapshot;
use crate::accounts::AccountClients;
use crate::accounts::capabilities::Feature;
use crate::accounts::error::{Side, from_sdk_error};
use crate::clock;
use crate::engine::Engine;
use crate::ledger::records::{CurrentEntry, Replica, Upload};
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
