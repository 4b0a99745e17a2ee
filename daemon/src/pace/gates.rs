//! The gates themselves: counts, windows, circuits and queues. No clock and no waiting in here: each
//! method is told what time it is.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use replicator_core::circuit::{Circuit, Entry};
use replicator_core::failure::Party;
use replicator_core::rule::Place;
use replicator_core::window::{Round, Window};
use serde::{Deserialize, Serialize};

use super::{Answer, Route};

/// Every party's gate, and who waits.
#[derive(Debug, Default)]
pub(super) struct Gates {
    parties: BTreeMap<Site, Gate>,
    /// One queue a route, so that nobody waits for a party that is not theirs; never empty.
    queues: BTreeMap<Route, VecDeque<u64>>,
    last: u64,
}

/// A party by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
enum Site {
    Source(Place),
    Destination(Place),
    /// Of a destination's places those that large objects have.
    Bulk(Place),
    Key(String),
}

#[derive(Debug, Default)]
struct Gate {
    under_way: u32,
    window: Window,
    /// Only destinations have one: who has no source has nothing to do anyway, and KMS answers
    /// through S3.
    circuit: Circuit,
    /// When a destination last answered, or was first asked after a rest.
    heard: Option<Instant>,
}

/// What a task remembers of its entry.
#[derive(Debug, Clone, Copy)]
pub(super) struct Entered {
    entry: Entry,
    source: Round,
    destination: Round,
    key: Option<Round>,
}

/// What becomes of one who comes to the gates.
#[derive(Debug)]
pub(super) enum Lined {
    In(Entered),
    Away(Duration),
    Waits(u64),
}

/// What an answer changed for the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Change {
    None,
    /// The time to wait for.
    Later,
    Opened,
    Closed,
    Narrowed(Party),
    Widened,
}

/// A party that is limited, or left alone.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ailing {
    /// A bucket or a key.
    pub name: String,
    /// It is left alone but for one task at a time, because it does not answer.
    pub is_left_alone: bool,
    /// How many tasks may work with it, if it asked for fewer.
    pub width: Option<u32>,
    /// How many do.
    pub under_way: u32,
}

// Tasks that work at the same time: few enough for the sockets of one process, which may have 1024
// by default. Of large objects the memory bounds the parts.
const TASKS_MAX: u32 = 256;

// Of those, what one destination may have: enough to hide the latency of small objects, and a share
// that no other destination can take from it. So whoever hangs holds up only its own.
const SHARE_MAX: u32 = 128;
const SHARE_MIN: u32 = 8;

// Large objects keep their places for long, and each has several parts on its way: three quarters of the places are
// never theirs, so that small ones do not wait for them.
const BULK_DIVISOR: u32 = 4;

// A destination that had work for so long and answered nothing is not healthy, whatever it is.
const QUIET_AFTER: Duration = Duration::from_secs(10);

// Where someone else finds out, to ask the queue again sooner costs receipts and gains nothing.
const AWAY_MIN: Duration = Duration::from_secs(10);

impl Gates {
    /// Lets one in, lines one up, or turns one away: while a destination does not answer one task
    /// waits to try again, and one is enough.
    pub(super) fn line_up(&mut self, route: &Route, now: Instant) -> Lined {
        // From its first task on a destination has its share.
        let is_open = self.destination(route).circuit.is_open();
        if is_open && (self.is_tried(&route.destination) || self.has_waiting(&route.destination)) {
            return Lined::Away(self.away(&route.destination, now));
        }
        if !self.queues.contains_key(route) && self.admits(route, now) {
            return Lined::In(self.admit(route, now));
        }
        self.last += 1;
        self.queues.entry(route.clone()).or_default().push_back(self.last);
        Lined::Waits(self.last)
    }

    /// Lets in all who may enter, in the order they came.
    pub(super) fn pump(&mut self, now: Instant) -> Vec<(u64, Route, Entered)> {
        let mut admitted = Vec::new();
        loop {
            let heads = self.queues.iter().filter_map(|(route, queue)| Some((*queue.front()?, route)));
            let first = heads.filter(|(_, route)| self.admits(route, now)).min();
            let Some((number, route)) = first.map(|(number, route)| (number, route.clone())) else {
                return admitted;
            };
            self.forget(number);
            let entered = self.admit(&route, now);
            admitted.push((number, route, entered));
        }
    }

    /// Takes note of what one who leaves has to tell.
    pub(super) fn leave(&mut self, route: &Route, entered: Entered, answer: Answer, at: (Instant, f64)) -> Change {
        let was = self.outlook(route);
        self.learn(route, entered, answer, at);
        for site in route.sites() {
            let gate = self.parties.entry(site).or_default();
            gate.under_way = gate.under_way.saturating_sub(1);
        }
        self.outlook(route).since(was)
    }

