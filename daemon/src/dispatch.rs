//! Station 2: events become tasks, one at a time per key. This loop alone owns the keys and the
//! messages in flight: `select` chooses what happens, the methods change the state.

mod in_flight;
mod parked;
mod runner;
mod tasks;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use replicator_core::event::Event;
use replicator_core::failure::Failure;
use replicator_core::retry::LANDING;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;
use utoipa::ToSchema;

use crate::clock;
use crate::dispatch::runner::TaskResult;
use crate::engine::Engine;
use crate::ledger::ParkedCounts;
use crate::ledger::records::{Replica, TargetKey};
use crate::metrics::PendingFigures;
use crate::parking::ParkedFilter;
use crate::queue::message::{AckAction, AckRequest, DelayedEvents, Message, ReceivedMessage};
use crate::task::Ruleset;
use in_flight::{CompletedTasks, HandedBack, InFlight, KeyQueue, QueuedEvent};
pub(crate) use parked::Requester;
use parked::{ParkedScan, SCANNED_EVERY, ScanPage, ScanPosition};

/// Hands tasks to keys and messages to the ack station.
#[derive(Debug)]
pub(crate) struct Dispatch {
    engine: Arc<Engine>,
    rules: watch::Receiver<Arc<Ruleset>>,
    deliveries: mpsc::Receiver<ReceivedMessage>,
    acks: mpsc::Sender<AckRequest>,
    commands: mpsc::Receiver<Command>,
    rounds: mpsc::Sender<Message>,
    targets: BTreeMap<TargetKey, KeyQueue>,
    in_flight: InFlight,
    delayed: DelayedEvents,
    completed: CompletedTasks,
    handed_back: HandedBack,
    parked: ParkedScan,
    running: JoinSet<Completion>,
    halt: CancellationToken,
}

/// The channels that the dispatch loop works on.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    pub(crate) deliveries: mpsc::Receiver<ReceivedMessage>,
    pub(crate) acks: mpsc::Sender<AckRequest>,
    pub(crate) commands: mpsc::Receiver<Command>,
    /// For messages that begin, or go on with, a comparison of all keys of a rule.
    pub(crate) rounds: mpsc::Sender<Message>,
}

/// What other stations request of the loop.
#[derive(Debug)]
pub(crate) enum Command {
    /// What is in flight.
    Stats(oneshot::Sender<InFlightStats>),
    /// To try again the parked tasks that a filter selects.
    Retry(ParkedFilter, Requester),
    /// To look at a key that misses something; answers whether there is room for that.
    Look(Box<Look>, oneshot::Sender<bool>),
    /// To forget a key that is gone for good, if it has no work and nothing but these replicas on
    /// record; answers whether that was so.
    Forget(Box<(TargetKey, Vec<Replica>)>, oneshot::Sender<bool>),
}

/// A key that misses something, and of which no message tells: it is looked at until that is done,
/// or parked, or the daemon stops.
#[derive(Debug, Clone)]
pub(crate) struct Look {
    pub(crate) target: TargetKey,
    pub(crate) event: Event,
}

/// What is in flight at this moment, for the metrics and `status`: read from the loop's own state
/// on request, so that it cannot drift.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct InFlightStats {
    /// What each rule has in flight.
    pub rules: BTreeMap<String, PendingFigures>,
    /// Messages whose tasks are not all closed.
    pub messages: usize,
    /// Keys that have work.
    pub keys: usize,
}

impl InFlightStats {
    /// Takes parked tasks into account: what is known of an event is then when it was parked.
    pub(crate) fn include_parked(&mut self, counts: &ParkedCounts) {
        for ((rule, _), (_, oldest)) in counts {
            if let Some(figures) = self.rules.get_mut(rule) {
                let age = clock::seconds_since(*oldest);
                figures.oldest_known_seconds = figures.oldest_known_seconds.max(age);
            }
        }
    }
}

/// What runs beside the loop comes back as one of these.
#[derive(Debug)]
enum Completion {
    /// The task of a key ended.
    Ended(TargetKey, TaskResult),
    /// A key may begin a task again: what its last one wrote has landed, or never will, or a pause
    /// is over.
    Resumed(TargetKey),
    /// What a retry command selects is due.
    MadeDue,
    /// A page of the ledger was searched for parked tasks.
    Scanned(Result<ScanPage, Failure>),
    /// A page was sent to the work queues; this is where its pass goes on.
    Sent(Option<ScanPosition>),
}

/// Messages in flight at once, waiting ones included, of which each queue has its part; far below
/// the 120,000 that SQS lets be in flight on a queue. Further messages wait in SQS.
pub(crate) const MESSAGES_MAX: usize = 2000;

/// Tasks in flight at once: a message may have several destinations, and any client that may write
/// to the queue can put some ten thousand records into one. Beyond this comes one message at most.
const TASKS_MAX: usize = 4 * MESSAGES_MAX;

/// Beside so many keys in work none is looked at that no message names.
const KEYS_BESIDE_LOOKS_MAX: usize = MESSAGES_MAX / 2;

/// Keys of a rule that are looked at at once, those included that wait for the end of an outage or
/// of a pause: they come at ten a second at most, and most take less than some seconds.
const LOOKS_MAX: usize = 50;

/// The limit on the bodies of messages in flight, which are kept for the dead-letter queue: a
/// notification has about one KiB, and any client that may write to the queue can make it a
/// thousand times that. Beyond this comes one message at most.
const BYTES_MAX: usize = 16 << 20;

