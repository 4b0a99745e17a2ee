//! FIFO queues as clients of the SDK see them.

use aws_sdk_sqs::operation::send_message::SendMessageOutput;
use aws_sdk_sqs::types::SendMessageBatchRequestEntry;

use super::*;

const QUEUE: &str = "work.fifo";

/// A world whose client asks a FIFO queue.
fn fifo(seed: u64) -> World {
    let world = world(seed);
    let url = world.fake.create_fifo(QUEUE);
    World { url, ..world }
}

impl World {
    /// Sends a message for each word, whose first letter is its group.
    fn work(&self, words: &[&str]) {
        words
            .iter()
            .for_each(|word| drop(self.fake.send_fifo(QUEUE, &word[..1], word, *word)));
    }

    async fn some(&self, count_max: i32) -> Vec<Message> {
        let ask = self
            .client
            .receive_message()
            .queue_url(&self.url)
            .max_number_of_messages(count_max);
        let ask = ask.message_system_attribute_names(MessageSystemAttributeName::All);
        ask.visibility_timeout(60)
            .send()
            .await
            .unwrap()
            .messages
            .unwrap_or_default()
    }

    async fn words(&self) -> String {
        told(&self.some(10).await)
    }

    /// Returns the error's code, or nothing.
    async fn forget(&self, message: &Message) -> String {
        let ask = self
            .client
            .delete_message()
            .queue_url(&self.url)
            .receipt_handle(receipt(message));
        ask.send()
            .await
            .map_or_else(|error| error.code().unwrap().to_owned(), |_| String::new())
    }

    async fn post(
        &self,
        group: Option<&str>,
        deduplication: Option<&str>,
        delay: i32,
    ) -> Result<SendMessageOutput, String> {
        let ask = self
            .client
            .send_message()
            .queue_url(&self.url)
            .message_body("body")
            .delay_seconds(delay);
        let ask = ask.set_message_group_id(group.map(str::to_owned));
        let ask = ask.set_message_deduplication_id(deduplication.map(str::to_owned));
        ask.send()
            .await
            .map_err(|error| error.code().unwrap().to_owned())
    }

    fn stages(&self) -> (usize, usize, usize) {
        let Depth {
            visible,
            hidden,
            delayed,
        } = self.fake.depth(QUEUE);
        (visible, hidden, delayed)
    }
}

fn told(messages: &[Message]) -> String {
    messages
        .iter()
        .map(|message| message.body.clone().unwrap())
        .collect::<Vec<_>>()
        .join(" ")
}

#[tokio::test(start_paused = true)]
async fn as_many_of_one_group_come_as_there_are_and_then_the_next() {
    let world = fifo(1);
    world.work(&["a1", "b1", "a2", "c1", "b2", "a3"]);
    assert_eq!(told(&world.some(2).await), "a1 a2");
    assert_eq!(world.words().await, "b1 b2 c1");
    assert_eq!(world.stages(), (1, 5, 0));
}

#[tokio::test(start_paused = true)]
async fn nothing_of_a_group_comes_while_a_message_of_it_is_in_flight() {
    let world = fifo(1);
    world.work(&["a1", "a2"]);
    let first = world.some(1).await;
    assert_eq!(world.words().await, "");
    world.work(&["a3", "b1"]);
    assert_eq!(world.words().await, "b1");
    assert_eq!(world.forget(&first[0]).await, "");
    let rest = world.some(10).await;
    assert_eq!(told(&rest), "a2 a3");
    // One of two that came together holds the group as well.
    assert_eq!(world.forget(&rest[0]).await, "");
    world.work(&["a4"]);
    assert_eq!(world.words().await, "");
    assert_eq!(world.hide(receipt(&rest[1]), 0).await, "");
    assert_eq!(world.words().await, "a3 a4");
}

