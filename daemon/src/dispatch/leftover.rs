//! Uploads that nobody works on any more: begun here, while another daemon finished their key. No message may ever come for
//! it again, and what was uploaded costs until someone ends it.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use replicator_core::failure::{Failure, chain};
use tracing::{info, warn};

use super::redrive::LANES_MAX;
use super::{Dispatch, Event};
use crate::blocking;
use crate::ledger::Ledger;
use crate::ledger::records::{Lane, Upload};
use crate::ruleset::Ruleset;
use crate::task::Task;

/// The time between two searches. What waits in its queue for another try comes back sooner, and goes on by itself.
pub(super) const EVERY: Duration = Duration::from_secs(3600);

impl Dispatch {
    /// There may be many, so not in this loop.
    pub(super) fn search_leftovers(&mut self) {
        let (engine, rules) = (Arc::clone(&self.engine), Arc::clone(&self.rules.borrow()));
        let busy: BTreeSet<Lane> = self.lanes.keys().cloned().collect();
        self.running.spawn(async move {
            let is_idle = |lane: &Lane| !busy.contains(lane) && !engine.pace.leaves_alone(&lane.destination);
            Event::LeftOver(blocking::run(|| leftovers(&engine.ledger, &rules, is_idle)))
        });
    }

    /// Brings their keys up to date once more, which ends them one way or the other.
    pub(super) fn found_leftovers(&mut self, tasks: Result<Vec<Task>, Failure>) {
        let tasks = match tasks {
            Ok(tasks) => tasks,
            Err(failure) => return warn!(error = chain(&failure), "cannot read what is uploaded"),
        };
        if self.deliveries.is_closed() || tasks.is_empty() {
            return;
        }
        info!(uploads = tasks.len(), "ending uploads that were left over");
        for task in tasks {
            self.enqueue(None, task);
        }
    }
}

/// Makes the tasks that end uploads of idle lanes, as many as may be at work beside the messages that come in.
fn leftovers(ledger: &Ledger, rules: &Ruleset, is_idle: impl Fn(&Lane) -> bool) -> Result<Vec<Task>, Failure> {
    let mut tasks = Vec::new();
    let wanted = |upload: Upload| rules.resume(&upload).filter(|task| is_idle(&task.lane));
    ledger.visit_uploads(|upload| {
        tasks.extend(wanted(upload));
        if tasks.len() < LANES_MAX { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    })?;
    Ok(tasks)
}
