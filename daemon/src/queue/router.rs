//! The router: events leave their queue as one message for each destination key, sent to the work
//! queue of their rule. An event is deleted once all of that is in the work queues. It keeps no
//! state: what it did not finish comes again, and what was sent before is dropped by its
//! deduplication id, or is an event too many. Hints of a backfill queue go the same way, as long as
//! nothing waits in their work queue.

use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use replicator_core::event::{self, Event};
use replicator_core::retry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tracing::{debug, warn};

use crate::engine::Engine;
use crate::failpoint::Step;
use crate::metrics::{MessageOutcome, NOT_ROUTED};
use crate::queue::message::{AckAction, AckRequest, DelayedEvents, Message, ReceivedMessage};
use crate::sqs::work_queues::{Again, WorkItem, digest_words, group_of};
use crate::task::{Ruleset, Task};

/// Takes events and sends their work to the work queues.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) engine: Arc<Engine>,
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    pub(crate) deliveries: mpsc::Receiver<ReceivedMessage>,
    pub(crate) acks: mpsc::Sender<AckRequest>,
}

/// Events that are sent together, ten entries a request.
const ROUND_MAX: usize = 100;

/// Bytes of all events whose work is being sent. One event may have a MiB, and a thousand times
/// that many pieces of work.
const IN_FLIGHT_BYTES_MAX: usize = 16 << 20;

/// A work queue was tried for some seconds by then.
const REFUSED_FOR: Duration = Duration::from_secs(5);

/// About what an entry of a work queue has.
const ENTRY_BYTES: usize = 1 << 10;

/// An event, its work, and what becomes of it once that is in the work queues.
struct Routed {
    message: Message,
    action: AckAction,
    work: Vec<WorkItem>,
}

/// An event that has room, and its work as a range of all that its round sends.
struct Sending {
    message: Message,
    action: AckAction,
    work: Range<usize>,
    room: OwnedSemaphorePermit,
}

/// Events that are sent together.
#[derive(Default)]
struct SendRound {
    events: Vec<Sending>,
    work: Vec<WorkItem>,
}

impl SendRound {
    fn add(&mut self, routed: Routed, room: OwnedSemaphorePermit) {
        let begin = self.work.len();
        self.work.extend(routed.work);
        self.events.push(Sending {
            message: routed.message,
            action: routed.action,
            work: begin..self.work.len(),
            room,
        });
    }
}

impl Router {
    /// Routes until the receivers have ended and all that they received is on its way. Rounds are
    /// sent beside each other, and each event goes when its own work is sent or refused: a work
    /// queue that takes nothing holds up no other, as long as the events queue, where its events
    /// wait, gives out messages (SQS: until 120,000 are in flight there).
    pub(crate) async fn run(mut self) {
        let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX));
        let (mut received, mut sending) = (Vec::with_capacity(ROUND_MAX), JoinSet::new());
        let mut delayed = DelayedEvents::default();
        while self.deliveries.recv_many(&mut received, ROUND_MAX).await > 0 {
            while sending.try_join_next().is_some() {}
            let rules = Arc::clone(&self.rules.borrow());
            let routed = received
                .drain(..)
                .map(|delivery| self.read(&rules, delivery, &mut delayed))
                .collect();
            self.send_round(routed, &room, &mut sending).await;
        }
        while sending.join_next().await.is_some() {}
    }

    /// Sends the work of these events, as there is room.
    async fn send_round(
        &self,
        routed: Vec<Routed>,
        room: &Arc<Semaphore>,
        sending: &mut JoinSet<()>,
    ) {
        let mut spawn = |round: SendRound| {
            let (engine, acks) = (Arc::clone(&self.engine), self.acks.clone());
            sending.spawn(async move { send(&engine, &acks, round).await });
        };
        let mut round = SendRound::default();
        for event in routed {
            let bytes = bytes_of(&event);
            if room.available_permits() < bytes as usize {
                // What is ahead of it has to be under way, to make room.
                spawn(std::mem::take(&mut round));
            }
            // The semaphore is never closed.
            if let Ok(room) = Arc::clone(room).acquire_many_owned(bytes).await {
                round.add(event, room);
            }
        }
        spawn(round);
    }

    /// Lists the work of an event, and says what is to become of the event then.
    fn read(
        &self,
        rules: &Ruleset,
        delivery: ReceivedMessage,
        delayed: &mut DelayedEvents,
    ) -> Routed {
        let metrics = &self.engine.metrics;
        let (message, events, mut action) = delivery.read(rules, metrics);
        let (mut work, mut wait) = (Vec::new(), Duration::ZERO);
        for (record, event) in events.iter().enumerate() {
            for task in only_own(&message, self.engine.tasks_for(rules, event)) {
                match item(&message, record, event, &task) {
                    Ok(item) => work.push(item),
                    Err(left) => wait = wait.max(left),
                }
            }
        }
        if !wait.is_zero() {
            // What is left of it is sent again then, if more than one thing happened: an event too
            // many.
            action = delayed.disposal(&message, wait, metrics);
        }
        if action == AckAction::Delete && work.is_empty() {
            debug!(message_id = message.id, "nothing to do");
            metrics.count_message(message.queue.queue.name(), MessageOutcome::Ignored);
        }
        Routed {
            message,
            action,
            work,
        }
    }
}

