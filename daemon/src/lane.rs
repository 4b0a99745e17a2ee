//! One lane at work: a task is tried until it is settled, parked, or given back to the queue.

use std::time::Duration;

use replicator_core::deadline::LANDING;
use replicator_core::event::Action;
use replicator_core::failure::{Failure, Kind, Reason, Verdict, chain};
use replicator_core::operation::Operation;
use replicator_core::retry;
use tracing::{debug, warn};

use crate::clock;
use crate::engine::Engine;
use crate::failpoint::Step;
use crate::fanout::Reader;
use crate::lease;
use crate::ledger::Parts;
use crate::ledger::records::{ParkedTask, Upload};
use crate::metrics::Outcome;
use crate::pace::{Answer, Pass, Route, TurnedAway};
use crate::panics::contain_task;
use crate::parking;
use crate::task::{Report, Task, Wish};
use crate::transfer::{Memory, bring_up_to_date, is_bulk};

/// How a task ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Every wish has its outcome.
    Settled(Report),
    /// Kept durably until an operator acts.
    Parked(Reason),
    /// The failure lasts: the queue shall deliver again after this time.
    HandedBack(Duration),
    /// The circuit of the destination is open, or it throttles: the queue shall deliver again after
    /// this time. That counts as progress, unlike a failure.
    TurnedAway(Duration),
    /// The work was stopped because a lease was lost or the daemon stops.
    Stopped,
}

/// A few tries outlast a hiccup; what lasts longer waits in the queue, where it holds nothing up.
const ATTEMPTS_MAX: u32 = 5;

/// So many deliveries of a message of a work queue, whichever workers had them, are enough for what
/// fails because of its key alone.
const RECEIVED_MAX: u32 = 20;

/// Other daemons' writes are behind refused conditions, and each of those means progress; more in
/// a row than this means that something else is.
const REREADS_MAX: u32 = 10;

/// Works on a task until it ends, if by a panic. Then something may have been sent, as by a task that is cut off.
pub(crate) async fn work(engine: &Engine, task: &Task) -> Ended {
    if let Some(since) = task.takes_over {
        // By then the other worker sends no write any more, and what it sent has landed, but for an
        // upload that is being completed.
        tokio::time::sleep((lease::CONFIRMED_WITHIN + LANDING).saturating_sub(since.elapsed())).await;
    }
    engine.predecessor.has_landed().await;
    match contain_task(&engine.metrics, Box::pin(attempt(engine, task))).await {
        Ok(ended) => ended,
        Err(panicked) => {
            let failure = Failure::caused(Kind::Refused(Reason::TaskPanicked), Operation::RunTask, panicked);
            tokio::time::sleep(LANDING).await;
            refused(engine, task, Reason::TaskPanicked, &failure).await
        }
    }
}

