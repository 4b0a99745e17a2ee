//! The world: fakes that share one clock, and a runtime whose time jumps to whatever comes next.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_config::retry::RetryConfig;
use aws_config::stalled_stream_protection::StalledStreamProtectionConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_sdk_s3::config::{Credentials, SharedCredentialsProvider};
use aws_sdk_s3::primitives::ByteStream;
use aws_smithy_async::rt::sleep::{SharedAsyncSleep, TokioSleep};
use aws_smithy_async::time::{SharedTimeSource, TimeSource};
use bytes::Bytes;
use replicator_fakes::clock::Clock;
use replicator_fakes::journal::Service;
use replicator_fakes::net::{Latency, Net};
use replicator_fakes::s3::entry::Versioning;
use replicator_fakes::{kms, s3, sqs};
use s3_replicator::pipeline::AwsOverride;
use tempfile::TempDir;

/// The source bucket.
pub(crate) const SOURCE: &str = "orders";
/// The queue.
pub(crate) const QUEUE: &str = "events";
/// All queues that work waits in.
pub(crate) const QUEUES: [&str; 3] = [QUEUE, WORK, MIRROR_WORK];
/// The work queues of the destinations.
pub(crate) const WORK: &str = "work.fifo";
pub(crate) const MIRROR_WORK: &str = "mirror-work.fifo";
/// The queue of what is parked.
pub(crate) const DEAD: &str = "parked";
/// Keys of an account at AWS, as the configuration has them.
pub(crate) const AWS: &str = "path_style = true";
/// Those of another store, whose features have to be found out.
pub(crate) const NOT_AWS: &str =
    "path_style = true\nendpoints = { s3 = \"http://s3.other\" }\nallow_http = true";
/// The destination bucket.
pub(crate) const ARCHIVE: &str = "orders-replica";
/// Another destination bucket, for the tests that need one.
pub(crate) const MIRROR: &str = "orders-mirror";

/// All that one simulation plays with.
#[derive(Debug)]
pub(crate) struct Sim {
    pub(crate) rng: fastrand::Rng,
    pub(crate) clock: Clock,
    pub(crate) s3: s3::Fake,
    pub(crate) sqs: sqs::Fake,
    /// The KMS keys: all are enabled that are not set otherwise.
    pub(crate) keys: kms::Keys,
    pub(crate) net: Net,
    pub(crate) dir: TempDir,
    /// Whether daemons share their work by work queues.
    pub(crate) is_shared: bool,
}

// Any moment will do; this one is after every default that a rule could begin with.
const BEGINNING_UNIX_SECONDS: u64 = 1_800_000_000;

/// Plays a scenario to its end. Everything in it, the daemons included, runs on this thread and by
/// this seed.
pub(crate) fn simulate<T>(seed: u64, scenario: impl AsyncFnOnce(Sim) -> T) -> T {
    // What the daemon and the SDK draw for their jitter comes from this thread's generator.
    fastrand::seed(seed);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .build()
        .unwrap();
    runtime.block_on(async { scenario(Sim::new(seed)).await })
}

impl Sim {
    pub(crate) fn new(seed: u64) -> Self {
        Self::starting_at(seed, Clock::starting_at_unix(BEGINNING_UNIX_SECONDS))
    }

