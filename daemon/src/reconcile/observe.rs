//! What a plan is made from: the destination, then the source, read in this order, so that
//! "absent" at the destination is older news than the list (protocol rule 3). Where only the newest
//! state counts, a read of the source without a list tells which version is current; its id pins
//! all that is read of it from then on.

pub(super) mod adoption;
pub(super) mod destination;
pub(super) mod head;
pub(crate) mod listing;

use aws_smithy_types::body::SdkBody;
use replicator_core::event::EventKind;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::object::{Timestamp, VersionId};
use replicator_core::plan::{LateVersions, SourceVersion, VersionKind, VersionRef};
use replicator_core::retry::READING_AGE_MAX;
use replicator_core::rule::{History, Rule, Takers, UnmanagedObjects};

use crate::clock::{self, BootInstant};
use crate::ledger::records::{Replica, ReplicaState};
use crate::limit::single_flight::Subscriber;
use crate::reconcile::Context;
use crate::reconcile::is_bulk;
use crate::reconcile::observe::destination::DestinationView;
use crate::reconcile::part_bytes_preferred;
use crate::s3::accounts::error::Side;
use crate::s3::client::{ResponseHead, S3Request};
use crate::task::Task;

/// Both sides of a key.
pub(super) struct Observation {
    pub(super) destination: DestinationView,
    /// All that the source listed, oldest first.
    pub(super) listed: Vec<SourceVersion>,
    /// The key's history in scope, oldest first.
    pub(super) history: Vec<SourceVersion>,
    /// The newest of it, where its body is on the way already.
    pub(super) opened: Option<Box<StartedGet>>,
    /// Since when versions are in scope.
    start: Timestamp,
    /// When it began to be read.
    begun: BootInstant,
}

impl Observation {
    /// Reads both sides; with a reader, which is the first time, with as few requests as will do.
    pub(super) async fn of(cx: Context<'_>, reader: Option<&Subscriber>) -> Result<Self, Failure> {
        let (begun, task) = (BootInstant::now(), cx.task);
        let mut shown = destination::read(cx, reader.is_some() && may_guess(task)).await?;
        let FirstRead {
            mut listed,
            mut opened,
            seen,
        } = first_read(cx, reader, &shown).await?;
        if shown.is_guess && !is_one_write(cx, &listed) {
            shown = destination::read(cx, false).await?;
            (listed, opened) = (list_with(cx, seen.as_ref()).await?, None);
        }
        listed.reverse();
        destination::trace(cx, &mut shown, &listed).await?;
        if cx.late == LateVersions::Append {
            shown.forget_late();
        }
        let start = scope_start(cx, &shown)?;
        let lead = &task.rules.primary;
        let history: Vec<SourceVersion> = listed
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
            destination::rebuild_records(cx, &mut shown, &listed).await?;
        }
        shown.explain_marker(cx, &history)?;
        Ok(Self {
            destination: shown,
            listed,
            history,
            opened,
            start,
            begun,
        })
    }

    /// Reads back every replica that the ledger lacks.
    pub(super) async fn rebuild_records(&mut self, cx: Context<'_>) -> Result<(), Failure> {
        destination::rebuild_records(cx, &mut self.destination, &self.listed).await
    }

    /// Says whether the source listed a version of this id.
    pub(super) fn lists_id(&self, id: &VersionId) -> bool {
        self.listed.iter().any(|entry| entry.version.id == *id)
    }

    /// Says whether the source listed this very version, of whose id there may have been others.
    pub(super) fn lists(&self, version: &VersionRef) -> bool {
        self.listed.iter().any(|entry| entry.version == *version)
    }

    /// Says whether the source listed a version that was created before the rule began.
    pub(super) fn predates_rule(&self, id: &VersionId) -> bool {
        let mut listed = self.listed.iter();
        listed.any(|entry| entry.version.id == *id && entry.version.last_modified < self.start)
    }

    /// Says whether a delete marker of the source may have been removed since it was listed, which
    /// no request of a write detects, as GetObject does for a version.
    pub(super) fn is_too_old_for_markers(&self, rule: &Rule) -> bool {
        rule.version_deletes && self.begun.elapsed() > READING_AGE_MAX
    }
}

