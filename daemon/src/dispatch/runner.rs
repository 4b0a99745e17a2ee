//! Runs a task: attempts until it is done, parked, or returned to the queue.

use std::time::Duration;

use replicator_core::event::EventKind;
use replicator_core::failure::{
    Action, Dependency, Failure, FailureKind, Operation, Reason, error_chain,
};
use replicator_core::retry;
use replicator_core::retry::LANDING;
use tracing::{debug, warn};

use crate::clock;
use crate::engine::Engine;
use crate::failpoint::Step;
use crate::ledger::Parts;
use crate::ledger::records::{ParkedTask, Upload};
use crate::limit::concurrency::{Feedback, Route, TaskPermit, Unavailable};
use crate::limit::single_flight::Subscriber;
use crate::metrics::Outcome;
use crate::parking;
use crate::process::contain_task;
use crate::reconcile::{AttemptState, Attempted, bring_up_to_date, is_bulk};
use crate::sqs::lease;
use crate::task::{PendingEvent, Report, Task};

/// How a task ended.
#[derive(Debug)]
pub(crate) enum TaskResult {
    /// Every event has its outcome.
    Done(Report),
    /// Kept durably until an operator acts.
    Parked(Reason),
    /// The failure lasts: the message returns to the queue, which delivers it again after this
    /// time.
    Returned(Duration),
    /// The circuit of the destination is open, or it throttles: the queue delivers again after this
    /// time. That counts as progress, unlike a failure.
    Unavailable(Duration),
    /// A rule that may take the key is paused: nothing was begun since, and the message waits.
    Held,
    /// The work was stopped because a lease was lost or the daemon stops.
    Cancelled,
}

/// A few tries outlast a hiccup; what lasts longer waits in the queue, where it holds nothing up.
const ATTEMPTS_MAX: u32 = 5;

/// Other daemons' writes are behind refused conditions, and each of those means progress; more in
/// a row than this means that something else is.
const REREADS_MAX: u32 = 10;

/// Works on a task until it ends, if by a panic. Then something may have been sent, as by a task
/// that is cut off.
pub(crate) async fn work(engine: &Engine, task: &Task) -> TaskResult {
    if engine.is_held(task) {
        return TaskResult::Held;
    }
    if let Some(since) = task.takes_over {
        // By then the other worker sends no write any more, and what it sent has landed, but for an
        // upload that is being completed.
        tokio::time::sleep((lease::CONFIRMED_WITHIN + LANDING).saturating_sub(since.elapsed()))
            .await;
    }
    engine.predecessor.has_landed().await;
    match contain_task(&engine.metrics, Box::pin(attempt(engine, task))).await {
        Ok(ended) => ended,
        Err(panicked) => {
            let failure = Failure::with_source(
                FailureKind::NeedsOperator(Reason::TaskPanicked),
                Operation::RunTask,
                panicked,
            );
            tokio::time::sleep(LANDING).await;
            park_or_release(engine, task, Reason::TaskPanicked, &failure).await
        }
    }
}

