//! The requests that come with every object, sent without the SDK's machinery: GET, HEAD, PUT and
//! UploadPart. Most of a small object's cost is the client's, and most of that was the SDK's
//! (docs/performance.md). CreateMultipartUpload too, whose headers need not be UTF-8, as the SDK's
//! have to be; everything rarer goes through the SDK.
//!
//! What is sent is what the SDK would send, down to the signature (`tests` compares them), to where
//! the SDK's own resolver says.

mod body;
mod bounds;
mod connector;
mod credentials;
mod endpoint;
mod expected;
mod request;
mod response;
mod signature;
mod signer;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use aws_credential_types::Credentials;
use aws_smithy_runtime_api::client::http::{HttpConnector, SharedHttpConnector};
use aws_smithy_runtime_api::client::orchestrator::HttpRequest;
use aws_smithy_runtime_api::client::result::ConnectorError;
use replicator_core::failure::{Failure, FailureKind, Reason};
use replicator_core::retry;
use tokio::time::Instant;

use crate::accounts::error::{self, ErrorBody};
use crate::accounts::owner::EXPECTED_OWNER;
use crate::concurrency;
use crate::metrics::Metrics;

#[cfg(test)]
pub(crate) use body::BodyChunks;
pub(crate) use body::{BodyReader, Filled};
pub(crate) use bounds::{Bounds, TruncatedAnswer};
pub(crate) use connector::{NoTls, connect, is_unsent};
pub(crate) use credentials::Keeper;
pub(crate) use endpoint::BucketEndpoints;
pub(crate) use request::{CHECKSUM_MODE, PageRequest, S3Request};
pub(crate) use response::{ResponseHead, S3Error, S3Response, USER};
use signer::Error as BoxError;
pub(crate) use signer::Signer;

/// One account's way to S3; a handle, cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct S3Http {
    shared: Arc<S3HttpShared>,
}

#[derive(Debug)]
struct S3HttpShared {
    account: String,
    connector: SharedHttpConnector,
    bounds: Bounds,
    endpoints: BucketEndpoints,
    signer: Signer,
    metrics: Metrics,
}

impl S3Http {
    pub(crate) fn new(
        account: &str,
        (connector, bounds): (SharedHttpConnector, Bounds),
        (endpoints, signer): (BucketEndpoints, Signer),
        metrics: &Metrics,
    ) -> Self {
        let (account, metrics) = (account.to_owned(), metrics.clone());
        Self {
            shared: Arc::new(S3HttpShared {
                account,
                connector,
                bounds,
                endpoints,
                signer,
                metrics,
            }),
        }
    }

