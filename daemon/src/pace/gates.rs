//! The gates themselves: counts, windows, circuits and queues. No clock and no waiting in here: the
//! time comes in as an argument.

mod party;

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use replicator_core::circuit::Entry;
use replicator_core::failure::Party;
use replicator_core::rule::{Place, Rule};
use replicator_core::suspects::{Evidence, Subject};
use replicator_core::window::Round;

use super::{Answer, Route, Trouble};
pub(crate) use party::Ailing;
pub(super) use party::Change;
use party::{Busy, Gate, Outlook, Site};

/// The gate of every dependency, and the waiting tasks.
#[derive(Debug, Default)]
pub(super) struct Gates {
    parties: BTreeMap<Site, Gate>,
    /// One queue a route, so that no task waits for a dependency of another route; never empty.
    queues: BTreeMap<Route, VecDeque<(u64, Subject)>>,
    /// How many rules each destination has.
    rules: BTreeMap<Place, u32>,
    last: u64,
}

/// What a task remembers of its entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entered {
    subject: Subject,
    entry: Entry,
    source: Round,
    destination: Round,
    key: Option<Round>,
}

/// What becomes of a task that comes to the gates.
#[derive(Debug)]
pub(super) enum Lined {
    In(Entered),
    Away(Duration),
    Waits(u64),
}

// Tasks that work at the same time. While destinations that had all of them make room for others there are as many again at
// most, or eight for each destination if those are more. Each has one request on its way or two, so that is few enough for
// the sockets of one process, which may have 1024 by default, up to some sixty destinations. Of large objects the memory
// bounds the parts.
const TASKS_MAX: u32 = 256;

// Of those, what one destination may have: enough to hide the latency of small objects, and a share
// that it gets whatever the other destinations do. So a destination that hangs holds up only its
// own.
const SHARE_MAX: u32 = 128;
const SHARE_MIN: u32 = 8;

// Large objects keep their places for long, and each has several parts on its way: three quarters
// of the places are out of their reach, so that small ones do not wait for them.
const BULK_DIVISOR: u32 = 4;

// Of the places of a destination that rules share, a quarter is out of reach for each: one that has a limit, and waits
// for it at all the places it could get, leaves that to the others.
const OTHERS_DIVISOR: u32 = 4;

// While another task probes the destination, an earlier delivery costs receipts and gains nothing.
const AWAY_MIN: Duration = Duration::from_secs(10);

impl Gates {
    /// Lets one in, lines one up, or turns one away: while a destination does not answer one task
    /// waits to try again, and one is enough. But as long as few keys have failed, the next may be
    /// answered: it tries at once.
    pub(super) fn line_up(&mut self, route: &Route, subject: Subject, now: Instant) -> Lined {
        let is_open = self.leaves_alone(&route.destination);
        if is_open
            && self.may_tell(&route.destination, subject)
            && self.has_room(route, Busy::among(&self.parties), now)
        {
            let early = self.destination(route).circuit.enter_early();
            return Lined::In(self.admit_as(early.unwrap_or(Entry::Plain), route, subject));
        }
        if is_open && (self.is_tried(&route.destination) || self.has_waiting(&route.destination)) {
            return Lined::Away(self.away(&route.destination, now));
        }
        if !self.queues.contains_key(route) && self.admits(route, Busy::among(&self.parties), now) {
            return Lined::In(self.admit(route, subject, now));
        }
        self.last += 1;
        self.queues.entry(route.clone()).or_default().push_back((self.last, subject));
        Lined::Waits(self.last)
    }

