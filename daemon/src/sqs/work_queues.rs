//! The FIFO queues that work goes through. A message group is all that is to be done at one
//! destination key, and SQS gives out no message of a group while another of it is in flight: so
//! one worker in the whole fleet is at a key.
//! <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/using-messagegroupid-property.html>

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_sqs::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sqs::types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use replicator_config::Queue;
use replicator_core::object::Timestamp;
use replicator_core::retry;
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tracing::warn;

use crate::ledger::records::TargetKey;
use crate::s3::accounts::error::error_words;

/// A queue and the client that reaches it.
#[derive(Debug, Clone)]
pub(crate) struct QueueAccess {
    pub(crate) queue: Queue,
    pub(crate) client: aws_sdk_sqs::Client,
}

impl QueueAccess {
    /// Asks how many messages can be received, as far as the queue knows by then.
    pub(crate) async fn count_waiting(&self) -> Result<u64, QueueTrouble> {
        let name = QueueAttributeName::ApproximateNumberOfMessages;
        let request = self
            .client
            .get_queue_attributes()
            .queue_url(&self.queue.url)
            .attribute_names(name.clone());
        let answer = request.send().await;
        let answer = answer.map_err(|error| QueueTrouble::of_error(&error))?;
        let count = answer.attributes.as_ref().and_then(|all| all.get(&name));
        let count = count.and_then(|count| count.parse().ok());
        count.ok_or_else(|| format!("GetQueueAttributes: the answer has no {name}").into())
    }
}

/// Why a worker sent a message to its work queue, if one did. Something may have begun for it that
/// is in no ledger.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Again {
    /// Its work was given back.
    Released,
    /// Its task was parked, and is tried again.
    Parked(ParkedBefore),
}

/// What is known of a task that was parked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ParkedBefore {
    pub(crate) since: Timestamp,
    pub(crate) tries: u32,
}

impl fmt::Display for Again {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Released => f.write_str(RELEASED),
            Self::Parked(ParkedBefore { since, tries }) => {
                write!(f, "parked {} {tries}", since.unix_timestamp())
            }
        }
    }
}

const RELEASED: &str = "released";

impl Again {
    /// Reads what was written. Any other text says as much as that it was sent again.
    pub(crate) fn parse_attribute(text: &str) -> Self {
        let parked = || {
            let (since, tries) = text.strip_prefix("parked ")?.split_once(' ')?;
            let since = Timestamp::from_unix_timestamp(since.parse().ok()?).ok()?;
            Some(ParkedBefore {
                since,
                tries: tries.parse().ok()?,
            })
        };
        parked().map_or(Self::Released, Self::Parked)
    }

    pub(crate) fn parked(self) -> Option<ParkedBefore> {
        match self {
            Self::Released => None,
            Self::Parked(parked) => Some(parked),
        }
    }
}

/// The work queues by their URLs.
#[derive(Debug, Default)]
pub(crate) struct WorkQueues {
    /// Each with the requests that may be under way to it.
    by_url: BTreeMap<String, (Arc<QueueAccess>, Semaphore)>,
}

/// Messages for one queue that one request takes, by their places among all.
#[derive(Debug)]
pub(crate) struct Batch {
    url: String,
    pub(crate) items: Vec<usize>,
}

/// A message for a work queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WorkItem {
    /// The queue.
    pub(crate) url: String,
    /// `MessageGroupId`: the destination key that the work is at.
    pub(crate) group: String,
    /// `MessageDeduplicationId`: SQS delivers one message of each within five minutes.
    pub(crate) deduplication: String,
    /// A notification of one record.
    pub(crate) body: String,
    /// Why a worker sends it, if one does.
    pub(crate) again: Option<Again>,
}

/// SQS takes at most ten entries a batch:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessageBatch.html>
const BATCH_MAX: usize = 10;

// Requests that may be under way to one queue: what one that is slow, or hangs, may hold of the
// router's room is less than half of it.
const REQUESTS_MAX: usize = 100;

const TURN_WITHIN: Duration = Duration::from_secs(5);

// What is not taken by then is routed again when its event comes back.
const ATTEMPTS_MAX: u32 = 4;

/// The message attribute of what a worker sent.
pub(crate) const AGAIN: &str = "Again";

/// Returns the message group of a key. The account is left out, which only this configuration names
/// so.
pub(crate) fn group_of(target: &TargetKey) -> String {
    digest_words([target.destination.bucket.as_str(), target.key.as_str()])
}

/// Returns the message group of a rule's comparisons of all its keys: one runs at a time.
pub(crate) fn round_group_of(rule: &str) -> String {
    format!("{ROUND_GROUP}{}", digest_words([rule]))
}

/// What such groups begin with, as no group of a key does.
pub(crate) const ROUND_GROUP: &str = "reconcile-";

