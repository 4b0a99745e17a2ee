//! The fakes over TCP: two buckets and a queue that cost little, so that what a client costs shows. It is told what
//! to do by lines on its standard input and answers each with one line of JSON.
//!
//! `seed N BYTES KEYS`: puts objects into the source, under so many keys in turn. `repeat N BYTES`: the same object under
//! so many keys. `hold`: the rest of the line is an event of an object that is elsewhere. `post N`: announces so many of
//! what was put and held, as fast as they are received. `pace PER_SECOND`: announces the others as time goes.
//! `waiting`: how many messages are left and how many replicas there are, which is cheap. `stats`: what was asked and
//! how far it is.

#![allow(
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::disallowed_methods,
    reason = "a world that is broken ends its run at once, and its time is the real one"
)]

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region};
use replicator_fakes::clock::Clock;
use replicator_fakes::journal::Service;
use replicator_fakes::net::Net;
use replicator_fakes::s3::entry::Versioning;
use replicator_fakes::{s3, sqs, wire};
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::task::JoinSet;
use tokio::time::Instant;

const SOURCE: &str = "orders";
const DESTINATION: &str = "orders-replica";
/// The others are called the same, with a number.
const DESTINATIONS: usize = 8;
const QUEUE: &str = "events";
/// Who prepares and checks, and is not counted.
const USER: &str = "AKIDUSER";

/// More than anyone receives between two looks.
const VISIBLE_MAX: usize = 2_000;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    let endpoint = format!("http://{}", listener.local_addr()?);
    let world = World::new(&endpoint);
    say(&json!({ "endpoint": endpoint, "queue": world.sqs.url(QUEUE) }));
    let net = world.net.clone();
    tokio::select! {
        told = obey(world) => told,
        never = wire::serve(listener, net) => match never {},
    }
}

/// The servers, and what is known of what they served.
#[derive(Clone)]
struct World {
    s3: s3::Fake,
    sqs: sqs::Fake,
    net: Net,
    seen: Arc<Mutex<Seen>>,
}

#[derive(Debug, Default)]
struct Seen {
    /// Events that were not sent yet.
    held: VecDeque<String>,
    /// Since when keys that have no replica yet are announced, and how long the others took.
    waiting: BTreeMap<String, Instant>,
    replicated: Vec<Duration>,
    /// When messages were sent, by their ids.
    sent: BTreeMap<String, Instant>,
    replicas: usize,
}

async fn obey(world: World) -> anyhow::Result<()> {
    let mut lines = BufReader::new(tokio::io::stdin()).lines();
    let mut work = JoinSet::new();
    while let Some(line) = lines.next_line().await? {
        let words: Vec<&str> = line.split(' ').collect();
        match words.as_slice() {
            ["seed", objects, bytes, keys] => {
                world.seed(objects.parse()?, bytes.parse()?, keys.parse()?).await?;
            }
            ["repeat", objects, bytes] => world.repeat(objects.parse()?, bytes.parse()?).await?,
            ["hold", ..] => world.hold(line.trim_start_matches("hold ").to_owned()),
            ["post", count] => drop(work.spawn(world.clone().post(count.parse()?))),
            ["pace", per_second] => drop(work.spawn(world.clone().pace(per_second.parse()?))),
            ["waiting"] | ["stats"] => {}
            _ => bail!("what is {line:?}?"),
        }
        say(&if words == ["stats"] { world.stats() } else { world.progress() });
    }
    Ok(())
}

impl World {
    fn new(endpoint: &str) -> Self {
        let clock = Clock::starting_at(SystemTime::now());
        let (s3, sqs) = (s3::Fake::new(clock.clone(), 1), sqs::Fake::new(endpoint, clock, 1));
        let net = Net::new(1);
        net.route("s3", Service::S3, s3.clone());
        net.route("sqs", Service::Sqs, sqs.clone());
        sqs.create(QUEUE);
        let world = Self { s3, sqs, net, seen: Arc::default() };
        world.s3.create_bucket(SOURCE, Versioning::Enabled);
        let at_source = world.clone();
        world.s3.notify(SOURCE, Arc::new(move |event| at_source.hold(event)));
        let others = (2..=DESTINATIONS).map(|number| format!("{DESTINATION}-{number}"));
        for bucket in std::iter::once(DESTINATION.to_owned()).chain(others) {
            world.s3.create_bucket(&bucket, Versioning::Enabled);
            let at_destination = world.clone();
            world.s3.notify(&bucket, Arc::new(move |event| at_destination.replicated(&event)));
        }
        world
    }

    fn hold(&self, event: String) {
        self.seen.lock().expect("nobody panics").held.push_back(event);
    }

