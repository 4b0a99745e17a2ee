//! The way out of every request, the SDK's too: HTTP/1.1 over TCP and TLS, with the machine's own
//! certificates and the proxies that the environment names. The SDK's own connector would do, but
//! for its limits: it takes a hundred headers.

use std::error::Error;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use aws_smithy_runtime_api::client::http::{
    HttpConnector, HttpConnectorFuture, SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_types::body::SdkBody;
use http::header::PROXY_AUTHORIZATION;
use http::uri::Scheme;
use http::{Request, Uri};
use hyper::rt::{Read, ReadBufCursor, Write};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector as TcpConnector};
use hyper_util::client::legacy::{self, Client};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tower_service::Service;
use tracing::warn;

use super::signer::Error as BoxError;
use crate::accounts::CONNECT_TIMEOUT;

// User metadata has 2 KB: 500 entries of four bytes, beside what S3 itself says of an object. hyper
// fills two tables of this length, 32 bytes an entry, for each response: 1,200 entries cost a tenth
// of the CPU of a small object.
// <https://docs.aws.amazon.com/AmazonS3/latest/userguide/UsingMetadata.html>
const HEADERS_MAX: usize = 512;

// A thousand short entries, each with its `x-amz-meta-`, have 20 KB, and other stores take somewhat
// more metadata. It is also the most that is read of a body at once.
const HEAD_BYTES_MAX: usize = 128 << 10;

// A device in between may drop an idle connection without a word (NAT gateways after minutes, some
// firewalls after half of one), and what is sent on it then waits for its deadline. A task's own
// requests follow each other within a second.
const IDLE_MAX: Duration = Duration::from_secs(5);

// A connection on which nothing is acknowledged for so long is gone. The kernel finds out by probes
// where nothing is sent, and by TCP_USER_TIMEOUT where something is: `man 7 tcp`.
const UNACKNOWLEDGED_MAX: Duration = Duration::from_secs(20);
const PROBE_EVERY: Duration = Duration::from_secs(5);

/// Makes the connector; nothing is opened yet.
pub(crate) fn connect() -> Result<SharedHttpConnector, NoTls> {
    connect_through(Matcher::from_env())
}

fn connect_through(proxies: Matcher) -> Result<SharedHttpConnector, NoTls> {
    let proxies = Arc::new(proxies);
    let mut tcp = TcpConnector::new();
    // TLS, if any, comes on top.
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(PROBE_EVERY));
    tcp.set_keepalive_interval(Some(PROBE_EVERY));
    tcp.set_tcp_user_timeout(Some(UNACKNOWLEDGED_MAX));
    let tls = tls()?;
    let proxy = HttpsConnectorBuilder::new()
        .with_tls_config(tls.clone())
        .https_or_http()
        .enable_http1();
    let path = Path {
        proxy: proxy.wrap_connector(tcp.clone()),
        tcp,
        proxies: Arc::clone(&proxies),
    };
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1();
    let client = Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_MAX)
        .http1_max_headers(HEADERS_MAX)
        .http1_max_buf_size(HEAD_BYTES_MAX)
        .build(Timely(https.wrap_connector(path)));
    Ok(SharedHttpConnector::new(Transport { client, proxies }))
}