/// Tries until there is an end. Between attempts, and while other tasks are in the way, it holds
/// nothing that they could use.
async fn attempt(engine: &Engine, task: &Task) -> Ended {
    let route = Route { is_bulk: is_bulk(engine, task), ..Route::of(&task.rules.lead) };
    let reader = engine.fanout.enrol(&task.source, &task.source_key);
    let mut memory = Memory::default();
    let (mut attempt, mut rereads) = (1, 0);
    loop {
        let pass = match engine.pace.enter(&route, &task.lane.key).await {
            Ok(pass) => pass,
            Err(TurnedAway(wait)) => return turned_away(engine, task, wait),
        };
        let Failed { failure, answer } = match try_once((engine, task, &reader), &mut memory, pass).await {
            Ok(report) => {
                engine.retries.clear(&task.lane);
                return Ended::Settled(report);
            }
            Err(failed) => failed,
        };
        let wait = match failure.verdict() {
            Verdict::Reread if rereads < REREADS_MAX => {
                rereads += 1;
                debug!(key = task.lane.key.as_str(), error = chain(&failure), "reading again");
                retry::delay(rereads, fastrand::f64())
            }
            // Nothing went wrong, and time passes as it should.
            Verdict::Wait(wait) => {
                engine.pulse.beat();
                debug!(key = task.lane.key.as_str(), ?wait, "waiting for what may yet land");
                wait
            }
            Verdict::Park(reason) => return refused(engine, task, reason, &failure).await,
            Verdict::Reread
            | Verdict::HoldThenReread
            | Verdict::Retry
            | Verdict::Throttle
            | Verdict::Gone
            | Verdict::Unsupported(_) => {
                report_failure(engine, task, &failure);
                hold(&failure).await;
                if attempt >= ATTEMPTS_MAX {
                    return given_up((engine, task), &route, &Failed { failure, answer }).await;
                }
                attempt += 1;
                retry::delay(attempt, fastrand::f64())
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// Parks a task, unless its next message could come to a worker without a record of its upload.
async fn refused(engine: &Engine, task: &Task, reason: Reason, failure: &Failure) -> Ended {
    match may_appear(engine, task) {
        false => park_on_schedule(engine, task, reason, failure).await,
        true => Ended::HandedBack(retry::ceiling(ATTEMPTS_MAX * 2)),
    }
}

/// An attempt that failed, and what that tells of the dependencies.
struct Failed {
    failure: Failure,
    answer: Answer,
}

async fn try_once(
    (engine, task, reader): (&Engine, &Task, &Reader),
    memory: &mut Memory,
    pass: Pass,
) -> Result<Report, Failed> {
    let at_work = engine.pulse.at_work(&task.lane);
    let result = pass.over(Box::pin(bring_up_to_date(engine, task, reader, memory))).await;
    drop(at_work);
    let answer = match &result {
        // The ledger alone answered.
        Ok(_) if memory.is_blank() => Answer::None,
        Ok(report) => Answer::Served { wrote: report.written > 0 },
        Err(failure) => pass.told_by(failure),
    };
    pass.leave(answer);
    result.map_err(|failure| Failed { failure, answer })
}

/// Trouble of a known dependency that is already limited counts as progress; other trouble may be
/// the daemon's own. What fails, or is throttled, because of its key alone for too long is parked:
/// nothing else would ever end it.
async fn given_up((engine, task): (&Engine, &Task), route: &Route, failed: &Failed) -> Ended {
    let wait = retry::ceiling(ATTEMPTS_MAX * 2);
    let failure = &failed.failure;
    if failure.kind == Kind::LeaseUnsure {
        return Ended::HandedBack(wait);
    }
    let is_own = engine.pace.is_own(route, &task.lane.key, failed.answer);
    if failure.verdict() == Verdict::Throttle && !is_own || engine.pace.leaves_alone(&route.destination) {
        return turned_away(engine, task, wait);
    }
    if !is_own {
        engine.retries.clear(&task.lane);
        return Ended::HandedBack(wait);
    }
    // Other daemons had a share of the deliveries, and each counts only its own failures.
    let is_received_often = engine.work_queues.are_used() && task.receive_count >= RECEIVED_MAX;
    match engine.retries.count_failure(&task.lane) || is_received_often {
        true => refused(engine, task, Reason::RetriesExhausted, failure).await,
        false => Ended::HandedBack(wait),
    }
}

/// That the destination throttles or does not answer says nothing of the key, so its failures no
/// longer count. A message that is to wait for an upload counts as one that is delivered again.
fn turned_away(engine: &Engine, task: &Task, wait: Duration) -> Ended {
    engine.retries.clear(&task.lane);
    if may_appear(engine, task) { Ended::HandedBack(wait) } else { Ended::TurnedAway(wait) }
}

/// Says whether the completion of an upload was sent, of which another worker would have no record.
fn may_appear(engine: &Engine, task: &Task) -> bool {
    let is_known_settled = || engine.ledger.upload(&task.lane).is_ok_and(|upload| upload.is_none_or(is_settled));
    engine.work_queues.are_used() && !is_known_settled()
}

fn is_settled((upload, _): (Upload, Parts)) -> bool {
    upload.appears_until.is_none()
}

/// Parks a task where a test may end the daemon, to be tried again on schedule.
async fn park_on_schedule(engine: &Engine, task: &Task, reason: Reason, failure: &Failure) -> Ended {
    engine.failpoints.around(Step::Park, async { park(engine, task, reason, failure) }).await
}

/// A refusal is written down before the message may go.
fn park(engine: &Engine, task: &Task, reason: Reason, failure: &Failure) -> Ended {
    let rule = blamed(task, failure);
    let detail = chain(failure);
    warn!(rule, key = task.lane.key.as_str(), reason = reason.as_str(), error = detail, "parked");
    engine.metrics.failure(rule, reason.as_str());
    for wish in task.wishes.iter().filter(|wish| is_refused(reason, wish)) {
        let blank = task.parked(wish, reason, clock::now());
        let parked = ParkedTask { rule: rule.to_owned(), detail: detail.clone(), ..blank };
        if let Err(failure) = keep(engine, parked) {
            warn!(rule, error = chain(&failure), "cannot write to the ledger");
            return Ended::HandedBack(retry::ceiling(ATTEMPTS_MAX));
        }
        let bucket = task.lane.destination.bucket.as_str();
        engine.metrics.operation(rule, bucket, wish.action.as_str(), Outcome::Parked);
    }
    Ended::Parked(reason)
}

/// Says whether a refusal is about a wish: a quota of version deletes is told of when everything else is done.
fn is_refused(reason: Reason, wish: &Wish) -> bool {
    reason != Reason::VersionDeletesPerHour || wish.action == Action::VersionDelete
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
    engine.ledger.park(&ParkedTask { since, tries, due, ..parked })
}

fn report_failure(engine: &Engine, task: &Task, failure: &Failure) {
    let rule = blamed(task, failure);
    warn!(rule, key = task.lane.key.as_str(), error = chain(failure), "attempt failed");
    engine.metrics.failure(rule, failure.kind.code());
}

/// Names the rule that a failure is booked on: the one that took the version, or the leading one if it came to no choice.
fn blamed<'a>(task: &'a Task, failure: &'a Failure) -> &'a str {
    failure.rule.as_deref().unwrap_or(&task.rules.lead.id)
}

/// After a lost answer nothing is known until the write can no longer land (protocol rule 7). An
/// answer of the server itself, if only to say 500, leaves it little to finish. A large upload may be put together
/// for minutes yet: it is completed again by the same id, and an upload appears once however often it is completed.
async fn hold(failure: &Failure) {
    if failure.verdict() != Verdict::HoldThenReread {
        return;
    }
    let is_own = failure.answer.is_some_and(|answer| answer.is_own);
    tokio::time::sleep(if is_own { LANDING / 2 } else { LANDING }).await;
}
