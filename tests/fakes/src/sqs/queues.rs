//! The operations on queues as such: to make one, to find it, to ask how it is.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::fifo::{Fifo, Habits};
use super::message::Stage;
use super::operations::{Done, queue_name, wanted};
use super::queue::{Queue, Settings};
use super::refusal::Refusal;
use super::{ACCOUNT, Fake};

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct OfQueue {
    #[serde(default)]
    queue_url: String,
    #[serde(default)]
    queue_name: String,
    #[serde(default)]
    attribute_names: Vec<String>,
    #[serde(default)]
    attributes: BTreeMap<String, String>,
}

impl Fake {
    pub(super) fn make(&self, asked: &OfQueue) -> Done {
        let is = |attribute: &str, value: &str| {
            asked
                .attributes
                .get(attribute)
                .is_some_and(|given| given == value)
        };
        let (name, fifo) = (&asked.queue_name, is("FifoQueue", "true"));
        if fifo != is_fifo(name) {
            return Err(Refusal::queue_name(name));
        }
        let (content_based, per_group) = (
            is("ContentBasedDeduplication", "true"),
            is("DeduplicationScope", "messageGroup"),
        );
        let url = self.ensure(name, || match fifo {
            true => Queue::fifo(
                name,
                Habits {
                    content_based,
                    per_group,
                },
            ),
            false => Queue::new(name),
        });
        self.settings(name, settings(&asked.attributes));
        Ok(json!({ "QueueUrl": url }))
    }

    pub(super) fn find(&self, asked: &OfQueue) -> Done {
        self.queue(&asked.queue_name, |_| ())?;
        Ok(json!({ "QueueUrl": self.url(&asked.queue_name) }))
    }

    pub(super) fn describe(&self, asked: &OfQueue) -> Done {
        let now = Instant::now();
        self.queue(queue_name(&asked.queue_url), |queue| {
            let mut all = attributes(queue, now);
            all.retain(|name, _| wanted(&asked.attribute_names, name));
            json!({ "Attributes": all })
        })
    }
}

/// A FIFO queue's name ends so, and no other's does.
pub(super) fn is_fifo(name: &str) -> bool {
    name.ends_with(".fifo")
}

fn settings(asked: &BTreeMap<String, String>) -> Settings {
    let plain = Settings::default();
    let visibility = asked
        .get("VisibilityTimeout")
        .and_then(|seconds| seconds.parse().ok());
    let redrive = asked
        .get("RedrivePolicy")
        .and_then(|policy| redrive(policy));
    Settings {
        visibility: visibility.map_or(plain.visibility, Duration::from_secs),
        redrive,
        ..plain
    }
}

/// Reads a policy: the name of the dead-letter queue ends its ARN, and the number may be in quotes.
fn redrive(policy: &str) -> Option<(String, u32)> {
    let policy: Value = serde_json::from_str(policy).ok()?;
    let target = policy["deadLetterTargetArn"]
        .as_str()?
        .rsplit(':')
        .next()?
        .to_owned();
    let receives_max = policy["maxReceiveCount"]
        .to_string()
        .trim_matches('"')
        .parse()
        .ok()?;
    Some((target, receives_max))
}

fn attributes(queue: &Queue, now: Instant) -> BTreeMap<&'static str, String> {
    let count = |stage| {
        queue
            .messages
            .iter()
            .filter(|message| message.stage(now) == stage)
            .count()
            .to_string()
    };
    let arn = |name: &str| format!("arn:aws:sqs:us-east-1:{ACCOUNT}:{name}");
    let mut all = BTreeMap::from([
        ("ApproximateNumberOfMessages", count(Stage::Visible)),
        (
            "ApproximateNumberOfMessagesNotVisible",
            count(Stage::Hidden),
        ),
        ("ApproximateNumberOfMessagesDelayed", count(Stage::Delayed)),
        (
            "VisibilityTimeout",
            queue.settings.visibility.as_secs().to_string(),
        ),
        ("QueueArn", arn(&queue.name)),
    ]);
    if let Some((target, receives_max)) = &queue.settings.redrive {
        let policy = json!({ "deadLetterTargetArn": arn(target), "maxReceiveCount": receives_max });
        all.insert("RedrivePolicy", policy.to_string());
    }
    all.extend(queue.fifo.iter().flat_map(fifo_attributes));
    all
}

fn fifo_attributes(fifo: &Fifo) -> [(&'static str, String); 4] {
    let Habits {
        content_based,
        per_group,
    } = fifo.habits;
    let (scope, limit) = if per_group {
        ("messageGroup", "perMessageGroupId")
    } else {
        ("queue", "perQueue")
    };
    [
        ("FifoQueue", "true".to_owned()),
        ("ContentBasedDeduplication", content_based.to_string()),
        ("DeduplicationScope", scope.to_owned()),
        ("FifoThroughputLimit", limit.to_owned()),
    ]
}
