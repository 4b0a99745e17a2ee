//! What was seen of a place a short while ago, and need not be read again yet.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use replicator_core::rule::Place;
use tokio::time::Instant;

/// Places, and when the same was last seen of each.
#[derive(Debug)]
pub(crate) struct Lately {
    holds: Duration,
    seen: Mutex<HashMap<Place, Instant>>,
}

impl Lately {
    /// Begins with nothing seen; what is seen holds for so long.
    pub(crate) fn new(holds: Duration) -> Self {
        Self { holds, seen: Mutex::default() }
    }

    pub(crate) fn saw(&self, place: &Place) {
        if let Ok(mut seen) = self.seen.lock() {
            seen.insert(place.clone(), Instant::now());
        }
    }

    /// Says whether it was seen and still holds.
    pub(crate) fn holds(&self, place: &Place) -> bool {
        self.seen.lock().is_ok_and(|seen| seen.get(place).is_some_and(|at| at.elapsed() < self.holds))
    }

    pub(crate) fn forget(&self, place: &Place) {
        if let Ok(mut seen) = self.seen.lock() {
            seen.remove(place);
        }
    }
}
