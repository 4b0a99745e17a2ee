//! Station 1: messages leave the queue's sight and become events.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_sqs::types::MessageSystemAttributeName;
use replicator_core::event::{self, Handshake, Notification};
use replicator_core::object::Timestamp;
use replicator_core::retry;
use replicator_core::rule::{BucketRef, Rule};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::clock::BootInstant;
use crate::health::PollStatus;
use crate::ledger::Ledger;
use crate::limit::concurrency::ConcurrencyControl;
use crate::metrics::{MessageOutcome, Metrics};
use crate::queue::message::{self, Message, ReceivedMessage};
use crate::rule_state::Pauses;
use crate::s3::accounts::error;
use crate::sqs::lease::Leases;
use crate::sqs::work_queues::{AGAIN, Again, QueueAccess, QueueTrouble};
use crate::task::Ruleset;

/// Receives from one queue.
#[derive(Debug)]
pub(crate) struct Receiver {
    pub(crate) access: Arc<QueueAccess>,
    pub(crate) leases: Leases,
    pub(crate) deliveries: mpsc::Sender<ReceivedMessage>,
    pub(crate) numbers: Arc<AtomicU64>,
    pub(crate) poll: Arc<PollStatus>,
    /// What is left for polls to end when the daemon stops.
    pub(crate) drain_timeout: Duration,
    pub(crate) metrics: Metrics,
    pub(crate) ledger: Ledger,
    /// What holds it back; the router takes all.
    pub(crate) gate: Option<PollGate>,
}

/// What keeps a queue from being polled: its bound of messages in flight, and the destination of a
/// work queue, when that does not answer.
#[derive(Debug)]
pub(crate) struct PollGate {
    pause: PauseGate,
    destination: Option<(ConcurrencyControl, BucketRef)>,
    /// The work queue that has to be empty, if this is a queue of hints.
    yields_to: Option<Arc<QueueAccess>>,
    in_flight: Arc<Semaphore>,
    in_flight_max: usize,
    /// Places of redelivered messages, whose tasks begin by waiting for what a predecessor may have
    /// sent: first deliveries keep their places.
    redelivered: Arc<Semaphore>,
}

/// What keeps a queue from being polled while all rules are paused that it serves.
#[derive(Debug)]
pub(crate) struct PauseGate {
    pub(crate) pauses: Arc<Pauses>,
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    /// Its URL, if it is a work queue; an events queue may have events of every rule.
    pub(crate) work_queue: Option<String>,
}

impl PauseGate {
    /// A queue without a rule is none that is paused.
    fn is_closed(&self) -> bool {
        let rules = Arc::clone(&self.rules.borrow());
        let is_served = |rule: &&Rule| match &self.work_queue {
            Some(url) => rule.work_queue.as_ref() == Some(url),
            None => rule.enabled,
        };
        let mut served = rules.iter().filter(is_served).peekable();
        served.peek().is_some() && served.all(|rule| self.pauses.is_paused(rule))
    }
}

// How soon a poll follows after the destination answers again, a rule is resumed, or a work queue
// has been empty.
const CHECKED_EVERY: Duration = Duration::from_secs(1);

// Hints alone keep a work queue busy for less than that between two looks; longer waits in it double
// up to the second.
const FIRST_LOOK_AFTER: Duration = Duration::from_millis(20);

impl PollGate {
    /// Bounds a queue of events.
    pub(crate) fn of_events(in_flight_max: usize, pause: PauseGate) -> Self {
        let places = || Arc::new(Semaphore::new(in_flight_max));
        Self {
            pause,
            destination: None,
            yields_to: None,
            in_flight: places(),
            in_flight_max,
            redelivered: places(),
        }
    }

    /// Bounds a work queue.
    pub(crate) fn of_work(
        in_flight_max: usize,
        pause: PauseGate,
        destination: (ConcurrencyControl, BucketRef),
    ) -> Self {
        Self {
            destination: Some(destination),
            ..Self::of_events(in_flight_max, pause)
        }
    }

    /// Bounds a queue of hints, which are received while nothing waits in their work queue: so an
    /// event is behind those alone that are under way to it.
    pub(crate) fn of_hints(
        in_flight_max: usize,
        pause: PauseGate,
        work_queue: Arc<QueueAccess>,
    ) -> Self {
        Self {
            yields_to: Some(work_queue),
            ..Self::of_events(in_flight_max, pause)
        }
    }

    /// Says whether its messages have groups.
    fn is_grouped(&self) -> bool {
        self.destination.is_some() || self.yields_to.is_some()
    }

    /// Returns the place of a message that was received in this one.
    fn place_of(&self, message: &Message, place: OwnedSemaphorePermit) -> OwnedSemaphorePermit {
        match message.group.is_some() && message.is_redelivered() {
            true => Arc::clone(&self.redelivered)
                .try_acquire_owned()
                .unwrap_or(place),
            false => place,
        }
    }

