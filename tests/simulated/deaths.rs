//! What came of deaths, for every test that goes through the places where a daemon can die: each
//! place has to have had one, and none of them may leave anything wrong behind.

use std::collections::BTreeSet;
use std::fmt::Display;

use s3_replicator::failpoint::Failpoint;

/// What came of deaths so far.
#[derive(Debug, Default)]
pub(crate) struct Toll {
    met: BTreeSet<String>,
    wrong: Vec<String>,
}

impl Toll {
    /// Adds what one story came to.
    pub(crate) fn add<'a>(
        &mut self,
        story: impl Display,
        deaths: impl IntoIterator<Item = &'a Failpoint>,
        wrong: impl IntoIterator<Item = String>,
    ) {
        self.met.extend(deaths.into_iter().map(ToString::to_string));
        let wrong = wrong.into_iter();
        self.wrong
            .extend(wrong.map(|what| format!("{story}: {what}")));
    }

    /// Says whether a daemon died at this place.
    pub(crate) fn has_met(&self, at: Failpoint) -> bool {
        self.met.contains(&at.to_string())
    }

    /// Counts the places that a daemon died at.
    pub(crate) fn places_met(&self) -> usize {
        self.met.len()
    }

    /// Sees that nothing is wrong.
    #[track_caller]
    pub(crate) fn assert_clean(&self) {
        assert!(self.wrong.is_empty(), "{}", self.wrong.join("\n"));
    }

    /// Sees that nothing is wrong, and that a daemon died at each of these places.
    #[track_caller]
    pub(crate) fn assert_complete(&self, places: impl Iterator<Item = Failpoint>) {
        self.assert_clean();
        let missed: Vec<String> = places
            .filter(|at| !self.has_met(*at))
            .map(|at| at.to_string())
            .collect();
        assert!(missed.is_empty(), "places without a death: {missed:?}");
    }
}
