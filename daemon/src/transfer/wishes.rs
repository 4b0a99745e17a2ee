//! What becomes of each thing that was said about a key, once the key itself is up to date.

use replicator_core::event::Action;
use replicator_core::failure::{Failure, Kind as FailureKind, Reason};
use replicator_core::object::VersionId;
use replicator_core::operation::Operation;
use replicator_core::plan::{Kind, Known, VersionRef};
use replicator_core::rule::History;

use super::tags::Followed;
use super::{Run, destination, remove};
use crate::engine::Engine;
use crate::ledger::records::{ParkedTask, Replica, State};
use crate::metrics::Outcome;
use crate::task::{Report, Task, Wish};

/// Answers duplicates from the ledger, without a request. Not when a message was delivered before:
/// then a write may have been lost on its way, and only the destination can tell (protocol rule 7).
pub(super) fn answered_by_ledger(engine: &Engine, task: &Task) -> Result<Option<Report>, Failure> {
    let plain = |wish: &Wish| matches!(wish.action, Action::Put | Action::DeleteMarker);
    if task.redelivered || !task.wishes.iter().all(plain) {
        return Ok(None);
    }
    let replicas = engine.ledger.replicas(&task.lane)?;
    let known = |wish: &Wish| find(&replicas, wish.version.as_ref(), &[]).map(|replica| outcome_of(replica.state));
    let outcomes: Option<Vec<Outcome>> = task.wishes.iter().map(known).collect();
    let Some(outcomes) = outcomes else { return Ok(None) };
    let settle = super::Settle::new(engine, task);
    for (wish, outcome) in task.wishes.iter().zip(&outcomes) {
        settle.granted(wish.action, *outcome);
    }
    Ok(Some(Report { outcomes, written: 0, bytes: 0 }))
}

/// A change of tags can bring a version into a rule's scope that was out of it.
pub(super) fn reconsider(task: &Task, known: &mut Known) {
    let retagged = |version: &VersionRef| {
        task.wishes.iter().any(|wish| wish.action == Action::Tags && wish.version.as_ref() == Some(&version.id))
    };
    known.skipped.retain(|version| !retagged(version));
}

/// Says whether a run that ended well has done what was parked: everything that appends, and
/// otherwise what its wishes name.
pub(super) fn is_done(run: &Run<'_>, parked: &ParkedTask) -> bool {
    let asked = |wish: &Wish| wish.action == parked.action && wish.version == parked.version;
    let is_left_over = run.is_over_quota && parked.action == Action::VersionDelete;
    let appends = matches!(parked.action, Action::Put | Action::DeleteMarker);
    appends || (!is_left_over && run.task.wishes.iter().any(asked))
}

