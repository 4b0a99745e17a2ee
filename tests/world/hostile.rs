//! A hostile world: the fakes behind TCP, and in front of them a proxy that by script answers in
//! their stead with whatever bytes a test wants, alters what they say, drips, or never answers.

mod front;
mod proxy;

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use replicator_fakes::clock::Clock;
use replicator_fakes::journal::Service;
use replicator_fakes::net::Net;
use replicator_fakes::s3::entry::Versioning;
use replicator_fakes::{s3, sqs, wire};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinSet;

use super::config::{Config, Rule, free_address};
use super::eventually;
use super::request::Seen;
pub(crate) use front::Front;
pub(crate) use proxy::Reply;
use proxy::{Line, Proxy, accept};

/// The source bucket.
pub(crate) const SOURCE: &str = "orders";
/// The destination bucket.
pub(crate) const ARCHIVE: &str = "orders-replica";
/// The queue of events.
pub(crate) const QUEUE: &str = "events";
/// The dead-letter queue.
pub(crate) const DEAD: &str = "parked";

/// Everything that one test plays with; it stops when dropped.
#[derive(Debug)]
pub(crate) struct Hostile {
    pub(crate) s3: s3::Fake,
    pub(crate) sqs: sqs::Fake,
    /// Where the daemon reaches the proxy.
    pub(crate) url: String,
    /// Where the fakes are reached without it.
    direct: String,
    proxy: Arc<Proxy>,
    pub(crate) dir: TempDir,
    _servers: JoinSet<()>,
}

impl Hostile {
    /// Makes a world whose source bucket sends its events to the queue.
    pub(crate) async fn new() -> Self {
        let clock = Clock::starting_at(now());
        let (s3, sqs) = (
            s3::Fake::new(clock.clone(), 1),
            sqs::Fake::new("http://sqs.invalid", clock, 1),
        );
        let net = Net::new(1);
        net.route("s3", Service::S3, s3.clone());
        net.route("sqs", Service::Sqs, sqs.clone());
        for queue in [QUEUE, DEAD] {
            sqs.create(queue);
        }
        for bucket in [SOURCE, ARCHIVE] {
            s3.create_bucket(bucket, Versioning::Enabled);
        }
        let events = sqs.clone();
        s3.notify(
            SOURCE,
            Arc::new(move |event| drop(events.send(QUEUE, event, Duration::ZERO))),
        );
        let (fakes, direct) = listen().await;
        let (front, url) = listen().await;
        let proxy = Arc::new(Proxy::to(&direct));
        let mut servers = JoinSet::new();
        servers.spawn(async move { match wire::serve(fakes, net).await {} });
        servers.spawn(accept(front, Arc::clone(&proxy)));
        Self {
            s3,
            sqs,
            url,
            direct,
            proxy,
            dir: tempfile::tempdir().unwrap(),
            _servers: servers,
        }
    }

    /// Returns a configuration with one rule that replicates everything.
    pub(crate) fn config(&self) -> Config {
        Config {
            path: self.dir.path().join("config.toml"),
            state_dir: super::stopped(self.dir.path().join("state")),
            listen: free_address(),
            memory: "64MiB",
            drain_timeout: "10s",
            endpoint: self.url.clone(),
            queue_url: format!("{}/000000000000/{QUEUE}", self.url),
            dead_letter_url: format!("{}/000000000000/{DEAD}", self.url),
            work_queue: None,
            visibility_timeout: "6s",
            assumes_role: false,
            settings: String::new(),
            account_keys: String::new(),
            rules: vec![Rule {
                id: "orders",
                source: SOURCE.to_owned(),
                destination: ARCHIVE.to_owned(),
                rewrite: None,
                filter: String::new(),
                delete_markers: true,
                history: "exact",
                version_deletes: false,
                encryption: "mode = \"same\"".to_owned(),
                more: String::new(),
            }],
        }
    }

    /// Returns a client that reaches the fakes without the proxy.
    pub(crate) fn user(&self) -> aws_sdk_s3::Client {
        use aws_sdk_s3::config::{
            BehaviorVersion, Builder, Credentials, Region, RequestChecksumCalculation,
        };
        let config = Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&self.direct)
            .region(Region::new("eu-west-1"))
            .credentials_provider(Credentials::new("user", "any", None, None, "tests"))
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .force_path_style(true);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    /// Writes an object to the source bucket, without a checksum header, and returns its version
    /// id.
    pub(crate) async fn put(&self, key: &str, body: impl Into<Vec<u8>>) -> String {
        let put = self
            .user()
            .put_object()
            .bucket(SOURCE)
            .key(key)
            .body(body.into().into());
        put.send().await.unwrap().version_id.unwrap()
    }

    /// Answers every request for which the condition holds with a reply; of several scripts the
    /// first that fits.
    pub(crate) fn answer(&self, when: impl Fn(&Seen) -> bool + Send + 'static, reply: Reply) {
        self.answer_times(usize::MAX, when, reply);
    }

    /// The same for so many requests.
    pub(crate) fn answer_times(
        &self,
        times: usize,
        when: impl Fn(&Seen) -> bool + Send + 'static,
        reply: Reply,
    ) {
        self.proxy.script.lock().unwrap().push(Line {
            when: Box::new(when),
            reply,
            times,
        });
    }

    /// Ends all scripts.
    pub(crate) fn clear(&self) {
        self.proxy.script.lock().unwrap().clear();
    }

    /// Counts the requests that a script answered.
    pub(crate) fn hits(&self) -> usize {
        *self.proxy.hits.lock().unwrap()
    }

    /// Returns every request that came to the proxy, in the order they came.
    pub(crate) fn journal(&self) -> Vec<Seen> {
        self.proxy.journal.lock().unwrap().clone()
    }

    /// Returns the bytes that a bucket shows at a key.
    pub(crate) fn shown(&self, bucket: &str, key: &str) -> Option<Bytes> {
        let history = self.s3.history(bucket, key);
        history
            .last()
            .and_then(|entry| entry.object.as_ref())
            .map(|object| object.bytes.clone())
    }

    /// Counts the messages of the queue that are not deleted.
    pub(crate) fn waiting(&self) -> usize {
        let depth = self.sqs.depth(QUEUE);
        depth.visible + depth.hidden + depth.delayed
    }

    /// Waits until a key shows at the destination what it shows at the source.
    pub(crate) async fn replicated(&self, key: &str) {
        let what = format!("{key} is at the destination as it is at the source");
        eventually(&what, async || {
            self.shown(ARCHIVE, key) == self.shown(SOURCE, key)
        })
        .await;
    }

    /// Waits until every message is deleted.
    pub(crate) async fn drained(&self) {
        eventually("the queue is empty", async || self.waiting() == 0).await;
    }
}

async fn listen() -> (TcpListener, String) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    (listener, url)
}

#[allow(
    clippy::disallowed_methods,
    reason = "the real binary goes by the real clock, and so do the fakes beside it"
)]
fn now() -> SystemTime {
    SystemTime::now()
}
