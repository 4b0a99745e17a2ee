//! The gates themselves: counts, windows, circuits and queues. No clock and no waiting in here: the
//! time comes in as an argument.

mod limiter;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use replicator_core::circuit::{Admission, Evidence, Subject};
use replicator_core::concurrency_limit::Epoch;
use replicator_core::failure::Dependency;
use replicator_core::rule::{BucketRef, Rule};

use super::{DependencyFailure, Feedback, Route};
pub(super) use limiter::Change;
pub(crate) use limiter::DegradedDependency;
use limiter::{Busy, HealthView, LimitKey, Limiter};

/// The gate of every dependency, and the waiting tasks.
#[derive(Debug, Default)]
pub(super) struct Scheduler {
    dependencies: BTreeMap<LimitKey, Limiter>,
    /// One queue a route, so that no task waits for a dependency of another route; never empty.
    queues: BTreeMap<Route, VecDeque<(u64, Subject)>>,
    /// How many rules each destination has.
    rules: BTreeMap<BucketRef, u32>,
    last: u64,
}

/// What a task remembers of its entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entered {
    subject: Subject,
    entry: Admission,
    source: Epoch,
    destination: Epoch,
    key: Option<Epoch>,
}

/// What becomes of a task that comes to the gates.
#[derive(Debug)]
pub(super) enum Lined {
    In(Entered),
    Away(Duration),
    Waits(u64),
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

// Large objects keep their places for long, and each has several parts on its way: three quarters
// of the places are out of their reach, so that small ones do not wait for them.
const BULK_DIVISOR: u32 = 4;

// Of the places of a destination that rules share, a quarter is out of reach for each: one that has
// a limit, and waits for it at all the places it could get, leaves that to the others.
const OTHERS_DIVISOR: u32 = 4;

// While another task probes the destination, an earlier delivery costs receipts and gains nothing.
const AWAY_MIN: Duration = Duration::from_secs(10);

impl Scheduler {
    /// Lets one in, lines one up, or turns one away: while a destination does not answer one task
    /// waits to try again, and one is enough. But as long as few keys have failed, the next may be
    /// answered: it tries at once.
    pub(super) fn line_up(&mut self, route: &Route, subject: Subject, now: Instant) -> Lined {
        let is_open = self.leaves_alone(&route.destination);
        if is_open
            && self.may_tell(&route.destination, subject)
            && self.has_room(route, Busy::among_dependencies(&self.dependencies), now)
        {
            let early = self.destination_limiter(route).circuit.enter_early();
            return Lined::In(self.admit_as(early.unwrap_or(Admission::Normal), route, subject));
        }
        if is_open && (self.is_tried(&route.destination) || self.has_waiting(&route.destination)) {
            return Lined::Away(self.away(&route.destination, now));
        }
        if !self.queues.contains_key(route)
            && self.may_admit(route, Busy::among_dependencies(&self.dependencies), now)
        {
            return Lined::In(self.admit(route, subject, now));
        }
        self.last += 1;
        self.queues
            .entry(route.clone())
            .or_default()
            .push_back((self.last, subject));
        Lined::Waits(self.last)
    }

    /// Takes over which rules there are. A gate without tasks is removed unless there is trouble to
    /// remember.
    pub(super) fn replace<'a>(&mut self, rules: impl Iterator<Item = &'a Rule>) {
        self.rules.clear();
        for rule in rules {
            *self.rules.entry(rule.destination.clone()).or_default() += 1;
        }
        self.dependencies
            .retain(|_, gate| gate.in_flight > 0 || gate.is_degraded());
    }

    /// Lets in all tasks that may enter: first those whose rule has the fewest places at its
    /// destination, then in the order they came.
    pub(super) fn admit_waiting(&mut self, now: Instant) -> Vec<(u64, Route, Entered)> {
        let mut admitted = Vec::new();
        loop {
            let busy = Busy::among_dependencies(&self.dependencies);
            let heads = self
                .queues
                .iter()
                .filter_map(|(route, queue)| Some((*queue.front()?, route)));
            let heads = heads.filter(|(_, route)| self.may_admit(route, busy, now));
            let first = heads
                .map(|(head, route)| (self.places_of_rule(route), head, route))
                .min();
            let Some(((number, subject), route)) =
                first.map(|(_, head, route)| (head, route.clone()))
            else {
                return admitted;
            };
            self.forget(number);
            let entered = self.admit(&route, subject, now);
            admitted.push((number, route, entered));
        }
    }

