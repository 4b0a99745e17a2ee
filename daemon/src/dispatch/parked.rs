//! What is parked comes back to the keys, page by page: what is due on its own schedule, and all
//! that a start or a retry command made due. Where there are work queues, a daemon acts on no key
//! without its message: so each task is sent to its work queue, which holds it from then on, and
//! the ledger's record is removed.

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use replicator_core::event;
use replicator_core::failure::{Failure, error_chain};
use replicator_core::object::Timestamp;
use tokio::sync::oneshot;
use tracing::{info, warn};

use super::in_flight::{Behind, KeyQueue};
use super::{Completion, Dispatch};
use crate::clock;
use crate::engine::Engine;
use crate::ledger::Ledger;
use crate::ledger::records::{ParkedTask, TargetKey};
use crate::parking::{self, ParkedFilter, RetrySummary};
use crate::process::run_blocking;
use crate::sqs::work_queues::{Again, ParkedBefore, WorkItem, digest_words, group_of};
use crate::task::{Ruleset, Task, event_of};

/// The time between two looks at what is due.
pub(super) const SCANNED_EVERY: Duration = Duration::from_secs(60);

/// Keys whose parked tasks are tried at once: more than one destination works on, and few beside
/// the messages that come in.
const KEYS_MAX: usize = 100;

/// Retry commands that read the ledger at once; further ones are refused for now.
const COMMANDS_MAX: usize = 8;

/// Where the result of a retry command goes.
pub(crate) type Requester = oneshot::Sender<Result<RetrySummary, String>>;

/// The one pass over all that is parked.
#[derive(Debug, Default)]
pub(super) struct ParkedScan {
    /// Where the pass goes on, if there is one.
    next: Option<ScanPosition>,
    /// Whether a page of it is being read or sent.
    is_busy: bool,
    /// Retry commands that are being recorded.
    commands: usize,
}

#[derive(Debug, Clone, Default)]
pub(super) struct ScanPosition {
    /// Whether a start or a command asked for the pass: then it comes to keys that are busy, too.
    is_requested: bool,
    after: Option<TargetKey>,
}

/// The next keys of a pass.
#[derive(Debug)]
pub(super) struct ScanPage {
    candidates: Vec<RetryCandidate>,
    /// Where the pass goes on; absent at its end.
    rest: Option<ScanPosition>,
}

/// What is due at one key, and the task that it makes; none when no rule takes it any more.
#[derive(Debug)]
struct RetryCandidate {
    parked: Vec<ParkedTask>,
    task: Option<Task>,
}

impl ParkedScan {
    /// Begins a pass, unless one is under way.
    pub(super) fn begin_routine(&mut self) {
        if !self.is_busy && self.next.is_none() {
            self.next = Some(ScanPosition::default());
        }
    }

    /// Begins a pass anew.
    fn begin_requested(&mut self) {
        self.next = Some(ScanPosition {
            is_requested: true,
            after: None,
        });
    }

    /// Ends a page; a pass that was requested meanwhile comes to the rest, too.
    fn end_page(&mut self, rest: Option<ScanPosition>) {
        self.is_busy = false;
        self.next = self.next.take().or(rest);
    }
}

impl Dispatch {
    /// Makes due what a filter selects. There may be much of it, so not in this loop.
    pub(super) fn retry(&mut self, filter: ParkedFilter, requester: Option<Requester>) {
        if self.parked.commands >= COMMANDS_MAX || self.deliveries.is_closed() {
            let busy =
                "the daemon is stopping, or has many retries before this one; try again later";
            answer(requester, Err(busy.to_owned()));
            return;
        }
        self.parked.commands += 1;
        let (ledger, rules) = (self.engine.ledger.clone(), Arc::clone(&self.rules.borrow()));
        self.running.spawn(async move {
            let due = run_blocking(|| parking::make_due(&ledger, &rules, &filter));
            let due = due.map_err(|failure| error_chain(&failure));
            match &due {
                Ok(RetrySummary { tasks: 0, .. }) => {}
                Ok(RetrySummary { tasks, .. }) => info!(tasks, "trying parked tasks again"),
                Err(error) => warn!(error, "cannot read what is parked"),
            }
            answer(requester, due);
            Completion::MadeDue
        });
    }

    /// Makes due what is parked for keys that can be used again, as far as there is room for it.
    pub(super) fn retry_recovered(&mut self) {
        while self.parked.commands < COMMANDS_MAX
            && let Some((rule, reason)) = self.engine.keys.take_recovered()
        {
            let filter = ParkedFilter {
                rule: Some(rule),
                reason: Some(reason),
                object: None,
            };
            self.retry(filter, None);
        }
    }

    pub(super) fn made_due(&mut self) {
        self.parked.commands -= 1;
        self.parked.begin_requested();
    }

