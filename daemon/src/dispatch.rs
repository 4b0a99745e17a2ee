//! Station 2: events become tasks, one at a time per key. This loop alone owns the keys and the
//! messages in flight: `select` chooses what happens, the methods change the state.

mod arrival;
mod completed;
mod in_flight;
mod key_queue;
mod parked;
mod resting;
mod retries;
mod retry_scan;
mod stats;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use replicator_core::deadline::LANDING;
use replicator_core::failure::Failure;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::clock;
use crate::engine::Engine;
use crate::lease;
use crate::ledger::records::TargetKey;
use crate::message::{AckAction, AckRequest, DelayedEvents, Message, ReceivedMessage};
use crate::parking::ParkedFilter;
use crate::runner::{self, TaskResult};
use crate::task::Ruleset;
use crate::task::Task;
use completed::CompletedTasks;
use in_flight::InFlight;
use key_queue::{KeyQueue, QueuedEvent};
use parked::Counted;
pub(crate) use retry_scan::Requester;
use retry_scan::{RetryScan, ScanPage, ScanQueue};
pub(crate) use stats::InFlightStats;

/// Hands tasks to keys and messages to the ack station.
#[derive(Debug)]
pub(crate) struct Dispatch {
    engine: Arc<Engine>,
    rules: watch::Receiver<Arc<Ruleset>>,
    deliveries: mpsc::Receiver<ReceivedMessage>,
    settlements: mpsc::Sender<AckRequest>,
    questions: mpsc::Receiver<Command>,
    targets: BTreeMap<TargetKey, KeyQueue>,
    hand: InFlight,
    away: DelayedEvents,
    /// What of the messages that went back was done already.
    settled: CompletedTasks,
    sweeps: ScanQueue,
    running: JoinSet<Completion>,
    halt: CancellationToken,
}

/// The channels that the dispatch loop works on.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    pub(crate) deliveries: mpsc::Receiver<ReceivedMessage>,
    pub(crate) settlements: mpsc::Sender<AckRequest>,
    pub(crate) questions: mpsc::Receiver<Command>,
}

/// What other stations request of the loop.
#[derive(Debug)]
pub(crate) enum Command {
    /// What is in flight.
    Stats(oneshot::Sender<InFlightStats>),
    /// To try again what is parked, as far as it is meant.
    Retry(ParkedFilter, Requester),
}

/// What runs beside the loop comes back as one of these.
#[derive(Debug)]
enum Completion {
    /// The task of a key ended.
    Ended(TargetKey, TaskResult),
    /// What a stopped key last wrote has landed, or never will; or one that was turned away has
    /// rested.
    Drained(TargetKey),
    /// What a command to try again means was counted.
    Counted(Counted),
    /// The ledger was searched for parked tasks.
    Found(Result<ScanPage, Failure>),
    /// What a sweep found was sent to the work queues; this is what is left of it.
    Sent(Option<RetryScan>),
}

/// Messages in flight at once, waiting ones included, of which each queue has its part; far below
/// the 120,000 that SQS lets be in flight on a queue. Further messages wait in SQS.
pub(crate) const MESSAGES_MAX: usize = 2000;

/// Tasks in flight at once: a message may have several destinations, and any client that may write
/// to the queue can put some ten thousand records into one. Beyond this comes one message at most.
const TASKS_MAX: usize = 4 * MESSAGES_MAX;

/// The limit on the bodies of messages in flight, which are kept for the dead-letter queue: a
/// notification has about one KiB, and any client that may write to the queue can make it a
/// thousand times that. Beyond this comes one message at most.
const BYTES_MAX: usize = 16 << 20;

impl Dispatch {
    pub(crate) fn new(engine: Arc<Engine>, channels: Channels, halt: CancellationToken) -> Self {
        let Channels {
            rules,
            deliveries,
            settlements,
            questions,
        } = channels;
        Self {
            engine,
            rules,
            deliveries,
            settlements,
            questions,
            targets: BTreeMap::new(),
            hand: InFlight::default(),
            away: DelayedEvents::default(),
            settled: CompletedTasks::default(),
            sweeps: ScanQueue::default(),
            running: JoinSet::new(),
            halt,
        }
    }