    /// Takes note that a party asked one who is at work for less.
    pub(super) fn strained(&mut self, route: &Route, entered: Entered, party: Party) -> Change {
        let was = self.outlook(route);
        let (gate, round) = self.party(route, entered, party);
        gate.window.strained(round, gate.under_way);
        self.outlook(route).since(was)
    }

    /// Turns away who waits for a destination that is left alone, but for the one who came first.
    pub(super) fn turn_away(&mut self, destination: &Place, now: Instant) -> Vec<(u64, Duration)> {
        if !self.leaves_alone(destination) {
            return Vec::new();
        }
        let queues = self.queues.iter().filter(|(route, _)| route.destination == *destination);
        let mut waiting: Vec<u64> = queues.flat_map(|(_, queue)| queue).copied().collect();
        waiting.sort_unstable();
        let wait = self.away(destination, now);
        let away: Vec<(u64, Duration)> = waiting.into_iter().skip(1).map(|number| (number, wait)).collect();
        away.iter().for_each(|(number, _)| self.forget(*number));
        away
    }

    /// Forgets one who waits no more.
    pub(super) fn forget(&mut self, number: u64) {
        // Each queue is in the order of its numbers.
        let place = self.queues.values_mut().find_map(|queue| Some((queue.binary_search(&number).ok()?, queue)));
        if let Some((at, queue)) = place {
            queue.remove(at);
            self.queues.retain(|_, queue| !queue.is_empty());
        }
    }

    /// Returns when time alone may open the way.
    pub(super) fn wakes_at(&self, route: &Route) -> Option<Instant> {
        let gates = route.sites().filter_map(|site| self.parties.get(&site));
        gates.flat_map(|gate| [gate.window.resumes(), gate.circuit.opens_until()]).flatten().max()
    }

    /// Says whether a route's destination is limited, left alone or silent, or its key limited.
    pub(super) fn is_ailing(&self, route: &Route, now: Instant) -> bool {
        // Whoever else is asked is heard of through the destination, and only what that says is taken note of.
        let destination = self.parties.get(&Site::Destination(route.destination.clone()));
        let sites = route.sites().filter(|site| !matches!(site, Site::Source(_)));
        destination.is_some_and(|gate| gate.is_quiet(now))
            || sites.filter_map(|site| self.parties.get(&site)).any(Gate::is_ailing)
    }

    /// Says whether a destination is left alone but for one task at a time.
    pub(super) fn leaves_alone(&self, destination: &Place) -> bool {
        let gate = self.parties.get(&Site::Destination(destination.clone()));
        gate.is_some_and(|gate| gate.circuit.is_open())
    }

    /// Lists whoever is limited or left alone.
    pub(super) fn ailing(&self) -> Vec<Ailing> {
        let ailing = self.parties.iter().filter(|(_, gate)| gate.is_ailing());
        ailing.map(|(site, gate)| gate.describe(site)).collect()
    }

    fn admits(&self, route: &Route, now: Instant) -> bool {
        let share = self.share();
        route.sites().all(|site| {
            let limit = match site {
                Site::Destination(_) => share,
                Site::Bulk(_) => share / BULK_DIVISOR,
                Site::Source(_) | Site::Key(_) => u32::MAX,
            };
            self.parties.get(&site).is_none_or(|gate| gate.admits(limit, now))
        })
    }

    fn admit(&mut self, route: &Route, now: Instant) -> Entered {
        let entry = self.destination(route).circuit.enter(now).unwrap_or(Entry::Plain);
        if route.is_bulk {
            self.count_in(Site::Bulk(route.destination.clone()), now);
        }
        Entered {
            entry,
            source: self.count_in(Site::Source(route.source.clone()), now),
            destination: self.count_in(Site::Destination(route.destination.clone()), now),
            key: route.key.clone().map(|key| self.count_in(Site::Key(key), now)),
        }
    }

    fn count_in(&mut self, site: Site, now: Instant) -> Round {
        let gate = self.parties.entry(site).or_default();
        let round = gate.window.round(gate.under_way);
        if gate.under_way == 0 {
            gate.heard = Some(now);
        }
        gate.under_way += 1;
        round
    }

    /// Each destination has its share, however much work it has.
    fn share(&self) -> u32 {
        let destinations = self.parties.keys().filter(|site| matches!(site, Site::Destination(_))).count();
        let destinations = u32::try_from(destinations).unwrap_or(u32::MAX).max(1);
        (TASKS_MAX / destinations).clamp(SHARE_MIN, SHARE_MAX)
    }

