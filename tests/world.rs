//! A world: two buckets in two accounts, a KMS key in each, a queue with a place for parked
//! messages, and the way in which events get from the source bucket to the queue.

pub(crate) mod config;
pub(crate) mod daemon;
pub(crate) mod event_bridge;
pub(crate) mod faults;
pub(crate) mod hostile;
pub(crate) mod http;
pub(crate) mod localstack;
pub(crate) mod metrics;
pub(crate) mod oracle;
pub(crate) mod queue;
pub(crate) mod request;
pub(crate) mod secrets;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use aws_sdk_s3::primitives::ByteStream;
use serde_json::Value;
use tempfile::TempDir;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::{Instant, sleep};

use config::{Config, Rule, free_address};
use daemon::{Daemon, PAUSE};
use event_bridge::Bridge;
use localstack::{ARCHIVE, SOURCE, endpoint, unique};
use oracle::Script;
use queue::Queue;

/// How long something may take before it counts as hanging; no test measures time.
pub(crate) const HANG: Duration = Duration::from_secs(300);

// LocalStack is one process on few cores: more worlds at a time only make each of them slower.
static WORLDS: Semaphore = Semaphore::const_new(2);

/// How events get from the bucket to the queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Feed {
    /// S3 sends them to the queue.
    Direct,
    /// S3 sends them to a topic, which wraps them.
    Sns,
    /// S3 sends them to a topic, which passes them on as they are.
    SnsRaw,
    /// They have EventBridge's shape.
    EventBridge,
}

/// All that one test plays with; other tests have their own.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) source: String,
    pub(crate) archive: String,
    pub(crate) queue: Queue,
    pub(crate) parked: Queue,
    /// What the work goes through, where several daemons share it.
    pub(crate) work: Option<Queue>,
    /// The KMS keys of both accounts, by their ARNs.
    pub(crate) source_key: String,
    pub(crate) archive_key: String,
    bridge: Option<Bridge>,
    dir: TempDir,
    _permit: SemaphorePermit<'static>,
}

impl World {
    /// Makes a world of what is there already: two buckets, and queues that are wired.
    pub(crate) async fn of(buckets: [String; 2], [queue, parked, work]: [Queue; 3]) -> Self {
        let [source, archive] = buckets;
        Self {
            source,
            archive,
            queue,
            parked,
            work: Some(work),
            source_key: SOURCE.create_key().await,
            archive_key: ARCHIVE.create_key().await,
            bridge: None,
            dir: tempfile::tempdir().unwrap(),
            _permit: WORLDS.acquire().await.unwrap(),
        }
    }

    /// Makes a world in which S3 sends its events to the queue.
    pub(crate) async fn new() -> Self {
        Self::fed_by(Feed::Direct).await
    }

    /// Makes a world that several daemons can share.
    pub(crate) async fn shared() -> Self {
        let world = Self::new().await;
        Self {
            work: Some(Queue::create_fifo("work").await),
            ..world
        }
    }

    /// Makes a world with another way of the events.
    pub(crate) async fn fed_by(feed: Feed) -> Self {
        let permit = WORLDS.acquire().await.unwrap();
        let (source, archive) = (unique("orders"), unique("orders-replica"));
        let things = async {
            tokio::join!(
                SOURCE.create_bucket(&source),
                ARCHIVE.create_bucket(&archive),
                Queue::create("events"),
                Queue::create("parked"),
                SOURCE.create_key(),
                ARCHIVE.create_key(),
            )
        };
        let ((), (), queue, parked, source_key, archive_key) = Box::pin(things).await;
        let mut bridge = None;
        let target = match feed {
            Feed::Direct => queue.arn(),
            Feed::Sns | Feed::SnsRaw => {
                SOURCE
                    .create_topic(&unique("events"), &queue.url, feed == Feed::SnsRaw)
                    .await
            }
            Feed::EventBridge => bridge.insert(Bridge::open(queue.clone()).await).inlet.arn(),
        };
        SOURCE.notify(&source, &target).await;
        let dir = tempfile::tempdir().unwrap();
        Self {
            source,
            archive,
            queue,
            parked,
            work: None,
            source_key,
            archive_key,
            bridge,
            dir,
            _permit: permit,
        }
    }

    /// Returns a configuration with one rule that replicates everything.
    pub(crate) fn config(&self) -> Config {
        Config {
            path: self.dir.path().join("config.toml"),
            state_dir: stopped(self.dir.path().join("state")),
            listen: free_address(),
            memory: "256MiB",
            drain_timeout: "30s",
            endpoint: endpoint(),
            queue_url: self.queue.url.clone(),
            dead_letter_url: self.parked.url.clone(),
            work_queue: self.work.as_ref().map(|work| work.url.clone()),
            visibility_timeout: "15s",
            assumes_role: true,
            settings: String::new(),
            account_keys: String::new(),
            rules: vec![self.rule("orders", "")],
        }
    }

    /// Returns the same for one of several daemons.
    pub(crate) fn config_of(&self, number: usize) -> Config {
        let own = self.dir.path().join(format!("daemon-{number}"));
        fs::create_dir_all(&own).unwrap();
        Config {
            path: own.join("config.toml"),
            state_dir: stopped(own.join("state")),
            ..self.config()
        }
    }

    /// Returns a rule for the keys with a prefix.
    pub(crate) fn rule(&self, id: &'static str, prefix: &str) -> Rule {
        Rule {
            id,
            source: self.source.clone(),
            destination: self.archive.clone(),
            rewrite: None,
            filter: format!("prefix = \"{prefix}\""),
            delete_markers: true,
            history: "exact",
            version_deletes: false,
            encryption: format!("mode = \"kms\", key = \"{}\"", self.archive_key),
            more: String::new(),
        }
    }

