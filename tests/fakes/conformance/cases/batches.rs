//! Batches: each entry for itself, and what is wrong with them as a whole.

use super::*;
use crate::ground::{Queue, receipt};

pub(super) const CASES: &[Case] = &[
    case!(
        "DeleteMessageBatch with an entry that is no receipt handle",
        FORGET_MANY,
        delete_partly,
        "a: ok, b: ReceiptHandleIsInvalid, 0 visible, 1 hidden, 0 delayed"
    ),
    case!(
        "DeleteMessageBatch with an entry that was deleted before",
        FORGET_MANY,
        delete_again,
        "a: ok, b: ok, 0 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "ChangeMessageVisibilityBatch with an entry that is no receipt handle, and one that was deleted",
        HIDE_MANY,
        hide_partly,
        "a: ok, b: ReceiptHandleIsInvalid, c: InvalidParameterValue"
    ),
    case!(
        "a batch of ten",
        FORGET_MANY,
        ten,
        "0 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "a batch of eleven: DeleteMessageBatch, ChangeMessageVisibilityBatch",
        FORGET_MANY,
        eleven,
        "400 TooManyEntriesInBatchRequest, 400 TooManyEntriesInBatchRequest"
    ),
    case!(
        "a batch of none: DeleteMessageBatch, ChangeMessageVisibilityBatch",
        FORGET_MANY,
        none,
        "400 EmptyBatchRequest, 400 EmptyBatchRequest"
    ),
    case!(
        "two entries with one id: DeleteMessageBatch, ChangeMessageVisibilityBatch",
        FORGET_MANY,
        one_id,
        "400 BatchEntryIdsNotDistinct, 400 BatchEntryIdsNotDistinct"
    ),
    case!(
        "an entry whose id has a space",
        FORGET_MANY,
        wrong_id,
        "400 InvalidBatchEntryId"
    ),
];

// As many as may be, and one.
const IDS: [&str; 11] = ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"];

/// A queue, and the receipt handles of so many messages in it.
async fn received(ground: &Ground, messages: usize) -> (Queue, Vec<String>) {
    let queue = ground.queue().await;
    queue.send(&vec!["a"; messages]).await;
    let mut handles = Vec::new();
    for _ in 0..messages {
        handles.push(receipt(&queue.receive().await).to_owned());
    }
    (queue, handles)
}

async fn delete_partly(ground: Ground) -> String {
    let (queue, handles) = received(&ground, 2).await;
    let told = queue
        .delete_all(&[("a", &handles[0]), ("b", "nonsense")])
        .await;
    format!("{told}, {}", queue.counts().await)
}

async fn delete_again(ground: Ground) -> String {
    let (queue, handles) = received(&ground, 2).await;
    queue.delete(&handles[1]).await;
    let told = queue
        .delete_all(&[("a", &handles[0]), ("b", &handles[1])])
        .await;
    format!("{told}, {}", queue.counts().await)
}

async fn hide_partly(ground: Ground) -> String {
    let (queue, handles) = received(&ground, 2).await;
    queue.delete(&handles[1]).await;
    queue
        .hide_all(&[("a", &handles[0]), ("b", "nonsense"), ("c", &handles[1])])
        .await
}

async fn ten(ground: Ground) -> String {
    let (queue, handles) = received(&ground, 10).await;
    let batch: Vec<(&str, &str)> = IDS
        .into_iter()
        .zip(handles.iter().map(String::as_str))
        .collect();
    queue.delete_all(&batch).await;
    queue.counts().await
}

async fn both(queue: &Queue, batch: &[(&str, &str)]) -> String {
    format!(
        "{}, {}",
        queue.delete_all(batch).await,
        queue.hide_all(batch).await
    )
}

async fn eleven(ground: Ground) -> String {
    let (queue, handles) = received(&ground, 1).await;
    both(&queue, &IDS.map(|id| (id, handles[0].as_str()))).await
}

async fn none(ground: Ground) -> String {
    both(&ground.queue().await, &[]).await
}

async fn one_id(ground: Ground) -> String {
    let (queue, handles) = received(&ground, 1).await;
    both(&queue, &[("a", &handles[0]), ("a", &handles[0])]).await
}

async fn wrong_id(ground: Ground) -> String {
    let (queue, handles) = received(&ground, 1).await;
    queue.delete_all(&[("a b", &handles[0])]).await
}
