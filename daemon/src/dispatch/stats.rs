//! What is in flight at this moment, for the metrics and `status`: read from the dispatch's own
//! state on request, so that it cannot drift.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Dispatch, KeyQueue};
use crate::clock;
use crate::metrics::PendingFigures;

/// The figures of the running daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct InFlightStats {
    /// What each rule has in flight.
    pub rules: BTreeMap<String, PendingFigures>,
    /// Messages whose tasks are not all settled.
    pub messages: usize,
    /// Keys that have work.
    pub keys: usize,
}

impl InFlightStats {
    pub(super) fn of(dispatch: &Dispatch) -> Self {
        let mut rules: BTreeMap<String, PendingFigures> = BTreeMap::new();
        for rule in dispatch.rules.borrow().iter() {
            rules.insert(rule.id.clone(), PendingFigures::default());
        }
        for ticket in dispatch.targets.values().flat_map(KeyQueue::tickets) {
            let pending = rules
                .entry(ticket.task.rules.primary.id.clone())
                .or_default();
            pending.operations += 1;
            // The size is what a message claims.
            let size = i64::try_from(ticket.pending.size_bytes).unwrap_or(i64::MAX);
            pending.bytes = pending.bytes.saturating_add(size);
            let age = ticket.pending.time.map_or(0.0, clock::seconds_since);
            pending.oldest_seconds = pending.oldest_seconds.max(age);
        }
        Self {
            rules,
            messages: dispatch.hand.len(),
            keys: dispatch.targets.len(),
        }
    }
}