    /// Returns the keys of the source's account and the archive's.
    pub(crate) fn keys(&self) -> [&str; 2] {
        [&self.source_key, &self.archive_key]
    }

    /// Starts the daemon on the plain configuration and waits until it is ready.
    pub(crate) async fn start(&self) -> Daemon {
        Daemon::spawn(&self.config()).ready().await
    }

    /// Writes an object to the source bucket and returns its version id.
    pub(crate) async fn put(&self, key: &str, body: impl Into<Vec<u8>>) -> String {
        let body = ByteStream::from(body.into());
        SOURCE
            .s3()
            .put_object()
            .bucket(&self.source)
            .key(key)
            .body(body)
            .send()
            .await
            .unwrap()
            .version_id
            .unwrap()
    }

    /// Says whether a key has a current version at the destination.
    pub(crate) async fn replica_exists(&self, key: &str) -> bool {
        ARCHIVE
            .s3()
            .head_object()
            .bucket(&self.archive)
            .key(key)
            .send()
            .await
            .is_ok()
    }

    /// Prepares the workload: seeded operations on the source bucket. `S3_REPLICATOR_SEED` is added
    /// to every test's own seed, so that a run can be another one.
    pub(crate) fn workload(&self, operations: u32, keys: u32, seed: u32) -> Script {
        let shift: u64 =
            std::env::var("S3_REPLICATOR_SEED").map_or(0, |text| text.parse().unwrap());
        Script::new("workload.py")
            .option("endpoint", endpoint())
            .option("account", SOURCE.id)
            .option("region", SOURCE.region)
            .option("bucket", &self.source)
            .option("kms-key-arn", &self.source_key)
            .option("operations", operations)
            .option("keys", keys)
            .option("seed", shift.wrapping_add(seed.into()))
    }

    /// Waits until no event is on its way or at work any more.
    pub(crate) async fn drained(&self, daemon: &Daemon) {
        let mut progress = (f64::NAN, f64::NAN, 0);
        let mut moved = Instant::now();
        let mut quiet = 0;
        // S3 sends its events after it has answered: only a while of quiet means that none is
        // coming.
        while quiet < 10 {
            sleep(PAUSE).await;
            let metrics = daemon.metrics().await;
            let pending = metrics.sum("operations_pending", &[]);
            let waiting = self.queue.depth().await + self.bridge_depth().await;
            let idle = !metrics.is_empty() && pending == 0.0 && waiting == 0;
            quiet = if idle { quiet + 1 } else { 0 };
            let now = (pending, metrics.sum("operations_total", &[]), waiting);
            if now != progress {
                (progress, moved) = (now, Instant::now());
            }
            assert!(
                moved.elapsed() < HANG,
                "no progress: {pending} operations and {waiting} messages pending"
            );
        }
        daemon.read_status().await;
    }

    /// Waits until no event is on its way or at work at any of these any more.
    pub(crate) async fn all_drained(&self, daemons: &[Daemon]) {
        let mut quiet = 0;
        let (mut left, mut moved) = (0, Instant::now());
        while quiet < 10 {
            sleep(PAUSE).await;
            let mut now = self.queue.depth().await;
            if let Some(work) = &self.work {
                now += work.depth().await;
            }
            for daemon in daemons {
                now += daemon.metrics().await.sum("operations_pending", &[]) as i64;
            }
            quiet = if now == 0 { quiet + 1 } else { 0 };
            if now != left {
                (left, moved) = (now, Instant::now());
            }
            assert!(
                moved.elapsed() < HANG,
                "no progress: {left} messages and operations pending"
            );
        }
        for daemon in daemons {
            daemon.read_status().await;
        }
    }

    async fn bridge_depth(&self) -> i64 {
        match &self.bridge {
            Some(bridge) => bridge.inlet.depth().await,
            None => 0,
        }
    }

    /// Compares both buckets, which must be equal, and returns how much there was to compare.
    pub(crate) async fn assert_equal(&self) -> Value {
        self.comparison().summary().await
    }

    /// Prepares the comparison of both buckets.
    pub(crate) fn comparison(&self) -> Script {
        self.comparison_under_any_key()
            .option("kms-key-arn", &self.archive_key)
    }

    /// Prepares the comparison of a rule whose replicas are not under the archive's key.
    pub(crate) fn comparison_under_any_key(&self) -> Script {
        Script::new("compare.py")
            .option("source-endpoint", endpoint())
            .option("source-account", SOURCE.id)
            .option("source-region", SOURCE.region)
            .option("source-bucket", &self.source)
            .option("destination-endpoint", endpoint())
            .option("destination-account", ARCHIVE.id)
            .option("destination-region", ARCHIVE.region)
            .option("destination-bucket", &self.archive)
    }

    /// Lists the keys that the destination shows, that is, not hidden by a delete marker.
    pub(crate) async fn replicas(&self) -> Vec<String> {
        let listed = ARCHIVE
            .s3()
            .list_objects_v2()
            .bucket(&self.archive)
            .send()
            .await
            .unwrap();
        listed
            .contents
            .unwrap_or_default()
            .into_iter()
            .filter_map(|object| object.key)
            .collect()
    }
}

/// Makes a state directory as a daemon leaves it that was stopped: the next one need not wait for
/// it.
pub(crate) fn stopped(state_dir: PathBuf) -> PathBuf {
    if !state_dir.exists() {
        fs::create_dir(&state_dir).unwrap();
        fs::write(state_dir.join("stopped"), "").unwrap();
    }
    state_dir
}

/// Waits until a condition holds.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let began = Instant::now();
    while !condition().await {
        assert!(began.elapsed() < HANG, "it never came true that {what}");
        sleep(PAUSE).await;
    }
}
