//! What is written down when a version is settled: the ledger's record, the metrics, one line in
//! the log.

use replicator_core::event::Action;
use replicator_core::failure::{Failure, Reason};
use replicator_core::object::Timestamp;
use replicator_core::plan::Kind;
use replicator_core::rule::Rule;
use tracing::info;

use crate::clock;
use crate::engine::Engine;
use crate::ledger::records::{Replica, State};
use crate::metrics::Outcome;
use crate::task::Task;

/// The bookkeeping of one pass over a key.
pub(super) struct Settle<'a> {
    engine: &'a Engine,
    task: &'a Task,
    pub(super) written: u64,
    pub(super) bytes: u64,
}

impl<'a> Settle<'a> {
    pub(super) fn new(engine: &'a Engine, task: &'a Task) -> Self {
        Self { engine, task, written: 0, bytes: 0 }
    }

    /// Records a replica that is at the destination.
    pub(super) fn wrote(&mut self, replica: &Replica, rule: &Rule, bytes: u64) -> Result<(), Failure> {
        self.engine.ledger.put_replica(&self.task.lane, replica)?;
        self.engine.pulse.moved(&self.task.lane);
        self.written += 1;
        self.bytes += bytes;
        let operation = operation(replica.kind);
        let seconds = clock::seconds_since(self.event_time(replica));
        let metrics = &self.engine.metrics;
        metrics.copied(&rule.id, bytes);
        metrics.latency(&rule.id, operation.as_str(), seconds);
        metrics.operation(&rule.id, self.bucket(), operation.as_str(), Outcome::Replicated);
        info!(
            rule = rule.id,
            destination = self.bucket(),
            key = self.task.lane.key.as_str(),
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
    pub(super) fn recorded(&self, replica: &Replica) -> Result<(), Failure> {
        self.engine.ledger.put_replica(&self.task.lane, replica)
    }

    /// Records a version that gets no replica, and under which rule.
    pub(super) fn skipped(&self, replica: &Replica, rule: &str) -> Result<Outcome, Failure> {
        self.recorded(replica)?;
        let outcome = match replica.state {
            State::Gone => Outcome::Gone,
            State::Late => Outcome::Superseded,
            State::Replicated | State::Collapsed | State::Skipped | State::Removed => Outcome::Skipped,
        };
        let operation = operation(replica.kind);
        if let Some(reason) = replica.reason {
            self.engine.metrics.failure(rule, reason.as_str());
        }
        self.engine.metrics.operation(rule, self.bucket(), operation.as_str(), outcome);
        info!(
            rule,
            destination = self.bucket(),
            key = self.task.lane.key.as_str(),
            operation = operation.as_str(),
            outcome = outcome.as_str(),
            version = replica.source.id.as_str(),
            reason = replica.reason.map_or("NoRuleTakesIt", Reason::as_str),
            "settled"
        );
        Ok(outcome)
    }

    /// Records what became of a wish that wrote no version.
    pub(super) fn granted(&self, action: Action, outcome: Outcome) {
        let rule = &self.task.rules.lead.id;
        self.engine.metrics.operation(rule, self.bucket(), action.as_str(), outcome);
        info!(
            rule,
            destination = self.bucket(),
            key = self.task.lane.key.as_str(),
            operation = action.as_str(),
            outcome = outcome.as_str(),
            "settled"
        );
    }

    /// Returns when it happened. A message is no proof: no event is older than the version that it announces.
    fn event_time(&self, replica: &Replica) -> Timestamp {
        let wish = self.task.wishes.iter().find(|wish| wish.version.as_ref() == Some(&replica.source.id));
        let made = replica.source.last_modified;
        wish.and_then(|wish| wish.time).map_or(made, |told| told.max(made))
    }

    fn bucket(&self) -> &str {
        self.task.lane.destination.bucket.as_str()
    }
}

/// Names what brings an entry of this kind into being.
fn operation(kind: Kind) -> Action {
    match kind {
        Kind::Object => Action::Put,
        Kind::Marker => Action::DeleteMarker,
    }
}
