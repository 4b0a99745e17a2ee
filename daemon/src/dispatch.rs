//! Station 2: hints become tasks, one at a time per lane. This loop alone owns the lanes and the
//! messages in hand: `select` chooses what happens, the methods change the state.

mod board;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use replicator_core::failure::Reason;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::engine::Engine;
use crate::health::Pulse;
use crate::lane::{self, Ended};
use crate::ledger::records::Lane;
use crate::message::{Delivery, Disposal, Message, Settlement};
use crate::metrics::MessageOutcome;
use crate::ruleset::Ruleset;
use crate::task::{Task, Wish};
pub(crate) use board::Board;

/// Hands tasks to lanes and messages to the ack station.
#[derive(Debug)]
pub(crate) struct Dispatch {
    engine: Arc<Engine>,
    rules: watch::Receiver<Arc<Ruleset>>,
    deliveries: mpsc::Receiver<Delivery>,
    settlements: mpsc::Sender<Settlement>,
    questions: mpsc::Receiver<oneshot::Sender<Board>>,
    pulse: Arc<Pulse>,
    permits: Arc<Semaphore>,
    lanes: HashMap<Lane, LaneState>,
    messages: HashMap<u64, InHand>,
    running: JoinSet<(Lane, Ended)>,
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

/// A lane that has work.
#[derive(Debug, Default)]
struct LaneState {
    /// What the task at work is about; empty only in between.
    working: Vec<Ticket>,
    /// What arrived meanwhile; it all goes into the next task.
    waiting: Vec<Ticket>,
}

/// One wish of one message; a parked task that is tried again has no message.
#[derive(Debug, Clone)]
struct Ticket {
    message: Option<u64>,
    task: Task,
    wish: Wish,
}

/// A message whose tasks are not all settled.
#[derive(Debug)]
struct InHand {
    message: Message,
    open: usize,
    disposal: Disposal,
}

// Tasks that work at the same time: enough to hide the latency of small objects, few enough
// for the sockets of one process.
const TASKS_MAX: usize = 64;

/// Messages in hand at once, waiting ones included; far below the 120,000 that SQS lets be in
/// flight on a queue. What is beyond waits in SQS.
const MESSAGES_MAX: usize = 2000;

// Parked tasks are tried again this often without anyone asking.
const REDRIVE_EVERY: Duration = Duration::from_secs(300);

impl Dispatch {
    pub(crate) fn new(engine: Arc<Engine>, channels: Channels, pulse: Arc<Pulse>, halt: CancellationToken) -> Self {
        let Channels { rules, deliveries, settlements, questions } = channels;
        Self {
            engine,
            rules,
            deliveries,
            settlements,
            questions,
            pulse,
            permits: Arc::new(Semaphore::new(TASKS_MAX)),
            lanes: HashMap::new(),
            messages: HashMap::new(),
            running: JoinSet::new(),
            halt,
        }
    }

    /// Works until deliveries end and nothing is in hand, or until halted; then hands back what
    /// is left.
    pub(crate) async fn run(mut self) {
        let mut redrive = tokio::time::interval(REDRIVE_EVERY);
        let mut open = true;
        while open || !self.lanes.is_empty() {
            tokio::select! {
                Some(ended) = self.running.join_next() => self.ended(ended).await,
                delivery = self.deliveries.recv(), if open && self.messages.len() < MESSAGES_MAX => match delivery {
                    Some(delivery) => self.delivered(delivery).await,
                    None => open = false,
                },
                Some(question) = self.questions.recv() => self.answer(question),
                _ = redrive.tick(), if open => self.redrive(),
                () = self.halt.cancelled(), if !self.lanes.is_empty() => break,
            }
        }
        self.hand_back().await;
    }

