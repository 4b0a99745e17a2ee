//! What a plan is made from: the destination, then the source, read in this order, so that
//! "absent" at the destination is older news than the list (protocol rule 3).

use replicator_core::deadline::READING_AGE_MAX;
use replicator_core::failure::{Failure, FailureKind};
use replicator_core::object::{Timestamp, VersionId};
use replicator_core::operation::Operation;
use replicator_core::plan::{SourceVersion, VersionKind, VersionRef};
use replicator_core::rule::{History, Rule};

use super::destination::{self, DestinationView};
use super::latest::{self, SourceCurrent, StartedGet};
use super::{listing, part_bytes_preferred};
use crate::accounts::error::Side;
use crate::clock::{self, BootInstant};
use crate::engine::Engine;
use crate::ledger::records::{Replica, ReplicaState};
use crate::single_flight::Subscriber;
use crate::task::Task;

/// Both sides of a key.
pub(super) struct Observation {
    pub(super) destination: DestinationView,
    /// Everything the source listed.
    pub(super) listed: Vec<VersionRef>,
    /// The same with contents, oldest first.
    pub(super) past: Vec<SourceVersion>,
    /// The key's history in scope, oldest first.
    pub(super) history: Vec<SourceVersion>,
    /// The newest of it, where its body is on the way already.
    pub(super) opened: Option<Box<StartedGet>>,
    /// When it began to be read.
    begun: BootInstant,
}

impl Observation {
    /// Reads both sides; with a reader, which is the first time, with as few requests as will do.
    pub(super) async fn of(
        engine: &Engine,
        task: &Task,
        reader: Option<&Subscriber>,
    ) -> Result<Self, Failure> {
        let begun = BootInstant::now();
        let mut shown =
            destination::read(engine, task, reader.is_some() && may_guess(task)).await?;
        let FirstLook {
            mut listed,
            mut opened,
            seen,
        } = first_look(engine, task, reader).await?;
        if shown.is_guess && !is_one_write(engine, task, &listed) {
            shown = destination::read(engine, task, false).await?;
            (listed, opened) = (list_with(engine, task, seen.as_ref()).await?, None);
        }
        destination::trace(engine, task, &mut shown, &listed).await?;
        let start = scope_start(engine, task, &shown)?;
        let versions = listed.iter().map(|entry| entry.version.clone()).collect();
        let lead = &task.rules.primary;
        let past: Vec<SourceVersion> = listed.into_iter().rev().collect();
        let history: Vec<SourceVersion> = past
            .iter()
            .filter(|entry| entry.version.last_modified >= start)
            .filter(|entry| entry.kind == VersionKind::Object || lead.admits_marker())
            .cloned()
            .collect();
        let history = if lead.history == History::Latest {
            above_refused(history, &shown)
        } else {
            history
        };
        let is_whole = lead.history == History::Exact;
        if shown.is_hidden_by_unknown_marker() || (is_whole && has_unknown_past(&history, &shown)) {
            destination::rebuild_records(engine, task, &mut shown, &past).await?;
        }
        shown.explain_marker(engine, task, &history)?;
        Ok(Self {
            destination: shown,
            listed: versions,
            past,
            history,
            opened,
            begun,
        })
    }

    /// Says whether a delete marker of the source may have been taken back since it was listed, which no request of a write
    /// tells, as GetObject does of a version.
    pub(super) fn is_too_old_for_markers(&self, rule: &Rule) -> bool {
        rule.version_deletes && self.begun.elapsed() > READING_AGE_MAX
    }
}

/// Says whether a key can do without the entry that hides it at the destination, as long as it has
/// but one version, or one that counts. A marker would hide a replica of that version, or of one
/// that is gone or does not count: either way the version goes on top of it. Only a rule that
/// follows version deletes, or a task that may have written there before, needs the entry.
fn may_guess(task: &Task) -> bool {
    let lead = &task.rules.primary;
    !lead.version_deletes && !task.redelivered
}

/// Says whether all that can have to be done is one write that depends on no entry but on the
/// absence of objects.
fn is_one_write(engine: &Engine, task: &Task, listed: &[SourceVersion]) -> bool {
    let [only] = listed else { return false };
    let is_small = only.size_bytes <= part_bytes_preferred(engine, &task.rules.primary);
    only.kind == VersionKind::Object && !only.version.id.is_null() && is_small
}

/// What the source was seen to have at first.
struct FirstLook {
    listed: Vec<SourceVersion>,
    opened: Option<Box<StartedGet>>,
    /// The version that a read without a list named as the current one.
    seen: Option<VersionId>,
}

/// Reads from the source what is current, where that alone counts, and lists it where that does not
/// tell.
async fn first_look(
    engine: &Engine,
    task: &Task,
    reader: Option<&Subscriber>,
) -> Result<FirstLook, Failure> {
    let current = match reader.filter(|_| task.rules.primary.history == History::Latest) {
        Some(reader) => latest::current(engine, task, reader).await?,
        None => SourceCurrent::Unknown,
    };
    let seen = match current {
        SourceCurrent::Told(current, opened) => {
            let seen = Some(current.version.id.clone());
            if is_surely_taken(task, &current) {
                return Ok(FirstLook {
                    listed: vec![current],
                    opened,
                    seen,
                });
            }
            seen
        }
        SourceCurrent::Untold(id) => Some(id),
        SourceCurrent::Unknown => None,
    };
    let listed = list_with(engine, task, seen.as_ref()).await?;
    Ok(FirstLook {
        listed,
        opened: None,
        seen,
    })
}

