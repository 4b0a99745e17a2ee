//! Admits tasks: counts, limits, circuits and queues. No clock and no waiting in here: the time
//! comes in as an argument.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use replicator_core::failure::Dependency;
use replicator_core::retry::{Admission, Epoch, Evidence, Subject};
use replicator_core::rule::{BucketRef, Rule};

use crate::limit::concurrency::Route;
use crate::limit::concurrency::limiter::{
    Change, DegradedDependency, DependencyFailure, Feedback, HealthView, LimitKey, Limiter,
};

/// The limiter of every dependency, and the waiting tasks.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    limiters: BTreeMap<LimitKey, Limiter>,
    /// One queue a route, so that no task waits for a dependency of another route; never empty.
    queues: BTreeMap<Route, VecDeque<(u64, Subject)>>,
    /// How many rules each destination has.
    rules: BTreeMap<BucketRef, u32>,
    last: u64,
}

/// What a task remembers of its admission.
#[derive(Debug, Clone, Copy)]
pub(super) struct Slot {
    subject: Subject,
    admission: Admission,
    source: Epoch,
    destination: Epoch,
    key: Option<Epoch>,
}

/// What becomes of a task that asks for a slot.
#[derive(Debug)]
pub(super) enum Placement {
    Admitted(Slot),
    TurnedAway(Duration),
    Queued(u64),
}

/// Destinations that have work, and how many tasks those are.
#[derive(Debug, Clone, Copy)]
struct Load {
    destinations: u32,
    tasks: u32,
}

// Tasks that work at the same time. While destinations that had all of them make room for others
// there are as many again at most, or eight for each destination if those are more. Each has one
// request on its way or two, so that is few enough for the sockets of one process, which may have
// 1024 by default, up to some sixty destinations. Of large objects the memory bounds the parts.
const TASKS_MAX: u32 = 256;

// Of those, what one destination may have: enough to hide the latency of small objects, and a share
// that it gets whatever the other destinations do. So a destination that hangs holds up only its
// own.
const SHARE_MAX: u32 = 128;
const SHARE_MIN: u32 = 8;

// Large objects keep their slots for long, and each has several parts on its way: three quarters
// of the slots are out of their reach, so that small ones do not wait for them.
const BULK_DIVISOR: u32 = 4;

// Of the slots of a destination that rules share, a quarter is out of reach for each: one that has
// a limit, and waits for it in all the slots it could get, leaves that to the others.
const OTHERS_DIVISOR: u32 = 4;

impl Scheduler {
    /// Admits a task, queues it, or turns it away: while a destination does not answer one task
    /// waits to try again, and one is enough. But as long as few keys have failed, the next may be
    /// answered: it tries at once.
    pub(super) fn enqueue(&mut self, route: &Route, subject: Subject, now: Instant) -> Placement {
        if let Some(open) = self.open_destination(&route.destination) {
            let wait = open.away(now);
            let is_tried = open.circuit.is_probed() || self.has_waiting(&route.destination);
            if open.may_serve(subject) && self.has_room(route, self.load(), now) {
                let early = self.destination_limiter(route).circuit.enter_early();
                let admission = early.unwrap_or(Admission::Normal);
                return Placement::Admitted(self.admit_as(admission, route, subject));
            }
            if is_tried {
                return Placement::TurnedAway(wait);
            }
        }
        if !self.queues.contains_key(route) && self.may_admit(route, self.load(), now) {
            return Placement::Admitted(self.admit(route, subject, now));
        }
        self.last += 1;
        self.queues
            .entry(route.clone())
            .or_default()
            .push_back((self.last, subject));
        Placement::Queued(self.last)
    }