impl Dispatch {
    pub(crate) fn new(engine: Arc<Engine>, channels: Channels, halt: CancellationToken) -> Self {
        Self {
            engine,
            rules: channels.rules,
            deliveries: channels.deliveries,
            acks: channels.acks,
            commands: channels.commands,
            rounds: channels.rounds,
            targets: BTreeMap::new(),
            in_flight: InFlight::default(),
            delayed: DelayedEvents::default(),
            completed: CompletedTasks::default(),
            handed_back: HandedBack::default(),
            parked: ParkedScan::default(),
            running: JoinSet::new(),
            halt,
        }
    }

    /// Works until deliveries end and nothing is in flight, or until halted; then gives back what
    /// is left.
    pub(crate) async fn run(mut self) {
        let mut scan = tokio::time::interval_at(Instant::now() + SCANNED_EVERY, SCANNED_EVERY);
        let mut open = true;
        let keys = Arc::clone(&self.engine.keys);
        // What kept a task parked may have been repaired while no daemon ran.
        self.retry(ParkedFilter::default(), None);
        while open || !self.targets.is_empty() {
            // In order: what is rare and must not wait, what makes room, what takes it.
            tokio::select! {
                biased;
                () = self.halt.cancelled() => break,
                Some(command) = self.commands.recv() => self.obey(command),
                () = keys.recovered.notified() => self.retry_recovered(),
                _ = scan.tick(), if open => {
                    self.retry_recovered();
                    self.parked.begin_routine();
                }
                Some(completion) = self.running.join_next() => self.handle(completion).await,
                delivery = self.deliveries.recv(), if open && self.has_room() => match delivery {
                    Some(delivery) => self.delivered(delivery).await,
                    None => {
                        open = false;
                        self.give_back_paused().await;
                    }
                },
            }
            self.scan_parked();
        }
        self.hand_back().await;
    }

    fn has_room(&self) -> bool {
        self.in_flight.open() < TASKS_MAX && self.in_flight.body_bytes() < BYTES_MAX
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Stats(requester) => {
                let _requester_may_be_gone = requester.send(self.stats());
            }
            Command::Retry(filter, requester) => self.retry(filter, Some(requester)),
            Command::Look(look, requester) => {
                let _requester_may_be_gone = requester.send(self.look_at(&look));
            }
            Command::Forget(gone, requester) => {
                let (target, seen) = *gone;
                let (is_free, ledger) = (!self.targets.contains_key(&target), &self.engine.ledger);
                let is_forgotten = is_free && matches!(ledger.forget_key(&target, &seen), Ok(true));
                let _requester_may_be_gone = requester.send(is_forgotten);
            }
        }
    }

    async fn handle(&mut self, completion: Result<Completion, JoinError>) {
        match completion {
            Ok(Completion::Ended(target, result)) => self.ended(target, result).await,
            Ok(Completion::Resumed(target)) => self.resumed(&target),
            Ok(Completion::MadeDue) => self.made_due(),
            Ok(Completion::Scanned(page)) => self.try_page(page),
            Ok(Completion::Sent(rest)) => self.sent_page(rest),
            // What panics aborts the process unless it is contained, so what ran has its result.
            Err(_) => {}
        }
    }

    fn stats(&self) -> InFlightStats {
        let mut rules: BTreeMap<String, PendingFigures> = BTreeMap::new();
        for rule in self.rules.borrow().iter() {
            rules.insert(rule.id.clone(), PendingFigures::default());
        }
        for event in self.targets.values().flat_map(KeyQueue::events) {
            let figures = rules
                .entry(event.task.rules.primary.id.clone())
                .or_default();
            figures.operations += 1;
            // The size is what a message claims.
            let size = i64::try_from(event.pending.size_bytes).unwrap_or(i64::MAX);
            figures.bytes = figures.bytes.saturating_add(size);
            let age = event.pending.time.map_or(0.0, clock::seconds_since);
            figures.oldest_seconds = figures.oldest_seconds.max(age);
            figures.oldest_known_seconds = figures.oldest_seconds;
        }
        for (rule, time) in self.handed_back.events() {
            let figures = rules.entry(rule.id.clone()).or_default();
            let age = clock::seconds_since(time);
            figures.oldest_known_seconds = figures.oldest_known_seconds.max(age);
        }
        InFlightStats {
            rules,
            messages: self.in_flight.len(),
            keys: self.targets.len(),
        }
    }

    /// Stops the work and gives every message in flight back to its queue: at once, or when the
    /// writes that were cut off can no longer land (protocol rule 5).
    async fn hand_back(&mut self) {
        let cut_off = self.targets.values().flat_map(KeyQueue::with_writes);
        let cut_off: BTreeSet<u64> = cut_off.filter_map(QueuedEvent::message).collect();
        self.halt.cancel();
        let mut has_ended = self.end_within(Duration::from_secs(1)).await;
        if !has_ended {
            self.running.abort_all();
            has_ended = self.end_within(Duration::from_secs(1)).await;
        }
        let mut left = self.in_flight.empty();
        while let Ok(ReceivedMessage { message, .. }) = self.deliveries.try_recv() {
            left.push(message);
        }
        if !left.is_empty() {
            info!(
                messages = left.len(),
                "returning unfinished messages to their queues"
            );
        }
        for message in left {
            let action = match (cut_off.contains(&message.number), &message.group) {
                (true, None) => AckAction::ReturnAfter(LANDING),
                // A task that hangs may yet send a write.
                (true, Some(_)) if !has_ended => AckAction::ReturnAfter(Duration::ZERO),
                // Of a work queue the next worker waits by itself, if a write was sent.
                (true, Some(_)) | (false, _) => message.given_back(Duration::ZERO),
            };
            self.acknowledge(message, action).await;
        }
    }

    /// Says whether all that runs ends within so much time.
    async fn end_within(&mut self, grace: Duration) -> bool {
        let ended = async { while self.running.join_next().await.is_some() {} };
        tokio::time::timeout(grace, ended).await.is_ok()
    }
}
