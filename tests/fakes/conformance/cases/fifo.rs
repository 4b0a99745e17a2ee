//! FIFO queues: what they take, what they take once, what comes with a message, and what an old
//! receipt handle may do.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::operation::send_message::SendMessageOutput;
use aws_sdk_sqs::types::{
    MessageSystemAttributeName, QueueAttributeName, SendMessageBatchRequestEntry,
};

use super::*;
use crate::ground::{Queue, receipt, said, system, words};

pub(super) const CASES: &[Case] = &[
    case!(
        "CreateQueue of a name with .fifo without FifoQueue, and without .fifo with it",
        CREATE_QUEUE,
        wrong_name,
        "400 InvalidParameterValue, 400 InvalidParameterValue"
    ),
    case!(
        "what GetQueueAttributes tells of a FIFO queue",
        QUEUE_ATTRIBUTES,
        told,
        "FifoQueue true, ContentBasedDeduplication false, DeduplicationScope queue, FifoThroughputLimit perQueue"
    ),
    case!(
        "what repeats a MessageDeduplicationId is taken and does not come again, though the first was deleted",
        EXACTLY_ONCE,
        repeated,
        "the same message, then a1, then nothing, the same message, then nothing"
    ),
    case!(
        "what repeats a MessageDeduplicationId in another group does not come either",
        EXACTLY_ONCE,
        repeated_elsewhere,
        "the same message, 1 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "under DeduplicationScope messageGroup it does",
        EXACTLY_ONCE,
        scoped,
        "another message, 2 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "under ContentBasedDeduplication the body is the MessageDeduplicationId",
        EXACTLY_ONCE,
        by_content,
        "the same message, 1 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "SendMessage without MessageGroupId, without MessageDeduplicationId, with DelaySeconds 1, with DelaySeconds 0",
        SEND,
        refused,
        "400 MissingParameter, 400 InvalidParameterValue, 400 InvalidParameterValue, ok"
    ),
    case!(
        "a MessageGroupId with a space, of 129 letters, of 128",
        SEND,
        wrong_group,
        "400 InvalidParameterValue, 400 InvalidParameterValue, ok"
    ),
    case!(
        "a MessageDeduplicationId for a standard queue",
        SEND,
        standard,
        "400 InvalidParameterValue"
    ),
    case!(
        "SendMessageBatch with a message that repeats another in it",
        SEND_MANY,
        batch,
        "x: ok, y: ok, then x"
    ),
    case!(
        "SendMessageBatch with an entry without MessageGroupId",
        FIFO_SEEN,
        batch_without_group,
        "400 InvalidParameterValue, then nothing"
    ),
    case!(
        "a message comes with its group, MessageDeduplicationId and sequence number",
        RECEIVE,
        attributes,
        "a, a1, the sequence number that SendMessage told"
    ),
    case!(
        "DeleteMessage in a FIFO queue when the visibility is over",
        HANDLES_WRONG,
        delete_by_expired,
        "400 InvalidParameterValue, 1 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "DeleteMessage in a FIFO queue by a receipt handle that is not the newest",
        HANDLES_WRONG,
        delete_by_old,
        "400 InvalidParameterValue, 0 visible, 1 hidden, 0 delayed"
    ),
    case!(
        "DeleteMessage in a FIFO queue twice",
        FORGET,
        delete_twice,
        "ok, ok, 0 visible, 0 hidden, 0 delayed"
    ),
];

async fn wrong_name(ground: Ground) -> String {
    let make = |name: &str| ground.way.sqs().create_queue().queue_name(name);
    let without = make("conformance-wrong.fifo").send().await;
    let with = make("conformance-wrong")
        .attributes(QueueAttributeName::FifoQueue, "true")
        .send()
        .await;
    format!("{}, {}", said(&without), said(&with))
}

async fn told(ground: Ground) -> String {
    let queue = ground.fifo().await;
    let ask = queue
        .sqs
        .get_queue_attributes()
        .queue_url(&queue.url)
        .attribute_names(QueueAttributeName::All);
    let all = ask.send().await.unwrap().attributes.unwrap_or_default();
    let names = [
        QueueAttributeName::FifoQueue,
        QueueAttributeName::ContentBasedDeduplication,
        QueueAttributeName::DeduplicationScope,
        QueueAttributeName::FifoThroughputLimit,
    ];
    let told = names.map(|name| format!("{name} {}", all.get(&name).cloned().unwrap_or_default()));
    told.join(", ")
}

/// Says whether two requests to send made one message.
fn same(first: &SendMessageOutput, second: &SendMessageOutput) -> &'static str {
    if first.message_id == second.message_id {
        "the same message"
    } else {
        "another message"
    }
}

async fn send(queue: &Queue, group: &str, deduplication: Option<&str>) -> SendMessageOutput {
    queue.post(Some(group), deduplication, None).await.unwrap()
}

async fn repeated(ground: Ground) -> String {
    let queue = ground.fifo().await;
    let (first, second) = (
        send(&queue, "a", Some("a1")).await,
        send(&queue, "a", Some("a1")).await,
    );
    let came = queue.take(10).await;
    queue.delete(receipt(&came[0])).await;
    let then = words(&queue.take(10).await);
    let third = send(&queue, "a", Some("a1")).await;
    let told = format!(
        "{}, then {}, then {then}",
        same(&first, &second),
        words(&came)
    );
    format!(
        "{told}, {}, then {}",
        same(&first, &third),
        words(&queue.take(10).await)
    )
}