    /// Works until deliveries end and nothing is in flight, or until halted; then gives back what
    /// is left.
    pub(crate) async fn run(mut self) {
        let mut routine = tokio::time::interval(retry_scan::EVERY);
        let mut open = true;
        // What kept a task parked may have been repaired while no daemon ran.
        self.sweeps
            .add(RetryScan::of_filter(ParkedFilter::default()));
        while open || !self.targets.is_empty() {
            // In order: what is rare and must not wait, what makes room, what takes it.
            tokio::select! {
                biased;
                () = self.halt.cancelled() => break,
                Some(question) = self.questions.recv() => self.answer(question),
                _ = routine.tick(), if open => self.sweeps.add(RetryScan::due_at(clock::now())),
                Some(event) = self.running.join_next() => self.happened(event).await,
                delivery = self.deliveries.recv(), if open && self.has_room() => match delivery {
                    Some(delivery) => self.delivered(delivery).await,
                    None => {
                        open = false;
                        self.give_back_resting().await;
                    }
                },
            }
            self.sweep();
        }
        self.hand_back().await;
    }

    fn has_room(&self) -> bool {
        self.hand.open() < TASKS_MAX && self.hand.body_bytes() < BYTES_MAX
    }

    fn enqueue_task(&mut self, message: Option<u64>, task: Task) {
        if self.targets.is_empty() {
            self.engine.watchdog.work_arrived();
        }
        let target = task.target.clone();
        self.targets
            .entry(target.clone())
            .or_default()
            .add(message, task);
        self.start(&target);
    }

    /// Starts what waits at a key, unless the key is busy.
    fn start(&mut self, target: &TargetKey) {
        let Some(work) = self.targets.get_mut(target) else {
            return;
        };
        // Tickets whose lease was lost while they waited are another worker's.
        self.hand.forget_lost(
            work.waiting_tickets()
                .iter()
                .filter_map(|ticket| ticket.message),
        );
        let Some(task) = work.begin(|ticket| {
            ticket
                .message
                .is_none_or(|number| self.hand.holds_lease(number))
        }) else {
            if work.is_free() {
                self.targets.remove(target);
            }
            return;
        };
        let over = work
            .working_tickets()
            .iter()
            .filter_map(|ticket| self.hand.over_token(ticket.message?))
            .cloned()
            .collect();
        let holds = work
            .working_tickets()
            .iter()
            .filter_map(|ticket| self.hand.to_hold(ticket.message?))
            .collect();
        let (engine, halt) = (Arc::clone(&self.engine), self.halt.clone());
        self.running.spawn(async move {
            let ended = tokio::select! {
                biased;
                ended = lease::holding(holds, runner::work(&engine, &task)) => ended,
                () = any(over) => TaskResult::Cancelled,
                () = halt.cancelled() => TaskResult::Cancelled,
            };
            Completion::Ended(task.target, ended)
        });
    }

    async fn happened(&mut self, event: Result<Completion, JoinError>) {
        match event {
            Ok(Completion::Ended(target, ended)) => self.ended(target, ended).await,
            Ok(Completion::Drained(target)) => {
                if let Some(work) = self.targets.get_mut(&target) {
                    work.landed();
                }
                self.start(&target);
            }
            Ok(Completion::Counted(counted)) => self.counted(counted),
            Ok(Completion::Found(round)) => self.handle_round(round),
            Ok(Completion::Sent(rest)) => self.sweeps.return_sweep(rest),
            // What panics aborts the process unless it is contained, so what ran has its result.
            Err(_) => {}
        }
    }

