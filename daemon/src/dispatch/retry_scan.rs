//! Parked tasks are tried again: each on a slow schedule of its own, all of them at a start, and
//! whatever a command means at once.

use std::collections::VecDeque;
use std::ops::ControlFlow;
use std::time::Duration;

use replicator_core::failure::Failure;
use replicator_core::object::Timestamp;
use tokio::sync::oneshot;

use crate::ledger::Ledger;
use crate::ledger::records::{ParkedTask, TargetKey};
use crate::parking::{ParkedFilter, RetrySummary, is_due};
use crate::task::Ruleset;
use crate::task::Task;

/// The time between two looks at what is due.
pub(super) const EVERY: Duration = Duration::from_secs(60);

/// Lanes of parked tasks at work at once: more than one destination works on, and few beside the
/// messages that come in.
pub(super) const LANES_MAX: usize = 100;

/// Sweeps that wait for their turn: a retry command beyond this is refused for now.
pub(super) const SWEEPS_MAX: usize = 16;

/// Where the result of a retry command goes.
pub(crate) type Requester = oneshot::Sender<Result<RetrySummary, String>>;

/// One way through all that is parked, key by key.
#[derive(Debug, Clone)]
pub(super) struct RetryScan {
    chosen: ScanSelection,
    /// The key that it came to.
    after: Option<TargetKey>,
}

#[derive(Debug, Clone)]
enum ScanSelection {
    /// What is due at this moment.
    Due(Timestamp),
    /// Those that a filter selects.
    Meant(ParkedFilter),
}

/// The next keys of a sweep.
#[derive(Debug)]
pub(super) struct ScanPage {
    pub(super) targets: Vec<RetryCandidate>,
    /// Where the sweep goes on; absent at its end.
    pub(super) rest: Option<RetryScan>,
}

/// What is parked at one key, and the task that it makes; none when no rule takes it any more.
#[derive(Debug)]
pub(super) struct RetryCandidate {
    pub(super) parked: Vec<ParkedTask>,
    pub(super) task: Option<Task>,
}

impl RetryScan {
    pub(super) fn due_at(now: Timestamp) -> Self {
        Self {
            chosen: ScanSelection::Due(now),
            after: None,
        }
    }

    pub(super) fn of_filter(filter: ParkedFilter) -> Self {
        Self {
            chosen: ScanSelection::Meant(filter),
            after: None,
        }
    }

    /// Says whether the sweep is on schedule, and so no client waits for it.
    pub(super) fn is_routine(&self) -> bool {
        matches!(self.chosen, ScanSelection::Due(_))
    }

    /// Finds the next keys, so many at most. Routine leaves those alone that have no business now.
    pub(super) fn next_round(
        self,
        ledger: &Ledger,
        rules: &Ruleset,
        lanes_max: usize,
        has_business: impl Fn(&TargetKey) -> bool,
    ) -> Result<ScanPage, Failure> {
        let mut found: Vec<(TargetKey, Vec<ParkedTask>)> = Vec::new();
        let mut is_over = true;
        ledger.visit_parked(self.after.as_ref(), |task| {
            if !self.selects_task(&task) || self.is_routine() && !has_business(&task.target) {
                return ControlFlow::Continue(());
            }
            if let Some((target, parked)) = found.last_mut()
                && *target == task.target
            {
                parked.push(task);
                return ControlFlow::Continue(());
            }
            if found.len() >= lanes_max {
                is_over = false;
                return ControlFlow::Break(());
            }
            found.push((task.target.clone(), vec![task]));
            ControlFlow::Continue(())
        })?;
        let after = found.last().map(|(target, _)| target.clone());
        let rest = (!is_over).then_some(Self { after, ..self });
        let targets = found
            .into_iter()
            .map(|(_, parked)| RetryCandidate {
                task: revive(rules, &parked),
                parked,
            })
            .collect();
        Ok(ScanPage { targets, rest })
    }

    fn selects_task(&self, task: &ParkedTask) -> bool {
        match &self.chosen {
            ScanSelection::Due(now) => is_due(task, *now),
            ScanSelection::Meant(filter) => filter.matches_task(task),
        }
    }
}

/// Makes one task of all that is parked at a key.
fn revive(rules: &Ruleset, parked: &[ParkedTask]) -> Option<Task> {
    parked
        .iter()
        .filter_map(|parked| rules.revive(parked))
        .reduce(|mut all, task| {
            all.events.extend(task.events);
            all
        })
}

/// The sweeps that are under way, one after the other.
#[derive(Debug, Default)]
pub(super) struct ScanQueue {
    waiting: VecDeque<RetryScan>,
    is_searching: bool,
}

impl ScanQueue {
    /// Lets a sweep wait for its turn. Routine is left out while it is under way already.
    pub(super) fn add(&mut self, sweep: RetryScan) {
        if !sweep.is_routine() || !self.waiting.iter().any(RetryScan::is_routine) {
            self.waiting.push_back(sweep);
        }
    }

    pub(super) fn is_idle(&self) -> bool {
        self.is_searching || self.waiting.is_empty()
    }