async fn repeated_elsewhere(ground: Ground) -> String {
    in_two_groups(&ground.fifo().await).await
}

async fn scoped(ground: Ground) -> String {
    let attributes = HashMap::from([
        (QueueAttributeName::FifoQueue, "true".to_owned()),
        (
            QueueAttributeName::DeduplicationScope,
            "messageGroup".to_owned(),
        ),
        (
            QueueAttributeName::FifoThroughputLimit,
            "perMessageGroupId".to_owned(),
        ),
    ]);
    in_two_groups(&ground.queue_of("scoped.fifo", attributes).await).await
}

async fn in_two_groups(queue: &Queue) -> String {
    let (first, second) = (
        send(queue, "a", Some("1")).await,
        send(queue, "b", Some("1")).await,
    );
    format!("{}, {}", same(&first, &second), queue.counts().await)
}

async fn by_content(ground: Ground) -> String {
    let attributes = HashMap::from([
        (QueueAttributeName::FifoQueue, "true".to_owned()),
        (
            QueueAttributeName::ContentBasedDeduplication,
            "true".to_owned(),
        ),
    ]);
    let queue = ground.queue_of("content.fifo", attributes).await;
    let (first, second) = (send(&queue, "a", None).await, send(&queue, "a", None).await);
    format!("{}, {}", same(&first, &second), queue.counts().await)
}

async fn refused(ground: Ground) -> String {
    let queue = ground.fifo().await;
    let words = [
        said(&queue.post(None, Some("1"), None).await),
        said(&queue.post(Some("a"), None, None).await),
        said(&queue.post(Some("a"), Some("2"), Some(1)).await),
        said(&queue.post(Some("a"), Some("3"), Some(0)).await),
    ];
    words.join(", ")
}

async fn wrong_group(ground: Ground) -> String {
    let (queue, mut told) = (ground.fifo().await, Vec::new());
    for group in ["a b".to_owned(), "a".repeat(129), "a".repeat(128)] {
        told.push(said(&queue.post(Some(&group), Some("1"), None).await));
    }
    told.join(", ")
}

async fn standard(ground: Ground) -> String {
    said(&ground.queue().await.post(None, Some("1"), None).await)
}

fn entry(id: &str, group: Option<&str>) -> SendMessageBatchRequestEntry {
    let entry = SendMessageBatchRequestEntry::builder()
        .id(id)
        .message_body(id)
        .message_deduplication_id("same");
    entry
        .set_message_group_id(group.map(str::to_owned))
        .build()
        .unwrap()
}

async fn batch(ground: Ground) -> String {
    let queue = ground.fifo().await;
    let ask = queue
        .sqs
        .send_message_batch()
        .queue_url(&queue.url)
        .entries(entry("x", Some("a")));
    let answer = ask.entries(entry("y", Some("a"))).send().await.unwrap();
    let sent: Vec<String> = answer
        .successful
        .iter()
        .map(|sent| format!("{}: ok", sent.id))
        .collect();
    format!("{}, then {}", sent.join(", "), words(&queue.take(10).await))
}

async fn batch_without_group(ground: Ground) -> String {
    let queue = ground.fifo().await;
    let ask = queue
        .sqs
        .send_message_batch()
        .queue_url(&queue.url)
        .entries(entry("x", Some("a")));
    let answer = said(&ask.entries(entry("y", None)).send().await);
    format!("{answer}, then {}", words(&queue.take(10).await))
}

async fn attributes(ground: Ground) -> String {
    let queue = ground.fifo().await;
    let sent = send(&queue, "a", Some("a1")).await;
    let came = queue.take(1).await;
    let told = |name| system(&came[0], &name);
    let sequence = told(MessageSystemAttributeName::SequenceNumber);
    let is = if sent.sequence_number == Some(sequence) {
        "the"
    } else {
        "not the"
    };
    let (group, deduplication) = (
        told(MessageSystemAttributeName::MessageGroupId),
        told(MessageSystemAttributeName::MessageDeduplicationId),
    );
    format!("{group}, {deduplication}, {is} sequence number that SendMessage told")
}

async fn delete_by_expired(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1"]).await;
    let held = queue.take_for(1, 1, 0).await;
    // Until it shows again, which the store may do a little later.
    tokio::time::sleep(Duration::from_millis(2500)).await;
    let word = queue.delete(receipt(&held[0])).await;
    format!("{word}, {}", queue.counts().await)
}

async fn delete_by_old(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1"]).await;
    let old = queue.take(1).await;
    queue.hide(receipt(&old[0]), 0).await;
    queue.take_late(1).await;
    let word = queue.delete(receipt(&old[0])).await;
    format!("{word}, {}", queue.counts().await)
}

async fn delete_twice(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1"]).await;
    let held = queue.take(1).await;
    let (first, second) = (
        queue.delete(receipt(&held[0])).await,
        queue.delete(receipt(&held[0])).await,
    );
    format!("{first}, {second}, {}", queue.counts().await)
}
