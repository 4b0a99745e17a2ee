//! The unit of work: bring one key at one destination up to date, because some messages said that
//! something happened to it.

use std::sync::Arc;

use replicator_core::event::{EventKind, Sequencer};
use replicator_core::failure::Reason;
use replicator_core::object::{Key, Timestamp, VersionId};
use replicator_core::rule::{BucketRef, Rule};

use crate::clock::BootInstant;
use crate::fair_queue::Flow;
use crate::ledger::records::{ParkedTask, TargetKey};
use crate::metrics::Outcome;
use crate::work_queues::ParkedBefore;

/// What a message says about a key, without saying which.
#[derive(Debug, Clone)]
pub(crate) struct PendingEvent {
    pub(crate) action: EventKind,
    pub(crate) version: Option<VersionId>,
    pub(crate) sequencer: Option<Sequencer>,
    pub(crate) time: Option<Timestamp>,
    pub(crate) size_bytes: u64,
    /// What is known of it, if it was parked and is tried again by a message.
    pub(crate) parked: Option<ParkedBefore>,
}

/// A key at a destination, the rules that compete for it, and what was said about it.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) target: TargetKey,
    pub(crate) source: BucketRef,
    pub(crate) source_key: Key,
    /// Highest priority first; never empty.
    pub(crate) rules: Rules,
    pub(crate) events: Vec<PendingEvent>,
    /// One of the messages was delivered before, so the ledger alone may not answer it.
    pub(crate) redelivered: bool,
    /// How often the message was delivered that was delivered most often.
    pub(crate) receive_count: u32,
    /// Since when no other worker is at the key, if one may have been: what it sent may be on its
    /// way.
    pub(crate) takes_over: Option<BootInstant>,
}

impl Task {
    /// Names the rule and line that a request without a body counts for.
    pub(crate) fn small_payer(&self) -> Flow<'_> {
        Flow {
            rule: &self.rules.primary,
            is_bulk: false,
        }
    }

    /// Returns what is kept of one event while it waits for an operator to act.
    pub(crate) fn parked(
        &self,
        pending: &PendingEvent,
        reason: Reason,
        now: Timestamp,
    ) -> ParkedTask {
        ParkedTask {
            target: self.target.clone(),
            rule: self.rules.primary.id.clone(),
            source: self.source.clone(),
            source_key: self.source_key.clone(),
            action: pending.action,
            version: pending.version.clone(),
            reason,
            detail: String::new(),
            since: pending.parked.map_or(now, |parked| parked.since),
            tries: pending.parked.map_or(0, |parked| parked.tries),
            due: None,
        }
    }
}

/// Competing rules, the leading one apart because there always is one.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) primary: Arc<Rule>,
    pub(crate) fallbacks: Vec<Arc<Rule>>,
}

impl Rules {
    /// Lists the rules, highest priority first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        std::iter::once(&self.primary).chain(&self.fallbacks)
    }
}

/// What came of a task: one outcome for each event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) outcomes: Vec<Outcome>,
    /// Versions and markers written by this run.
    pub(crate) written: u64,
    pub(crate) bytes: u64,
}