    /// Takes over which rules there are. A gate without tasks is removed unless there is trouble to
    /// remember.
    pub(super) fn replace<'a>(&mut self, rules: impl Iterator<Item = &'a Rule>) {
        self.rules.clear();
        for rule in rules {
            *self.rules.entry(rule.destination.clone()).or_default() += 1;
        }
        self.parties.retain(|_, gate| gate.under_way > 0 || gate.is_ailing());
    }

    /// Lets in all tasks that may enter: first those whose rule has the fewest places at its
    /// destination, then in the order they came.
    pub(super) fn pump(&mut self, now: Instant) -> Vec<(u64, Route, Entered)> {
        let mut admitted = Vec::new();
        loop {
            let busy = Busy::among(&self.parties);
            let heads = self.queues.iter().filter_map(|(route, queue)| Some((*queue.front()?, route)));
            let heads = heads.filter(|(_, route)| self.admits(route, busy, now));
            let first = heads.map(|(head, route)| (self.places_of_rule(route), head, route)).min();
            let Some(((number, subject), route)) = first.map(|(_, head, route)| (head, route.clone())) else {
                return admitted;
            };
            self.forget(number);
            let entered = self.admit(&route, subject, now);
            admitted.push((number, route, entered));
        }
    }

    /// Records the result of a task that leaves.
    pub(super) fn leave(&mut self, route: &Route, entered: Entered, answer: Answer, at: (Instant, f64)) -> Change {
        let was = Outlook::of(&self.parties, route);
        self.learn(route, entered, answer, at);
        for site in route.sites() {
            let gate = self.parties.entry(site).or_default();
            gate.under_way = gate.under_way.saturating_sub(1);
        }
        Outlook::of(&self.parties, route).since(was)
    }

    /// Records that a dependency throttled a task at work.
    pub(super) fn strained(&mut self, route: &Route, entered: Entered, party: Party) -> Change {
        let was = Outlook::of(&self.parties, route);
        let round = entered.round(party);
        let gate = self.party(route, party);
        if !gate.suspects.is_own(entered.subject, false) {
            gate.window.strained(round, gate.under_way);
        }
        Outlook::of(&self.parties, route).since(was)
    }

    /// Turns away the tasks that wait for a destination whose circuit is open, but for the first.
    pub(super) fn turn_away(&mut self, destination: &Place, now: Instant) -> Vec<(u64, Duration)> {
        if !self.leaves_alone(destination) {
            return Vec::new();
        }
        let queues = self.queues.iter().filter(|(route, _)| route.destination == *destination);
        let mut waiting: Vec<u64> = queues.flat_map(|(_, queue)| queue).map(|(number, _)| *number).collect();
        waiting.sort_unstable();
        let wait = self.away(destination, now);
        let away: Vec<(u64, Duration)> = waiting.into_iter().skip(1).map(|number| (number, wait)).collect();
        away.iter().for_each(|(number, _)| self.forget(*number));
        away
    }

    /// Removes a task that waits no more.
    pub(super) fn forget(&mut self, number: u64) {
        // Each queue is in the order of its numbers.
        let place = self
            .queues
            .values_mut()
            .find_map(|queue| Some((queue.binary_search_by_key(&number, |(number, _)| *number).ok()?, queue)));
        if let Some((at, queue)) = place {
            queue.remove(at);
            self.queues.retain(|_, queue| !queue.is_empty());
        }
    }

    /// Returns when time alone may open the way.
    pub(super) fn wakes_at(&self, route: &Route) -> Option<Instant> {
        Outlook::of(&self.parties, route).wakes
    }

    /// Says whether the circuit of a destination is open.
    pub(super) fn leaves_alone(&self, destination: &Place) -> bool {
        let gate = self.parties.get(&Site::Destination(destination.clone()));
        gate.is_some_and(|gate| gate.circuit.is_open())
    }

    /// Lists the dependencies that are throttled or whose circuit is open, and sources that fail
    /// every request.
    pub(super) fn ailing(&self) -> Vec<Ailing> {
        let ailing = self.parties.iter().filter(|(site, gate)| gate.is_ailing() || gate.has_source_trouble(site));
        ailing.map(|(site, gate)| gate.describe(site)).collect()
    }

    /// Says whether a key failed by itself, where a dependency did not serve it.
    pub(super) fn is_own(&self, route: &Route, subject: Subject, (party, was_heard): (Party, bool)) -> bool {
        self.parties.get(&route.site(party)).is_some_and(|gate| gate.suspects.is_own(subject, was_heard))
    }

    fn admits(&self, route: &Route, busy: Busy, now: Instant) -> bool {
        let destination = self.parties.get(&Site::Destination(route.destination.clone()));
        destination.is_none_or(|gate| gate.circuit.admits(now)) && self.has_room(route, busy, now)
    }

    fn has_room(&self, route: &Route, busy: Busy, now: Instant) -> bool {
        let share = self.share(&route.destination, busy);
        let is_shared = self.rules.get(&route.destination).is_some_and(|rules| *rules > 1);
        let of_rule = |all: u32| if is_shared { (all - all.div_ceil(OTHERS_DIVISOR)).max(1) } else { all };
        route.sites().all(|site| {
            let limit = match site {
                Site::Destination(_) => share,
                Site::Bulk(_) => share / BULK_DIVISOR,
                Site::Rule(..) => of_rule(share),
                Site::RuleBulk(..) => of_rule(share / BULK_DIVISOR),
                Site::Source(_) | Site::Key(_) => u32::MAX,
            };
            self.parties.get(&site).is_none_or(|gate| gate.has_room(limit, now))
        })
    }

    fn places_of_rule(&self, route: &Route) -> u32 {
        let site = Site::Rule(route.destination.clone(), route.rule.clone());
        self.parties.get(&site).map_or(0, |gate| gate.under_way)
    }

    fn admit(&mut self, route: &Route, subject: Subject, now: Instant) -> Entered {
        let entry = self.destination(route).circuit.enter(now).unwrap_or(Entry::Plain);
        self.admit_as(entry, route, subject)
    }

    fn admit_as(&mut self, entry: Entry, route: &Route, subject: Subject) -> Entered {
        let entered = Entered {
            subject,
            entry,
            source: self.party(route, Party::Source).round(),
            destination: self.party(route, Party::Destination).round(),
            key: route.key.is_some().then(|| self.party(route, Party::DestinationKey).round()),
        };
        for site in route.sites() {
            self.gate(site).under_way += 1;
        }
        entered
    }

    /// Returns what one destination may have: each that has work has the same, and those without
    /// work need nothing. When all places are taken it has at once what it would have if all had
    /// work.
    fn share(&self, destination: &Place, busy: Busy) -> u32 {
        let gate = self.parties.get(&Site::Destination(destination.clone()));
        let is_new = gate.is_none_or(|gate| gate.under_way == 0);
        let with_work = busy.destinations + u32::from(is_new);
        let all = u32::try_from(self.rules.len()).unwrap_or(u32::MAX);
        let among = if busy.tasks < TASKS_MAX { with_work } else { with_work.max(all) };
        (TASKS_MAX / among).clamp(SHARE_MIN, SHARE_MAX)
    }

    fn learn(&mut self, route: &Route, entered: Entered, answer: Answer, at: (Instant, f64)) {
        let entry = entered.entry;
        if let Answer::Throttled(party) = answer
            && self.is_own(route, entered.subject, (party, false))
        {
            // A key that is throttled while other keys are served tells nothing of how many tasks
            // the destination takes.
            return self.destination(route).circuit.left(entry);
        }
        let gate = self.destination(route);
        match answer {
            Answer::None | Answer::Throttled(Party::Source) => gate.circuit.left(entry),
            Answer::Failed(trouble) => self.failed(route, entered, trouble, at),
            // A dependency that throttles even one at a time is no better than one that does not
            // answer.
            Answer::Throttled(Party::Destination) if gate.window.is_shut() => gate.circuit.failed(entry, true, at),
            Answer::Throttled(_) => gate.circuit.answered(),
            Answer::Alive => gate.answered(),
            Answer::Served { wrote } => self.served(route, entered, wrote),
        }
        if let Answer::Throttled(party) = answer {
            let round = entered.round(party);
            let gate = self.party(route, party);
            gate.window.throttled(round, gate.under_way, at.0, at.1);
            gate.suspects.record_failure(entered.subject);
            gate.trouble = None;
        }
    }

    /// Learns from one key's failure whether a dependency is in trouble. One that answers something
    /// may fail the same key again and again.
    fn failed(&mut self, route: &Route, entered: Entered, trouble: Trouble, at: (Instant, f64)) {
        let gate = self.party(route, trouble.party);
        let evidence = gate.suspects.record_failure(entered.subject);
        if trouble.party == Party::Source && gate.suspects.are_many() {
            gate.trouble = Some(trouble);
        }
        let is_silent = trouble.status.is_none() || !trouble.was_heard;
        let gate = self.destination(route);
        match (trouble.party, evidence) {
            (Party::Source, _) | (Party::Destination, Evidence::Own) => gate.circuit.left(entered.entry),
            (Party::Destination, Evidence::New) => gate.circuit.failed(entered.entry, true, at),
            (Party::Destination, Evidence::Repeated) => gate.circuit.failed(entered.entry, is_silent, at),
            // KMS speaks through the destination.
            (Party::DestinationKey, _) => gate.circuit.answered(),
        }
        if trouble.party == Party::Destination {
            gate.trouble = Some(trouble);
        }
    }

    /// Widens what may be widened. What only read tells nothing of how much may be written.
    fn served(&mut self, route: &Route, entered: Entered, wrote: bool) {
        let source = self.gate(Site::Source(route.source.clone()));
        source.window.succeeded(entered.source);
        source.trouble = None;
        if !wrote {
            return self.destination(route).answered();
        }
        source.suspects.record_success(entered.subject);
        let destination = self.destination(route);
        destination.window.succeeded(entered.destination);
        destination.suspects.record_success(entered.subject);
        destination.answered();
        if let (Some(key), Some(round)) = (&route.key, entered.key) {
            let key = self.gate(Site::Key(key.clone()));
            key.window.succeeded(round);
            key.suspects.record_success(entered.subject);
        }
    }

    /// Returns the gate of a dependency that may throttle.
    fn party(&mut self, route: &Route, party: Party) -> &mut Gate {
        self.gate(route.site(party))
    }

    fn away(&self, destination: &Place, now: Instant) -> Duration {
        let gate = self.parties.get(&Site::Destination(destination.clone()));
        let until = gate.and_then(|gate| gate.circuit.opens_until());
        until.map_or(AWAY_MIN, |until| until.saturating_duration_since(now).max(AWAY_MIN))
    }

    fn is_tried(&self, destination: &Place) -> bool {
        let gate = self.parties.get(&Site::Destination(destination.clone()));
        gate.is_some_and(|gate| gate.circuit.is_probed())
    }

    fn may_tell(&self, destination: &Place, subject: Subject) -> bool {
        let gate = self.parties.get(&Site::Destination(destination.clone()));
        let fails = |gate: &&Gate| gate.trouble.is_some() && !gate.circuit.is_probed();
        gate.filter(fails).is_some_and(|gate| gate.suspects.may_tell(subject))
    }

    fn has_waiting(&self, destination: &Place) -> bool {
        self.queues.keys().any(|route| route.destination == *destination)
    }

    fn destination(&mut self, route: &Route) -> &mut Gate {
        self.gate(Site::Destination(route.destination.clone()))
    }

    fn gate(&mut self, site: Site) -> &mut Gate {
        self.parties.entry(site).or_default()
    }
}

impl Entered {
    /// Returns what the task remembers of a dependency.
    fn round(&self, party: Party) -> Round {
        match party {
            Party::Source => self.source,
            Party::DestinationKey => self.key.unwrap_or(self.destination),
            Party::Destination => self.destination,
        }
    }
}

#[cfg(test)]
mod tests;
