//! Delete markers, and the permanent delete of one exact replica.

use replicator_core::deadline::body_timeout;
use replicator_core::failure::{Failure, Kind, Party, Reason, chain};
use replicator_core::object::VersionId;
use replicator_core::operation::Operation;
use replicator_core::plan::SourceVersion;

use super::basis::{Basis, LOOK, Looked};
use super::current::{Likely, current};
use super::listing;
use crate::accounts::refusal::{Side, failure};
use crate::accounts::{Access, deadline};
use crate::engine::Engine;
use crate::failpoint::Step;
use crate::lease;
use crate::ledger::records::Entry;
use crate::task::Task;
use crate::wire::Call;

/// Hides the object that is current under a delete marker; returns the marker's version id.
pub(crate) async fn mark(
    engine: &Engine,
    task: &Task,
    source: &SourceVersion,
    (basis, conditional): (&Basis, bool),
) -> Result<Option<String>, Failure> {
    let access = engine.access(&task.lane.destination)?;
    let Entry::Object { etag: over, .. } = &basis.entry else {
        return Err(Failure::new(Kind::Conflict, Operation::DeleteObject));
    };
    engine.limits.request(task.payer()).await;
    // What that takes counts against the age of the reading.
    lease::confirm().await?;
    if let Some(looked) = basis.renew(access, task).await? {
        confirm(engine.access(&task.source)?, task, &source.version.id, looked).await?;
    }
    lease::confirm().await?;
    let request = access
        .s3_once
        .delete_object()
        .bucket(task.lane.destination.bucket.as_str())
        .key(task.lane.key.as_str())
        .set_if_match(conditional.then(|| over.quoted()))
        .customize()
        .config_override(deadline(body_timeout(0)));
    let answer = engine.failpoints.around(Step::DeleteMarker, Box::pin(request.send())).await;
    let answer = answer.map_err(|error| failure(Side::Write, Operation::DeleteObject, error))?;
    match answer.version_id.filter(|id| !id.is_empty()) {
        Some(id) => Ok(Some(id)),
        None => marker_id(access, task).await,
    }
}

/// Reads the id of a marker that was just written, where the answer does not name it. None is there
/// where the bucket keeps no versions.
async fn marker_id(access: &Access, task: &Task) -> Result<Option<String>, Failure> {
    let lost = |failure| Failure::caused(Kind::Unanswered, Operation::DeleteObject, failure);
    match current(access, task, Likely::Hidden).await.map_err(lost)?.entry {
        Entry::Marker(id) => Ok(Some(id)),
        Entry::Nothing => Ok(None),
        Entry::Object { .. } => {
            let words = "the answer names no version id, and an object is current";
            Err(Failure::caused(Kind::Unanswered, Operation::DeleteObject, words))
        }
    }
}

/// Removes one replica, because its source version was removed permanently and the rule says so.
/// Only an exact version id ever gets here, so no delete marker can come of it.
pub(crate) async fn version(engine: &Engine, task: &Task, destination_version: &str) -> Result<(), Failure> {
    engine.limits.request(task.payer()).await;
    lease::confirm().await?;
    let request = engine
        .access(&task.lane.destination)?
        .s3_once
        .delete_object()
        .bucket(task.lane.destination.bucket.as_str())
        .key(task.lane.key.as_str())
        .version_id(destination_version)
        .customize()
        .config_override(deadline(body_timeout(0)));
    let removed = engine.failpoints.around(Step::DeleteVersion, Box::pin(request.send())).await;
    // A delete without an answer may take effect until `LANDING` is over, and show again what was hidden meanwhile.
    removed.map_err(|error| failure(Side::Write, Operation::DeleteObject, error))?;
    Ok(())
}

/// Makes sure that the source still has what is about to be written, where it would have to go
/// again: the task that deletes it expects no write from an older look. The answer may take long,
/// and the look at the destination has to be fresh when the write is sent.
pub(super) async fn confirm(access: &Access, task: &Task, version: &VersionId, looked: Looked) -> Result<(), Failure> {
    if !task.rules.lead.version_deletes {
        return Ok(());
    }
    match source_has(access, task, version).await? {
        true => looked.is_fresh(),
        false => Err(Failure::new(Kind::Conflict, LOOK)),
    }
}

/// Makes sure that a version is gone of which a request was told so: one that the source lists is not.
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
    let cause = format!("{}, and ListObjectVersions shows the version", chain(told));
    Err(Failure { answer: told.answer, ..Failure::caused(Kind::Transient, told.during, cause).of(Party::Source) })
}

/// Says whether the source still has a version; only what S3 itself says counts as "no".
pub(crate) async fn source_has(access: &Access, task: &Task, version: &VersionId) -> Result<bool, Failure> {
    let call = Call::head(Side::Source, &task.source.bucket, &task.source_key).version(version.as_str());
    let Err(refusal) = access.wire.send(call).await else { return Ok(true) };
    // A delete marker can't be read, so it is there.
    if refusal.is_marker() {
        return Ok(true);
    }
    match refusal.into() {
        Failure { kind: Kind::Gone, .. } => Ok(false),
        Failure { kind: Kind::Unsupported(Reason::SrcObjectNotEligible), .. } => Ok(true),
        failure => Err(failure),
    }
}
