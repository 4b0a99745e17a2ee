//! Uploads of keys that have no work: begun here, while another daemon finished their key. No
//! message may ever come for it again, and the uploaded parts are billed until the upload is
//! aborted.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use replicator_core::failure::{Failure, error_chain};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at};
use tracing::{info, warn};

use super::{Completion, Dispatch};
use crate::engine::Engine;
use crate::ledger::Ledger;
use crate::ledger::records::TargetKey;
use crate::process::run_blocking;
use crate::reconcile;
use crate::ruleset::Ruleset;
use crate::task::Task;

/// The time between two searches, and before the first. What waits in its queue for another try
/// comes back within a quarter of an hour, and goes on with its upload.
const EVERY: Duration = Duration::from_secs(20 * 60);

/// So many are taken up by one search: few beside the work of messages and retry commands.
const TAKEN_UP_MAX: usize = 25;

/// What a search found.
#[derive(Debug)]
pub(super) struct OrphanedUploads {
    tasks: Vec<Task>,
    /// The key that it came to, if there are more.
    rest: Option<TargetKey>,
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
        self.running.spawn(async move {
            Completion::LeftOver(run_blocking(|| {
                search(&ledger, &rules, after.as_ref(), is_idle)
            }))
        });
    }

    /// Brings their keys up to date once more, which ends the uploads one way or the other.
    pub(super) fn found_leftovers(&mut self, found: Result<OrphanedUploads, Failure>) {
        let OrphanedUploads { mut tasks, rest } = match found {
            Ok(found) => found,
            Err(failure) => {
                return warn!(
                    error = error_chain(&failure),
                    "cannot read what is uploaded"
                );
            }
        };
        self.leftovers_after = rest;
        // A message may have come meanwhile.
        tasks.retain(|task| !self.targets.contains_key(&task.target));
        if self.deliveries.is_closed() || tasks.is_empty() {
            return;
        }
        info!(uploads = tasks.len(), "ending uploads that were left over");
        if self.engine.work_queues.are_used() {
            let engine = Arc::clone(&self.engine);
            self.running.spawn(async move {
                end(&engine, tasks).await;
                Completion::Idle
            });
            return;
        }
        for task in tasks {
            self.enqueue_task(None, task);
        }
    }

    /// Tells which keys have no work, and a destination whose circuit is closed.
    pub(super) fn has_business(&self) -> impl Fn(&TargetKey) -> bool + Send + use<> {
        let busy: BTreeSet<TargetKey> = self.targets.keys().cloned().collect();
        let engine = Arc::clone(&self.engine);
        move |target| {
            !busy.contains(target) && !engine.concurrency.is_circuit_open(&target.destination)
        }
    }
}

/// Aborts uploads whose keys may be other workers' by now.
async fn end(engine: &Engine, tasks: Vec<Task>) {
    for task in tasks {
        if let Err(failure) = reconcile::end_upload(engine, &task).await {
            warn!(
                key = task.target.key.as_str(),
                error = error_chain(&failure),
                "upload not aborted"
            );
        }
    }
}

/// Makes the tasks that end uploads of idle keys. What is parked is tried again by itself, and its
/// upload with it.
fn search(
    ledger: &Ledger,
    rules: &Ruleset,
    after: Option<&TargetKey>,
    is_idle: impl Fn(&TargetKey) -> bool,
) -> Result<OrphanedUploads, Failure> {
    let (mut tasks, mut rest): (Vec<Task>, _) = (Vec::new(), None);
    ledger.visit_uploads(after, |upload| {
        let Some(task) = rules.resume(&upload).filter(|task| is_idle(&task.target)) else {
            return ControlFlow::Continue(());
        };
        if tasks.len() >= TAKEN_UP_MAX {
            rest = tasks.last().map(|task| task.target.clone());
            return ControlFlow::Break(());
        }
        tasks.push(task);
        ControlFlow::Continue(())
    })?;
    let mut left = Vec::new();
    for task in tasks {
        if !ledger.has_parked(&task.target)? {
            left.push(task);
        }
    }
    Ok(OrphanedUploads { tasks: left, rest })
}
