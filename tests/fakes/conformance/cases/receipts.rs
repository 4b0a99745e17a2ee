//! Receipt handles: what an old one may do, one whose time is over, one of a message that is gone,
//! and one that never was.

use super::*;
use crate::ground::{Queue, receipt};

pub(super) const CASES: &[Case] = &[
    case!(
        "DeleteMessage twice",
        FORGET,
        twice,
        "ok, ok, 0 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "DeleteMessage by a receipt handle that is not the newest",
        FORGET,
        delete_by_old,
        "ok, 0 visible, 1 hidden, 0 delayed"
    ),
    case!(
        "DeleteMessage by the newest receipt handle, when its visibility is over",
        FORGET,
        delete_by_expired,
        "ok, 0 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "DeleteMessage by no receipt handle at all",
        FORGET,
        delete_by_nonsense,
        "400 ReceiptHandleIsInvalid"
    ),
    case!(
        "ChangeMessageVisibility by a receipt handle that is not the newest",
        HIDE,
        hide_by_old,
        "400 InvalidParameterValue"
    ),
    case!(
        "ChangeMessageVisibility when the visibility is over",
        HIDE,
        hide_by_expired,
        "400 MessageNotInflight, 1 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "ChangeMessageVisibility of a deleted message",
        HIDE,
        hide_deleted,
        "400 InvalidParameterValue"
    ),
    case!(
        "ChangeMessageVisibility by no receipt handle at all",
        HIDE,
        hide_by_nonsense,
        "400 ReceiptHandleIsInvalid"
    ),
    case!(
        "ChangeMessageVisibility to -1, 43201, 40000, 0 seconds",
        HIDE,
        range,
        "400 InvalidParameterValue, 400 InvalidParameterValue, ok, ok"
    ),
    case!(
        "ChangeMessageVisibility to 12 hours from now, a second after the receipt",
        VISIBILITY,
        beyond,
        "400 InvalidParameterValue"
    ),
];

/// A queue with a message that is received twice, and the older receipt handle.
async fn superseded(ground: &Ground) -> (Queue, String) {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    let old = receipt(&queue.receive().await).to_owned();
    queue.hide(&old, 0).await;
    queue.receive().await;
    (queue, old)
}

/// A queue with a message that shows again, and its receipt handle.
async fn expired(ground: &Ground) -> (Queue, String) {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    let handle = receipt(&queue.receive_for(1).await).to_owned();
    while !queue.counts().await.starts_with('1') {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
    }
    (queue, handle)
}

/// A queue of which the only message was deleted, and its receipt handle.
async fn deleted(ground: &Ground) -> (Queue, String) {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    let handle = receipt(&queue.receive().await).to_owned();
    queue.delete(&handle).await;
    (queue, handle)
}

async fn twice(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    let handle = receipt(&queue.receive().await).to_owned();
    let words = [
        queue.delete(&handle).await,
        queue.delete(&handle).await,
        queue.counts().await,
    ];
    words.join(", ")
}

async fn delete_by_old(ground: Ground) -> String {
    let (queue, old) = superseded(&ground).await;
    format!("{}, {}", queue.delete(&old).await, queue.counts().await)
}

async fn delete_by_expired(ground: Ground) -> String {
    let (queue, handle) = expired(&ground).await;
    format!("{}, {}", queue.delete(&handle).await, queue.counts().await)
}

async fn delete_by_nonsense(ground: Ground) -> String {
    ground.queue().await.delete("nonsense").await
}

async fn hide_by_old(ground: Ground) -> String {
    let (queue, old) = superseded(&ground).await;
    queue.hide(&old, 60).await
}

async fn hide_by_expired(ground: Ground) -> String {
    let (queue, handle) = expired(&ground).await;
    format!(
        "{}, {}",
        queue.hide(&handle, 60).await,
        queue.counts().await
    )
}

async fn hide_deleted(ground: Ground) -> String {
    let (queue, handle) = deleted(&ground).await;
    queue.hide(&handle, 60).await
}

async fn hide_by_nonsense(ground: Ground) -> String {
    ground.queue().await.hide("nonsense", 60).await
}

async fn range(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    let handle = receipt(&queue.receive().await).to_owned();
    let mut words = Vec::new();
    for seconds in [-1, 43_201, 40_000, 0] {
        words.push(queue.hide(&handle, seconds).await);
    }
    words.join(", ")
}

async fn beyond(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    let handle = receipt(&queue.receive().await).to_owned();
    tokio::time::sleep(std::time::Duration::from_millis(1100)).await;
    queue.hide(&handle, 43_200).await
}
