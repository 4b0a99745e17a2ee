//! The planner's steps, each done and written down: a replica, a delete marker, or the reason why
//! there is none.

use std::sync::Arc;

use replicator_core::failure::{Action, Failure, Reason};
use replicator_core::object::ETag;
use replicator_core::operation::Operation;
use replicator_core::plan::{Current, Precondition, SourceVersion};
use replicator_core::rule::{History, Rule};

use super::attempt::Extras;
use super::copy::{CopyJob, Written};
use super::{
    AttemptState, Progress, Reconciler, delete, multipart, part_bytes_preferred, put, select_rule,
};
use crate::accounts::capabilities::{Feature, TagsGiven};
use crate::clock::BootInstant;
use crate::failpoint;
use crate::ledger::records::{CurrentEntry, Replica, ReplicaState};
use crate::metrics::Outcome;

impl Reconciler<'_> {
    pub(super) async fn mark(
        &mut self,
        source: &SourceVersion,
        memory: &mut AttemptState,
    ) -> Result<Progress, Failure> {
        let asked = memory.ask(
            self.destination,
            Feature::ConditionalDelete,
            &self.observed.destination.snapshot.entry,
        );
        let (sent, conditional) = (BootInstant::now(), asked.extras.conditional);
        let marked = delete::mark(
            self.engine,
            self.task,
            source,
            (&self.observed.destination.snapshot, conditional),
        )
        .await;
        let version = memory.learn(self.destination, asked, marked)?;
        self.engine
            .check_written(
                &self.task.target.destination,
                Operation::DeleteObject,
                version.as_deref(),
            )
            .await?;
        let replica = self.written(source, version, None);
        self.commit(&replica, &Arc::clone(&self.task.rules.primary), 0)
            .await?;
        memory.mark_recorded();
        self.wrote(&replica, sent);
        self.record(replica, Current::Marker);
        Ok(Progress::Done)
    }

    /// Copies a version under the first rule that takes it, or records why none does.
    pub(super) async fn put(
        &mut self,
        version: &SourceVersion,
        condition: Precondition,
        memory: &mut AttemptState,
    ) -> Result<Progress, Failure> {
        let choice = select_rule::rule_for(self.engine, self.task, version).await;
        let Some(select_rule::SelectedRule { rule, tags }) =
            self.or_skip(version, choice).await?.flatten()
        else {
            return self.leave_out(version);
        };
        let opened = self
            .observed
            .opened
            .take()
            .filter(|opened| opened.version == version.version);
        let mut copy = CopyJob {
            engine: self.engine,
            task: self.task,
            reader: self.reader,
            source: self.source,
            destination: self.destination,
            rule: Arc::clone(&rule),
            version,
            condition: &condition,
            basis: &self.observed.destination.snapshot,
            tags,
            extras: Extras::default(),
        };
        let part_bytes = self.part_bytes(&copy)?;
        let feature = if part_bytes.is_some() {
            Feature::ConditionalComplete
        } else {
            Feature::ConditionalPut
        };
        let asked = memory.ask(
            self.destination,
            feature,
            &self.observed.destination.snapshot.entry,
        );
        copy.extras = asked.extras;
        let written = match part_bytes {
            Some(part_bytes) => multipart::copy(&copy, part_bytes).await,
            None => put::copy(&copy, opened).await,
        };
        let written = memory
            .learn(self.destination, asked, written)
            .map_err(|failure| failure.under(&rule.id));
        let Some(Written {
            destination_version,
            etag,
            sent,
            tags,
            unproved,
            ..
        }) = self.or_skip(version, written).await?
        else {
            return Ok(self.after_refusal());
        };
        self.engine
            .check_written(
                &self.task.target.destination,
                Operation::PutObject,
                destination_version.as_deref(),
            )
            .await?;
        let given = if part_bytes.is_some() {
            TagsGiven::WithUpload
        } else {
            TagsGiven::WithPut
        };
        self.ensure_tags(
            &version.version.id,
            destination_version.as_deref(),
            (&tags, given),
        )
        .await?;
        self.pending = None;
        let replica = self.written(version, destination_version, Some(etag.clone()));
        self.commit(&replica, &rule, version.size_bytes).await?;
        memory.mark_recorded();
        if let Some(cause) = unproved {
            self.engine.metrics.unproved(&rule.id, cause);
        }
        self.wrote(&replica, sent);
        self.record(
            replica,
            Current::Object {
                etag,
                replica_of: Some(version.version.clone()),
            },
        );
        Ok(Progress::Done)
    }

    /// Returns the size of the parts in which a version goes, if it goes in parts: those of an
    /// upload that was begun, whatever would be preferred by now. Beside one that may appear
    /// nothing is written whole (protocol rule 5).
    fn part_bytes(&self, copy: &CopyJob<'_>) -> Result<Option<u64>, Failure> {
        let preferred = part_bytes_preferred(self.engine, &copy.rule);
        let is_large = copy.version.size_bytes > preferred;
        let part_bytes = multipart::begun(copy)?.or(is_large.then_some(preferred));
        if part_bytes.is_none() {
            self.awaits_upload(None)?;
        }
        Ok(part_bytes)
    }

    /// In latest mode nothing older stands in for what could not be replicated: that shows in a
    /// fresh reading.
    fn after_refusal(&self) -> Progress {
        match self.task.rules.primary.history {
            History::Exact => Progress::Done,
            History::Latest => Progress::Reread,
        }
    }

    /// Goes on without a version that no rule takes: that is no failure.
    fn leave_out(&mut self, version: &SourceVersion) -> Result<Progress, Failure> {
        if !self
            .observed
            .destination
            .known
            .skipped
            .contains(&version.version)
        {
            self.skip_version(
                version,
                ReplicaState::Skipped,
                None,
                &self.task.rules.primary.id,
            )?;
        }
        Ok(Progress::Done)
    }

    /// Writes down what was written.
    async fn commit(&mut self, replica: &Replica, rule: &Rule, bytes: u64) -> Result<(), Failure> {
        let settle = &mut self.settle;
        self.engine
            .failpoints
            .around(failpoint::Step::Commit, async {
                settle.wrote(replica, rule, bytes)
            })
            .await
    }

    /// A version that is gone or cannot be replicated is recorded; the key goes on without it.
    async fn or_skip<T>(
        &mut self,
        version: &SourceVersion,
        result: Result<T, Failure>,
    ) -> Result<Option<T>, Failure> {
        let failure = match result {
            Ok(value) => return Ok(Some(value)),
            Err(failure) => failure,
        };
        let rule = failure
            .rule
            .as_deref()
            .unwrap_or(&self.task.rules.primary.id);
        match failure.next_action() {
            Action::Gone => {
                delete::confirm_gone(self.engine, self.task, &version.version.id, &failure).await?;
                self.skip_version(
                    version,
                    ReplicaState::SourceMissing,
                    Some(Reason::SrcVersionNotFound),
                    rule,
                )?;
            }
            Action::Unsupported(reason) => {
                self.skip_version(version, ReplicaState::Skipped, Some(reason), rule)?;
            }
            Action::Replan
            | Action::Wait(_)
            | Action::WaitThenReplan
            | Action::Retry
            | Action::Throttle
            | Action::Park(_) => {
                return Err(failure);
            }
        }
        Ok(None)
    }

    pub(super) fn skip_version(
        &mut self,
        version: &SourceVersion,
        state: ReplicaState,
        reason: Option<Reason>,
        rule: &str,
    ) -> Result<(), Failure> {
        let replica = Replica {
            reason,
            ..replica_record(version, state)
        };
        let outcome = self.settle.skipped(&replica, rule)?;
        self.told.push((version.version.clone(), outcome));
        self.observed
            .destination
            .known
            .record_skipped(&version.version);
        self.observed.destination.replicas.push(replica);
        Ok(())
    }

    /// Returns the record of what was just written.
    fn written(
        &self,
        version: &SourceVersion,
        destination_version: Option<String>,
        etag: Option<ETag>,
    ) -> Replica {
        let written = self.observed.destination.snapshot.now_or_after();
        Replica {
            destination_version,
            etag,
            written,
            ..replica_record(version, ReplicaState::Replicated)
        }
    }

    /// From now on this write is the basis of the next.
    fn wrote(&mut self, replica: &Replica, sent: BootInstant) {
        if let Some(entry) = entry_of(replica) {
            self.observed.destination.snapshot =
                self.observed.destination.snapshot.written(entry, sent);
        }
    }

    pub(super) fn record(&mut self, replica: Replica, top: Current) {
        if replica.state == ReplicaState::Replicated {
            self.told
                .push((replica.source.clone(), Outcome::Replicated));
        }
        match replica.state {
            ReplicaState::Coalesced => self
                .observed
                .destination
                .known
                .record_coalesced(&replica.source),
            ReplicaState::Replicated
            | ReplicaState::Skipped
            | ReplicaState::Superseded
            | ReplicaState::SourceMissing
            | ReplicaState::Deleted => {
                self.observed
                    .destination
                    .known
                    .advance(&replica.source, top);
            }
        }
        self.observed.destination.replicas.push(replica);
    }
}

pub(super) fn replica_record(version: &SourceVersion, state: ReplicaState) -> Replica {
    Replica::new(version.version.clone(), version.kind, state)
}

/// Returns the entry that a write made current; none where nothing was written.
fn entry_of(replica: &Replica) -> Option<CurrentEntry> {
    let version = replica.destination_version.clone();
    match (replica.state, &replica.etag) {
        (ReplicaState::Replicated, Some(etag)) => Some(CurrentEntry::Object {
            version,
            etag: etag.clone(),
        }),
        (ReplicaState::Replicated, None) => version.map(CurrentEntry::Marker),
        (
            ReplicaState::Coalesced
            | ReplicaState::Skipped
            | ReplicaState::Superseded
            | ReplicaState::SourceMissing
            | ReplicaState::Deleted,
            _,
        ) => None,
    }
}
