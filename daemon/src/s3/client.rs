//! The requests that come with every object, sent without the SDK's machinery: GET, HEAD, PUT,
//! UploadPart, lists of versions and reads of tags. Most of a small object's cost is the client's,
//! and most of that was the SDK's (docs/performance.md). CreateMultipartUpload too, whose headers
//! need not be UTF-8, as the SDK's have to be; everything rarer goes through the SDK.
//!
//! Requests equal those of the SDK, down to the signature (`tests` compares them), and go to the
//! endpoint that the SDK's own resolver returns.

mod body;
mod connector;
mod request;
mod response;
mod signer;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

use aws_config::SdkConfig;
use aws_credential_types::Credentials;
use aws_sdk_s3::config::endpoint::{
    DefaultResolver, EndpointFuture, Params, ParamsBuilder, ResolveEndpoint,
};
use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_types::Document;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE};
use http::{HeaderValue, Request, Uri};
use replicator_config::{Account, Service};
use replicator_core::failure::{Dependency, Failure, FailureKind, Reason};
use replicator_core::object::Bucket;
use replicator_core::retry;
use tokio::time::Instant;

use crate::metrics::Metrics;
use crate::s3::accounts::error::{self, ErrorBody, Refusal};

pub(crate) use body::{BodyChunks, BodyReader, Filled};
pub(crate) use connector::{Bounds, NoTls, TruncatedAnswer, connect, is_unsent};
pub(crate) use request::{CHECKSUM_MODE, PageRequest, S3Request};
pub(crate) use response::{ResponseHead, S3Error, S3Response, USER, plain_text};
pub(crate) use signer::{Keeper, Signer};

/// What is told of the answers to a task's requests.
pub(crate) trait AnswerObserver: Send + Sync {
    /// Records that a dependency answered a request of the task.
    fn record_answer(&self, dependency: Dependency);

    /// Records that a request of the task was throttled. The request may be sent again and the task
    /// end well.
    fn record_throttled(&self, dependency: Dependency);
}

tokio::task_local! {
    /// The observer of this task's requests; outside of a task there is none.
    static OBSERVER: Arc<dyn AnswerObserver>;
}

/// Does some work, and tells an observer of the answers to its requests.
pub(crate) async fn observed<T>(
    observer: Arc<dyn AnswerObserver>,
    work: impl Future<Output = T>,
) -> T {
    OBSERVER.scope(observer, work).await
}

fn observe(tell: impl FnOnce(&dyn AnswerObserver)) {
    let _outside_of_a_task = OBSERVER.try_with(|observer| tell(observer.as_ref()));
}

/// What is sent to a service that has no client here.
#[derive(Debug, Clone, Copy)]
pub(crate) enum PlainText<'a> {
    /// The fields of a form, in which the operation is named.
    Form(&'a str),
    /// An object of JSON, and the operation.
    Json { target: &'a str, json: &'a str },
}

/// One account's way to S3.
#[derive(Debug)]
pub(crate) struct S3Http {
    pub(crate) account: Arc<str>,
    pub(crate) connector: SharedHttpConnector,
    pub(crate) bounds: Bounds,
    pub(crate) endpoints: BucketEndpoints,
    /// The account that has to own the buckets, if that matters.
    pub(crate) owner: Option<HeaderValue>,
    pub(crate) signer: Signer,
    pub(crate) metrics: Metrics,
}

