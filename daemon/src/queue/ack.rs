//! Station 3: messages whose tasks are closed leave their queue, once all that work is on disk.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, MessageAttributeValue,
};
use replicator_core::failure::{Reason, error_chain};
use replicator_core::retry;
use tokio::sync::mpsc;
use tracing::warn;

use crate::engine::Engine;
use crate::failpoint::Step;
use crate::metrics::MessageOutcome;
use crate::queue::message::{AckAction, AckRequest, Message};
use crate::s3::accounts::error::{error_words, is_never_taken};
use crate::sqs::work_queues::{QueueAccess, WorkItem};

/// Deletes, parks and releases messages in batches.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) engine: Arc<Engine>,
    pub(crate) requests: mpsc::Receiver<AckRequest>,
}

/// SQS takes at most ten entries a batch:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessageBatch.html>
const BATCH_MAX: usize = 10;

// One sync of the ledger serves this many messages.
const ROUND_MAX: usize = 100;

// No task waits for a message to be deleted, and each request and each sync costs.
const LINGER: Duration = Duration::from_millis(50);

const ATTEMPTS_MAX: u32 = 4;

impl Ack {
    /// Works until every sender is gone and nothing is left.
    pub(crate) async fn run(mut self) {
        let mut round = Vec::with_capacity(ROUND_MAX);
        while self.requests.recv_many(&mut round, ROUND_MAX).await > 0 {
            // More come soon; a full batch costs what one message does.
            let _full_or_late = tokio::time::timeout(LINGER, self.fill(&mut round)).await;
            self.finish_round(std::mem::take(&mut round)).await;
        }
    }

    async fn fill(&mut self, round: &mut Vec<AckRequest>) {
        while round.len() < ROUND_MAX {
            if self
                .requests
                .recv_many(round, ROUND_MAX - round.len())
                .await
                == 0
            {
                return;
            }
        }
    }

    async fn finish_round(&self, mut round: Vec<AckRequest>) {
        self.forward(&mut round).await;
        let mut delete: BTreeMap<String, Vec<Message>> = BTreeMap::new();
        let mut release: BTreeMap<String, Vec<(Message, Duration)>> = BTreeMap::new();
        // Beside each other: a queue that hangs holds up one round, not each message in turn.
        let sent = round
            .into_iter()
            .map(|AckRequest { message, action }| async {
                let back_after = self.send_to_dead_letter_queue(&message, action).await;
                (message, back_after)
            });
        for (message, back_after) in futures::future::join_all(sent).await {
            let url = message.queue.queue.url.clone();
            if back_after.is_some() {
                message.lease.end_group();
            }
            let is_lost = message.lease.lost_token().is_cancelled();
            match back_after {
                // What another worker holds by now is not to be shown to a third; nor to be
                // deleted, which would let the next of its group out beside that one.
                Some(_) if is_lost => {}
                None if is_lost && message.group.is_some() => {}
                Some(delay) => release.entry(url).or_default().push((message, delay)),
                None => delete.entry(url).or_default().push(message),
            }
        }
        // Nothing is deleted before its record is on disk. If it cannot be, the messages come back.
        if let Err(failure) = self
            .engine
            .failpoints
            .around(Step::Sync, async { self.engine.ledger.sync() })
            .await
        {
            warn!(
                error = error_chain(&failure),
                "the ledger cannot be synced, messages stay in their queues"
            );
            delete
                .values()
                .flatten()
                .for_each(|message| message.lease.end_group());
            delete.clear();
        }
        delete
            .values()
            .flatten()
            .for_each(|message| message.lease.mark_deleting());
        let deletes = delete
            .values()
            .flat_map(|messages| messages.chunks(BATCH_MAX))
            .map(|batch| self.delete(batch));
        futures::future::join_all(deletes).await;
        let releases = release
            .values()
            .flat_map(|all| all.chunks(BATCH_MAX))
            .map(|batch| self.release(batch));
        futures::future::join_all(releases).await;
    }

    /// Sends what goes to work queues, of the whole round together, because each request costs. What
    /// a queue does not take is to be delivered again.
    async fn forward(&self, round: &mut [AckRequest]) {
        let forwarded = |request: &AckRequest| match &request.action {
            AckAction::Forward(items) => items.clone(),
            AckAction::Delete | AckAction::ReturnAfter(_) | AckAction::DeadLetter(_) => Vec::new(),
        };
        let items: Vec<WorkItem> = round.iter().flat_map(forwarded).collect();
        if items.is_empty() {
            return;
        }
        let mut sent = self.engine.work_queues.send_all(&items).await.into_iter();
        for AckRequest { message, action } in round {
            let AckAction::Forward(items) = action else {
                continue;
            };
            let taken = sent.by_ref().take(items.len()).filter(|sent| *sent).count();
            *action = match taken == items.len() {
                true => AckAction::Delete,
                false => AckAction::ReturnAfter(message.redelivery_delay(retry::delay_ceiling(1))),
            };
        }
    }

