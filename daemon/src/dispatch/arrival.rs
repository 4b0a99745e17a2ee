//! A message arrives: what it asks for is taken in hand, or it goes back at once.

use std::sync::Arc;

use replicator_core::failure::Reason;
use tracing::{debug, warn};

use super::Dispatch;
use crate::message::{Delivery, Disposal, Message, Settlement};
use crate::metrics::MessageOutcome;
use crate::task::Task;

impl Dispatch {
    pub(super) async fn delivered(&mut self, delivery: Delivery) {
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
        let mut tasks: Vec<Task> = notification.hints.iter().flat_map(|hint| rules.tasks(hint)).collect();
        if tasks.is_empty() && disposal == Disposal::Delete {
            self.engine.metrics.message(message.queue.queue.name(), MessageOutcome::Ignored);
        }
        tasks.retain(|task| !self.settled.has(&message.id, task));
        if tasks.is_empty() {
            debug!(message_id = message.id, ignored = ?notification.ignored, "nothing to do");
            self.engine.pulse.beat();
            return self.settle(Settlement { message, disposal }).await;
        }
        self.take(message, disposal, tasks).await;
    }

    fn refused(&self, message: &Message, reason: Reason, detail: String) -> Disposal {
        let queue = message.queue.queue.name();
        warn!(queue, message_id = message.id, reason = reason.as_str(), detail, "message cannot be acted on");
        if reason == Reason::BucketUnknown {
            self.engine.metrics.message(queue, MessageOutcome::UnknownBucket);
        }
        Disposal::Park(reason, detail)
    }

    async fn take(&mut self, message: Message, disposal: Disposal, tasks: Vec<Task>) {
        let (number, redelivered) = (message.number, message.redelivered());
        self.hand.take(message, disposal, tasks.len());
        for task in tasks {
            self.take_or_send_back(number, Task { redelivered, ..task }).await;
        }
    }
}
