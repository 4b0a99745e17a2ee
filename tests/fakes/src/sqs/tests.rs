//! Queues as clients of the SDK see them.

use std::time::Duration;

use aws_sdk_sqs::Client;
use aws_sdk_sqs::config::retry::RetryConfig;
use aws_sdk_sqs::config::{BehaviorVersion, Credentials, Region};
use aws_sdk_sqs::error::ProvideErrorMetadata;
use aws_sdk_sqs::types::{
    ChangeMessageVisibilityBatchRequestEntry, DeleteMessageBatchRequestEntry, Message,
    MessageAttributeValue, MessageSystemAttributeName, QueueAttributeName,
};
use tokio::time::{Instant, advance};

use super::*;
use crate::faults::{Effect, Fault, Place};
use crate::journal::Service;
use crate::net::Net;

mod fifo;

struct World {
    net: Net,
    fake: Fake,
    client: Client,
    url: String,
}

fn world(seed: u64) -> World {
    let fake = Fake::new(
        "http://sqs.sim",
        Clock::starting_at_unix(1_800_000_000),
        seed,
    );
    let net = Net::new(seed);
    net.route("sqs.sim", Service::Sqs, fake.clone());
    let config = aws_sdk_sqs::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("one", "secret", None, None, "test"))
        .endpoint_url("http://sqs.sim")
        .retry_config(RetryConfig::disabled())
        .http_client(net.client("one"));
    let url = fake.create("orders");
    World {
        client: Client::from_conf(config.build()),
        url,
        fake,
        net,
    }
}

const NOW: Duration = Duration::ZERO;

impl World {
    fn send(&self, bodies: &[&str]) {
        bodies
            .iter()
            .for_each(|body| drop(self.fake.send("orders", *body, NOW)));
    }

    async fn receive(&self, wait: i32) -> Vec<Message> {
        let ask = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(10);
        let ask = ask.message_system_attribute_names(MessageSystemAttributeName::All);
        ask.wait_time_seconds(wait)
            .visibility_timeout(60)
            .send()
            .await
            .unwrap()
            .messages
            .unwrap_or_default()
    }

    async fn bodies(&self) -> Vec<String> {
        self.receive(0)
            .await
            .into_iter()
            .map(|message| message.body.unwrap())
            .collect()
    }

    async fn delete(&self, receipt: &str) {
        self.client
            .delete_message()
            .queue_url(&self.url)
            .receipt_handle(receipt)
            .send()
            .await
            .unwrap();
    }

    /// Deletes in batches of one; returns how many entries failed.
    async fn delete_all(&self, messages: &[Message]) -> usize {
        let mut failed = 0;
        for message in messages {
            let entry = DeleteMessageBatchRequestEntry::builder()
                .id("x")
                .receipt_handle(receipt(message));
            let asked = self
                .client
                .delete_message_batch()
                .queue_url(&self.url)
                .entries(entry.build().unwrap());
            failed += asked.send().await.unwrap().failed.len();
        }
        failed
    }

    /// Returns the error's code, or nothing.
    async fn hide(&self, receipt: &str, seconds: i32) -> String {
        let ask = self
            .client
            .change_message_visibility()
            .queue_url(&self.url)
            .receipt_handle(receipt);
        match ask.visibility_timeout(seconds).send().await {
            Ok(_) => String::new(),
            Err(error) => error.code().unwrap().to_owned(),
        }
    }

    fn depth(&self) -> (usize, usize, usize) {
        let Depth {
            visible,
            hidden,
            delayed,
        } = self.fake.depth("orders");
        (visible, hidden, delayed)
    }
}

fn receipt(message: &Message) -> &str {
    message.receipt_handle.as_deref().unwrap()
}

fn receives(message: &Message) -> &str {
    &message.attributes.as_ref().unwrap()[&MessageSystemAttributeName::ApproximateReceiveCount]
}

const MINUTE: Duration = Duration::from_secs(60);