    fn replicated(&self, event: &str) {
        let mut seen = self.seen.lock().expect("nobody panics");
        seen.replicas += 1;
        if let Some(since) = seen.waiting.remove(&key(event)) {
            seen.replicated.push(since.elapsed());
        }
    }

    async fn seed(&self, objects: usize, bytes: usize, keys: usize) -> anyhow::Result<()> {
        let user = self.user();
        for number in 0..objects {
            // Versions of one key with the same bytes would have to wait for one another (protocol rule 5).
            let mut body = number.to_le_bytes().to_vec();
            body.resize(bytes, b'x');
            // Some have a tag, as everywhere: then each daemon gets to know that the endpoint counts tags.
            let tag = (number % 100 == 0).then(|| "tier=gold".to_owned());
            let put = user.put_object().bucket(SOURCE).key(seeded(number % keys)).set_tagging(tag);
            put.body(body.into()).send().await.context("seeding")?;
        }
        Ok(())
    }

    /// Seeding takes long with much to hash, and memory for all of it, so one object stands for all.
    async fn repeat(&self, objects: usize, bytes: usize) -> anyhow::Result<()> {
        self.seed(1, bytes, 1).await?;
        self.s3.repeat(SOURCE, &seeded(0), (1..objects).map(seeded));
        Ok(())
    }

    /// Keeps the queue full until all is sent. The fake looks at each of its messages at each receipt, and a million of
    /// them would be what is measured. All count from the first: they are the backlog of that moment.
    async fn post(self, count: usize) {
        let (mut left, now) = (count, Instant::now());
        loop {
            let room = VISIBLE_MAX.saturating_sub(self.sqs.depth(QUEUE).visible);
            let sent = self.send(room.min(left), now);
            left -= sent;
            if left == 0 || sent < room {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends so many times a second what is held, and forgets what was before.
    async fn pace(self, per_second: f64) {
        {
            let mut seen = self.seen.lock().expect("nobody panics");
            seen.sent.clear();
            seen.replicated.clear();
        }
        let start = Instant::now();
        for number in 0_u32.. {
            tokio::time::sleep_until(start + Duration::from_secs_f64(f64::from(number) / per_second)).await;
            if self.send(1, Instant::now()) == 0 {
                return;
            }
        }
    }

    /// Sends up to so many of what is held; returns how many there were.
    fn send(&self, count: usize, now: Instant) -> usize {
        let mut seen = self.seen.lock().expect("nobody panics");
        let count = count.min(seen.held.len());
        let events: Vec<String> = seen.held.drain(..count).collect();
        for event in events {
            seen.waiting.insert(key(&event), now);
            let id = self.sqs.send(QUEUE, event, Duration::ZERO);
            seen.sent.insert(id, now);
        }
        count
    }

    fn waiting(&self) -> usize {
        let depth = self.sqs.depth(QUEUE);
        depth.visible + depth.hidden + depth.delayed + self.seen.lock().expect("nobody panics").held.len()
    }

    fn progress(&self) -> Value {
        json!({ "waiting": self.waiting(), "replicas": self.seen.lock().expect("nobody panics").replicas })
    }

    fn stats(&self) -> Value {
        let mut requests: BTreeMap<String, usize> = BTreeMap::new();
        let mut bytes = 0;
        for entry in self.net.journal().select(|entry| entry.client != USER) {
            *requests.entry(entry.call.operation).or_default() += 1;
            bytes += entry.call.bytes;
        }
        let seen = self.seen.lock().expect("nobody panics");
        let acknowledged = self.sqs.deleted(QUEUE).into_iter();
        let acknowledged = acknowledged.filter_map(|(id, at)| Some(at.duration_since(*seen.sent.get(&id)?)));
        json!({
            "requests": requests,
            "bytes": bytes,
            "replicated_seconds": spread(seen.replicated.clone()),
            "acknowledged_seconds": spread(acknowledged.collect()),
        })
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
    let at = |share: f64| took.get((took.len() as f64 * share) as usize).map(Duration::as_secs_f64);
    json!({ "p50": at(0.5), "p99": at(0.99), "max": took.last().map(Duration::as_secs_f64) })
}

fn seeded(number: usize) -> String {
    format!("bench/{number:08}")
}

/// Returns the key of an event, as the event has it.
fn key(event: &str) -> String {
    let event: Value = serde_json::from_str(event).unwrap_or_default();
    event["Records"][0]["s3"]["object"]["key"].as_str().unwrap_or_default().to_owned()
}

#[allow(clippy::print_stdout, reason = "this is how the benchmark hears of it")]
fn say(what: &Value) {
    println!("{what}");
}