    /// Records the result of a task that leaves.
    pub(super) fn record_leave(
        &mut self,
        route: &Route,
        entered: Entered,
        answer: Feedback,
        at: (Instant, f64),
    ) -> Change {
        let was = HealthView::of_route(&self.dependencies, route);
        self.learn(route, entered, answer, at);
        for site in route.all_sites() {
            let gate = self.dependencies.entry(site).or_default();
            gate.in_flight = gate.in_flight.saturating_sub(1);
        }
        HealthView::of_route(&self.dependencies, route).change_since(was)
    }

    /// Records that a dependency throttled a task at work.
    pub(super) fn strained(
        &mut self,
        route: &Route,
        entered: Entered,
        dependency: Dependency,
    ) -> Change {
        let was = HealthView::of_route(&self.dependencies, route);
        let round = entered.epoch_of(dependency);
        let gate = self.dependency_limiter(route, dependency);
        if !gate.suspects.is_own(entered.subject, false) {
            gate.window.on_throttled_retrying(round, gate.in_flight);
        }
        HealthView::of_route(&self.dependencies, route).change_since(was)
    }

    /// Turns away the tasks that wait for a destination whose circuit is open, but for the first.
    pub(super) fn turn_away(
        &mut self,
        destination: &BucketRef,
        now: Instant,
    ) -> Vec<(u64, Duration)> {
        if !self.leaves_alone(destination) {
            return Vec::new();
        }
        let queues = self
            .queues
            .iter()
            .filter(|(route, _)| route.destination == *destination);
        let mut waiting: Vec<u64> = queues
            .flat_map(|(_, queue)| queue)
            .map(|(number, _)| *number)
            .collect();
        waiting.sort_unstable();
        let wait = self.away(destination, now);
        let away: Vec<(u64, Duration)> = waiting
            .into_iter()
            .skip(1)
            .map(|number| (number, wait))
            .collect();
        away.iter().for_each(|(number, _)| self.forget(*number));
        away
    }

    /// Removes a task that waits no more.
    pub(super) fn forget(&mut self, number: u64) {
        // Each queue is in the order of its numbers.
        let place = self.queues.values_mut().find_map(|queue| {
            Some((
                queue
                    .binary_search_by_key(&number, |(number, _)| *number)
                    .ok()?,
                queue,
            ))
        });
        if let Some((at, queue)) = place {
            queue.remove(at);
            self.queues.retain(|_, queue| !queue.is_empty());
        }
    }

    /// Returns when time alone may open the way.
    pub(super) fn wakes_at(&self, route: &Route) -> Option<Instant> {
        HealthView::of_route(&self.dependencies, route).wakes
    }

    /// Says whether the circuit of a destination is open.
    pub(super) fn leaves_alone(&self, destination: &BucketRef) -> bool {
        let gate = self
            .dependencies
            .get(&LimitKey::Destination(destination.clone()));
        gate.is_some_and(|gate| gate.circuit.is_open())
    }

    /// Lists the dependencies that are throttled or whose circuit is open, and sources that fail
    /// every request.
    pub(super) fn degraded_dependencies(&self) -> Vec<DegradedDependency> {
        let ailing = self
            .dependencies
            .iter()
            .filter(|(site, gate)| gate.is_degraded() || gate.has_source_trouble(site));
        ailing.map(|(site, gate)| gate.describe(site)).collect()
    }

    /// Says whether a key failed by itself, where a dependency did not serve it.
    pub(super) fn is_own(
        &self,
        route: &Route,
        subject: Subject,
        (dependency, was_heard): (Dependency, bool),
    ) -> bool {
        self.dependencies
            .get(&route.site_of(dependency))
            .is_some_and(|gate| gate.suspects.is_own(subject, was_heard))
    }

