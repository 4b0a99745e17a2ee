//! What becomes of each thing that was said about a key, once the key itself is up to date.

use replicator_core::event::EventKind;
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::object::VersionId;
use replicator_core::operation::Operation;
use replicator_core::plan::{DestinationState, VersionKind, VersionRef};
use replicator_core::rule::History;

use super::tags::Followed;
use super::{Reconciler, delete, destination};
use crate::engine::Engine;
use crate::ledger::records::{ParkedTask, Replica, ReplicaState};
use crate::metrics::Outcome;
use crate::task::{PendingEvent, Report, Task};

/// Answers duplicates from the ledger, without a request. Not when a message was delivered before:
/// then a write may have been lost on its way, and only the destination can tell (protocol rule 4).
pub(super) fn answered_by_ledger(engine: &Engine, task: &Task) -> Result<Option<Report>, Failure> {
    let plain =
        |pending: &PendingEvent| matches!(pending.action, EventKind::Put | EventKind::DeleteMarker);
    if task.redelivered || !task.events.iter().all(plain) {
        return Ok(None);
    }
    let replicas = engine.ledger.replicas_of(&task.target)?;
    let known = |pending: &PendingEvent| {
        find_record(&replicas, pending.version.as_ref(), &[])
            .map(|replica| outcome_of(replica.state))
    };
    let outcomes: Option<Vec<Outcome>> = task.events.iter().map(known).collect();
    let Some(outcomes) = outcomes else {
        return Ok(None);
    };
    let settle = super::OutcomeRecorder::new(engine, task);
    for (pending, outcome) in task.events.iter().zip(&outcomes) {
        settle.granted(pending.action, *outcome);
    }
    Ok(Some(Report {
        outcomes,
        written: 0,
        bytes: 0,
    }))
}

/// A change of tags can bring a version into a rule's scope that was out of it.
pub(super) fn reconsider(task: &Task, known: &mut DestinationState) {
    let retagged = |version: &VersionRef| {
        task.events.iter().any(|pending| {
            pending.action == EventKind::Tags && pending.version.as_ref() == Some(&version.id)
        })
    };
    known.skipped.retain(|version| !retagged(version));
}

/// Says whether a run that ended well has done what was parked: everything that appends, and
/// otherwise what its events name.
pub(super) fn is_done(run: &Reconciler<'_>, parked: &ParkedTask) -> bool {
    let asked = |pending: &PendingEvent| {
        pending.action == parked.action && pending.version == parked.version
    };
    let is_left_over = run.is_over_quota && parked.action == EventKind::VersionDelete;
    let appends = matches!(parked.action, EventKind::Put | EventKind::DeleteMarker);
    appends || (!is_left_over && run.task.events.iter().any(asked))
}

