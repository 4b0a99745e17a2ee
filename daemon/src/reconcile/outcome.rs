//! What becomes of each event of a key, once the key itself is up to date; and what is written down
//! when a version is settled: the ledger's record, the metrics, one line in the log.

use replicator_core::event::EventKind;
use replicator_core::failure::{Failure, Operation, Reason};
use replicator_core::object::{Timestamp, VersionId};
use replicator_core::plan::{Current, DestinationState, SourceVersion, VersionKind, VersionRef};
use replicator_core::rule::{History, Mismatch, Rule};
use tracing::{error, info};

use super::observe::Observation;
use crate::clock;
use crate::ledger::records::{ParkedTask, Replica, ReplicaState};
use crate::metrics::Outcome;
use crate::reconcile::Context;
use crate::reconcile::Reconciler;
use crate::reconcile::execute::delete;
use crate::reconcile::object::tags::Followed;
use crate::reconcile::transient;
use crate::task::{PendingEvent, Report, Task};

/// Answers duplicates from the ledger, without a request. Not when a message was delivered before:
/// then a write may have been lost on its way, and only the destination can tell (protocol rule 4).
pub(super) fn answered_by_ledger(cx: Context<'_>) -> Result<Option<Report>, Failure> {
    let task = cx.task;
    let plain =
        |pending: &PendingEvent| matches!(pending.action, EventKind::Put | EventKind::DeleteMarker);
    if task.redelivered || !task.events.iter().all(plain) {
        return Ok(None);
    }
    let replicas = cx.engine.ledger.replicas_of(&task.target)?;
    let known = |pending: &PendingEvent| {
        find_record(&replicas, pending.version.as_ref(), &[])
            .map(|replica| outcome_of(replica.state))
    };
    let outcomes: Option<Vec<Outcome>> = task.events.iter().map(known).collect();
    let Some(outcomes) = outcomes else {
        return Ok(None);
    };
    for (pending, outcome) in task.events.iter().zip(&outcomes) {
        cx.report_event(pending.action, *outcome);
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
    appends || (!is_left_over && run.cx.task.events.iter().any(asked))
}

/// Does what is left to do for each event and says what became of it.
pub(super) async fn answer_events(run: &mut Reconciler<'_>) -> Result<Vec<Outcome>, Failure> {
    let mut outcomes = Vec::with_capacity(run.cx.task.events.len());
    for pending in &run.cx.task.events {
        let creates = matches!(pending.action, EventKind::Put | EventKind::DeleteMarker);
        if let Some(outcome) = reported(run, pending).filter(|_| creates) {
            outcomes.push(outcome);
            continue;
        }
        if run.is_over_quota && pending.action == EventKind::VersionDelete {
            outcomes.push(Outcome::Parked);
            continue;
        }
        let outcome = match pending.action {
            EventKind::Put | EventKind::DeleteMarker => answer_write(run, pending).await?,
            EventKind::Tags => answer_tags(run, pending).await?,
            EventKind::VersionDelete => answer_delete(run, pending),
            // The replica's owner decides on its list; locks are given with the write itself.
            EventKind::Acl | EventKind::Lock => Outcome::Skipped,
            // What it asks for is counted version by version.
            EventKind::RewriteHistory => Outcome::Duplicate,
        };
        if let Some(cause) = mismatch_of(run, pending).filter(|_| outcome == Outcome::Skipped) {
            run.cx.record_unmatched(&run.cx.rule().id, cause);
        }
        run.cx.report_event(pending.action, outcome);
        outcomes.push(outcome);
    }
    Ok(outcomes)
}

/// Says why the leading rule has nothing to do for an event, if that is for the rule to say.
fn mismatch_of(run: &Reconciler<'_>, pending: &PendingEvent) -> Option<Mismatch> {
    let rule = run.cx.rule();
    match pending.action {
        EventKind::DeleteMarker if !rule.admits_marker() => Some(Mismatch::DeleteMarker),
        EventKind::Put | EventKind::DeleteMarker | EventKind::Tags => {
            let id = pending.version.as_ref()?;
            run.observed.predates_rule(id).then_some(Mismatch::Since)
        }
        EventKind::VersionDelete => (!rule.version_deletes).then_some(Mismatch::VersionDelete),
        EventKind::Acl => Some(Mismatch::Acl),
        EventKind::Lock => Some(Mismatch::Lock),
        EventKind::RewriteHistory => None,
    }
}

/// Returns what this very run has already reported of the version that an event is about.
fn reported(run: &Reconciler<'_>, pending: &PendingEvent) -> Option<Outcome> {
    let id = pending.version.as_ref()?;
    run.reported
        .iter()
        .find(|(version, _)| version.id == *id)
        .map(|(_, outcome)| *outcome)
}

async fn answer_write(
    run: &mut Reconciler<'_>,
    pending: &PendingEvent,
) -> Result<Outcome, Failure> {
    let Some(id) = &pending.version else {
        return Ok(answer_unversioned(run, pending));
    };
    if let Some(replica) = find_record(
        &run.observed.destination.replicas,
        Some(id),
        &run.observed.listed,
    ) {
        return Ok(outcome_of(replica.state));
    }
    confirm_loss(run, id).await?;
    let newest = [run.observed.listed.last(), run.observed.history.last()];
    let is_newest = newest
        .into_iter()
        .flatten()
        .any(|newest| newest.version.id == *id);
    if run.cx.rule().history == History::Latest && !is_newest {
        return Ok(Outcome::Superseded);
    }
    if run.observed.lists_id(id) {
        return Ok(Outcome::Skipped);
    }
    record_missing(run, pending, id)
}

/// Answers an event that names no version. S3 tells of a delete in this way where the source bucket
/// keeps no versions: then its list has nothing that a marker could be the replica of, and what was
/// deleted there stays at the destination.
fn answer_unversioned(run: &Reconciler<'_>, pending: &PendingEvent) -> Outcome {
    let Context { engine, task, .. } = run.cx;
    let shown = &run.observed.destination.known.current;
    let is_lost = pending.action == EventKind::DeleteMarker
        && run.cx.rule().admits_marker()
        && run.observed.listed.is_empty()
        && matches!(shown, Current::Object { .. });
    if !is_lost {
        return Outcome::Duplicate;
    }
    let (rule, reason) = (&run.cx.rule().id, Reason::SrcBucketUnversioned);
    run.cx.count_failed(reason);
    engine.activity.record_skipped(rule, reason);
    if !engine.unversioned_sources.seen_recently(&task.source) {
        engine.unversioned_sources.mark_seen(&task.source);
        let (bucket, key) = (task.source.bucket.as_str(), task.source_key.as_str());
        error!(
            rule,
            bucket,
            key,
            reason = reason.as_str(),
            "a delete is not replicated: the source bucket keeps no versions"
        );
    }
    Outcome::Skipped
}

/// Makes sure that a version is gone which the list lacks. S3 lists in the order of keys; a server
/// that fills a page before it sorts it can leave out a key whose name others begin with, without
/// any sign of that in its answer.
async fn confirm_loss(run: &Reconciler<'_>, id: &VersionId) -> Result<(), Failure> {
    let is_passed_over =
        run.cx.rule().history == History::Latest && !run.observed.listed.is_empty();
    if run.cx.source.is_aws
        || run.observed.lists_id(id)
        || is_passed_over
        || !delete::source_has(run.cx, id).await?
    {
        return Ok(());
    }
    Err(transient(
        Operation::ListObjectVersions,
        "the list lacks a version that is there",
    ))
}

/// Records a version that the source lost before it was read.
fn record_missing(
    run: &mut Reconciler<'_>,
    pending: &PendingEvent,
    id: &VersionId,
) -> Result<Outcome, Failure> {
    let kind = if pending.action == EventKind::Put {
        VersionKind::Object
    } else {
        VersionKind::Marker
    };
    if kind == VersionKind::Marker && !run.cx.rule().admits_marker() {
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
    run.cx.record(&replica)?;
    run.cx.count_failed(Reason::SrcVersionNotFound);
    let activity = &run.cx.engine.activity;
    activity.record_skipped(&run.cx.rule().id, Reason::SrcVersionNotFound);
    run.observed.destination.replicas.push(replica);
    Ok(Outcome::Gone)
}

/// Gives a replica the tags its source has now, by the replica's exact version.
async fn answer_tags(run: &mut Reconciler<'_>, pending: &PendingEvent) -> Result<Outcome, Failure> {
    let Some(id) = &pending.version else {
        return Ok(Outcome::Skipped);
    };
    let Some(replica_version) = replica_version(run, id).await? else {
        return Ok(Outcome::Skipped);
    };
    Ok(match run.follow_tags(id, &replica_version, None).await? {
        Followed::Done => Outcome::Replicated,
        Followed::SourceGone => Outcome::Gone,
        Followed::ReplicaGone => replica_missing(run),
    })
}

/// The replica was removed at the destination, by its lifecycle or a person: nothing to change.
fn replica_missing(run: &Reconciler<'_>) -> Outcome {
    run.cx.count_failed(Reason::DstVersionNotFound);
    Outcome::Skipped
}

/// Says what became of a version delete, which was carried out before.
fn answer_delete(run: &Reconciler<'_>, pending: &PendingEvent) -> Outcome {
    let Some(id) = &pending.version else {
        return Outcome::Skipped;
    };
    let removed = |replica: &Replica| replica.is_of(id) && replica.state == ReplicaState::Deleted;
    match run.cx.rule().version_deletes && run.observed.destination.replicas.iter().any(removed) {
        true => Outcome::Replicated,
        false => Outcome::Skipped,
    }
}

/// Finds the destination's id of a replica, in the ledger or in the stamps.
async fn replica_version(
    run: &mut Reconciler<'_>,
    id: &VersionId,
) -> Result<Option<String>, Failure> {
    let find = |observed: &Observation| {
        let replica = find_record(&observed.destination.replicas, Some(id), &observed.listed)?;
        Some((replica.state, replica.destination_version.clone()))
    };
    match find(&run.observed) {
        Some((ReplicaState::Replicated, version)) => return Ok(version),
        Some((ReplicaState::Deleted, _)) => return Ok(None),
        // Another daemon may have written what is only on record here as lost or left out.
        Some(_) | None => run.observed.rebuild_records(run.cx).await?,
    }
    Ok(find(&run.observed).and_then(|(_, version)| version))
}

/// Finds what is on record of a version. `null` is overwritten in place, so that name alone means
/// nothing: the one that the source lists now is meant.
fn find_record<'a>(
    replicas: &'a [Replica],
    id: Option<&VersionId>,
    listed: &[SourceVersion],
) -> Option<&'a Replica> {
    let id = id?;
    if !id.is_null() {
        return replicas.iter().rfind(|replica| replica.is_of(id));
    }
    let current = listed.iter().find(|entry| entry.version.id.is_null())?;
    replicas
        .iter()
        .rfind(|replica| replica.source == current.version)
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

impl Context<'_> {
    /// Records a replica that is at the destination.
    pub(super) fn record_written(
        &self,
        replica: &Replica,
        rule: &Rule,
        bytes: u64,
    ) -> Result<(), Failure> {
        self.record(replica)?;
        self.engine.watchdog.record_key_progress(&self.task.target);
        let operation = operation(replica.kind);
        let seconds = clock::seconds_since(self.event_time(replica));
        let metrics = &self.engine.metrics;
        self.engine.activity.record_replica(&rule.id);
        metrics.count_bytes(&rule.id, bytes);
        metrics.latency(&rule.id, operation.as_str(), seconds);
        self.count(&rule.id, operation, Outcome::Replicated);
        info!(
            rule = rule.id,
            destination = self.destination_bucket(),
            key = self.task.target.key.as_str(),
            operation = operation.as_str(),
            outcome = Outcome::Replicated.as_str(),
            version = replica.source.id.as_str(),
            replica = replica.destination_version.as_deref().unwrap_or("none"),
            bytes,
            seconds = (seconds * 1e3).round() / 1e3,
            "settled"
        );
        Ok(())
    }

    /// Records something that needed no write.
    pub(super) fn record(&self, replica: &Replica) -> Result<(), Failure> {
        self.engine.ledger.put_replica(&self.task.target, replica)
    }

    /// Records a version that gets no replica, and under which rule.
    pub(super) fn record_skipped(&self, replica: &Replica, rule: &str) -> Result<Outcome, Failure> {
        self.record(replica)?;
        let outcome = match replica.state {
            ReplicaState::SourceMissing => Outcome::Gone,
            ReplicaState::Superseded => Outcome::Superseded,
            ReplicaState::Replicated
            | ReplicaState::Coalesced
            | ReplicaState::Skipped
            | ReplicaState::Deleted => Outcome::Skipped,
        };
        let operation = operation(replica.kind);
        if let Some(reason) = replica.reason {
            self.engine.metrics.count_failed(rule, reason.as_str());
            self.engine.activity.record_skipped(rule, reason);
        }
        self.count(rule, operation, outcome);
        info!(
            rule,
            destination = self.destination_bucket(),
            key = self.task.target.key.as_str(),
            operation = operation.as_str(),
            outcome = outcome.as_str(),
            version = replica.source.id.as_str(),
            reason = replica.reason.map_or("NoRuleTakesIt", Reason::as_str),
            "settled"
        );
        Ok(outcome)
    }

    /// Records what became of an event that wrote no version.
    fn report_event(&self, action: EventKind, outcome: Outcome) {
        let rule = &self.rule().id;
        self.count(rule, action, outcome);
        info!(
            rule,
            destination = self.destination_bucket(),
            key = self.task.target.key.as_str(),
            operation = action.as_str(),
            outcome = outcome.as_str(),
            "settled"
        );
    }

    /// Returns when it happened. A message is no proof: no event is older than the version that it
    /// announces.
    fn event_time(&self, replica: &Replica) -> Timestamp {
        let made = replica.source.last_modified;
        self.event_of(&replica.source.id)
            .and_then(|event| event.time)
            .map_or(made, |stated| stated.max(made))
    }

    /// Counts something of the task that no rule takes, and why this one does not.
    pub(super) fn record_unmatched(&self, rule: &str, cause: Mismatch) {
        let activity = &self.engine.activity;
        activity.record_unmatched(rule, cause, &self.task.source_key);
    }

    /// Counts a failure under the leading rule.
    pub(super) fn count_failed(&self, reason: Reason) {
        let metrics = &self.engine.metrics;
        metrics.count_failed(&self.rule().id, reason.as_str());
    }

    fn count(&self, rule: &str, operation: EventKind, outcome: Outcome) {
        let bucket = self.destination_bucket();
        self.engine
            .metrics
            .count_operation(rule, bucket, operation.as_str(), outcome);
    }

    fn destination_bucket(&self) -> &str {
        self.task.target.destination.bucket.as_str()
    }
}

/// Names what brings an entry of this kind into being.
fn operation(kind: VersionKind) -> EventKind {
    match kind {
        VersionKind::Object => EventKind::Put,
        VersionKind::Marker => EventKind::DeleteMarker,
    }
}
