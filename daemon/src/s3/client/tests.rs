//! What goes over the wire is what the SDK would send, down to the signature.

mod ways;
mod writing;

use std::fmt::Debug;
use std::sync::{Arc, Mutex};
use std::time::SystemTime;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_s3::config::interceptors::BeforeTransmitInterceptorContextMut;
use aws_sdk_s3::config::{
    BehaviorVersion, Intercept, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    RuntimeComponents,
};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ChecksumAlgorithm, ChecksumMode, ChecksumType, EncodingType};
use aws_smithy_async::time::StaticTimeSource;
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_types::body::SdkBody;
use aws_smithy_types::config_bag::ConfigBag;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body_util::BodyExt;
use proptest::prelude::*;
use replicator_config::{Account, Service};
use replicator_core::object::{Bucket, Key};

use super::*;
use crate::clock;
use crate::s3::accounts::SdkInterceptor;
use crate::s3::accounts::error::Side;

/// Keeps every request and answers it with nothing.
#[derive(Debug, Clone, Default)]
struct Tap(Arc<Mutex<Vec<Seen>>>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Seen {
    method: String,
    uri: String,
    headers: Vec<(String, Vec<u8>)>,
    body: Vec<u8>,
}

impl Seen {
    fn header(&self, name: &str) -> Option<&str> {
        self.bytes(name)
            .and_then(|value| std::str::from_utf8(value).ok())
    }

    fn bytes(&self, name: &str) -> Option<&[u8]> {
        self.headers
            .iter()
            .find(|(given, _)| given == name)
            .map(|(_, value)| value.as_slice())
    }
}

impl HttpConnector for Tap {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let ignored = [
            "user-agent",
            "x-amz-user-agent",
            "amz-sdk-invocation-id",
            "amz-sdk-request",
        ];
        let headers = request
            .headers()
            .iter_bytes()
            .filter(|(name, _)| !ignored.contains(name));
        let mut headers: Vec<_> = headers
            .map(|(name, value)| (name.to_owned(), value.to_owned()))
            .collect();
        headers.sort();
        let (method, uri) = (request.method().to_owned(), request.uri().to_owned());
        let seen = Arc::clone(&self.0);
        HttpConnectorFuture::new(async move {
            let body = request
                .into_body()
                .collect()
                .await
                .unwrap()
                .to_bytes()
                .to_vec();
            seen.lock().unwrap().push(Seen {
                method,
                uri,
                headers,
                body,
            });
            Ok(HttpResponse::new(200.try_into().unwrap(), SdkBody::empty()))
        })
    }
}

impl HttpClient for Tap {
    fn http_connector(
        &self,
        _: &HttpConnectorSettings,
        _: &RuntimeComponents,
    ) -> SharedHttpConnector {
        SharedHttpConnector::new(self.clone())
    }
}

/// What the SDK says of itself is signed, and no server needs it.
#[derive(Debug)]
struct Unadorned;

#[aws_smithy_runtime_api::client::interceptors::dyn_dispatch_hint]
impl Intercept for Unadorned {
    fn name(&self) -> &'static str {
        "Unadorned"
    }

    fn modify_before_signing(
        &self,
        context: &mut BeforeTransmitInterceptorContextMut<'_>,
        _: &RuntimeComponents,
        _: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        for name in ["amz-sdk-invocation-id", "x-amz-user-agent"] {
            context.request_mut().headers_mut().remove(name);
        }
        Ok(())
    }
}

fn account(endpoint: Option<&str>, path_style: bool) -> Account {
    let endpoint = endpoint.map_or_else(String::new, |url| format!("endpoint = \"{url}\""));
    let file = format!(
        r#"
        [accounts.source]
        region = "eu-west-1"
        path_style = {path_style}
        allow_http = true
        {endpoint}
        [[queues]]
        url = "https://sqs.eu-west-1.amazonaws.com/111111111111/events"
        dead_letter_url = "https://sqs.eu-west-1.amazonaws.com/111111111111/parked"
        account = "source"
        [[rules]]
        id = "orders"
        source = {{ account = "source", bucket = "orders" }}
        destination = {{ account = "source", bucket = "orders-replica" }}
        "#
    );
    replicator_config::parse(&file)
        .unwrap()
        .accounts
        .remove("source")
        .unwrap()
}

/// Makes an account's way to S3.
fn way_of(
    account: &Account,
    sdk: &SdkConfig,
    credentials: SharedCredentialsProvider,
    connector: SharedHttpConnector,
) -> S3Http {
    S3Http {
        account: "source".into(),
        connector,
        bounds: Bounds::new("source"),
        endpoints: BucketEndpoints::new(account, sdk),
        owner: expected_owner(account),
        signer: Signer::new(Some(Arc::new(Keeper::new(credentials)))),
        metrics: Metrics::new().unwrap(),
    }
}