    async fn delivered(&mut self, delivery: Delivery) {
        let Delivery { message, notification } = delivery;
        let rules = Arc::clone(&self.rules.borrow());
        if let Some(stranger) = notification.hints.iter().find(|hint| !rules.knows(&hint.bucket)) {
            let queue = message.queue.queue.name();
            let detail = format!("no rule has the source bucket {}", stranger.bucket);
            warn!(queue, message = message.id, bucket = %stranger.bucket, "message names a bucket that no rule has");
            self.engine.metrics.message(queue, MessageOutcome::UnknownBucket);
            return self.dispose(message, Disposal::Park(Reason::BucketUnknown, detail)).await;
        }
        let tasks: Vec<Task> = notification.hints.iter().flat_map(|hint| rules.tasks(hint)).collect();
        if tasks.is_empty() {
            debug!(message = message.id, ignored = ?notification.ignored, "nothing to do");
            self.pulse.beat();
            return self.dispose(message, Disposal::Delete).await;
        }
        let (number, redelivered) = (message.number, message.redelivered);
        self.messages.insert(number, InHand { message, open: tasks.len(), disposal: Disposal::Delete });
        for task in tasks {
            self.enqueue(Some(number), Task { redelivered, ..task });
        }
    }

    fn enqueue(&mut self, message: Option<u64>, task: Task) {
        let lane = task.lane.clone();
        let state = self.lanes.entry(lane.clone()).or_default();
        for wish in task.wishes.clone() {
            state.waiting.push(Ticket { message, task: task.clone(), wish });
        }
        if state.working.is_empty() {
            self.start(&lane);
        }
    }

    /// Starts a task for everything that waits at a lane, under the newest rules it was given.
    fn start(&mut self, lane: &Lane) {
        let Some(state) = self.lanes.get_mut(lane) else { return };
        state.working = std::mem::take(&mut state.waiting);
        let Some(newest) = state.working.last() else {
            self.lanes.remove(lane);
            return;
        };
        let task = Task {
            wishes: state.working.iter().map(|ticket| ticket.wish.clone()).collect(),
            redelivered: state.working.iter().any(|ticket| ticket.task.redelivered),
            ..newest.task.clone()
        };
        let messages = state.working.iter().filter_map(|ticket| self.messages.get(&ticket.message?));
        let lost: Vec<_> = messages.map(|in_hand| in_hand.message.lease.lost().clone()).collect();
        let (engine, permits, halt) = (Arc::clone(&self.engine), Arc::clone(&self.permits), self.halt.clone());
        self.running.spawn(async move {
            let ended = tokio::select! {
                ended = lane::work(&engine, &task, &permits) => ended,
                () = any(lost) => Ended::Stopped,
                () = halt.cancelled() => Ended::Stopped,
            };
            (task.lane, ended)
        });
    }

    async fn ended(&mut self, ended: Result<(Lane, Ended), tokio::task::JoinError>) {
        // A panic aborts the process, so a task that ran has its result.
        let Ok((lane, ended)) = ended else { return };
        let Some(state) = self.lanes.get_mut(&lane) else { return };
        let tickets = std::mem::take(&mut state.working);
        match ended {
            Ended::Settled(report) => {
                self.pulse.beat();
                debug!(key = %lane.key, written = report.written, bytes = report.bytes, outcomes = ?report.outcomes, "lane is up to date");
                self.close(&tickets, None).await;
            }
            Ended::Parked(reason) => {
                self.pulse.beat();
                self.close(&tickets, Some(Disposal::Pass(reason))).await;
            }
            Ended::HandedBack(delay) => self.close(&tickets, Some(Disposal::Release(delay))).await,
            Ended::Stopped => self.stopped(&lane, tickets).await,
        }
        self.start(&lane);
    }

