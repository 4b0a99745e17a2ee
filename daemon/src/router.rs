//! The router: events leave their queue as one message for each destination key, sent to the work
//! queue of their rule. An event is deleted once all of that is in the work queues. It keeps no
//! state: what it did not finish comes again, and what was sent before is told by its deduplication
//! id, or is an event too many.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use futures::stream::FuturesUnordered;
use replicator_core::event::{self, Event};
use replicator_core::failure::Reason;
use replicator_core::retry;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use crate::engine::Engine;
use crate::failpoint::Step;
use crate::hidden_events::HiddenEvents;
use crate::message::{AckAction, AckRequest, Again, Message, ReceivedMessage};
use crate::metrics::{MessageOutcome, NOT_ROUTED};
use crate::task::Ruleset;
use crate::task::Task;
use crate::work_queues::{WorkItem, digest_words, group_of};

/// Takes events and sends their work to the work queues.
#[derive(Debug)]
pub(crate) struct Router {
    pub(crate) engine: Arc<Engine>,
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    pub(crate) deliveries: mpsc::Receiver<ReceivedMessage>,
    pub(crate) settlements: mpsc::Sender<AckRequest>,
    /// Fires when the daemon stops.
    pub(crate) draining: CancellationToken,
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

/// An event on its way.
struct Routed {
    message: Message,
    /// What becomes of it once its work is in the work queues.
    disposal: AckAction,
    work: Vec<WorkItem>,
}

/// An event that has room, and its work as a range of all that its round sends.
struct Sending {
    message: Message,
    disposal: AckAction,
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
    fn add(
        &mut self,
        Routed {
            message,
            disposal,
            work,
        }: Routed,
        room: OwnedSemaphorePermit,
    ) {
        let begin = self.work.len();
        self.work.extend(work);
        self.events.push(Sending {
            message,
            disposal,
            work: begin..self.work.len(),
            room,
        });
    }
}

impl Router {
    /// Routes until the intakes have ended and all that they received is on its way. Rounds are
    /// sent beside each other, and each event is settled when its own work is sent: a work queue
    /// that takes nothing holds up no other.
    pub(crate) async fn run(mut self) {
        let room = Arc::new(Semaphore::new(IN_FLIGHT_BYTES_MAX));
        let (mut received, mut sending) = (Vec::with_capacity(ROUND_MAX), JoinSet::new());
        // Those that wait for a delay leave those that a work queue refuses their part, and the other
        // way round.
        let (mut delayed, away) = (
            HiddenEvents::default(),
            Arc::new(Mutex::new(HiddenEvents::default())),
        );
        while self.deliveries.recv_many(&mut received, ROUND_MAX).await > 0 {
            while sending.try_join_next().is_some() {}
            let rules = Arc::clone(&self.rules.borrow());
            let routed = received
                .drain(..)
                .map(|delivery| self.read(&rules, delivery, &mut delayed))
                .collect();
            self.route_events(routed, (&room, &away), &mut sending)
                .await;
        }
        while sending.join_next().await.is_some() {}
    }

    /// Sends the work of these events, as there is room.
    async fn route_events(
        &self,
        routed: Vec<Routed>,
        (room, away): (&Arc<Semaphore>, &Arc<Mutex<HiddenEvents>>),
        sending: &mut JoinSet<()>,
    ) {
        let mut round = SendRound::default();
        for routed in routed {
            let bytes = bytes_of(&routed);
            if room.available_permits() < bytes as usize {
                // What is ahead of it has to be under way, to make room.
                sending.spawn(self.sender(std::mem::take(&mut round), away));
            }
            // The semaphore is never closed.
            if let Ok(room) = Arc::clone(room).acquire_many_owned(bytes).await {
                round.add(routed, room);
            }
        }
        sending.spawn(self.sender(round, away));
    }

    /// Returns what sends a round and settles its events.
    fn sender(
        &self,
        round: SendRound,
        away: &Arc<Mutex<HiddenEvents>>,
    ) -> impl Future<Output = ()> + Send + use<> {
        let (engine, settlements) = (Arc::clone(&self.engine), self.settlements.clone());
        let (away, draining) = (Arc::clone(away), self.draining.clone());
        async move {
            let refused = send(&engine, &settlements, round).await;
            let given_back = refused
                .into_iter()
                .map(|refused| give_back(&engine, (&settlements, &away, &draining), refused));
            futures::future::join_all(given_back).await;
        }
    }

