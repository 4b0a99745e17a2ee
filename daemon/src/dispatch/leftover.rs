//! Uploads of lanes that have no work: begun here, while another daemon finished their key. No
//! message may ever come for it again, and the uploaded parts are billed until the upload is
//! aborted.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use replicator_core::failure::{Failure, chain};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::{Dispatch, Event};
use crate::blocking;
use crate::engine::Engine;
use crate::ledger::Ledger;
use crate::ledger::records::Lane;
use crate::ruleset::Ruleset;
use crate::task::Task;
use crate::transfer;

/// The time between two searches, and before the first. What waits in its queue for another try comes back within a quarter
/// of an hour, and goes on with its upload.
const EVERY: Duration = Duration::from_secs(20 * 60);

/// So many are taken up by one search: few beside the work of messages and retry commands.
const TAKEN_UP_MAX: usize = 25;

/// What a search found.
#[derive(Debug)]
pub(super) struct LeftOver {
    tasks: Vec<Task>,
    /// The lane that it came to, if there are more.
    rest: Option<Lane>,
}

/// Returns what rings when it is time to search.
pub(super) fn every() -> Interval {
    let mut interval = interval_at(Instant::now() + EVERY, EVERY);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}

impl Dispatch {
    /// There may be many, so not in this loop.
    pub(super) fn search_leftovers(&mut self) {
        let (rules, is_idle) = (Arc::clone(&self.rules.borrow()), self.has_business());
        let (ledger, after) = (self.engine.ledger.clone(), self.leftovers_after.take());
        self.running
            .spawn(async move { Event::LeftOver(blocking::run(|| search(&ledger, &rules, after.as_ref(), is_idle))) });
    }

    /// Brings their keys up to date once more, which ends the uploads one way or the other.
    pub(super) fn found_leftovers(&mut self, found: Result<LeftOver, Failure>) {
        let LeftOver { mut tasks, rest } = match found {
            Ok(found) => found,
            Err(failure) => return warn!(error = chain(&failure), "cannot read what is uploaded"),
        };
        self.leftovers_after = rest;
        // A message may have come meanwhile.
        tasks.retain(|task| !self.lanes.contains_key(&task.lane));
        if self.deliveries.is_closed() || tasks.is_empty() {
            return;
        }
        info!(uploads = tasks.len(), "ending uploads that were left over");
        if self.engine.work_queues.are_used() {
            let engine = Arc::clone(&self.engine);
            self.running.spawn(async move {
                end(&engine, tasks).await;
                Event::Idle
            });
            return;
        }
        for task in tasks {
            self.enqueue(None, task);
        }
    }

    /// Tells which lanes have no work, and a destination whose circuit is closed.
    pub(super) fn has_business(&self) -> impl Fn(&Lane) -> bool + Send + use<> {
        let busy: BTreeSet<Lane> = self.lanes.keys().cloned().collect();
        let engine = Arc::clone(&self.engine);
        move |lane| !busy.contains(lane) && !engine.pace.leaves_alone(&lane.destination)
    }
}

/// Aborts uploads whose keys may be other workers' by now.
async fn end(engine: &Engine, tasks: Vec<Task>) {
    for task in tasks {
        if let Err(failure) = transfer::end_upload(engine, &task).await {
            warn!(key = task.lane.key.as_str(), error = chain(&failure), "upload not aborted");
        }
    }
}

/// Makes the tasks that end uploads of idle lanes. What is parked is tried again by itself, and its upload with it.
fn search(
    ledger: &Ledger,
    rules: &Ruleset,
    after: Option<&Lane>,
    is_idle: impl Fn(&Lane) -> bool,
) -> Result<LeftOver, Failure> {
    let (mut tasks, mut rest): (Vec<Task>, _) = (Vec::new(), None);
    ledger.visit_uploads(after, |upload| {
        let Some(task) = rules.resume(&upload).filter(|task| is_idle(&task.lane)) else {
            return ControlFlow::Continue(());
        };
        if tasks.len() >= TAKEN_UP_MAX {
            rest = tasks.last().map(|task| task.lane.clone());
            return ControlFlow::Break(());
        }
        tasks.push(task);
        ControlFlow::Continue(())
    })?;
    let mut left = Vec::new();
    for task in tasks {
        if !ledger.has_parked(&task.lane)? {
            left.push(task);
        }
    }
    Ok(LeftOver { tasks: left, rest })
}