impl S3Http {
    /// Sends a request, as often as it may be sent, until it is answered with something else than
    /// trouble that passes by itself.
    pub(crate) async fn send(&self, call: S3Request<'_>) -> Result<S3Response, S3Error> {
        if let Some(name) = &call.unwritable {
            let kind = FailureKind::NeedsOperator(Reason::RequestRefused);
            return Err(Failure::with_source(
                kind,
                call.operation,
                format!("no header can hold the value of {name}"),
            )
            .into());
        }
        let mut attempt = 1;
        loop {
            let begun = Instant::now();
            let refusal = match Box::pin(self.attempt(&call)).await {
                Ok(answer) => return Ok(answer),
                Err(refusal) => Box::pin(self.explained(&call, refusal)).await,
            };
            let is_throttled = refusal.failure.kind == FailureKind::Throttled;
            if let Some(dependency) = refusal.failure.dependency.filter(|_| is_throttled) {
                observe(|observer| observer.record_throttled(dependency));
            }
            let is_trouble = matches!(
                refusal.failure.kind,
                FailureKind::Transient | FailureKind::Unauthenticated
            );
            let is_passing = (is_throttled || is_trouble) && !call.leaves(&refusal);
            // A request with a body holds memory, for no longer than its timeout allows.
            let is_held_up = call.body.is_some() && begun.elapsed() >= call.timeout;
            if !is_passing || attempt >= call.attempts_max || is_held_up {
                return Err(S3Error {
                    is_held_up,
                    ..refusal
                });
            }
            tokio::time::sleep(retry::jittered_delay(attempt, fastrand::f64())).await;
            attempt += 1;
        }
    }

    /// Sends a request whose answer is a text.
    pub(crate) async fn text(
        &self,
        call: S3Request<'_>,
    ) -> Result<(ResponseHead, String), S3Error> {
        let (side, operation, timeout) = (call.side, call.operation, call.timeout);
        let (head, body) = self.send(call).await?.split();
        let text = tokio::time::timeout(timeout, self.bounds.read_text(body)).await;
        // The head of it came.
        let text = text.map_err(BoxError::from).flatten().map_err(|error| {
            error::from_lost_answer(side, operation, error).with_unreadable_answer()
        })?;
        Ok((head, lossy(text)))
    }

    /// Sends a text to a service of the account that has no client here, and returns the text of the
    /// answer.
    pub(crate) async fn send_text(
        &self,
        url: &str,
        scope: (&str, &str),
        text: PlainText<'_>,
    ) -> Result<String, Refusal> {
        let silent = |error: BoxError| Refusal::silent(error.to_string());
        let credentials = self.signer.credentials().await.map_err(silent)?;
        let (media, body) = match text {
            PlainText::Form(form) => ("application/x-www-form-urlencoded", form),
            PlainText::Json { json, .. } => ("application/x-amz-json-1.1", json),
        };
        let mut request = Request::post(url)
            .header(CONTENT_TYPE, media)
            .header(CONTENT_LENGTH, body.len());
        if let PlainText::Json { target, .. } = text {
            request = request.header("x-amz-target", target);
        }
        let request = request.body(body).map_err(|error| silent(error.into()))?;
        let request = self.signer.sign_text(request, scope, &credentials);
        let answer = self.connector.call(request.map_err(silent)?).await;
        let answer = answer.map_err(|error| silent(error.into()))?;
        let (status, body) = (answer.status(), answer.into_body());
        if status.is_success() {
            let text = self.bounds.read_text(body).await;
            return text.map(lossy).map_err(silent);
        }
        let refusal = lossy(self.bounds.read_refusal(body).await);
        let body = match text {
            PlainText::Form(_) => ErrorBody::parse_refusal(status.as_u16(), |_| None, &refusal),
            PlainText::Json { .. } => ErrorBody::parse_json_refusal(status.as_u16(), &refusal),
        };
        Err(Refusal::from_body(body, None))
    }

    /// Finds out why a HEAD was refused. Its refusal has no text, so it may come from any server on
    /// the way, or be about clocks or credentials and pass by itself: the first byte is requested
    /// instead, and S3's answer to that counts.
    async fn explained(&self, call: &S3Request<'_>, refusal: S3Error) -> S3Error {
        let Some(get) = call.of_first_byte().filter(|_| call.wants_reason(&refusal)) else {
            return refusal;
        };
        match self.attempt(&get).await {
            Err(reason) if reason.status() == refusal.status() => S3Error {
                failure: reason.failure,
                ..refusal
            },
            Ok(_) | Err(_) => refusal,
        }
    }