/// The same account for both.
struct Both {
    tap: Tap,
    sdk: aws_sdk_s3::Client,
    wire: S3Http,
    runtime: tokio::runtime::Runtime,
    /// Whether the SDK signs them.
    signs_bodies: bool,
}

impl Both {
    fn new(endpoint: Option<&str>, path_style: bool) -> Self {
        Self::by(account(endpoint, path_style), &SdkConfig::builder().build())
    }

    fn by(account: Account, given: &SdkConfig) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .build()
            .unwrap();
        let (tap, now) = (
            Tap::default(),
            time::macros::datetime!(2026-11-26 12:00 UTC),
        );
        let credentials = Credentials::new(
            "AKIDEXAMPLE",
            "secret",
            Some("token".to_owned()),
            None,
            "test",
        );
        let credentials = SharedCredentialsProvider::new(credentials);
        let mut config = aws_sdk_s3::config::Builder::from(given)
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("eu-west-1"))
            .credentials_provider(credentials.clone())
            .http_client(tap.clone())
            .time_source(StaticTimeSource::new(SystemTime::from(now)))
            .force_path_style(account.path_style)
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .interceptor(Unadorned);
        config.set_endpoint_url(account.endpoint_of(Service::S3).map(str::to_owned));
        let owner = expected_owner(&account);
        if owner.is_some() {
            config = config.interceptor(SdkInterceptor {
                account: "source".into(),
                metrics: Metrics::new().unwrap(),
                owner,
            });
        }
        runtime.block_on(async { clock::simulate(now) });
        let connector = SharedHttpConnector::new(tap.clone());
        let wire = way_of(&account, given, credentials, connector);
        Self {
            sdk: aws_sdk_s3::Client::from_conf(config.build()),
            tap,
            wire,
            runtime,
            signs_bodies: true,
        }
    }

    /// Sends the same request both ways.
    fn send<T: Debug>(&self, sdk: impl Future<Output = T>, call: S3Request<'_>) -> [Seen; 2] {
        let said = self.runtime.block_on(async {
            // An empty answer is no list, but the request was sent.
            let said = sdk.await;
            self.wire.send(call).await.unwrap();
            said
        });
        let seen: Result<[Seen; 2], _> =
            std::mem::take(&mut *self.tap.0.lock().unwrap()).try_into();
        seen.unwrap_or_else(|seen| panic!("{seen:?} were sent, and the SDK said {said:?}"))
    }

    fn get(&self, bucket: &str, key: &str) -> [Seen; 2] {
        let request = self
            .sdk
            .get_object()
            .bucket(bucket)
            .key(key)
            .version_id("a+/=b")
            .if_match("\"e\"");
        let request = request
            .range("bytes=5-9")
            .checksum_mode(ChecksumMode::Enabled);
        let (bucket, key) = (
            Bucket::try_from(bucket).unwrap(),
            Key::try_from(key).unwrap(),
        );
        let call = S3Request::get_object(Side::Source, &bucket, &key)
            .version("a+/=b")
            .header("if-match", Some("\"e\""));
        self.send(
            request.send(),
            call.header("range", Some("bytes=5-9")).checksums(),
        )
    }

    /// Puts an object that carries a text of its user in each way there is.
    fn put(&self, text: &str) -> [Seen; 2] {
        let put = self
            .sdk
            .put_object()
            .bucket("archive")
            .key("a b")
            .if_none_match("*")
            .checksum_crc64_nvme("AAAA");
        let put = put
            .content_type("text/plain")
            .cache_control(text)
            .metadata("owner", text)
            .tagging("a=b%20c");
        let put = put.body(ByteStream::from_static(CONTENT)).customize();
        let put = if self.signs_bodies {
            put
        } else {
            put.disable_payload_signing()
        };
        let (bucket, key) = (
            Bucket::try_from("archive").unwrap(),
            Key::try_from("a b").unwrap(),
        );
        let call = S3Request::put_object(&bucket, &key, content())
            .header("if-none-match", Some("*"))
            .header("x-amz-checksum-crc64nvme", Some("AAAA"))
            .header("content-type", Some("text/plain"))
            .header("cache-control", Some(text))
            .header("x-amz-meta-owner", Some(text))
            .header("x-amz-tagging", Some("a=b%20c"));
        self.send(put.send(), call)
    }

    /// Begins an upload that carries a text of its user.
    fn create(&self, text: &str) -> [Seen; 2] {
        let create = self
            .sdk
            .create_multipart_upload()
            .bucket("archive")
            .key("a b")
            .metadata("owner", text);
        let create = create
            .checksum_algorithm(ChecksumAlgorithm::Crc64Nvme)
            .checksum_type(ChecksumType::FullObject);
        let (bucket, key) = (
            Bucket::try_from("archive").unwrap(),
            Key::try_from("a b").unwrap(),
        );
        let call = S3Request::create_multipart_upload(&bucket, &key)
            .header("x-amz-checksum-algorithm", Some("CRC64NVME"))
            .header("x-amz-checksum-type", Some("FULL_OBJECT"))
            .header("x-amz-meta-owner", Some(text));
        self.send(create.send(), call)
    }

    /// Uploads a part.
    fn part(&self) -> [Seen; 2] {
        let part = self
            .sdk
            .upload_part()
            .bucket("archive")
            .key("a b")
            .upload_id("u/1+")
            .part_number(7);
        let part = part
            .checksum_crc64_nvme("AAAA")
            .body(ByteStream::from_static(CONTENT))
            .customize();
        let part = if self.signs_bodies {
            part
        } else {
            part.disable_payload_signing()
        };
        let (bucket, key) = (
            Bucket::try_from("archive").unwrap(),
            Key::try_from("a b").unwrap(),
        );
        let call = S3Request::part(&bucket, &key, ("u/1+", 7), content());
        let call = call.header("x-amz-checksum-crc64nvme", Some("AAAA"));
        // The SDK says so of every body; of a part it means nothing.
        self.send(
            part.send(),
            call.header("content-type", Some("application/octet-stream")),
        )
    }
}

