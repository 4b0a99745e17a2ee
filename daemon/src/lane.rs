//! One lane at work: a task is tried until it is settled, parked, or handed back to the queue.

use std::time::Duration;

use replicator_core::failure::{Failure, Reason, Verdict, chain};
use replicator_core::fence::LANDING;
use replicator_core::retry;
use tokio::sync::Semaphore;
use tracing::{debug, warn};

use crate::clock;
use crate::engine::Engine;
use crate::failpoint::Step;
use crate::ledger::records::ParkedTask;
use crate::metrics::Outcome;
use crate::task::{Report, Task};
use crate::transfer::{Memory, bring_up_to_date};

/// How a task ended.
#[derive(Debug)]
pub(crate) enum Ended {
    /// Every wish has its outcome.
    Settled(Report),
    /// Kept durably until someone acts.
    Parked(Reason),
    /// The trouble lasts: the queue shall deliver again after this time.
    HandedBack(Duration),
    /// The work was stopped because a lease was lost or the daemon stops.
    Stopped,
}

/// A few tries outlast a hiccup; what lasts longer waits in the queue, where it holds nothing up.
const ATTEMPTS_MAX: u32 = 5;

/// Other daemons' writes are behind refused conditions, and each of those means progress; more in
/// a row than this means that something else is.
const REREADS_MAX: u32 = 10;

/// Works on a task until it ends. `permits` bounds how many tasks work at once; a waiting task
/// holds none.
pub(crate) async fn work(engine: &Engine, task: &Task, permits: &Semaphore) -> Ended {
    let mut memory = Memory::default();
    let (mut attempt, mut rereads) = (1, 0);
    loop {
        let result = {
            let _permit = permits.acquire().await;
            Box::pin(bring_up_to_date(engine, task, &mut memory)).await
        };
        let failure = match result {
            Ok(report) => return Ended::Settled(report),
            Err(failure) => failure,
        };
        let wait = match failure.verdict() {
            Verdict::Reread if rereads < REREADS_MAX => {
                rereads += 1;
                debug!(key = %task.lane.key, error = %chain(&failure), "reading again");
                retry::delay(rereads, jitter())
            }
            // Nothing went wrong, and time passes as it should.
            Verdict::Wait(wait) => {
                engine.pulse.beat();
                debug!(key = %task.lane.key, ?wait, "waiting for what may yet land");
                wait
            }
            Verdict::Park(reason) => {
                return engine.failpoints.around(Step::Park, async { park(engine, task, reason, &failure) }).await;
            }
            Verdict::Reread
            | Verdict::HoldThenReread
            | Verdict::Retry
            | Verdict::Throttle
            | Verdict::Gone
            | Verdict::Unsupported(_) => {
                report_failure(engine, task, &failure);
                hold(&failure).await;
                if attempt >= ATTEMPTS_MAX {
                    return Ended::HandedBack(retry::ceiling(attempt * 2));
                }
                attempt += 1;
                retry::delay(attempt, jitter())
            }
        };
        tokio::time::sleep(wait).await;
    }
}

/// A refusal is written down before the message may go.
fn park(engine: &Engine, task: &Task, reason: Reason, failure: &Failure) -> Ended {
    let rule = &task.rules.lead.id;
    let detail = chain(failure);
    warn!(rule, key = %task.lane.key, reason = reason.as_str(), error = detail, "parked");
    engine.metrics.failure(rule, reason.as_str());
    for wish in &task.wishes {
        let parked = ParkedTask {
            lane: task.lane.clone(),
            rule: rule.clone(),
            source: task.source.clone(),
            source_key: task.source_key.clone(),
            action: wish.action,
            version: wish.version.clone(),
            reason,
            detail: detail.clone(),
            since: clock::now(),
        };
        if let Err(failure) = engine.ledger.park(&parked) {
            warn!(rule, error = chain(&failure), "cannot write to the ledger");
            return Ended::HandedBack(retry::ceiling(ATTEMPTS_MAX));
        }
        let bucket = task.lane.destination.bucket.as_str();
        engine.metrics.operation(rule, bucket, wish.action.as_str(), Outcome::Parked);
    }
    Ended::Parked(reason)
}

fn report_failure(engine: &Engine, task: &Task, failure: &Failure) {
    let rule = &task.rules.lead.id;
    warn!(rule, key = %task.lane.key, error = chain(failure), "attempt failed");
    engine.metrics.failure(rule, failure.kind.code());
}

/// After a lost answer nothing is known until the write can no longer land (protocol rule 7). An
/// answer that did come, if only to say 500, leaves the server little to finish.
async fn hold(failure: &Failure) {
    if failure.verdict() != Verdict::HoldThenReread {
        return;
    }
    let answered = failure.source.as_ref().is_some_and(|cause| cause.to_string().starts_with("answered"));
    tokio::time::sleep(if answered { LANDING / 2 } else { LANDING }).await;
}

/// Returns a number from 0 to 1 that differs between lanes and daemons.
fn jitter() -> f64 {
    use std::hash::{BuildHasher, RandomState};
    let random = RandomState::new().hash_one(0u8);
    f64::from(u32::try_from(random >> 32).unwrap_or_default()) / f64::from(u32::MAX)
}
