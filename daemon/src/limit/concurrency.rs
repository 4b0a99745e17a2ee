//! How many tasks may work with a dependency, and when: all that write to a destination, or under a
//! KMS key, slow down together when it throttles, and stop but for one probe at a time when it does
//! not answer. A task that waits here holds nothing that other tasks could use.

mod limiter;
mod scheduler;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use replicator_core::failure::{Dependency, Failure};
use replicator_core::object::Key;
use replicator_core::retry::Subject;
use replicator_core::rule::{BucketRef, Encryption, ReplicaKey, Rule};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, sleep_until};
use tracing::{info, warn};

use crate::s3::client::{AnswerObserver, observed};
use limiter::{Answered, Change, described};
pub(crate) use limiter::{DegradedDependency, Feedback};
use scheduler::{Placement, Scheduler, Slot};

/// The limits of every dependency; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConcurrencyControl {
    state: Arc<Mutex<ControlState>>,
    /// Notified when the time for which a waiting task sleeps may have changed.
    changed: Arc<Notify>,
}

#[derive(Debug, Default)]
struct ControlState {
    scheduler: Scheduler,
    /// The channel to each waiting task; each is in one of the scheduler's queues, and in flight at
    /// the dispatch.
    waiting: BTreeMap<u64, oneshot::Sender<Decision>>,
}

type Decision = Result<TaskPermit, Unavailable>;

/// Where a task's requests go.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Route {
    pub(crate) source: BucketRef,
    pub(crate) destination: BucketRef,
    pub(crate) key: Option<String>,
    /// The rule that sends it there.
    pub(crate) rule: String,
    /// It is a large object that goes there.
    pub(crate) is_bulk: bool,
}

/// The permit to work on a route; given back on drop.
#[must_use]
#[derive(Debug)]
pub(crate) struct TaskPermit {
    admitted: Arc<Admitted>,
    feedback: Feedback,
}

/// A task that was admitted, as its requests see it.
#[derive(Debug)]
struct Admitted {
    concurrency: ConcurrencyControl,
    route: Route,
    slot: Slot,
    answered: Answered,
}

/// The destination does not answer, and another task finds out when it does: come back after this
/// time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unavailable(pub(crate) Duration);

impl AnswerObserver for Admitted {
    fn record_answer(&self, dependency: Dependency) {
        self.answered.record(dependency);
    }

    /// The dependency's limit shrinks now.
    fn record_throttled(&self, dependency: Dependency) {
        let change = self.concurrency.state.lock().scheduler.record_throttled(
            &self.route,
            self.slot,
            dependency,
        );
        let feedback = Feedback::Throttled(dependency);
        self.concurrency.announce(change, &self.route, feedback);
    }
}

impl ConcurrencyControl {
    /// Takes over which rules there are.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        self.state.lock().scheduler.replace(rules);
        self.admit_waiters();
        self.changed.notify_waiters();
    }

    /// Waits until a task may work on a key of a route, unless the circuit of its destination is
    /// open.
    pub(crate) async fn acquire_permit(&self, route: &Route, key: &Key) -> Decision {
        let mut waiting = {
            let mut state = self.state.lock();
            match state.scheduler.enqueue(route, subject(key), now()) {
                Placement::Admitted(slot) => return Ok(self.permit(route.clone(), slot)),
                Placement::TurnedAway(wait) => return Err(Unavailable(wait)),
                Placement::Queued(number) => {
                    let (sender, decision) = oneshot::channel();
                    state.waiting.insert(number, sender);
                    Waiting {
                        concurrency: self.clone(),
                        number,
                        decision,
                    }
                }
            }
        };
        loop {
            let changed = self.changed.notified();
            let mut wake = self.state.lock().scheduler.wakes_at(route);
            if wake.is_some_and(|wake| wake <= now()) {
                // No other task may have acted on it.
                self.admit_waiters();
                wake = None;
            }
            tokio::select! {
                biased;
                // A waiting task always gets a decision: the error is a refusal to guess.
                decision = &mut waiting.decision =>
                    return decision.unwrap_or(Err(Unavailable(Duration::ZERO))),
                () = changed => {}
                () = sleep_until(wake.unwrap_or_else(now).into()), if wake.is_some() => {}
            }
        }
    }

    /// Says whether the circuit of a destination is open because it does not answer.
    pub(crate) fn is_circuit_open(&self, destination: &BucketRef) -> bool {
        self.state.lock().scheduler.is_circuit_open(destination)
    }

    /// Says whether a key failed by itself, and not because a dependency is in trouble.
    pub(crate) fn is_own(&self, route: &Route, key: &Key, feedback: Feedback) -> bool {
        let (dependency, was_answered) = match feedback {
            Feedback::Failed(failure) => (failure.dependency, failure.was_answered),
            Feedback::Throttled(dependency) => (dependency, false),
            Feedback::None | Feedback::Served { .. } | Feedback::Reachable => return true,
        };
        let state = self.state.lock();
        state
            .scheduler
            .is_own(route, subject(key), (dependency, was_answered))
    }

    /// Lists the dependencies that are throttled or whose circuit is open.
    pub(crate) fn degraded_dependencies(&self) -> Vec<DegradedDependency> {
        self.state.lock().scheduler.degraded_dependencies()
    }

    /// Admits every task that may be admitted now.
    fn admit_waiters(&self) {
        let decisions: Vec<_> = {
            let mut state = self.state.lock();
            let admitted = state.scheduler.admit_waiting(now());
            let permits = admitted.into_iter().map(|(number, route, slot)| {
                (state.waiting.remove(&number), Ok(self.permit(route, slot)))
            });
            permits.collect()
        };
        send_all(decisions);
    }

    /// Gives a permit back; notifies the tasks that this admits or turns
    /// away.
    fn return_permit(&self, permit: &TaskPermit) {
        let Admitted { route, slot, .. } = &*permit.admitted;
        let (change, decisions) = {
            let mut state = self.state.lock();
            let at = (now(), fastrand::f64());
            let change = state.scheduler.release(route, *slot, permit.feedback, at);
            let away = state.scheduler.turn_away(&route.destination, at.0);
            let decisions = away
                .into_iter()
                .map(|(number, wait)| (state.waiting.remove(&number), Err(Unavailable(wait))));
            (change, decisions.collect())
        };
        send_all(decisions);
        self.admit_waiters();
        self.announce(change, route, permit.feedback);
    }

    fn announce(&self, change: Change, route: &Route, feedback: Feedback) {
        if change != Change::None {
            log(change, route, feedback);
            self.changed.notify_waiters();
        }
    }

    fn permit(&self, route: Route, slot: Slot) -> TaskPermit {
        let admitted = Admitted {
            concurrency: self.clone(),
            route,
            slot,
            answered: Answered::default(),
        };
        TaskPermit {
            admitted: Arc::new(admitted),
            feedback: Feedback::None,
        }
    }
}

