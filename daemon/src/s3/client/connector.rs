//! The way out of every request, the SDK's too, and bounds on what comes back: HTTP/1.1 over TCP
//! and TLS, with the machine's own certificates and the proxies that the environment names. The
//! SDK's own connector would do, but for its limits: it takes a hundred headers.

use std::error::Error;
use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::box_error::BoxError;
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector, HttpConnectorFuture, HttpConnectorSettings, SharedHttpClient,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http::uri::{Authority, Scheme};
use http::{Request, Uri};
use http_body_util::BodyExt;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector as TcpConnector;
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::{self, Client};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use thiserror::Error as ThisError;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tower_service::Service;
use tracing::warn;

use crate::clock;
use crate::s3::accounts::CONNECT_TIMEOUT;
use crate::s3::client::response;

// User metadata has 2 KB: a thousand entries of two bytes, beside what S3 itself says of an object.
// An answer with more is not S3's. hyper takes 100 unless told; for more it fills two tables for
// each response, which took a tenth of the CPU of a small object. So a read whose answer has more
// is sent again by a client that takes so many.
// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>
const HEADERS_MAX: usize = 1200;

// A thousand short entries, each with its `x-amz-meta-`, have 20 KB, and other stores take somewhat
// more metadata. It is also the most that is read of a body at once.
const HEAD_BYTES_MAX: usize = 128 << 10;

// A device in between may drop an idle connection silently (NAT gateways after minutes, some
// firewalls after half of one), and a request sent on it then waits for its deadline. A task's own
// requests follow each other within a second.
const IDLE_MAX: Duration = Duration::from_secs(5);

// A connection on which nothing is acknowledged for so long is dead. The kernel detects that by
// probes where nothing is sent, and by TCP_USER_TIMEOUT where something is: `man 7 tcp`.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Makes the connector; nothing is opened yet.
pub(crate) fn connect() -> Result<SharedHttpConnector, NoTls> {
    connect_through(Matcher::from_env())
}

fn connect_through(proxies: Matcher) -> Result<SharedHttpConnector, NoTls> {
    let mut tcp = TcpConnector::new();
    // TLS, if any, comes on top.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PROBE_EVERY));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    let tls = tls()?;
    let https = || {
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls.clone());
        builder.https_or_http().enable_http1()
    };
    let path = Path {
        proxy: https().wrap_connector(tcp.clone()),
        tcp,
        proxies: Arc::new(proxies),
    };
    let connector = Timely(https().wrap_connector(path));
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .http1_max_buf_size(HEAD_BYTES_MAX);
    Ok(SharedHttpConnector::new(Transport {
        usual: builder.build(connector.clone()),
        many_headers: builder.http1_max_headers(HEADERS_MAX).build(connector),
    }))
}

/// Makes the settings of TLS. Without certificates no server is trusted; plain HTTP still works.
fn tls() -> Result<ClientConfig, NoTls> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _unreadable) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        let errors: Vec<String> = found.errors.iter().map(ToString::to_string).collect();
        let errors = errors.join("; ");
        warn!(
            errors,
            "this machine has no CA certificates: no TLS connection will be trusted"
        );
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The TLS library cannot be set up.
pub(crate) type NoTls = rustls::Error;

