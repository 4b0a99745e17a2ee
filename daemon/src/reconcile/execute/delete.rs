//! Delete markers, and the permanent delete of one exact replica: versions that were deleted
//! permanently at the source go from the destination too, under `version_deletes` (protocol rule
//! 7): by exact id, after a read of the source.

use std::collections::BTreeSet;
use std::error::Error;

use aws_sdk_s3::operation::delete_object::DeleteObjectOutput;
use aws_sdk_s3::operation::delete_object::builders::DeleteObjectFluentBuilder;
use replicator_core::event::EventKind;
use replicator_core::failure::{Dependency, Failure, FailureKind, Operation, Reason, error_chain};
use replicator_core::object::VersionId;
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::retry::body_timeout;

use crate::clock;
use crate::failpoint::Step;
use crate::ledger::records::{CurrentEntry, Replica, ReplicaState};
use crate::reconcile::Context;
use crate::reconcile::Reconciler;
use crate::reconcile::changed;
use crate::reconcile::execute::replica_record;
use crate::reconcile::observe::Observation;
use crate::reconcile::observe::destination::Snapshot;
use crate::reconcile::observe::head::{Expected, read_current, record_found};
use crate::reconcile::observe::listing;
use crate::reconcile::transient;
use crate::s3::accounts::attempt_deadline;
use crate::s3::accounts::error::{Side, from_sdk_error};
use crate::sqs::lease;
use crate::task::Task;

/// Hides the object that is current under a delete marker; returns the marker's version id.
pub(in crate::reconcile) async fn put_marker(
    cx: Context<'_>,
    source: &SourceVersion,
    (snapshot, is_conditional): (&Snapshot, bool),
) -> Result<Option<String>, Failure> {
    let CurrentEntry::Object { etag: over, .. } = &snapshot.entry else {
        return Err(changed(Operation::DeleteObject));
    };
    cx.engine.limits.request(cx.task.small_payer()).await;
    snapshot.confirm(cx, &source.version.id).await?;
    let if_match = is_conditional.then(|| over.to_quoted());
    let answer = send_delete(cx, Step::DeleteMarker, |request| {
        request.set_if_match(if_match)
    })
    .await?;
    match answer.version_id.filter(|id| !id.is_empty()) {
        Some(id) => Ok(Some(id)),
        None => marker_id(cx).await,
    }
}

/// Sends a delete once: one that is not answered may take effect until `LANDING` is over, and show
/// again what was hidden meanwhile.
async fn send_delete(
    cx: Context<'_>,
    step: Step,
    complete: impl FnOnce(DeleteObjectFluentBuilder) -> DeleteObjectFluentBuilder,
) -> Result<DeleteObjectOutput, Failure> {
    let target = &cx.task.target;
    let request = cx
        .destination
        .s3_once
        .delete_object()
        .bucket(target.destination.bucket.as_str())
        .key(target.key.as_str());
    let request = complete(request)
        .customize()
        .config_override(attempt_deadline(body_timeout(0)));
    let answer = cx
        .engine
        .failpoints
        .around(step, Box::pin(request.send()))
        .await;
    answer.map_err(|error| from_sdk_error(Side::Write, Operation::DeleteObject, error))
}

/// Reads the id of a marker that was just written, where the answer does not name it. None is there
/// where the bucket keeps no versions.
async fn marker_id(cx: Context<'_>) -> Result<Option<String>, Failure> {
    let unknown = |cause: Box<dyn Error + Send + Sync>| {
        Failure::with_source(FailureKind::OutcomeUnknown, Operation::DeleteObject, cause)
    };
    match read_current(cx, Expected::Hidden).await {
        Ok(read) => match read.entry {
            CurrentEntry::Marker(id) => Ok(Some(id)),
            CurrentEntry::Nothing => Ok(None),
            CurrentEntry::Object { .. } => Err(unknown(
                "the answer names no version id, and an object is current".into(),
            )),
        },
        Err(failure) => Err(unknown(failure.into())),
    }
}

/// Removes one replica, because its source version was removed permanently. Only an exact version
/// id ever gets here, so no delete marker can come of it.
async fn delete_version(cx: Context<'_>, destination_version: &str) -> Result<(), Failure> {
    cx.engine.limits.request(cx.task.small_payer()).await;
    lease::confirm_held().await?;
    send_delete(cx, Step::DeleteVersion, |request| {
        request.version_id(destination_version)
    })
    .await
    .map(drop)
}