/// Lists the source, and makes sure that the list has what was seen there before: one that lacks it
/// lags. What is newer than that was written meanwhile.
async fn list_with(
    engine: &Engine,
    task: &Task,
    seen: Option<&VersionId>,
) -> Result<Vec<SourceVersion>, Failure> {
    let listed = list_source(engine, task).await?;
    let Some(seen) = seen else { return Ok(listed) };
    let has_seen = |listed: &[SourceVersion]| listed.iter().any(|entry| entry.version.id == *seen);
    if has_seen(&listed) {
        return Ok(listed);
    }
    let all = listing::of_source(engine, task).await?;
    if has_seen(&all) {
        return Ok(all);
    }
    let lags = "the list lacks the version that a read names as the current one";
    Err(Failure::with_source(
        FailureKind::PreconditionFailed,
        Operation::ListObjectVersions,
        lags,
    ))
}

/// Lists the source, newest first; in latest mode the newest entry is all that matters, unless it
/// may be out of scope.
async fn list_source(engine: &Engine, task: &Task) -> Result<Vec<SourceVersion>, Failure> {
    let (source, bucket, key) = (
        engine.access_to(&task.source)?,
        &task.source.bucket,
        &task.source_key,
    );
    if task.rules.primary.history == History::Exact {
        return listing::of_source(engine, task).await;
    }
    match listing::newest(source, Side::Source, bucket, key).await? {
        Some(newest) if !is_surely_taken(task, &newest) => listing::of_source(engine, task).await,
        newest => Ok(newest.into_iter().collect()),
    }
}

/// Says whether an entry is in scope, as far as can be told without its tags.
fn is_surely_taken(task: &Task, entry: &SourceVersion) -> bool {
    let takes =
        |rule: &Rule| rule.filter.tags.is_empty() && rule.filter.admits_size(entry.size_bytes);
    match entry.kind {
        VersionKind::Marker => task.rules.primary.admits_marker(),
        VersionKind::Object => task.rules.iter().any(|rule| takes(rule)),
    }
}

/// Leaves out what is below a version that could not be replicated: it is the newest state all the
/// same.
fn above_refused(mut history: Vec<SourceVersion>, shown: &DestinationView) -> Vec<SourceVersion> {
    let is_refused = |entry: &SourceVersion| {
        let refused =
            |replica: &Replica| replica.state == ReplicaState::Skipped && replica.reason.is_some();
        shown
            .replicas
            .iter()
            .any(|replica| replica.source == entry.version && refused(replica))
    };
    match history.iter().rposition(is_refused) {
        Some(at) => history.split_off(at + 1),
        None => history,
    }
}

/// Versions in scope are those created since the rule began. When only the ledger knew when that
/// was, and it was lost, the oldest replica of the key tells. What a message says widens nothing:
/// any writer of the queue can name any version.
fn scope_start(
    engine: &Engine,
    task: &Task,
    shown: &DestinationView,
) -> Result<Timestamp, Failure> {
    let lead: &Rule = &task.rules.primary;
    if let Some(since) = lead.since {
        return Ok(since);
    }
    let loaded = engine.ledger.rule_start(&lead.id, clock::now())?;
    // S3 states times by the second.
    let loaded = loaded.replace_nanosecond(0).unwrap_or(loaded);
    let oldest_replica = oldest_seen(&shown.replicas);
    let reached = shown
        .known
        .reached
        .as_ref()
        .map(|version| version.last_modified);
    Ok([oldest_replica, reached]
        .into_iter()
        .flatten()
        .fold(loaded, Timestamp::min))
}

/// Returns when the oldest version on record was made, as the source told. Of one that was gone
/// before it was read only a message told, and a message must not draw anything into scope.
fn oldest_seen(replicas: &[Replica]) -> Option<Timestamp> {
    let seen = replicas
        .iter()
        .filter(|replica| replica.state != ReplicaState::SourceMissing);
    seen.map(|replica| replica.source.last_modified).min()
}

/// Says whether the source holds versions older than what was reached that are not in the ledger:
/// it was lost, or another daemon wrote them.
fn has_unknown_past(history: &[SourceVersion], shown: &DestinationView) -> bool {
    let known = &shown.known;
    let Some(reached) = &known.reached else {
        return false;
    };
    history.iter().any(|entry| {
        entry.kind == VersionKind::Object
            && entry.version.last_modified <= reached.last_modified
            && entry.version != *reached
            && !known.replicated.contains(&entry.version)
            && !known.skipped.contains(&entry.version)
    })
}

#[cfg(test)]
mod tests {
    use time::macros::datetime;

    use super::*;

    #[test]
    fn what_only_a_message_told_of_does_not_widen_the_scope() {
        let replica = |id, state, last_modified| {
            let source = VersionRef::new(VersionId::try_from(id).unwrap(), last_modified, None);
            Replica::new(source, VersionKind::Object, state)
        };
        let told = replica(
            "told",
            ReplicaState::SourceMissing,
            datetime!(2007-01-01 0:00 UTC),
        );
        let seen = replica(
            "seen",
            ReplicaState::Replicated,
            datetime!(2026-11-23 10:00 UTC),
        );
        assert_eq!(
            oldest_seen(&[told.clone(), seen]),
            Some(datetime!(2026-11-23 10:00 UTC))
        );
        assert_eq!(oldest_seen(&[told]), None);
    }
}
