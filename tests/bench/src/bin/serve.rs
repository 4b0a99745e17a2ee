//! The fakes over TCP: two buckets and a queue that cost little, so that what a client costs shows. It is told what
//! to do by lines on its standard input and answers each with one line of JSON.
//!
//! `seed N BYTES KEYS`: puts objects into the source, under so many keys in turn. `post`: announces them, as fast as they
//! are received. `pace N PER_SECOND BYTES`: puts and announces
//! as time goes. `send`: the rest of the line goes into the queue. `waiting`: how many messages are left
//! and how many replicas there are, which is cheap. `stats`: what was asked and how far it is.

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
use bytes::Bytes;
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
    /// Events of the source that were not sent yet.
    held: VecDeque<String>,
    /// When keys were put that have no replica yet, and how long the others took.
    waiting: BTreeMap<String, Instant>,
    latencies: Vec<Duration>,
    replicas: usize,
    is_paced: bool,
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
            ["post"] => drop(work.spawn(world.clone().post())),
            ["pace", objects, per_second, bytes] => {
                let (objects, per_second, bytes) = (objects.parse()?, per_second.parse()?, bytes.parse()?);
                work.spawn(world.clone().pace(objects, per_second, bytes));
            }
            ["send", ..] => drop(world.sqs.send(QUEUE, line.trim_start_matches("send ").to_owned(), Duration::ZERO)),
            ["waiting"] => {
                say(&json!({ "waiting": world.waiting(), "replicas": world.replicas() }));
                continue;
            }
            ["stats"] => {}
            _ => bail!("what is {line:?}?"),
        }
        say(&world.stats());
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
        world.s3.notify(SOURCE, Arc::new(move |event| at_source.put(event)));
        let others = (2..=DESTINATIONS).map(|number| format!("{DESTINATION}-{number}"));
        for bucket in std::iter::once(DESTINATION.to_owned()).chain(others) {
            world.s3.create_bucket(&bucket, Versioning::Enabled);
            let at_destination = world.clone();
            world.s3.notify(&bucket, Arc::new(move |event| at_destination.replicated(&event)));
        }
        world
    }

    fn put(&self, event: String) {
        let mut seen = self.seen.lock().expect("nobody panics");
        match seen.is_paced {
            true => {
                seen.waiting.insert(key(&event), Instant::now());
                self.sqs.send(QUEUE, event, Duration::ZERO);
            }
            false => seen.held.push_back(event),
        }
    }

    fn replicated(&self, event: &str) {
        let mut seen = self.seen.lock().expect("nobody panics");
        seen.replicas += 1;
        if let Some(since) = seen.waiting.remove(&key(event)) {
            seen.latencies.push(since.elapsed());
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
            let put = user.put_object().bucket(SOURCE).key(format!("bench/{:08}", number % keys)).set_tagging(tag);
            put.body(body.into()).send().await.context("seeding")?;
        }
        Ok(())
    }

    /// Keeps the queue full until all is sent. The fake looks at each of its messages at each receipt, and a million of
    /// them would be what is measured.
    async fn post(self) {
        let now = Instant::now();
        while self.post_some(VISIBLE_MAX.saturating_sub(self.sqs.depth(QUEUE).visible), now) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// Sends up to so many; returns false when all are sent.
    fn post_some(&self, room: usize, now: Instant) -> bool {
        let mut seen = self.seen.lock().expect("nobody panics");
        let sent = room.min(seen.held.len());
        let events: Vec<String> = seen.held.drain(..sent).collect();
        for event in events {
            seen.waiting.insert(key(&event), now);
            self.sqs.send(QUEUE, event, Duration::ZERO);
        }
        !seen.held.is_empty()
    }

    async fn pace(self, objects: usize, per_second: f64, bytes: usize) {
        {
            let mut seen = self.seen.lock().expect("nobody panics");
            seen.is_paced = true;
            seen.latencies.clear();
        }
        let (user, body, start) = (self.user(), Bytes::from(vec![b'x'; bytes]), Instant::now());
        for number in 0..objects {
            tokio::time::sleep_until(start + Duration::from_secs_f64(number as f64 / per_second)).await;
            let put = user.put_object().bucket(SOURCE).key(format!("paced/{number:08}"));
            put.body(body.clone().into()).send().await.expect("a fake takes what it is given");
        }
    }

    fn waiting(&self) -> usize {
        let depth = self.sqs.depth(QUEUE);
        depth.visible + depth.hidden + depth.delayed + self.seen.lock().expect("nobody panics").held.len()
    }

    fn replicas(&self) -> usize {
        self.seen.lock().expect("nobody panics").replicas
    }

    fn stats(&self) -> Value {
        let mut requests: BTreeMap<String, usize> = BTreeMap::new();
        for entry in self.net.journal().select(|entry| entry.client != "AKIDUSER") {
            *requests.entry(entry.call.operation).or_default() += 1;
        }
        let waiting = self.waiting();
        let seen = self.seen.lock().expect("nobody panics");
        let mut latencies = seen.latencies.clone();
        latencies.sort_unstable();
        let at = |share: f64| latencies.get((latencies.len() as f64 * share) as usize).map(Duration::as_secs_f64);
        json!({
            "waiting": waiting,
            "replicas": seen.replicas,
            "requests": requests,
            "latency_seconds": { "p50": at(0.5), "p99": at(0.99), "max": latencies.last().map(Duration::as_secs_f64) },
        })
    }

    fn user(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new("AKIDUSER", "secret", None, None, "bench"))
            .http_client(self.net.client("AKIDUSER"))
            .endpoint_url("http://s3")
            .force_path_style(true);
        aws_sdk_s3::Client::from_conf(config.build())
    }
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
