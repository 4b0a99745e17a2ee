//! The operations of SQS's JSON protocol: what is asked, done and answered.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::Fake;
use super::message::{Attributes, Content, Sending, attributes_digest, body_digest};
use super::queue::Received;
use super::refusal::{Batch, Refusal};

/// An operation's answer.
pub(super) type Done = Result<Value, Refusal>;

// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
const ENTRIES_MAX: usize = 10;
const BODY_BYTES_MAX: usize = 1 << 20;
const WAIT_MAX: u64 = 20;
const DELAY_MAX: u64 = 900;
const HIDDEN_MAX: u64 = 43_200;
const ID_MAX: usize = 80;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Receive {
    queue_url: String,
    max_number_of_messages: Option<usize>,
    visibility_timeout: Option<u64>,
    #[serde(default)]
    wait_time_seconds: u64,
    #[serde(default)]
    attribute_names: Vec<String>,
    #[serde(default)]
    message_system_attribute_names: Vec<String>,
    #[serde(default)]
    message_attribute_names: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct One<T> {
    queue_url: String,
    #[serde(flatten)]
    entry: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Many<T> {
    queue_url: String,
    #[serde(default = "Vec::new")]
    entries: Vec<Entry<T>>,
}

#[derive(Deserialize)]
struct Entry<T> {
    #[serde(rename = "Id")]
    id: String,
    #[serde(flatten)]
    entry: T,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Receipt {
    receipt_handle: String,
    #[serde(default)]
    visibility_timeout: i64,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Sent {
    message_body: String,
    #[serde(default)]
    delay_seconds: u64,
    #[serde(default)]
    message_attributes: Attributes,
    message_group_id: Option<String>,
    message_deduplication_id: Option<String>,
}

impl Fake {
    /// Does what a request asks for.
    pub(super) async fn perform(&self, target: &str, body: &Bytes) -> Done {
        match target.strip_prefix("AmazonSQS.").unwrap_or(target) {
            "ReceiveMessage" => self.poll(read(body)?).await,
            "CreateQueue" => self.make(&read(body)?),
            "GetQueueUrl" => self.find(&read(body)?),
            "GetQueueAttributes" => self.describe(&read(body)?),
            "SendMessage" => self.one(&read(body)?, |fake, queue, sent| fake.take(queue, sent)),
            "SendMessageBatch" => self.take_all(&read(body)?),
            "DeleteMessage" => self.one(&read(body)?, delete),
            "DeleteMessageBatch" => self.many(&read(body)?, delete),
            "ChangeMessageVisibility" => self.one(&read(body)?, hide),
            "ChangeMessageVisibilityBatch" => self.many(&read(body)?, hide),
            other => Err(Refusal::operation(other)),
        }
    }

    /// Receives, and waits for something to receive as long as asked for.
    async fn poll(&self, asked: Receive) -> Done {
        let count_max = within(
            "MaxNumberOfMessages",
            asked.max_number_of_messages.unwrap_or(1),
            1,
            ENTRIES_MAX,
        )?;
        let wait = within("WaitTimeSeconds", asked.wait_time_seconds, 0, WAIT_MAX)?;
        let until = Instant::now() + Duration::from_secs(wait);
        let hidden = asked
            .visibility_timeout
            .map(|hidden| within("VisibilityTimeout", hidden, 0, HIDDEN_MAX));
        let hidden = hidden.transpose()?.map(Duration::from_secs);
        loop {
            let mut changed = std::pin::pin!(self.shared.changed.notified());
            changed.as_mut().enable();
            let received = match self.receive(queue_name(&asked.queue_url), count_max, hidden) {
                // A long poll is not told of the limit; it waits.
                Err(refusal) if refusal == Refusal::over_limit() && wait > 0 => {
                    self.note(queue_name(&asked.queue_url), &refusal)?;
                    Ok(Vec::new())
                }
                other => other,
            }?;
            let now = Instant::now();
            if !received.is_empty() || now >= until {
                return Ok(shown(&asked, &received));
            }
            let next = self.queue(queue_name(&asked.queue_url), |queue| queue.next(now))?;
            let wake = next.map_or(until, |next| next.min(until));
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(wake) => {}
            }
        }
    }

    fn one<T>(&self, asked: &One<T>, act: impl Fn(&Self, &str, &T) -> Done) -> Done {
        act(self, queue_name(&asked.queue_url), &asked.entry)
    }

    /// Does each entry for itself: those that fail do not hinder the others.
    fn many<T>(&self, asked: &Many<T>, act: impl Fn(&Self, &str, &T) -> Done) -> Done {
        let name = queue_name(&asked.queue_url);
        let ids: BTreeSet<&str> = asked
            .entries
            .iter()
            .map(|entry| entry.id.as_str())
            .collect();
        match asked.entries.len() {
            0 => return Err(Refusal::batch(Batch::Empty)),
            count if count > ENTRIES_MAX => return Err(Refusal::batch(Batch::TooMany)),
            count if count > ids.len() => return Err(Refusal::batch(Batch::NotDistinct)),
            _ if !ids.iter().all(|id| is_id(id)) => return Err(Refusal::batch(Batch::WrongId)),
            _ => {}
        }
        let (mut successful, mut failed) = (Vec::new(), Vec::new());
        for Entry { id, entry } in &asked.entries {
            if self.fails(name)? {
                failed.push(failure(id, "InternalError", "by chance", false));
                continue;
            }
            match act(self, name, entry) {
                Ok(mut answer) => {
                    answer["Id"] = json!(id);
                    successful.push(answer);
                }
                Err(refusal) => {
                    self.note(name, &refusal)?;
                    failed.push(failure(id, refusal.code, &refusal.message, true));
                }
            }
        }
        Ok(json!({ "Successful": successful, "Failed": failed }))
    }

    /// Writes down that something was refused.
    fn note(&self, queue: &str, refusal: &Refusal) -> Result<(), Refusal> {
        self.queue(queue, |queue| queue.refused.push(refusal.message.clone()))
    }

    fn take(&self, queue: &str, sent: &Sent) -> Done {
        if sent.message_body.len() > BODY_BYTES_MAX {
            return Err(Refusal::value(
                "MessageBody",
                "…",
                "Message must be shorter than 1048576 bytes.",
            ));
        }
        if sent
            .message_body
            .chars()
            .any(|character| !is_xml(character))
        {
            return Err(Refusal::contents());
        }
        let delay = within("DelaySeconds", sent.delay_seconds, 0, DELAY_MAX)?;
        let sending = Sending {
            body: sent.message_body.clone(),
            attributes: sent.message_attributes.clone(),
            delay: Duration::from_secs(delay),
            group: sent.message_group_id.clone(),
            deduplication: sent.message_deduplication_id.clone(),
        };
        let (id, sequence) = self.put(queue, sending)?;
        let mut answer =
            json!({ "MessageId": id, "MD5OfMessageBody": body_digest(&sent.message_body) });
        if let Some(digest) = attributes_digest(&sent.message_attributes) {
            answer["MD5OfMessageAttributes"] = json!(digest);
        }
        if let Some(sequence) = sequence {
            answer["SequenceNumber"] = json!(digits(sequence));
        }
        Ok(answer)
    }

    /// A batch to a FIFO queue is refused as a whole if an entry lacks one of the two ids:
    /// <https://github.com/localstack/localstack/blob/master/tests/aws/services/sqs/test_sqs.snapshot.json>
    fn take_all(&self, asked: &Many<Sent>) -> Done {
        self.queue(queue_name(&asked.queue_url), |queue| {
            let Some(fifo) = &queue.fifo else {
                return Ok(());
            };
            let mut entries = asked.entries.iter().map(|entry| &entry.entry);
            let lacks = entries.find_map(|sent| {
                fifo.check_ids(
                    sent.message_group_id.as_deref(),
                    sent.message_deduplication_id.as_deref(),
                )
                .err()
            });
            lacks.map_or(Ok(()), |refusal| Err(refusal.in_batch()))
        })??;
        self.many(asked, |fake, queue, sent| fake.take(queue, sent))
    }
}

fn delete(fake: &Fake, queue: &str, receipt: &Receipt) -> Done {
    fake.expire(queue, &receipt.receipt_handle)?;
    fake.queue(queue, |queue| {
        queue.delete(&receipt.receipt_handle, Instant::now())
    })?
    .map(|()| json!({}))
}

fn hide(fake: &Fake, queue: &str, receipt: &Receipt) -> Done {
    fake.expire(queue, &receipt.receipt_handle)?;
    let (now, seconds) = (Instant::now(), receipt.visibility_timeout);
    fake.queue(queue, |queue| {
        queue.hide(&receipt.receipt_handle, seconds, now)
    })?
    .map(|()| json!({}))
}

fn read<T: DeserializeOwned>(body: &Bytes) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::request(&error))
}

fn within<T: PartialOrd + std::fmt::Display>(
    parameter: &str,
    value: T,
    least: T,
    most: T,
) -> Result<T, Refusal> {
    if value < least || value > most {
        let reason = format!("Must be between {least} and {most}, if provided.");
        return Err(Refusal::value(parameter, &value.to_string(), &reason));
    }
    Ok(value)
}

/// Says whether a batch's entry may have this id:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_DeleteMessageBatchRequestEntry.html>
fn is_id(text: &str) -> bool {
    let may_be =
        |character: char| character.is_ascii_alphanumeric() || character == '-' || character == '_';
    (1..=ID_MAX).contains(&text.len()) && text.chars().all(may_be)
}

/// Says whether a message may have this character:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_SendMessage.html>
fn is_xml(character: char) -> bool {
    matches!(character, '\t' | '\n' | '\r' | '\u{20}'..='\u{d7ff}' | '\u{e000}'..='\u{fffd}' | '\u{10000}'..)
}

/// A queue's URL ends in its name.
pub(super) fn queue_name(url: &str) -> &str {
    url.rsplit('/').next().unwrap_or_default()
}

/// A sequence number has 20 digits:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-queue-message-identifiers.html>
fn digits(sequence: u64) -> String {
    format!("{sequence:020}")
}

fn failure(id: &str, code: &str, message: &str, sender: bool) -> Value {
    json!({ "Id": id, "Code": code, "Message": message, "SenderFault": sender })
}

pub(super) fn wanted(names: &[String], name: &str) -> bool {
    names
        .iter()
        .any(|wanted| wanted == "All" || wanted == ".*" || wanted == name)
}

fn shown(asked: &Receive, received: &[Received]) -> Value {
    if received.is_empty() {
        return json!({});
    }
    json!({ "Messages": received.iter().map(|message| as_shown(asked, message)).collect::<Vec<_>>() })
}

fn as_shown(asked: &Receive, Received { message, receipt }: &Received) -> Value {
    let Content {
        id,
        body,
        attributes,
        place,
    } = &message.content;
    let mut shown = json!({ "MessageId": id, "ReceiptHandle": receipt, "Body": body, "MD5OfBody": body_digest(body) });
    let first_received = message.first_received_ms.unwrap_or_default();
    let system = [
        ("ApproximateReceiveCount", message.receives.to_string()),
        ("SentTimestamp", message.sent_ms.to_string()),
        (
            "ApproximateFirstReceiveTimestamp",
            first_received.to_string(),
        ),
    ];
    let of_group = place.iter().flat_map(|place| {
        [
            ("MessageGroupId", place.group.clone()),
            ("MessageDeduplicationId", place.deduplication.clone()),
            ("SequenceNumber", digits(place.sequence)),
        ]
    });
    let names = [
        asked.attribute_names.as_slice(),
        &asked.message_system_attribute_names,
    ]
    .concat();
    let system: BTreeMap<&str, String> = system
        .into_iter()
        .chain(of_group)
        .filter(|(name, _)| wanted(&names, name))
        .collect();
    if !system.is_empty() {
        shown["Attributes"] = json!(system);
    }
    let mut given = attributes.clone();
    given.retain(|name, _| wanted(&asked.message_attribute_names, name));
    if let Some(digest) = attributes_digest(&given) {
        shown["MessageAttributes"] = json!(given);
        shown["MD5OfMessageAttributes"] = json!(digest);
    }
    shown
}