    /// Takes over which rules there are. A limiter without tasks is removed unless its dependency
    /// is degraded.
    pub(super) fn replace<'a>(&mut self, rules: impl Iterator<Item = &'a Rule>) {
        self.rules.clear();
        for rule in rules {
            *self.rules.entry(rule.destination.clone()).or_default() += 1;
        }
        self.limiters
            .retain(|_, limiter| limiter.in_flight > 0 || limiter.is_degraded());
    }

    /// Admits all tasks that may be admitted: first those whose rule has the fewest slots at its
    /// destination, then in the order they came.
    pub(super) fn admit_waiting(&mut self, now: Instant) -> Vec<(u64, Route, Slot)> {
        let mut admitted = Vec::new();
        loop {
            let load = self.load();
            let heads = self
                .queues
                .iter()
                .filter_map(|(route, queue)| Some((*queue.front()?, route)))
                .filter(|(_, route)| self.may_admit(route, load, now))
                .map(|(head, route)| (self.slots_of_rule(route), head, route));
            let Some((_, (number, subject), route)) = heads.min() else {
                return admitted;
            };
            let route = route.clone();
            self.remove_waiting(number);
            let slot = self.admit(&route, subject, now);
            admitted.push((number, route, slot));
        }
    }

    /// Takes back the slot of a task, and learns from how it went.
    pub(super) fn release(
        &mut self,
        route: &Route,
        slot: Slot,
        feedback: Feedback,
        at: (Instant, f64),
    ) -> Change {
        let before = HealthView::of_route(&self.limiters, route);
        self.learn(route, slot, feedback, at);
        for key in route.limit_keys() {
            let limiter = self.limiter(key);
            limiter.in_flight = limiter.in_flight.saturating_sub(1);
        }
        HealthView::of_route(&self.limiters, route).change_since(before)
    }

    /// Records that a dependency throttled a task at work.
    pub(super) fn record_throttled(
        &mut self,
        route: &Route,
        slot: Slot,
        dependency: Dependency,
    ) -> Change {
        let before = HealthView::of_route(&self.limiters, route);
        let limiter = self.dependency_limiter(route, dependency);
        if !limiter.suspects.is_own(slot.subject, false) {
            limiter
                .limit
                .on_throttled_retrying(slot.epoch_of(dependency), limiter.in_flight);
        }
        HealthView::of_route(&self.limiters, route).change_since(before)
    }

    /// Turns away the tasks that wait for a destination whose circuit is open, but for the first.
    pub(super) fn turn_away(
        &mut self,
        destination: &BucketRef,
        now: Instant,
    ) -> Vec<(u64, Duration)> {
        let Some(open) = self.open_destination(destination) else {
            return Vec::new();
        };
        let wait = open.away(now);
        let queues = self
            .queues
            .iter()
            .filter(|(route, _)| route.destination == *destination);
        let mut waiting: Vec<u64> = queues
            .flat_map(|(_, queue)| queue)
            .map(|(number, _)| *number)
            .collect();
        waiting.sort_unstable();
        let away = waiting.into_iter().skip(1);
        away.map(|number| {
            self.remove_waiting(number);
            (number, wait)
        })
        .collect()
    }

    /// Removes a task that waits no more.
    pub(super) fn remove_waiting(&mut self, number: u64) {
        // Each queue is in the order of its numbers.
        let found = self.queues.values_mut().find_map(|queue| {
            let at = queue.binary_search_by_key(&number, |(number, _)| *number);
            Some((at.ok()?, queue))
        });
        if let Some((at, queue)) = found {
            queue.remove(at);
            self.queues.retain(|_, queue| !queue.is_empty());
        }
    }

    /// Returns when a waiting task may be admitted without any other change.
    pub(super) fn wakes_at(&self, route: &Route) -> Option<Instant> {
        HealthView::of_route(&self.limiters, route).wakes
    }

    /// Says whether the circuit of a destination is open.
    pub(super) fn is_circuit_open(&self, destination: &BucketRef) -> bool {
        self.open_destination(destination).is_some()
    }

    /// Lists the dependencies that are throttled or whose circuit is open, and sources that fail
    /// every request.
    pub(super) fn degraded_dependencies(&self) -> Vec<DegradedDependency> {
        let is_degraded = |(key, limiter): &(&LimitKey, &Limiter)| {
            limiter.is_degraded() || matches!(key, LimitKey::Source(_)) && limiter.error.is_some()
        };
        let degraded = self.limiters.iter().filter(is_degraded);
        degraded
            .map(|(key, limiter)| limiter.describe(key))
            .collect()
    }

    /// Says whether a key failed by itself, where a dependency did not serve it.
    pub(super) fn is_own(
        &self,
        route: &Route,
        subject: Subject,
        (dependency, was_answered): (Dependency, bool),
    ) -> bool {
        self.limiters
            .get(&route.limit_key(dependency))
            .is_some_and(|limiter| limiter.suspects.is_own(subject, was_answered))
    }

    fn may_admit(&self, route: &Route, load: Load, now: Instant) -> bool {
        self.destination(&route.destination)
            .is_none_or(|limiter| limiter.circuit.would_admit(now))
            && self.has_room(route, load, now)
    }

    fn has_room(&self, route: &Route, load: Load, now: Instant) -> bool {
        let share = self.destination_share(&route.destination, load);
        let rules = self.rules.get(&route.destination);
        let is_shared = rules.is_some_and(|rules| *rules > 1);
        let of_rule = |all: u32| {
            if is_shared {
                (all - all.div_ceil(OTHERS_DIVISOR)).max(1)
            } else {
                all
            }
        };
        route.limit_keys().all(|key| {
            let share = match key {
                LimitKey::Destination(_) => share,
                LimitKey::Bulk(_) => share / BULK_DIVISOR,
                LimitKey::Rule(..) => of_rule(share),
                LimitKey::RuleBulk(..) => of_rule(share / BULK_DIVISOR),
                LimitKey::Source(_) | LimitKey::Key(_) => u32::MAX,
            };
            self.limiters
                .get(&key)
                .is_none_or(|limiter| limiter.has_room(share, now))
        })
    }

    fn slots_of_rule(&self, route: &Route) -> u32 {
        let key = LimitKey::Rule(route.destination.clone(), route.rule.clone());
        self.limiters
            .get(&key)
            .map_or(0, |limiter| limiter.in_flight)
    }

    fn admit(&mut self, route: &Route, subject: Subject, now: Instant) -> Slot {
        let admission = self.destination_limiter(route).circuit.try_admit(now);
        self.admit_as(admission.unwrap_or(Admission::Normal), route, subject)
    }

    fn admit_as(&mut self, admission: Admission, route: &Route, subject: Subject) -> Slot {
        let mut epoch = |dependency| self.dependency_limiter(route, dependency).current_epoch();
        let slot = Slot {
            subject,
            admission,
            source: epoch(Dependency::Source),
            destination: epoch(Dependency::Destination),
            key: route
                .key
                .as_ref()
                .map(|_| epoch(Dependency::DestinationKey)),
        };
        for key in route.limit_keys() {
            self.limiter(key).in_flight += 1;
        }
        slot
    }

    /// Returns what one destination may have: each that has work has the same, and those without
    /// work need nothing. When all slots are taken it has at once what it would have if all had
    /// work.
    fn destination_share(&self, destination: &BucketRef, load: Load) -> u32 {
        let is_new = self
            .destination(destination)
            .is_none_or(|limiter| limiter.in_flight == 0);
        let with_work = load.destinations + u32::from(is_new);
        let all = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        let among = if load.tasks < TASKS_MAX {
            with_work
        } else {
            with_work.max(all)
        };
        (TASKS_MAX / among).clamp(SHARE_MIN, SHARE_MAX)
    }

    fn load(&self) -> Load {
        let (mut destinations, mut tasks) = (0, 0);
        for (key, limiter) in &self.limiters {
            if let LimitKey::Destination(_) = key
                && limiter.in_flight > 0
            {
                destinations += 1;
                tasks += limiter.in_flight;
            }
        }
        Load {
            destinations,
            tasks,
        }
    }

    fn learn(&mut self, route: &Route, slot: Slot, feedback: Feedback, at: (Instant, f64)) {
        match feedback {
            Feedback::None => self
                .destination_limiter(route)
                .circuit
                .on_abandoned(slot.admission),
            Feedback::Served { wrote } => self.learn_served(route, slot, wrote),
            Feedback::Throttled(dependency) => self.learn_throttled(route, slot, dependency, at),
            Feedback::Failed(failure) => self.learn_failure(route, slot, failure, at),
            Feedback::Reachable => self.destination_limiter(route).record_answer(),
        }
    }

    fn learn_throttled(
        &mut self,
        route: &Route,
        slot: Slot,
        dependency: Dependency,
        at: (Instant, f64),
    ) {
        let is_own = self.is_own(route, slot.subject, (dependency, false));
        let destination = self.destination_limiter(route);
        match dependency {
            // A key that is throttled while other keys are served says nothing of how many tasks
            // the destination takes.
            _ if is_own => return destination.circuit.on_abandoned(slot.admission),
            Dependency::Source => destination.circuit.on_abandoned(slot.admission),
            // A dependency that throttles even one at a time is no better than one that does not
            // answer.
            Dependency::Destination if destination.limit.is_shut() => {
                destination.circuit.on_failure(slot.admission, true, at);
            }
            Dependency::Destination | Dependency::DestinationKey => {
                destination.circuit.on_success();
            }
        }
        let limiter = self.dependency_limiter(route, dependency);
        let epoch = slot.epoch_of(dependency);
        limiter
            .limit
            .on_throttled(epoch, limiter.in_flight, at.0, at.1);
        limiter.suspects.record_failure(slot.subject);
        limiter.error = None;
    }

    /// Learns from one key's failure whether a dependency is in trouble. One that answers something
    /// may fail the same key again and again.
    fn learn_failure(
        &mut self,
        route: &Route,
        slot: Slot,
        failure: DependencyFailure,
        at: (Instant, f64),
    ) {
        let limiter = self.dependency_limiter(route, failure.dependency);
        let evidence = limiter.suspects.record_failure(slot.subject);
        let is_kept = match failure.dependency {
            Dependency::Source => limiter.suspects.are_many(),
            Dependency::Destination => true,
            Dependency::DestinationKey => false,
        };
        if is_kept {
            limiter.error = Some(failure);
        }
        let is_silent = failure.status.is_none() || !failure.was_answered;
        let circuit = &mut self.destination_limiter(route).circuit;
        match (failure.dependency, evidence) {
            (Dependency::Source, _) | (Dependency::Destination, Evidence::Own) => {
                circuit.on_abandoned(slot.admission);
            }
            (Dependency::Destination, Evidence::New) => {
                circuit.on_failure(slot.admission, true, at);
            }
            (Dependency::Destination, Evidence::Repeated) => {
                circuit.on_failure(slot.admission, is_silent, at);
            }
            // KMS answers through the destination.
            (Dependency::DestinationKey, _) => circuit.on_success(),
        }
    }

    /// Widens what may be widened. A read says nothing of how much may be
    /// written.
    fn learn_served(&mut self, route: &Route, slot: Slot, wrote: bool) {
        let source = self.dependency_limiter(route, Dependency::Source);
        source.limit.on_success(slot.source);
        source.error = None;
        if !wrote {
            return self.destination_limiter(route).record_answer();
        }
        source.suspects.record_success(slot.subject);
        let destination = self.destination_limiter(route);
        destination.limit.on_success(slot.destination);
        destination.suspects.record_success(slot.subject);
        destination.record_answer();
        if let Some(epoch) = slot.key {
            let key = self.dependency_limiter(route, Dependency::DestinationKey);
            key.limit.on_success(epoch);
            key.suspects.record_success(slot.subject);
        }
    }

    fn has_waiting(&self, destination: &BucketRef) -> bool {
        self.queues
            .keys()
            .any(|route| route.destination == *destination)
    }

    /// Returns the limiter of a destination whose circuit is open.
    fn open_destination(&self, destination: &BucketRef) -> Option<&Limiter> {
        self.destination(destination)
            .filter(|limiter| limiter.circuit.is_open())
    }

    fn destination(&self, destination: &BucketRef) -> Option<&Limiter> {
        self.limiters
            .get(&LimitKey::Destination(destination.clone()))
    }

    fn destination_limiter(&mut self, route: &Route) -> &mut Limiter {
        self.dependency_limiter(route, Dependency::Destination)
    }

    /// Returns the limiter of a dependency that may throttle.
    fn dependency_limiter(&mut self, route: &Route, dependency: Dependency) -> &mut Limiter {
        self.limiter(route.limit_key(dependency))
    }

    fn limiter(&mut self, key: LimitKey) -> &mut Limiter {
        self.limiters.entry(key).or_default()
    }
}

impl Slot {
    fn epoch_of(&self, dependency: Dependency) -> Epoch {
        match dependency {
            Dependency::Source => self.source,
            Dependency::DestinationKey => self.key.unwrap_or(self.destination),
            Dependency::Destination => self.destination,
        }
    }
}

#[cfg(test)]
mod tests;