    /// Sends a request, as often as it may be sent, until it is answered with something else than
    /// trouble that passes by itself.
    pub(crate) async fn send(&self, call: S3Request<'_>) -> Result<S3Response, S3Error> {
        if let Some(name) = call.unwritable() {
            let kind = FailureKind::NeedsOperator(Reason::RequestRefused);
            return Err(Failure::with_source(
                kind,
                call.operation,
                format!("no header can hold what {name} is to say"),
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
                concurrency::record_throttled(dependency);
            }
            let is_trouble = matches!(
                refusal.failure.kind,
                FailureKind::Transient | FailureKind::Unauthenticated
            );
            let is_passing = (is_throttled || is_trouble) && !call.leaves(&refusal);
            // A request with a body holds memory, for no longer than its timeout allows.
            let is_held_up = call.body().is_some() && begun.elapsed() >= call.timeout;
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

    /// Says by how many seconds the clock of the account's services is ahead of ours, or behind, if
    /// that is too far.
    pub(crate) fn far_off_clock(&self) -> Option<i64> {
        self.shared.bounds.far_off()
    }

    /// Sends a request whose answer is a text.
    pub(crate) async fn text(
        &self,
        call: S3Request<'_>,
    ) -> Result<(ResponseHead, String), S3Error> {
        let (side, operation, timeout) = (call.side, call.operation, call.timeout);
        let (head, body) = self.send(call).await?.split();
        let text = tokio::time::timeout(timeout, self.shared.bounds.read_text(body)).await;
        let text = text.map_err(BoxError::from).flatten();
        // The head of it came.
        let text = text.map_err(|error| {
            S3Error::without_answer(
                error::from_lost_answer(side, operation, error).with_unreadable_answer(),
            )
        })?;
        Ok((head, lossy(text)))
    }

    /// Finds out why something was refused. The refusal of a HEAD has no text, so it may come from
    /// any server on the way, or be about clocks or credentials and pass by itself: the first byte
    /// is requested instead, and what S3 says of that counts.
    async fn explained(&self, call: &S3Request<'_>, refusal: S3Error) -> S3Error {
        let Some(get) = call.of_first_byte().filter(|_| call.wants_reason(&refusal)) else {
            return refusal;
        };
        match self.attempt(&get).await {
            Err(told) if told.status() == refusal.status() => S3Error {
                failure: told.failure,
                ..refusal
            },
            Ok(_) | Err(_) => refusal,
        }
    }

    async fn attempt(&self, call: &S3Request<'_>) -> Result<S3Response, S3Error> {
        let shared = &*self.shared;
        let unsent =
            |error| S3Error::without_answer(error::unsent(call.side, call.operation, error));
        let unbuilt = |_error: BoxError| {
            S3Error::without_answer(error::from_unbuilt(call.side, call.operation))
        };
        let endpoint = shared.endpoints.of(call.bucket()).await.map_err(unbuilt)?;
        // Nothing may hold a write up beyond its deadline, new credentials neither (protocol rule
        // 5).
        let exchange = tokio::time::timeout(call.timeout, async {
            let credentials = shared.signer.credentials().await.map_err(unsent)?;
            let mut request = call.request(&endpoint).map_err(unbuilt)?;
            if let Some(owner) = shared.endpoints.owner() {
                request
                    .headers_mut()
                    .insert(EXPECTED_OWNER, owner.header_value());
            }
            let request = shared
                .signer
                .sign(request, call.body(), &endpoint, &credentials)
                .map_err(unbuilt)?;
            shared.exchange(call, request, &credentials).await
        });
        let result = Box::pin(exchange).await.unwrap_or_else(|_elapsed| {
            let error = format!("no answer within {:?}", call.timeout);
            Err(S3Error::without_answer(error::from_lost_answer(
                call.side,
                call.operation,
                error.into(),
            )))
        });
        let status = match &result {
            Ok(answer) => answer.status(),
            Err(refusal) => refusal.status().unwrap_or(0),
        };
        if result
            .as_ref()
            .map_or_else(|refusal| refusal.failure.is_answer(), |_| true)
        {
            concurrency::record_answer(call.side.asked_dependency());
        }
        shared
            .metrics
            .request("s3", call.operation.as_str(), &shared.account, status);
        result
    }
}

impl S3HttpShared {
    async fn exchange(
        &self,
        call: &S3Request<'_>,
        request: HttpRequest,
        signed_by: &Credentials,
    ) -> Result<S3Response, S3Error> {
        let lost = |error: ConnectorError| {
            let fail = if is_unsent(&error) {
                error::from_no_connection
            } else {
                error::from_lost_answer
            };
            S3Error::without_answer(fail(call.side, call.operation, error.into()))
        };
        let mut answer = self.connector.call(request).await.map_err(lost)?;
        self.bounds.check_date(&mut answer);
        let answer = S3Response::from_response(answer).map_err(|error| {
            S3Error::without_answer(error::from_lost_answer(call.side, call.operation, error))
        })?;
        let mismatch = call.mismatch(answer.head()).filter(|_| answer.is_success());
        if answer.is_success() && mismatch.is_none() {
            return Ok(answer);
        }
        let (head, body) = answer.split();
        if let Some(mismatch) = mismatch {
            // It is an answer, if not to this question: no silence of the endpoint's.
            let failure = Failure::with_source(FailureKind::Transient, call.operation, mismatch)
                .of(call.side.asked_dependency())
                .with_unreadable_answer();
            return Err(S3Error {
                failure,
                answer: Some(Box::new(head)),
                is_held_up: false,
            });
        }
        let text = lossy(self.bounds.read_refusal(body).await);
        let said = ErrorBody::parse_refusal(head.status(), |name| head.header(name), &text)
            .with_request(call.named_headers());
        self.signer.learn(&said, head.date(), signed_by);
        Err(S3Error {
            failure: error::from_refusal(call.side, call.operation, said),
            answer: Some(Box::new(head)),
            is_held_up: false,
        })
    }
}

fn lossy(text: Vec<u8>) -> String {
    String::from_utf8(text)
        .unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}

impl From<Failure> for S3Error {
    fn from(failure: Failure) -> Self {
        Self::without_answer(failure)
    }
}

impl From<S3Error> for Failure {
    fn from(refusal: S3Error) -> Self {
        refusal.failure
    }
}

/// Requests whose deadline no rule of the protocol depends on have this long to be answered.
pub(crate) const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);
