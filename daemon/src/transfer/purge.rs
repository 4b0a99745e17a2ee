//! Versions that were deleted permanently at the source go from the destination too, where the rule
//! says so (protocol rule 10): by exact id, after a read of the source.

use std::collections::BTreeSet;

use replicator_core::event::Action;
use replicator_core::failure::{Failure, Kind as FailureKind, Reason};
use replicator_core::object::VersionId;
use replicator_core::operation::Operation;
use replicator_core::plan::{Kind, VersionRef};

use super::{Run, destination, remove};
use crate::clock;
use crate::ledger::records::{Replica, State};
use crate::task::Task;

/// Removes one replica whose source is gone, if there is any; then everything has to be read again,
/// because another entry is current perhaps, and another replica of the same version.
pub(super) async fn carry_out(run: &mut Run<'_>) -> Result<bool, Failure> {
    let mut wanted = wanted(run.task);
    if wanted.is_empty() {
        return Ok(false);
    }
    // Another daemon may have written what is only on record here as lost, left out or removed.
    destination::rebuild(run.engine, run.task, &mut run.read.shown, &run.read.past).await?;
    wanted.extend(bared_marker(run));
    for id in wanted {
        if is_there(run, &id).await? {
            continue;
        }
        let stands = |replica: &&Replica| replica.is_of(&id) && replica.state == State::Replicated;
        let Some(replica) = run.read.shown.replicas.iter().find(stands).cloned() else { continue };
        match heir(run, &replica) {
            Some(heir) => inherit(run, replica, heir)?,
            None if take_away(run, replica).await? => return Ok(true),
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
pub(super) async fn explain_marker(run: &mut Run<'_>) -> Result<(), Failure> {
    let shown = &run.read.shown;
    let newest = run.read.history.last().map(|newest| newest.version.clone());
    let Some(newest) = newest.filter(|newest| shown.known.reached.as_ref() == Some(newest)) else { return Ok(()) };
    if !shown.is_hidden_by_stranger() {
        return Ok(());
    }
    for id in wanted(run.task) {
        let record = run.read.shown.replicas.iter().find(|replica| replica.is_of(&id));
        let (state, known) = (record.map(|replica| replica.state), record.map(|replica| replica.source.clone()));
        if matches!(state, None | Some(State::Collapsed)) && !is_there(run, &id).await? {
            // It is above what it hid, and below all that comes.
            let gone = known.filter(|known| known.last_modified >= newest.last_modified);
            let gone = gone.unwrap_or_else(|| VersionRef::new(id, newest.last_modified, None));
            return run.read.shown.explain_marker_by_gone(run.engine, run.task, gone);
        }
    }
    Ok(())
}

/// Says whether the source still has a version. What it has just listed is there, whatever a HEAD says: some stores
/// answer 404 to that of a delete marker.
async fn is_there(run: &Run<'_>, id: &VersionId) -> Result<bool, Failure> {
    let is_listed = run.read.listed.iter().any(|version| version.id == *id);
    Ok(is_listed || remove::source_has(run.source, run.task, id).await?)
}

/// Lists the versions that messages say were deleted permanently.
fn wanted(task: &Task) -> BTreeSet<VersionId> {
    let purges = task.wishes.iter().filter(|wish| wish.action == Action::VersionDelete);
    // `null` is overwritten in place: that name alone says of no version that it is gone.
    let named = purges.filter_map(|wish| wish.version.clone()).filter(|id| !id.is_null());
    if task.rules.lead.version_deletes { named.collect() } else { BTreeSet::new() }
}

/// Finds a delete marker on record that hides what the source shows and that the source does not
/// list: the daemon that handled its delete event had no record of it, and saw only the versions
/// that covered it then.
fn bared_marker(run: &Run<'_>) -> Option<VersionId> {
    let marker = run.read.shown.current().filter(|replica| replica.kind == Kind::Marker)?;
    let shows_object = run.read.past.last().is_some_and(|newest| newest.kind == Kind::Object);
    let is_listed = run.read.listed.contains(&marker.source);
    (shows_object && !is_listed && !marker.source.id.is_null()).then(|| marker.source.id.clone())
}

/// Finds another marker of the run that this one stands for at the destination.
fn heir(run: &Run<'_>, marker: &Replica) -> Option<Replica> {
    if marker.kind != Kind::Object {
        let (past, time) = (&run.read.past, marker.source.last_modified);
        let at = past.partition_point(|entry| entry.version.last_modified <= time);
        let (below, above) = past.split_at_checked(at)?;
        let is_marker = |entry: &&replicator_core::plan::SourceVersion| entry.kind == Kind::Marker;
        let neighbours = above.iter().take_while(is_marker).chain(below.iter().rev().take_while(is_marker));
        let collapsed =
            neighbours.map(|entry| &entry.version).find(|version| run.read.shown.known.collapsed.contains(version))?;
        return run.read.shown.replicas.iter().find(|replica| replica.source == *collapsed).cloned();
    }
    None
}

/// Lets a marker of the destination stand for another one of its run.
fn inherit(run: &mut Run<'_>, gone: Replica, heir: Replica) -> Result<(), Failure> {
    let heir = Replica { state: State::Replicated, destination_version: gone.destination_version.clone(), ..heir };
    let gone = Replica { state: State::Removed, destination_version: None, ..gone };
    for replica in [heir, gone] {
        record(run, replica)?;
    }
    Ok(())
}

/// Removes a replica; returns false if the rule has removed as many in this hour as it may.
async fn take_away(run: &mut Run<'_>, replica: Replica) -> Result<bool, Failure> {
    let Some(version) = &replica.destination_version else {
        return Err(Failure::caused(FailureKind::Transient, Operation::DeleteVersion, "a replica without an id"));
    };
    if run.removed.contains(version) {
        return Err(Failure::caused(
            FailureKind::Transient,
            Operation::DeleteVersion,
            "what was removed is still there",
        ));
    }
    let lead = &run.task.rules.lead;
    if !run.engine.ledger.count_removal(&lead.id, lead.version_deletes_per_hour, clock::now())? {
        return Ok(false);
    }
    run.removed.insert(version.clone());
    match remove::version(run.engine, run.task, version).await {
        Ok(()) | Err(Failure { kind: FailureKind::Absent, .. }) => {}
        Err(failure) => return Err(failure),
    }
    record(run, Replica { state: State::Removed, ..replica })?;
    Ok(true)
}

/// Parks what is left over; everything else of the task is done.
pub(super) fn check_quota(run: &Run<'_>) -> Result<(), Failure> {
    match run.is_over_quota {
        true => Err(Failure::new(FailureKind::Refused(Reason::VersionDeletesPerHour), Operation::DeleteVersion)),
        false => Ok(()),
    }
}

fn record(run: &mut Run<'_>, replica: Replica) -> Result<(), Failure> {
    run.settle.recorded(&replica)?;
    run.read.shown.replicas.retain(|other| other.source != replica.source);
    run.read.shown.replicas.push(replica);
    Ok(())
}
