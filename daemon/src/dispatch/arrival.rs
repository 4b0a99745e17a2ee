//! A message arrives: its tasks are taken in flight, or it goes back at once.

use std::sync::Arc;
use std::time::Duration;

use replicator_core::failure::Reason;
use tracing::debug;

use super::Dispatch;
use crate::message::{AckAction, AckRequest, Again, Message, ReceivedMessage};
use crate::metrics::MessageOutcome;
use crate::task::Task;
use crate::work_queues::{WorkItem, digest_words, group_of};

/// Returns the message that a work queue is to get for a task of another group.
fn elsewhere(message: &Message, group: &str, task: &Task) -> Option<WorkItem> {
    let other = group_of(&task.target);
    let url = task
        .rules
        .primary
        .work_queue
        .clone()
        .filter(|_| other != group)?;
    let deduplication = digest_words([message.id.as_str(), &other]);
    Some(WorkItem {
        url,
        group: other,
        deduplication,
        body: message.body.clone(),
        again: message.again,
    })
}

impl Dispatch {
    pub(super) async fn delivered(&mut self, delivery: ReceivedMessage) {
        let ReceivedMessage {
            message,
            notification,
        } = delivery;
        if message.group.is_some() && message.lease.stop_token().is_cancelled() {
            // Another one of its group went back, and may be another worker's by now.
            return self
                .send_settlement(AckRequest {
                    message,
                    action: AckAction::ReturnAfter(Duration::ZERO),
                })
                .await;
        }
        let notification = match notification {
            Ok(notification) => notification,
            Err(undecodable) => {
                let (metrics, detail) = (&self.engine.metrics, undecodable.to_string());
                let disposal =
                    message.refuse_and_park(metrics, Reason::MessageUndecodable, &detail);
                return self
                    .send_settlement(AckRequest {
                        message,
                        action: disposal,
                    })
                    .await;
            }
        };
        let rules = Arc::clone(&self.rules.borrow());
        let disposal = match notification
            .events
            .iter()
            .find_map(|event| rules.refusal(event))
        {
            Some((reason, detail)) => {
                message.refuse_and_park(&self.engine.metrics, reason, &detail)
            }
            None => AckAction::Delete,
        };
        // What is possible is done; the message is kept for what is not.
        let mut tasks: Vec<Task> = notification
            .events
            .iter()
            .flat_map(|event| rules.tasks_for(event))
            .collect();
        if tasks.is_empty() && disposal == AckAction::Delete {
            self.engine
                .metrics
                .count_message(message.queue.queue.name(), MessageOutcome::Ignored);
        }
        if let Some(group) = &message.group {
            let others: Vec<WorkItem> = tasks
                .iter()
                .filter_map(|task| elsewhere(&message, group, task))
                .collect();
            tasks.retain(|task| group_of(&task.target) == *group);
            if tasks.is_empty() && !others.is_empty() {
                // The rules have changed since it was routed: its work is at another key now.
                return self
                    .send_settlement(AckRequest {
                        message,
                        action: AckAction::Forward(others),
                    })
                    .await;
            }
        }
        tasks.retain(|task| !self.settled.has_done(&message.id, task));
        if tasks.is_empty() {
            debug!(message_id = message.id, ignored = ?notification.ignored, "nothing to do");
            self.engine.watchdog.record_progress();
            return self
                .send_settlement(AckRequest {
                    message,
                    action: disposal,
                })
                .await;
        }
        self.take(message, disposal, tasks).await;
    }

    async fn take(&mut self, message: Message, disposal: AckAction, tasks: Vec<Task>) {
        let (number, redelivered, receive_count) = (
            message.number,
            message.is_redelivered(),
            message.receive_count,
        );
        let parked = message.again.and_then(Again::parked);
        let (is_work, is_repeated) = (message.group.is_some(), message.is_repeated());
        let takes_over = redelivered.then_some(message.received);
        let delays: Vec<Duration> = tasks.iter().map(|task| message.delay_left(task)).collect();
        self.hand.take(message, disposal, tasks.len());
        for (mut task, delay) in tasks.into_iter().zip(delays) {
            if is_work {
                task.events
                    .iter_mut()
                    .for_each(|pending| pending.parked = parked);
                self.enqueue_task(
                    Some(number),
                    Task {
                        redelivered: is_repeated,
                        receive_count,
                        takes_over,
                        ..task
                    },
                );
            } else if delay.is_zero() {
                self.enqueue_task(
                    Some(number),
                    Task {
                        redelivered,
                        ..task
                    },
                );
            } else {
                self.put_off(number, delay).await;
            }
        }
    }

    /// Lets a version delete wait in the queue.
    async fn put_off(&mut self, number: u64, delay: Duration) {
        let (away, metrics) = (&mut self.away, &self.engine.metrics);
        if let Some(settlement) = self
            .hand
            .close(number, |message| away.disposal(message, delay, metrics))
        {
            self.send_settlement(settlement).await;
        }
    }
}
