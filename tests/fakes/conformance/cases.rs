//! The cases, by subject.

use replicator_fakes::journal::Service;

use crate::case::{Case, Outcome};
use crate::ground::Ground;

mod batches;
mod conditions;
mod fifo;
mod groups;
mod keys;
mod listing;
mod locks;
mod markers;
mod multipart;
mod objects;
mod queues;
mod receipts;

/// Those about one service.
pub(crate) fn about(service: Service) -> Vec<Case> {
    match service {
        Service::S3 => [
            conditions::CASES,
            markers::CASES,
            listing::CASES,
            multipart::CASES,
            objects::CASES,
            locks::CASES,
        ]
        .concat(),
        Service::Sqs => [
            queues::CASES,
            receipts::CASES,
            batches::CASES,
            groups::CASES,
            fifo::CASES,
        ]
        .concat(),
        Service::Kms => keys::CASES.to_vec(),
    }
}

/// All of them.
pub(crate) fn all() -> Vec<Case> {
    [Service::S3, Service::Sqs, Service::Kms]
        .into_iter()
        .flat_map(about)
        .collect()
}

// The documents that decide.
const WRITES: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html";
const DELETES: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-deletes.html";
const READS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-reads.html";
const MARKERS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/DeleteMarker.html";
const SUSPENDED: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/AddingObjectstoVersionSuspendedBuckets.html";
const VERSIONS: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/API/API_ListObjectVersions.html";
const UPLOADS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/mpuoverview.html";
const COMPLETE: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/API/API_CompleteMultipartUpload.html";
const ABORT: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_AbortMultipartUpload.html";
const CHECKSUMS: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/userguide/checking-object-integrity-upload.html";
const LOCK: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-lock.html";
const METADATA: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html";
const TAGS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-tagging.html";
const RESTORING: &str =
    "https://docs.aws.amazon.com/AmazonS3/latest/userguide/RestoringPreviousVersions.html";
const COPY: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_CopyObject.html";
const GET: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_GetObject.html";
const HEAD: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_HeadObject.html";
const DELETE: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_DeleteObject.html";
const ERRORS: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/ErrorResponses.html";
const OBJECT: &str = "https://docs.aws.amazon.com/AmazonS3/latest/API/API_Object.html";
const SSE: &str = "https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingKMSEncryption.html";
const KEY_STATES: &str = "https://docs.aws.amazon.com/kms/latest/developerguide/key-state.html";
const SEND: &str =
    "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html";
const RECEIVE: &str =
    "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ReceiveMessage.html";
const FORGET: &str =
    "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessage.html";
const FORGET_MANY: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessageBatch.html";
const HIDE: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibility.html";
const HIDE_MANY: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_ChangeMessageVisibilityBatch.html";
const VISIBILITY: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html";
const HANDLES: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-queue-message-identifiers.html";
const DEAD_LETTERS: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-dead-letter-queues.html";
const FIFO_LOGIC: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-understanding-logic.html";
const GROUPS: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/interleaving-multiple-ordered-message-groups.html";
const EXACTLY_ONCE: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/FIFO-queues-exactly-once-processing.html";
const HANDLES_WRONG: &str = "https://repost.aws/knowledge-center/sqs-receipt-handle-error";
// No document says it. LocalStack's maintainers ran their tests on AWS, and wrote down what came of
// them.
const FIFO_SEEN: &str =
    "https://github.com/localstack/localstack/blob/master/tests/aws/services/sqs/test_sqs.py";
const SEND_MANY: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html";
const CREATE_QUEUE: &str =
    "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_CreateQueue.html";
const QUEUE_ATTRIBUTES: &str = "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueAttributes.html";
const QUEUE_URL: &str =
    "https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_GetQueueUrl.html";

/// Makes a case of a function.
macro_rules! case {
    ($name:literal, $document:ident, $run:ident, $aws:literal) => {
        Case {
            name: $name,
            document: super::$document,
            aws: $aws,
            run: |ground: Ground| -> Outcome { Box::pin($run(ground)) },
        }
    };
}
use case;

/// The key states that three outcomes are about.
const STATES: [&str; 3] = ["nothing", "object", "marker"];