/// Sends without the lock: a permit whose task is gone is given back on the spot.
fn send_all(decisions: Vec<(Option<oneshot::Sender<Decision>>, Decision)>) {
    for (sender, decision) in decisions {
        if let Some(sender) = sender {
            let _received = sender.send(decision);
        }
    }
}

fn log(change: Change, route: &Route, feedback: Feedback) {
    let bucket = route.destination.bucket.as_str();
    match change {
        Change::None | Change::Later => {}
        Change::Opened => {
            let trouble = described(feedback.failure());
            warn!(
                destination = bucket,
                trouble, "circuit opened, tasks wait until the destination answers"
            );
        }
        Change::Closed => info!(destination = bucket, "destination answers again"),
        Change::Narrowed(dependency) => warn!(
            destination = bucket,
            ?dependency,
            "throttled, reducing concurrency"
        ),
        Change::Widened => info!(destination = bucket, "no longer throttled"),
    }
}

/// Tells a key from others.
fn subject(key: &Key) -> Subject {
    let mut hasher = DefaultHasher::new();
    key.hash(&mut hasher);
    hasher.finish()
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

/// A place in a queue; left on drop.
#[derive(Debug)]
struct Waiting {
    concurrency: ConcurrencyControl,
    number: u64,
    decision: oneshot::Receiver<Decision>,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.concurrency.state.lock();
        state.waiting.remove(&self.number);
        state.scheduler.remove_waiting(self.number);
    }
}

impl TaskPermit {
    /// Does some work under this permit.
    pub(crate) async fn scope<T>(&self, work: impl Future<Output = T>) -> T {
        let observer: Arc<Admitted> = Arc::clone(&self.admitted);
        observed(observer, work).await
    }

    /// Returns what a failure of this attempt says about the dependencies.
    pub(crate) fn feedback_of(&self, failure: &Failure) -> Feedback {
        Feedback::from_failure(failure, &self.admitted.answered)
    }

    /// Gives the permit back and says how it went.
    pub(crate) fn finish(mut self, feedback: Feedback) {
        self.feedback = feedback;
    }
}

impl Drop for TaskPermit {
    fn drop(&mut self) {
        self.admitted.concurrency.return_permit(self);
    }
}

impl Route {
    /// Returns the route that a rule's small replicas take.
    pub(crate) fn of(rule: &Rule) -> Self {
        let key = match &rule.encryption {
            Encryption::Kms {
                key: ReplicaKey::Named(key),
                ..
            }
            | Encryption::Dsse { key } => Some(key.clone()),
            // Whatever key that comes to, it is the destination's own or the source's.
            Encryption::Kms { .. }
            | Encryption::Same { .. }
            | Encryption::BucketDefault
            | Encryption::S3 => None,
        };
        Self {
            source: rule.source.clone(),
            destination: rule.destination.clone(),
            key,
            rule: rule.id.clone(),
            is_bulk: false,
        }
    }
}

#[cfg(test)]
mod tests;