/// Confirms that a version is gone that an answer calls gone: one that the source lists is not.
pub(in crate::reconcile) async fn confirm_gone(
    cx: Context<'_>,
    version: &VersionId,
    failure: &Failure,
) -> Result<(), Failure> {
    let listed = listing::of_source(cx).await?;
    if !listed.iter().any(|entry| entry.version.id == *version) {
        return Ok(());
    }
    let cause = format!(
        "{}, and ListObjectVersions shows the version",
        error_chain(failure)
    );
    Err(Failure {
        answer: failure.answer,
        ..transient(failure.operation, cause).of(Dependency::Source)
    })
}

/// Says whether the source still has a version; only what S3 itself says counts as "no".
pub(in crate::reconcile) async fn source_has(
    cx: Context<'_>,
    version: &VersionId,
) -> Result<bool, Failure> {
    let call = cx.head(Side::Source).version(version.as_str());
    let Err(refusal) = cx.source.wire.send(call).await else {
        return Ok(true);
    };
    // A delete marker can't be read, so it is there.
    if refusal.is_marker() {
        return Ok(true);
    }
    let failure = Failure::from(refusal);
    // One under a customer's key, or archived, is there.
    let is_there = failure.kind == FailureKind::Ineligible(Reason::SrcObjectNotEligible);
    let is_gone = failure.kind == FailureKind::SourceVersionMissing;
    match is_there || is_gone {
        true => Ok(is_there),
        false => Err(failure),
    }
}

/// Removes one replica whose source is gone, if there is any; then everything has to be read again,
/// because another entry is current perhaps, and another replica of the same version.
pub(in crate::reconcile) async fn apply_version_deletes(
    run: &mut Reconciler<'_>,
) -> Result<bool, Failure> {
    let mut wanted = wanted(run.cx.task);
    if wanted.is_empty() {
        return Ok(false);
    }
    // Another daemon may have written what is only on record here as lost, left out or removed.
    run.observed.rebuild_records(run.cx).await?;
    wanted.extend(exposed_marker(run));
    for id in wanted {
        if is_there(run, &id).await? {
            continue;
        }
        let stands =
            |replica: &&Replica| replica.is_of(&id) && replica.state == ReplicaState::Replicated;
        let replicas = &run.observed.destination.replicas;
        let Some(replica) = replicas.iter().find(stands).cloned() else {
            continue;
        };
        match equivalent_version(run, &replica) {
            Some(other) => reassign_replica(run, replica, other)?,
            None if delete_replica(run, replica).await? => return Ok(true),
            // The rule has removed enough in this hour.
            None => run.is_over_quota = true,
        }
    }
    Ok(false)
}

/// Takes a delete marker that is on no record, where the source shows what is below it, for the
/// replica of a version that was deleted permanently and is on no record either, or only as one
/// with that marker: a marker that was removed at the source. Else what it hides would be written
/// once more on top of it.
pub(in crate::reconcile) async fn explain_marker(run: &mut Reconciler<'_>) -> Result<(), Failure> {
    let shown = &run.observed.destination;
    let Some(newest) = run.observed.history.last().map(|newest| &newest.version) else {
        return Ok(());
    };
    if shown.known.reached.as_ref() != Some(newest) || !shown.is_hidden_by_unknown_marker() {
        return Ok(());
    }
    for id in wanted(run.cx.task) {
        let record = shown.replicas.iter().find(|replica| replica.is_of(&id));
        let state = record.map(|replica| replica.state);
        if matches!(state, None | Some(ReplicaState::Coalesced)) && !is_there(run, &id).await? {
            // It is above what it hid, and below all that comes.
            let known = record.map(|replica| replica.source.clone());
            let gone = known
                .filter(|known| known.last_modified >= newest.last_modified)
                .unwrap_or_else(|| VersionRef::new(id, newest.last_modified, None));
            return run
                .observed
                .destination
                .explain_marker_by_gone(run.cx, gone);
        }
    }
    Ok(())
}

/// Says whether the source still has a version. What it has just listed is there, whatever a HEAD
/// says: some stores answer 404 to that of a delete marker.
async fn is_there(run: &Reconciler<'_>, id: &VersionId) -> Result<bool, Failure> {
    Ok(run.observed.lists_id(id) || source_has(run.cx, id).await?)
}

/// Lists the versions that messages say were deleted permanently.
fn wanted(task: &Task) -> BTreeSet<VersionId> {
    let purges = task
        .events
        .iter()
        .filter(|pending| pending.action == EventKind::VersionDelete);
    // `null` is overwritten in place: that name alone says of no version that it is gone.
    let named = purges
        .filter_map(|pending| pending.version.clone())
        .filter(|id| !id.is_null());
    if task.rules.primary.version_deletes {
        named.collect()
    } else {
        BTreeSet::new()
    }
}

