//! The network as a client of the SDK sees it.

use std::collections::BTreeMap;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{BehaviorVersion, Credentials, Region, RequestChecksumCalculation};
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use tokio::time::Instant;

use super::*;
use crate::clock::Clock;
use crate::faults::{Effect, Fault, Place};
use crate::journal::Answer;

/// A store that is no more than a map from paths to bytes.
#[derive(Clone, Default)]
pub(crate) struct Stub {
    objects: Arc<Mutex<BTreeMap<String, Bytes>>>,
}

impl Serve for Stub {
    fn serve(&self, request: Request<Bytes>, _client: &str) -> Answering {
        let path = request.uri().path().to_owned();
        let head = request.method() == http::Method::HEAD;
        let mut objects = self.objects.lock().unwrap();
        let mut response = Response::builder().header("etag", "\"right\"");
        let body = match request.method().as_str() {
            "POST" => Bytes::from(
                "<InitiateMultipartUploadResult><UploadId>u-1</UploadId></InitiateMultipartUploadResult>",
            ),
            "PUT" => {
                objects.insert(path, request.into_body());
                Bytes::new()
            }
            _ => objects.get(&path).cloned().unwrap_or_default(),
        };
        response = response.header("content-length", body.len());
        let body = if head { Bytes::new() } else { body };
        Box::pin(std::future::ready(response.body(body).unwrap()))
    }
}

impl Stub {
    fn object(&self) -> Option<Bytes> {
        self.objects.lock().unwrap().get("/b/k").cloned()
    }
}

pub(crate) fn config() -> aws_sdk_s3::config::Builder {
    aws_sdk_s3::Config::builder()
        .behavior_version(BehaviorVersion::latest())
        .region(Region::new("us-east-1"))
        .credentials_provider(Credentials::new("one", "secret", None, None, "test"))
        .force_path_style(true)
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .retry_config(RetryConfig::disabled())
}

struct World {
    net: Net,
    stub: Stub,
    client: Client,
}

