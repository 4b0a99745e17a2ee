//! The parties of a route: how many work with each, what it takes, and whether it answers.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use replicator_core::circuit::Circuit;
use replicator_core::rule::Place;
use replicator_core::window::{Round, Window};
use serde::{Deserialize, Serialize};

use super::Route;

/// A party by its name.
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
    /// Only destinations have one: who has no source has nothing to do anyway, and KMS answers
    /// through S3.
    pub(super) circuit: Circuit,
    /// Requests to a destination that are not answered yet.
    pub(super) asking: u32,
    /// When it last answered one, or was first asked after a rest.
    pub(super) heard: Option<Instant>,
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

// A destination that was asked for so long and answered nothing is not healthy, whatever it is.
const QUIET_AFTER: Duration = Duration::from_secs(10);

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

    pub(super) fn admits(&self, share: u32, now: Instant) -> bool {
        self.under_way < share && self.window.has_room(self.under_way, now) && self.circuit.admits(now)
    }

    pub(super) fn is_ailing(&self) -> bool {
        self.circuit.is_open() || self.window.width().is_some()
    }

    pub(super) fn is_silent(&self, now: Instant) -> bool {
        self.asking > 0 && self.heard.is_some_and(|heard| heard + QUIET_AFTER <= now)
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a width is from 1 to 128")]
    pub(super) fn describe(&self, site: &Site) -> Ailing {
        let name = match site {
            Site::Source(place) | Site::Destination(place) | Site::Bulk(place) => place.bucket.to_string(),
            Site::Key(name) | Site::Rule(_, name) | Site::RuleBulk(_, name) => name.clone(),
        };
        let width = self.window.width().map(|width| width as u32);
        Ailing { name, is_left_alone: self.circuit.is_open(), width, under_way: self.under_way }
    }
}

impl Route {
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
