//! What one account's services may answer: texts are read whole, the SDK's too, and no more of them
//! than a service would ever say; and a date that cannot be true is none.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http_body_util::BodyExt;
use thiserror::Error;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tracing::warn;

use super::response;
use super::signer::Error as BoxError;
use crate::clock;

/// The bounds of one account; clones share what there is.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    account: Arc<str>,
    /// Held while a long text is read, so that all that come at once have a bound, too.
    long_texts: Arc<Semaphore>,
    far_off: Arc<Mutex<Option<FarOff>>>,
}

/// A clock that cannot be used beside ours.
#[derive(Debug, Clone, Copy)]
struct FarOff {
    /// By how much it is ahead of ours, or behind.
    by_seconds: i64,
    seen: Instant,
    warned: Instant,
}

/// More came than any service says.
#[derive(Debug, Error)]
#[error("the answer is longer than {0} bytes")]
struct TooLong(usize);

/// The head of an answer came, and its text not to the end.
#[derive(Debug, Error)]
#[error("the answer cannot be read to its end")]
pub(crate) struct TruncatedAnswer(#[source] BoxError);

/// The longest answer: ten messages of a MiB of quotation marks each, which JSON writes as two
/// characters; a list of a thousand keys of the longest, all escapes, has a third of that.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
const BYTES_MAX: usize = 24 << 20;

// What a service says of a refusal is short; more than this is no service speaking.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

// A list of a thousand ordinary entries has less, and 256 tasks may each read one at a time.
const SHORT_BYTES_MAX: usize = 512 << 10;

// For each account, so that services that say too much hold up no other account.
const LONG_TEXTS_MAX: usize = 3;

// A clock that is wrong answers every request.
const WARNED_EVERY: Duration = Duration::from_secs(3600);

impl Bounds {
    pub(crate) fn new(account: &str) -> Self {
        let long_texts = Arc::new(Semaphore::new(LONG_TEXTS_MAX));
        Self {
            account: Arc::from(account),
            long_texts,
            far_off: Arc::default(),
        }
    }

    /// Reads an answer to its end.
    pub(super) async fn read_text(&self, body: SdkBody) -> Result<Vec<u8>, BoxError> {
        self.read_up_to(BYTES_MAX, body).await
    }

    /// Reads what was said of a refusal. A text that breaks off, or never ends, says nothing; the
    /// status is there.
    pub(super) async fn read_refusal(&self, body: SdkBody) -> Vec<u8> {
        self.read_up_to(REFUSAL_BYTES_MAX, body)
            .await
            .unwrap_or_default()
    }

    async fn read_up_to(&self, bytes_max: usize, mut body: SdkBody) -> Result<Vec<u8>, BoxError> {
        let mut text = Vec::new();
        let mut permit = None;
        while let Some(frame) = body.frame().await {
            let Ok(piece) = frame?.into_data() else {
                continue;
            };
            let len = text.len() + piece.len();
            if len > bytes_max {
                return Err(TooLong(bytes_max).into());
            }
            if permit.is_none() && len > SHORT_BYTES_MAX {
                permit = Some(self.long_texts.acquire().await?);
            }
            text.extend_from_slice(&piece);
        }
        Ok(text)
    }

    /// Takes away a date that is far from ours: by the one or the other nothing can be signed, and
    /// nothing is as old as they say together. Where ours is the wrong one, that is said, too.
    pub(super) fn check_date(&self, answer: &mut HttpResponse) {
        let date = answer.headers().get("date").and_then(response::date);
        let Some(date) = date.filter(|date| !clock::is_near(*date)) else {
            return;
        };
        answer.headers_mut().remove("date");
        let mut far_off = self.far_off.lock().unwrap_or_else(PoisonError::into_inner);
        let (ours, seen) = (clock::now(), Instant::now());
        let recently = far_off
            .map(|before| before.warned)
            .filter(|at| at.elapsed() < WARNED_EVERY);
        let by_seconds = date.unix_timestamp() - ours.unix_timestamp();
        *far_off = Some(FarOff {
            by_seconds,
            seen,
            warned: recently.unwrap_or(seen),
        });
        if recently.is_none() {
            let account = &*self.account;
            warn!(account, %date, %ours, "the endpoint's clock and this host's are more than a day apart: its dates are not used; set the clock that is wrong");
        }
    }

    /// Says by how many seconds an endpoint's clock was ahead of ours, or behind, if that was too
    /// far of late.
    pub(super) fn far_off(&self) -> Option<i64> {
        let far_off = *self.far_off.lock().unwrap_or_else(PoisonError::into_inner);
        far_off
            .filter(|far_off| far_off.seen.elapsed() < WARNED_EVERY)
            .map(|far_off| far_off.by_seconds)
    }

    /// Keeps what a client of the SDK is answered within these bounds.
    pub(crate) fn bound_client(&self, client: SharedHttpClient) -> SharedHttpClient {
        SharedHttpClient::new(Bounded {
            inner: client,
            bounds: self.clone(),
            read_timeout: None,
        })
    }

    async fn apply(&self, mut answer: HttpResponse) -> Result<HttpResponse, ConnectorError> {
        self.check_date(&mut answer);
        let body = std::mem::replace(answer.body_mut(), SdkBody::taken());
        let text = match answer.status().is_success() {
            true => self.read_text(body).await.map_err(classify)?,
            false => self.read_refusal(body).await,
        };
        *answer.body_mut() = SdkBody::from(text);
        Ok(answer)
    }
}

/// What is of input and output the SDK tries again.
fn classify(error: BoxError) -> ConnectorError {
    let is_too_long = error.is::<TooLong>();
    let unread = TruncatedAnswer(error).into();
    if is_too_long {
        ConnectorError::other(unread, None)
    } else {
        ConnectorError::io(unread)
    }
}

/// A client, or a connector, of the SDK that is answered within bounds.
#[derive(Debug)]
struct Bounded<T> {
    inner: T,
    bounds: Bounds,
    /// The client that fetches the machine's credentials gives up soon, where there are none.
    read_timeout: Option<Duration>,
}

impl HttpClient for Bounded<SharedHttpClient> {
    fn http_connector(
        &self,
        settings: &HttpConnectorSettings,
        parts: &RuntimeComponents,
    ) -> SharedHttpConnector {
        let (inner, read_timeout) = (
            self.inner.http_connector(settings, parts),
            settings.read_timeout(),
        );
        SharedHttpConnector::new(Bounded {
            inner,
            bounds: self.bounds.clone(),
            read_timeout,
        })
    }
}

impl HttpConnector for Bounded<SharedHttpConnector> {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let (answer, bounds) = (self.inner.call(request), self.bounds.clone());
        let timeout = self.read_timeout.unwrap_or(Duration::MAX);
        HttpConnectorFuture::new(async move {
            let answer = tokio::time::timeout(timeout, answer).await;
            let answer = answer.map_err(|elapsed| ConnectorError::timeout(elapsed.into()))??;
            bounds.apply(answer).await
        })
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use bytes::Bytes;
    use futures::{FutureExt, StreamExt};
    use http_body::Frame;
    use http_body_util::StreamBody;

    use super::*;

    /// A body that never ends, in pieces of this size.
    fn endless(bytes: usize) -> SdkBody {
        let piece = Bytes::from(vec![b' '; bytes]);
        let frames =
            futures::stream::repeat_with(move || Ok::<_, Infallible>(Frame::data(piece.clone())));
        SdkBody::from_body_1_x(StreamBody::new(frames))
    }

    /// A body of which this much comes and then nothing.
    fn hung(bytes: usize) -> SdkBody {
        let piece = Ok::<_, Infallible>(Frame::data(Bytes::from(vec![0; bytes])));
        SdkBody::from_body_1_x(StreamBody::new(
            futures::stream::iter([piece]).chain(futures::stream::pending()),
        ))
    }

    #[tokio::test]
    async fn an_answer_without_an_end_is_an_error_and_a_refusal_says_nothing() {
        let bounds = Bounds::new("archive");
        for bytes in [100, 10_000, 100 << 20] {
            assert!(bounds.read_text(endless(bytes)).await.is_err());
            assert_eq!(bounds.read_refusal(endless(bytes)).await, b"");
        }
        let whole = vec![b'a'; BYTES_MAX];
        assert_eq!(
            bounds
                .read_text(SdkBody::from(whole.clone()))
                .await
                .unwrap(),
            whole
        );
        assert_eq!(
            bounds.read_refusal(SdkBody::from("<Error/>")).await,
            b"<Error/>"
        );
    }

    #[tokio::test]
    async fn few_long_texts_are_read_at_once_and_short_ones_pass_them() {
        let bounds = Bounds::new("archive");
        let mut all: Vec<_> = (0..LONG_TEXTS_MAX)
            .map(|_| Box::pin(bounds.read_text(hung(1 << 20))))
            .collect();
        assert!(all.iter_mut().all(|one| one.now_or_never().is_none()));
        let long = || bounds.read_text(SdkBody::from(vec![b'a'; 1 << 20]));
        assert!(long().now_or_never().is_none());
        assert!(
            bounds
                .read_text(SdkBody::from("short"))
                .now_or_never()
                .is_some()
        );
        all.pop();
        assert!(long().now_or_never().is_some());
    }

    #[test]
    fn a_date_that_cannot_be_true_is_none() {
        let answered = |date: &str| {
            let mut answer = HttpResponse::new(200.try_into().unwrap(), SdkBody::empty());
            answer.headers_mut().insert("date", date.to_owned());
            Bounds::new("archive").check_date(&mut answer);
            answer.headers().get("date").map(str::to_owned)
        };
        for odd in [
            "Fri, 31 Dec 9999 23:59:59 GMT",
            "Thu, 01 Jan 1970 00:00:00 GMT",
        ] {
            assert_eq!(answered(odd), None, "{odd}");
        }
        let now = aws_smithy_types::DateTime::from_secs(clock::now().unix_timestamp());
        let now = now
            .fmt(aws_smithy_types::date_time::Format::HttpDate)
            .unwrap();
        assert_eq!(answered(&now), Some(now));
    }
}
