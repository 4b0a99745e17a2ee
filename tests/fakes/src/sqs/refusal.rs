//! The errors of SQS:
//! <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html>

use bytes::Bytes;
use http::{Response, header};
use serde_json::json;

/// An error answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Refusal {
    /// The error's name in the JSON protocol.
    kind: &'static str,
    /// Its code in the older query protocol, which SDKs still show.
    pub(super) code: &'static str,
    pub(super) message: String,
}

impl Refusal {
    pub(super) fn queue(name: &str) -> Self {
        let message = format!("The specified queue does not exist: {name}");
        Self {
            kind: "QueueDoesNotExist",
            code: "AWS.SimpleQueueService.NonExistentQueue",
            message,
        }
    }

    pub(super) fn receipt(handle: &str) -> Self {
        let message =
            format!("The input receipt handle \"{handle}\" is not a valid receipt handle.");
        Self {
            kind: "ReceiptHandleIsInvalid",
            code: "ReceiptHandleIsInvalid",
            message,
        }
    }

    pub(super) fn not_in_flight(handle: &str) -> Self {
        let message = format!("Message referred to by {handle} is not in flight.");
        Self {
            kind: "MessageNotInflight",
            code: "AWS.SimpleQueueService.MessageNotInflight",
            message,
        }
    }

    pub(super) fn over_limit() -> Self {
        let message = "Too many messages in flight".to_owned();
        Self {
            kind: "OverLimit",
            code: "OverLimit",
            message,
        }
    }

    pub(super) fn value(parameter: &str, value: &str, reason: &str) -> Self {
        let message =
            format!("Value {value} for parameter {parameter} is invalid. Reason: {reason}");
        Self {
            kind: "InvalidParameterValue",
            code: "InvalidParameterValue",
            message,
        }
    }

    pub(super) fn missing(parameter: &str) -> Self {
        let message = format!("The request must contain the parameter {parameter}.");
        Self {
            kind: "MissingParameter",
            code: "MissingParameter",
            message,
        }
    }

    /// What a batch is told whose entry lacks a parameter.
    pub(super) fn in_batch(self) -> Self {
        Self {
            message: self.message,
            ..Self::value("", "", "")
        }
    }

    /// A parameter that queues of the other type have.
    pub(super) fn not_of_type(parameter: &str, value: &str) -> Self {
        let reason = "The request include parameter that is not valid for this queue type.";
        Self::value(parameter, value, reason)
    }

    pub(super) fn no_deduplication() -> Self {
        let message = "The queue should either have ContentBasedDeduplication enabled or MessageDeduplicationId \
                       provided explicitly";
        Self {
            message: message.to_owned(),
            ..Self::value("", "", "")
        }
    }

    pub(super) fn expired(handle: &str) -> Self {
        Self::value("ReceiptHandle", handle, "The receipt handle has expired.")
    }

    pub(super) fn queue_name(name: &str) -> Self {
        let reason = "a FIFO queue's name ends in .fifo, and no other's does";
        Self::value("QueueName", name, reason)
    }

    pub(super) fn contents() -> Self {
        let message = "Invalid characters found".to_owned();
        Self {
            kind: "InvalidMessageContents",
            code: "InvalidMessageContents",
            message,
        }
    }

    pub(super) fn batch(kind: Batch) -> Self {
        let (kind, code, message) = match kind {
            Batch::Empty => (
                "EmptyBatchRequest",
                "AWS.SimpleQueueService.EmptyBatchRequest",
                "no entries",
            ),
            Batch::TooMany => (
                "TooManyEntriesInBatchRequest",
                "AWS.SimpleQueueService.TooManyEntriesInBatchRequest",
                "more than 10 entries",
            ),
            Batch::NotDistinct => (
                "BatchEntryIdsNotDistinct",
                "AWS.SimpleQueueService.BatchEntryIdsNotDistinct",
                "two entries with one id",
            ),
            Batch::WrongId => (
                "InvalidBatchEntryId",
                "AWS.SimpleQueueService.InvalidBatchEntryId",
                "an id is up to 80 letters, digits, hyphens and underscores",
            ),
        };
        Self {
            kind,
            code,
            message: message.to_owned(),
        }
    }

    pub(super) fn request(error: &serde_json::Error) -> Self {
        Self {
            kind: "SerializationException",
            code: "SerializationException",
            message: error.to_string(),
        }
    }

    pub(super) fn operation(target: &str) -> Self {
        let message = format!("no such operation: {target}");
        Self {
            kind: "UnsupportedOperation",
            code: "AWS.SimpleQueueService.UnsupportedOperation",
            message,
        }
    }

    pub(super) fn response(&self) -> Response<Bytes> {
        let body = json!({ "__type": format!("com.amazonaws.sqs#{}", self.kind), "message": self.message });
        let response = Response::builder()
            .status(400)
            .header(header::CONTENT_TYPE, "application/x-amz-json-1.0");
        let response = response.header("x-amzn-query-error", format!("{};Sender", self.code));
        response.body(Bytes::from(body.to_string())).unwrap()
    }
}

/// What is wrong with a batch as a whole.
#[derive(Debug, Clone, Copy)]
pub(super) enum Batch {
    Empty,
    TooMany,
    NotDistinct,
    WrongId,
}