    /// Reads the next page of the pass that is under way, as far as there is room for its keys.
    pub(super) fn scan_parked(&mut self) {
        // A drain ends with what is in flight.
        if self.parked.is_busy || self.parked.next.is_none() || self.deliveries.is_closed() {
            return;
        }
        let background = self
            .targets
            .values()
            .filter(|queue| KeyQueue::is_background(queue))
            .count();
        let keys_max = KEYS_MAX.saturating_sub(background);
        let Some(position) = self.parked.next.take_if(|_| keys_max > 0) else {
            return;
        };
        self.parked.is_busy = true;
        let (ledger, rules) = (self.engine.ledger.clone(), Arc::clone(&self.rules.borrow()));
        let busy: BTreeSet<TargetKey> = self.targets.keys().cloned().collect();
        // Those at a destination whose circuit is open begin too: without other work nothing else
        // would probe it.
        let may_begin = move |target: &TargetKey| !busy.contains(target);
        self.running.spawn(async move {
            Completion::Scanned(run_blocking(|| {
                read_page((&ledger, &rules), position, keys_max, may_begin)
            }))
        });
    }

    /// Tries what a page has. That it is tried is written down first: a task that then ends without
    /// being parked anew must not keep the others from their turn.
    pub(super) fn try_page(&mut self, page: Result<ScanPage, Failure>) {
        let ScanPage {
            mut candidates,
            rest,
        } = match page {
            Ok(page) => page,
            Err(failure) => {
                warn!(error = error_chain(&failure), "cannot read what is parked");
                return self.parked.end_page(None);
            }
        };
        if self.deliveries.is_closed() {
            return self.parked.end_page(rest);
        }
        let is_held = |candidate: &RetryCandidate| {
            let task = candidate.task.as_ref();
            task.is_some_and(|task| self.engine.is_held(task))
        };
        candidates.retain(|candidate| !is_held(candidate));
        if self.engine.work_queues.are_used() {
            let engine = Arc::clone(&self.engine);
            self.running.spawn(async move {
                send(&engine, candidates).await;
                Completion::Sent(rest)
            });
            return;
        }
        self.parked.end_page(rest);
        let now = clock::now();
        for RetryCandidate { parked, task } in candidates {
            let recorded = parked
                .iter()
                .try_for_each(|parked| parking::record_try(&self.engine.ledger, parked, now));
            if let Err(failure) = recorded {
                warn!(error = error_chain(&failure), "cannot write to the ledger");
            }
            if let Some(task) = task {
                self.enqueue_task(Behind::Record, task);
            }
        }
    }

    /// Goes on after a page was sent to the work queues.
    pub(super) fn sent_page(&mut self, rest: Option<ScanPosition>) {
        self.parked.end_page(rest);
    }
}

fn answer(requester: Option<Requester>, answer: Result<RetrySummary, String>) {
    if let Some(requester) = requester {
        let _requester_may_be_gone = requester.send(answer);
    }
}

