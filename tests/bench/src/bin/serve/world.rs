//! The servers, and what is known of what they served.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use replicator_fakes::clock::Clock;
use replicator_fakes::journal::Service;
use replicator_fakes::net::Net;
use replicator_fakes::s3::entry::Versioning;
use replicator_fakes::sqs::Deleted;
use replicator_fakes::{s3, sqs};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::Instant;

const SOURCE: &str = "orders";
const DESTINATION: &str = "orders-replica";
/// The others are called the same, with a number; so are the work queues.
const DESTINATIONS: usize = 8;
const QUEUE: &str = "events";
const DEAD: &str = "parked";
/// The client that prepares and checks, and is not counted.
const USER: &str = "AKIDUSER";

/// More than a daemon receives between two looks.
const VISIBLE_MAX: usize = 2_000;

#[derive(Clone)]
pub(crate) struct World {
    s3: s3::Fake,
    sqs: sqs::Fake,
    pub(crate) net: Net,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Events that were not sent yet.
    held: VecDeque<String>,
    /// Since when keys that have no replica yet are announced, and how long the others took.
    waiting: BTreeMap<String, Instant>,
    replicated: Vec<Duration>,
    /// When messages were sent, by their ids and by their keys.
    sent: BTreeMap<String, Instant>,
    announced: BTreeMap<String, Instant>,
    replicas: usize,
    /// Keys of which no event is sent.
    others: HashSet<String>,
}

fn destinations() -> impl Iterator<Item = (String, String)> {
    (1..=DESTINATIONS).map(|number| match number {
        1 => (DESTINATION.to_owned(), "work.fifo".to_owned()),
        _ => (
            format!("{DESTINATION}-{number}"),
            format!("work-{number}.fifo"),
        ),
    })
}

impl World {
    pub(crate) fn new(endpoint: &str) -> Self {
        let clock = Clock::starting_at(SystemTime::now());
        let (s3, sqs) = (
            s3::Fake::new(clock.clone(), 1),
            sqs::Fake::new(endpoint, clock, 1),
        );
        let net = Net::new(1);
        net.route("s3", Service::S3, s3.clone());
        net.route("sqs", Service::Sqs, sqs.clone());
        sqs.create(QUEUE);
        sqs.create(DEAD);
        let world = Self {
            s3,
            sqs,
            net,
            seen: Arc::default(),
        };
        world.s3.create_bucket(SOURCE, Versioning::Enabled);
        world.listen(SOURCE);
        for (bucket, work_queue) in destinations() {
            world.sqs.create_fifo(&work_queue);
            world.s3.create_bucket(&bucket, Versioning::Enabled);
            world.listen(&bucket);
        }
        world
    }

    /// Hears of what is put into a bucket from now on.
    fn listen(&self, bucket: &str) {
        let world = self.clone();
        match bucket {
            SOURCE => self
                .s3
                .notify(bucket, Arc::new(move |event| world.hold(event))),
            _ => self
                .s3
                .notify(bucket, Arc::new(move |event| world.replicated(&event))),
        }
    }

    /// Says where everything is.
    pub(crate) fn hello(&self) -> Value {
        let url = |queue: &str| self.sqs.url(queue);
        let events = url(QUEUE);
        let endpoint = events.split_inclusive('/').take(3).collect::<String>();
        json!({
            "endpoint": endpoint.trim_end_matches('/'),
            "queue": events,
            "dead_letter_queue": url(DEAD),
            "work_queues": destinations().map(|(_, queue)| url(&queue)).collect::<Vec<_>>(),
        })
    }

    pub(crate) fn hold(&self, event: String) {
        self.seen().held.push_back(event);
    }

    fn replicated(&self, event: &str) {
        let mut seen = self.seen();
        seen.replicas += 1;
        if let Some(since) = seen.waiting.remove(&key(event)) {
            seen.replicated.push(since.elapsed());
        }
    }