fn world(seed: u64) -> World {
    let (net, stub) = (Net::new(seed), Stub::default());
    net.route("s3.sim", Service::S3, stub.clone());
    let timeouts = TimeoutConfig::builder().operation_attempt_timeout(secs(60));
    let config = config()
        .endpoint_url("http://s3.sim")
        .http_client(net.client("one"))
        .time_source(Clock::starting_at_unix(1_800_000_000))
        .timeout_config(timeouts.build());
    World {
        client: Client::from_conf(config.build()),
        net,
        stub,
    }
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

impl World {
    /// Returns the status and code of an error; 0 where no answer came.
    async fn put(&self, body: &'static str) -> Result<Option<String>, (u16, String)> {
        let asked = self
            .client
            .put_object()
            .bucket("b")
            .key("k")
            .body(Bytes::from(body).into());
        asked
            .send()
            .await
            .map(|answer| answer.e_tag)
            .map_err(|error| told(&error))
    }

    async fn get(&self) -> Result<Bytes, String> {
        let answer = self
            .client
            .get_object()
            .bucket("b")
            .key("k")
            .send()
            .await
            .unwrap();
        let body = answer.body.collect().await;
        body.map(|body| body.into_bytes())
            .map_err(|error| format!("{:?}", std::error::Error::source(&error)))
    }

    fn fault(&self, operation: &str, effect: Effect) {
        self.net
            .faults()
            .add(Fault::new("it", Place::s3(operation), effect).times(1));
    }
}

fn told<E: ProvideErrorMetadata>(
    error: &SdkError<E, aws_smithy_runtime_api::client::orchestrator::HttpResponse>,
) -> (u16, String) {
    let status = error
        .raw_response()
        .map_or(0, |response| response.status().as_u16());
    (status, error.code().unwrap_or_default().to_owned())
}

fn nothing() -> (u16, String) {
    (0, String::new())
}

#[tokio::test(start_paused = true)]
async fn a_request_is_answered_and_written_down() {
    let world = world(1);
    world.put("hello").await.unwrap();
    assert_eq!(world.get().await.unwrap(), "hello");
    let entries = world.net.journal().entries();
    let seen = entries.iter().map(|entry| {
        (
            entry.client.as_str(),
            entry.call.operation.as_str(),
            entry.answer,
        )
    });
    let given = Answer::Given(Duration::ZERO, 200);
    assert_eq!(
        seen.collect::<Vec<_>>(),
        [("one", "PutObject", given), ("one", "GetObject", given)]
    );
    assert_eq!(entries[0].host, "s3.sim");
}

#[tokio::test(start_paused = true)]
async fn what_was_sent_lands_though_its_sender_is_gone() {
    let world = world(1);
    world.net.latency(Latency {
        there: secs(10)..=secs(10),
        ..Latency::none()
    });
    assert!(
        tokio::time::timeout(secs(1), world.put("hello"))
            .await
            .is_err()
    );
    assert_eq!(world.stub.object(), None);
    world.net.quiet().await;
    assert_eq!(world.stub.object().unwrap(), "hello");
    let entry = &world.net.journal().entries()[0];
    assert_eq!(
        (entry.sent, entry.arrived, entry.answer),
        (secs(0), secs(10), Answer::Lost)
    );
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_lost_and_the_request_executed_now_or_late_or_never() {
    let world = world(1);
    for (effect, executed) in [
        (Effect::LoseAnswer, true),
        (Effect::Drop, false),
        (Effect::Unreachable, false),
        (Effect::LandLate(secs(90)), false),
    ] {
        world.fault("PutObject", effect.clone());
        assert_eq!(world.put("old").await.unwrap_err(), nothing(), "{effect:?}");
        let entry = world.net.journal().entries().pop().unwrap();
        assert_eq!(
            (entry.executed.is_some(), entry.answer),
            (executed, Answer::Lost),
            "{effect:?}"
        );
    }
    world.put("new").await.unwrap();
    assert_eq!(
        (world.stub.object().unwrap(), world.net.on_way()),
        ("new".into(), 1)
    );
    world.net.quiet().await;
    assert_eq!(world.stub.object().unwrap(), "old");
    assert_eq!(
        world.net.journal().entries()[3].executed,
        Some((secs(90), 200))
    );
    assert_eq!(world.net.faults().hits("it"), 4);
}

#[tokio::test(start_paused = true)]
async fn silence_ends_with_the_clients_own_patience() {
    let world = world(1);
    for lands in [false, true] {
        let began = Instant::now();
        world.fault("PutObject", Effect::Silence { lands });
        assert_eq!(world.put("hello").await.unwrap_err(), nothing());
        assert_eq!(
            (began.elapsed(), world.stub.object().is_some()),
            (secs(60), lands)
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_delayed_request_is_executed_after_a_later_one() {
    let world = world(1);
    world.fault("PutObject", Effect::Delay(secs(30)));
    let (slow, fast) = tokio::join!(world.put("slow"), world.put("fast"));
    assert!(slow.is_ok() && fast.is_ok());
    assert_eq!(world.stub.object().unwrap(), "slow");
}

#[tokio::test(start_paused = true)]
async fn a_refusal_has_its_status_and_code_and_may_have_landed() {
    let world = world(1);
    world.fault("PutObject", Effect::slow_down());
    assert_eq!(
        world.put("hello").await.unwrap_err(),
        (503, "SlowDown".to_owned())
    );
    assert_eq!(world.stub.object(), None);
    world.fault(
        "PutObject",
        Effect::Refuse {
            status: 500,
            code: "InternalError",
            lands: true,
        },
    );
    assert_eq!(
        world.put("hello").await.unwrap_err(),
        (500, "InternalError".to_owned())
    );
    assert_eq!(world.stub.object().unwrap(), "hello");
    world.fault("HeadObject", Effect::refuse(403, "AccessDenied"));
    let error = world
        .client
        .head_object()
        .bucket("b")
        .key("k")
        .send()
        .await
        .unwrap_err();
    assert_eq!(told(&error).0, 403);
}

#[tokio::test(start_paused = true)]
async fn an_error_hides_inside_a_success() {
    let world = world(1);
    world.fault(
        "CompleteMultipartUpload",
        Effect::ErrorInside {
            code: "InternalError",
            lands: false,
        },
    );
    let asked = world
        .client
        .complete_multipart_upload()
        .bucket("b")
        .key("k")
        .upload_id("u");
    let error = asked.send().await.unwrap_err();
    assert_eq!(error.code(), Some("InternalError"));
    assert_eq!(world.net.journal().entries()[0].executed, None);
}

#[tokio::test(start_paused = true)]
async fn a_body_is_spoilt_on_its_way_there_or_back() {
    let world = world(1);
    world.fault("PutObject", Effect::CorruptUpload(0));
    world.put("abc").await.unwrap();
    assert_eq!(world.stub.object().unwrap(), "`bc");
    world.fault("GetObject", Effect::Corrupt(1));
    assert_eq!(world.get().await.unwrap(), "`cc");
    world.fault("GetObject", Effect::Shorten(1));
    assert_eq!(world.get().await.unwrap(), "`");
    world.fault("PutObject", Effect::WrongETag);
    assert_ne!(
        world.put("abc").await.unwrap().as_deref(),
        Some("\"right\"")
    );
}

#[tokio::test(start_paused = true)]
async fn a_body_breaks_or_stalls_at_its_byte() {
    let world = world(1);
    world.put("hello").await.unwrap();
    world.fault("GetObject", Effect::ResetAt(2));
    assert!(world.get().await.unwrap_err().contains("ConnectionReset"));
    world.fault("GetObject", Effect::TruncateAt(2));
    assert!(world.get().await.unwrap_err().contains("UnexpectedEof"));
    // The SDK gives up on a body that does not come, by the clock that it was given.
    world.fault("GetObject", Effect::StallAt(2));
    assert!(
        world
            .get()
            .await
            .unwrap_err()
            .contains("ThroughputBelowMinimum")
    );
}

#[tokio::test(start_paused = true)]
async fn requests_overtake_each_other_as_the_seed_says() {
    let run = async |seed: u64| {
        let world = world(seed);
        world.net.latency(Latency::up_to(secs(3)));
        let ask = |key: u32| {
            world
                .client
                .head_object()
                .bucket("b")
                .key(key.to_string())
                .send()
        };
        futures::future::join_all((0..20).map(ask)).await;
        let entries = world.net.journal().entries();
        entries
            .into_iter()
            .map(|entry| (entry.call.key.unwrap(), entry.arrived, entry.answer))
            .collect::<Vec<_>>()
    };
    let once = run(1).await;
    assert_eq!(run(1).await, once);
    assert_ne!(run(2).await, once);
    assert!(
        !once
            .iter()
            .map(|(key, ..)| key.parse::<u32>().unwrap())
            .is_sorted()
    );
}

#[tokio::test(start_paused = true)]
async fn an_upload_that_begins_is_known_by_the_id_in_its_answer() {
    let world = world(1);
    world
        .client
        .create_multipart_upload()
        .bucket("b")
        .key("k")
        .send()
        .await
        .unwrap();
    assert_eq!(
        world.net.journal().uploads()["u-1"].begun_by.as_deref(),
        Some("one")
    );
}

#[tokio::test(start_paused = true)]
#[should_panic = "no route to S3"]
async fn a_service_that_panics_ends_the_test_when_it_is_quiet() {
    let world = world(1);
    world.net.shared.routes.lock().unwrap().clear();
    assert!(
        tokio::time::timeout(secs(100), world.put("hello"))
            .await
            .is_ok_and(|answer| answer.is_err())
    );
    world.net.quiet().await;
}
