//! The dependencies of a route: how many tasks work with each, how many it takes, whether it
//! answers, and what an attempt says about it.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use replicator_core::failure::{Dependency, Failure, FailureKind, Operation};
use replicator_core::retry::{Circuit, ConcurrencyLimit, Epoch, Subject, Suspects};
use replicator_core::rule::BucketRef;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::limit::concurrency::Route;

/// A dependency by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LimitKey {
    Source(BucketRef),
    Destination(BucketRef),
    /// Of a destination's slots those that large objects have.
    Bulk(BucketRef),
    /// Those that one rule has, and that its large objects have.
    Rule(BucketRef, String),
    RuleBulk(BucketRef, String),
    Key(String),
}

#[derive(Debug, Default)]
pub(super) struct Limiter {
    pub(super) in_flight: u32,
    pub(super) limit: ConcurrencyLimit,
    /// Only destinations have one: without its source a task can do nothing anyway, and KMS answers
    /// through S3.
    pub(super) circuit: Circuit,
    /// Which keys fail here, and which of them by themselves.
    pub(super) suspects: Suspects,
    /// What failed last.
    pub(super) error: Option<DependencyFailure>,
}

/// What an attempt says about the dependencies to which it sent requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feedback {
    /// No request was sent, or the attempt ended before the destination could say anything.
    None,
    /// Every dependency served its requests; something was written, or not.
    Served { wrote: bool },
    /// One dependency throttles.
    Throttled(Dependency),
    /// A dependency did not answer, or had a fault of its own, as far as one key shows.
    Failed(DependencyFailure),
    /// The destination answered, but refused.
    Reachable,
}

/// A failure that may be a dependency's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct DependencyFailure {
    pub(super) dependency: Dependency,
    pub(super) operation: Operation,
    /// What the answer was, if there was one.
    pub(super) status: Option<u16>,
    /// The dependency answered something else in the same attempt.
    pub(super) was_answered: bool,
}

/// The dependencies that answered a request of one attempt.
#[derive(Debug, Default)]
pub(super) struct Answered {
    source: AtomicBool,
    destination: AtomicBool,
}

impl Feedback {
    /// Returns what a failure says, given which dependencies answered other requests.
    pub(super) fn from_failure(failure: &Failure, answered: &Answered) -> Self {
        if let Some(dependency) = failure.suspected_dependency() {
            return Self::Failed(DependencyFailure {
                dependency,
                operation: failure.operation,
                status: failure.answer.map(|answer| answer.status),
                was_answered: answered.has(dependency),
            });
        }
        match (failure.kind, failure.dependency) {
            (FailureKind::Throttled, Some(dependency)) => Self::Throttled(dependency),
            (_, None | Some(Dependency::Source)) => Self::None,
            // KMS answers through the destination.
            (_, Some(Dependency::Destination | Dependency::DestinationKey)) => Self::Reachable,
        }
    }

    pub(super) fn failure(self) -> Option<DependencyFailure> {
        match self {
            Self::Failed(failure) => Some(failure),
            Self::None | Self::Served { .. } | Self::Throttled(_) | Self::Reachable => None,
        }
    }
}

impl Answered {
    pub(super) fn record(&self, dependency: Dependency) {
        match dependency {
            Dependency::Source => self.source.store(true, Ordering::Relaxed),
            Dependency::Destination | Dependency::DestinationKey => {
                self.destination.store(true, Ordering::Relaxed);
            }
        }
    }

    /// Says whether a dependency answered; for KMS only a write would show it, so it never counts.
    fn has(&self, dependency: Dependency) -> bool {
        match dependency {
            Dependency::Source => self.source.load(Ordering::Relaxed),
            Dependency::Destination => self.destination.load(Ordering::Relaxed),
            Dependency::DestinationKey => false,
        }
    }
}

impl fmt::Display for DependencyFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            Some(status) => write!(f, "answers {status} to {}", self.operation),
            None => write!(f, "does not answer {}", self.operation),
        }
    }
}

/// Describes why the circuit of a destination is open; one that throttles has no failure.
pub(super) fn described(failure: Option<DependencyFailure>) -> String {
    failure.map_or_else(
        || "throttles even one task at a time".to_owned(),
        |failure| failure.to_string(),
    )
}

/// A dependency that is throttled, or whose circuit is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, ToSchema)]
pub struct DegradedDependency {
    /// A bucket or a key.
    pub name: String,
    /// Its circuit is open: one task at a time may try, because it fails every request.
    pub is_circuit_open: bool,
    /// The last error, while its circuit is open or the source fails.
    #[serde(default)]
    pub error: String,
    /// How many tasks may work with it, if it throttled.
    pub concurrency_limit: Option<u32>,
    /// How many do.
    pub in_flight: u32,
}

/// What feedback changed for the waiting tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// The time to wait for.
    Later,
    Opened,
    Closed,
    Narrowed(Dependency),
    Widened,
}