/// Does what is left to do for each event and says what became of it.
pub(super) async fn grant(run: &mut Reconciler<'_>) -> Result<Vec<Outcome>, Failure> {
    let mut outcomes = Vec::with_capacity(run.task.events.len());
    for pending in &run.task.events {
        let creates = matches!(pending.action, EventKind::Put | EventKind::DeleteMarker);
        if let Some(outcome) = told(run, pending).filter(|_| creates) {
            outcomes.push(outcome);
            continue;
        }
        if run.is_over_quota && pending.action == EventKind::VersionDelete {
            outcomes.push(Outcome::Parked);
            continue;
        }
        let outcome = match pending.action {
            EventKind::Put | EventKind::DeleteMarker => appended(run, pending).await?,
            EventKind::Tags => tags(run, pending).await?,
            EventKind::VersionDelete => purged(run, pending),
            // The replica's owner decides on its list; locks are given with the write itself.
            EventKind::Acl | EventKind::Lock => Outcome::Skipped,
        };
        run.settle.granted(pending.action, outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Returns what this very run has already reported of the version that an event is about.
fn told(run: &Reconciler<'_>, pending: &PendingEvent) -> Option<Outcome> {
    let id = pending.version.as_ref()?;
    run.told
        .iter()
        .find(|(version, _)| version.id == *id)
        .map(|(_, outcome)| *outcome)
}

async fn appended(run: &mut Reconciler<'_>, pending: &PendingEvent) -> Result<Outcome, Failure> {
    let Some(id) = &pending.version else {
        return Ok(Outcome::Duplicate);
    };
    if let Some(replica) = find_record(
        &run.observed.destination.replicas,
        Some(id),
        &run.observed.listed,
    ) {
        return Ok(outcome_of(replica.state));
    }
    confirm_loss(run, id).await?;
    let newest = [run.observed.past.last(), run.observed.history.last()];
    let is_newest = newest
        .into_iter()
        .flatten()
        .any(|newest| newest.version.id == *id);
    if run.task.rules.primary.history == History::Latest && !is_newest {
        return Ok(Outcome::Superseded);
    }
    if run.observed.listed.iter().any(|version| version.id == *id) {
        return Ok(Outcome::Skipped);
    }
    lost(run, pending, id)
}

/// Makes sure that a version is gone which the list lacks. S3 lists in the order of keys; a server
/// that fills a page before it sorts it can leave out a key whose name others begin with, and
/// nothing in its answer says so.
async fn confirm_loss(run: &Reconciler<'_>, id: &VersionId) -> Result<(), Failure> {
    let is_listed = run.observed.listed.iter().any(|version| version.id == *id);
    let is_passed_over =
        run.task.rules.primary.history == History::Latest && !run.observed.past.is_empty();
    if run.source.is_aws
        || is_listed
        || is_passed_over
        || !delete::source_has(run.source, run.task, id).await?
    {
        return Ok(());
    }
    Err(Failure::with_source(
        FailureKind::Transient,
        Operation::ListObjectVersions,
        "the list lacks a version that is there",
    ))
}

/// Records a version that the source lost before it was read.
fn lost(
    run: &mut Reconciler<'_>,
    pending: &PendingEvent,
    id: &VersionId,
) -> Result<Outcome, Failure> {
    let kind = if pending.action == EventKind::Put {
        VersionKind::Object
    } else {
        VersionKind::Marker
    };
    if kind == VersionKind::Marker && !run.task.rules.primary.admits_marker() {
        return Ok(Outcome::Skipped);
    }
    let source = VersionRef::new(
        id.clone(),
        pending.time.unwrap_or_else(crate::clock::now),
        None,
    );
    let reason = Some(Reason::SrcVersionNotFound);
    let replica = Replica {
        reason,
        ..Replica::new(source, kind, ReplicaState::SourceMissing)
    };
    run.settle.record_only(&replica)?;
    run.engine.metrics.count_failed(
        &run.task.rules.primary.id,
        Reason::SrcVersionNotFound.as_str(),
    );
    run.observed.destination.replicas.push(replica);
    Ok(Outcome::Gone)
}

/// Gives a replica the tags its source has now, by the replica's exact version.
async fn tags(run: &mut Reconciler<'_>, pending: &PendingEvent) -> Result<Outcome, Failure> {
    let Some(id) = &pending.version else {
        return Ok(Outcome::Skipped);
    };
    let Some(replica_version) = replica_version(run, id).await? else {
        return Ok(Outcome::Skipped);
    };
    Ok(match run.follow_tags(id, &replica_version, None).await? {
        Followed::Done => Outcome::Replicated,
        Followed::SourceGone => Outcome::Gone,
        Followed::ReplicaGone => vanished(run),
    })
}

/// The replica was removed at the destination, by its lifecycle or a person: nothing to change.
fn vanished(run: &Reconciler<'_>) -> Outcome {
    run.engine.metrics.count_failed(
        &run.task.rules.primary.id,
        Reason::DstVersionNotFound.as_str(),
    );
    Outcome::Skipped
}

/// Says what became of a version delete, which was carried out before.
fn purged(run: &Reconciler<'_>, pending: &PendingEvent) -> Outcome {
    let Some(id) = &pending.version else {
        return Outcome::Skipped;
    };
    let removed = |replica: &Replica| replica.is_of(id) && replica.state == ReplicaState::Deleted;
    match run.task.rules.primary.version_deletes
        && run.observed.destination.replicas.iter().any(removed)
    {
        true => Outcome::Replicated,
        false => Outcome::Skipped,
    }
}

/// Finds the destination's id of a replica, in the ledger or in the stamps.
async fn replica_version(
    run: &mut Reconciler<'_>,
    id: &VersionId,
) -> Result<Option<String>, Failure> {
    let listed = run.observed.listed.clone();
    let find = |replicas: &[Replica]| {
        let replica = find_record(replicas, Some(id), &listed)?;
        Some((replica.state, replica.destination_version.clone()))
    };
    match find(&run.observed.destination.replicas) {
        Some((ReplicaState::Replicated, version)) => return Ok(version),
        Some((ReplicaState::Deleted, _)) => return Ok(None),
        // Another daemon may have written what is only on record here as lost or left out.
        Some(_) | None => {
            destination::rebuild_records(
                run.engine,
                run.task,
                &mut run.observed.destination,
                &run.observed.past,
            )
            .await?;
        }
    }
    Ok(find(&run.observed.destination.replicas).and_then(|(_, version)| version))
}

/// Finds what is on record of a version. `null` is overwritten in place, so that name alone means
/// nothing: the one that the source lists now is meant.
fn find_record<'a>(
    replicas: &'a [Replica],
    id: Option<&VersionId>,
    listed: &[VersionRef],
) -> Option<&'a Replica> {
    let id = id?;
    if !id.is_null() {
        return replicas.iter().rfind(|replica| replica.is_of(id));
    }
    let current = listed.iter().find(|version| version.id.is_null())?;
    replicas.iter().rfind(|replica| replica.source == *current)
}

fn outcome_of(state: ReplicaState) -> Outcome {
    match state {
        ReplicaState::Replicated | ReplicaState::Coalesced | ReplicaState::Deleted => {
            Outcome::Duplicate
        }
        ReplicaState::Skipped => Outcome::Skipped,
        ReplicaState::Superseded => Outcome::Superseded,
        ReplicaState::SourceMissing => Outcome::Gone,
    }
}
