//! What is parked comes back to the keys, on schedule or by a retry command.

use std::collections::BTreeSet;
use std::sync::Arc;

use replicator_core::failure::{Failure, error_chain};
use replicator_core::object::Timestamp;
use tracing::{info, warn};

use super::retry_scan::{LANES_MAX, Requester, RetryCandidate, RetryScan, ScanPage};
use super::{Command, Completion, Dispatch, KeyQueue};
use crate::ledger::records::{ParkedTask, TargetKey};
use crate::parking::{self, ParkedFilter, RetrySummary};
use crate::{blocking, clock};

/// What a command means, counted before it is tried.
#[derive(Debug)]
pub(super) struct Counted {
    filter: ParkedFilter,
    asker: Requester,
    result: Result<RetrySummary, Failure>,
}

impl Dispatch {
    pub(super) fn answer(&mut self, question: Command) {
        match question {
            Command::Stats(asker) => {
                let _asker_may_be_gone = asker.send(super::InFlightStats::of(self));
            }
            Command::Retry(filter, asker) => self.retry(filter, asker),
        }
    }

    /// Tries all that is meant again. There may be much to count, so not in this loop.
    fn retry(&mut self, filter: ParkedFilter, asker: Requester) {
        if self.sweeps.is_full() || self.deliveries.is_closed() {
            let busy =
                "the daemon is stopping, or has many retries before this one; try again later";
            let _asker_may_be_gone = asker.send(Err(busy.to_owned()));
            return;
        }
        let (ledger, rules) = (self.engine.ledger.clone(), Arc::clone(&self.rules.borrow()));
        self.running.spawn(async move {
            let result = blocking::run_blocking(|| parking::count(&ledger, &rules, &filter));
            Completion::Counted(Counted {
                filter,
                asker,
                result,
            })
        });
    }

    pub(super) fn counted(
        &mut self,
        Counted {
            filter,
            asker,
            result,
        }: Counted,
    ) {
        let answer = result.map_err(|failure| error_chain(&failure));
        match &answer {
            Ok(retried) => info!(tasks = retried.tasks, "trying parked tasks again"),
            Err(error) => warn!(error, "cannot read what is parked"),
        }
        self.sweeps.add(RetryScan::of_filter(filter));
        let _asker_may_be_gone = asker.send(answer);
    }

    /// Goes on with the sweep whose turn it is, as far as there are keys for it.
    pub(super) fn sweep(&mut self) {
        // A drain ends with what is in flight.
        if self.sweeps.is_idle() || self.deliveries.is_closed() {
            return;
        }
        let unbidden = self
            .targets
            .values()
            .filter(|work| KeyQueue::is_background(work))
            .count();
        let Some(lanes_max) = LANES_MAX.checked_sub(unbidden).filter(|room| *room > 0) else {
            return;
        };
        let Some(sweep) = self.sweeps.next() else {
            return;
        };
        let (ledger, rules) = (self.engine.ledger.clone(), Arc::clone(&self.rules.borrow()));
        let has_business = self.has_business();
        self.running.spawn(async move {
            Completion::Found(blocking::run_blocking(|| {
                sweep.next_round(&ledger, &rules, lanes_max, has_business)
            }))
        });
    }

    /// Tries what a sweep found. That it is tried is written down first: a task that then ends
    /// without being parked anew must not keep the others from their turn.
    pub(super) fn handle_round(&mut self, round: Result<ScanPage, Failure>) {
        let ScanPage { targets, rest } = match round {
            Ok(round) => round,
            Err(failure) => {
                self.sweeps.return_sweep(None);
                return warn!(error = error_chain(&failure), "cannot read what is parked");
            }
        };
        if self.engine.work_queues.are_used() && !self.deliveries.is_closed() {
            return self.send_retries(targets, rest);
        }
        self.sweeps.return_sweep(rest);
        if self.deliveries.is_closed() {
            return;
        }
        let now = clock::now();
        for RetryCandidate { parked, task } in targets {
            if let Err(failure) = parked
                .into_iter()
                .try_for_each(|parked| self.count_try(parked, now))
            {
                warn!(error = error_chain(&failure), "cannot write to the ledger");
            }
            if let Some(task) = task {
                self.enqueue_task(None, task);
            }
        }
    }

    /// Tells which keys have no work, and a destination whose circuit is closed.
    fn has_business(&self) -> impl Fn(&TargetKey) -> bool + Send + use<> {
        let busy: BTreeSet<TargetKey> = self.targets.keys().cloned().collect();
        let engine = Arc::clone(&self.engine);
        move |target| {
            !busy.contains(target) && !engine.concurrency.is_circuit_open(&target.destination)
        }
    }

    fn count_try(&self, parked: ParkedTask, now: Timestamp) -> Result<(), Failure> {
        match self.engine.ledger.parked_before(&parked)? {
            Some(parked) => self.engine.ledger.put_parked(&parking::tried(parked, now)),
            // Done meanwhile, by a message that came: then it is parked no more.
            None => Ok(()),
        }
    }
}