    fn learn(&mut self, route: &Route, entered: Entered, answer: Answer, at: (Instant, f64)) {
        let (entry, (now, jitter)) = (entered.entry, at);
        let gate = self.destination(route);
        if !matches!(answer, Answer::None | Answer::Failed) {
            gate.heard = Some(now);
        }
        match answer {
            Answer::None | Answer::Throttled(Party::Source) => gate.circuit.left(entry, now),
            Answer::Failed => gate.circuit.failed(entry, now, jitter),
            // Who throttles even one at a time might as well not answer.
            Answer::Throttled(Party::Destination) if gate.window.is_shut() => gate.circuit.failed(entry, now, jitter),
            Answer::Alive | Answer::Served { .. } | Answer::Throttled(_) => gate.circuit.answered(),
        }
        match answer {
            Answer::None | Answer::Failed | Answer::Alive => {}
            Answer::Served { wrote } => self.served(route, entered, wrote),
            Answer::Throttled(party) => {
                let (gate, round) = self.party(route, entered, party);
                gate.window.throttled(round, gate.under_way, now, jitter);
            }
        }
    }

    /// Widens what may be widened. What only read tells nothing of how much may be written.
    fn served(&mut self, route: &Route, entered: Entered, wrote: bool) {
        self.gate(Site::Source(route.source.clone())).window.succeeded(entered.source);
        if !wrote {
            return;
        }
        self.destination(route).window.succeeded(entered.destination);
        if let (Some(key), Some(round)) = (&route.key, entered.key) {
            self.gate(Site::Key(key.clone())).window.succeeded(round);
        }
    }

    /// Returns who it is that asks for less, and what the task remembers of them.
    fn party(&mut self, route: &Route, entered: Entered, party: Party) -> (&mut Gate, Round) {
        let (site, round) = match (party, &route.key, entered.key) {
            (Party::Source, ..) => (Site::Source(route.source.clone()), entered.source),
            (Party::DestinationKey, Some(key), Some(round)) => (Site::Key(key.clone()), round),
            // A key that the rule does not name is the destination's own affair.
            (Party::Destination | Party::DestinationKey, ..) => {
                (Site::Destination(route.destination.clone()), entered.destination)
            }
        };
        (self.gate(site), round)
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

    fn has_waiting(&self, destination: &Place) -> bool {
        self.queues.keys().any(|route| route.destination == *destination)
    }

    fn destination(&mut self, route: &Route) -> &mut Gate {
        self.gate(Site::Destination(route.destination.clone()))
    }

    fn gate(&mut self, site: Site) -> &mut Gate {
        self.parties.entry(site).or_default()
    }

    fn outlook(&self, route: &Route) -> Outlook {
        let limited = |site| self.parties.get(&site).is_some_and(|gate: &Gate| gate.window.width().is_some());
        let party = [
            (Party::Destination, limited(Site::Destination(route.destination.clone()))),
            (Party::DestinationKey, route.key.clone().is_some_and(|key| limited(Site::Key(key)))),
            (Party::Source, limited(Site::Source(route.source.clone()))),
        ];
        let gate = self.parties.get(&Site::Destination(route.destination.clone()));
        Outlook {
            is_open: gate.is_some_and(|gate| gate.circuit.is_open()),
            limited: party.into_iter().find(|(_, is_limited)| *is_limited).map(|(party, _)| party),
            wakes: self.wakes_at(route),
        }
    }
}

/// How a route looks to those who wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Outlook {
    is_open: bool,
    limited: Option<Party>,
    wakes: Option<Instant>,
}

impl Outlook {
    fn since(self, before: Self) -> Change {
        match (before.is_open, self.is_open) {
            (false, true) => return Change::Opened,
            (true, false) => return Change::Closed,
            (true, true) | (false, false) => {}
        }
        match (before.limited, self.limited) {
            (None, Some(party)) => Change::Narrowed(party),
            (Some(_), None) => Change::Widened,
            _ if before.wakes != self.wakes => Change::Later,
            _ => Change::None,
        }
    }
}

impl Gate {
    fn admits(&self, share: u32, now: Instant) -> bool {
        self.under_way < share && self.window.has_room(self.under_way, now) && self.circuit.admits(now)
    }

    fn is_ailing(&self) -> bool {
        self.circuit.is_open() || self.window.width().is_some()
    }

    fn is_quiet(&self, now: Instant) -> bool {
        self.under_way > 0 && self.heard.is_some_and(|heard| heard + QUIET_AFTER <= now)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a width is from 1 to 128")]
    fn describe(&self, site: &Site) -> Ailing {
        let name = match site {
            Site::Source(place) | Site::Destination(place) | Site::Bulk(place) => place.bucket.to_string(),
            Site::Key(key) => key.clone(),
        };
        let width = self.window.width().map(|width| width as u32);
        Ailing { name, is_left_alone: self.circuit.is_open(), width, under_way: self.under_way }
    }
}

impl Route {
    fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        let both = [Site::Source(self.source.clone()), Site::Destination(self.destination.clone())];
        let bulk = self.is_bulk.then(|| Site::Bulk(self.destination.clone()));
        both.into_iter().chain(bulk).chain(self.key.clone().map(Site::Key))
    }
}

#[cfg(test)]
mod tests;
