//! What is parked: when it is tried again, and which of it someone means.

use std::ops::ControlFlow;
use std::time::Duration;

use replicator_core::failure::{Failure, Reason};
use replicator_core::object::Timestamp;
use replicator_core::rule::Place;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::ledger::Ledger;
use crate::ledger::records::{ParkedMessage, ParkedTask};
use crate::message;
use crate::metrics::Metrics;
use crate::ruleset::Ruleset;
use crate::task::Task;

/// Which of the parked tasks and messages are meant; what is absent leaves nothing out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Filter {
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
pub(crate) struct Retried {
    /// Parked tasks that are tried again.
    pub(crate) tasks: u64,
    /// Of the tasks, those that no rule of today wants.
    pub(crate) unwanted: u64,
    /// Parked messages that were meant.
    pub(crate) messages: u64,
    /// Of the messages, those that can be acted on now: their tasks are among the tasks.
    pub(crate) readable: u64,
    /// Of the messages, those that only the dead-letter queue has.
    pub(crate) elsewhere: u64,
}

/// The time before the first automatic try; it doubles with each.
const TRY_FIRST: Duration = Duration::from_secs(5 * 60);

/// What someone repaired is found again within an hour, without a command.
const TRY_MAX: Duration = Duration::from_secs(3600);

/// Returns when a task is to be tried for the next time, by a jitter from 0 to 1: what was parked
/// together shall not come back together.
pub(crate) fn next_try(now: Timestamp, tries: u32, jitter: f64) -> Timestamp {
    let longest = TRY_FIRST.saturating_mul(2_u32.saturating_pow(tries)).min(TRY_MAX);
    clock::later(now, longest.mul_f64(0.5 + jitter.clamp(0.0, 1.0) / 2.0))
}

/// Says whether it is a task's turn.
pub(crate) fn is_due(task: &ParkedTask, now: Timestamp) -> bool {
    task.due.is_none_or(|due| due <= now)
}

/// Returns a task as it is kept while it is tried once more.
pub(crate) fn tried(task: ParkedTask, now: Timestamp) -> ParkedTask {
    let tries = task.tries.saturating_add(1);
    ParkedTask { tries, due: Some(next_try(now, tries, fastrand::f64())), ..task }
}

impl Filter {
    /// Says whether a task is meant.
    pub(crate) fn takes(&self, task: &ParkedTask) -> bool {
        let is_object = |object: &Object| {
            let is_in = |place: &Place, key: &str| place.bucket.as_str() == object.bucket && key == object.key;
            is_in(&task.source, task.source_key.as_str()) || is_in(&task.lane.destination, task.lane.key.as_str())
        };
        self.rule.as_ref().is_none_or(|rule| *rule == task.rule)
            && self.reason.is_none_or(|reason| reason == task.reason)
            && self.object.as_ref().is_none_or(is_object)
    }

    /// Says whether a message is meant: as long as it is parked, it has no rule and no key. The tasks
    /// it becomes have its reason, so what takes it takes them.
    pub(crate) fn takes_message(&self, message: &ParkedMessage) -> bool {
        let is_reason = self.reason.is_none_or(|reason| reason == message.reason);
        is_reason && self.rule.is_none() && self.object.is_none()
    }
}

impl Object {
    /// Reads `s3://bucket/key`.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let (bucket, key) = text.strip_prefix("s3://")?.split_once('/')?;
        let is_whole = !bucket.is_empty() && !key.is_empty();
        is_whole.then(|| Self { bucket: bucket.to_owned(), key: key.to_owned() })
    }
}

/// Counts what a filter means, after making tasks of the messages among it that the rules of today
/// can act on.
pub(crate) fn take_up(
    ledger: &Ledger,
    rules: &Ruleset,
    filter: &Filter,
    metrics: &Metrics,
) -> Result<Retried, Failure> {
    let mut retried = Retried::default();
    let mut converted = Ok(());
    ledger.visit_parked_messages(|message| {
        if !filter.takes_message(&message) {
            return ControlFlow::Continue(());
        }
        retried.messages += 1;
        match readable(&message, rules, metrics) {
            Read::Tasks(tasks) => {
                retried.readable += 1;
                converted = ledger.convert(&message, &tasks);
            }
            Read::Elsewhere => retried.elsewhere += 1,
            Read::No => {}
        }
        if converted.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    converted?;
    ledger.visit_parked(None, |task| {
        if filter.takes(&task) {
            retried.tasks += 1;
            retried.unwanted += u64::from(rules.revive(&task).is_none());
        }
        ControlFlow::Continue(())
    })?;
    Ok(retried)
}

/// Forgets messages that the dead-letter queue had, for as long as a queue keeps one at most:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
pub(crate) fn forget_passed(ledger: &Ledger, now: Timestamp) -> Result<(), Failure> {
    let mut over = Vec::new();
    ledger.visit_parked_messages(|message| {
        let is_over = message.since.is_some_and(|since| clock::later(since, KEPT_MAX) < now);
        if message.passed && is_over {
            over.push(message);
        }
        if over.len() < FORGOTTEN_AT_ONCE_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    over.iter().try_for_each(|message| ledger.convert(message, &[]))
}

const KEPT_MAX: Duration = Duration::from_secs(14 * 24 * 3600);

// The rest has its turn with the next sweep.
const FORGOTTEN_AT_ONCE_MAX: usize = 1000;

/// What a parked message is worth today.
enum Read {
    /// It can be acted on, which leaves these tasks.
    Tasks(Vec<ParkedTask>),
    /// Only the dead-letter queue has it.
    Elsewhere,
    /// It says no more than it did.
    No,
}

fn readable(message: &ParkedMessage, rules: &Ruleset, metrics: &Metrics) -> Read {
    let Some(body) = &message.body else { return Read::Elsewhere };
    let Ok(notification) = message::parse_body(body, metrics) else { return Read::No };
    if notification.hints.iter().any(|hint| rules.refusal(hint).is_some()) {
        return Read::No;
    }
    let tasks: Vec<Task> = notification.hints.iter().flat_map(|hint| rules.tasks(hint)).collect();
    let since = message.since.unwrap_or_else(clock::now);
    let parked = |task: &Task| -> Vec<ParkedTask> {
        let each = task.wishes.iter().map(|wish| task.parked(wish, message.reason, since));
        each.map(|parked| ParkedTask { detail: message.detail.clone(), ..parked }).collect()
    };
    Read::Tasks(tasks.iter().flat_map(parked).collect())
}

#[cfg(test)]
mod tests;
