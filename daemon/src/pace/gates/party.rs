//! The dependencies of a route: how many tasks work with each, how many it takes, and whether it
//! answers.

use std::collections::BTreeMap;
use std::time::Instant;

use replicator_core::circuit::Circuit;
use replicator_core::failure::Party;
use replicator_core::rule::Place;
use replicator_core::suspects::Suspects;
use replicator_core::window::{Round, Window};
use serde::{Deserialize, Serialize};

use super::super::answer::{Trouble, described};
use super::Route;

/// A dependency by its name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Site {
    Source(Place),
    Destination(Place),
    /// Of a destination's places those that large objects have.
    Bulk(Place),
    /// Those that one rule has, and that its large objects have.
    Rule(Place, String),
    RuleBulk(Place, String),
    Key(String),
}

#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) under_way: u32,
    pub(super) window: Window,
    /// Only destinations have one: without its source a task can do nothing anyway, and KMS answers
    /// through S3.
    pub(super) circuit: Circuit,
    /// Which keys fail here, and which of them by themselves.
    pub(super) suspects: Suspects,
    /// What failed last.
    pub(super) trouble: Option<Trouble>,
}

/// A dependency that is throttled, or whose circuit is open.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ailing {
    /// A bucket or a key.
    pub name: String,
    /// Its circuit is open: one task at a time may try, because it fails every request.
    pub is_left_alone: bool,
    /// What it does instead of answering.
    #[serde(default)]
    pub trouble: String,
    /// How many tasks may work with it, if it throttled.
    pub width: Option<u32>,
    /// How many do.
    pub under_way: u32,
}

/// What an answer changed for the waiting tasks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::pace) enum Change {
    None,
    /// The time to wait for.
    Later,
    Opened,
    Closed,
    Narrowed(Party),
    Widened,
}

/// What a route offers to the tasks that wait for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Outlook {
    is_open: bool,
    limited: Option<Party>,
    /// When time alone may open the way.
    pub(super) wakes: Option<Instant>,
}

impl Outlook {
    pub(super) fn of(parties: &BTreeMap<Site, Gate>, route: &Route) -> Self {
        let at = |party| parties.get(&route.site(party));
        let is_limited = |party: &Party| at(*party).is_some_and(|gate| gate.window.width().is_some());
        let gates = route.sites().filter_map(|site| parties.get(&site));
        Self {
            is_open: at(Party::Destination).is_some_and(|gate| gate.circuit.is_open()),
            limited: [Party::Destination, Party::DestinationKey, Party::Source].into_iter().find(is_limited),
            wakes: gates.flat_map(|gate| [gate.window.resumes(), gate.circuit.opens_until()]).flatten().max(),
        }
    }

    pub(super) fn since(self, before: Self) -> Change {
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

/// Destinations that have work, and how many tasks those are.
#[derive(Debug, Clone, Copy)]
pub(super) struct Busy {
    pub(super) destinations: u32,
    pub(super) tasks: u32,
}

impl Busy {
    pub(super) fn among(parties: &BTreeMap<Site, Gate>) -> Self {
        let mut busy = Self { destinations: 0, tasks: 0 };
        for (site, gate) in parties.iter().filter(|(_, gate)| gate.under_way > 0) {
            if let Site::Destination(_) = site {
                busy.destinations += 1;
                busy.tasks += gate.under_way;
            }
        }
        busy
    }
}

impl Gate {
    pub(super) fn round(&self) -> Round {
        self.window.round(self.under_way)
    }

    pub(super) fn has_room(&self, share: u32, now: Instant) -> bool {
        self.under_way < share && self.window.has_room(self.under_way, now)
    }

    /// Records an answer to any request.
    pub(super) fn answered(&mut self) {
        self.circuit.answered();
        self.suspects.record_answer();
        self.trouble = None;
    }

    pub(super) fn is_ailing(&self) -> bool {
        self.circuit.is_open() || self.window.width().is_some()
    }

    pub(super) fn has_source_trouble(&self, site: &Site) -> bool {
        matches!(site, Site::Source(_)) && self.trouble.is_some()
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a width is from 1 to 128")]
    pub(super) fn describe(&self, site: &Site) -> Ailing {
        let name = match site {
            Site::Source(place) | Site::Destination(place) | Site::Bulk(place) => place.bucket.to_string(),
            Site::Key(name) | Site::Rule(_, name) | Site::RuleBulk(_, name) => name.clone(),
        };
        let width = self.window.width().map(|width| width as u32);
        let is_left_alone = self.circuit.is_open();
        let trouble = match (site, self.trouble) {
            (Site::Source(_), Some(trouble)) => trouble.to_string(),
            (_, trouble) if is_left_alone => described(trouble),
            _ => String::new(),
        };
        Ailing { name, is_left_alone, trouble, width, under_way: self.under_way }
    }
}

impl Route {
    /// Names one of its dependencies.
    pub(super) fn site(&self, party: Party) -> Site {
        match (party, &self.key) {
            (Party::Source, _) => Site::Source(self.source.clone()),
            (Party::DestinationKey, Some(key)) => Site::Key(key.clone()),
            // A key that the rule does not name is the destination's own affair.
            (Party::Destination | Party::DestinationKey, _) => Site::Destination(self.destination.clone()),
        }
    }

    pub(super) fn sites(&self) -> impl Iterator<Item = Site> + use<> {
        let (destination, rule) = (&self.destination, &self.rule);
        let all = [
            Site::Source(self.source.clone()),
            Site::Destination(destination.clone()),
            Site::Rule(destination.clone(), rule.clone()),
        ];
        let bulk = [Site::Bulk(destination.clone()), Site::RuleBulk(destination.clone(), rule.clone())];
        let bulk = self.is_bulk.then_some(bulk).into_iter().flatten();
        all.into_iter().chain(bulk).chain(self.key.clone().map(Site::Key))
    }
}