/// Returns an id that these words make, none of which has a NUL.
pub(crate) fn digest_words<'a>(words: impl IntoIterator<Item = &'a str>) -> String {
    let mut hash = Sha256::new();
    for word in words {
        hash.update(word.as_bytes());
        hash.update([0]);
    }
    hex(&hash.finalize())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl WorkQueues {
    pub(crate) fn new(queues: impl IntoIterator<Item = Arc<QueueAccess>>) -> Self {
        let by_url = queues.into_iter().map(|access| {
            (
                access.queue.url.clone(),
                (access, Semaphore::new(REQUESTS_MAX)),
            )
        });
        Self {
            by_url: by_url.collect(),
        }
    }

    /// Says whether work goes through queues of its own.
    pub(crate) fn are_used(&self) -> bool {
        !self.by_url.is_empty()
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<QueueAccess>> {
        self.by_url.values().map(|(access, _)| access)
    }

    /// Sends messages, and says of each whether its queue has it for sure.
    pub(crate) async fn send_all(&self, items: &[WorkItem]) -> Vec<bool> {
        self.send_and_explain(items).await.0
    }

    /// The same, and why a queue did not take the last one that it refused.
    pub(crate) async fn send_and_explain(
        &self,
        items: &[WorkItem],
    ) -> (Vec<bool>, Option<QueueTrouble>) {
        let batches = self.batches(items);
        let sends = batches.iter().map(|batch| self.send_batch(items, batch));
        let (mut taken, mut trouble) = (BTreeSet::new(), None);
        for batch in futures::future::join_all(sends).await {
            taken.extend(batch.taken);
            trouble = batch.trouble.or(trouble);
        }
        let is_sent = (0..items.len()).map(|index| taken.contains(&index));
        (is_sent.collect(), trouble)
    }

    /// Parts messages into those that one request takes.
    pub(crate) fn batches(&self, items: &[WorkItem]) -> Vec<Batch> {
        let mut of_queue: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (index, item) in items.iter().enumerate() {
            of_queue.entry(&item.url).or_default().push(index);
        }
        let batches = |(url, all): (&str, Vec<usize>)| -> Vec<Batch> {
            all.chunks(BATCH_MAX)
                .map(|items| Batch {
                    url: url.to_owned(),
                    items: items.to_vec(),
                })
                .collect()
        };
        of_queue.into_iter().flat_map(batches).collect()
    }

    /// Sends a batch, what failed of it a few times. A queue that has many under way, and goes on
    /// with none of them, takes none.
    pub(crate) async fn send_batch(&self, items: &[WorkItem], batch: &Batch) -> SentBatch {
        let Some((access, turns)) = self.by_url.get(&batch.url) else {
            warn!(
                url = batch.url,
                "a rule's work queue is not one that the daemon was started with; restart it"
            );
            return SentBatch::default();
        };
        // One event may have more batches than are sent at once.
        let Ok(Ok(_turn)) = tokio::time::timeout(TURN_WITHIN, turns.acquire()).await else {
            warn!(
                queue = access.queue.name(),
                "the work queue takes messages too slowly, they are tried again later"
            );
            return SentBatch {
                taken: Vec::new(),
                trouble: Some("the queue takes messages too slowly".to_owned().into()),
            };
        };
        let (mut left, mut sent) = (batch.items.clone(), SentBatch::default());
        for attempt in 1..=ATTEMPTS_MAX {
            let is_definite = match try_send(access, items, &left).await {
                Ok(SentBatch { taken, trouble }) => {
                    left.retain(|index| !taken.contains(index));
                    sent.taken.extend(taken);
                    sent.trouble = trouble;
                    false
                }
                Err(Unsent {
                    trouble,
                    is_definite,
                }) => {
                    warn!(
                        queue = access.queue.name(),
                        error = trouble.words,
                        "cannot send to the work queue for now"
                    );
                    sent.trouble = Some(trouble);
                    is_definite
                }
            };
            if left.is_empty() || is_definite {
                break;
            }
            if attempt < ATTEMPTS_MAX {
                tokio::time::sleep(retry::jittered_delay(attempt, fastrand::f64())).await;
            }
        }
        sent
    }
}

/// What became of a batch.
#[derive(Debug, Default)]
pub(crate) struct SentBatch {
    /// What its queue has for sure, by the places among all.
    pub(crate) taken: Vec<usize>,
    /// Why it does not have the rest.
    pub(crate) trouble: Option<QueueTrouble>,
}

/// Why a queue did not do what it was asked to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct QueueTrouble {
    /// The service's own error code; empty where there is none.
    pub(crate) code: String,
    /// The status of the answer, unless that refused single messages only.
    pub(crate) status: Option<u16>,
    /// All that is known of it, in one line.
    pub(crate) words: String,
}

impl QueueTrouble {
    fn of_error<E>(error: &SdkError<E, HttpResponse>) -> Self
    where
        E: ProvideErrorMetadata + Error + Send + Sync + 'static,
    {
        Self {
            code: error.code().unwrap_or_default().to_owned(),
            status: error.raw_response().map(|answer| answer.status().as_u16()),
            words: error_words(error),
        }
    }
}

impl From<String> for QueueTrouble {
    fn from(words: String) -> Self {
        Self {
            words,
            ..Self::default()
        }
    }
}

impl fmt::Display for QueueTrouble {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.words)
    }
}