    /// Sends what is to be kept to the dead-letter queue; returns a delay when the message is to be
    /// delivered again.
    async fn send_to_dead_letter_queue(
        &self,
        message: &Message,
        action: AckAction,
    ) -> Option<Duration> {
        let reason = match action {
            AckAction::Delete | AckAction::Forward(_) => return None,
            AckAction::ReturnAfter(delay) => return Some(delay),
            AckAction::DeadLetter(reason) => reason,
        };
        let name = message.queue.queue.name();
        let send = Box::pin(send(message, reason));
        match self.engine.failpoints.around(Step::DeadLetter, send).await {
            Ok(()) => {
                self.engine
                    .metrics
                    .count_message(name, MessageOutcome::Parked);
                None
            }
            Err(error) => {
                let message_id = message.id.as_str();
                warn!(
                    queue = name,
                    message_id, error, "the dead-letter queue does not take a message, it stays"
                );
                Some(message.redelivery_delay(retry::delay_ceiling(ATTEMPTS_MAX)))
            }
        }
    }

    /// Deletes a batch. The answer is 200 even when entries failed: those are tried again, and
    /// after a few times left to come back as duplicates, which the ledger answers.
    async fn delete(&self, batch: &[Message]) {
        let mut left: Vec<&Message> = batch.iter().collect();
        for attempt in 1..=ATTEMPTS_MAX {
            let failed = self.try_delete(&left).await;
            let (failed, done): (Vec<&Message>, Vec<&Message>) = left
                .into_iter()
                .partition(|message| failed.contains(&message.number.to_string()));
            for message in done {
                self.engine
                    .metrics
                    .count_message(message.queue.queue.name(), MessageOutcome::Deleted);
            }
            left = failed;
            if left.is_empty() {
                return;
            }
            tokio::time::sleep(retry::jittered_delay(attempt, 1.0)).await;
        }
        for message in left {
            message.lease.end_group();
            warn!(
                queue = message.queue.queue.name(),
                message_id = message.id,
                "cannot delete a message, it will return"
            );
            self.engine
                .metrics
                .count_message(message.queue.queue.name(), MessageOutcome::DeleteFailed);
        }
    }

    /// Returns the ids of the entries that were not deleted.
    async fn try_delete(&self, batch: &[&Message]) -> Vec<String> {
        let all = || {
            batch
                .iter()
                .map(|message| message.number.to_string())
                .collect()
        };
        let entry = |message: &&Message| {
            DeleteMessageBatchRequestEntry::builder()
                .id(message.number.to_string())
                .receipt_handle(&message.receipt)
                .build()
        };
        let Some(first) = batch.first() else {
            return Vec::new();
        };
        let Ok(entries) = batch.iter().map(entry).collect::<Result<Vec<_>, _>>() else {
            return all();
        };
        let request = first
            .queue
            .client
            .delete_message_batch()
            .queue_url(&first.queue.queue.url);
        let request = request.set_entries(Some(entries)).send();
        match self
            .engine
            .failpoints
            .around(Step::Ack, Box::pin(request))
            .await
        {
            Ok(answer) => answer.failed.into_iter().map(|failed| failed.id).collect(),
            Err(error) => {
                warn!(
                    queue = first.queue.queue.name(),
                    error = error_words(&error),
                    "cannot delete messages for now"
                );
                all()
            }
        }
    }

    /// Gives messages back. If that fails they show again when their visibility runs out.
    async fn release(&self, batch: &[(Message, Duration)]) {
        let Some((first, _)) = batch.first() else {
            return;
        };
        batch.iter().for_each(|(message, _)| message.lease.end());
        let entry = |(message, delay): &(Message, Duration)| {
            ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(message.number.to_string())
                .receipt_handle(&message.receipt)
                .visibility_timeout(seconds_rounded_up(*delay))
                .build()
        };
        let Ok(entries) = batch.iter().map(entry).collect::<Result<Vec<_>, _>>() else {
            return;
        };
        let request = first
            .queue
            .client
            .change_message_visibility_batch()
            .queue_url(&first.queue.queue.url);
        let request = request.set_entries(Some(entries)).send();
        match self
            .engine
            .failpoints
            .around(Step::Release, Box::pin(request))
            .await
        {
            Ok(answer) => {
                for _ in answer.successful {
                    self.engine
                        .metrics
                        .count_message(first.queue.queue.name(), MessageOutcome::Released);
                }
            }
            Err(error) => {
                warn!(
                    queue = first.queue.queue.name(),
                    error = error_words(&error),
                    "cannot release messages, they wait"
                );
            }
        }
    }
}

/// Returns whole seconds, rounded up.
fn seconds_rounded_up(delay: Duration) -> i32 {
    i32::try_from(delay.as_secs() + u64::from(delay.subsec_nanos() > 0)).unwrap_or(i32::MAX)
}

/// Sends a message to the dead-letter queue with the reason beside it; without it where that is
/// more than a queue takes.
async fn send(message: &Message, reason: Reason) -> Result<(), String> {
    let QueueAccess { queue, client } = message.queue.as_ref();
    let attribute = MessageAttributeValue::builder()
        .data_type("String")
        .string_value(reason.as_str())
        .build();
    let attribute = attribute.map_err(|error| error.to_string())?;
    let bare = client
        .send_message()
        .queue_url(&queue.dead_letter_url)
        .message_body(&message.body);
    match bare
        .clone()
        .message_attributes("Reason", attribute)
        .send()
        .await
    {
        Err(error) if is_never_taken(&error) => bare
            .send()
            .await
            .map(drop)
            .map_err(|error| error_words(&error)),
        sent => sent.map(drop).map_err(|error| error_words(&error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_of_a_second_is_not_waited_short() {
        assert_eq!(
            [0, 1, 1000, 1001]
                .map(|milliseconds| seconds_rounded_up(Duration::from_millis(milliseconds))),
            [0, 1, 1, 2]
        );
    }
}