/// What a route offers to the tasks that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct HealthView {
    is_open: bool,
    limited: Option<Dependency>,
    /// When a waiting task may be admitted without any other change.
    pub(super) wakes: Option<Instant>,
}

impl HealthView {
    pub(super) fn of_route(limiters: &BTreeMap<LimitKey, Limiter>, route: &Route) -> Self {
        let of = |dependency| limiters.get(&route.limit_key(dependency));
        let is_limited = |dependency: &Dependency| {
            of(*dependency).is_some_and(|limiter| limiter.limit.current_limit().is_some())
        };
        let all = route.limit_keys().filter_map(|key| limiters.get(&key));
        let dependencies = [
            Dependency::Destination,
            Dependency::DestinationKey,
            Dependency::Source,
        ];
        Self {
            is_open: of(Dependency::Destination).is_some_and(|limiter| limiter.circuit.is_open()),
            limited: dependencies.into_iter().find(is_limited),
            wakes: all
                .flat_map(|limiter| [limiter.limit.paused_until(), limiter.circuit.opens_until()])
                .flatten()
                .max(),
        }
    }

    pub(super) fn change_since(self, before: Self) -> Change {
        match (before.is_open, self.is_open) {
            (false, true) => return Change::Opened,
            (true, false) => return Change::Closed,
            (true, true) | (false, false) => {}
        }
        match (before.limited, self.limited) {
            (None, Some(dependency)) => Change::Narrowed(dependency),
            (Some(_), None) => Change::Widened,
            _ if before.wakes != self.wakes => Change::Later,
            _ => Change::None,
        }
    }
}

// While another task probes the destination, an earlier delivery costs receipts and gains nothing.
const AWAY_MIN: Duration = Duration::from_secs(10);

impl Limiter {
    pub(super) fn current_epoch(&self) -> Epoch {
        self.limit.current_epoch(self.in_flight)
    }

    pub(super) fn has_room(&self, share: u32, now: Instant) -> bool {
        self.in_flight < share && self.limit.has_room(self.in_flight, now)
    }

    /// Records an answer to any request.
    pub(super) fn record_answer(&mut self) {
        self.circuit.on_success();
        self.suspects.record_answer();
        self.error = None;
    }

    /// Says whether a key may be served though others failed.
    pub(super) fn may_serve(&self, subject: Subject) -> bool {
        self.error.is_some() && !self.circuit.is_probed() && self.suspects.may_succeed(subject)
    }

    /// Returns for how long a task is turned away while the circuit is open.
    pub(super) fn away(&self, now: Instant) -> Duration {
        self.circuit.opens_until().map_or(AWAY_MIN, |until| {
            until.saturating_duration_since(now).max(AWAY_MIN)
        })
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.circuit.is_open() || self.limit.current_limit().is_some()
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a limit is from 1 to 128"
    )]
    pub(super) fn describe(&self, key: &LimitKey) -> DegradedDependency {
        let is_circuit_open = self.circuit.is_open();
        let error = match (key, self.error) {
            (LimitKey::Source(_), Some(failure)) => failure.to_string(),
            (_, failure) if is_circuit_open => described(failure),
            _ => String::new(),
        };
        DegradedDependency {
            name: key.name(),
            is_circuit_open,
            error,
            concurrency_limit: self.limit.current_limit().map(|limit| limit as u32),
            in_flight: self.in_flight,
        }
    }
}

impl LimitKey {
    fn name(&self) -> String {
        match self {
            Self::Source(place) | Self::Destination(place) | Self::Bulk(place) => {
                place.bucket.to_string()
            }
            Self::Key(name) | Self::Rule(_, name) | Self::RuleBulk(_, name) => name.clone(),
        }
    }
}

impl Route {
    /// Names one of its dependencies.
    pub(super) fn limit_key(&self, dependency: Dependency) -> LimitKey {
        match (dependency, &self.key) {
            (Dependency::Source, _) => LimitKey::Source(self.source.clone()),
            (Dependency::DestinationKey, Some(key)) => LimitKey::Key(key.clone()),
            // A key that the rule does not name is the destination's own affair.
            (Dependency::Destination | Dependency::DestinationKey, _) => {
                LimitKey::Destination(self.destination.clone())
            }
        }
    }

    pub(super) fn limit_keys(&self) -> impl Iterator<Item = LimitKey> + use<> {
        let (destination, rule) = (&self.destination, &self.rule);
        let all = [
            LimitKey::Source(self.source.clone()),
            LimitKey::Destination(destination.clone()),
            LimitKey::Rule(destination.clone(), rule.clone()),
        ];
        let bulk = [
            LimitKey::Bulk(destination.clone()),
            LimitKey::RuleBulk(destination.clone(), rule.clone()),
        ];
        let bulk = self.is_bulk.then_some(bulk).into_iter().flatten();
        all.into_iter()
            .chain(bulk)
            .chain(self.key.clone().map(LimitKey::Key))
    }
}
