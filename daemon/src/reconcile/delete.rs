//! Delete markers, and the permanent delete of one exact replica.

use replicator_core::deadline::body_timeout;
use replicator_core::failure::{Dependency, Failure, FailureKind, Reason, error_chain};
use replicator_core::object::VersionId;
use replicator_core::operation::Operation;
use replicator_core::plan::SourceVersion;

use super::head::{Expected, read_current};
use super::listing;
use super::snapshot::{LOOK, Snapshot, VerifiedAt};
use crate::accounts::error::{Side, from_sdk_error};
use crate::accounts::{AccountClients, attempt_deadline};
use crate::engine::Engine;
use crate::failpoint::Step;
use crate::lease;
use crate::ledger::records::CurrentEntry;
use crate::s3_http::S3Request;
use crate::task::Task;

/// Hides the object that is current under a delete marker; returns the marker's version id.
pub(crate) async fn mark(
    engine: &Engine,
    task: &Task,
    source: &SourceVersion,
    (basis, conditional): (&Snapshot, bool),
) -> Result<Option<String>, Failure> {
    let access = engine.access_to(&task.target.destination)?;
    let CurrentEntry::Object { etag: over, .. } = &basis.entry else {
        return Err(Failure::new(
            FailureKind::PreconditionFailed,
            Operation::DeleteObject,
        ));
    };
    engine.limits.request(task.small_payer()).await;
    // What that takes counts against the age of the reading.
    lease::confirm_held().await?;
    if let Some(looked) = basis.renew_if_old(access, task).await? {
        confirm_source(
            engine.access_to(&task.source)?,
            task,
            &source.version.id,
            looked,
        )
        .await?;
    }
    lease::confirm_held().await?;
    let request = access
        .s3_once
        .delete_object()
        .bucket(task.target.destination.bucket.as_str())
        .key(task.target.key.as_str())
        .set_if_match(conditional.then(|| over.to_quoted()))
        .customize()
        .config_override(attempt_deadline(body_timeout(0)));
    let answer = engine
        .failpoints
        .around(Step::DeleteMarker, Box::pin(request.send()))
        .await;
    let answer =
        answer.map_err(|error| from_sdk_error(Side::Write, Operation::DeleteObject, error))?;
    match answer.version_id.filter(|id| !id.is_empty()) {
        Some(id) => Ok(Some(id)),
        None => marker_id(access, task).await,
    }
}

/// Reads the id of a marker that was just written, where the answer does not name it. None is there
/// where the bucket keeps no versions.
async fn marker_id(access: &AccountClients, task: &Task) -> Result<Option<String>, Failure> {
    let lost = |failure| {
        Failure::with_source(
            FailureKind::OutcomeUnknown,
            Operation::DeleteObject,
            failure,
        )
    };
    match read_current(access, task, Expected::Hidden)
        .await
        .map_err(lost)?
        .entry
    {
        CurrentEntry::Marker(id) => Ok(Some(id)),
        CurrentEntry::Nothing => Ok(None),
        CurrentEntry::Object { .. } => {
            let words = "the answer names no version id, and an object is current";
            Err(Failure::with_source(
                FailureKind::OutcomeUnknown,
                Operation::DeleteObject,
                words,
            ))
        }
    }
}

/// Removes one replica, because its source version was removed permanently and the rule says so.
/// Only an exact version id ever gets here, so no delete marker can come of it.
pub(crate) async fn version(
    engine: &Engine,
    task: &Task,
    destination_version: &str,
) -> Result<(), Failure> {
    engine.limits.request(task.small_payer()).await;
    lease::confirm_held().await?;
    let request = engine
        .access_to(&task.target.destination)?
        .s3_once
        .delete_object()
        .bucket(task.target.destination.bucket.as_str())
        .key(task.target.key.as_str())
        .version_id(destination_version)
        .customize()
        .config_override(attempt_deadline(body_timeout(0)));
    let removed = engine
        .failpoints
        .around(Step::DeleteVersion, Box::pin(request.send()))
        .await;
    // A delete without an answer may take effect until `LANDING` is over, and show again what was
    // hidden meanwhile.
    removed.map_err(|error| from_sdk_error(Side::Write, Operation::DeleteObject, error))?;
    Ok(())
}

/// Makes sure that the source still has what is about to be written, where it would have to go
/// again: the task that deletes it expects no write from an older look. The answer may take long,
/// and the look at the destination has to be fresh when the write is sent.
pub(super) async fn confirm_source(
    access: &AccountClients,
    task: &Task,
    version: &VersionId,
    looked: VerifiedAt,
) -> Result<(), Failure> {
    if !task.rules.primary.version_deletes {
        return Ok(());
    }
    match source_has(access, task, version).await? {
        true => looked.is_fresh(),
        false => Err(Failure::new(FailureKind::PreconditionFailed, LOOK)),
    }
}

/// Makes sure that a version is gone of which a request was told so: one that the source lists is
/// not.
pub(super) async fn confirm_gone(
    engine: &Engine,
    task: &Task,
    version: &VersionId,
    told: &Failure,
) -> Result<(), Failure> {
    let listed = listing::of_source(engine, task).await?;
    if !listed.iter().any(|entry| entry.version.id == *version) {
        return Ok(());
    }
    let cause = format!(
        "{}, and ListObjectVersions shows the version",
        error_chain(told)
    );
    Err(Failure {
        answer: told.answer,
        ..Failure::with_source(FailureKind::Transient, told.operation, cause).of(Dependency::Source)
    })
}

/// Says whether the source still has a version; only what S3 itself says counts as "no".
pub(crate) async fn source_has(
    access: &AccountClients,
    task: &Task,
    version: &VersionId,
) -> Result<bool, Failure> {
    let call = S3Request::head_object(Side::Source, &task.source.bucket, &task.source_key)
        .version(version.as_str());
    let Err(refusal) = access.wire.send(call).await else {
        return Ok(true);
    };
    // A delete marker can't be read, so it is there.
    if refusal.is_marker() {
        return Ok(true);
    }
    match refusal.into() {
        Failure {
            kind: FailureKind::SourceVersionMissing,
            ..
        } => Ok(false),
        Failure {
            kind: FailureKind::Ineligible(Reason::SrcObjectNotEligible),
            ..
        } => Ok(true),
        failure => Err(failure),
    }
}
