//! Station 2: hints become tasks, one at a time per lane. This loop alone owns the lanes and the
//! messages in hand: `select` chooses what happens, the methods change the state.

mod board;
mod hand;
mod redrive;
mod work;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use replicator_core::failure::{Failure, Reason};
use replicator_core::fence::LANDING;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::blocking;
use crate::engine::Engine;
use crate::lane::{self, Ended};
use crate::ledger::records::Lane;
use crate::message::{Delivery, Disposal, Message, Settlement};
use crate::metrics::MessageOutcome;
use crate::ruleset::Ruleset;
use crate::task::Task;
pub(crate) use board::Board;
use hand::Hand;
use redrive::Round;
use work::{Ticket, Work};

/// Hands tasks to lanes and messages to the ack station.
#[derive(Debug)]
pub(crate) struct Dispatch {
    engine: Arc<Engine>,
    rules: watch::Receiver<Arc<Ruleset>>,
    deliveries: mpsc::Receiver<Delivery>,
    settlements: mpsc::Sender<Settlement>,
    questions: mpsc::Receiver<oneshot::Sender<Board>>,
    permits: Arc<Semaphore>,
    lanes: HashMap<Lane, Work>,
    hand: Hand,
    /// Where the last round of parked tasks ended.
    redriven: Option<redrive::Place>,
    running: JoinSet<Event>,
    halt: CancellationToken,
}

/// The channels that the dispatch loop works on.
#[derive(Debug)]
pub(crate) struct Channels {
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    pub(crate) deliveries: mpsc::Receiver<Delivery>,
    pub(crate) settlements: mpsc::Sender<Settlement>,
    pub(crate) questions: mpsc::Receiver<oneshot::Sender<Board>>,
}

/// What runs beside the loop comes back as one of these.
#[derive(Debug)]
enum Event {
    /// The task of a lane ended.
    Ended(Lane, Ended),
    /// What a stopped lane last wrote has landed, or never will.
    Landed(Lane),
    /// The ledger was searched for parked tasks.
    Searched(Result<Round, Failure>),
}

// Tasks that work at the same time: enough to hide the latency of small objects, few enough
// for the sockets of one process.
const TASKS_MAX: usize = 64;

/// Messages in hand at once, waiting ones included; far below the 120,000 that SQS lets be in
/// flight on a queue. What is beyond waits in SQS.
const MESSAGES_MAX: usize = 2000;

impl Dispatch {
    pub(crate) fn new(engine: Arc<Engine>, channels: Channels, halt: CancellationToken) -> Self {
        let Channels { rules, deliveries, settlements, questions } = channels;
        Self {
            engine,
            rules,
            deliveries,
            settlements,
            questions,
            permits: Arc::new(Semaphore::new(TASKS_MAX)),
            lanes: HashMap::new(),
            hand: Hand::default(),
            redriven: None,
            running: JoinSet::new(),
            halt,
        }
    }

    /// Works until deliveries end and nothing is in hand, or until halted; then hands back what
    /// is left.
    pub(crate) async fn run(mut self) {
        let mut redrive = tokio::time::interval(redrive::EVERY);
        let mut open = true;
        while open || !self.lanes.is_empty() {
            // In order: what is rare and must not wait, what makes room, what takes it.
            tokio::select! {
                biased;
                () = self.halt.cancelled() => break,
                Some(question) = self.questions.recv() => self.answer(question),
                _ = redrive.tick(), if open => self.search(),
                Some(event) = self.running.join_next() => self.happened(event).await,
                delivery = self.deliveries.recv(), if open && self.hand.len() < MESSAGES_MAX => match delivery {
                    Some(delivery) => self.delivered(delivery).await,
                    None => open = false,
                },
            }
        }
        self.hand_back().await;
    }

    async fn delivered(&mut self, delivery: Delivery) {
        let Delivery { message, notification } = delivery;
        let notification = match notification {
            Ok(notification) => notification,
            Err(undecodable) => {
                let disposal = Disposal::Park(Reason::MessageUndecodable, undecodable.to_string());
                return self.settle(Settlement { message, disposal }).await;
            }
        };
        let rules = Arc::clone(&self.rules.borrow());
        let disposal = match notification.hints.iter().find_map(|hint| rules.refusal(hint)) {
            Some((reason, detail)) => self.refused(&message, reason, detail),
            None => Disposal::Delete,
        };
        // What is possible is done; the message is kept for the rest.
        let tasks: Vec<Task> = notification.hints.iter().flat_map(|hint| rules.tasks(hint)).collect();
        if tasks.is_empty() {
            debug!(message = message.id, ignored = ?notification.ignored, "nothing to do");
            if disposal == Disposal::Delete {
                self.engine.metrics.message(message.queue.queue.name(), MessageOutcome::Ignored);
            }
            self.engine.pulse.beat();
            return self.settle(Settlement { message, disposal }).await;
        }
        self.take(message, disposal, tasks);
    }

    fn refused(&self, message: &Message, reason: Reason, detail: String) -> Disposal {
        let queue = message.queue.queue.name();
        warn!(queue, message = message.id, reason = reason.as_str(), detail, "message cannot be acted on");
        if reason == Reason::BucketUnknown {
            self.engine.metrics.message(queue, MessageOutcome::UnknownBucket);
        }
        Disposal::Park(reason, detail)
    }

