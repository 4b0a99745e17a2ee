//! How many tasks may work with a dependency, and when: all that write to a destination, or under a
//! KMS key, slow down together when it throttles, and stop but for one probe at a time when it does
//! not answer. A task that waits here holds nothing that other tasks could use.

mod feedback;
mod scheduler;

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use replicator_core::circuit::Subject;
use replicator_core::failure::{Dependency, Failure};
use replicator_core::object::Key;
use replicator_core::rule::{BucketRef, Encryption, Rule};
use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;
use tracing::{info, warn};

pub(crate) use feedback::Feedback;
use feedback::{DependencyFailure, Heard, described};
pub(crate) use scheduler::DegradedDependency;
use scheduler::{Change, Entered, Lined, Scheduler};

/// The gates of every dependency; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct ConcurrencyControl(Arc<ControlShared>);

#[derive(Debug, Default)]
struct ControlShared {
    state: Mutex<ControlState>,
    /// Rings when what a waiting task waits for has another time.
    changed: Notify,
}

#[derive(Debug, Default)]
struct ControlState {
    gates: Scheduler,
    /// The channel to each waiting task; each is in one of the gates' queues, and in flight at the
    /// dispatch.
    waiting: BTreeMap<u64, oneshot::Sender<AdmissionResult>>,
}

/// What a waiting task is told.
#[derive(Debug)]
enum AdmissionResult {
    Enter(TaskPermit),
    TurnedAway(Unavailable),
}

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
    concurrency: ConcurrencyControl,
    route: Arc<Route>,
    entered: Entered,
    heard: Arc<Heard>,
    answer: Feedback,
}

/// The destination does not answer, and another task finds out when it does: come back after this
/// time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unavailable(pub(crate) Duration);

tokio::task_local! {
    /// The pass that this task works under.
    static UNDER: Under;
}

/// The pass of a task, for the requests that it sends.
struct Under {
    concurrency: ConcurrencyControl,
    route: Arc<Route>,
    entered: Entered,
    heard: Arc<Heard>,
}

/// Records that a dependency answered a request of the task.
pub(crate) fn heard(dependency: Dependency) {
    let _nobody = UNDER.try_with(|under| under.heard.hear(dependency));
}

/// Records that a request of the task was throttled. The request may be sent again and the task end
/// well; the dependency's window narrows now. Outside of a task nothing is paced.
pub(crate) fn strained(dependency: Dependency) {
    let _nobody = UNDER.try_with(|under| {
        under
            .concurrency
            .strained(&under.route, under.entered, dependency);
    });
}

