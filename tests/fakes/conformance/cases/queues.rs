//! Queues: what is sent, when it can be received, and what comes with it.

use std::collections::HashMap;

use aws_sdk_sqs::types::{
    Message, MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName,
};
use serde_json::json;

use super::*;
use crate::ground::{receipt, said};

pub(super) const CASES: &[Case] = &[
    case!(
        "a received message is hidden",
        VISIBILITY,
        hidden,
        "then 0, 0 visible, 1 hidden, 0 delayed"
    ),
    case!(
        "a message that nobody deleted is received again, under another receipt handle",
        HANDLES,
        again,
        "the same message, another handle"
    ),
    case!(
        "ChangeMessageVisibility to 0 shows a message at once",
        VISIBILITY,
        shown,
        "1 visible, 0 hidden, 0 delayed"
    ),
    case!(
        "ApproximateReceiveCount of a message that is received twice",
        RECEIVE,
        receive_count,
        "1, 2"
    ),
    case!(
        "system attributes come to those who ask",
        RECEIVE,
        system_attributes,
        "none, ApproximateReceiveCount"
    ),
    case!(
        "message attributes come to those who ask, with their digest",
        RECEIVE,
        message_attributes,
        "none, Reason=DstBucketNotFound, the digest that SendMessage told: true"
    ),
    case!(
        "ReceiveMessage hands out at most ten, and fewer on request",
        RECEIVE,
        at_most,
        "10, 3 at most"
    ),
    case!(
        "MaxNumberOfMessages 0, 11",
        RECEIVE,
        wrong_count,
        "400 InvalidParameterValue, 400 InvalidParameterValue"
    ),
    case!(
        "WaitTimeSeconds 21",
        RECEIVE,
        wrong_wait,
        "400 InvalidParameterValue"
    ),
    case!(
        "VisibilityTimeout 43201 at ReceiveMessage",
        RECEIVE,
        wrong_visibility,
        "400 InvalidParameterValue"
    ),
    case!(
        "a long poll ends when something is sent",
        RECEIVE,
        long_poll,
        "late"
    ),
    case!(
        "DelaySeconds hides a message that nobody received",
        SEND,
        delayed,
        "0 visible, 0 hidden, 1 delayed"
    ),
    case!(
        "DelaySeconds 901",
        SEND,
        wrong_delay,
        "400 InvalidParameterValue"
    ),
    case!(
        "SendMessage of 1 MiB, and of a byte more",
        SEND,
        too_long,
        "ok, 400 InvalidParameterValue"
    ),
    case!(
        "SendMessage of a character that XML cannot hold",
        SEND,
        wrong_content,
        "400 InvalidMessageContents"
    ),
    case!(
        "a queue that is not there: GetQueueUrl, ReceiveMessage, DeleteMessageBatch, SendMessage",
        QUEUE_URL,
        nowhere,
        "400 NonExistentQueue, 400 NonExistentQueue, 400 NonExistentQueue, 400 NonExistentQueue"
    ),
    case!(
        "a message that was received as often as maxReceiveCount says goes to the dead-letter queue",
        DEAD_LETTERS,
        dead_letter,
        "received twice, then 0 there and 1 in the dead-letter queue"
    ),
];

async fn hidden(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    queue.receive().await;
    format!("then {}, {}", queue.visible().await, queue.counts().await)
}

async fn again(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    let (first, second) = (queue.receive_for(1).await, queue.receive().await);
    let is = |same: bool| if same { "the same" } else { "another" };
    let (message, handle) = (
        first.message_id == second.message_id,
        receipt(&first) == receipt(&second),
    );
    format!("{} message, {} handle", is(message), is(handle))
}

async fn shown(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    queue.hide(receipt(&queue.receive().await), 0).await;
    queue.counts().await
}

async fn receive_count(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a"]).await;
    let first = queue.receive().await;
    queue.hide(receipt(&first), 0).await;
    [first, queue.receive().await]
        .iter()
        .map(receives)
        .collect::<Vec<_>>()
        .join(", ")
}

fn receives(message: &Message) -> String {
    let attributes = message.attributes.clone().unwrap_or_default();
    attributes
        .get(&MessageSystemAttributeName::ApproximateReceiveCount)
        .cloned()
        .unwrap_or_default()
}

async fn system_attributes(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a", "b"]).await;
    let told = |message: &Message| {
        let names: Vec<String> = message
            .attributes
            .iter()
            .flatten()
            .map(|(name, _)| name.to_string())
            .collect();
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(" ")
        }
    };
    let plain = queue
        .sqs
        .receive_message()
        .queue_url(&queue.url)
        .wait_time_seconds(20)
        .send()
        .await
        .unwrap();
    format!(
        "{}, {}",
        told(&plain.messages()[0]),
        told(&queue.receive().await)
    )
}