    async fn attempt(&self, call: &S3Request<'_>) -> Result<S3Response, S3Error> {
        let unbuilt = |_error: BoxError| {
            S3Error::without_answer(error::from_unbuilt(call.side, call.operation))
        };
        let endpoint = self.endpoints.endpoint_of(call.bucket).await;
        let endpoint = endpoint.map_err(unbuilt)?;
        // Nothing may delay a write beyond its deadline, new credentials neither (protocol rule 5).
        let exchange = tokio::time::timeout(call.timeout, async {
            let credentials = self.signer.credentials().await.map_err(|error| {
                S3Error::without_answer(error::unsent(call.side, call.operation, error))
            })?;
            let mut request = call.request(&endpoint).map_err(unbuilt)?;
            if let Some(owner) = &self.owner {
                request.headers_mut().insert(EXPECTED_OWNER, owner.clone());
            }
            let signed = self.signer.sign(request, call, &endpoint, &credentials);
            let request = signed.map_err(unbuilt)?;
            self.exchange(call, request, &credentials).await
        });
        let result = Box::pin(exchange).await.unwrap_or_else(|_elapsed| {
            let error = format!("no answer within {:?}", call.timeout).into();
            Err(lost_answer(call, error))
        });
        let (status, is_answer) = match &result {
            Ok(answer) => (answer.head.status(), true),
            Err(refusal) => (refusal.status().unwrap_or(0), refusal.failure.is_answer()),
        };
        if is_answer {
            observe(|observer| observer.record_answer(call.side.asked_dependency()));
        }
        self.metrics
            .request("s3", call.operation.as_str(), &self.account, status);
        result
    }

    async fn exchange(
        &self,
        call: &S3Request<'_>,
        request: HttpRequest,
        signed_by: &Credentials,
    ) -> Result<S3Response, S3Error> {
        let answer = self.connector.call(request).await;
        let mut answer = answer.map_err(|error| match is_unsent(&error) {
            true => S3Error::without_answer(error::from_no_connection(
                call.side,
                call.operation,
                error.into(),
            )),
            false => lost_answer(call, error.into()),
        })?;
        self.bounds.check_date(&mut answer);
        let answer = S3Response::from_response(answer).map_err(|error| lost_answer(call, error))?;
        let is_success = (200..300).contains(&answer.head.status());
        let mismatch = call.mismatch(&answer.head).filter(|_| is_success);
        if is_success && mismatch.is_none() {
            return Ok(answer);
        }
        let (head, body) = answer.split();
        if let Some(mismatch) = mismatch {
            // It is an answer, if not to this request: the endpoint is not silent.
            let failure = Failure::with_source(FailureKind::Transient, call.operation, mismatch)
                .of(call.side.asked_dependency())
                .with_unreadable_answer();
            return Err(S3Error::with_answer(failure, head));
        }
        let text = lossy(self.bounds.read_refusal(body).await);
        let body = ErrorBody::parse_refusal(head.status(), |name| head.header(name), &text)
            .with_request(call.named_headers());
        self.signer.learn(&body, head.date(), signed_by);
        let failure = error::from_refusal(call.side, call.operation, body);
        Err(S3Error::with_answer(failure, head))
    }
}

fn lost_answer(call: &S3Request<'_>, error: BoxError) -> S3Error {
    S3Error::without_answer(error::from_lost_answer(call.side, call.operation, error))
}

