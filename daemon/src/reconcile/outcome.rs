//! What is written down when a version is settled: the ledger's record, the metrics, one line in
//! the log.

use replicator_core::event::EventKind;
use replicator_core::failure::{Failure, Reason};
use replicator_core::object::Timestamp;
use replicator_core::plan::VersionKind;
use replicator_core::rule::Rule;
use tracing::info;

use crate::clock;
use crate::engine::Engine;
use crate::ledger::records::{Replica, ReplicaState};
use crate::metrics::Outcome;
use crate::task::Task;

/// The bookkeeping of one pass over a key.
pub(super) struct OutcomeRecorder<'a> {
    engine: &'a Engine,
    task: &'a Task,
    pub(super) written: u64,
    pub(super) bytes: u64,
}

impl<'a> OutcomeRecorder<'a> {
    pub(super) fn new(engine: &'a Engine, task: &'a Task) -> Self {
        Self {
            engine,
            task,
            written: 0,
            bytes: 0,
        }
    }

    /// Records a replica that is at the destination.
    pub(super) fn wrote(
        &mut self,
        replica: &Replica,
        rule: &Rule,
        bytes: u64,
    ) -> Result<(), Failure> {
        self.engine.ledger.put_replica(&self.task.target, replica)?;
        self.engine.watchdog.record_key_progress(&self.task.target);
        self.written += 1;
        self.bytes += bytes;
        let operation = operation(replica.kind);
        let seconds = clock::seconds_since(self.event_time(replica));
        let metrics = &self.engine.metrics;
        metrics.count_bytes(&rule.id, bytes);
        metrics.latency(&rule.id, operation.as_str(), seconds);
        metrics.count_operation(
            &rule.id,
            self.destination_bucket(),
            operation.as_str(),
            Outcome::Replicated,
        );
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
    pub(super) fn record_only(&self, replica: &Replica) -> Result<(), Failure> {
        self.engine.ledger.put_replica(&self.task.target, replica)
    }

    /// Records a version that gets no replica, and under which rule.
    pub(super) fn skipped(&self, replica: &Replica, rule: &str) -> Result<Outcome, Failure> {
        self.record_only(replica)?;
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
        }
        self.engine.metrics.count_operation(
            rule,
            self.destination_bucket(),
            operation.as_str(),
            outcome,
        );
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
    pub(super) fn granted(&self, action: EventKind, outcome: Outcome) {
        let rule = &self.task.rules.primary.id;
        self.engine.metrics.count_operation(
            rule,
            self.destination_bucket(),
            action.as_str(),
            outcome,
        );
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
        let pending = self
            .task
            .events
            .iter()
            .find(|pending| pending.version.as_ref() == Some(&replica.source.id));
        let made = replica.source.last_modified;
        pending
            .and_then(|pending| pending.time)
            .map_or(made, |told| told.max(made))
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