    fn may_admit(&self, route: &Route, busy: Busy, now: Instant) -> bool {
        let destination = self
            .dependencies
            .get(&LimitKey::Destination(route.destination.clone()));
        destination.is_none_or(|gate| gate.circuit.would_admit(now))
            && self.has_room(route, busy, now)
    }

    fn has_room(&self, route: &Route, busy: Busy, now: Instant) -> bool {
        let share = self.destination_share(&route.destination, busy);
        let is_shared = self
            .rules
            .get(&route.destination)
            .is_some_and(|rules| *rules > 1);
        let of_rule = |all: u32| {
            if is_shared {
                (all - all.div_ceil(OTHERS_DIVISOR)).max(1)
            } else {
                all
            }
        };
        route.all_sites().all(|site| {
            let limit = match site {
                LimitKey::Destination(_) => share,
                LimitKey::Bulk(_) => share / BULK_DIVISOR,
                LimitKey::Rule(..) => of_rule(share),
                LimitKey::RuleBulk(..) => of_rule(share / BULK_DIVISOR),
                LimitKey::Source(_) | LimitKey::Key(_) => u32::MAX,
            };
            self.dependencies
                .get(&site)
                .is_none_or(|gate| gate.has_room(limit, now))
        })
    }

    fn places_of_rule(&self, route: &Route) -> u32 {
        let site = LimitKey::Rule(route.destination.clone(), route.rule.clone());
        self.dependencies
            .get(&site)
            .map_or(0, |gate| gate.in_flight)
    }

    fn admit(&mut self, route: &Route, subject: Subject, now: Instant) -> Entered {
        let entry = self
            .destination_limiter(route)
            .circuit
            .try_admit(now)
            .unwrap_or(Admission::Normal);
        self.admit_as(entry, route, subject)
    }

    fn admit_as(&mut self, entry: Admission, route: &Route, subject: Subject) -> Entered {
        let entered = Entered {
            subject,
            entry,
            source: self
                .dependency_limiter(route, Dependency::Source)
                .enter_epoch(),
            destination: self
                .dependency_limiter(route, Dependency::Destination)
                .enter_epoch(),
            key: route.key.is_some().then(|| {
                self.dependency_limiter(route, Dependency::DestinationKey)
                    .enter_epoch()
            }),
        };
        for site in route.all_sites() {
            self.limiter_at(site).in_flight += 1;
        }
        entered
    }

    /// Returns what one destination may have: each that has work has the same, and those without
    /// work need nothing. When all places are taken it has at once what it would have if all had
    /// work.
    fn destination_share(&self, destination: &BucketRef, busy: Busy) -> u32 {
        let gate = self
            .dependencies
            .get(&LimitKey::Destination(destination.clone()));
        let is_new = gate.is_none_or(|gate| gate.in_flight == 0);
        let with_work = busy.destinations + u32::from(is_new);
        let all = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        let among = if busy.tasks < TASKS_MAX {
            with_work
        } else {
            with_work.max(all)
        };
        (TASKS_MAX / among).clamp(SHARE_MIN, SHARE_MAX)
    }

    fn learn(&mut self, route: &Route, entered: Entered, answer: Feedback, at: (Instant, f64)) {
        let entry = entered.entry;
        if let Feedback::Throttled(dependency) = answer
            && self.is_own(route, entered.subject, (dependency, false))
        {
            // A key that is throttled while other keys are served tells nothing of how many tasks
            // the destination takes.
            return self.destination_limiter(route).circuit.on_abandoned(entry);
        }
        let gate = self.destination_limiter(route);
        match answer {
            Feedback::None | Feedback::Throttled(Dependency::Source) => {
                gate.circuit.on_abandoned(entry);
            }
            Feedback::Failed(trouble) => self.learn_failure(route, entered, trouble, at),
            // A dependency that throttles even one at a time is no better than one that does not
            // answer.
            Feedback::Throttled(Dependency::Destination) if gate.window.is_shut() => {
                gate.circuit.on_failure(entry, true, at);
            }
            Feedback::Throttled(_) => gate.circuit.on_success(),
            Feedback::Reachable => gate.record_answered(),
            Feedback::Served { wrote } => self.served(route, entered, wrote),
        }
        if let Feedback::Throttled(dependency) = answer {
            let round = entered.epoch_of(dependency);
            let gate = self.dependency_limiter(route, dependency);
            gate.window.on_throttled(round, gate.in_flight, at.0, at.1);
            gate.suspects.record_failure(entered.subject);
            gate.error = None;
        }
    }