    async fn ended(&mut self, target: TargetKey, ended: TaskResult) {
        let Some(work) = self.targets.get_mut(&target) else {
            return;
        };
        let tickets = work.end();
        if !matches!(ended, TaskResult::Done(_)) {
            self.engine.second_daemon.is_unsure();
        }
        match ended {
            TaskResult::Done(report) => {
                self.engine.watchdog.record_progress();
                debug!(key = target.key.as_str(), written = report.written, bytes = report.bytes, outcomes = ?report.outcomes, "key is up to date");
                self.note(&tickets);
                self.close(&tickets, |_| AckAction::Delete).await;
            }
            TaskResult::Parked(reason) => {
                self.engine.watchdog.record_progress();
                self.close(&tickets, |message| message.parked(reason)).await;
            }
            TaskResult::Returned(delay) => {
                self.engine.watchdog.give_up();
                let tickets = self.with_rest_of_group(&target, tickets);
                self.close(&tickets, |message| {
                    AckAction::ReturnAfter(message.redelivery_delay(delay))
                })
                .await;
            }
            TaskResult::Unavailable(delay) => {
                self.engine.watchdog.record_progress();
                self.turned_away(&target, tickets, delay).await;
            }
            TaskResult::Cancelled
                if self.engine.work_queues.are_used() && !self.halt.is_cancelled() =>
            {
                let tickets = self.with_rest_of_group(&target, tickets);
                self.hand
                    .forget_lost(tickets.iter().filter_map(|ticket| ticket.message));
                // The next worker waits, because it is a redelivery.
                self.close(&tickets, |_| AckAction::ReturnAfter(Duration::ZERO))
                    .await;
            }
            TaskResult::Cancelled => self.stopped(&target, tickets),
        }
        self.start(&target);
    }

    /// Adds what waits at a key of a work queue: while one message of a group is hidden for a
    /// while, or lost, SQS gives it out again whatever else of the group is in work here. So none
    /// is.
    fn with_rest_of_group(
        &mut self,
        target: &TargetKey,
        mut tickets: Vec<QueuedEvent>,
    ) -> Vec<QueuedEvent> {
        if self.engine.work_queues.are_used()
            && let Some(work) = self.targets.get_mut(target)
        {
            tickets.extend(work.take_waiting());
        }
        tickets
    }

    /// Lets go of messages that are lost; what is left goes on when the key's last write can no
    /// longer land.
    fn stopped(&mut self, target: &TargetKey, tickets: Vec<QueuedEvent>) {
        self.hand
            .forget_lost(tickets.iter().filter_map(|ticket| ticket.message));
        let kept = key_queue::left_of(tickets, |number| self.hand.holds_lease(number));
        let Some(work) = self.targets.get_mut(target) else {
            return;
        };
        work.hold(kept);
        self.wake_after(target, LANDING);
    }

    /// Closes one task of each ticket's message.
    async fn close(&mut self, tickets: &[QueuedEvent], disposal: impl Fn(&Message) -> AckAction) {
        for number in tickets.iter().filter_map(|ticket| ticket.message) {
            if let Some(settlement) = self.hand.close(number, &disposal) {
                self.send_settlement(settlement).await;
            }
        }
    }

    /// Records what is done of messages that have more tasks, in case they have to go back for
    /// those.
    fn note(&mut self, tickets: &[QueuedEvent]) {
        for ticket in tickets {
            if let Some(id) = ticket
                .message
                .and_then(|number| self.hand.wants_more(number))
            {
                self.settled.note(id, &ticket.task, &ticket.pending);
            }
        }
    }

    async fn send_settlement(&mut self, settlement: AckRequest) {
        if !matches!(settlement.action, AckAction::ReturnAfter(_)) {
            self.settled.forget_message(&settlement.message.id);
        }
        // The ack station outlives this loop, which holds one of its senders.
        let _sent = self.settlements.send(settlement).await;
    }

    /// Stops the work and gives every message in flight back to its queue: at once, or when the
    /// writes that were cut off can no longer land (protocol rule 5).
    async fn hand_back(&mut self) {
        let cut_off = self.targets.values().flat_map(KeyQueue::in_flight);
        let cut_off: BTreeSet<u64> = cut_off.filter_map(|ticket| ticket.message).collect();
        self.halt.cancel();
        let grace = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(1), grace)
            .await
            .is_err()
        {
            self.running.abort_all();
        }
        let mut left = self.hand.empty();
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
            let disposal = match cut_off.contains(&message.number) {
                // Of a work queue the next worker waits, because it is a redelivery.
                true if message.group.is_some() => AckAction::ReturnAfter(Duration::ZERO),
                true => AckAction::ReturnAfter(LANDING),
                false => message.given_back(Duration::ZERO),
            };
            self.send_settlement(AckRequest {
                message,
                action: disposal,
            })
            .await;
        }
    }
}

/// Waits until one of the leases is over.
async fn any(over: Vec<CancellationToken>) {
    if over.is_empty() {
        return std::future::pending().await;
    }
    let each = over
        .into_iter()
        .map(|token| Box::pin(token.cancelled_owned()));
    futures::future::select_all(each).await;
}