    /// Returns a world that has the time of the processes beside it.
    #[allow(
        clippy::disallowed_methods,
        reason = "processes beside it have no other time"
    )]
    pub(crate) fn in_real_time() -> Self {
        Self::starting_at(0, Clock::starting_at(std::time::SystemTime::now()))
    }

    fn starting_at(seed: u64, clock: Clock) -> Self {
        s3_replicator::clock::simulate(clock.now().into());
        let s3 = s3::Fake::new(clock.clone(), seed);
        let sqs = sqs::Fake::new("https://sqs.eu-west-1.amazonaws.com", clock.clone(), seed);
        let keys = kms::Keys::any();
        s3.set_key_ring(Arc::new(keys.clone()));
        let net = Net::new(seed);
        net.route("kms", Service::Kms, keys.clone());
        net.route("s3", Service::S3, s3.clone());
        net.route("sqs", Service::Sqs, sqs.clone());
        let milliseconds = |from, to| Duration::from_millis(from)..=Duration::from_millis(to);
        net.latency(Latency {
            there: milliseconds(1, 60),
            back: milliseconds(1, 60),
        });
        sqs.create(QUEUE);
        sqs.create_fifo(WORK);
        sqs.create_fifo(MIRROR_WORK);
        sqs.create(DEAD);
        for bucket in [SOURCE, ARCHIVE, MIRROR] {
            s3.create_bucket(bucket, Versioning::Enabled);
        }
        // The ledger syncs all the time, and what a crash leaves is not the disk's doing here.
        let memory = std::path::Path::new("/dev/shm");
        let dir = if memory.is_dir() {
            TempDir::new_in(memory)
        } else {
            TempDir::new()
        }
        .unwrap();
        Self {
            rng: fastrand::Rng::with_seed(seed),
            clock,
            s3,
            sqs,
            keys,
            net,
            dir,
            is_shared: false,
        }
    }

    /// Returns how a client of this name reaches the fakes.
    pub(crate) fn sdk(&self, name: &str) -> SdkConfig {
        let credentials = Credentials::new("AKIDSIMULATED", "secret", None, None, "simulation");
        // As long as the daemon gives its own.
        let timeouts = TimeoutConfig::builder()
            .operation_attempt_timeout(Duration::from_secs(60))
            .build();
        SdkConfig::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(SharedCredentialsProvider::new(credentials))
            .http_client(self.net.client(name))
            .sleep_impl(SharedAsyncSleep::new(TokioSleep::new()))
            .time_source(SharedTimeSource::new(Time(self.clock.clone())))
            .retry_config(RetryConfig::disabled())
            .timeout_config(timeouts)
            // It looks ten times a second at what is sent, and the fakes take a body at once: a
            // poll of a queue would cost 200 jumps of time and prove nothing.
            .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
            .build()
    }

    /// Returns how a daemon of this name reaches the fakes.
    pub(crate) fn given(&self, name: &str) -> AwsOverride {
        AwsOverride {
            sdk: self.sdk(name),
            connector: self.net.connector(name),
        }
    }

    /// Returns a client for users of the buckets.
    pub(crate) fn user(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::config::Builder::from(&self.sdk("user"));
        aws_sdk_s3::Client::from_conf(config.force_path_style(true).build())
    }

    /// Puts every event of the source bucket into the queue as it comes.
    pub(crate) fn post_everything(&self) {
        let sqs = self.sqs.clone();
        self.s3.notify(
            SOURCE,
            Arc::new(move |event| drop(sqs.send(QUEUE, event, Duration::ZERO))),
        );
    }

    /// Puts every event of a bucket into a queue of its own as it comes, and nowhere else. No
    /// daemon reads it unless it is told to.
    pub(crate) fn post_apart(&self, bucket: &str, queue: &'static str) {
        self.s3.silence(bucket);
        self.sqs.create(queue);
        let sqs = self.sqs.clone();
        self.s3.notify(
            bucket,
            Arc::new(move |event| drop(sqs.send(queue, event, Duration::ZERO))),
        );
    }

    /// Writes a small object.
    pub(crate) async fn put(&self, key: &str, body: &'static [u8]) {
        let put = self
            .user()
            .put_object()
            .bucket(SOURCE)
            .key(key)
            .body(ByteStream::from_static(body));
        put.send().await.unwrap();
    }

    /// Deletes an object; returns the id of the marker that hides it.
    pub(crate) async fn delete(&self, key: &str) -> String {
        let delete = self.user().delete_object().bucket(SOURCE).key(key);
        delete.send().await.unwrap().version_id.unwrap()
    }

    /// Deletes a version, or a marker, permanently.
    pub(crate) async fn purge(&self, key: &str, version: &str) {
        let delete = self.user().delete_object().bucket(SOURCE).key(key);
        delete.version_id(version).send().await.unwrap();
    }

    /// Writes so many objects of a size, the keys of which go on with their number.
    pub(crate) async fn fill(&self, prefix: &str, objects: usize, bytes: usize) {
        let body = Bytes::from(vec![1; bytes]);
        for number in 0..objects {
            let put = self
                .user()
                .put_object()
                .bucket(SOURCE)
                .key(format!("{prefix}{number}"));
            put.body(ByteStream::from(body.clone()))
                .send()
                .await
                .unwrap();
        }
    }

    /// Returns what a bucket shows at a key.
    pub(crate) fn shown(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let history = self.s3.history(bucket, key);
        history
            .last()
            .and_then(|entry| entry.object.as_ref())
            .map(|object| object.bytes.clone())
    }

    /// Returns the id of the newest version, or marker, of a key in the source.
    pub(crate) fn newest(&self, key: &str) -> String {
        let history = self.s3.history(SOURCE, key);
        history.last().unwrap().version_id.clone()
    }

    /// Lets all daemons from now on share their work.
    pub(crate) fn share(&mut self) {
        self.is_shared = true;
    }

    /// Shows again what is hidden, before its time.
    pub(crate) fn redeliver_hidden(&self) {
        QUEUES
            .into_iter()
            .for_each(|queue| self.sqs.redeliver_hidden(queue));
    }

    /// Counts the messages that are not deleted.
    pub(crate) fn waiting(&self) -> usize {
        let depths = QUEUES.map(|queue| self.sqs.depth(queue));
        depths
            .into_iter()
            .map(|depth| depth.visible + depth.hidden + depth.delayed)
            .sum()
    }

    /// Waits until the queue is empty.
    pub(crate) async fn drained(&self) {
        for _ in 0..10_000 {
            self.pass(Duration::from_secs(5)).await;
            if self.waiting() == 0 {
                return;
            }
        }
        panic!(
            "the queues never become empty: {:?} {:?}",
            self.sqs.depth(QUEUE),
            self.sqs.depth(WORK)
        );
    }

    /// Waits some of the world's time.
    pub(crate) async fn pass(&self, time: Duration) {
        tokio::time::sleep(time).await;
    }
}

#[derive(Debug)]
struct Time(Clock);

impl TimeSource for Time {
    fn now(&self) -> SystemTime {
        self.0.now()
    }
}
