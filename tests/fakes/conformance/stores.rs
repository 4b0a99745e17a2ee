//! The stores: the fake behind a socket, LocalStack where `make test` started it, and SeaweedFS,
//! which is started here and keeps its things in a folder that goes with it.

use std::convert::Infallible;
use std::net::TcpListener as Probe;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use bytes::Bytes;
use http::Request;
use replicator_fakes::clock::Clock;
use replicator_fakes::journal::Service;
use replicator_fakes::net::{Answering, Net, Serve};
use replicator_fakes::s3::traits::Traits;
use replicator_fakes::{kms, s3, sqs, wire};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::process::{Child, Command};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use crate::ground::Ground;

// Against hanging only.
const HANG: Duration = Duration::from_secs(300);
/// The Region of everything.
pub(crate) const REGION: &str = "us-east-1";
/// The account of everything: LocalStack takes its name from the access key.
pub(crate) const ACCOUNT: &str = "111111111111";

/// The way to a store, and what it has.
#[derive(Clone)]
pub(crate) struct Way {
    pub(crate) url: String,
    pub(crate) services: &'static [Service],
}

/// The fake on a port of its own.
pub(crate) struct Fake {
    url: String,
    _server: JoinSet<Infallible>,
}

/// The fake among the services of a net.
struct Served(s3::Fake);

impl Serve for Served {
    fn serve(&self, request: Request<Bytes>, client: &str) -> Answering {
        let (fake, client) = (self.0.clone(), client.to_owned());
        Box::pin(async move { fake.call(request, &client).await })
    }
}

impl Fake {
    pub(crate) async fn start(traits: Traits) -> Self {
        #[allow(
            clippy::disallowed_methods,
            reason = "the SDK signs with this time too"
        )]
        let clock = Clock::starting_at(SystemTime::now());
        let (fake, keys) = (s3::Fake::new(clock.clone(), 1), kms::Keys::default());
        fake.set_traits(traits);
        fake.set_key_ring(Arc::new(keys.clone()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let net = Net::new(1);
        net.route("s3.sim", Service::S3, Served(fake));
        net.route("sqs.sim", Service::Sqs, sqs::Fake::new(&url, clock, 1));
        net.route("kms.sim", Service::Kms, keys);
        let mut server = JoinSet::new();
        server.spawn(wire::serve(listener, net));
        Self {
            url,
            _server: server,
        }
    }

    pub(crate) async fn ground(&self, name: &'static str) -> Ground {
        Ground::prepare(
            name,
            Way {
                url: self.url.clone(),
                services: ALL,
            },
        )
        .await
    }
}

const ALL: &[Service] = &[Service::S3, Service::Sqs, Service::Kms];

/// LocalStack, which other tests use at the same time.
pub(crate) async fn localstack() -> Ground {
    let url = std::env::var("REPLICATOR_LOCALSTACK_URL")
        .expect("REPLICATOR_LOCALSTACK_URL is not set: run `make test`");
    Ground::prepare("LocalStack", Way { url, services: ALL }).await
}

/// A SeaweedFS.
pub(crate) struct SeaweedFs {
    url: String,
    _process: Child,
    _folder: TempDir,
}

impl SeaweedFs {
    /// Starts one on free ports of this machine only.
    pub(crate) async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let ports = free_ports();
        let option = |name: &str, port: usize| format!("-{name}={}", ports[port]);
        let process = Command::new(weed())
            .args([
                "server",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                "-s3",
                "-s3.iam=false",
                "-volume.max=50",
            ])
            .args([
                "-master.volumeSizeLimitMB=64",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
            ])
            .args([option("master.port", 0), option("master.port.grpc", 1)])
            .args([option("volume.port", 2), option("volume.port.grpc", 3)])
            .args([option("filer.port", 4), option("filer.port.grpc", 5)])
            .args([option("s3.port", 6), option("s3.port.grpc", 7)])
            .arg(format!("-dir={}", folder.path().display()))
            .current_dir(folder.path())
            .env("HOME", folder.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self {
            url: format!("http://127.0.0.1:{}", ports[6]),
            _process: process,
            _folder: folder,
        }
    }

    /// Waits until it answers, then prepares it.
    pub(crate) async fn ground(&self) -> Ground {
        let way = Way {
            url: self.url.clone(),
            services: &[Service::S3],
        };
        let s3 = way.s3();
        let ready = async {
            while s3.list_buckets().send().await.is_err() {
                sleep(Duration::from_millis(200)).await;
            }
            // It answers a little before it can store anything.
            while s3.create_bucket().bucket("ready").send().await.is_err()
                || s3
                    .put_object()
                    .bucket("ready")
                    .key("ready")
                    .send()
                    .await
                    .is_err()
            {
                sleep(Duration::from_millis(200)).await;
            }
        };
        timeout(HANG, ready).await.expect("SeaweedFS answers");
        Ground::prepare("SeaweedFS", way).await
    }
}

/// It is installed beside the Python that `make test` uses.
fn weed() -> PathBuf {
    let python =
        std::env::var("REPLICATOR_PYTHON").expect("REPLICATOR_PYTHON is not set: run `make test`");
    PathBuf::from(python).with_file_name("weed")
}

/// Ports that are free at this moment.
fn free_ports() -> Vec<u16> {
    let probes: Vec<Probe> = (0..8)
        .map(|_| Probe::bind("127.0.0.1:0").unwrap())
        .collect();
    probes
        .iter()
        .map(|probe| probe.local_addr().unwrap().port())
        .collect()
}

impl Way {
    /// A client of the store's S3.
    pub(crate) fn s3(&self) -> aws_sdk_s3::Client {
        let config = aws_sdk_s3::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&self.url)
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new(ACCOUNT, "any", None, None, "tests"))
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .force_path_style(true);
        aws_sdk_s3::Client::from_conf(config.build())
    }

    /// A client of its SQS.
    pub(crate) fn sqs(&self) -> aws_sdk_sqs::Client {
        let config = aws_sdk_sqs::config::Builder::new()
            .behavior_version(BehaviorVersion::latest())
            .endpoint_url(&self.url)
            .region(Region::new(REGION))
            .credentials_provider(Credentials::new(ACCOUNT, "any", None, None, "tests"));
        aws_sdk_sqs::Client::from_conf(config.build())
    }
}