fn lossy(text: Vec<u8>) -> String {
    String::from_utf8(text)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

/// Requests whose deadline no rule of the protocol depends on have this long to be answered.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// A bucket's URL, and how requests to it are signed.
#[derive(Debug)]
struct Endpoint {
    url: String,
    region: String,
    /// Whether bodies go unsigned: TLS protects them, or they do not leave the machine. Each
    /// carries a checksum anyway.
    is_private: bool,
}

/// The endpoints of one account: the SDK's own resolver says them, once for each bucket.
#[derive(Debug)]
pub(crate) struct BucketEndpoints {
    resolver: BucketResolver,
    region: String,
    /// Everything that decides the endpoint, but the bucket.
    params: ParamsBuilder,
    resolved: RwLock<HashMap<Bucket, Arc<Endpoint>>>,
}

impl BucketEndpoints {
    /// Makes an account's endpoints from its configuration and the machine's AWS settings.
    pub(crate) fn new(account: &Account, sdk: &SdkConfig) -> Self {
        let params = Params::builder()
            .region(account.region.as_str())
            .set_endpoint(account.endpoint_of(Service::S3).map(str::to_owned))
            .force_path_style(account.path_style)
            .set_use_fips(sdk.use_fips())
            .set_use_dual_stack(sdk.use_dual_stack());
        Self {
            resolver: BucketResolver::new(account),
            region: account.region.clone(),
            params,
            resolved: RwLock::default(),
        }
    }

    async fn endpoint_of(&self, bucket: &Bucket) -> Result<Arc<Endpoint>, BoxError> {
        let resolved = self.resolved.read();
        if let Some(endpoint) = resolved.ok().and_then(|all| all.get(bucket).cloned()) {
            return Ok(endpoint);
        }
        let endpoint = Arc::new(self.resolve(bucket).await?);
        if let Ok(mut resolved) = self.resolved.write() {
            resolved.insert(bucket.clone(), Arc::clone(&endpoint));
        }
        Ok(endpoint)
    }

    async fn resolve(&self, bucket: &Bucket) -> Result<Endpoint, BoxError> {
        let params = self.params.clone().bucket(bucket.as_str()).build()?;
        let resolved = self.resolver.resolve_endpoint(&params).await?;
        let schemes = resolved
            .properties()
            .get("authSchemes")
            .and_then(Document::as_array);
        let scheme = schemes
            .and_then(|schemes| schemes.first())
            .and_then(Document::as_object);
        let property = |name| scheme?.get(name)?.as_string();
        if property("name").is_some_and(|name| name != "sigv4") {
            return Err(format!("bucket {bucket} wants another signature than SigV4").into());
        }
        let url = resolved.url().trim_end_matches('/').to_owned();
        Ok(Endpoint {
            is_private: is_private(&url),
            url,
            region: property("signingRegion").unwrap_or(&self.region).to_owned(),
        })
    }
}

/// The SDK's own resolver, asked for the access point of a bucket that is reached through one.
#[derive(Debug)]
pub(crate) struct BucketResolver {
    access_points: BTreeMap<Bucket, String>,
    aws: DefaultResolver,
}

impl BucketResolver {
    pub(crate) fn new(account: &Account) -> Self {
        Self {
            access_points: account.access_points.clone(),
            aws: DefaultResolver::new(),
        }
    }

    fn access_point(&self, params: &Params) -> Option<&str> {
        let bucket = Bucket::try_from(params.bucket()?).ok()?;
        self.access_points.get(&bucket).map(String::as_str)
    }
}

impl ResolveEndpoint for BucketResolver {
    fn resolve_endpoint<'a>(&'a self, params: &'a Params) -> EndpointFuture<'a> {
        let Some(arn) = self.access_point(params) else {
            return self.aws.resolve_endpoint(params);
        };
        // The configuration allows neither an endpoint nor path style beside access points.
        let params = Params::builder()
            .bucket(arn)
            .set_region(params.region().map(str::to_owned))
            .set_use_fips(params.use_fips())
            .set_use_dual_stack(params.use_dual_stack())
            .build();
        EndpointFuture::new(async { self.aws.resolve_endpoint(&params?).await })
    }
}

fn is_private(url: &str) -> bool {
    let Ok(uri) = url.parse::<Uri>() else {
        return false;
    };
    let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
    let is_loopback = host == "localhost"
        || host
            .parse::<IpAddr>()
            .is_ok_and(|address| address.is_loopback());
    uri.scheme_str() == Some("https") || is_loopback
}

/// Names the account that has to own a bucket: S3 refuses a request where another account does, as
/// one may that made the bucket anew under the name of one that was deleted.
/// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/bucket-owner-condition.html>
pub(crate) const EXPECTED_OWNER: &str = "x-amz-expected-bucket-owner";

/// Returns the owner that the configuration names, as the header has it.
pub(crate) fn expected_owner(account: &Account) -> Option<HeaderValue> {
    // The configuration was checked: they are digits.
    HeaderValue::from_str(account.owner.as_deref()?).ok()
}
