//! What is in hand at this moment, for the metrics and `status`: read from the dispatch's own state
//! on request, so that it cannot drift.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Dispatch, Work};
use crate::clock;
use crate::metrics::Pending;

/// The figures of the running daemon.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Board {
    /// What each rule has in hand.
    pub rules: BTreeMap<String, Pending>,
    /// Messages whose tasks are not all settled.
    pub messages: usize,
    /// Keys that have work.
    pub lanes: usize,
}

impl Board {
    pub(super) fn of(dispatch: &Dispatch) -> Self {
        let mut rules: BTreeMap<String, Pending> = BTreeMap::new();
        for rule in dispatch.rules.borrow().iter() {
            rules.insert(rule.id.clone(), Pending::default());
        }
        for ticket in dispatch.lanes.values().flat_map(Work::tickets) {
            let pending = rules.entry(ticket.task.rules.lead.id.clone()).or_default();
            pending.operations += 1;
            // The size is what a message claims.
            let size = i64::try_from(ticket.wish.size_bytes).unwrap_or(i64::MAX);
            pending.bytes = pending.bytes.saturating_add(size);
            let age = ticket.wish.time.map_or(0.0, clock::seconds_since);
            pending.oldest_seconds = pending.oldest_seconds.max(age);
        }
        Self { rules, messages: dispatch.hand.len(), lanes: dispatch.lanes.len() }
    }
}
