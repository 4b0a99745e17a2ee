//! Queues of a case's own.

use std::collections::HashMap;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    MessageSystemAttributeName, QueueAttributeName,
};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;
use aws_smithy_types::error::metadata::ProvideErrorMetadata;

use super::Ground;
use crate::case;

/// A queue.
pub(crate) struct Queue {
    pub(crate) sqs: Client,
    pub(crate) url: String,
}

// Longer than any case takes.
const LONG: i32 = 600;
// The longest poll there is; where there is something, it is shorter.
const PATIENCE: i32 = 20;

impl Ground {
    /// A queue.
    pub(crate) async fn queue(&self) -> Queue {
        self.queue_of("queue", HashMap::new()).await
    }

    /// One of the case's queues, with attributes.
    pub(crate) async fn queue_of(
        &self,
        kind: &str,
        attributes: HashMap<QueueAttributeName, String>,
    ) -> Queue {
        let (sqs, name) = (self.way.sqs(), format!("{}-{kind}", self.own_name()));
        let made = sqs
            .create_queue()
            .queue_name(name)
            .set_attributes(Some(attributes))
            .send()
            .await
            .unwrap();
        Queue {
            sqs,
            url: made.queue_url.unwrap(),
        }
    }
}

impl Queue {
    /// Sends messages.
    pub(crate) async fn send(&self, bodies: &[&str]) {
        for body in bodies {
            self.sqs
                .send_message()
                .queue_url(&self.url)
                .message_body(*body)
                .send()
                .await
                .unwrap();
        }
    }

    /// Receives a message, once there is one, and hides it for long.
    pub(crate) async fn receive(&self) -> Message {
        self.receive_for(LONG).await
    }

    /// Receives a message, once there is one, and hides it for so many seconds.
    pub(crate) async fn receive_for(&self, hidden: i32) -> Message {
        let ask = self
            .sqs
            .receive_message()
            .queue_url(&self.url)
            .wait_time_seconds(PATIENCE);
        let ask =
            ask.message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let received = ask
            .visibility_timeout(hidden)
            .send()
            .await
            .unwrap()
            .messages
            .unwrap_or_default();
        received.into_iter().next().expect("a message")
    }

    /// Counts what can be received now, and hides it.
    pub(crate) async fn visible(&self) -> usize {
        let ask = self
            .sqs
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(10)
            .visibility_timeout(LONG);
        ask.send().await.unwrap().messages.unwrap_or_default().len()
    }

    /// Counts what is there: what can be received, what is hidden, what is delayed.
    pub(crate) async fn counts(&self) -> String {
        let names = [
            QueueAttributeName::ApproximateNumberOfMessages,
            QueueAttributeName::ApproximateNumberOfMessagesNotVisible,
            QueueAttributeName::ApproximateNumberOfMessagesDelayed,
        ];
        let ask = self
            .sqs
            .get_queue_attributes()
            .queue_url(&self.url)
            .set_attribute_names(Some(names.to_vec()));
        let told = ask.send().await.unwrap().attributes.unwrap_or_default();
        let [visible, hidden, delayed] =
            names.map(|name| told.get(&name).cloned().unwrap_or_default());
        format!("{visible} visible, {hidden} hidden, {delayed} delayed")
    }

    /// The queue's ARN.
    pub(crate) async fn arn(&self) -> String {
        let ask = self
            .sqs
            .get_queue_attributes()
            .queue_url(&self.url)
            .attribute_names(QueueAttributeName::QueueArn);
        let told = ask.send().await.unwrap().attributes.unwrap_or_default();
        told[&QueueAttributeName::QueueArn].clone()
    }

    /// Deletes by a receipt handle; says how it went.
    pub(crate) async fn delete(&self, receipt: &str) -> String {
        said(
            &self
                .sqs
                .delete_message()
                .queue_url(&self.url)
                .receipt_handle(receipt)
                .send()
                .await,
        )
    }

    /// Hides by a receipt handle for so many seconds from now; says how it went.
    pub(crate) async fn hide(&self, receipt: &str, seconds: i32) -> String {
        let ask = self
            .sqs
            .change_message_visibility()
            .queue_url(&self.url)
            .receipt_handle(receipt);
        said(&ask.visibility_timeout(seconds).send().await)
    }

    /// Deletes a batch of ids and receipt handles; says what became of each.
    pub(crate) async fn delete_all(&self, batch: &[(&str, &str)]) -> String {
        let entry = |(id, receipt): &(&str, &str)| {
            DeleteMessageBatchRequestEntry::builder()
                .id(*id)
                .receipt_handle(*receipt)
                .build()
                .unwrap()
        };
        let ask = self.sqs.delete_message_batch().queue_url(&self.url);
        match ask
            .set_entries(Some(batch.iter().map(entry).collect()))
            .send()
            .await
        {
            Err(refused) => said::<(), _>(&Err(refused)),
            Ok(answer) => {
                let failed = answer
                    .failed
                    .iter()
                    .map(|failed| (failed.id.as_str(), failed.code.as_str()));
                told(
                    answer.successful.iter().map(|done| done.id.as_str()),
                    failed,
                )
            }
        }
    }

    /// Hides a batch for a minute; says what became of each.
    pub(crate) async fn hide_all(&self, batch: &[(&str, &str)]) -> String {
        let entry = |(id, receipt): &(&str, &str)| {
            let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
                .id(*id)
                .receipt_handle(*receipt);
            entry.visibility_timeout(60).build().unwrap()
        };
        let ask = self
            .sqs
            .change_message_visibility_batch()
            .queue_url(&self.url);
        match ask
            .set_entries(Some(batch.iter().map(entry).collect()))
            .send()
            .await
        {
            Err(refused) => said::<(), _>(&Err(refused)),
            Ok(answer) => {
                let failed = answer
                    .failed
                    .iter()
                    .map(|failed| (failed.id.as_str(), failed.code.as_str()));
                told(
                    answer.successful.iter().map(|done| done.id.as_str()),
                    failed,
                )
            }
        }
    }
}

/// The receipt handle of a message.
pub(crate) fn receipt(message: &Message) -> &str {
    message.receipt_handle.as_deref().unwrap()
}

/// Says how a request went.
pub(crate) fn said<T, E: ProvideErrorMetadata>(
    result: &Result<T, SdkError<E, HttpResponse>>,
) -> String {
    plain(&case::word(result))
}

/// Says what became of a batch's entries.
fn told<'a>(
    done: impl Iterator<Item = &'a str>,
    failed: impl Iterator<Item = (&'a str, &'a str)>,
) -> String {
    let done = done.map(|id| format!("{id}: ok"));
    done.chain(failed.map(|(id, code)| format!("{id}: {}", plain(code))))
        .collect::<Vec<_>>()
        .join(", ")
}

/// An error's name as both protocols of SQS have it: the older one puts something before, the newer
/// one behind.
fn plain(name: &str) -> String {
    let name = name.replace("AWS.SimpleQueueService.", "");
    name.strip_suffix("Exception")
        .map(str::to_owned)
        .unwrap_or(name)
}