    fn is_circuit_open(&self) -> bool {
        self.destination
            .as_ref()
            .is_some_and(|(concurrency, place)| concurrency.is_circuit_open(place))
    }

    /// Waits until messages may be received, and returns a place for each. While the destination
    /// does not answer there is one at most, whose task finds out when it does.
    async fn acquire_places(&self) -> Vec<OwnedSemaphorePermit> {
        loop {
            let is_idle = [&self.in_flight, &self.redelivered]
                .iter()
                .all(|places| places.available_permits() == self.in_flight_max);
            if is_idle || !self.is_circuit_open() {
                break;
            }
            tokio::time::sleep(CHECKED_EVERY).await;
        }
        let mut places = Vec::new();
        // The semaphore is never closed.
        places.extend(Arc::clone(&self.in_flight).acquire_owned().await.ok());
        while places.len() < BATCH_MAX
            && !self.is_circuit_open()
            && let Ok(place) = Arc::clone(&self.in_flight).try_acquire_owned()
        {
            places.push(place);
        }
        places
    }
}

/// Places in the dispatch, and in the queue's bound.
type Room<'a> = (
    mpsc::PermitIterator<'a, ReceivedMessage>,
    Vec<OwnedSemaphorePermit>,
);

/// The most messages that SQS gives at once:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html>
pub(crate) const BATCH_MAX: usize = 10;

/// SQS allows polls of 20 seconds. But one that is cut off goes on there, and the messages it finds
/// reach no receiver and stay hidden: so polls are let end, and a daemon that stops should not wait
/// long.
const POLL_MAX: Duration = Duration::from_secs(5);