/// No byte of a request was sent, because there is no connection.
#[derive(Debug, ThisError)]
#[error("cannot connect")]
struct NotConnected(#[source] legacy::Error);

/// Says whether an error proves that nothing was sent.
pub(crate) fn is_unsent(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .any(|error| error.is::<NotConnected>())
}

#[derive(Debug)]
struct Transport {
    usual: Client<Timely, SdkBody>,
    /// For answers with more headers than hyper's default.
    many_headers: Client<Timely, SdkBody>,
}

impl HttpConnector for Transport {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        let (parts, body) = request.into_parts();
        let again = parts.method.is_safe().then(|| parts.clone());
        let answer = self.usual.request(Request::from_parts(parts, body));
        let many_headers = self.many_headers.clone();
        HttpConnectorFuture::new(async move {
            let answer = match (answer.await, again) {
                (Err(error), Some(parts)) if is_too_large(&error) => {
                    let request = Request::from_parts(parts, SdkBody::empty());
                    many_headers.request(request).await
                }
                (answer, _) => answer,
            };
            let answer = answer.map_err(classify)?.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(answer)
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// Says whether an answer has too many headers, or too long ones.
fn is_too_large(error: &legacy::Error) -> bool {
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<hyper::Error>());
    cause.is_some_and(hyper::Error::is_parse_too_large)
}

/// Classifies an error for the SDK, which retries errors of input and output.
fn classify(error: legacy::Error) -> ConnectorError {
    if error.is_connect() {
        return ConnectorError::io(NotConnected(error).into()).never_connected();
    }
    let cause = error
        .source()
        .and_then(|cause| cause.downcast_ref::<hyper::Error>());
    match cause {
        // The same answer would come again: too many headers, or no HTTP at all.
        Some(cause) if cause.is_parse() => ConnectorError::other(error.into(), None),
        Some(cause) if cause.is_user() => ConnectorError::user(error.into()),
        Some(_) | None => ConnectorError::io(error.into()),
    }
}

/// Connects in time, TLS included.
#[derive(Debug, Clone)]
struct Timely(HttpsConnector<Path>);

type Connecting<T> = Pin<Box<dyn Future<Output = Result<T, BoxError>> + Send>>;

impl Service<Uri> for Timely {
    type Response = MaybeHttpsStream<Stream>;
    type Error = BoxError;
    type Future = Connecting<Self::Response>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.0.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let connected = tokio::time::timeout(CONNECT_TIMEOUT, self.0.call(to));
        Box::pin(async {
            connected
                .await
                .map_err(|_elapsed| format!("not within {CONNECT_TIMEOUT:?}"))?
        })
    }
}

/// The way to a host: straight, or in a tunnel through a proxy.
#[derive(Debug, Clone)]
struct Path {
    tcp: TcpConnector,
    /// To a proxy, which may require TLS itself.
    proxy: HttpsConnector<TcpConnector>,
    proxies: Arc<Matcher>,
}

/// A connection, encrypted if it is to a proxy that requires that.
type Stream = MaybeHttpsStream<TokioIo<TcpStream>>;

impl Service<Uri> for Path {
    type Response = Stream;
    type Error = BoxError;
    type Future = Connecting<Stream>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let Some(proxy) = self.proxies.intercept(&to) else {
            let tcp = self.tcp.call(to);
            return Box::pin(async { Ok(MaybeHttpsStream::Http(tcp.await?)) });
        };
        let tunnel = Tunnel::new(proxy.uri().clone(), self.proxy.clone());
        let mut tunnel = match proxy.basic_auth() {
            Some(password) => tunnel.with_auth(password.clone()),
            None => tunnel,
        };
        let tunnel = with_port(to).map(|to| tunnel.call(to));
        Box::pin(async { Ok(tunnel?.await?) })
    }
}

/// Names the port of a plain URL: a tunnel to no port in particular goes to that of TLS.
fn with_port(url: Uri) -> Result<Uri, http::Error> {
    let plain = url
        .authority()
        .filter(|authority| url.scheme() == Some(&Scheme::HTTP) && authority.port().is_none());
    match plain.map(Authority::host) {
        Some(host) => Uri::builder()
            .scheme(Scheme::HTTP)
            .authority(format!("{host}:80"))
            .path_and_query("/")
            .build(),
        None => Ok(url),
    }
}

/// The bounds of one account; clones share what there is.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    account: Arc<str>,
    /// Held while a long text is read, which bounds the memory of all that are read at once.
    long_texts: Arc<Semaphore>,
    far_off: Arc<Mutex<Option<FarOff>>>,
    /// By how many seconds the endpoint's clock was ahead of ours at the last answer.
    ahead_seconds: Arc<AtomicI64>,
}

/// A clock that cannot be used beside ours.
#[derive(Debug, Clone, Copy)]
struct FarOff {
    /// By how much it is ahead of ours, or behind.
    by_seconds: i64,
    seen: Instant,
}

/// More came than any service sends.
#[derive(Debug, ThisError)]
#[error("the answer is longer than {0} bytes")]
struct TooLong(usize);

