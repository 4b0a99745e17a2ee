//! Groups of FIFO queues: what comes together and in which order, and what has to wait for what is
//! in flight.

use std::collections::HashMap;
use std::time::Duration;

use aws_sdk_sqs::types::QueueAttributeName;
use serde_json::json;

use super::*;
use crate::ground::{receipt, words};

pub(super) const CASES: &[Case] = &[
    case!(
        "as many messages of one group come as there are, and then those of the next",
        FIFO_LOGIC,
        together,
        "a1 a2, then b1 b2 c1"
    ),
    case!(
        "nothing of a group comes while a message of it is in flight",
        GROUPS,
        excluded,
        "a1, then b1, then nothing"
    ),
    case!(
        "a group is free when its message in flight is deleted",
        GROUPS,
        freed,
        "a1, then a2"
    ),
    case!(
        "of two in flight one is deleted: the other holds the group",
        GROUPS,
        partly_freed,
        "a1 a2, then nothing, then a3"
    ),
    case!(
        "a message whose visibility is over comes first in its group again",
        FIFO_LOGIC,
        over,
        "a1, then a1 (2) a2"
    ),
    case!(
        "ChangeMessageVisibility to 0 shows a message first in its group again",
        FIFO_LOGIC,
        shown,
        "a1, then a1 (2) a2"
    ),
    case!(
        "of two in flight the first is shown: it comes though the other is in flight",
        FIFO_SEEN,
        first_shown,
        "a1 (2)"
    ),
    case!(
        "of two in flight the second is shown: it waits for the first",
        GROUPS,
        second_shown,
        "nothing"
    ),
    case!(
        "a long poll ends when a group becomes free",
        GROUPS,
        long_poll,
        "a2"
    ),
    case!(
        "a message received too often goes to the dead-letter queue, and its group goes on",
        DEAD_LETTERS,
        dead_letter,
        "a1, then a2, and a1 of group a in the dead-letter queue"
    ),
];

async fn together(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1", "b1", "a2", "c1", "b2"]).await;
    let two = queue.take(2).await;
    format!("{}, then {}", words(&two), words(&queue.take(10).await))
}

async fn excluded(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1", "a2"]).await;
    let held = queue.take(1).await;
    queue.work(&["a3", "b1"]).await;
    let other = queue.take(10).await;
    format!(
        "{}, then {}, then {}",
        words(&held),
        words(&other),
        words(&queue.take(10).await)
    )
}

async fn freed(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1", "a2"]).await;
    let held = queue.take(1).await;
    queue.delete(receipt(&held[0])).await;
    format!(
        "{}, then {}",
        words(&held),
        words(&queue.take_late(10).await)
    )
}

async fn partly_freed(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1", "a2", "a3"]).await;
    let held = queue.take(2).await;
    queue.delete(receipt(&held[0])).await;
    let between = queue.take(10).await;
    queue.delete(receipt(&held[1])).await;
    format!(
        "{}, then {}, then {}",
        words(&held),
        words(&between),
        words(&queue.take_late(10).await)
    )
}

async fn over(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1", "a2"]).await;
    let held = queue.take_for(1, 1, 0).await;
    tokio::time::sleep(Duration::from_millis(1100)).await;
    format!(
        "{}, then {}",
        words(&held),
        words(&queue.take_late(10).await)
    )
}

async fn shown(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1", "a2"]).await;
    let held = queue.take(1).await;
    queue.hide(receipt(&held[0]), 0).await;
    format!(
        "{}, then {}",
        words(&held),
        words(&queue.take_late(10).await)
    )
}

async fn first_shown(ground: Ground) -> String {
    one_shown(ground, 0).await
}

async fn second_shown(ground: Ground) -> String {
    one_shown(ground, 1).await
}

async fn one_shown(ground: Ground, which: usize) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1", "a2"]).await;
    let held = queue.take(10).await;
    queue.hide(receipt(&held[which]), 0).await;
    words(&queue.take(10).await)
}

async fn long_poll(ground: Ground) -> String {
    let queue = ground.fifo().await;
    queue.work(&["a1", "a2"]).await;
    let held = queue.take(1).await;
    let late = async {
        tokio::time::sleep(Duration::from_millis(500)).await;
        queue.delete(receipt(&held[0])).await;
    };
    words(&tokio::join!(queue.take_late(10), late).0)
}

async fn dead_letter(ground: Ground) -> String {
    let fifo = (QueueAttributeName::FifoQueue, "true".to_owned());
    let dead = ground
        .queue_of("dead.fifo", HashMap::from([fifo.clone()]))
        .await;
    let policy =
        json!({ "deadLetterTargetArn": dead.arn().await, "maxReceiveCount": 1 }).to_string();
    let queue = ground
        .queue_of(
            "live.fifo",
            HashMap::from([fifo, (QueueAttributeName::RedrivePolicy, policy)]),
        )
        .await;
    queue.work(&["a1", "a2"]).await;
    let held = queue.take(1).await;
    queue.hide(receipt(&held[0]), 0).await;
    let next = queue.take_late(10).await;
    let left = dead.take_late(10).await;
    let group = crate::ground::system(
        &left[0],
        &aws_sdk_sqs::types::MessageSystemAttributeName::MessageGroupId,
    );
    let word = left[0].body.clone().unwrap_or_default();
    format!(
        "{}, then {}, and {word} of group {group} in the dead-letter queue",
        words(&held),
        words(&next)
    )
}