    fn take(&mut self, message: Message, disposal: Disposal, tasks: Vec<Task>) {
        let (number, redelivered) = (message.number, message.redelivered());
        self.hand.take(message, disposal, tasks.len());
        for task in tasks {
            self.enqueue(Some(number), Task { redelivered, ..task });
        }
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
        // What was lost while it waited is someone else's work.
        self.hand.forget_lost(work.waiting().iter().filter_map(|ticket| ticket.message));
        let Some(task) = work.begin(|ticket| ticket.message.is_none_or(|number| self.hand.holds(number))) else {
            if work.is_free() {
                self.lanes.remove(lane);
            }
            return;
        };
        let lost = work.working().iter().filter_map(|ticket| self.hand.lost(ticket.message?)).cloned().collect();
        let (engine, permits, halt) = (Arc::clone(&self.engine), Arc::clone(&self.permits), self.halt.clone());
        self.running.spawn(async move {
            let ended = tokio::select! {
                biased;
                ended = lane::work(&engine, &task, &permits) => ended,
                () = any(lost) => Ended::Stopped,
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
            Ok(Event::Searched(round)) => self.redrive(round),
            // A panic aborts the process, so what ran has its result.
            Err(_) => {}
        }
    }

    async fn ended(&mut self, lane: Lane, ended: Ended) {
        let Some(work) = self.lanes.get_mut(&lane) else { return };
        let tickets = work.end();
        match ended {
            Ended::Settled(report) => {
                self.engine.pulse.beat();
                debug!(key = %lane.key, written = report.written, bytes = report.bytes, outcomes = ?report.outcomes, "lane is up to date");
                self.close(&tickets, |_| Disposal::Delete).await;
            }
            Ended::Parked(reason) => {
                self.engine.pulse.beat();
                self.close(&tickets, |_| Disposal::Pass(reason)).await;
            }
            Ended::HandedBack(delay) => {
                self.engine.pulse.give_up();
                self.close(&tickets, |message| Disposal::Release(message.patience(delay))).await;
            }
            Ended::Stopped => self.stopped(&lane, tickets),
        }
        self.start(&lane);
    }

    /// Lets go of messages that are lost; what came from others goes on when the lane's last write
    /// can no longer land.
    fn stopped(&mut self, lane: &Lane, tickets: Vec<Ticket>) {
        let mut kept = Vec::with_capacity(tickets.len());
        for ticket in tickets {
            match ticket.message {
                Some(number) if !self.hand.holds(number) => self.hand.forget(number),
                Some(_) | None => kept.push(ticket),
            }
        }
        let Some(work) = self.lanes.get_mut(lane) else { return };
        work.hold(kept);
        let (lane, halt) = (lane.clone(), self.halt.clone());
        self.running.spawn(async move {
            let _halted = halt.run_until_cancelled(tokio::time::sleep(LANDING)).await;
            Event::Landed(lane)
        });
    }

    /// Closes one task of each ticket's message.
    async fn close(&mut self, tickets: &[Ticket], disposal: impl Fn(&Message) -> Disposal) {
        for number in tickets.iter().filter_map(|ticket| ticket.message) {
            if let Some(settlement) = self.hand.close(number, &disposal) {
                self.settle(settlement).await;
            }
        }
    }

    async fn settle(&self, settlement: Settlement) {
        // The ack station outlives this loop, which holds one of its senders.
        let _sent = self.settlements.send(settlement).await;
    }

    /// Searches the ledger for parked tasks; there may be many, so not in this loop.
    fn search(&mut self) {
        let (ledger, rules) = (self.engine.ledger.clone(), Arc::clone(&self.rules.borrow()));
        let busy: HashSet<Lane> = self.lanes.keys().cloned().collect();
        let after = self.redriven.clone();
        self.running.spawn(async move {
            let parked = blocking::run(|| ledger.parked());
            Event::Searched(parked.map(|parked| Round::pick(parked, &busy, after.as_ref(), &rules)))
        });
    }

    /// Tries parked tasks again, where nothing else began meanwhile.
    fn redrive(&mut self, round: Result<Round, Failure>) {
        let Round { mut tasks, last } = match round {
            Ok(round) => round,
            Err(failure) => {
                return warn!(error = replicator_core::failure::chain(&failure), "cannot read what is parked");
            }
        };
        // A drain ends with what is in hand.
        if self.deliveries.is_closed() {
            return;
        }
        self.redriven = last;
        tasks.retain(|task| !self.lanes.contains_key(&task.lane));
        if !tasks.is_empty() {
            info!(keys = tasks.len(), "trying parked tasks again");
        }
        for task in tasks {
            self.enqueue(None, task);
        }
    }

    fn answer(&self, question: oneshot::Sender<Board>) {
        let _asker_may_be_gone = question.send(Board::of(self));
    }

    /// Stops the work and gives every message in hand back to its queue: at once, or when the
    /// writes that were cut off can no longer land (protocol rule 7).
    async fn hand_back(&mut self) {
        let cut_off = self.lanes.values().flat_map(Work::in_flight);
        let cut_off: HashSet<u64> = cut_off.filter_map(|ticket| ticket.message).collect();
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
            let delay = if cut_off.contains(&message.number) { LANDING } else { Duration::ZERO };
            self.settle(Settlement { message, disposal: Disposal::Release(delay) }).await;
        }
    }
}

/// Waits until one of the leases is lost.
async fn any(lost: Vec<CancellationToken>) {
    if lost.is_empty() {
        return std::future::pending().await;
    }
    let each = lost.into_iter().map(|token| Box::pin(token.cancelled_owned()));
    futures::future::select_all(each).await;
}
