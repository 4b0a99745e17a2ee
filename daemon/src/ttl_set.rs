//! What was seen of a place a short while ago, and need not be read again yet.

use std::collections::HashMap;
use std::sync::Mutex;
use std::time::Duration;

use replicator_core::rule::BucketRef;
use tokio::time::Instant;

/// Places, and when the same was last seen of each.
#[derive(Debug)]
pub(crate) struct TtlSet {
    holds: Duration,
    seen: Mutex<HashMap<BucketRef, Instant>>,
}

impl TtlSet {
    /// Begins with nothing seen; what is seen holds for so long.
    pub(crate) fn new(holds: Duration) -> Self {
        Self {
            holds,
            seen: Mutex::default(),
        }
    }

    pub(crate) fn mark_seen(&self, place: &BucketRef) {
        if let Ok(mut seen) = self.seen.lock() {
            seen.insert(place.clone(), Instant::now());
        }
    }

    /// Says whether it was seen and still holds.
    pub(crate) fn seen_recently(&self, place: &BucketRef) -> bool {
        self.seen
            .lock()
            .is_ok_and(|seen| seen.get(place).is_some_and(|at| at.elapsed() < self.holds))
    }

    pub(crate) fn unmark_seen(&self, place: &BucketRef) {
        if let Ok(mut seen) = self.seen.lock() {
            seen.remove(place);
        }
    }
}
