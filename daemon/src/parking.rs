//! When a key that fails is parked, when what is parked is tried again, and which of it a filter
//! selects.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replicator_core::failure::{Failure, Reason};
use replicator_core::object::Timestamp;
use replicator_core::retry;
use replicator_core::rule::BucketRef;
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use utoipa::ToSchema;

use crate::clock;
use crate::ledger::Ledger;
use crate::ledger::records::{ParkedTask, TargetKey};
use crate::task::Ruleset;

/// Which parked tasks are selected; what is absent leaves nothing out.
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

/// What came of a retry command.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub(crate) struct RetrySummary {
    /// Parked tasks that the command selects.
    pub(crate) tasks: u64,
    /// Of the tasks, those that no rule of today takes: they stay parked.
    pub(crate) unwanted: u64,
}

/// The time before the first automatic try; it doubles with each.
const TRY_FIRST: Duration = Duration::from_secs(5 * 60);

/// A repair is found within an hour, without a command.
const TRY_MAX: Duration = Duration::from_secs(3600);

/// Returns when a task is to be tried for the next time, by a jitter from 0 to 1: what was parked
/// together shall not come back together.
pub(crate) fn next_try(now: Timestamp, tries: u32, jitter: f64) -> Timestamp {
    let ceiling = retry::doubled(TRY_FIRST, tries, TRY_MAX);
    clock::saturating_later(now, retry::equal_jitter(ceiling, jitter))
}

/// Says whether a task is to be tried again.
pub(crate) fn is_due(task: &ParkedTask, now: Timestamp) -> bool {
    task.due.is_none_or(|due| due <= now)
}