#[tokio::test(start_paused = true)]
async fn a_message_is_hidden_until_its_time_is_over_and_counts_its_deliveries() {
    let world = world(1);
    world.send(&["a"]);
    let first = world.receive(0).await;
    assert_eq!(
        (first[0].body.as_deref(), receives(&first[0])),
        (Some("a"), "1")
    );
    assert_eq!(
        first[0].md5_of_body.as_deref(),
        Some("0cc175b9c0f1b6a831c399e269772661")
    );
    advance(MINUTE - Duration::from_millis(1)).await;
    assert!(world.receive(0).await.is_empty());
    assert_eq!(world.depth(), (0, 1, 0));
    advance(Duration::from_millis(1)).await;
    let second = world.receive(0).await;
    assert_eq!(receives(&second[0]), "2");
    assert_ne!(receipt(&first[0]), receipt(&second[0]));
}

#[tokio::test(start_paused = true)]
async fn an_old_receipt_deletes_nothing_and_extends_nothing() {
    let world = world(1);
    world.send(&["a"]);
    let old = world.receive(0).await;
    world.fake.redeliver_hidden("orders");
    let new = world.receive(0).await;
    world.delete(receipt(&old[0])).await;
    assert_eq!(world.depth(), (0, 1, 0));
    assert_eq!(
        world.hide(receipt(&old[0]), 60).await,
        "InvalidParameterValue"
    );
    assert_eq!(world.hide("nonsense", 60).await, "ReceiptHandleIsInvalid");
    world.delete(receipt(&new[0])).await;
    assert_eq!(world.depth(), (0, 0, 0));
    world.delete(receipt(&new[0])).await;
    assert_eq!(
        world.hide(receipt(&new[0]), 60).await,
        "InvalidParameterValue"
    );
    assert_eq!(world.fake.deleted("orders").len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_receipt_still_deletes_what_shows_again_but_was_received_by_nobody_else() {
    let world = world(1);
    world.send(&["a"]);
    let received = world.receive(0).await;
    advance(2 * MINUTE).await;
    assert_eq!(world.depth(), (1, 0, 0));
    assert_eq!(
        world.hide(receipt(&received[0]), 60).await,
        "AWS.SimpleQueueService.MessageNotInflight"
    );
    world.delete(receipt(&received[0])).await;
    assert_eq!(world.depth(), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_hidden_for_more_than_twelve_hours_from_its_receipt() {
    let world = world(1);
    world.send(&["a"]);
    let received = world.receive(0).await;
    let receipt = receipt(&received[0]);
    assert_eq!(world.hide(receipt, 43_200).await, "");
    advance(MINUTE).await;
    assert_eq!(
        world.hide(receipt, 43_200 - 59).await,
        "InvalidParameterValue"
    );
    assert_eq!(world.hide(receipt, 43_200 - 60).await, "");
    assert_eq!(world.hide(receipt, 43_201).await, "InvalidParameterValue");
    assert_eq!(world.hide(receipt, 0).await, "");
    assert_eq!(world.depth(), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_waits_for_a_message_and_no_longer() {
    let world = world(1);
    let began = Instant::now();
    assert!(world.receive(20).await.is_empty());
    assert_eq!(began.elapsed().as_secs(), 20);
    world.fake.send("orders", "late", Duration::from_secs(7));
    assert_eq!(world.depth(), (0, 0, 1));
    let (began, received) = (Instant::now(), world.receive(20).await);
    assert_eq!((received.len(), began.elapsed().as_secs()), (1, 7));
    let (began, fake) = (Instant::now(), world.fake.clone());
    let sender = async move {
        tokio::time::sleep(Duration::from_secs(3)).await;
        fake.send("orders", "now", NOW);
    };
    let ((), received) = tokio::join!(sender, world.receive(20));
    assert_eq!((received.len(), began.elapsed().as_secs()), (1, 3));
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_received_too_often_goes_to_the_dead_letter_queue() {
    let world = world(1);
    world.fake.create("dead");
    world.fake.settings(
        "orders",
        Settings {
            redrive: Some(("dead".to_owned(), 2)),
            ..Settings::default()
        },
    );
    world.send(&["a"]);
    for _ in 0..2 {
        assert_eq!(world.receive(0).await.len(), 1);
        advance(MINUTE).await;
    }
    assert!(world.receive(0).await.is_empty());
    assert_eq!(
        (world.depth(), world.fake.depth("dead").visible),
        ((0, 0, 0), 1)
    );
    assert_eq!(world.fake.messages("dead")[0].body, "a");
    let asked = world
        .client
        .get_queue_attributes()
        .queue_url(&world.url)
        .attribute_names(QueueAttributeName::All);
    let attributes = asked.send().await.unwrap().attributes.unwrap();
    assert!(
        attributes[&QueueAttributeName::RedrivePolicy].contains(":dead\""),
        "{attributes:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn entries_of_a_batch_fail_each_for_itself() {
    let world = world(1);
    world.send(&["a", "b"]);
    let received = world.receive(0).await;
    let entry = |id: &str, receipt: &str| {
        DeleteMessageBatchRequestEntry::builder()
            .id(id)
            .receipt_handle(receipt)
            .build()
            .unwrap()
    };
    let asked = world.client.delete_message_batch().queue_url(&world.url);
    let answer = asked
        .entries(entry("x", receipt(&received[0])))
        .entries(entry("y", "nonsense"))
        .send()
        .await
        .unwrap();
    assert_eq!(
        (
            answer.successful[0].id.as_str(),
            answer.failed[0].id.as_str()
        ),
        ("x", "y")
    );
    assert!(answer.failed[0].sender_fault && answer.failed[0].code == "ReceiptHandleIsInvalid");
    assert_eq!(world.depth(), (0, 1, 0));
    let entry = ChangeMessageVisibilityBatchRequestEntry::builder()
        .id("z")
        .receipt_handle(receipt(&received[1]));
    let asked = world
        .client
        .change_message_visibility_batch()
        .queue_url(&world.url);
    let answer = asked
        .entries(entry.visibility_timeout(0).build().unwrap())
        .send()
        .await
        .unwrap();
    assert_eq!((answer.successful.len(), world.depth()), (1, (1, 0, 0)));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_wrong_as_a_whole_is_refused() {
    let world = world(1);
    let refused = async |ids: &[&str]| {
        let entry = |id: &&str| {
            DeleteMessageBatchRequestEntry::builder()
                .id(*id)
                .receipt_handle("r")
                .build()
                .unwrap()
        };
        let asked = world.client.delete_message_batch().queue_url(&world.url);
        let error = asked
            .set_entries(Some(ids.iter().map(entry).collect()))
            .send()
            .await
            .unwrap_err();
        error.code().unwrap().rsplit('.').next().unwrap().to_owned()
    };
    assert_eq!(refused(&[]).await, "EmptyBatchRequest");
    assert_eq!(refused(&["a", "a"]).await, "BatchEntryIdsNotDistinct");
    assert_eq!(
        refused(&["0", "1", "2", "3", "4", "5", "6", "7", "8", "9", "10"]).await,
        "TooManyEntriesInBatchRequest"
    );
    let unknown = world
        .client
        .get_queue_url()
        .queue_name("none")
        .send()
        .await
        .unwrap_err();
    assert!(unknown.into_service_error().is_queue_does_not_exist());
}

#[tokio::test(start_paused = true)]
async fn more_than_may_be_in_flight_is_not_handed_out() {
    let world = world(1);
    world.fake.settings(
        "orders",
        Settings {
            in_flight_max: 2,
            ..Settings::default()
        },
    );
    world.send(&["a", "b", "c"]);
    assert_eq!(world.bodies().await, ["a", "b"]);
    let asked = world.client.receive_message().queue_url(&world.url);
    assert_eq!(
        asked.clone().send().await.unwrap_err().code(),
        Some("OverLimit")
    );
    let waited = asked.wait_time_seconds(20).send().await.unwrap();
    assert!(waited.messages.unwrap_or_default().is_empty());
    assert_eq!(world.receive(20).await.len(), 0);
    advance(MINUTE).await;
    assert_eq!(world.bodies().await.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn a_message_comes_with_its_attributes() {
    let world = world(1);
    let value = MessageAttributeValue::builder()
        .data_type("String")
        .string_value("DstBucketNotFound")
        .build()
        .unwrap();
    let sent = world
        .client
        .send_message()
        .queue_url(&world.url)
        .message_body("a")
        .message_attributes("Reason", value);
    let sent = sent.send().await.unwrap();
    assert_eq!(
        world.fake.messages("orders")[0].attributes["Reason"],
        "DstBucketNotFound"
    );
    let asked = world
        .client
        .receive_message()
        .queue_url(&world.url)
        .message_attribute_names("All");
    let received = asked.send().await.unwrap().messages.unwrap();
    assert_eq!(received[0].message_id, sent.message_id);
    assert_eq!(
        received[0].md5_of_message_attributes,
        sent.md5_of_message_attributes
    );
    assert!(sent.md5_of_message_attributes.is_some());
}

#[tokio::test(start_paused = true)]
async fn a_message_comes_twice_even_while_it_is_hidden() {
    let world = world(1);
    world.fake.quirks(
        "orders",
        Quirks {
            duplicates: 1.0,
            delay_max: MINUTE / 2,
            ..Quirks::default()
        },
    );
    world.send(&["a"]);
    let first = world.receive(0).await;
    world.delete(receipt(&first[0])).await;
    let second = world
        .receive(20)
        .await
        .into_iter()
        .chain(world.receive(20).await)
        .collect::<Vec<_>>();
    assert_eq!(second.len(), 1);
    assert_eq!(
        (&second[0].message_id, receives(&second[0])),
        (&first[0].message_id, "1")
    );
    world.delete(receipt(&second[0])).await;
    assert_eq!(world.depth(), (0, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_fault_strikes_one_operation_of_one_queue() {
    let world = world(1);
    world.send(&["a"]);
    let other = world.fake.create("other");
    let place = Place::sqs("ReceiveMessage").bucket("orders");
    world.net.faults().add(Fault::new(
        "sick",
        place,
        Effect::refuse(500, "InternalError"),
    ));
    let refused = world
        .client
        .receive_message()
        .queue_url(&world.url)
        .send()
        .await
        .unwrap_err();
    assert_eq!(
        (
            refused.raw_response().unwrap().status().as_u16(),
            refused.code()
        ),
        (500, Some("InternalError"))
    );
    assert!(
        world
            .client
            .receive_message()
            .queue_url(&other)
            .send()
            .await
            .is_ok()
    );
    assert_eq!(world.depth(), (1, 0, 0));
    world.net.faults().clear("sick");
    assert_eq!(world.receive(0).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_poll_whose_caller_is_gone_still_hides_what_it_finds() {
    let world = world(1);
    assert!(
        tokio::time::timeout(Duration::from_secs(1), world.receive(20))
            .await
            .is_err()
    );
    world.send(&["a"]);
    world.net.quiet().await;
    assert_eq!(world.depth(), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn disorder_delay_and_failures_follow_the_seed() {
    let letters: Vec<String> = ('a'..='z').map(String::from).collect();
    let quirks = Quirks {
        delayed: 0.3,
        delay_max: 10 * MINUTE,
        reorder: true,
        batch_failures: 0.5,
        ..Quirks::default()
    };
    let run = async |seed: u64| {
        let world = world(seed);
        world.fake.quirks("orders", quirks);
        letters
            .iter()
            .for_each(|letter| drop(world.fake.send("orders", letter.as_str(), NOW)));
        let (mut order, mut failures) = (Vec::new(), 0);
        while world.depth() != (0, 0, 0) {
            let received = world.receive(20).await;
            failures += world.delete_all(&received).await;
            order.extend(received.into_iter().map(|message| message.body.unwrap()));
        }
        (order, failures)
    };
    let (order, failures) = run(1).await;
    assert_eq!(run(1).await, (order.clone(), failures));
    assert_ne!(run(2).await.0, order);
    assert!(failures > 0);
    let (mut seen, first) = (order.clone(), &order[..26]);
    assert!(!first.is_sorted());
    seen.sort();
    seen.dedup();
    assert_eq!(seen, letters);
}