    pub(super) fn is_full(&self) -> bool {
        self.waiting.len() >= SWEEPS_MAX
    }

    /// Takes the sweep that is to go on, unless one is out; commands go before routine.
    pub(super) fn next(&mut self) -> Option<RetryScan> {
        if self.is_searching {
            return None;
        }
        let command = self
            .waiting
            .iter()
            .position(|sweep| !sweep.is_routine())
            .unwrap_or(0);
        let sweep = self.waiting.remove(command)?;
        self.is_searching = true;
        Some(sweep)
    }

    /// Takes back what is left of a sweep; it goes on before others.
    pub(super) fn return_sweep(&mut self, rest: Option<RetryScan>) {
        self.is_searching = false;
        if let Some(sweep) = rest {
            self.waiting.push_front(sweep);
        }
    }
}

#[cfg(test)]
mod tests {
    use replicator_core::event::EventKind;
    use replicator_core::failure::Reason;
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule::BucketRef;

    use super::*;
    use crate::task::tests::rules;

    fn parked(key: &str, action: EventKind, due_seconds: i64) -> ParkedTask {
        let place = |bucket: &str| BucketRef {
            account: "main".to_owned(),
            bucket: Bucket::try_from(bucket).unwrap(),
        };
        let since = Timestamp::from_unix_timestamp(0).unwrap();
        ParkedTask {
            target: TargetKey {
                destination: place("replicas"),
                key: Key::try_from(key).unwrap(),
            },
            rule: "orders".to_owned(),
            source: place("orders"),
            source_key: Key::try_from(key).unwrap(),
            action,
            version: None,
            reason: Reason::DstBucketNotFound,
            detail: String::new(),
            since,
            tries: 0,
            due: Some(Timestamp::from_unix_timestamp(due_seconds).unwrap()),
        }
    }

    /// Goes through a sweep and returns the keys of each round, with the number of tasks.
    fn sweep(
        tasks: &[ParkedTask],
        mut sweep: RetryScan,
        lanes_max: usize,
        busy: &str,
    ) -> Vec<Vec<(String, usize)>> {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        tasks
            .iter()
            .for_each(|task| ledger.put_parked(task).unwrap());
        let ruleset = Ruleset::new(&rules(&[("orders", "orders", "replicas")]));
        let mut rounds = Vec::new();
        loop {
            let round = sweep
                .next_round(&ledger, &ruleset, lanes_max, |target| {
                    target.key.as_str() != busy
                })
                .unwrap();
            let key = |target: &RetryCandidate| {
                (target.parked[0].target.key.to_string(), target.parked.len())
            };
            rounds.push(round.targets.iter().map(key).collect());
            match round.rest {
                Some(rest) => sweep = rest,
                None => return rounds,
            }
        }
    }

    fn all() -> RetryScan {
        RetryScan::of_filter(ParkedFilter::default())
    }

    fn one(key: &str, tasks: usize) -> (String, usize) {
        (key.to_owned(), tasks)
    }

    #[test]
    fn a_sweep_comes_to_every_lane_once_and_to_all_of_its_tasks_at_a_time() {
        let tasks = [
            ("a", EventKind::Put),
            ("a", EventKind::Tags),
            ("ab", EventKind::Put),
            ("b", EventKind::Put),
            ("c", EventKind::Put),
        ];
        let tasks = tasks.map(|(key, action)| parked(key, action, 0));
        let rounds = sweep(&tasks, all(), 2, "");
        assert_eq!(
            rounds,
            [
                vec![one("a", 2), one("ab", 1)],
                vec![one("b", 1), one("c", 1)]
            ]
        );
        assert_eq!(sweep(&tasks, all(), 1, "").len(), 4);
        assert_eq!(sweep(&tasks, all(), 100, "").len(), 1);
    }

    #[test]
    fn routine_takes_what_is_due_and_leaves_alone_what_has_no_business() {
        let tasks = [
            parked("busy", EventKind::Put, 0),
            parked("due", EventKind::Put, 10),
            parked("early", EventKind::Put, 11),
        ];
        let due = RetryScan::due_at(Timestamp::from_unix_timestamp(10).unwrap());
        assert_eq!(sweep(&tasks, due, 100, "busy"), [vec![one("due", 1)]]);
        let meant = sweep(&tasks, all(), 100, "busy");
        assert_eq!(
            meant,
            [vec![one("busy", 1), one("due", 1), one("early", 1)]]
        );
    }

    #[test]
    fn a_command_goes_before_routine_and_routine_is_under_way_once() {
        let now = Timestamp::from_unix_timestamp(0).unwrap();
        let mut sweeps = ScanQueue::default();
        sweeps.add(RetryScan::due_at(now));
        sweeps.add(RetryScan::due_at(now));
        sweeps.add(all());
        assert!(!sweeps.next().unwrap().is_routine());
        assert!(sweeps.next().is_none(), "one search at a time");
        sweeps.return_sweep(None);
        assert!(sweeps.next().unwrap().is_routine());
        sweeps.return_sweep(None);
        assert!(sweeps.next().is_none() && sweeps.is_idle());
    }
}
