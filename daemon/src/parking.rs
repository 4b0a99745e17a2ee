//! What is parked: when it is tried again, and which of it a filter selects.

use std::ops::ControlFlow;
use std::time::Duration;

use replicator_core::failure::{Failure, Reason};
use replicator_core::object::Timestamp;
use replicator_core::rule::BucketRef;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::ledger::Ledger;
use crate::ledger::records::ParkedTask;
use crate::task::Ruleset;

/// Which of the parked tasks are meant; what is absent leaves nothing out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct ParkedFilter {
    pub(crate) rule: Option<String>,
    pub(crate) reason: Option<Reason>,
    pub(crate) object: Option<Object>,
}

/// A key of the source or of the destination, as `s3://bucket/key`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Object {
    pub(crate) bucket: String,
    pub(crate) key: String,
}

/// What came of a retry.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct RetrySummary {
    /// Parked tasks that are tried again.
    pub(crate) tasks: u64,
    /// Of the tasks, those that no rule of today takes.
    pub(crate) unwanted: u64,
}

/// The time before the first automatic try; it doubles with each.
const TRY_FIRST: Duration = Duration::from_secs(5 * 60);

/// A repair is found within an hour, without a command.
const TRY_MAX: Duration = Duration::from_secs(3600);

/// Returns when a task is to be tried for the next time, by a jitter from 0 to 1: what was parked
/// together shall not come back together.
pub(crate) fn next_try(now: Timestamp, tries: u32, jitter: f64) -> Timestamp {
    let longest = TRY_FIRST
        .saturating_mul(2_u32.saturating_pow(tries))
        .min(TRY_MAX);
    clock::saturating_later(now, longest.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0))
}

/// Says whether it is a task's turn.
pub(crate) fn is_due(task: &ParkedTask, now: Timestamp) -> bool {
    task.due.is_none_or(|due| due <= now)
}

/// Returns a task as it is kept while it is tried once more.
pub(crate) fn tried(task: ParkedTask, now: Timestamp) -> ParkedTask {
    let tries = task.tries.saturating_add(1);
    ParkedTask {
        tries,
        due: Some(next_try(now, tries, fastrand::f64())),
        ..task
    }
}

impl ParkedFilter {
    /// Says whether a task is meant.
    pub(crate) fn matches_task(&self, task: &ParkedTask) -> bool {
        let is_object = |object: &Object| {
            let is_in = |place: &BucketRef, key: &str| {
                place.bucket.as_str() == object.bucket && key == object.key
            };
            is_in(&task.source, task.source_key.as_str())
                || is_in(&task.target.destination, task.target.key.as_str())
        };
        self.rule.as_ref().is_none_or(|rule| *rule == task.rule)
            && self.reason.is_none_or(|reason| reason == task.reason)
            && self.object.as_ref().is_none_or(is_object)
    }
}

impl Object {
    /// Reads `s3://bucket/key`.
    pub(crate) fn parse_url(text: &str) -> Option<Self> {
        let (bucket, key) = text.strip_prefix("s3://")?.split_once('/')?;
        let is_whole = !bucket.is_empty() && !key.is_empty();
        is_whole.then(|| Self {
            bucket: bucket.to_owned(),
            key: key.to_owned(),
        })
    }
}

/// Counts what a filter means.
pub(crate) fn count(
    ledger: &Ledger,
    rules: &Ruleset,
    filter: &ParkedFilter,
) -> Result<RetrySummary, Failure> {
    let mut retried = RetrySummary::default();
    ledger.visit_parked(None, |task| {
        if filter.matches_task(&task) {
            retried.tasks += 1;
            retried.unwanted += u64::from(rules.revive(&task).is_none());
        }
        ControlFlow::Continue(())
    })?;
    Ok(retried)
}

#[cfg(test)]
mod tests;