/// A request that was not carried out, as far as is known.
struct Unsent {
    trouble: QueueTrouble,
    /// Whether the service refused it, so that the same again is of no use.
    is_definite: bool,
}

/// Sends a batch once. The answer is 200 even when entries failed: what it does not name as taken
/// was not.
async fn try_send(
    access: &QueueAccess,
    items: &[WorkItem],
    batch: &[usize],
) -> Result<SentBatch, Unsent> {
    let entries = batch
        .iter()
        .filter_map(|index| Some((index, items.get(*index)?)));
    let unbuilt = |words: String| Unsent {
        trouble: words.into(),
        is_definite: true,
    };
    let entries = entries
        .map(|(index, item)| entry(*index, item, access.queue.is_fifo()))
        .collect::<Result<Vec<_>, _>>()
        .map_err(unbuilt)?;
    let request = access
        .client
        .send_message_batch()
        .queue_url(&access.queue.url)
        .set_entries(Some(entries));
    let unsent = |error: SdkError<_, HttpResponse>| Unsent {
        trouble: QueueTrouble::of_error(&error),
        is_definite: is_refused(&error),
    };
    let answer = request.send().await.map_err(unsent)?;
    let mut trouble = None;
    for failed in &answer.failed {
        let (code, detail) = (
            failed.code.as_str(),
            failed.message.as_deref().unwrap_or_default(),
        );
        warn!(
            queue = access.queue.name(),
            code, detail, "the work queue refused a message"
        );
        trouble = Some(QueueTrouble {
            code: code.to_owned(),
            status: None,
            words: format!("{code}: {detail}"),
        });
    }
    let taken = answer
        .successful
        .iter()
        .filter_map(|taken| taken.id.parse().ok());
    Ok(SentBatch {
        taken: taken.filter(|index| batch.contains(index)).collect(),
        trouble,
    })
}

/// Says whether a service refused a request, so that the same again is of no use. SQS tells to slow
/// down by a 400 or 403, too.
fn is_refused<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> bool {
    let is_throttled = error.code().is_some_and(|code| code.contains("Throttl"));
    error
        .raw_response()
        .is_some_and(|answer| answer.status().is_client_error())
        && !is_throttled
}

fn entry(
    index: usize,
    item: &WorkItem,
    is_fifo: bool,
) -> Result<SendMessageBatchRequestEntry, String> {
    // A queue of another kind refuses a deduplication id.
    let mut entry = SendMessageBatchRequestEntry::builder()
        .id(index.to_string())
        .set_message_group_id(is_fifo.then(|| item.group.clone()))
        .set_message_deduplication_id(is_fifo.then(|| item.deduplication.clone()))
        .message_body(&item.body);
    if let Some(again) = &item.again {
        let value = MessageAttributeValue::builder()
            .data_type("String")
            .string_value(again.to_string())
            .build();
        entry = entry.message_attributes(AGAIN, value.map_err(|error| error.to_string())?);
    }
    entry.build().map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule::BucketRef;

    use super::*;

    #[test]
    fn what_is_known_of_a_parked_task_goes_along_with_its_message() {
        let since = Timestamp::from_unix_timestamp(1_800_000_000).unwrap();
        for again in [
            Again::Released,
            Again::Parked(ParkedBefore { since, tries: 3 }),
        ] {
            assert_eq!(Again::parse_attribute(&again.to_string()), again);
        }
        assert_eq!(Again::parse_attribute("parked soon"), Again::Released);
    }

    fn target(account: &str, bucket: &str, key: &str) -> TargetKey {
        let destination = BucketRef {
            account: account.to_owned(),
            bucket: Bucket::try_from(bucket).unwrap(),
        };
        TargetKey {
            destination,
            key: Key::try_from(key).unwrap(),
        }
    }

    #[test]
    fn a_group_is_a_key_of_a_bucket_whatever_its_account_is_called() {
        let group = group_of(&target("a", "replicas", "report"));
        assert_eq!(group, group_of(&target("b", "replicas", "report")));
        assert_ne!(group, group_of(&target("a", "replicas", "report2")));
        assert_ne!(group, group_of(&target("a", "others", "report")));
        // SQS takes 128 characters, letters and digits among them.
        assert!(
            group.len() == 64 && group.bytes().all(|byte| byte.is_ascii_hexdigit()),
            "{group}"
        );
    }
}