#[tokio::test(start_paused = true)]
async fn a_message_that_shows_again_comes_unless_an_earlier_one_is_in_flight() {
    let world = fifo(1);
    world.work(&["a1", "a2", "a3"]);
    let both = world.some(2).await;
    assert_eq!(world.hide(receipt(&both[1]), 0).await, "");
    assert_eq!(world.words().await, "");
    assert_eq!(world.hide(receipt(&both[0]), 0).await, "");
    let both = world.some(2).await;
    assert_eq!(told(&both), "a1 a2");
    assert_eq!(world.hide(receipt(&both[0]), 0).await, "");
    let again = world.some(10).await;
    assert_eq!((told(&again), receives(&again[0])), ("a1".to_owned(), "3"));
}

#[tokio::test(start_paused = true)]
async fn when_its_visibility_is_over_a_message_comes_first_in_its_group_again() {
    let world = fifo(1);
    world.work(&["a1", "a2"]);
    let first = world.some(1).await;
    advance(MINUTE).await;
    let again = world.some(10).await;
    assert_eq!(
        (told(&again), receives(&again[0]), receives(&again[1])),
        ("a1 a2".to_owned(), "2", "1")
    );
    assert_eq!(world.forget(&first[0]).await, "InvalidParameterValue");
    assert_eq!(
        world.hide(receipt(&first[0]), 60).await,
        "InvalidParameterValue"
    );
    assert_eq!(world.stages(), (0, 2, 0));
    assert_eq!(
        (world.forget(&again[0]).await, world.forget(&again[0]).await),
        (String::new(), String::new())
    );
    assert_eq!(world.stages(), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_receipt_is_worth_nothing_once_the_visibility_is_over() {
    let world = fifo(1);
    world.work(&["a1"]);
    let first = world.some(1).await;
    advance(MINUTE).await;
    assert_eq!(world.forget(&first[0]).await, "InvalidParameterValue");
    assert_eq!(
        world.hide(receipt(&first[0]), 60).await,
        "AWS.SimpleQueueService.MessageNotInflight"
    );
    assert_eq!(world.words().await, "a1");
}

#[tokio::test(start_paused = true)]
async fn a_receipt_that_expires_early_shows_its_message_to_others() {
    let world = fifo(1);
    world.work(&["a1", "a2"]);
    let held = world.some(1).await;
    world.fake.quirks(
        QUEUE,
        Quirks {
            expired: 1.0,
            ..Quirks::default()
        },
    );
    assert_eq!(
        world.hide(receipt(&held[0]), 60).await,
        "InvalidParameterValue"
    );
    world.fake.quirks(QUEUE, Quirks::default());
    assert_eq!(world.words().await, "a1 a2");
}

#[tokio::test(start_paused = true)]
async fn a_long_poll_ends_when_a_group_becomes_free() {
    let world = fifo(1);
    world.work(&["a1", "a2"]);
    let held = world.some(1).await;
    let began = Instant::now();
    let holder = async {
        tokio::time::sleep(Duration::from_secs(5)).await;
        world.forget(&held[0]).await
    };
    let (_, received) = tokio::join!(holder, world.receive(20));
    assert_eq!(
        (told(&received), began.elapsed().as_secs()),
        ("a2".to_owned(), 5)
    );
}

#[tokio::test(start_paused = true)]
async fn what_repeats_an_accepted_message_answers_its_id_for_five_minutes() {
    let world = fifo(1);
    let first = world.post(Some("a"), Some("1"), 0).await.unwrap();
    let received = world.some(1).await;
    assert_eq!(world.forget(&received[0]).await, "");
    advance(5 * MINUTE - Duration::from_millis(1)).await;
    let again = world.post(Some("b"), Some("1"), 0).await.unwrap();
    assert_eq!(
        (&again.message_id, &again.sequence_number),
        (&first.message_id, &first.sequence_number)
    );
    assert_eq!(world.stages(), (0, 0, 0));
    advance(Duration::from_millis(1)).await;
    let new = world.post(Some("b"), Some("1"), 0).await.unwrap();
    assert_ne!(new.message_id, first.message_id);
    assert!(new.sequence_number > first.sequence_number);
    assert_eq!(world.stages(), (1, 0, 0));
}

#[tokio::test(start_paused = true)]
async fn a_batch_takes_a_repeated_message_once() {
    let world = fifo(1);
    let entry = |id: &str, group: Option<&str>| {
        let entry = SendMessageBatchRequestEntry::builder()
            .id(id)
            .message_body(id)
            .message_deduplication_id("same");
        entry
            .set_message_group_id(group.map(str::to_owned))
            .build()
            .unwrap()
    };
    let ask = world.client.send_message_batch().queue_url(&world.url);
    let sent = ask
        .clone()
        .entries(entry("x", Some("a")))
        .entries(entry("y", Some("a")))
        .send()
        .await
        .unwrap();
    assert_eq!((sent.successful.len(), sent.failed.len()), (2, 0));
    assert_eq!(sent.successful[0].message_id, sent.successful[1].message_id);
    assert_eq!(world.words().await, "x");
    let refused = ask
        .entries(entry("x", Some("a")))
        .entries(entry("y", None))
        .send()
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("InvalidParameterValue"));
    assert_eq!(world.stages(), (0, 1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_a_fifo_queue_does_not_take_is_refused() {
    let world = fifo(1);
    let refused = async |group, deduplication, delay| {
        world.post(group, deduplication, delay).await.unwrap_err()
    };
    assert_eq!(refused(None, Some("1"), 0).await, "MissingParameter");
    assert_eq!(refused(Some("a"), None, 0).await, "InvalidParameterValue");
    assert_eq!(
        refused(Some("a"), Some("1"), 1).await,
        "InvalidParameterValue"
    );
    assert_eq!(
        refused(Some("a b"), Some("1"), 0).await,
        "InvalidParameterValue"
    );
    assert_eq!(
        refused(Some("a"), Some(&"1".repeat(129)), 0).await,
        "InvalidParameterValue"
    );
    assert_eq!(world.stages(), (0, 0, 0));
    let standard = World {
        url: world.fake.url("orders"),
        ..world
    };
    assert_eq!(
        standard.post(None, Some("1"), 0).await.unwrap_err(),
        "InvalidParameterValue"
    );
    assert!(standard.post(Some("a"), None, 0).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_fifo_queue_is_made_and_described_as_one() {
    let world = fifo(1);
    let make = |name: &str| world.client.create_queue().queue_name(name);
    let refused = make("plain")
        .attributes(QueueAttributeName::FifoQueue, "true")
        .send()
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Some("InvalidParameterValue"));
    assert_eq!(
        make("no.fifo").send().await.unwrap_err().code(),
        Some("InvalidParameterValue")
    );
    let made = make("by-content.fifo").attributes(QueueAttributeName::FifoQueue, "true");
    let made = made.attributes(QueueAttributeName::ContentBasedDeduplication, "true");
    let made = made.attributes(QueueAttributeName::DeduplicationScope, "messageGroup");
    let other = World {
        url: made.send().await.unwrap().queue_url.unwrap(),
        ..world
    };
    let asked = other
        .client
        .get_queue_attributes()
        .queue_url(&other.url)
        .attribute_names(QueueAttributeName::All);
    let all = asked.send().await.unwrap().attributes.unwrap();
    let told = |name| all[&name].as_str();
    assert_eq!(told(QueueAttributeName::FifoQueue), "true");
    assert_eq!(told(QueueAttributeName::ContentBasedDeduplication), "true");
    assert_eq!(told(QueueAttributeName::DeduplicationScope), "messageGroup");
    let (a, b) = (
        other.post(Some("a"), None, 0).await.unwrap(),
        other.post(Some("b"), None, 0).await.unwrap(),
    );
    assert_ne!(a.message_id, b.message_id);
    assert_eq!(
        other.post(Some("a"), None, 0).await.unwrap().message_id,
        a.message_id
    );
}

#[tokio::test(start_paused = true)]
async fn a_message_comes_with_its_group() {
    let world = fifo(1);
    let sent = world.post(Some("a"), Some("1"), 0).await.unwrap();
    let listed = world.fake.messages(QUEUE);
    assert_eq!(
        (
            listed[0].group.as_deref(),
            listed[0].deduplication.as_deref()
        ),
        (Some("a"), Some("1"))
    );
    let received = world.some(1).await;
    let attributes = received[0].attributes.as_ref().unwrap();
    assert_eq!(attributes[&MessageSystemAttributeName::MessageGroupId], "a");
    assert_eq!(
        attributes[&MessageSystemAttributeName::MessageDeduplicationId],
        "1"
    );
    assert_eq!(
        attributes[&MessageSystemAttributeName::SequenceNumber],
        sent.sequence_number.unwrap()
    );
}

#[tokio::test(start_paused = true)]
async fn beyond_what_may_be_in_flight_nothing_comes_and_nothing_is_said() {
    let world = fifo(1);
    world.fake.settings(
        QUEUE,
        Settings {
            in_flight_max: 2,
            ..Settings::default()
        },
    );
    world.work(&["a1", "b1", "c1"]);
    let held = world.some(10).await;
    assert_eq!(told(&held), "a1 b1");
    assert_eq!(world.words().await, "");
    assert_eq!(world.forget(&held[0]).await, "");
    assert_eq!(world.words().await, "c1");
}

#[tokio::test(start_paused = true)]
async fn a_group_behind_a_backlog_of_another_is_not_found() {
    let world = fifo(1);
    let send = |group: &str, number: usize| {
        drop(world.fake.send_fifo(QUEUE, group, &number.to_string(), "x"));
    };
    (0..120_000).for_each(|number| send("a", number));
    send("b", 120_000);
    let held = world.some(1).await;
    assert!(world.some(10).await.is_empty());
    assert_eq!(world.forget(&held[0]).await, "");
    let next = world.some(1).await;
    assert_eq!(
        next[0].attributes.as_ref().unwrap()[&MessageSystemAttributeName::MessageGroupId],
        "a"
    );
    assert_eq!(world.some(10).await.len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_message_that_is_received_too_often_leaves_its_group() {
    let world = fifo(1);
    world.fake.create_fifo("dead.fifo");
    world.fake.settings(
        QUEUE,
        Settings {
            redrive: Some(("dead.fifo".to_owned(), 1)),
            ..Settings::default()
        },
    );
    world.work(&["a1", "a2"]);
    assert_eq!(told(&world.some(1).await), "a1");
    advance(MINUTE).await;
    assert_eq!(world.words().await, "a2");
    let dead = world.fake.messages("dead.fifo");
    assert_eq!(
        (dead[0].body.as_str(), dead[0].group.as_deref()),
        ("a1", Some("a"))
    );
}

#[tokio::test(start_paused = true)]
async fn disorder_and_delay_leave_each_group_in_order() {
    let numbers: Vec<String> = (0..9)
        .flat_map(|n| ["a", "b", "c"].map(|group| format!("{group}{n}")))
        .collect();
    let quirks = Quirks {
        delayed: 0.3,
        delay_max: 10 * MINUTE,
        reorder: true,
        duplicates: 0.5,
        ..Quirks::default()
    };
    let run = async |seed: u64| {
        let world = fifo(seed);
        world.fake.quirks(QUEUE, quirks);
        world.work(&numbers.iter().map(String::as_str).collect::<Vec<_>>());
        let mut order = Vec::new();
        while world.stages() != (0, 0, 0) {
            let received = world.receive(20).await;
            assert_eq!(world.delete_all(&received).await, 0);
            order.extend(received.into_iter().map(|message| message.body.unwrap()));
        }
        order
    };
    let order = run(1).await;
    assert_eq!(run(1).await, order);
    assert_ne!(run(2).await, order);
    assert_ne!(order, numbers);
    for group in ["a", "b", "c"] {
        let of_group: Vec<&String> = order
            .iter()
            .filter(|word| word.starts_with(group))
            .collect();
        assert!(of_group.len() == 9 && of_group.is_sorted(), "{order:?}");
    }
}
