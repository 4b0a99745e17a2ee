//! Which queues a daemon receives from, what is started for each, and which rules a reload may not
//! change because of that.

use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use clap::ValueEnum;
use replicator_config::{Queue, Settings};
use replicator_core::rule::Rule;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::dispatch;
use crate::engine::Engine;
use crate::health::PollStatus;
use crate::queue::message::ReceivedMessage;
use crate::queue::receiver::{BATCH_MAX, PauseGate, PollGate, Receiver};
use crate::s3::accounts::Accounts;
use crate::sqs::lease::Leases;
use crate::sqs::work_queues::QueueAccess;
use crate::task::Ruleset;

// Messages that each queue may have on the way to the dispatch: a poll holds room for one batch
// while it waits, and another keeps the dispatch busy; more would only hide messages from daemons
// that are free.
const DELIVERIES_MAX: usize = 2 * BATCH_MAX;

// Messages of one work queue in flight, at the most: what one daemon gets done in some seconds.
// What is beyond is for other daemons.
const IN_FLIGHT_MAX: usize = 500;

// With fewer a queue would leave task slots of its destination empty (`SHARE_MAX` of the
// scheduler). With many queues the sum may exceed the dispatch's messages; it bounds their tasks
// and bytes.
const PART_MIN: usize = 128;

// Hints of one queue that the router has in flight: an event waits behind them at the most, half a
// second at 100 keys a second.
const HINTS_MAX: usize = 50;

/// Which part of the work a daemon does, where there are work queues.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// All of it.
    #[default]
    #[value(skip)]
    Both,
    /// Sends each event's work to the work queues.
    Router,
    /// Does what is in the work queues.
    Worker,
}

/// The receivers, the status of their polls, and the events for the router.
pub(super) type Started = (
    JoinSet<()>,
    Vec<Arc<PollStatus>>,
    Option<mpsc::Receiver<ReceivedMessage>>,
);

/// The receivers as they are started.
pub(super) struct Receiving<'a> {
    engine: &'a Engine,
    settings: &'a Settings,
    rules: &'a watch::Receiver<Arc<Ruleset>>,
    numbers: Arc<AtomicU64>,
    drain: &'a CancellationToken,
    close: &'a CancellationToken,
    services: &'a mut JoinSet<()>,
    receivers: JoinSet<()>,
    polls: Vec<Arc<PollStatus>>,
}

