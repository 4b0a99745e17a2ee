//! Station 2: hints become tasks, one at a time per lane. This loop alone owns the lanes and the
//! messages in hand: `select` chooses what happens, the methods change the state.

mod arrival;
mod board;
mod hand;
mod leftover;
mod parked;
mod redrive;
mod resting;
mod retries;
mod settled;
mod work;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use replicator_core::deadline::LANDING;
use replicator_core::failure::Failure;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info};

use crate::away::Away;
use crate::clock;
use crate::engine::Engine;
use crate::lane::{self, Ended};
use crate::lease;
use crate::ledger::records::Lane;
use crate::message::{Delivery, Disposal, Message, Settlement};
use crate::parking::Filter;
use crate::ruleset::Ruleset;
use crate::task::Task;
pub(crate) use board::Board;
use hand::Hand;
use leftover::LeftOver;
use parked::Counted;
pub(crate) use redrive::Asker;
use redrive::{Round, Sweep, Sweeps};
use settled::Settled;
use work::{Ticket, Work};

/// Hands tasks to lanes and messages to the ack station.
#[derive(Debug)]
pub(crate) struct Dispatch {
    engine: Arc<Engine>,
    rules: watch::Receiver<Arc<Ruleset>>,
    deliveries: mpsc::Receiver<Delivery>,
    settlements: mpsc::Sender<Settlement>,
    questions: mpsc::Receiver<Question>,
    lanes: BTreeMap<Lane, Work>,
    hand: Hand,
    away: Away,
    /// What of the messages that went back was done already.
    settled: Settled,
    sweeps: Sweeps,
    /// The lane that the search for uploads came to.
    leftovers_after: Option<Lane>,
    running: JoinSet<Event>,
    halt: CancellationToken,
}

/// The channels that the dispatch loop works on.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    pub(crate) deliveries: mpsc::Receiver<Delivery>,
    pub(crate) settlements: mpsc::Sender<Settlement>,
    pub(crate) questions: mpsc::Receiver<Question>,
}

/// What other stations request of the loop.
#[derive(Debug)]
pub(crate) enum Question {
    /// What is in hand.
    Board(oneshot::Sender<Board>),
    /// To try again what is parked, as far as it is meant.
    Retry(Filter, Asker),
}

/// What runs beside the loop comes back as one of these.
#[derive(Debug)]
enum Event {
    /// The task of a lane ended.
    Ended(Lane, Ended),
    /// What a stopped lane last wrote has landed, or never will; or one that was turned away has rested.
    Landed(Lane),
    /// What a command to try again means was counted.
    Counted(Counted),
    /// The ledger was searched for parked tasks.
    Found(Result<Round, Failure>),
    /// What a sweep found was sent to the work queues; this is what is left of it.
    Sent(Option<Sweep>),
    /// Something ended that has no consequences here.
    Idle,
    /// The ledger was searched for uploads that no lane works on.
    LeftOver(Result<LeftOver, Failure>),
}

/// Messages in hand at once, waiting ones included, of which each queue has its part; far below the
/// 120,000 that SQS lets be in flight on a queue. Further messages wait in SQS.
pub(crate) const MESSAGES_MAX: usize = 2000;

/// Tasks in hand at once: a message may have several destinations, and any client that may write to
/// the queue can put some ten thousand records into one. Beyond this comes one message at most.
const TASKS_MAX: usize = 4 * MESSAGES_MAX;

/// The limit on the bodies of messages in hand, which are kept for the dead-letter queue: a
/// notification has about one KiB, and any client that may write to the queue can make it a
/// thousand times that. Beyond this comes one message at most.
const BYTES_MAX: usize = 16 << 20;

impl Dispatch {
    pub(crate) fn new(engine: Arc<Engine>, channels: Channels, halt: CancellationToken) -> Self {
        let Channels { rules, deliveries, settlements, questions } = channels;
        Self {
            engine,
            rules,
            deliveries,
            settlements,
            questions,
            lanes: BTreeMap::new(),
            hand: Hand::default(),
            away: Away::default(),
            settled: Settled::default(),
            sweeps: Sweeps::default(),
            leftovers_after: None,
            running: JoinSet::new(),
            halt,
        }
    }

