//! The planner's steps, each done and written down: a replica, a delete marker, or the reason why
//! there is none.

pub(super) mod copy;
pub(super) mod delete;
pub(super) mod multipart;
mod uploading;
pub(super) mod uploads;

use std::sync::Arc;
use std::time::Duration;

use replicator_core::failure::{Action, Failure, FailureKind, Operation, Reason};
use replicator_core::object::ETag;
use replicator_core::parts::Part;
use replicator_core::plan::{Current, Precondition, SourceVersion, VersionKind};
use replicator_core::rule::{History, Mismatch, Rule};

use super::attempt::Extras;
use super::origin::{self, Refusals, SelectedRule};
use crate::clock::BootInstant;
use crate::failpoint;
use crate::ledger::records::{CurrentEntry, Replica, ReplicaState};
use crate::metrics::Outcome;
use crate::reconcile::AttemptState;
use crate::reconcile::Progress;
use crate::reconcile::Reconciler;
use crate::reconcile::changed;
use crate::reconcile::execute::copy::{CopyJob, Written, copy_whole};
use crate::reconcile::object::tags::Tags;
use crate::reconcile::part_bytes_preferred;
use crate::s3::accounts::capabilities::{Feature, TagsGiven};

impl Reconciler<'_> {
    /// Hides the current object under a delete marker, and records it.
    pub(super) async fn mark(
        &mut self,
        source: &SourceVersion,
        state: &mut AttemptState,
    ) -> Result<(), Failure> {
        let cx = self.cx;
        let snapshot = &self.observed.destination.snapshot;
        let asked = state.ask(cx.destination, Feature::ConditionalDelete, &snapshot.entry);
        let (sent, conditional) = (BootInstant::now(), asked.extras.conditional);
        let marked = delete::put_marker(cx, source, (snapshot, conditional)).await;
        let version = state.learn(cx.destination, asked, marked)?;
        cx.engine
            .check_written(
                &cx.task.target.destination,
                Operation::DeleteObject,
                version.as_deref(),
            )
            .await?;
        let replica = self.replica_of(source, version, None);
        self.commit(replica, cx.rule(), 0, sent).await?;
        state.is_unsure = false;
        Ok(())
    }

    /// Copies a version under the first rule that takes it, or records why none does.
    pub(super) async fn put(
        &mut self,
        version: &SourceVersion,
        condition: Precondition,
        state: &mut AttemptState,
    ) -> Result<Progress, Failure> {
        let choice = origin::rule_for(self.cx, version).await;
        let SelectedRule { rule, tags } = match self.or_skip(version, choice).await? {
            Some(Ok(selected)) => selected,
            Some(Err(refusals)) => return self.leave_out(version, &refusals),
            None => return Ok(Progress::Done),
        };
        if let Some(wait) = self.wait_before_whole(version, &rule)? {
            return Ok(Progress::Wait(wait));
        }
        let written = self
            .copy(version, (&rule, tags, &condition), state)
            .await
            .map_err(|failure| failure.under(&rule.id));
        if let (Some(upload), Err(failure)) = (&self.unconfirmed, &written)
            && failure.kind == FailureKind::OutcomeUnknown
            && failure.dependency.is_none()
        {
            // No request failed: it may appear yet, and cannot be completed as it was.
            return Ok(Progress::Wait(upload.wait()));
        }
        let Some(written) = self.or_skip(version, written).await? else {
            return Ok(self.after_refusal());
        };
        self.cx
            .engine
            .check_written(
                &self.cx.task.target.destination,
                Operation::PutObject,
                written.destination_version.as_deref(),
            )
            .await?;
        let given = if written.operation == Operation::CompleteMultipartUpload {
            TagsGiven::WithUpload
        } else {
            TagsGiven::WithPut
        };
        self.ensure_tags(
            &version.version.id,
            written.destination_version.as_deref(),
            (&written.tags, given),
        )
        .await?;
        self.unconfirmed = None;
        let replica = self.replica_of(version, written.destination_version, Some(written.etag));
        self.commit(replica, &rule, version.size_bytes, written.sent)
            .await?;
        state.is_unsure = false;
        if let Some(cause) = written.unproved {
            self.cx.engine.metrics.unproved(&rule.id, cause);
        }
        Ok(Progress::Done)
    }

    /// Says whether what is current can be written once more: it may have been archived since, or
    /// be out of its rule. What only stands in the way for now is a failure, before anything is
    /// written.
    pub(super) async fn can_put_again(&self, newest: &SourceVersion) -> Result<bool, Failure> {
        if newest.kind == VersionKind::Marker {
            return Ok(true);
        }
        let Ok(SelectedRule { rule, tags }) = origin::rule_for(self.cx, newest).await? else {
            return Ok(false);
        };
        let copy = self.copy_job(newest, (&rule, tags, &Precondition::Absent));
        match try_reading(&copy).await {
            Ok(()) => Ok(true),
            Err(failure) => match failure.next_action() {
                Action::Unsupported(_) => Ok(false),
                Action::Gone => Err(changed(failure.operation)),
                Action::Replan
                | Action::WaitThenReplan
                | Action::Retry
                | Action::Throttle
                | Action::Park(_) => Err(failure.under(&rule.id)),
            },
        }
    }

    fn copy_job<'j>(
        &'j self,
        version: &'j SourceVersion,
        (rule, tags, condition): (&'j Arc<Rule>, Option<Tags>, &'j Precondition),
    ) -> CopyJob<'j> {
        CopyJob {
            cx: self.cx,
            reader: self.reader,
            rule,
            version,
            condition,
            snapshot: &self.observed.destination.snapshot,
            tags,
            extras: Extras::default(),
        }
    }

    async fn copy(
        &mut self,
        version: &SourceVersion,
        how: (&Arc<Rule>, Option<Tags>, &Precondition),
        state: &mut AttemptState,
    ) -> Result<Written, Failure> {
        let opened = self
            .observed
            .opened
            .take()
            .filter(|opened| opened.version == version.version);
        let rule = how.0;
        let mut copy = self.copy_job(version, how);
        let part_bytes = self.part_bytes(version, rule)?;
        let feature = match part_bytes {
            Some(_) => Feature::ConditionalComplete,
            None => Feature::ConditionalPut,
        };
        let asked = state.ask(self.cx.destination, feature, &copy.snapshot.entry);
        copy.extras = asked.extras;
        let written = match part_bytes {
            Some(part_bytes) => multipart::copy(&copy, part_bytes).await,
            None => copy_whole(&copy, opened).await,
        };
        if written.as_ref().is_err_and(is_for_key) {
            self.cx.engine.keys.suspect();
        }
        state.learn(self.cx.destination, asked, written)
    }

    /// Returns the size of the parts in which a version goes, if it goes in parts: those of an
    /// upload that was begun, whatever would be preferred by now.
    fn part_bytes(&self, version: &SourceVersion, rule: &Rule) -> Result<Option<u64>, Failure> {
        let preferred = part_bytes_preferred(self.cx.engine, rule);
        let is_large = version.size_bytes > preferred;
        Ok(multipart::begun(self.cx, version)?.or(is_large.then_some(preferred)))
    }

    /// Returns how long a version has to wait that would go whole: beside an upload that may appear
    /// yet nothing is written but its completion.
    fn wait_before_whole(
        &self,
        version: &SourceVersion,
        rule: &Rule,
    ) -> Result<Option<Duration>, Failure> {
        match &self.unconfirmed {
            Some(upload) if self.part_bytes(version, rule)?.is_none() => Ok(Some(upload.wait())),
            Some(_) | None => Ok(None),
        }
    }

    /// In latest mode nothing older stands in for what could not be replicated: that shows in a
    /// fresh reading.
    fn after_refusal(&self) -> Progress {
        match self.cx.rule().history {
            History::Exact => Progress::Done,
            History::Latest => Progress::Reread,
        }
    }

    /// Goes on without a version that no rule takes: that is no failure.
    fn leave_out(
        &mut self,
        version: &SourceVersion,
        refusals: &Refusals,
    ) -> Result<Progress, Failure> {
        let known = &self.observed.destination.known;
        if !known.skipped.contains(&version.version) {
            for (rule, cause) in refusals {
                self.cx.record_unmatched(&rule.id, *cause);
            }
            let rule = &self.cx.rule().id;
            self.skip_version(version, ReplicaState::Skipped, None, rule)?;
        }
        Ok(Progress::Done)
    }

    /// Records a write, which is what the next one depends on.
    async fn commit(
        &mut self,
        replica: Replica,
        rule: &Rule,
        bytes: u64,
        sent: BootInstant,
    ) -> Result<(), Failure> {
        let cx = self.cx;
        cx.engine
            .failpoints
            .around(failpoint::Step::Commit, async {
                cx.record_written(&replica, rule, bytes)
            })
            .await?;
        self.written += 1;
        self.bytes += bytes;
        let version = replica.destination_version.clone();
        let (entry, current) = match replica.etag.clone() {
            Some(etag) => (
                Some(CurrentEntry::Object {
                    version,
                    etag: etag.clone(),
                }),
                Current::Object {
                    etag,
                    replica_of: Some(replica.source.clone()),
                },
            ),
            None => (version.map(CurrentEntry::Marker), Current::Marker),
        };
        let shown = &mut self.observed.destination;
        if let Some(entry) = entry {
            shown.snapshot = shown.snapshot.written(entry, sent);
        }
        shown.known.advance(&replica.source, current);
        self.reported
            .push((replica.source.clone(), Outcome::Replicated));
        shown.replicas.push(replica);
        Ok(())
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
        let rule = failure.rule.as_deref().unwrap_or(&self.cx.rule().id);
        match failure.next_action() {
            Action::Gone => {
                delete::confirm_gone(self.cx, &version.version.id, &failure).await?;
                let reason = Some(Reason::SrcVersionNotFound);
                self.skip_version(version, ReplicaState::SourceMissing, reason, rule)?;
            }
            Action::Unsupported(reason) => {
                if failure.operation == Operation::CheckEncryption {
                    self.cx.record_unmatched(rule, Mismatch::SseKms);
                } else if failure.operation == Operation::CheckOrigin {
                    self.cx.record_unmatched(rule, Mismatch::Replica);
                }
                self.skip_version(version, ReplicaState::Skipped, Some(reason), rule)?;
            }
            Action::Replan
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
        let outcome = self.cx.record_skipped(&replica, rule)?;
        self.reported.push((version.version.clone(), outcome));
        let shown = &mut self.observed.destination;
        shown.known.record_skipped(&version.version);
        shown.replicas.push(replica);
        Ok(())
    }

    /// Returns the record of what was just written.
    fn replica_of(
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
}

/// Reads what a replica carries, and the first byte, which an archived version refuses.
async fn try_reading(copy: &CopyJob<'_>) -> Result<(), Failure> {
    copy.read_headers_again().await?;
    let first = Part {
        number: 1,
        offset: 0,
        len: copy.version.size_bytes.min(1),
    };
    let original = copy.original();
    let answer = original.access.wire.send(original.get_call().bytes(first));
    answer.await?;
    Ok(())
}

/// Says whether S3 refused a request for the state of a KMS key.
fn is_for_key(failure: &Failure) -> bool {
    let is_ours = failure.operation == Operation::DescribeKey;
    let reasons = [
        Reason::DstKmsKeyInvalidState,
        Reason::DstKmsKeyNotFound,
        Reason::SrcKmsKeyInvalidState,
    ];
    !is_ours
        && reasons
            .iter()
            .any(|reason| failure.kind == FailureKind::NeedsOperator(*reason))
}

pub(super) fn replica_record(version: &SourceVersion, state: ReplicaState) -> Replica {
    Replica::new(version.version.clone(), version.kind, state)
}