/// Without certificates nothing is trusted; plain HTTP goes on working.
fn tls() -> Result<ClientConfig, NoTls> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    let (added, _unreadable) = roots.add_parsable_certificates(found.certs);
    if added == 0 {
        warn!(errors = ?found.errors, "this machine has no CA certificates: no TLS connection will be trusted");
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config =
        ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions()?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// The TLS library cannot be set up.
pub(crate) type NoTls = rustls::Error;

/// Nothing of a request was sent, because there is no connection.
#[derive(Debug, thiserror::Error)]
#[error("cannot connect")]
struct NotConnected(#[source] legacy::Error);

/// Says whether an error means that nothing was sent.
pub(crate) fn is_unsent(error: &(dyn Error + 'static)) -> bool {
    std::iter::successors(Some(error), |&error| error.source())
        .any(|error| error.is::<NotConnected>())
}

#[derive(Debug)]
struct Transport {
    client: Client<Timely, SdkBody>,
    proxies: Arc<Matcher>,
}

impl HttpConnector for Transport {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => {
                return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into())));
            }
        };
        self.authorize_proxy(&mut request);
        let answer = self.client.request(request);
        HttpConnectorFuture::new(async move {
            let answer = answer.await.map_err(classify)?.map(SdkBody::from_body_1_x);
            HttpResponse::try_from(answer)
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

impl Transport {
    /// A tunnel's password goes with its CONNECT; a forwarded request carries it itself.
    fn authorize_proxy(&self, request: &mut Request<SdkBody>) {
        if request.uri().scheme() != Some(&Scheme::HTTP) {
            return;
        }
        let proxy = self.proxies.intercept(request.uri());
        if let Some(password) = proxy.as_ref().and_then(|proxy| proxy.basic_auth()) {
            request
                .headers_mut()
                .insert(PROXY_AUTHORIZATION, password.clone());
        }
    }
}

/// Classifies an error for the SDK: what is of input and output it tries again.
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

/// The way to a host: straight, or through a proxy.
#[derive(Debug, Clone)]
struct Path {
    tcp: TcpConnector,
    /// To a proxy, which may require TLS itself.
    proxy: HttpsConnector<TcpConnector>,
    proxies: Arc<Matcher>,
}

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
            return Box::pin(async {
                Ok(Stream {
                    io: MaybeHttpsStream::Http(tcp.await?),
                    is_forwarded: false,
                })
            });
        };
        if to.scheme() == Some(&Scheme::HTTPS) {
            let tunnel = Tunnel::new(proxy.uri().clone(), self.proxy.clone());
            let mut tunnel = match proxy.basic_auth() {
                Some(password) => tunnel.with_auth(password.clone()),
                None => tunnel,
            };
            let tunnel = tunnel.call(to);
            return Box::pin(async {
                Ok(Stream {
                    io: tunnel.await?,
                    is_forwarded: false,
                })
            });
        }
        let proxy = self.proxy.call(proxy.uri().clone());
        Box::pin(async {
            Ok(Stream {
                io: proxy.await?,
                is_forwarded: true,
            })
        })
    }
}

/// An open way to a host.
#[derive(Debug)]
struct Stream {
    io: MaybeHttpsStream<TokioIo<TcpStream>>,
    /// A proxy reads the requests, and needs their whole URL.
    is_forwarded: bool,
}

impl Connection for Stream {
    fn connected(&self) -> Connected {
        self.io.connected().proxy(self.is_forwarded)
    }
}

impl Read for Stream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_read(context, buffer)
    }
}

impl Write for Stream {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;

    /// Answers one request, and returns its head.
    async fn serve(listener: TcpListener, answer: &[u8]) -> String {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            assert!(stream.read_buf(&mut head).await.unwrap() > 0);
        }
        // What is too much is not read to its end.
        drop(stream.write_all(answer).await);
        String::from_utf8(head).unwrap()
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
        futures::join!(
            connector.call(request.try_into().unwrap()),
            serve(listener, answer)
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
    async fn plain_requests_are_forwarded_by_the_proxy_and_others_tunnelled() {
        let (answer, asked) = ask(Some("http://store.example/a?b"), &with_headers(0, "")).await;
        assert!(answer.unwrap().status().is_success());
        assert!(
            asked.starts_with("GET http://store.example/a?b HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(
            asked.to_lowercase().contains("proxy-authorization: basic "),
            "{asked}"
        );
        let (answer, asked) = ask(
            Some("https://store.example/a"),
            b"HTTP/1.1 403 Forbidden\r\n\r\n",
        )
        .await;
        assert!(is_unsent(&answer.unwrap_err()));
        assert!(
            asked.starts_with("CONNECT store.example:443 HTTP/1.1\r\n"),
            "{asked}"
        );
        assert!(
            asked.to_lowercase().contains("proxy-authorization: basic "),
            "{asked}"
        );
    }
}