const CONTENT: &[u8] = b"content";

/// A body in two pieces.
fn content() -> BodyChunks {
    let (first, second) = CONTENT.split_at(3);
    [first, second]
        .into_iter()
        .map(Bytes::from_static)
        .collect()
}

const KEYS: &[&str] = &[
    "a/b c+d%41.txt",
    "..//x/../",
    "ключ/é",
    "a?b=c&d#e",
    "~-._!$'()*,;:@",
    "\u{1}\u{7f}",
    "a\\b^c`d{e|f}",
    "/",
];

#[test]
fn reads_are_what_the_sdk_sends() {
    for (endpoint, path_style) in [
        (None, false),
        (Some("http://store.example:9000/s3"), true),
        (None, true),
    ] {
        let both = Both::new(endpoint, path_style);
        for key in KEYS {
            let [sdk, wire] = both.get("orders-2026", key);
            assert_eq!(sdk, wire, "{key}");
            let request = both.sdk.head_object().bucket("orders-2026").key(*key);
            let (bucket, key) = (
                Bucket::try_from("orders-2026").unwrap(),
                Key::try_from(*key).unwrap(),
            );
            let [sdk, wire] = both.send(
                request.send(),
                S3Request::head_object(Side::Destination, &bucket, &key),
            );
            assert_eq!(sdk, wire, "{key}");
        }
    }
}

#[test]
fn lists_and_tags_are_asked_for_as_the_sdk_does() {
    for (endpoint, path_style) in [(None, false), (Some("http://store.example:9000"), true)] {
        let both = Both::new(endpoint, path_style);
        let (bucket, key) = (
            Bucket::try_from("orders-2026").unwrap(),
            Key::try_from("a b").unwrap(),
        );
        let list = both
            .sdk
            .list_object_versions()
            .bucket("orders-2026")
            .prefix("a/ b")
            .max_keys(7);
        let list = list
            .key_marker("a/+")
            .version_id_marker("v=")
            .encoding_type(EncodingType::Url);
        let (prefix, key_marker, version_marker) = (Some("a/ b"), Some("a/+"), Some("v="));
        let page = PageRequest {
            prefix,
            key_marker,
            version_marker,
            entries_max: 7,
            is_encoded: true,
        };
        let [sdk, wire] = both.send(list.send(), S3Request::list(Side::Source, &bucket, &page));
        assert_eq!(sdk, wire);
        let tags = both
            .sdk
            .get_object_tagging()
            .bucket("orders-2026")
            .key("a b")
            .version_id("v=");
        let [sdk, wire] = both.send(
            tags.send(),
            S3Request::tags(Side::Source, &bucket, &key).version("v="),
        );
        assert_eq!(sdk, wire);
    }
}

#[test]
fn a_bucket_whose_name_is_no_host_name_is_addressed_by_path() {
    let [sdk, wire] = Both::new(None, false).get("Old_Bucket.with.dots", "a");
    assert_eq!(sdk, wire);
}

#[test]
fn the_machines_settings_for_aws_hold_for_both() {
    let given = SdkConfig::builder()
        .use_fips(true)
        .use_dual_stack(true)
        .build();
    let both = Both::by(account(None, false), &given);
    let [sdk, wire] = both.get("orders-2026", "a");
    assert_eq!(sdk, wire);
    assert!(
        wire.uri.contains("s3-fips.dualstack.eu-west-1"),
        "{}",
        wire.uri
    );
}