/// Tries until there is an end. Between attempts, and while other tasks are in the way, it holds
/// nothing that they could use.
async fn attempt(engine: &Engine, task: &Task) -> TaskResult {
    let route = Route {
        is_bulk: is_bulk(engine, task),
        ..Route::of(&task.rules.primary)
    };
    let key = task.target.key.as_str();
    let reader = engine.single_flight.enrol(&task.source, &task.source_key);
    let mut state = AttemptState::default();
    let (mut attempt, mut rereads) = (1, 0);
    loop {
        let permit = match engine
            .concurrency
            .acquire_permit(&route, &task.target.key)
            .await
        {
            Ok(permit) => permit,
            Err(Unavailable(wait)) => return turned_away(engine, task, wait),
        };
        if engine.is_held(task) {
            return TaskResult::Held;
        }
        let failed = match try_once((engine, task, &reader), &mut state, permit).await {
            Ok(Attempted::UpToDate(report)) => {
                engine.retries.clear(&task.target);
                return TaskResult::Done(report);
            }
            Ok(Attempted::Wait(wait)) => {
                engine.watchdog.record_progress();
                debug!(key, ?wait, "waiting for an upload that may appear yet");
                tokio::time::sleep(wait).await;
                continue;
            }
            Err(failed) => failed,
        };
        let failure = &failed.failure;
        let wait = match failure.next_action() {
            Action::Replan if rereads < REREADS_MAX => {
                rereads += 1;
                debug!(key, error = error_chain(failure), "planning again");
                retry::jittered_delay(rereads, fastrand::f64())
            }
            Action::Park(reason) => return park_or_release(engine, task, reason, failure).await,
            Action::Replan
            | Action::WaitThenReplan
            | Action::Retry
            | Action::Throttle
            | Action::Gone
            | Action::Unsupported(_) => {
                report_failure(engine, task, failure);
                wait_for_unanswered(failure).await;
                if attempt >= ATTEMPTS_MAX {
                    return give_up((engine, task), &route, &failed).await;
                }
                attempt += 1;
                retry::jittered_delay(attempt, fastrand::f64())
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Parks a task, unless its next message could come to a worker without a record of its upload.
async fn park_or_release(
    engine: &Engine,
    task: &Task,
    reason: Reason,
    failure: &Failure,
) -> TaskResult {
    if may_appear(engine, task) {
        return TaskResult::Returned(retry::delay_ceiling(ATTEMPTS_MAX * 2));
    }
    let park = async { park_task(engine, task, reason, failure) };
    engine.failpoints.around(Step::Park, park).await
}

/// An attempt that failed, and what follows for its dependencies.
struct Failed {
    failure: Failure,
    answer: Feedback,
}

async fn try_once(
    (engine, task, reader): (&Engine, &Task, &Subscriber),
    state: &mut AttemptState,
    permit: TaskPermit,
) -> Result<Attempted, Failed> {
    let in_flight = engine.watchdog.at_work(&task.target);
    let result = permit
        .scope(Box::pin(bring_up_to_date(engine, task, reader, state)))
        .await;
    drop(in_flight);
    let answer = match &result {
        Ok(Attempted::Wait(_)) => Feedback::Reachable,
        // The ledger alone answered.
        Ok(_) if !state.has_begun => Feedback::None,
        Ok(Attempted::UpToDate(report)) => {
            let wrote = report.written > 0;
            remember_success(engine, task, wrote);
            Feedback::Served { wrote }
        }
        Err(failure) => permit.feedback_of(failure),
    };
    permit.finish(answer);
    result.map_err(|failure| Failed { failure, answer })
}

/// Trouble of a known dependency that is already limited counts as progress; other trouble may be
/// the daemon's own. What fails, or is throttled, because of its key alone for too long is parked:
/// nothing else would ever end it.
async fn give_up((engine, task): (&Engine, &Task), route: &Route, failed: &Failed) -> TaskResult {
    let wait = retry::delay_ceiling(ATTEMPTS_MAX * 2);
    let failure = &failed.failure;
    if failure.kind == FailureKind::LeaseUnsure {
        return TaskResult::Returned(wait);
    }
    let is_own = engine
        .concurrency
        .is_own(route, &task.target.key, failed.answer);
    if failure.next_action() == Action::Throttle && !is_own
        || engine.concurrency.is_circuit_open(&route.destination)
    {
        return turned_away(engine, task, wait);
    }
    if !is_own {
        engine.retries.clear(&task.target);
        return TaskResult::Returned(wait);
    }
    let received = match engine.work_queues.are_used() {
        true => task.receive_count,
        false => 0,
    };
    match engine.retries.record_failure(&task.target, received) {
        true => park_or_release(engine, task, Reason::RetriesExhausted, failure).await,
        false => TaskResult::Returned(wait),
    }
}

/// Failures of a destination that throttles or does not answer are not the key's, so the key's no
/// longer count. A message that is to wait for an upload counts as one that is delivered again.
fn turned_away(engine: &Engine, task: &Task, wait: Duration) -> TaskResult {
    engine.retries.clear(&task.target);
    if may_appear(engine, task) {
        TaskResult::Returned(wait)
    } else {
        TaskResult::Unavailable(wait)
    }
}

/// Says whether the completion of an upload was sent, of which another worker would have no record.
fn may_appear(engine: &Engine, task: &Task) -> bool {
    let is_over = |(upload, _): (Upload, Parts)| {
        let until = upload.may_complete_until;
        until.is_none_or(|until| until <= clock::now())
    };
    let are_over = || {
        let upload = engine.ledger.upload_of(&task.target);
        upload.is_ok_and(|upload| upload.is_none_or(is_over))
    };
    engine.work_queues.are_used() && !are_over()
}

/// Records a refusal before the message may go, to be tried again on schedule.
fn park_task(engine: &Engine, task: &Task, reason: Reason, failure: &Failure) -> TaskResult {
    let rule = blamed_rule(task, failure);
    let detail = error_chain(failure);
    remember_error(engine, task, failure);
    warn!(
        rule,
        key = task.target.key.as_str(),
        reason = reason.as_str(),
        error = detail,
        "parked"
    );
    engine.metrics.count_failed(rule, reason.as_str());
    for pending in task
        .events
        .iter()
        .filter(|pending| is_refused(reason, pending))
    {
        let blank = task.parked(pending, reason, clock::now());
        let parked = ParkedTask {
            rule: rule.to_owned(),
            detail: detail.clone(),
            ..blank
        };
        if let Err(failure) = keep(engine, parked) {
            warn!(
                rule,
                error = error_chain(&failure),
                "cannot write to the ledger"
            );
            return TaskResult::Returned(retry::delay_ceiling(ATTEMPTS_MAX));
        }
        let bucket = task.target.destination.bucket.as_str();
        engine
            .metrics
            .count_operation(rule, bucket, pending.action.as_str(), Outcome::Parked);
    }
    TaskResult::Parked(reason)
}

/// Says whether a refusal is about an event: a quota of version deletes is reported when everything
/// else is done.
fn is_refused(reason: Reason, pending: &PendingEvent) -> bool {
    reason != Reason::VersionDeletesPerHour || pending.action == EventKind::VersionDelete
}

/// Keeps a task; one that was parked before keeps its age and, unless it was tried since, its turn.
fn keep(engine: &Engine, parked: ParkedTask) -> Result<(), Failure> {
    let before = engine.ledger.parked_before(&parked)?;
    let (since, tries, due) = match before {
        Some(before) if before.tries >= parked.tries => (before.since, before.tries, before.due),
        Some(_) | None => {
            let due = parking::next_try(clock::now(), parked.tries, fastrand::f64());
            (parked.since, parked.tries, Some(due))
        }
    };
    engine.ledger.put_parked(&ParkedTask {
        since,
        tries,
        due,
        ..parked
    })
}

fn report_failure(engine: &Engine, task: &Task, failure: &Failure) {
    let rule = blamed_rule(task, failure);
    remember_error(engine, task, failure);
    warn!(
        rule,
        key = task.target.key.as_str(),
        error = error_chain(failure),
        "attempt failed"
    );
    engine
        .metrics
        .count_failed(rule, failure.kind.reason_code());
}

/// Keeps what failed as the last error of its bucket; what KMS refuses, S3 answers.
fn remember_error(engine: &Engine, task: &Task, failure: &Failure) {
    let place = match failure.dependency {
        Some(Dependency::Source) => &task.source,
        Some(Dependency::Destination | Dependency::DestinationKey) => &task.target.destination,
        None => return,
    };
    let errors = &engine.last_errors;
    errors.record(place.bucket.as_str(), error_chain(failure));
}

/// Records which buckets of a task served it.
fn remember_success(engine: &Engine, task: &Task, wrote: bool) {
    let errors = &engine.last_errors;
    errors.succeeded(task.source.bucket.as_str());
    if wrote {
        errors.succeeded(task.target.destination.bucket.as_str());
    }
}

/// Names the rule that a failure is booked on: the one that took the version, or the leading one if
/// it came to no choice.
fn blamed_rule<'a>(task: &'a Task, failure: &'a Failure) -> &'a str {
    failure.rule.as_deref().unwrap_or(&task.rules.primary.id)
}

/// After a lost answer nothing is known until the write can no longer land (protocol rule 5). An
/// answer of the server itself, if only to say 500, leaves it little to finish. A large upload may
/// be put together for minutes yet: it is completed again by the same id, and an upload appears
/// once however often it is completed.
async fn wait_for_unanswered(failure: &Failure) {
    if failure.next_action() != Action::WaitThenReplan {
        return;
    }
    let is_own = failure.answer.is_some_and(|answer| answer.is_own);
    tokio::time::sleep(if is_own { LANDING / 2 } else { LANDING }).await;
}
