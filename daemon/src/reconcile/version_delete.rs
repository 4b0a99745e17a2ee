//! Versions that were deleted permanently at the source go from the destination too, where the rule
//! says so (protocol rule 7): by exact id, after a read of the source.

use std::collections::BTreeSet;

use replicator_core::event::EventKind;
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::object::VersionId;
use replicator_core::operation::Operation;
use replicator_core::plan::{VersionKind, VersionRef};

use super::{Reconciler, delete, destination};
use crate::clock;
use crate::ledger::records::{Replica, ReplicaState};
use crate::task::Task;

/// Removes one replica whose source is gone, if there is any; then everything has to be read again,
/// because another entry is current perhaps, and another replica of the same version.
pub(super) async fn apply_version_deletes(run: &mut Reconciler<'_>) -> Result<bool, Failure> {
    let mut wanted = wanted(run.task);
    if wanted.is_empty() {
        return Ok(false);
    }
    // Another daemon may have written what is only on record here as lost, left out or removed.
    destination::rebuild_records(
        run.engine,
        run.task,
        &mut run.observed.destination,
        &run.observed.past,
    )
    .await?;
    wanted.extend(exposed_marker(run));
    for id in wanted {
        if is_there(run, &id).await? {
            continue;
        }
        let stands =
            |replica: &&Replica| replica.is_of(&id) && replica.state == ReplicaState::Replicated;
        let Some(replica) = run
            .observed
            .destination
            .replicas
            .iter()
            .find(stands)
            .cloned()
        else {
            continue;
        };
        match equivalent_version(run, &replica) {
            Some(heir) => reassign_replica(run, replica, heir)?,
            None if delete_replica(run, replica).await? => return Ok(true),
            // The rule has removed enough in this hour.
            None => run.is_over_quota = true,
        }
    }
    Ok(false)
}

/// Takes a delete marker that is on no record, where the source shows what is below it, for the
/// replica of a version that was deleted permanently and is on no record either, or only as one
/// with that marker: a marker that was taken back. Else what it hides would be written once more on
/// top of it.
pub(super) async fn explain_marker(run: &mut Reconciler<'_>) -> Result<(), Failure> {
    let shown = &run.observed.destination;
    let newest = run
        .observed
        .history
        .last()
        .map(|newest| newest.version.clone());
    let Some(newest) = newest.filter(|newest| shown.known.reached.as_ref() == Some(newest)) else {
        return Ok(());
    };
    if !shown.is_hidden_by_unknown_marker() {
        return Ok(());
    }
    for id in wanted(run.task) {
        let record = run
            .observed
            .destination
            .replicas
            .iter()
            .find(|replica| replica.is_of(&id));
        let (state, known) = (
            record.map(|replica| replica.state),
            record.map(|replica| replica.source.clone()),
        );
        if matches!(state, None | Some(ReplicaState::Coalesced)) && !is_there(run, &id).await? {
            // It is above what it hid, and below all that comes.
            let gone = known.filter(|known| known.last_modified >= newest.last_modified);
            let gone = gone.unwrap_or_else(|| VersionRef::new(id, newest.last_modified, None));
            return run
                .observed
                .destination
                .explain_marker_by_gone(run.engine, run.task, gone);
        }
    }
    Ok(())
}

/// Says whether the source still has a version. What it has just listed is there, whatever a HEAD
/// says: some stores answer 404 to that of a delete marker.
async fn is_there(run: &Reconciler<'_>, id: &VersionId) -> Result<bool, Failure> {
    let is_listed = run.observed.listed.iter().any(|version| version.id == *id);
    Ok(is_listed || delete::source_has(run.source, run.task, id).await?)
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
    let marker = run
        .observed
        .destination
        .current()
        .filter(|replica| replica.kind == VersionKind::Marker)?;
    let shows_object = run
        .observed
        .past
        .last()
        .is_some_and(|newest| newest.kind == VersionKind::Object);
    let is_listed = run.observed.listed.contains(&marker.source);
    (shows_object && !is_listed && !marker.source.id.is_null()).then(|| marker.source.id.clone())
}

/// Finds another marker of the run that this one stands for at the destination.
fn equivalent_version(run: &Reconciler<'_>, marker: &Replica) -> Option<Replica> {
    if marker.kind != VersionKind::Object {
        let (past, time) = (&run.observed.past, marker.source.last_modified);
        let at = past.partition_point(|entry| entry.version.last_modified <= time);
        let (below, above) = past.split_at_checked(at)?;
        let is_marker =
            |entry: &&replicator_core::plan::SourceVersion| entry.kind == VersionKind::Marker;
        let neighbours = above
            .iter()
            .take_while(is_marker)
            .chain(below.iter().rev().take_while(is_marker));
        let collapsed = neighbours
            .map(|entry| &entry.version)
            .find(|version| run.observed.destination.known.collapsed.contains(version))?;
        return run
            .observed
            .destination
            .replicas
            .iter()
            .find(|replica| replica.source == *collapsed)
            .cloned();
    }
    None
}

/// Lets a marker of the destination stand for another one of its run.
fn reassign_replica(run: &mut Reconciler<'_>, gone: Replica, heir: Replica) -> Result<(), Failure> {
    let heir = Replica {
        state: ReplicaState::Replicated,
        destination_version: gone.destination_version.clone(),
        ..heir
    };
    let gone = Replica {
        state: ReplicaState::Deleted,
        destination_version: None,
        ..gone
    };
    for replica in [heir, gone] {
        record(run, replica)?;
    }
    Ok(())
}

/// Removes a replica; returns false if the rule has removed as many in this hour as it may.
async fn delete_replica(run: &mut Reconciler<'_>, replica: Replica) -> Result<bool, Failure> {
    let Some(version) = &replica.destination_version else {
        return Err(Failure::with_source(
            FailureKind::Transient,
            Operation::DeleteVersion,
            "a replica without an id",
        ));
    };
    if run.removed.contains(version) {
        return Err(Failure::with_source(
            FailureKind::Transient,
            Operation::DeleteVersion,
            "what was removed is still there",
        ));
    }
    let lead = &run.task.rules.primary;
    if !run
        .engine
        .ledger
        .count_removal(&lead.id, lead.version_deletes_per_hour, clock::now())?
    {
        return Ok(false);
    }
    run.removed.insert(version.clone());
    match delete::version(run.engine, run.task, version).await {
        Ok(())
        | Err(Failure {
            kind: FailureKind::NotFound,
            ..
        }) => {}
        Err(failure) => return Err(failure),
    }
    record(
        run,
        Replica {
            state: ReplicaState::Deleted,
            ..replica
        },
    )?;
    Ok(true)
}

/// Parks what is left over; everything else of the task is done.
pub(super) fn check_quota(run: &Reconciler<'_>) -> Result<(), Failure> {
    match run.is_over_quota {
        true => Err(Failure::new(
            FailureKind::NeedsOperator(Reason::VersionDeletesPerHour),
            Operation::DeleteVersion,
        )),
        false => Ok(()),
    }
}

fn record(run: &mut Reconciler<'_>, replica: Replica) -> Result<(), Failure> {
    run.settle.record_only(&replica)?;
    run.observed
        .destination
        .replicas
        .retain(|other| other.source != replica.source);
    run.observed.destination.replicas.push(replica);
    Ok(())
}