/// Finds the next keys that have due tasks, so many at most. Unless it was requested, a pass leaves
/// out those that may not begin now.
fn read_page(
    (ledger, rules): (&Ledger, &Ruleset),
    position: ScanPosition,
    keys_max: usize,
    may_begin: impl Fn(&TargetKey) -> bool,
) -> Result<ScanPage, Failure> {
    let (mut found, now): (Vec<(TargetKey, Vec<ParkedTask>)>, _) = (Vec::new(), clock::now());
    let mut is_over = true;
    ledger.visit_parked(position.after.as_ref(), |task| {
        if !parking::is_due(&task, now) || !position.is_requested && !may_begin(&task.target) {
            return ControlFlow::Continue(());
        }
        if let Some((target, parked)) = found.last_mut()
            && *target == task.target
        {
            parked.push(task);
            return ControlFlow::Continue(());
        }
        if found.len() >= keys_max {
            is_over = false;
            return ControlFlow::Break(());
        }
        found.push((task.target.clone(), vec![task]));
        ControlFlow::Continue(())
    })?;
    let after = found.last().map(|(target, _)| target.clone());
    let rest = (!is_over).then_some(ScanPosition { after, ..position });
    let candidates = found
        .into_iter()
        .map(|(_, parked)| RetryCandidate {
            task: revive(rules, &parked),
            parked,
        })
        .collect();
    Ok(ScanPage { candidates, rest })
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

/// Sends parked tasks to the work queues, and removes the record of each that was sent.
async fn send(engine: &Engine, candidates: Vec<RetryCandidate>) {
    let now = clock::now();
    let (mut items, mut parked) = (Vec::new(), Vec::new());
    for candidate in candidates {
        let url = candidate
            .task
            .and_then(|task| task.rules.primary.work_queue.clone());
        for task in candidate.parked {
            if let Some(url) = &url {
                items.push(item(url, &task, now));
                parked.push(task);
            }
        }
    }
    let sent = engine.work_queues.send_all(&items).await;
    let sent = parked.into_iter().zip(sent).filter(|(_, sent)| *sent);
    for (task, _) in sent {
        let removed = run_blocking(|| {
            engine
                .ledger
                .remove_parked(&task.target, |parked| is_same_work(parked, &task))
        });
        if let Err(failure) = removed {
            warn!(error = error_chain(&failure), "cannot write to the ledger");
        }
    }
}

/// Says whether nothing changed since it was read but when it is due.
fn is_same_work(parked: &ParkedTask, read: &ParkedTask) -> bool {
    let due = read.due;
    ParkedTask {
        due,
        ..parked.clone()
    } == *read
}

fn item(url: &str, task: &ParkedTask, now: Timestamp) -> WorkItem {
    let group = group_of(&task.target);
    let version = task.version.as_ref().map_or("", |version| version.as_str());
    let deduplication = digest_words([
        "retry",
        &group,
        task.action.as_str(),
        version,
        &now.unix_timestamp_nanos().to_string(),
    ]);
    let parked = ParkedBefore {
        since: task.since,
        tries: task.tries.saturating_add(1),
    };
    WorkItem {
        url: url.to_owned(),
        group,
        deduplication,
        body: event::notification_of(&event_of(task)),
        again: Some(Again::Parked(parked)),
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

    fn parked(key: &str, action: EventKind, due: Option<Timestamp>) -> ParkedTask {
        let place = |bucket: &str| BucketRef {
            account: "main".to_owned(),
            bucket: Bucket::try_from(bucket).unwrap(),
        };
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
            since: Timestamp::from_unix_timestamp(0).unwrap(),
            tries: 0,
            due,
        }
    }

    /// Goes through a pass and returns the keys of each page, with the number of tasks.
    fn pages(
        tasks: &[ParkedTask],
        is_requested: bool,
        keys_max: usize,
        busy: &str,
    ) -> Vec<Vec<(String, usize)>> {
        let directory = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        tasks
            .iter()
            .for_each(|task| ledger.put_parked(task).unwrap());
        let ruleset = Ruleset::new(&rules(&[("orders", "orders", "replicas")]));
        let (mut pages, mut position) = (
            Vec::new(),
            ScanPosition {
                is_requested,
                after: None,
            },
        );
        loop {
            let may_begin = |target: &TargetKey| target.key.as_str() != busy;
            let page = read_page((&ledger, &ruleset), position, keys_max, may_begin).unwrap();
            let key = |candidate: &RetryCandidate| {
                (
                    candidate.parked[0].target.key.to_string(),
                    candidate.parked.len(),
                )
            };
            pages.push(page.candidates.iter().map(key).collect());
            match page.rest {
                Some(rest) => position = rest,
                None => return pages,
            }
        }
    }

    fn one(key: &str, tasks: usize) -> (String, usize) {
        (key.to_owned(), tasks)
    }

    #[test]
    fn a_pass_comes_to_every_key_once_and_to_all_of_its_tasks_at_a_time() {
        let tasks = [
            ("a", EventKind::Put),
            ("a", EventKind::Tags),
            ("ab", EventKind::Put),
            ("b", EventKind::Put),
            ("c", EventKind::Put),
        ];
        let tasks = tasks.map(|(key, action)| parked(key, action, None));
        assert_eq!(
            pages(&tasks, true, 2, ""),
            [
                vec![one("a", 2), one("ab", 1)],
                vec![one("b", 1), one("c", 1)]
            ]
        );
        assert_eq!(pages(&tasks, true, 1, "").len(), 4);
        assert_eq!(pages(&tasks, true, 100, "").len(), 1);
    }

    #[test]
    fn a_pass_takes_what_is_due_and_comes_to_busy_keys_only_if_it_was_requested() {
        let hour = Duration::from_secs(3600);
        let tasks = [
            parked("busy", EventKind::Put, None),
            parked("due", EventKind::Put, Some(clock::now())),
            parked(
                "early",
                EventKind::Put,
                Some(clock::saturating_later(clock::now(), hour)),
            ),
        ];
        assert_eq!(pages(&tasks, false, 100, "busy"), [vec![one("due", 1)]]);
        assert_eq!(
            pages(&tasks, true, 100, "busy"),
            [vec![one("busy", 1), one("due", 1)]]
        );
    }

    #[test]
    fn a_pass_that_is_requested_replaces_the_one_that_is_under_way() {
        let mut scan = ParkedScan::default();
        scan.begin_routine();
        assert!(scan.next.take().is_some_and(|next| !next.is_requested));
        scan.is_busy = true;
        scan.begin_routine();
        assert!(scan.next.is_none(), "one at a time");
        scan.begin_requested();
        scan.end_page(Some(ScanPosition::default()));
        assert!(scan.next.is_some_and(|next| next.is_requested));
    }
}