    /// Lists the work of an event, and says what is to become of the event then.
    fn read(
        &self,
        rules: &Ruleset,
        ReceivedMessage {
            message,
            notification,
        }: ReceivedMessage,
        delayed: &mut HiddenEvents,
    ) -> Routed {
        let metrics = &self.engine.metrics;
        let events = match notification {
            Ok(notification) => notification.events,
            Err(undecodable) => {
                let disposal = message.refuse_and_park(
                    metrics,
                    Reason::MessageUndecodable,
                    &undecodable.to_string(),
                );
                return Routed {
                    message,
                    disposal,
                    work: Vec::new(),
                };
            }
        };
        let mut disposal = match events.iter().find_map(|event| rules.refusal(event)) {
            Some((reason, detail)) => message.refuse_and_park(metrics, reason, &detail),
            None => AckAction::Delete,
        };
        let (mut work, mut wait) = (Vec::new(), Duration::ZERO);
        for (record, event) in events.iter().enumerate() {
            for task in rules.tasks_for(event) {
                match item(&message, record, event, &task) {
                    Ok(item) => work.push(item),
                    Err(left) => wait = wait.max(left),
                }
            }
        }
        if !wait.is_zero() {
            // What is left of it is sent again then, if more than one thing happened: an event too
            // many.
            disposal = delayed.disposal(&message, wait, metrics);
        }
        if disposal == AckAction::Delete && work.is_empty() {
            debug!(message_id = message.id, "nothing to do");
            metrics.count_message(message.queue.queue.name(), MessageOutcome::Ignored);
        }
        Routed {
            message,
            disposal,
            work,
        }
    }
}

/// An event whose work queue does not take all of its work, and its room.
type Refused = (Message, OwnedSemaphorePermit);

/// Sends the work of a round, and settles each of its events as soon as all of its own is sent.
/// Returns those that are not sent.
async fn send(
    engine: &Engine,
    settlements: &mpsc::Sender<AckRequest>,
    round: SendRound,
) -> Vec<Refused> {
    let SendRound { mut events, work } = round;
    let mut sent: Vec<Option<bool>> = vec![None; work.len()];
    let batches = engine.work_queues.batches(&work).into_iter();
    let mut sending: FuturesUnordered<_> = batches
        .map(|batch| async {
            let taken = Box::pin(engine.work_queues.send_batch(&work, &batch));
            let taken = engine.failpoints.around(Step::Route, taken).await;
            (batch, taken)
        })
        .collect();
    let mut refused = Vec::new();
    loop {
        let is_known = |event: &mut Sending| {
            sent.get(event.work.clone())
                .is_none_or(|own| own.iter().all(Option::is_some))
        };
        for Sending {
            message,
            disposal,
            work,
            room,
        } in events.extract_if(.., is_known).collect::<Vec<_>>()
        {
            let is_sent = sent
                .get(work)
                .is_some_and(|own| own.iter().all(|sent| *sent == Some(true)));
            if !is_sent {
                refused.push((message, room));
                continue;
            }
            if disposal == AckAction::Delete {
                engine.watchdog.record_progress();
            }
            // The ack station outlives the router, which holds one of its senders.
            let _sent = settlements
                .send(AckRequest {
                    message,
                    action: disposal,
                })
                .await;
            drop(room);
        }
        let Some((batch, taken)) = sending.next().await else {
            break;
        };
        for index in batch.items() {
            if let Some(sent) = sent.get_mut(*index) {
                *sent = Some(taken.contains(index));
            }
        }
    }
    refused
}

/// Gives an event back whose work queue does not take its work. It stays hidden meanwhile; where
/// too many are, it keeps its room in the router, so that no more are received than that has room
/// for.
async fn give_back(
    engine: &Engine,
    (settlements, away, draining): (
        &mpsc::Sender<AckRequest>,
        &Mutex<HiddenEvents>,
        &CancellationToken,
    ),
    (message, room): Refused,
) {
    engine.watchdog.give_up();
    engine.metrics.count_failed("", NOT_ROUTED);
    let wait = message.redelivery_delay(REFUSED_FOR);
    let is_hidden = lock(away).goes_for(wait);
    if !is_hidden {
        tokio::select! {
            () = tokio::time::sleep(wait) => {}
            () = message.lease.stop_token().cancelled() => {}
            () = draining.cancelled() => {}
        }
    }
    let disposal = AckAction::ReturnAfter(if is_hidden { wait } else { Duration::ZERO });
    // The ack station outlives the router, which holds one of its senders.
    let _sent = settlements
        .send(AckRequest {
            message,
            action: disposal,
        })
        .await;
    drop(room);
}

fn lock(away: &Mutex<HiddenEvents>) -> MutexGuard<'_, HiddenEvents> {
    away.lock().unwrap_or_else(PoisonError::into_inner)
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