/// Says whether a key can do without the entry that hides it at the destination, as long as it has
/// but one version, or one that counts, and no object that is there may be adopted. A marker would hide a replica of that version, or of one
/// that is gone or does not count: either way the version goes on top of it. Only a rule that
/// follows version deletes, or a task that may have written there before, needs the entry.
fn may_guess(task: &Task) -> bool {
    let lead = &task.rules.primary;
    let adopts = lead.unmanaged_objects == UnmanagedObjects::Adopt;
    !lead.version_deletes && !adopts && !task.redelivered
}

/// Says whether all that can have to be done is one write that depends on no entry but on the
/// absence of objects.
fn is_one_write(cx: Context<'_>, listed: &[SourceVersion]) -> bool {
    let [only] = listed else { return false };
    let is_small = only.size_bytes <= part_bytes_preferred(cx.engine, cx.rule());
    only.kind == VersionKind::Object && !only.version.id.is_null() && is_small
}

/// What the source was seen to have at first.
struct FirstRead {
    listed: Vec<SourceVersion>,
    opened: Option<Box<StartedGet>>,
    /// The version that a read without a list named as the current one.
    seen: Option<VersionId>,
}

/// Reads from the source what is current, where that alone counts, and lists it where that does not
/// tell.
async fn first_read(
    cx: Context<'_>,
    reader: Option<&Subscriber>,
    shown: &DestinationView,
) -> Result<FirstRead, Failure> {
    let current = match reader.filter(|_| cx.rule().history == History::Latest) {
        Some(reader) => {
            let may_be_there = adoption::may_adopt(cx.rule(), shown);
            read_latest(cx, reader, may_be_there).await?
        }
        None => None,
    };
    let seen = current
        .as_ref()
        .map(|(current, _)| current.version.id.clone());
    if let Some((current, opened)) = current
        // Another version was written since, or the answer is a cache's: a list decides.
        && cx.event_of(&current.version.id).is_some()
        && is_surely_taken(cx.task, &current)
    {
        return Ok(FirstRead {
            listed: vec![current],
            opened,
            seen,
        });
    }
    let listed = list_with(cx, seen.as_ref()).await?;
    Ok(FirstRead {
        listed,
        opened: None,
        seen,
    })
}

/// Lists the source, and makes sure that the list has what was seen there before: one that lacks it
/// lags. What is newer than that was written meanwhile.
async fn list_with(
    cx: Context<'_>,
    seen: Option<&VersionId>,
) -> Result<Vec<SourceVersion>, Failure> {
    let has_seen = |listed: &[SourceVersion]| {
        seen.is_none_or(|seen| listed.iter().any(|entry| entry.version.id == *seen))
    };
    let listed = list_source(cx).await?;
    if has_seen(&listed) {
        return Ok(listed);
    }
    let lags = || {
        Failure::with_source(
            FailureKind::PreconditionFailed,
            Operation::ListObjectVersions,
            "the list lacks the version that a read names as the current one",
        )
    };
    match listing::of_source(cx).await {
        Ok(all) if has_seen(&all) => Ok(all),
        // In latest mode the newest alone counts, however many others there are.
        Ok(_) => Err(lags()),
        Err(failure) if failure.kind == FailureKind::NeedsOperator(Reason::KeyVersionsTooMany) => {
            Err(lags())
        }
        Err(failure) => Err(failure),
    }
}

/// Lists the source, newest first; in latest mode the newest entry is all that matters, unless it
/// may be out of scope.
async fn list_source(cx: Context<'_>) -> Result<Vec<SourceVersion>, Failure> {
    if cx.rule().history == History::Exact {
        return listing::of_source(cx).await;
    }
    match listing::newest(cx, Side::Source).await? {
        Some(newest) if !is_surely_taken(cx.task, &newest) => listing::of_source(cx).await,
        newest => Ok(newest.into_iter().collect()),
    }
}