impl<'a> Receiving<'a> {
    pub(super) fn new(
        (engine, settings, rules): (&'a Engine, &'a Settings, &'a watch::Receiver<Arc<Ruleset>>),
        (drain, close): (&'a CancellationToken, &'a CancellationToken),
        services: &'a mut JoinSet<()>,
    ) -> Self {
        Self {
            engine,
            settings,
            rules,
            numbers: Arc::new(AtomicU64::new(1)),
            drain,
            close,
            services,
            receivers: JoinSet::new(),
            polls: Vec::new(),
        }
    }

    /// Starts a receiver for each queue that this role receives from: those of work queues deliver
    /// to the dispatch, and so do those of events where there are none. Else events are for the
    /// router. Returns the receivers, the status of their polls, and the router's events.
    pub(super) fn start(mut self, role: Role, deliver: mpsc::Sender<ReceivedMessage>) -> Started {
        let routed = self.start_role(role, deliver);
        (self.receivers, self.polls, routed)
    }

    fn start_role(
        &mut self,
        role: Role,
        deliver: mpsc::Sender<ReceivedMessage>,
    ) -> Option<mpsc::Receiver<ReceivedMessage>> {
        let work_queues = self.engine.work_queues.iter();
        let gated: Vec<_> = work_queues
            .filter_map(|access| Some((access, self.work_gate(access)?)))
            .collect();
        if gated.is_empty() {
            let in_flight_max = part_of(dispatch::MESSAGES_MAX, self.settings.queues.len());
            self.start_events(&deliver, Some(in_flight_max));
            return None;
        }
        let routed = (role != Role::Worker).then(|| {
            let (routed, events) = mpsc::channel(deliveries_max(self.settings));
            self.start_events(&routed, None);
            self.start_hints(&routed);
            events
        });
        match role {
            Role::Both | Role::Worker => {
                gated
                    .into_iter()
                    .for_each(|(access, gate)| self.start_one(access, &deliver, Some(gate)));
            }
            Role::Router => {
                // The dispatch has nothing to do, and answers until the drain how it is.
                let drain = self.drain.clone();
                self.receivers.spawn(async move {
                    drain.cancelled().await;
                    drop(deliver);
                });
            }
        }
        routed
    }

    /// Starts the receivers of events, with a bound on the messages in flight of each if they are
    /// for the dispatch.
    fn start_events(
        &mut self,
        deliver: &mpsc::Sender<ReceivedMessage>,
        in_flight_max: Option<usize>,
    ) {
        let queues = self.settings.queues.iter();
        for access in queues.filter_map(|queue| access(&self.engine.accounts, queue)) {
            let gate = in_flight_max.map(|max| PollGate::of_events(max, self.pause_gate(None)));
            self.start_one(&access, deliver, gate);
        }
    }

    /// Starts the receivers of hints, which the router sends to their work queues.
    fn start_hints(&mut self, deliver: &mpsc::Sender<ReceivedMessage>) {
        for queue in &self.settings.backfill_queues {
            let mut work_queues = self.engine.work_queues.iter();
            let work_queue =
                work_queues.find(|access| Some(&access.queue.url) == queue.work_queue.as_ref());
            let Some((work_queue, access)) = work_queue.zip(access(&self.engine.accounts, queue))
            else {
                continue;
            };
            let pause = self.pause_gate(queue.work_queue.clone());
            let gate = PollGate::of_hints(HINTS_MAX, pause, Arc::clone(work_queue));
            self.start_one(&access, deliver, Some(gate));
        }
    }

    /// Starts the receiver of a queue, and the renewal of its leases.
    fn start_one(
        &mut self,
        access: &Arc<QueueAccess>,
        deliver: &mpsc::Sender<ReceivedMessage>,
        gate: Option<PollGate>,
    ) {
        let leases = Leases::new(
            access.client.clone(),
            &access.queue,
            self.engine.metrics.clone(),
        );
        let poll = Arc::new(PollStatus::new(access.queue.name()));
        self.services.spawn(leases.clone().run(self.close.clone()));
        self.polls.push(Arc::clone(&poll));
        let receiver = Receiver {
            access: Arc::clone(access),
            leases,
            deliveries: deliver.clone(),
            numbers: Arc::clone(&self.numbers),
            poll,
            drain_timeout: self.settings.drain_timeout,
            metrics: self.engine.metrics.clone(),
            ledger: self.engine.ledger.clone(),
            gate,
        };
        self.receivers.spawn(receiver.run(self.drain.clone()));
    }

    /// Returns what holds a work queue back: it serves one destination, and has its part of the
    /// messages in flight.
    fn work_gate(&self, access: &QueueAccess) -> Option<PollGate> {
        let url = &access.queue.url;
        let of_queue = |rule: &&Rule| rule.work_queue.as_ref() == Some(url);
        let rules = || self.settings.rules.iter().filter(of_queue);
        let rule = rules().find(|rule| rule.enabled).or(rules().next())?;
        let in_flight_max =
            part_of(dispatch::MESSAGES_MAX, self.settings.work_queues.len()).min(IN_FLIGHT_MAX);
        Some(PollGate::of_work(
            in_flight_max,
            self.pause_gate(Some(url.clone())),
            (self.engine.concurrency.clone(), rule.destination.clone()),
        ))
    }

    /// Returns what holds a queue back while its rules are paused: a work queue, or all of the
    /// events.
    fn pause_gate(&self, work_queue: Option<String>) -> PauseGate {
        PauseGate {
            pauses: Arc::clone(&self.engine.pauses),
            rules: self.rules.clone(),
            work_queue,
        }
    }
}

/// Returns what each of so many queues may have of all messages in flight.
fn part_of(messages: usize, queues: usize) -> usize {
    (messages / queues.max(1)).max(PART_MIN)
}

/// Returns how many messages may be on their way to a station.
pub(super) fn deliveries_max(settings: &Settings) -> usize {
    let routed = settings.queues.len() + settings.backfill_queues.len();
    DELIVERIES_MAX * routed.max(settings.work_queues.len()).max(1)
}

/// Returns a queue and the client that reaches it. The configuration was checked: its account is
/// there.
pub(super) fn access(accounts: &Accounts, queue: &Queue) -> Option<Arc<QueueAccess>> {
    let client = accounts.get(&queue.account)?.sqs.clone();
    Some(Arc::new(QueueAccess {
        queue: queue.clone(),
        client,
    }))
}

/// Finds a rule that a reload may not change, because the way of a key's work is one in the whole
/// fleet: its work would go through no work queue instead of one or the other way around, through
/// one that is not polled, through another one than before, or to another bucket than that queue
/// is polled for.
pub(super) fn rerouted<'a>(old: &Settings, new: &'a Settings) -> Option<&'a str> {
    let had_queues = !old.work_queues.is_empty();
    let is_routed = |rule: &Rule| rule.enabled || rule.is_waiting();
    let is_polled = |rule: &Rule| {
        let mut before = old.rules.iter();
        let is_received = |url: &String| old.backfill_queues.iter().any(|queue| queue.url == *url);
        let is_worked_on = before.any(|other| {
            other.work_queue == rule.work_queue && other.destination == rule.destination
        });
        is_worked_on && rule.backfill_queue.as_ref().is_none_or(is_received)
    };
    let moved = |rule: &Rule| {
        let before = old
            .rules
            .iter()
            .find(|other| other.id == rule.id && is_routed(other));
        before.is_some_and(|before| {
            before.work_queue != rule.work_queue || before.backfill_queue != rule.backfill_queue
        })
    };
    let is_wrong = |rule: &&Rule| match &rule.work_queue {
        Some(_) => !had_queues || !is_polled(rule) || moved(rule),
        None => had_queues,
    };
    new.rules
        .iter()
        .filter(|rule| is_routed(rule))
        .find(is_wrong)
        .map(|rule| rule.id.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(rules: &str) -> Settings {
        let accounts =
            "[accounts.a]\nregion = \"eu-west-1\"\n[accounts.b]\nregion = \"us-east-1\"\n";
        let url = "https://sqs.eu-west-1.amazonaws.com/111111111111/";
        let queue = format!(
            "[[queues]]\nurl = \"{url}events\"\naccount = \"a\"\ndead_letter_url = \"{url}parked\"\n"
        );
        let rules = rules
            .replace("_queue = ", &format!("_queue = \"{url}"))
            .replace(".fifo", ".fifo\"");
        replicator_config::parse(&format!("state_dir = \"/tmp\"\n{accounts}{queue}{rules}"))
            .unwrap()
    }

    fn rule(id: &str, bucket: &str, rest: &str) -> String {
        format!(
            "[[rules]]\nid = \"{id}\"\nsource = {{ account = \"a\", bucket = \"orders\" }}\n\
             destination = {{ account = \"b\", bucket = \"{bucket}\" }}\n{rest}\n"
        )
    }

    #[test]
    fn a_rule_keeps_the_way_of_its_work_until_a_restart() {
        let one = rule("one", "replicas", "work_queue = one.fifo");
        let same = |rest: &str| rule("two", "replicas", &format!("work_queue = one.fifo\n{rest}"));
        let cases = [
            (one.clone(), one.clone(), None),
            (one.clone(), format!("{one}{}", same("priority = 1")), None),
            (one.clone(), rule("one", "replicas", ""), Some("one")),
            (rule("one", "replicas", ""), one.clone(), Some("one")),
            (
                one.clone(),
                rule("one", "replicas", "work_queue = other.fifo"),
                Some("one"),
            ),
            (
                one.clone(),
                rule("one", "elsewhere", "work_queue = one.fifo"),
                Some("one"),
            ),
            (
                rule("one", "replicas", "enabled = false\nwork_queue = one.fifo"),
                one.clone(),
                None,
            ),
            (
                one.clone(),
                rule(
                    "one",
                    "replicas",
                    "work_queue = one.fifo\nbackfill_queue = b.fifo",
                ),
                Some("one"),
            ),
            (
                one.clone(),
                format!("{one}{}", same("priority = 1\nbackfill_queue = b.fifo")),
                Some("two"),
            ),
            (one, rule("one", "replicas", "enabled = false"), None),
        ];
        for (old, new, expected) in cases {
            assert_eq!(
                rerouted(&settings(&old), &settings(&new)),
                expected,
                "{old}{new}"
            );
        }
    }
}