/// Leaves of the tasks of a hint the one that it is for: an event of its key may have several. If
/// the rules have changed since, all are looked at.
fn only_own(message: &Message, tasks: Vec<Task>) -> Vec<Task> {
    let is_own = |task: &Task| message.group.as_ref() == Some(&group_of(&task.target));
    match tasks.iter().any(is_own) {
        true => tasks.into_iter().filter(is_own).collect(),
        false => tasks,
    }
}

/// Sends the work of a round. Each of its events goes to the ack station as soon as the fate of all
/// of its own work is known.
async fn send(engine: &Engine, acks: &mpsc::Sender<AckRequest>, round: SendRound) {
    let SendRound { mut events, work } = round;
    let mut sent: Vec<Option<bool>> = vec![None; work.len()];
    let batches = engine.work_queues.batches(&work).into_iter();
    let mut sending: FuturesUnordered<_> = batches
        .map(|batch| async {
            let sending = Box::pin(engine.work_queues.send_batch(&work, &batch));
            let sent = engine.failpoints.around(Step::Route, sending).await;
            (batch, sent.taken)
        })
        .collect();
    loop {
        let is_known = |event: &mut Sending| {
            sent.get(event.work.clone())
                .is_none_or(|own| own.iter().all(Option::is_some))
        };
        let known: Vec<Sending> = events.extract_if(.., is_known).collect();
        for event in known {
            let own = sent.get(event.work);
            let is_sent = own.is_some_and(|own| own.iter().all(|sent| *sent == Some(true)));
            let request = ack_request(engine, event.message, event.action, is_sent);
            // The ack station outlives the router, which holds one of its senders.
            let _sent = acks.send(request).await;
            drop(event.room);
        }
        let Some((batch, taken)) = sending.next().await else {
            return;
        };
        for index in &batch.items {
            if let Some(sent) = sent.get_mut(*index) {
                *sent = Some(taken.contains(index));
            }
        }
    }
}

/// Says what becomes of an event: one whose work queue did not take its work waits in its own
/// queue, each time for longer.
fn ack_request(engine: &Engine, message: Message, routed: AckAction, is_sent: bool) -> AckRequest {
    let action = if is_sent {
        routed
    } else {
        engine.watchdog.record_return();
        engine.metrics.count_failed("", NOT_ROUTED);
        AckAction::ReturnAfter(message.redelivery_delay(REFUSED_FOR))
    };
    if action == AckAction::Delete {
        engine.watchdog.record_progress();
    }
    AckRequest { message, action }
}

/// Returns the work of a task, or how long its event has to wait for that.
fn item(
    message: &Message,
    record: usize,
    event: &Event,
    task: &Task,
) -> Result<WorkItem, Duration> {
    let left = message.delay_left(task);
    if !left.is_zero() {
        return Err(left);
    }
    let Some(url) = task.rules.primary.work_queue.clone() else {
        // Such a rule is refused beside those that have one, so this is a mistake in here, and
        // costs no event.
        warn!(
            rule = task.rules.primary.id,
            message_id = message.id,
            "the rule has no work queue, its event waits"
        );
        return Err(message.redelivery_delay(retry::delay_ceiling(1)));
    };
    let group = group_of(&task.target);
    let deduplication = digest_words([message.id.as_str(), &record.to_string(), &group]);
    // One that was delivered before may have been half done by a daemon that worked from the events
    // queue.
    let again = message.is_redelivered().then_some(Again::Released);
    Ok(WorkItem {
        url,
        group,
        deduplication,
        body: event::notification_of(event),
        again,
    })
}

/// What is charged for an event while it is on its way.
fn bytes_of(Routed { message, work, .. }: &Routed) -> u32 {
    let bytes = message
        .body
        .len()
        .max(work.len() * ENTRY_BYTES)
        .clamp(1, IN_FLIGHT_BYTES_MAX);
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