/// The headers of an answer came, and its text not to the end.
#[derive(Debug, ThisError)]
#[error("the answer cannot be read to its end")]
pub(crate) struct TruncatedAnswer(#[source] BoxError);

/// The longest answer: ten messages of a MiB of quotation marks each, which JSON writes as two
/// characters; a list of a thousand keys of the longest, all escapes, has a third of that.
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
const BYTES_MAX: usize = 24 << 20;

// The text of a refusal is short; a longer one is not a service's.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

// A list of a thousand ordinary entries has less, and 256 tasks may each read one at a time.
const SHORT_BYTES_MAX: usize = 512 << 10;

// For each account, so that long answers of one account's services delay no other account.
const LONG_TEXTS_MAX: usize = 3;

// So long after its last wrong date a clock counts as right again. A wrong one is in every answer,
// and is warned of once.
const FAR_OFF_FOR: Duration = Duration::from_secs(3600);

impl Bounds {
    pub(crate) fn new(account: &str) -> Self {
        let long_texts = Arc::new(Semaphore::new(LONG_TEXTS_MAX));
        Self {
            account: Arc::from(account),
            long_texts,
            far_off: Arc::default(),
            ahead_seconds: Arc::default(),
        }
    }

    /// Reads an answer to its end.
    pub(super) async fn read_text(&self, body: SdkBody) -> Result<Vec<u8>, BoxError> {
        self.read_up_to(BYTES_MAX, body).await
    }

    /// Reads the text of a refusal; one that breaks off, or never ends, counts as empty, because
    /// the status is known anyway.
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

    /// Removes a date that is far from ours: by the one or the other no signature is valid, and
    /// ages computed from both are wrong. The warning names both, because ours may be the wrong
    /// one.
    pub(super) fn check_date(&self, answer: &mut HttpResponse) {
        let date = answer.headers().get("date").and_then(response::date);
        if let Some(date) = date {
            let ahead = date.unix_timestamp() - clock::now().unix_timestamp();
            self.ahead_seconds.store(ahead, Ordering::Relaxed);
        }
        let Some(date) = date.filter(|date| !clock::is_near(*date)) else {
            return;
        };
        answer.headers_mut().remove("date");
        let mut far_off = self.far_off.lock().unwrap_or_else(PoisonError::into_inner);
        let ours = clock::now();
        let before = far_off.replace(FarOff {
            by_seconds: date.unix_timestamp() - ours.unix_timestamp(),
            seen: Instant::now(),
        });
        if before.is_none_or(|before| before.seen.elapsed() >= FAR_OFF_FOR) {
            let account = &*self.account;
            warn!(account, %date, %ours, "the endpoint's clock and this host's are more than a day apart: its dates are not used; set the clock that is wrong");
        }
    }

    /// Says by how many seconds an endpoint's clock was ahead of ours, or behind, if that was too
    /// far of late.
    pub(crate) fn far_off(&self) -> Option<i64> {
        let far_off = *self.far_off.lock().unwrap_or_else(PoisonError::into_inner);
        far_off
            .filter(|far_off| far_off.seen.elapsed() < FAR_OFF_FOR)
            .map(|far_off| far_off.by_seconds)
    }

    /// Says by how many seconds the endpoint's clock was ahead of ours at the last answer, or
    /// behind.
    pub(crate) fn ahead_seconds(&self) -> i64 {
        self.ahead_seconds.load(Ordering::Relaxed)
    }

    /// Keeps the answers to a client of the SDK within these bounds.
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
            true => self.read_text(body).await.map_err(classify_unread)?,
            false => self.read_refusal(body).await,
        };
        *answer.body_mut() = SdkBody::from(text);
        Ok(answer)
    }
}

/// Classifies an error for the SDK, as `classify` does.
fn classify_unread(error: BoxError) -> ConnectorError {
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
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers each request alike, and returns the head of the last one.
    async fn serve(listener: &TcpListener, answer: &[u8], last: &Mutex<Vec<u8>>) {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut head = Vec::new();
            while !head.ends_with(b"\r\n\r\n") {
                assert!(stream.read_buf(&mut head).await.unwrap() > 0);
            }
            *last.lock().unwrap() = head;
            // What is too much is not read to its end.
            drop(stream.write_all(answer).await);
        }
    }

    /// Asks for a URL, of this host or through a proxy at it, and returns what the host was asked.
    async fn ask(
        url: Option<&str>,
        answer: &[u8],
    ) -> (Result<HttpResponse, ConnectorError>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (url, proxies) = match url {
            None => (format!("http://{address}/a"), Matcher::builder().build()),
            Some(url) => (
                url.to_owned(),
                Matcher::builder()
                    .all(format!("http://user:word@{address}"))
                    .build(),
            ),
        };
        let connector = connect_through(proxies).unwrap();
        let request = Request::builder().uri(url).body(SdkBody::empty()).unwrap();
        let last = Mutex::default();
        let answered = tokio::select! {
            biased;
            answered = connector.call(request.try_into().unwrap()) => answered,
            () = serve(&listener, answer, &last) => unreachable!(),
        };
        (
            answered,
            String::from_utf8(last.into_inner().unwrap()).unwrap(),
        )
    }

    fn with_headers(count: usize, value: &str) -> Vec<u8> {
        let headers: String = (0..count)
            .map(|number| format!("x-amz-meta-{number}: {value}\r\n"))
            .collect();
        format!("HTTP/1.1 200 OK\r\n{headers}content-length: 0\r\n\r\n").into_bytes()
    }

    #[tokio::test]
    async fn as_many_headers_are_read_as_s3_may_send_and_no_more() {
        let answer = ask(None, &with_headers(1100, "v")).await.0.unwrap();
        assert_eq!(answer.headers().iter().count(), 1101);
        for (count, value) in [(2000, "v"), (20, &*"v".repeat(HEAD_BYTES_MAX / 10))] {
            let error = ask(None, &with_headers(count, value)).await.0.unwrap_err();
            assert!(error.is_other() && !is_unsent(&error), "{error:?}");
        }
    }

    #[tokio::test]
    async fn a_proxy_is_asked_for_a_tunnel() {
        for (url, tunnel) in [
            ("https://store.example/a", "store.example:443"),
            ("http://store.example/a?b", "store.example:80"),
            ("http://store.example:9000/a", "store.example:9000"),
        ] {
            let (answer, asked) = ask(Some(url), b"HTTP/1.1 403 Forbidden\r\n\r\n").await;
            assert!(is_unsent(&answer.unwrap_err()));
            let connect = format!("CONNECT {tunnel} HTTP/1.1\r\n");
            assert!(asked.starts_with(&connect), "{asked}");
            assert!(
                asked.to_lowercase().contains("proxy-authorization: basic "),
                "{asked}"
            );
        }
    }

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