/// Says whether an entry is in scope, as far as can be told without its tags.
fn is_surely_taken(task: &Task, entry: &SourceVersion) -> bool {
    match entry.kind {
        VersionKind::Marker => task.rules.primary.admits_marker(),
        VersionKind::Object => {
            let rules = task.rules.iter().map(|rule| &**rule);
            Takers::find(rules, entry.size_bytes, None).is_sure
        }
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
/// was, and it was lost, the oldest replica of the key stands in, unless another tool wrote that. A
/// message widens nothing: any writer of the queue can name any version.
fn scope_start(cx: Context<'_>, shown: &DestinationView) -> Result<Timestamp, Failure> {
    let lead: &Rule = cx.rule();
    if let Some(since) = lead.since {
        return Ok(since);
    }
    let loaded = cx.engine.ledger.rule_start(&lead.id, clock::now())?;
    // S3 states times by the second.
    let loaded = loaded.replace_nanosecond(0).unwrap_or(loaded);
    let oldest_replica = oldest_seen(&shown.replicas);
    let reached = shown
        .known
        .reached
        .as_ref()
        .filter(|version| !shown.is_adopted(version))
        .map(|version| version.last_modified);
    Ok([oldest_replica, reached]
        .into_iter()
        .flatten()
        .fold(loaded, Timestamp::min))
}

/// Returns when the oldest version on record was made, as the source stated. For one that was gone
/// before it was read only a message did, and a message must not draw anything into scope. An
/// adopted replica says nothing of when the rule began.
fn oldest_seen(replicas: &[Replica]) -> Option<Timestamp> {
    let seen = replicas
        .iter()
        .filter(|replica| replica.state != ReplicaState::SourceMissing && !replica.adopted);
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

/// A GET of the current version that was answered, its body on the way.
#[derive(Debug)]
pub(super) struct StartedGet {
    pub(super) version: VersionRef,
    pub(super) head: ResponseHead,
    pub(super) body: SdkBody,
    /// When it was requested.
    pub(super) asked: BootInstant,
}

/// Reads the version that is current, if a read can tell: not behind a delete marker. Of small
/// objects the body is on its way then, unless several destinations take it: it is read once for
/// all of them, and a large one in parts. Nor is it read where its replica may be there already.
async fn read_latest(
    cx: Context<'_>,
    reader: &Subscriber,
    may_be_there: bool,
) -> Result<Option<(SourceVersion, Option<Box<StartedGet>>)>, Failure> {
    let task = cx.task;
    // A filter by tags may leave the current version out, and take one below it.
    let may_be_taken = task.rules.iter().any(|rule| !rule.filter.needs_tags());
    // Where no message names the version that is read, a list has to say that it is the newest.
    let are_puts = task
        .events
        .iter()
        .all(|pending| pending.action == EventKind::Put && pending.version.is_some());
    if !may_be_taken || !are_puts {
        return Ok(None);
    }
    let has_bad_key = task.rules.iter().any(|rule| cx.engine.keys.has_bad(rule));
    let is_read = !is_bulk(cx.engine, task) && reader.is_alone() && !has_bad_key && !may_be_there;
    let ask = || match is_read {
        true => S3Request::get_object(Side::Source, &task.source.bucket, &task.source_key),
        false => cx.head(Side::Source),
    };
    let asked = BootInstant::now();
    let (head, body) = match cx.source.send_for_checksums(ask).await {
        Ok(answer) => answer.split(),
        Err(refusal) if is_trouble(refusal.failure.kind) => return Err(refusal.into()),
        Err(_) => return Ok(None),
    };
    let Some(entry) = entry(&head) else {
        return Ok(None);
    };
    let opened = is_read.then(|| {
        Box::new(StartedGet {
            version: entry.version.clone(),
            head,
            body,
            asked,
        })
    });
    Ok(Some((entry, opened)))
}

/// Says whether a list would meet with the same; what else is refused, a list can tell more of.
fn is_trouble(kind: FailureKind) -> bool {
    matches!(
        kind,
        FailureKind::Transient | FailureKind::Unauthenticated | FailureKind::Throttled
    )
}

/// Reads which version an answer is about; none where it does not say all of it.
fn entry(head: &ResponseHead) -> Option<SourceVersion> {
    let id = VersionId::try_from(head.version_id()?).ok()?;
    let time = Timestamp::from_unix_timestamp(head.last_modified()?.secs()).ok()?;
    let etag = Some(head.etag()?);
    let version = VersionRef::new(id, time, etag.as_ref());
    Some(SourceVersion {
        version,
        kind: VersionKind::Object,
        etag,
        size_bytes: head.content_length()?,
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