async fn message_attributes(ground: Ground) -> String {
    let queue = ground.queue().await;
    let value = MessageAttributeValue::builder()
        .data_type("String")
        .string_value("DstBucketNotFound")
        .build()
        .unwrap();
    let send = queue
        .sqs
        .send_message()
        .queue_url(&queue.url)
        .message_body("a")
        .message_attributes("Reason", value);
    let sent = send.send().await.unwrap();
    let told = |message: &Message| {
        let given = message.message_attributes.iter().flatten();
        let given: Vec<String> = given
            .map(|(name, value)| format!("{name}={}", value.string_value().unwrap_or_default()))
            .collect();
        if given.is_empty() {
            "none".to_owned()
        } else {
            given.join(" ")
        }
    };
    let first = queue.receive().await;
    queue.hide(receipt(&first), 0).await;
    let ask = queue
        .sqs
        .receive_message()
        .queue_url(&queue.url)
        .message_attribute_names("All")
        .wait_time_seconds(20);
    let asked = ask.send().await.unwrap().messages.unwrap_or_default();
    let same = asked[0].md5_of_message_attributes.is_some()
        && asked[0].md5_of_message_attributes == sent.md5_of_message_attributes;
    format!(
        "{}, {}, the digest that SendMessage told: {same}",
        told(&first),
        told(&asked[0])
    )
}

async fn at_most(ground: Ground) -> String {
    let queue = ground.queue().await;
    queue.send(&["a"; 15]).await;
    let all = queue.visible().await;
    let ask = queue
        .sqs
        .receive_message()
        .queue_url(&queue.url)
        .max_number_of_messages(3)
        .wait_time_seconds(20);
    let fewer = ask.send().await.unwrap().messages.unwrap_or_default().len();
    format!(
        "{all}, {}",
        if fewer <= 3 {
            "3 at most"
        } else {
            "more than 3"
        }
    )
}

async fn wrong_count(ground: Ground) -> String {
    let queue = ground.queue().await;
    let ask = |count| {
        queue
            .sqs
            .receive_message()
            .queue_url(&queue.url)
            .max_number_of_messages(count)
            .send()
    };
    format!("{}, {}", said(&ask(0).await), said(&ask(11).await))
}

async fn wrong_wait(ground: Ground) -> String {
    let queue = ground.queue().await;
    said(
        &queue
            .sqs
            .receive_message()
            .queue_url(&queue.url)
            .wait_time_seconds(21)
            .send()
            .await,
    )
}

async fn wrong_visibility(ground: Ground) -> String {
    let queue = ground.queue().await;
    said(
        &queue
            .sqs
            .receive_message()
            .queue_url(&queue.url)
            .visibility_timeout(43_201)
            .send()
            .await,
    )
}

async fn long_poll(ground: Ground) -> String {
    let queue = ground.queue().await;
    let late = async {
        tokio::time::sleep(std::time::Duration::from_millis(500)).await;
        queue.send(&["late"]).await;
    };
    let (message, ()) = tokio::join!(queue.receive(), late);
    message.body.unwrap_or_default()
}

async fn delayed(ground: Ground) -> String {
    let queue = ground.queue().await;
    let send = queue
        .sqs
        .send_message()
        .queue_url(&queue.url)
        .message_body("a")
        .delay_seconds(900);
    send.send().await.unwrap();
    queue.counts().await
}

async fn wrong_delay(ground: Ground) -> String {
    let queue = ground.queue().await;
    said(
        &queue
            .sqs
            .send_message()
            .queue_url(&queue.url)
            .message_body("a")
            .delay_seconds(901)
            .send()
            .await,
    )
}

async fn too_long(ground: Ground) -> String {
    let queue = ground.queue().await;
    let send = |bytes| {
        queue
            .sqs
            .send_message()
            .queue_url(&queue.url)
            .message_body("x".repeat(bytes))
            .send()
    };
    format!(
        "{}, {}",
        said(&send(1 << 20).await),
        said(&send((1 << 20) + 1).await)
    )
}

async fn wrong_content(ground: Ground) -> String {
    let queue = ground.queue().await;
    said(
        &queue
            .sqs
            .send_message()
            .queue_url(&queue.url)
            .message_body("a\u{1}b")
            .send()
            .await,
    )
}

async fn nowhere(ground: Ground) -> String {
    let queue = ground.queue().await;
    let (sqs, url) = (&queue.sqs, format!("{}-not", queue.url));
    let words = [
        said(&sqs.get_queue_url().queue_name("not-there").send().await),
        said(&sqs.receive_message().queue_url(&url).send().await),
        said(
            &sqs.delete_message_batch()
                .queue_url(&url)
                .entries(entry())
                .send()
                .await,
        ),
        said(
            &sqs.send_message()
                .queue_url(&url)
                .message_body("a")
                .send()
                .await,
        ),
    ];
    words.join(", ")
}

fn entry() -> aws_sdk_sqs::types::DeleteMessageBatchRequestEntry {
    aws_sdk_sqs::types::DeleteMessageBatchRequestEntry::builder()
        .id("a")
        .receipt_handle("b")
        .build()
        .unwrap()
}

async fn dead_letter(ground: Ground) -> String {
    let dead = ground.queue_of("dead", HashMap::new()).await;
    let policy =
        json!({ "deadLetterTargetArn": dead.arn().await, "maxReceiveCount": 2 }).to_string();
    let attributes = HashMap::from([(QueueAttributeName::RedrivePolicy, policy)]);
    let queue = ground.queue_of("live", attributes).await;
    queue.send(&["a"]).await;
    for _ in 0..2 {
        queue.hide(receipt(&queue.receive().await), 0).await;
    }
    let left = queue.visible().await;
    format!(
        "received twice, then {left} there and {} in the dead-letter queue",
        dead.visible().await
    )
}