    pub(crate) async fn seed(
        &self,
        keys: &[String],
        bytes: usize,
        objects: usize,
    ) -> anyhow::Result<()> {
        let user = self.user();
        for (number, key) in keys.iter().cycle().take(objects).enumerate() {
            let mut body = number.to_le_bytes().to_vec();
            body.resize(bytes, b'x');
            // Some have a tag, as everywhere: then each daemon gets to know that the endpoint
            // counts tags.
            let tag = (number % 100 == 0).then(|| "tier=gold".to_owned());
            let put = user.put_object().bucket(SOURCE).key(key).set_tagging(tag);
            put.body(body.into()).send().await.context("seeding")?;
        }
        Ok(())
    }

    /// Seeding takes long with much to hash, and memory for all of it, so one object stands for
    /// all.
    pub(crate) async fn repeat(&self, keys: &[String], bytes: usize) -> anyhow::Result<()> {
        let [first, others @ ..] = keys else {
            return Ok(());
        };
        self.seed(std::slice::from_ref(first), bytes, 1).await?;
        self.s3.repeat(SOURCE, first, others.iter().cloned());
        Ok(())
    }

    /// Fills buckets with what was there before.
    pub(crate) async fn fill(&self, keys: &[String], count: usize) -> anyhow::Result<()> {
        let Some(first) = keys.first() else {
            return Ok(());
        };
        let buckets =
            std::iter::once(SOURCE.to_owned()).chain(destinations().map(|(bucket, _)| bucket));
        for bucket in buckets.take(1 + count) {
            self.s3.silence(&bucket);
            self.user()
                .put_object()
                .bucket(&bucket)
                .key(first)
                .body(b"x".to_vec().into())
                .send()
                .await?;
            self.s3.repeat(&bucket, first, keys.iter().skip(1).cloned());
            self.listen(&bucket);
        }
        self.seen().others = keys.iter().cloned().collect();
        Ok(())
    }