/// Finds a delete marker on record that hides what the source shows and that the source does not
/// list: the daemon that handled its delete event had no record of it, and saw only the versions
/// that covered it then.
fn exposed_marker(run: &Reconciler<'_>) -> Option<VersionId> {
    let Observation {
        destination,
        listed,
        ..
    } = &run.observed;
    let marker = destination
        .current()
        .filter(|replica| replica.kind == VersionKind::Marker)?;
    let shows_object = listed
        .last()
        .is_some_and(|newest| newest.kind == VersionKind::Object);
    let is_listed = run.observed.lists(&marker.source) || marker.source.id.is_null();
    (shows_object && !is_listed).then(|| marker.source.id.clone())
}

/// Finds another marker of the run that this one stands for at the destination: one that the source
/// still lists, and that has no marker of its own there. Another daemon may have taken this one for
/// it, so what is on record here does not decide.
fn equivalent_version(run: &Reconciler<'_>, marker: &Replica) -> Option<Replica> {
    if marker.kind == VersionKind::Object {
        return None;
    }
    let (listed, time) = (&run.observed.listed, marker.source.last_modified);
    let replicas = &run.observed.destination.replicas;
    let at = listed.partition_point(|entry| entry.version.last_modified <= time);
    let (below, above) = listed.split_at_checked(at)?;
    let is_marker = |entry: &&SourceVersion| entry.kind == VersionKind::Marker;
    let record_of = |entry: &SourceVersion| {
        let mut records = replicas.iter();
        records.find(|replica| replica.source == entry.version)
    };
    let history = &run.observed.history;
    let has_none = |entry: &&SourceVersion| match record_of(entry).map(|record| record.state) {
        None => history
            .iter()
            .any(|version| version.version == entry.version),
        Some(state) => matches!(state, ReplicaState::Coalesced | ReplicaState::Superseded),
    };
    let other = above
        .iter()
        .take_while(is_marker)
        .chain(below.iter().rev().take_while(is_marker))
        .find(has_none)?;
    let unrecorded = || replica_record(other, ReplicaState::Replicated);
    Some(record_of(other).cloned().unwrap_or_else(unrecorded))
}

/// Lets a marker of the destination stand for another one of its run.
fn reassign_replica(
    run: &mut Reconciler<'_>,
    gone: Replica,
    other: Replica,
) -> Result<(), Failure> {
    let other = Replica {
        state: ReplicaState::Replicated,
        destination_version: gone.destination_version.clone(),
        ..other
    };
    let gone = Replica {
        state: ReplicaState::Deleted,
        destination_version: None,
        ..gone
    };
    replace_record(run, other)?;
    replace_record(run, gone)
}

/// Removes a replica; returns false if the rule has removed as many in this hour as it may.
async fn delete_replica(run: &mut Reconciler<'_>, replica: Replica) -> Result<bool, Failure> {
    let Some(version) = &replica.destination_version else {
        return Err(transient(
            Operation::DeleteVersion,
            "a replica without an id",
        ));
    };
    if run.removed.contains(version) {
        return Err(transient(
            Operation::DeleteVersion,
            "what was removed is still there",
        ));
    }
    let lead = run.cx.rule();
    if !run
        .cx
        .engine
        .ledger
        .count_removal(&lead.id, lead.version_deletes_per_hour, clock::now())?
    {
        return Ok(false);
    }
    run.removed.insert(version.clone());
    match delete_version(run.cx, version).await {
        Err(failure) if failure.kind != FailureKind::NotFound => return Err(failure),
        Ok(()) | Err(_) => {}
    }
    replace_record(
        run,
        Replica {
            state: ReplicaState::Deleted,
            ..replica
        },
    )?;
    Ok(true)
}

/// Parks what is left over; everything else of the task is done.
pub(in crate::reconcile) fn check_quota(run: &Reconciler<'_>) -> Result<(), Failure> {
    match run.is_over_quota {
        true => Err(Failure::new(
            FailureKind::NeedsOperator(Reason::VersionDeletesPerHour),
            Operation::DeleteVersion,
        )),
        false => Ok(()),
    }
}

fn replace_record(run: &mut Reconciler<'_>, replica: Replica) -> Result<(), Failure> {
    record_found(run.cx, replica, &mut run.observed.destination.replicas)
}