#[test]
fn writes_are_what_the_sdk_sends() {
    let both = Both::new(Some("http://store.example:9000"), true);
    let [sdk, wire] = both.put("a b");
    assert_eq!(sdk, wire);
    assert_eq!(wire.body, CONTENT);
    let [sdk, wire] = both.part();
    assert_eq!(sdk, wire);
    assert_eq!(wire.body, CONTENT);
}

proptest! {
    #[test]
    fn any_key_is_written_as_the_sdk_writes_it(key in "\\PC{1,40}|[ -~]{1,40}") {
        // One of blanks alone the SDK takes for none.
        prop_assume!(!key.trim().is_empty());
        let [sdk, wire] = Both::new(None, false).get("orders-2026", &key);
        prop_assert_eq!(sdk, wire);
    }

    #[test]
    fn any_bytes_of_a_value_are_sent_as_they_are(value in prop::collection::vec(prop_oneof![Just(9u8), 0x20..=0x7eu8, 0x80..=0xffu8], 0..80)) {
        let both = Both::new(Some("http://store.example:9000"), true);
        let (bucket, key) = (Bucket::try_from("archive").unwrap(), Key::try_from("a").unwrap());
        let name = HeaderName::from_static("x-amz-meta-owner");
        let headers = HeaderMap::from_iter([(name, HeaderValue::from_bytes(&value).unwrap())]);
        for call in [S3Request::put_object(&bucket, &key, content()), S3Request::create_multipart_upload(&bucket, &key)] {
            both.runtime.block_on(both.wire.send(call.headers(headers.clone()))).unwrap();
            let seen = both.tap.0.lock().unwrap().pop().unwrap();
            prop_assert_eq!(seen.bytes("x-amz-meta-owner"), Some(&value[..]));
            prop_assert!(seen.header("authorization").unwrap().contains(";x-amz-meta-owner"));
        }
    }

    #[test]
    fn any_header_is_written_as_the_sdk_writes_it(value in "\\PC{1,40}|[ -~]{1,40}|( {0,3}[a-z,;=\"]{0,3}){1,8}") {
        // What is nothing the SDK leaves out.
        prop_assume!(!value.is_empty());
        let [sdk, wire] = Both::new(Some("http://store.example:9000"), true).put(&value);
        prop_assert_eq!(wire.header("x-amz-meta-owner"), Some(value.as_str()));
        prop_assert_eq!(sdk, wire);
    }
}

fn lone(
    endpoint: Option<&str>,
    provider: impl ProvideCredentials + 'static,
    connector: SharedHttpConnector,
) -> S3Http {
    let (account, sdk) = (account(endpoint, true), SdkConfig::builder().build());
    let credentials = SharedCredentialsProvider::new(provider);
    way_of(&account, &sdk, credentials, connector)
}

#[tokio::test]
async fn what_could_not_be_sent_cannot_have_been_carried_out() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let wire = lone(Some(&url), Credentials::for_tests(), connect().unwrap());
    let (bucket, key) = (
        Bucket::try_from("orders-2026").unwrap(),
        Key::try_from("a").unwrap(),
    );
    let refusal = wire
        .send(S3Request::put_object(&bucket, &key, content()))
        .await
        .unwrap_err();
    assert_eq!(
        refusal.failure.kind,
        FailureKind::Transient,
        "{:?}",
        refusal.failure
    );
}

/// Credentials that take long to come.
#[derive(Debug)]
struct Slow;

impl ProvideCredentials for Slow {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            tokio::time::sleep(Duration::from_secs(100)).await;
            Ok(Credentials::for_tests())
        })
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_is_not_sent_after_its_deadline_however_long_the_credentials_take() {
    let tap = Tap::default();
    let wire = lone(None, Slow, SharedHttpConnector::new(tap.clone()));
    let (bucket, key) = (
        Bucket::try_from("orders-2026").unwrap(),
        Key::try_from("a").unwrap(),
    );
    let put = || {
        S3Request::put_object(&bucket, &key, BodyChunks::from(Bytes::from_static(b"one")))
            .with_timeout(Duration::from_secs(30))
    };
    let refusal = wire.send(put()).await.unwrap_err();
    assert_eq!(refusal.failure.kind, FailureKind::OutcomeUnknown);
    tokio::time::sleep(Duration::from_secs(200)).await;
    assert_eq!(*tap.0.lock().unwrap(), []);
}

#[test]
fn bodies_go_unsigned_only_over_tls_or_within_the_machine() {
    let private = [
        "https://b.s3.eu-west-1.amazonaws.com",
        "http://127.0.0.1:4566/b",
        "http://[::1]:9000/b",
    ];
    assert!(
        private
            .into_iter()
            .chain(["http://localhost:8333/b"])
            .all(is_private)
    );
    assert!(
        ![
            "http://minio:9000/b",
            "http://10.0.0.7/b",
            "http://localhost.example.com/b"
        ]
        .into_iter()
        .any(is_private)
    );
}