    /// Learns from one key's failure whether a dependency is in trouble. One that answers something
    /// may fail the same key again and again.
    fn learn_failure(
        &mut self,
        route: &Route,
        entered: Entered,
        trouble: DependencyFailure,
        at: (Instant, f64),
    ) {
        let gate = self.dependency_limiter(route, trouble.dependency);
        let evidence = gate.suspects.record_failure(entered.subject);
        if trouble.dependency == Dependency::Source && gate.suspects.are_many() {
            gate.error = Some(trouble);
        }
        let is_silent = trouble.status.is_none() || !trouble.was_heard;
        let gate = self.destination_limiter(route);
        match (trouble.dependency, evidence) {
            (Dependency::Source, _) | (Dependency::Destination, Evidence::Own) => {
                gate.circuit.on_abandoned(entered.entry);
            }
            (Dependency::Destination, Evidence::New) => {
                gate.circuit.on_failure(entered.entry, true, at);
            }
            (Dependency::Destination, Evidence::Repeated) => {
                gate.circuit.on_failure(entered.entry, is_silent, at);
            }
            // KMS speaks through the destination.
            (Dependency::DestinationKey, _) => gate.circuit.on_success(),
        }
        if trouble.dependency == Dependency::Destination {
            gate.error = Some(trouble);
        }
    }

    /// Widens what may be widened. What only read tells nothing of how much may be written.
    fn served(&mut self, route: &Route, entered: Entered, wrote: bool) {
        let source = self.limiter_at(LimitKey::Source(route.source.clone()));
        source.window.on_success(entered.source);
        source.error = None;
        if !wrote {
            return self.destination_limiter(route).record_answered();
        }
        source.suspects.record_success(entered.subject);
        let destination = self.destination_limiter(route);
        destination.window.on_success(entered.destination);
        destination.suspects.record_success(entered.subject);
        destination.record_answered();
        if let (Some(key), Some(round)) = (&route.key, entered.key) {
            let key = self.limiter_at(LimitKey::Key(key.clone()));
            key.window.on_success(round);
            key.suspects.record_success(entered.subject);
        }
    }

    /// Returns the gate of a dependency that may throttle.
    fn dependency_limiter(&mut self, route: &Route, dependency: Dependency) -> &mut Limiter {
        self.limiter_at(route.site_of(dependency))
    }

    fn away(&self, destination: &BucketRef, now: Instant) -> Duration {
        let gate = self
            .dependencies
            .get(&LimitKey::Destination(destination.clone()));
        let until = gate.and_then(|gate| gate.circuit.opens_until());
        until.map_or(AWAY_MIN, |until| {
            until.saturating_duration_since(now).max(AWAY_MIN)
        })
    }

    fn is_tried(&self, destination: &BucketRef) -> bool {
        let gate = self
            .dependencies
            .get(&LimitKey::Destination(destination.clone()));
        gate.is_some_and(|gate| gate.circuit.is_probed())
    }

    fn may_tell(&self, destination: &BucketRef, subject: Subject) -> bool {
        let gate = self
            .dependencies
            .get(&LimitKey::Destination(destination.clone()));
        let fails = |gate: &&Limiter| gate.error.is_some() && !gate.circuit.is_probed();
        gate.filter(fails)
            .is_some_and(|gate| gate.suspects.may_tell(subject))
    }

    fn has_waiting(&self, destination: &BucketRef) -> bool {
        self.queues
            .keys()
            .any(|route| route.destination == *destination)
    }

    fn destination_limiter(&mut self, route: &Route) -> &mut Limiter {
        self.limiter_at(LimitKey::Destination(route.destination.clone()))
    }

    fn limiter_at(&mut self, site: LimitKey) -> &mut Limiter {
        self.dependencies.entry(site).or_default()
    }
}

impl Entered {
    /// Returns what the task remembers of a dependency.
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