/// Makes the parked tasks of a filter due now.
pub(crate) fn make_due(
    ledger: &Ledger,
    rules: &Ruleset,
    filter: &ParkedFilter,
) -> Result<RetrySummary, Failure> {
    let (mut summary, mut written) = (RetrySummary::default(), Ok(()));
    ledger.visit_parked(None, |task| {
        if !filter.matches_task(&task) {
            return ControlFlow::Continue(());
        }
        summary.tasks += 1;
        if rules.revive(&task).is_none() {
            summary.unwanted += 1;
            return ControlFlow::Continue(());
        }
        written = change(ledger, &task, |task| ParkedTask { due: None, ..task });
        match written {
            Ok(()) => ControlFlow::Continue(()),
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    written.map(|()| summary)
}

/// Records that a parked task is tried once more, and when the next time is.
pub(crate) fn record_try(
    ledger: &Ledger,
    task: &ParkedTask,
    now: Timestamp,
) -> Result<(), Failure> {
    change(ledger, task, |task| {
        let tries = task.tries.saturating_add(1);
        let due = Some(next_try(now, tries, fastrand::f64()));
        ParkedTask { tries, due, ..task }
    })
}

/// Changes the record of a parked task, if a message has not settled it meanwhile.
fn change(
    ledger: &Ledger,
    task: &ParkedTask,
    change: impl FnOnce(ParkedTask) -> ParkedTask,
) -> Result<(), Failure> {
    match ledger.parked_before(task)? {
        Some(parked) => ledger.put_parked(&change(parked)),
        None => Ok(()),
    }
}

impl ParkedFilter {
    /// Says whether a task is selected.
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

/// The keys that have failed for their own sake since they last succeeded: what never ends by
/// itself is parked. Known in memory only; after a restart the time begins anew.
#[derive(Debug, Default)]
pub(crate) struct Retries(Mutex<HashMap<TargetKey, Failing>>);

#[derive(Debug, Clone, Copy)]
struct Failing {
    first: Instant,
    last: Instant,
    /// How often its message had been received when it failed first.
    received: u32,
}

// Seven or eight deliveries of one message, which come ever more seldom: what a server stumbles
// over for so long is no hiccup, and an operator has yet to find it.
const FAILING_MAX: Duration = Duration::from_secs(3600);

// Of several daemons each has a share of the deliveries, and sees its own failures alone: so many
// deliveries since the first of those are enough, whichever daemons had them. What went before,
// as while a rule was paused or a destination was down, is not the key's failure.
const RECEIVED_MAX: u32 = 20;

// Daemons that live too short to see that many see the count of all: a tenth of the
// maxReceiveCount that docs/setup-aws.md gives to queues.
const RECEIVED_EVER_MAX: u32 = 100;

// As many as can fail in an hour of backing off, at some hundred bytes each. The one that failed
// longest ago is forgotten first: its hour begins anew.
const FAILING_KEYS_MAX: usize = 20_000;

impl Retries {
    /// Records that a key failed for its own sake, and how often its message was received from a
    /// work queue, if it was; says whether retries are exhausted.
    pub(crate) fn record_failure(&self, target: &TargetKey, received: u32) -> bool {
        let (mut all, now) = (self.lock_all(), Instant::now());
        if all.len() >= FAILING_KEYS_MAX && !all.contains_key(target) {
            forget_oldest(&mut all);
        }
        let failing = all.entry(target.clone()).or_insert(Failing {
            first: now,
            last: now,
            received,
        });
        // One failure now and one tomorrow are no day of failures.
        if failing.last + FAILING_MAX < now {
            failing.first = now;
        }
        failing.last = now;
        // A later message of the key begins to be counted anew.
        failing.received = failing.received.min(received);
        failing.first + FAILING_MAX <= now
            || received - failing.received >= RECEIVED_MAX
            || received >= RECEIVED_EVER_MAX
    }

    /// Forgets a key that succeeded, or failed for another's sake.
    pub(crate) fn clear(&self, target: &TargetKey) {
        self.lock_all().remove(target);
    }

    /// Forgets every key: a rule is no longer paused, and what its messages were received for
    /// meanwhile was no failure.
    pub(crate) fn clear_all(&self) {
        self.lock_all().clear();
    }

    fn lock_all(&self) -> MutexGuard<'_, HashMap<TargetKey, Failing>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_oldest(all: &mut HashMap<TargetKey, Failing>) {
    let oldest = all
        .iter()
        .min_by_key(|(_, failing)| failing.last)
        .map(|(target, _)| target.clone());
    if let Some(oldest) = oldest {
        all.remove(&oldest);
    }
}

#[cfg(test)]
mod tests {
    use replicator_core::event::EventKind;
    use replicator_core::object::{Bucket, Key};

    use super::*;
    use crate::task::tests::rules;

    fn parked(rule: &str, name: &str, reason: Reason) -> ParkedTask {
        let place = |bucket: &str| BucketRef {
            account: "main".to_owned(),
            bucket: Bucket::try_from(bucket).unwrap(),
        };
        let key = |text: String| Key::try_from(text).unwrap();
        ParkedTask {
            target: TargetKey {
                destination: place("replicas"),
                key: key(format!("copies/{name}")),
            },
            rule: rule.to_owned(),
            source: place("orders"),
            source_key: key(name.to_owned()),
            action: EventKind::Put,
            version: None,
            reason,
            detail: String::new(),
            since: moment(0),
            tries: 0,
            due: None,
        }
    }

    fn moment(seconds: i64) -> Timestamp {
        Timestamp::from_unix_timestamp(seconds).unwrap()
    }

    #[test]
    fn each_try_doubles_the_time_to_the_next_up_to_an_hour() {
        let minutes = |jitter| {
            [0, 1, 2, 3, 4, 40]
                .map(|tries| (next_try(moment(0), tries, jitter) - moment(0)).whole_minutes())
        };
        assert_eq!(minutes(1.0), [5, 10, 20, 40, 60, 60]);
        assert_eq!(minutes(0.0), [2, 5, 10, 20, 30, 30]);
    }

    #[test]
    fn a_task_waits_for_its_turn_unless_a_command_makes_it_due() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let task = parked("orders", "report", Reason::DstBucketNotFound);
        ledger.put_parked(&task).unwrap();
        record_try(&ledger, &task, moment(0)).unwrap();
        let tried = ledger.parked_before(&task).unwrap().unwrap();
        assert_eq!((tried.tries, tried.since), (1, moment(0)));
        assert!(!is_due(&tried, moment(299)) && is_due(&tried, moment(600)));
        let ruleset = Ruleset::new(&rules(&[("orders", "orders", "replicas")]));
        let task = ParkedTask {
            target: ruleset_target(&ruleset),
            ..task
        };
        record_try(&ledger, &task, moment(0)).unwrap();
        assert!(
            ledger.parked_before(&task).unwrap().is_none(),
            "it is parked no more"
        );
        ledger
            .put_parked(&ParkedTask {
                due: tried.due,
                ..task.clone()
            })
            .unwrap();
        let filter = ParkedFilter {
            object: Object::parse_url("s3://replicas/report"),
            ..ParkedFilter::default()
        };
        let summary = make_due(&ledger, &ruleset, &filter).unwrap();
        assert_eq!(
            summary,
            RetrySummary {
                tasks: 1,
                unwanted: 0
            }
        );
        assert!(is_due(
            &ledger.parked_before(&task).unwrap().unwrap(),
            moment(0)
        ));
    }

    fn ruleset_target(ruleset: &Ruleset) -> TargetKey {
        let destination = ruleset.iter().next().unwrap().destination.clone();
        TargetKey {
            destination,
            key: Key::try_from("report").unwrap(),
        }
    }

    #[test]
    fn a_filter_selects_what_matches_all_of_it() {
        let task = parked("orders", "report", Reason::DstBucketNotFound);
        let none = ParkedFilter::default();
        assert!(none.matches_task(&task));
        let rule = |rule: &str| ParkedFilter {
            rule: Some(rule.to_owned()),
            ..none.clone()
        };
        assert!(rule("orders").matches_task(&task) && !rule("invoices").matches_task(&task));
        let both = |reason| ParkedFilter {
            reason: Some(reason),
            ..rule("orders")
        };
        assert!(
            both(Reason::DstBucketNotFound).matches_task(&task)
                && !both(Reason::SrcBucketNotFound).matches_task(&task)
        );
        let object = |url| ParkedFilter {
            object: Object::parse_url(url),
            ..none.clone()
        };
        assert!(object("s3://orders/report").matches_task(&task));
        assert!(object("s3://replicas/copies/report").matches_task(&task));
        assert!(!object("s3://orders/copies/report").matches_task(&task));
    }

    #[test]
    fn an_object_is_named_by_bucket_and_key() {
        let parsed = Object::parse_url("s3://orders/a//b").unwrap();
        assert_eq!(
            (parsed.bucket.as_str(), parsed.key.as_str()),
            ("orders", "a//b")
        );
        for wrong in [
            "orders/report",
            "s3://orders",
            "s3://orders/",
            "s3:///report",
            "https://orders/report",
        ] {
            assert_eq!(Object::parse_url(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_no_rule_takes_any_more_is_counted_apart() {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        ledger
            .put_parked(&parked("orders", "report", Reason::DstBucketNotFound))
            .unwrap();
        let ruleset = Ruleset::new(&rules(&[("orders", "orders", "elsewhere")]));
        let retried = make_due(&ledger, &ruleset, &ParkedFilter::default()).unwrap();
        assert_eq!(
            retried,
            RetrySummary {
                tasks: 1,
                unwanted: 1
            }
        );
    }

    fn target(key: &str) -> TargetKey {
        let destination = BucketRef {
            account: "main".to_owned(),
            bucket: Bucket::try_from("replicas").unwrap(),
        };
        TargetKey {
            destination,
            key: Key::try_from(key).unwrap(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_fails_for_an_hour_is_given_up() {
        let retries = Retries::default();
        assert!(!retries.record_failure(&target("a"), 0));
        tokio::time::advance(FAILING_MAX - Duration::from_secs(1)).await;
        assert!(!retries.record_failure(&target("a"), 0));
        assert!(!retries.record_failure(&target("b"), 0));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(
            retries.record_failure(&target("a"), 0) && !retries.record_failure(&target("b"), 0)
        );
        assert!(
            retries.record_failure(&target("a"), 0),
            "what comes after it, too"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn failures_that_lie_a_day_apart_are_no_day_of_failures() {
        let retries = Retries::default();
        for _ in 0..20 {
            assert!(!retries.record_failure(&target("a"), 0));
            tokio::time::advance(24 * FAILING_MAX).await;
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_key_that_succeeded_begins_anew() {
        let retries = Retries::default();
        assert!(!retries.record_failure(&target("a"), 0));
        tokio::time::advance(FAILING_MAX).await;
        retries.clear(&target("a"));
        assert!(!retries.record_failure(&target("a"), 0));
    }

    #[test]
    fn only_deliveries_since_a_key_first_failed_are_counted() {
        let retries = Retries::default();
        assert!(!retries.record_failure(&target("a"), 30), "it was paused");
        assert!(!retries.record_failure(&target("a"), 29 + RECEIVED_MAX));
        assert!(retries.record_failure(&target("a"), 30 + RECEIVED_MAX));
        assert!(!retries.record_failure(&target("a"), 2), "another message");
        assert!(!retries.record_failure(&target("a"), 1 + RECEIVED_MAX));
        assert!(retries.record_failure(&target("a"), 2 + RECEIVED_MAX));
        retries.clear_all();
        assert!(!retries.record_failure(&target("a"), 90));
        assert!(retries.record_failure(&target("b"), RECEIVED_EVER_MAX));
    }
}
