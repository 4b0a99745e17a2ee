//! The dependencies of a route: how many tasks work with each, how many it takes, and whether it
//! answers.

use std::collections::BTreeMap;
use std::time::Instant;

use replicator_core::circuit::{Circuit, Suspects};
use replicator_core::concurrency_limit::{ConcurrencyLimit, Epoch};
use replicator_core::failure::Dependency;
use replicator_core::rule::BucketRef;
use serde::{Deserialize, Serialize};

use super::super::feedback::{DependencyFailure, described};
use super::Route;

/// A dependency by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum LimitKey {
    Source(BucketRef),
    Destination(BucketRef),
    /// Of a destination's places those that large objects have.
    Bulk(BucketRef),
    /// Those that one rule has, and that its large objects have.
    Rule(BucketRef, String),
    RuleBulk(BucketRef, String),
    Key(String),
}

#[derive(Debug, Default)]
pub(super) struct Limiter {
    pub(super) in_flight: u32,
    pub(super) window: ConcurrencyLimit,
    /// Only destinations have one: without its source a task can do nothing anyway, and KMS answers
    /// through S3.
    pub(super) circuit: Circuit,
    /// Which keys fail here, and which of them by themselves.
    pub(super) suspects: Suspects,
    /// What failed last.
    pub(super) error: Option<DependencyFailure>,
}

/// A dependency that is throttled, or whose circuit is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
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

/// What an answer changed for the waiting tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::concurrency) enum Change {
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
    /// When time alone may open the way.
    pub(super) wakes: Option<Instant>,
}

impl HealthView {
    pub(super) fn of_route(dependencies: &BTreeMap<LimitKey, Limiter>, route: &Route) -> Self {
        let at = |dependency| dependencies.get(&route.site_of(dependency));
        let is_limited = |dependency: &Dependency| {
            at(*dependency).is_some_and(|gate| gate.window.current_limit().is_some())
        };
        let gates = route.all_sites().filter_map(|site| dependencies.get(&site));
        Self {
            is_open: at(Dependency::Destination).is_some_and(|gate| gate.circuit.is_open()),
            limited: [
                Dependency::Destination,
                Dependency::DestinationKey,
                Dependency::Source,
            ]
            .into_iter()
            .find(is_limited),
            wakes: gates
                .flat_map(|gate| [gate.window.paused_until(), gate.circuit.opens_until()])
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

/// Destinations that have work, and how many tasks those are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Busy {
    pub(super) destinations: u32,
    pub(super) tasks: u32,
}

impl Busy {
    pub(super) fn among_dependencies(dependencies: &BTreeMap<LimitKey, Limiter>) -> Self {
        let mut busy = Self {
            destinations: 0,
            tasks: 0,
        };
        for (site, gate) in dependencies.iter().filter(|(_, gate)| gate.in_flight > 0) {
            if let LimitKey::Destination(_) = site {
                busy.destinations += 1;
                busy.tasks += gate.in_flight;
            }
        }
        busy
    }
}

impl Limiter {
    pub(super) fn enter_epoch(&self) -> Epoch {
        self.window.current_epoch(self.in_flight)
    }

    pub(super) fn has_room(&self, share: u32, now: Instant) -> bool {
        self.in_flight < share && self.window.has_room(self.in_flight, now)
    }

    /// Records an answer to any request.
    pub(super) fn record_answered(&mut self) {
        self.circuit.on_success();
        self.suspects.record_answer();
        self.error = None;
    }

    pub(super) fn is_degraded(&self) -> bool {
        self.circuit.is_open() || self.window.current_limit().is_some()
    }

    pub(super) fn has_source_trouble(&self, site: &LimitKey) -> bool {
        matches!(site, LimitKey::Source(_)) && self.error.is_some()
    }

    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a width is from 1 to 128"
    )]
    pub(super) fn describe(&self, site: &LimitKey) -> DegradedDependency {
        let name = match site {
            LimitKey::Source(place) | LimitKey::Destination(place) | LimitKey::Bulk(place) => {
                place.bucket.to_string()
            }
            LimitKey::Key(name) | LimitKey::Rule(_, name) | LimitKey::RuleBulk(_, name) => {
                name.clone()
            }
        };
        let width = self.window.current_limit().map(|width| width as u32);
        let is_left_alone = self.circuit.is_open();
        let error = match (site, self.error) {
            (LimitKey::Source(_), Some(trouble)) => trouble.to_string(),
            (_, trouble) if is_left_alone => described(trouble),
            _ => String::new(),
        };
        DegradedDependency {
            name,
            is_circuit_open: is_left_alone,
            error,
            concurrency_limit: width,
            in_flight: self.in_flight,
        }
    }
}

impl Route {
    /// Names one of its dependencies.
    pub(super) fn site_of(&self, dependency: Dependency) -> LimitKey {
        match (dependency, &self.key) {
            (Dependency::Source, _) => LimitKey::Source(self.source.clone()),
            (Dependency::DestinationKey, Some(key)) => LimitKey::Key(key.clone()),
            // A key that the rule does not name is the destination's own affair.
            (Dependency::Destination | Dependency::DestinationKey, _) => {
                LimitKey::Destination(self.destination.clone())
            }
        }
    }

    pub(super) fn all_sites(&self) -> impl Iterator<Item = LimitKey> + use<> {
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
