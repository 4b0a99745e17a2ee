//! Station 1: messages leave the queue's sight and become hints.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use aws_sdk_sqs::types::MessageSystemAttributeName;
use replicator_core::event;
use replicator_core::failure::Reason;
use replicator_core::retry;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use crate::health::Poll;
use crate::lane::chain;
use crate::lease::Leases;
use crate::message::{Delivery, Disposal, Message, QueueAccess, Settlement};
use crate::metrics::{MessageOutcome, Metrics};

/// Receives from one queue.
#[derive(Debug)]
pub(crate) struct Intake {
    pub(crate) access: Arc<QueueAccess>,
    pub(crate) leases: Leases,
    pub(crate) deliveries: mpsc::Sender<Delivery>,
    pub(crate) settlements: mpsc::Sender<Settlement>,
    pub(crate) numbers: Arc<AtomicU64>,
    pub(crate) poll: Arc<Poll>,
    pub(crate) metrics: Metrics,
}

// The longest poll that SQS allows, and the most messages it gives at once.
const POLL: Duration = Duration::from_secs(20);
const BATCH_MAX: usize = 10;

impl Intake {
    /// Receives until told to stop. A full dispatch grants no permits, so nothing is polled: the
    /// queue keeps the messages.
    pub(crate) async fn run(self, stop: CancellationToken) {
        let mut failures = 0;
        while let Some(Ok(permits)) = stop.run_until_cancelled(self.deliveries.reserve_many(BATCH_MAX)).await {
            drop(permits);
            let Some(received) = stop.run_until_cancelled(self.receive()).await else { return };
            match received {
                Ok(messages) => {
                    self.recovered(std::mem::take(&mut failures));
                    self.take(messages).await;
                }
                Err(error) => {
                    failures += 1;
                    self.poll.failed();
                    warn!(queue = self.name(), failures, error, "cannot receive, trying again");
                    let pause = tokio::time::sleep(retry::delay(failures, 1.0));
                    let _stopped = stop.run_until_cancelled(pause).await;
                }
            }
        }
    }

    fn recovered(&self, failures: u32) {
        self.poll.succeeded();
        if failures > 0 {
            info!(queue = self.name(), failures, "polling again");
        }
    }

    async fn receive(&self) -> Result<Vec<Message>, String> {
        let queue = &self.access.queue;
        let visibility = i32::try_from(queue.visibility_timeout.as_secs()).unwrap_or(i32::MAX);
        let answer = self
            .access
            .client
            .receive_message()
            .queue_url(&queue.url)
            .max_number_of_messages(i32::try_from(BATCH_MAX).unwrap_or(i32::MAX))
            .wait_time_seconds(i32::try_from(POLL.as_secs()).unwrap_or(i32::MAX))
            .visibility_timeout(visibility)
            .message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount)
            .send()
            .await
            .map_err(|error| chain(&error))?;
        let received = Instant::now();
        Ok(answer.messages().iter().filter_map(|message| self.message(message, received)).collect())
    }

    fn message(&self, raw: &aws_sdk_sqs::types::Message, received: Instant) -> Option<Message> {
        let number = self.numbers.fetch_add(1, Ordering::Relaxed);
        let receipt = raw.receipt_handle()?.to_owned();
        let count = raw.attributes().and_then(|all| all.get(&MessageSystemAttributeName::ApproximateReceiveCount));
        Some(Message {
            number,
            queue: Arc::clone(&self.access),
            id: raw.message_id().unwrap_or_default().to_owned(),
            lease: self.leases.hold(number, &receipt, received),
            receipt,
            body: raw.body().unwrap_or_default().to_owned(),
            // A server that does not count may have delivered it any number of times.
            redelivered: count.is_none_or(|count| count != "1"),
        })
    }

    async fn take(&self, messages: Vec<Message>) {
        for message in messages {
            self.read(message).await;
        }
    }

    async fn read(&self, message: Message) {
        self.metrics.message(self.name(), MessageOutcome::Received);
        match event::parse(&message.body) {
            Ok(notification) => {
                debug!(queue = self.name(), message = message.id, hints = notification.hints.len(), "received");
                // A closed channel means the daemon stops: the message shows again by itself.
                let _sent = self.deliveries.send(Delivery { message, notification }).await;
            }
            Err(error) => {
                let detail = error.to_string();
                warn!(queue = self.name(), message = message.id, error = detail, "undecodable message");
                self.metrics.message(self.name(), MessageOutcome::Undecodable);
                let disposal = Disposal::Park(Reason::MessageUndecodable, detail);
                let _sent = self.settlements.send(Settlement { message, disposal }).await;
            }
        }
    }

    fn name(&self) -> &str {
        self.access.queue.name()
    }
}