/// Does what is left to do for each wish and says what became of it.
pub(super) async fn grant(run: &mut Run<'_>) -> Result<Vec<Outcome>, Failure> {
    let mut outcomes = Vec::with_capacity(run.task.wishes.len());
    for wish in &run.task.wishes {
        let creates = matches!(wish.action, Action::Put | Action::DeleteMarker);
        if let Some(outcome) = told(run, wish).filter(|_| creates) {
            outcomes.push(outcome);
            continue;
        }
        if run.is_over_quota && wish.action == Action::VersionDelete {
            outcomes.push(Outcome::Parked);
            continue;
        }
        let outcome = match wish.action {
            Action::Put | Action::DeleteMarker => appended(run, wish).await?,
            Action::Tags => tags(run, wish).await?,
            Action::VersionDelete => purged(run, wish),
            // The replica's owner decides on its list; locks are given with the write itself.
            Action::Acl | Action::Lock => Outcome::Skipped,
        };
        run.settle.granted(wish.action, outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Returns what this very run has already reported of the version that a wish is about.
fn told(run: &Run<'_>, wish: &Wish) -> Option<Outcome> {
    let id = wish.version.as_ref()?;
    run.told.iter().find(|(version, _)| version.id == *id).map(|(_, outcome)| *outcome)
}

async fn appended(run: &mut Run<'_>, wish: &Wish) -> Result<Outcome, Failure> {
    let Some(id) = &wish.version else { return Ok(Outcome::Duplicate) };
    if let Some(replica) = find(&run.read.shown.replicas, Some(id), &run.read.listed) {
        return Ok(outcome_of(replica.state));
    }
    confirm_loss(run, id).await?;
    let newest = [run.read.past.last(), run.read.history.last()];
    let is_newest = newest.into_iter().flatten().any(|newest| newest.version.id == *id);
    if run.task.rules.lead.history == History::Latest && !is_newest {
        return Ok(Outcome::Superseded);
    }
    if run.read.listed.iter().any(|version| version.id == *id) {
        return Ok(Outcome::Skipped);
    }
    lost(run, wish, id)
}

/// Makes sure that a version is gone which the list lacks. S3 lists in the order of keys; a server that fills a page
/// before it sorts it can leave out a key whose name others begin with, and nothing in its answer says so.
async fn confirm_loss(run: &Run<'_>, id: &VersionId) -> Result<(), Failure> {
    let is_listed = run.read.listed.iter().any(|version| version.id == *id);
    let is_passed_over = run.task.rules.lead.history == History::Latest && !run.read.past.is_empty();
    if run.source.is_aws || is_listed || is_passed_over || !remove::source_has(run.source, run.task, id).await? {
        return Ok(());
    }
    Err(Failure::caused(
        FailureKind::Transient,
        Operation::ListObjectVersions,
        "the list lacks a version that is there",
    ))
}

/// Records a version that the source lost before it was read.
fn lost(run: &mut Run<'_>, wish: &Wish, id: &VersionId) -> Result<Outcome, Failure> {
    let kind = if wish.action == Action::Put { Kind::Object } else { Kind::Marker };
    if kind == Kind::Marker && !run.task.rules.lead.admits_marker() {
        return Ok(Outcome::Skipped);
    }
    let source = VersionRef::new(id.clone(), wish.time.unwrap_or_else(crate::clock::now), None);
    let reason = Some(Reason::SrcVersionNotFound);
    let replica = Replica { reason, ..Replica::new(source, kind, State::Gone) };
    run.settle.recorded(&replica)?;
    run.engine.metrics.failure(&run.task.rules.lead.id, Reason::SrcVersionNotFound.as_str());
    run.read.shown.replicas.push(replica);
    Ok(Outcome::Gone)
}

/// Gives a replica the tags its source has now, by the replica's exact version.
async fn tags(run: &mut Run<'_>, wish: &Wish) -> Result<Outcome, Failure> {
    let Some(id) = &wish.version else { return Ok(Outcome::Skipped) };
    let Some(replica_version) = replica_version(run, id).await? else { return Ok(Outcome::Skipped) };
    Ok(match run.follow_tags(id, &replica_version, None).await? {
        Followed::Done => Outcome::Replicated,
        Followed::SourceGone => Outcome::Gone,
        Followed::ReplicaGone => vanished(run),
    })
}

/// The replica was removed at the destination, by its lifecycle or a person: nothing to change.
fn vanished(run: &Run<'_>) -> Outcome {
    run.engine.metrics.failure(&run.task.rules.lead.id, Reason::DstVersionNotFound.as_str());
    Outcome::Skipped
}

/// Says what became of a version delete, which was carried out before.
fn purged(run: &Run<'_>, wish: &Wish) -> Outcome {
    let Some(id) = &wish.version else { return Outcome::Skipped };
    let removed = |replica: &Replica| replica.is_of(id) && replica.state == State::Removed;
    match run.task.rules.lead.version_deletes && run.read.shown.replicas.iter().any(removed) {
        true => Outcome::Replicated,
        false => Outcome::Skipped,
    }
}

/// Finds the destination's id of a replica, in the ledger or in the stamps.
async fn replica_version(run: &mut Run<'_>, id: &VersionId) -> Result<Option<String>, Failure> {
    let listed = run.read.listed.clone();
    let find = |replicas: &[Replica]| {
        let replica = find(replicas, Some(id), &listed)?;
        Some((replica.state, replica.destination_version.clone()))
    };
    match find(&run.read.shown.replicas) {
        Some((State::Replicated, version)) => return Ok(version),
        Some((State::Removed, _)) => return Ok(None),
        // Another daemon may have written what is only on record here as lost or left out.
        Some(_) | None => {
            destination::rebuild(run.engine, run.task, &mut run.read.shown, &run.read.past).await?;
        }
    }
    Ok(find(&run.read.shown.replicas).and_then(|(_, version)| version))
}

/// Finds what is on record of a version. `null` is overwritten in place, so that name alone means
/// nothing: the one that the source lists now is meant.
fn find<'a>(replicas: &'a [Replica], id: Option<&VersionId>, listed: &[VersionRef]) -> Option<&'a Replica> {
    let id = id?;
    if !id.is_null() {
        return replicas.iter().rfind(|replica| replica.is_of(id));
    }
    let current = listed.iter().find(|version| version.id.is_null())?;
    replicas.iter().rfind(|replica| replica.source == *current)
}

fn outcome_of(state: State) -> Outcome {
    match state {
        State::Replicated | State::Collapsed | State::Removed => Outcome::Duplicate,
        State::Skipped => Outcome::Skipped,
        State::Late => Outcome::Superseded,
        State::Gone => Outcome::Gone,
    }
}