    /// Keeps the queues full until all is sent. The fake looks at each of its messages at each
    /// receipt, and a million of them would be what is measured. All count from the first: they are
    /// the backlog of that moment.
    pub(crate) async fn post(self, count: usize) {
        let (mut left, now) = (count, Instant::now());
        loop {
            let visible: usize = self
                .queues()
                .map(|queue| self.sqs.depth(&queue).visible)
                .sum();
            let room = VISIBLE_MAX.saturating_sub(visible);
            let sent = self.send(room.min(left), now);
            left -= sent;
            if left == 0 || sent < room {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends so many times a second what is held, and forgets what was before.
    pub(crate) async fn pace(self, per_second: f64) {
        {
            let mut seen = self.seen();
            seen.sent.clear();
            seen.announced.clear();
            seen.replicated.clear();
        }
        let start = Instant::now();
        for number in 0_u32.. {
            tokio::time::sleep_until(
                start + Duration::from_secs_f64(f64::from(number) / per_second),
            )
            .await;
            if self.send(1, Instant::now()) == 0 {
                return;
            }
        }
    }

    /// Sends up to so many of what is held; returns how many there were.
    fn send(&self, count: usize, now: Instant) -> usize {
        let mut seen = self.seen();
        let count = count.min(seen.held.len());
        let events: Vec<String> = seen.held.drain(..count).collect();
        for event in events {
            let key = key(&event);
            seen.waiting.insert(key.clone(), now);
            seen.announced.insert(key, now);
            let id = self.sqs.send(QUEUE, event, Duration::ZERO);
            seen.sent.insert(id, now);
        }
        count
    }

    fn queues(&self) -> impl Iterator<Item = String> {
        std::iter::once(QUEUE.to_owned()).chain(destinations().map(|(_, queue)| queue))
    }

    fn waiting(&self) -> usize {
        let depths = self.queues().map(|queue| self.sqs.depth(&queue));
        let waiting: usize = depths
            .map(|depth| depth.visible + depth.hidden + depth.delayed)
            .sum();
        waiting + self.seen().held.len()
    }

    pub(crate) fn progress(&self) -> Value {
        json!({ "waiting": self.waiting(), "held": self.seen().held.len(), "replicas": self.seen().replicas })
    }

    pub(crate) fn replicas(&self) -> BTreeMap<String, Vec<usize>> {
        let keys = self
            .s3
            .keys(DESTINATION)
            .into_iter()
            .filter(|key| !self.seen().others.contains(key));
        let size = |entry: &Arc<s3::entry::Entry>| {
            entry.object.as_ref().map_or(0, |object| object.bytes.len())
        };
        keys.map(|key| {
            (
                key.clone(),
                self.s3
                    .history(DESTINATION, &key)
                    .iter()
                    .map(size)
                    .collect(),
            )
        })
        .collect()
    }

    pub(crate) fn stats(&self, bucket: &str) -> Value {
        let mut requests: BTreeMap<String, BTreeMap<String, usize>> = BTreeMap::new();
        let mut bytes = 0;
        for entry in self.net.journal().select(|entry| entry.client != USER) {
            let service = format!("{:?}", entry.call.service).to_uppercase();
            *requests
                .entry(service)
                .or_default()
                .entry(entry.call.operation)
                .or_default() += 1;
            bytes += entry.call.bytes;
        }
        json!({
            "requests": requests,
            "bytes": bytes,
            "replicated_seconds": spread(self.seen().replicated.clone()),
            "acknowledged_seconds": spread(self.acknowledged(bucket)),
        })
    }

    /// Returns how long it took until what was to be done at a destination was done: the message in
    /// its work queue is deleted, or where none came by a work queue the event.
    fn acknowledged(&self, bucket: &str) -> Vec<Duration> {
        let seen = self.seen();
        let work_queue = destinations()
            .find(|(name, _)| name == bucket)
            .map_or("work.fifo".to_owned(), |found| found.1);
        let done = self.sqs.deleted(&work_queue);
        let took = |since: Option<&Instant>, at: Instant| Some(at.duration_since(*since?));
        if done.is_empty() {
            let events = self.sqs.deleted(QUEUE).into_iter();
            return events
                .filter_map(|Deleted { id, at, .. }| took(seen.sent.get(&id), at))
                .collect();
        }
        let of_group: BTreeMap<String, &Instant> = seen
            .announced
            .iter()
            .map(|(key, at)| (group_of(bucket, key), at))
            .collect();
        let since = |group: Option<String>| of_group.get(&group?).copied();
        done.into_iter()
            .filter_map(|Deleted { group, at, .. }| took(since(group), at))
            .collect()
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().expect("nobody panics")
    }

    fn user(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new(USER, "secret", None, None, "bench"))
            .http_client(self.net.client(USER))
            .endpoint_url("http://s3")
            .force_path_style(true);
        aws_sdk_s3::Client::from_conf(config.build())
    }
}

/// Where most lie, where nearly all lie, and the last.
fn spread(mut took: Vec<Duration>) -> Value {
    took.sort_unstable();
    let at = |share: f64| {
        took.get((took.len() as f64 * share) as usize)
            .map(Duration::as_secs_f64)
    };
    json!({ "p50": at(0.5), "p99": at(0.99), "max": took.last().map(Duration::as_secs_f64) })
}

/// Returns the key of an event, as the event has it.
fn key(event: &str) -> String {
    let event: Value = serde_json::from_str(event).unwrap_or_default();
    event["Records"][0]["s3"]["object"]["key"]
        .as_str()
        .unwrap_or_default()
        .to_owned()
}

/// Returns the message group of a key at a destination (docs/protocol.md).
fn group_of(bucket: &str, key: &str) -> String {
    let hash = Sha256::digest(format!("{bucket}\0{key}\0"));
    hash.iter().map(|byte| format!("{byte:02x}")).collect()
}