    /// Works until deliveries end and nothing is in hand, or until halted; then gives back what is
    /// left.
    pub(crate) async fn run(mut self) {
        let mut routine = tokio::time::interval(redrive::EVERY);
        let mut leftovers = leftover::every();
        let mut open = true;
        // What kept a task parked may have been repaired while no daemon ran.
        self.sweeps.add(Sweep::of(Filter::default()));
        while open || !self.lanes.is_empty() {
            // In order: what is rare and must not wait, what makes room, what takes it.
            tokio::select! {
                biased;
                () = self.halt.cancelled() => break,
                Some(question) = self.questions.recv() => self.answer(question),
                _ = routine.tick(), if open => self.sweeps.add(Sweep::due(clock::now())),
                _ = leftovers.tick(), if open => self.search_leftovers(),
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
        self.hand.open() < TASKS_MAX && self.hand.bytes() < BYTES_MAX
    }

    fn enqueue(&mut self, message: Option<u64>, task: Task) {
        if self.lanes.is_empty() {
            self.engine.pulse.wake();
        }
        let lane = task.lane.clone();
        self.lanes.entry(lane.clone()).or_default().add(message, task);
        self.start(&lane);
    }

    /// Starts what waits at a lane, unless the lane is busy.
    fn start(&mut self, lane: &Lane) {
        let Some(work) = self.lanes.get_mut(lane) else { return };
        // Tickets whose lease was lost while they waited are another worker's.
        self.hand.forget_lost(work.waiting().iter().filter_map(|ticket| ticket.message));
        let Some(task) = work.begin(|ticket| ticket.message.is_none_or(|number| self.hand.holds(number))) else {
            if work.is_free() {
                self.lanes.remove(lane);
            }
            return;
        };
        let over = work.working().iter().filter_map(|ticket| self.hand.over(ticket.message?)).cloned().collect();
        let holds = work.working().iter().filter_map(|ticket| self.hand.to_hold(ticket.message?)).collect();
        let (engine, halt) = (Arc::clone(&self.engine), self.halt.clone());
        self.running.spawn(async move {
            let ended = tokio::select! {
                biased;
                ended = lease::holding(holds, lane::work(&engine, &task)) => ended,
                () = any(over) => Ended::Stopped,
                () = halt.cancelled() => Ended::Stopped,
            };
            Event::Ended(task.lane, ended)
        });
    }

    async fn happened(&mut self, event: Result<Event, JoinError>) {
        match event {
            Ok(Event::Ended(lane, ended)) => self.ended(lane, ended).await,
            Ok(Event::Landed(lane)) => {
                if let Some(work) = self.lanes.get_mut(&lane) {
                    work.landed();
                }
                self.start(&lane);
            }
            Ok(Event::Counted(counted)) => self.counted(counted),
            Ok(Event::Found(round)) => self.found(round),
            Ok(Event::Sent(rest)) => self.sweeps.found(rest),
            Ok(Event::LeftOver(found)) => self.found_leftovers(found),
            Ok(Event::Idle) => {}
            // What panics aborts the process unless it is contained, so what ran has its result.
            Err(_) => {}
        }
    }

    async fn ended(&mut self, lane: Lane, ended: Ended) {
        let Some(work) = self.lanes.get_mut(&lane) else { return };
        let tickets = work.end();
        if !matches!(ended, Ended::Settled(_)) {
            self.engine.another.is_unsure();
        }
        match ended {
            Ended::Settled(report) => {
                self.engine.pulse.beat();
                debug!(key = lane.key.as_str(), written = report.written, bytes = report.bytes, outcomes = ?report.outcomes, "lane is up to date");
                self.note(&tickets);
                self.close(&tickets, |_| Disposal::Delete).await;
            }
            Ended::Parked(reason) => {
                self.engine.pulse.beat();
                self.close(&tickets, |message| message.parked(reason)).await;
            }
            Ended::HandedBack(delay) => {
                self.engine.pulse.give_up();
                let tickets = self.with_rest_of_group(&lane, tickets);
                self.close(&tickets, |message| Disposal::Release(message.patience(delay))).await;
            }
            Ended::TurnedAway(delay) => {
                self.engine.pulse.beat();
                self.turned_away(&lane, tickets, delay).await;
            }
            Ended::Stopped if self.engine.work_queues.are_used() && !self.halt.is_cancelled() => {
                let tickets = self.with_rest_of_group(&lane, tickets);
                self.hand.forget_lost(tickets.iter().filter_map(|ticket| ticket.message));
                // The next worker waits, because it is a redelivery.
                self.close(&tickets, |_| Disposal::Release(Duration::ZERO)).await;
            }
            Ended::Stopped => self.stopped(&lane, tickets),
        }
        self.start(&lane);
    }

    /// Adds what waits at a lane of a work queue: while one message of a group is hidden for a while, or lost, SQS gives it
    /// out again whatever else of the group is in work here. So none is.
    fn with_rest_of_group(&mut self, lane: &Lane, mut tickets: Vec<Ticket>) -> Vec<Ticket> {
        if self.engine.work_queues.are_used()
            && let Some(work) = self.lanes.get_mut(lane)
        {
            tickets.extend(work.take_waiting());
        }
        tickets
    }

    /// Lets go of messages that are lost; what is left goes on when the lane's last write can no longer land.
    fn stopped(&mut self, lane: &Lane, tickets: Vec<Ticket>) {
        self.hand.forget_lost(tickets.iter().filter_map(|ticket| ticket.message));
        let kept = work::left_of(tickets, |number| self.hand.holds(number));
        let Some(work) = self.lanes.get_mut(lane) else { return };
        work.hold(kept);
        self.wake_after(lane, LANDING);
    }

    /// Closes one task of each ticket's message.
    async fn close(&mut self, tickets: &[Ticket], disposal: impl Fn(&Message) -> Disposal) {
        for number in tickets.iter().filter_map(|ticket| ticket.message) {
            if let Some(settlement) = self.hand.close(number, &disposal) {
                self.settle(settlement).await;
            }
        }
    }

    /// Records what is done of messages that have more tasks, in case they have to go back for
    /// those.
    fn note(&mut self, tickets: &[Ticket]) {
        for ticket in tickets {
            if let Some(id) = ticket.message.and_then(|number| self.hand.wants_more(number)) {
                self.settled.note(id, &ticket.task, &ticket.wish);
            }
        }
    }

    async fn settle(&mut self, settlement: Settlement) {
        if !matches!(settlement.disposal, Disposal::Release(_)) {
            self.settled.forget(&settlement.message.id);
        }
        // The ack station outlives this loop, which holds one of its senders.
        let _sent = self.settlements.send(settlement).await;
    }

    /// Stops the work and gives every message in hand back to its queue: at once, or when the
    /// writes that were cut off can no longer land (protocol rule 7).
    async fn hand_back(&mut self) {
        let cut_off = self.lanes.values().flat_map(Work::in_flight);
        let cut_off: BTreeSet<u64> = cut_off.filter_map(|ticket| ticket.message).collect();
        self.halt.cancel();
        let grace = async { while self.running.join_next().await.is_some() {} };
        if tokio::time::timeout(Duration::from_secs(1), grace).await.is_err() {
            self.running.abort_all();
        }
        let mut left = self.hand.empty();
        while let Ok(Delivery { message, .. }) = self.deliveries.try_recv() {
            left.push(message);
        }
        if !left.is_empty() {
            info!(messages = left.len(), "handing unfinished messages back");
        }
        for message in left {
            let disposal = match cut_off.contains(&message.number) {
                // Of a work queue the next worker waits, because it is a redelivery.
                true if message.group.is_some() => Disposal::Release(Duration::ZERO),
                true => Disposal::Release(LANDING),
                false => message.given_back(Duration::ZERO),
            };
            self.settle(Settlement { message, disposal }).await;
        }
    }
}

/// Waits until one of the leases is over.
async fn any(over: Vec<CancellationToken>) {
    if over.is_empty() {
        return std::future::pending().await;
    }
    let each = over.into_iter().map(|token| Box::pin(token.cancelled_owned()));
    futures::future::select_all(each).await;
}
