//! FIFO queues of a case's own, and messages told by their words: the first letter of a word is its
//! group.

use std::collections::HashMap;

use aws_sdk_sqs::operation::send_message::{SendMessageError, SendMessageOutput};
use aws_sdk_sqs::types::{Message, MessageSystemAttributeName, QueueAttributeName};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use aws_smithy_runtime_api::client::result::SdkError;

use super::{Ground, Queue};

/// What comes of a request to send.
type Sent = Result<SendMessageOutput, SdkError<SendMessageError, HttpResponse>>;

// Longer than any case takes.
const LONG: i32 = 600;
const PATIENCE: i32 = 20;

impl Ground {
    /// A FIFO queue.
    pub(crate) async fn fifo(&self) -> Queue {
        let attributes = HashMap::from([(QueueAttributeName::FifoQueue, "true".to_owned())]);
        self.queue_of("work.fifo", attributes).await
    }
}

impl Queue {
    /// Sends each word to the group that is its first letter, with itself as
    /// `MessageDeduplicationId`.
    pub(crate) async fn work(&self, words: &[&str]) {
        for word in words {
            self.post(Some(&word[..1]), Some(word), None).await.unwrap();
        }
    }

    /// Sends a message that may lack what a FIFO queue asks for.
    pub(crate) async fn post(
        &self,
        group: Option<&str>,
        deduplication: Option<&str>,
        delay: Option<i32>,
    ) -> Sent {
        let ask = self
            .sqs
            .send_message()
            .queue_url(&self.url)
            .message_body(deduplication.unwrap_or("a"));
        let ask = ask
            .set_message_group_id(group.map(str::to_owned))
            .set_delay_seconds(delay);
        ask.set_message_deduplication_id(deduplication.map(str::to_owned))
            .send()
            .await
    }

    /// Receives up to so many messages at once, and hides them for long.
    pub(crate) async fn take(&self, count_max: i32) -> Vec<Message> {
        self.take_for(count_max, LONG, 0).await
    }

    /// Receives up to so many messages once there are some, and hides them for long.
    pub(crate) async fn take_late(&self, count_max: i32) -> Vec<Message> {
        self.take_for(count_max, LONG, PATIENCE).await
    }

    /// Receives up to so many messages and hides them for so many seconds; waits so long for the
    /// first.
    pub(crate) async fn take_for(&self, count_max: i32, hidden: i32, wait: i32) -> Vec<Message> {
        let ask = self
            .sqs
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(count_max);
        let ask = ask
            .message_system_attribute_names(MessageSystemAttributeName::All)
            .wait_time_seconds(wait);
        ask.visibility_timeout(hidden)
            .send()
            .await
            .unwrap()
            .messages
            .unwrap_or_default()
    }
}

/// The words, each with its number of receipts where that is not the first.
pub(crate) fn words(messages: &[Message]) -> String {
    let word = |message: &Message| {
        let body = message.body.clone().unwrap_or_default();
        match system(
            message,
            &MessageSystemAttributeName::ApproximateReceiveCount,
        )
        .as_str()
        {
            "1" => body,
            times => format!("{body} ({times})"),
        }
    };
    if messages.is_empty() {
        "nothing".to_owned()
    } else {
        messages.iter().map(word).collect::<Vec<_>>().join(" ")
    }
}

/// A system attribute.
pub(crate) fn system(message: &Message, name: &MessageSystemAttributeName) -> String {
    message
        .attributes
        .as_ref()
        .and_then(|attributes| attributes.get(name))
        .cloned()
        .unwrap_or_default()
}
