//! A queue of the source account, as tests use it.

use aws_sdk_sqs::types::{QueueAttributeName, SendMessageBatchRequestEntry};

use super::localstack::{SOURCE, unique};

/// A queue, by its URL.
#[derive(Debug, Clone)]
pub(crate) struct Queue {
    pub(crate) url: String,
}

impl Queue {
    /// Makes a queue with a name of its own.
    pub(crate) async fn create(what: &str) -> Self {
        Self {
            url: SOURCE.create_queue(&unique(what)).await,
        }
    }

    /// Makes a FIFO queue with a name of its own.
    pub(crate) async fn create_fifo(what: &str) -> Self {
        Self {
            url: SOURCE.create_fifo_queue(&unique(what)).await,
        }
    }

    /// Returns the queue's ARN.
    pub(crate) fn arn(&self) -> String {
        SOURCE.queue_arn(&self.url)
    }

    /// Sends a message.
    pub(crate) async fn send(&self, body: impl Into<String>) {
        SOURCE
            .sqs()
            .send_message()
            .queue_url(&self.url)
            .message_body(body)
            .send()
            .await
            .unwrap();
    }

    /// Sends at most ten messages.
    pub(crate) async fn send_batch(&self, bodies: &[String]) {
        let entry = |(at, body): (usize, &String)| {
            SendMessageBatchRequestEntry::builder()
                .id(at.to_string())
                .message_body(body)
                .build()
                .unwrap()
        };
        let entries = bodies.iter().enumerate().map(entry).collect();
        let request = SOURCE
            .sqs()
            .send_message_batch()
            .queue_url(&self.url)
            .set_entries(Some(entries));
        let refused = request.send().await.unwrap().failed;
        assert!(refused.is_empty(), "{refused:?}");
    }

    /// Makes the queue refuse longer messages, attributes included.
    pub(crate) async fn limit_message_bytes(&self, bytes: u32) {
        let request = SOURCE.sqs().set_queue_attributes().queue_url(&self.url);
        request
            .attributes(QueueAttributeName::MaximumMessageSize, bytes.to_string())
            .send()
            .await
            .unwrap();
    }

    /// Counts all messages: waiting, hidden by a receiver, delayed.
    pub(crate) async fn depth(&self) -> i64 {
        use QueueAttributeName::{
            ApproximateNumberOfMessages, ApproximateNumberOfMessagesDelayed,
            ApproximateNumberOfMessagesNotVisible,
        };
        let counts = [
            ApproximateNumberOfMessages,
            ApproximateNumberOfMessagesDelayed,
            ApproximateNumberOfMessagesNotVisible,
        ];
        let request = SOURCE
            .sqs()
            .get_queue_attributes()
            .queue_url(&self.url)
            .set_attribute_names(Some(counts.into()));
        let attributes = request.send().await.unwrap().attributes.unwrap_or_default();
        attributes
            .values()
            .filter_map(|count| count.parse::<i64>().ok())
            .sum()
    }

    /// Takes all messages that wait, and returns their bodies.
    pub(crate) async fn take(&self) -> Vec<String> {
        let sqs = SOURCE.sqs();
        let mut bodies = Vec::new();
        loop {
            let request = sqs
                .receive_message()
                .queue_url(&self.url)
                .max_number_of_messages(10)
                .wait_time_seconds(1);
            let messages = request.send().await.unwrap().messages.unwrap_or_default();
            if messages.is_empty() {
                return bodies;
            }
            for message in messages {
                bodies.push(message.body.unwrap_or_default());
                let handle = message.receipt_handle.unwrap();
                sqs.delete_message()
                    .queue_url(&self.url)
                    .receipt_handle(handle)
                    .send()
                    .await
                    .unwrap();
            }
        }
    }
}