impl ConcurrencyControl {
    /// Takes over which rules there are.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        self.lock_state().gates.replace(rules);
        self.admit_waiters();
        self.0.changed.notify_waiters();
    }

    /// Waits until a task may work on a key of a route, unless the circuit of its destination is
    /// open.
    pub(crate) async fn acquire_permit(
        &self,
        route: &Route,
        key: &Key,
    ) -> Result<TaskPermit, Unavailable> {
        let mut place = match self.line_up(route, subject(key)) {
            Ok(settled) => return settled,
            Err(place) => place,
        };
        loop {
            let changed = self.0.changed.notified();
            let opens = self
                .lock_state()
                .gates
                .wakes_at(route)
                .map(Instant::from_std);
            let is_over = opens.is_some_and(|opens| opens <= Instant::now());
            if is_over {
                // No other task may have acted on it.
                self.admit_waiters();
            }
            tokio::select! {
                biased;
                told = &mut place.told => return match told {
                    Ok(AdmissionResult::Enter(pass)) => Ok(pass),
                    Ok(AdmissionResult::TurnedAway(away)) => Err(away),
                    // A waiting task always gets an answer: this is a refusal to guess.
                    Err(_) => Err(Unavailable(Duration::ZERO)),
                },
                () = changed => {}
                () = until(opens.filter(|_| !is_over)) => {}
            }
        }
    }

    /// Says whether the circuit of a destination is open because it does not answer.
    pub(crate) fn is_circuit_open(&self, destination: &BucketRef) -> bool {
        self.lock_state().gates.leaves_alone(destination)
    }

    /// Says whether a key failed by itself, and not because a dependency is in trouble.
    pub(crate) fn is_own(&self, route: &Route, key: &Key, answer: Feedback) -> bool {
        match answer {
            Feedback::Failed(trouble) => {
                self.is_own_with(route, key, (trouble.dependency, trouble.was_heard))
            }
            Feedback::Throttled(dependency) => self.is_own_with(route, key, (dependency, false)),
            Feedback::None | Feedback::Served { .. } | Feedback::Reachable => true,
        }
    }

    fn is_own_with(&self, route: &Route, key: &Key, heard: (Dependency, bool)) -> bool {
        self.lock_state().gates.is_own(route, subject(key), heard)
    }

    /// Lists the dependencies that are throttled or whose circuit is open.
    pub(crate) fn degraded_dependencies(&self) -> Vec<DegradedDependency> {
        self.lock_state().gates.degraded_dependencies()
    }

    fn line_up(
        &self,
        route: &Route,
        subject: Subject,
    ) -> Result<Result<TaskPermit, Unavailable>, InLine> {
        let mut state = self.lock_state();
        match state.gates.line_up(route, subject, now()) {
            Lined::In(entered) => Ok(Ok(self.pass(route.clone(), entered))),
            Lined::Away(wait) => Ok(Err(Unavailable(wait))),
            Lined::Waits(number) => {
                let (tell, told) = oneshot::channel();
                state.waiting.insert(number, tell);
                Err(InLine {
                    concurrency: self.clone(),
                    number,
                    told,
                })
            }
        }
    }

    /// Lets in every task that may enter now.
    fn admit_waiters(&self) {
        let told: Vec<_> = {
            let mut state = self.lock_state();
            let admitted = state.gates.admit_waiting(now());
            let told = |(number, route, entered)| {
                (state.waiting.remove(&number), self.pass(route, entered))
            };
            admitted.into_iter().map(told).collect()
        };
        tell(
            told.into_iter()
                .filter_map(|(tell, pass)| Some((tell?, AdmissionResult::Enter(pass)))),
        );
    }

    /// Gives a pass back; tells the tasks whose turn that changes.
    fn return_pass(&self, pass: &TaskPermit) {
        let (change, told) = {
            let mut state = self.lock_state();
            let (now, jitter) = (now(), fastrand::f64());
            let change =
                state
                    .gates
                    .record_leave(&pass.route, pass.entered, pass.answer, (now, jitter));
            let away = state.gates.turn_away(&pass.route.destination, now);
            let told: Vec<_> = away
                .into_iter()
                .filter_map(|(number, wait)| {
                    Some((
                        state.waiting.remove(&number)?,
                        AdmissionResult::TurnedAway(Unavailable(wait)),
                    ))
                })
                .collect();
            (change, told)
        };
        tell(told.into_iter());
        self.admit_waiters();
        if change != Change::None {
            report(change, &pass.route, pass.answer);
            self.0.changed.notify_waiters();
        }
    }

    fn strained(&self, route: &Route, entered: Entered, dependency: Dependency) {
        let change = self.lock_state().gates.strained(route, entered, dependency);
        if change != Change::None {
            report(change, route, Feedback::Throttled(dependency));
            self.0.changed.notify_waiters();
        }
    }

    fn pass(&self, route: Route, entered: Entered) -> TaskPermit {
        TaskPermit {
            concurrency: self.clone(),
            route: Arc::new(route),
            entered,
            heard: Arc::default(),
            answer: Feedback::None,
        }
    }

    fn lock_state(&self) -> MutexGuard<'_, ControlState> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Sleeps until the time alone may open the way; for ever if nothing but a change will.
async fn until(opens: Option<Instant>) {
    match opens {
        Some(opens) => tokio::time::sleep_until(opens).await,
        None => std::future::pending().await,
    }
}

/// Tells without the lock: a pass whose task is gone is given back on the spot.
fn tell(told: impl Iterator<Item = (oneshot::Sender<AdmissionResult>, AdmissionResult)>) {
    for (tell, told) in told {
        let _taken = tell.send(told);
    }
}

fn report(change: Change, route: &Route, answer: Feedback) {
    let bucket = route.destination.bucket.as_str();
    match change {
        Change::None | Change::Later => {}
        Change::Opened => {
            let trouble = described(answer.trouble());
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
struct InLine {
    concurrency: ConcurrencyControl,
    number: u64,
    told: oneshot::Receiver<AdmissionResult>,
}

impl Drop for InLine {
    fn drop(&mut self) {
        let mut state = self.concurrency.lock_state();
        state.waiting.remove(&self.number);
        state.gates.forget(self.number);
    }
}

impl TaskPermit {
    /// Does some work under this pass.
    pub(crate) async fn over<T>(&self, work: impl Future<Output = T>) -> T {
        let (route, heard) = (Arc::clone(&self.route), Arc::clone(&self.heard));
        let under = Under {
            concurrency: self.concurrency.clone(),
            route,
            entered: self.entered,
            heard,
        };
        UNDER.scope(under, work).await
    }

    /// Returns what a failure of this attempt tells.
    pub(crate) fn told_by(&self, failure: &Failure) -> Feedback {
        Feedback::from_failure(failure).given(&self.heard)
    }

    /// Gives the pass back and says how it went.
    pub(crate) fn leave_with(mut self, answer: Feedback) {
        self.answer = answer;
    }
}

impl Drop for TaskPermit {
    fn drop(&mut self) {
        self.concurrency.return_pass(self);
    }
}

impl Route {
    /// Returns the route that a rule's small replicas take.
    pub(crate) fn of(rule: &Rule) -> Self {
        let key = match &rule.encryption {
            Encryption::Kms { key, .. } | Encryption::Dsse { key } => Some(key.clone()),
            // Whatever key that comes to, it is the destination's own.
            Encryption::Same { .. } | Encryption::BucketDefault | Encryption::S3 => None,
        };
        let (source, destination) = (rule.source.clone(), rule.destination.clone());
        Self {
            source,
            destination,
            key,
            rule: rule.id.clone(),
            is_bulk: false,
        }
    }
}

#[cfg(test)]
mod tests;