impl Receiver {
    /// Receives until it is stopped, and lets the last poll end. A full dispatch grants no permits,
    /// so nothing is polled: the queue keeps the messages. A permit is held for each message that
    /// may come, so what came is passed on without waiting.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut failures = 0;
        while let Some(Ok((permits, places))) = stop.run_until_cancelled(self.room()).await {
            match self.receive(permits.len()).await {
                Ok(messages) => {
                    self.recovered(std::mem::take(&mut failures));
                    self.pass_on(messages, (permits, places));
                }
                Err(error) => {
                    drop(permits);
                    failures += 1;
                    self.poll.poll_failed(&error);
                    warn!(
                        queue = self.queue_name(),
                        failures, error, "cannot receive, trying again"
                    );
                    let pause = tokio::time::sleep(retry::jittered_delay(failures, 1.0));
                    let _stopped = stop.run_until_cancelled(pause).await;
                }
            }
        }
    }

    fn pass_on(&self, messages: Vec<Message>, (permits, mut places): Room<'_>) {
        for (permit, message) in permits.zip(messages) {
            permit.send(self.read(self.place(message, places.pop())));
        }
    }

    /// Waits until messages can be taken. What a ledger that takes no records would let fail stays
    /// in the queue, and is not counted as received there.
    async fn room(&self) -> Result<Room<'_>, mpsc::error::SendError<()>> {
        self.ledger.wait_until_writable().await;
        let places = match &self.gate {
            Some(gate) => {
                while gate.pause.is_closed() {
                    self.poll.poll_paused();
                    tokio::time::sleep(CHECKED_EVERY).await;
                }
                if let Some(work_queue) = &gate.yields_to {
                    self.wait_until_empty(work_queue).await;
                }
                gate.acquire_places().await
            }
            None => Vec::new(),
        };
        let most = match self.gate {
            Some(_) => places.len(),
            None => BATCH_MAX,
        };
        Ok((self.deliveries.reserve_many(most).await?, places))
    }

    /// Waits until nothing is to be received from a queue, as far as SQS tells, which may be some
    /// seconds behind.
    /// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html>
    async fn wait_until_empty(&self, work_queue: &QueueAccess) {
        for looks in 0.. {
            match work_queue.count_waiting().await {
                Ok(0) => return self.poll.poll_succeeded(),
                Ok(messages) => self.poll.poll_yields(work_queue.queue.name(), messages),
                Err(QueueTrouble { words: error, .. }) => {
                    self.poll.poll_failed(&error);
                    warn!(
                        queue = self.queue_name(),
                        error, "cannot ask whether the work queue is empty, hints wait"
                    );
                }
            }
            let pause = retry::doubled(FIRST_LOOK_AFTER, looks, CHECKED_EVERY);
            tokio::time::sleep(pause).await;
        }
    }

    fn place(&self, message: Message, place: Option<OwnedSemaphorePermit>) -> Message {
        let place = self
            .gate
            .as_ref()
            .zip(place)
            .map(|(gate, place)| gate.place_of(&message, place));
        Message { place, ..message }
    }

    fn recovered(&self, failures: u32) {
        self.poll.poll_succeeded();
        if failures > 0 {
            info!(queue = self.queue_name(), failures, "polling again");
        }
    }

    async fn receive(&self, most: usize) -> Result<Vec<Message>, String> {
        let queue = &self.access.queue;
        let visibility = i32::try_from(queue.visibility_timeout.as_secs()).unwrap_or(i32::MAX);
        // SQS does not say at which moment in between the messages were hidden: their leases count
        // from here.
        let requested = BootInstant::now();
        let answer = self
            .access
            .client
            .receive_message()
            .queue_url(&queue.url)
            .max_number_of_messages(i32::try_from(most).unwrap_or(i32::MAX))
            .wait_time_seconds(i32::try_from(self.poll_time().as_secs()).unwrap_or(i32::MAX))
            .visibility_timeout(visibility)
            .set_message_system_attribute_names(Some(self.attributes()))
            .set_message_attribute_names(self.is_grouped().then(|| vec![AGAIN.to_owned()]))
            .send()
            .await
            .map_err(|error| error::error_words(&error))?;
        Ok(answer
            .messages()
            .iter()
            .filter_map(|message| self.to_message(message, requested))
            .collect())
    }

    fn attributes(&self) -> Vec<MessageSystemAttributeName> {
        let mut names = vec![
            MessageSystemAttributeName::ApproximateReceiveCount,
            MessageSystemAttributeName::SentTimestamp,
        ];
        let group = MessageSystemAttributeName::MessageGroupId;
        names.extend(self.is_grouped().then_some(group));
        names
    }

    fn to_message(
        &self,
        raw: &aws_sdk_sqs::types::Message,
        requested: BootInstant,
    ) -> Option<Message> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let receipt = raw.receipt_handle()?.to_owned();
        let attribute = |name| raw.attributes().and_then(|all| all.get(&name));
        let number_of = |name| attribute(name)?.parse::<u64>().ok();
        let again = raw
            .message_attributes()
            .and_then(|all| all.get(AGAIN)?.string_value());
        let count = number_of(MessageSystemAttributeName::ApproximateReceiveCount);
        let sent = number_of(MessageSystemAttributeName::SentTimestamp);
        let group =
            attribute(MessageSystemAttributeName::MessageGroupId).filter(|_| self.is_grouped());
        Some(Message {
            number,
            queue: Arc::clone(&self.access),
            id: raw.message_id().unwrap_or_default().to_owned(),
            lease: self.leases.hold(number, (&receipt, group), requested),
            received: BootInstant::now(),
            receipt,
            body: raw.body().unwrap_or_default().to_owned(),
            receive_count: count
                .and_then(|count| u32::try_from(count).ok())
                .unwrap_or(0),
            sent: sent.and_then(|milliseconds| {
                Timestamp::from_unix_timestamp_nanos(i128::from(milliseconds) * 1_000_000).ok()
            }),
            group: group.cloned(),
            again: again.map(Again::parse_attribute),
            place: None,
        })
    }

    fn read(&self, message: Message) -> ReceivedMessage {
        self.metrics
            .count_message(self.queue_name(), MessageOutcome::Received);
        let notification = message::parse_body(&message.body, &self.metrics);
        if let Ok(Notification { events, ignored }) = &notification {
            debug!(
                queue = self.queue_name(),
                message_id = message.id,
                events = events.len(),
                ?ignored,
                "received"
            );
            self.report_handshake(&message);
        }
        ReceivedMessage {
            message,
            notification,
        }
    }

    /// Logs what to do about a message in which SNS requests, or ends, its subscription: it is
    /// deleted as any that needs no work, and no events come that way until an operator acts.
    fn report_handshake(&self, message: &Message) {
        let Some(Handshake { kind, topic, url }) = event::handshake(&message.body) else {
            return;
        };
        let (queue, message_id) = (self.queue_name(), message.id.as_str());
        let advice = match url {
            Some(_) => "open its URL, or give its Token to `aws sns confirm-subscription`",
            None => {
                "subscribe the queue to the topic again with `aws sns subscribe`, as the topic's owner"
            }
        };
        let url = url.as_deref().unwrap_or("none that is AWS's");
        warn!(
            queue,
            message_id,
            kind,
            topic,
            url,
            advice,
            "SNS sends no events until its subscription is confirmed"
        );
    }

    /// A poll takes at most a third of the time that its messages are hidden for, because it counts
    /// against that; and at least the second that makes SQS wait at all.
    fn poll_time(&self) -> Duration {
        let time = (self.access.queue.visibility_timeout / 3).min(self.drain_timeout / 2);
        time.clamp(Duration::from_secs(1), POLL_MAX)
    }

    fn is_grouped(&self) -> bool {
        self.gate.as_ref().is_some_and(PollGate::is_grouped)
    }

    fn queue_name(&self) -> &str {
        self.access.queue.name()
    }
}