    /// Drops what belongs to lost messages; what came from others is worked on again.
    async fn stopped(&mut self, lane: &Lane, tickets: Vec<Ticket>) {
        let is_lost = |ticket: &Ticket| {
            let message = ticket.message.and_then(|number| self.messages.get(&number));
            message.is_some_and(|in_hand| in_hand.message.lease.lost().is_cancelled())
        };
        let (lost, kept): (Vec<Ticket>, Vec<Ticket>) = tickets.into_iter().partition(is_lost);
        self.close(&lost, Some(Disposal::Release(Duration::ZERO))).await;
        if let Some(state) = self.lanes.get_mut(lane) {
            state.waiting.splice(0..0, kept);
        }
    }

    /// Closes one task of each ticket's message; the last one settles the message. Of several
    /// disposals the most careful wins: to deliver again, then to keep.
    async fn close(&mut self, tickets: &[Ticket], disposal: Option<Disposal>) {
        for number in tickets.iter().filter_map(|ticket| ticket.message) {
            let Some(in_hand) = self.messages.get_mut(&number) else { continue };
            in_hand.open = in_hand.open.saturating_sub(1);
            if let Some(disposal) = &disposal {
                in_hand.disposal = more_careful(in_hand.disposal.clone(), disposal.clone());
            }
            if in_hand.open > 0 {
                continue;
            }
            if let Some(InHand { message, disposal, .. }) = self.messages.remove(&number) {
                self.dispose(message, disposal).await;
            }
        }
    }

    async fn dispose(&self, message: Message, disposal: Disposal) {
        // The ack station outlives this loop, which holds one of its senders.
        let _sent = self.settlements.send(Settlement { message, disposal }).await;
    }

    /// Tries parked tasks again.
    fn redrive(&mut self) {
        let parked = match self.engine.ledger.parked() {
            Ok(parked) => parked,
            Err(failure) => return warn!(error = lane::chain(&failure), "cannot read what is parked"),
        };
        if !parked.is_empty() {
            info!(parked = parked.len(), "trying parked tasks again");
        }
        let rules = Arc::clone(&self.rules.borrow());
        for task in parked.iter().filter_map(|parked| rules.revive(parked)) {
            self.enqueue(None, task);
        }
    }

    fn answer(&self, question: oneshot::Sender<Board>) {
        let _asker_may_be_gone = question.send(Board::of(self));
    }

    /// Gives every message in hand back to its queue at once.
    async fn hand_back(&mut self) {
        self.halt.cancel();
        let grace =
            tokio::time::timeout(Duration::from_secs(1), async { while self.running.join_next().await.is_some() {} });
        if grace.await.is_err() {
            self.running.shutdown().await;
        }
        let left: Vec<InHand> = self.messages.drain().map(|(_, in_hand)| in_hand).collect();
        if !left.is_empty() {
            info!(messages = left.len(), "handing unfinished messages back");
        }
        for in_hand in left {
            self.dispose(in_hand.message, Disposal::Release(Duration::ZERO)).await;
        }
    }
}

fn more_careful(one: Disposal, other: Disposal) -> Disposal {
    let care = |disposal: &Disposal| match disposal {
        Disposal::Delete => 0,
        Disposal::Pass(_) => 1,
        Disposal::Park(..) => 2,
        Disposal::Release(_) => 3,
    };
    if care(&other) > care(&one) { other } else { one }
}

/// Waits until one of the leases is lost.
async fn any(lost: Vec<CancellationToken>) {
    if lost.is_empty() {
        return std::future::pending().await;
    }
    let each = lost.into_iter().map(|token| Box::pin(token.cancelled_owned()));
    futures::future::select_all(each).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_two_tasks_goes_only_when_neither_needs_it() {
        let release = Disposal::Release(Duration::ZERO);
        assert_eq!(more_careful(Disposal::Delete, release.clone()), release);
        assert_eq!(more_careful(release.clone(), Disposal::Delete), release);
        let pass = Disposal::Pass(Reason::DstBucketNotFound);
        assert_eq!(more_careful(pass.clone(), Disposal::Delete), pass);
        assert_eq!(more_careful(pass, release.clone()), release);
    }
}
