//! The same world over TCP, for clients in other processes.

use std::convert::Infallible;
use std::future::poll_fn;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::{HeaderMap, Request, Response, header};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::net::{Broken, Delivery, Net};

/// Serves a world on a port until it is dropped. A client's name is the access key that signs its
/// requests, or `anonymous`. Which service is meant is told by the `Host` that a route has, or else
/// by the request itself.
pub async fn serve(listener: TcpListener, net: Net) -> Infallible {
    let mut connections = JoinSet::new();
    loop {
        if let Ok((stream, _)) = listener.accept().await {
            net.connected();
            connections.spawn(converse(stream, net.clone()));
        }
        while connections.try_join_next().is_some() {}
    }
}

// The 2 KB of metadata that S3 allows have room for more entries than the 100 headers that hyper
// allows by itself.
const HEADERS_MAX: usize = 1_000;

/// Why a connection ends without an answer.
#[derive(Debug)]
struct Ended;

async fn converse(stream: TcpStream, net: Net) {
    let resets = Arc::new(AtomicBool::new(false));
    let answer = service_fn({
        let resets = Arc::clone(&resets);
        move |request| Box::pin(answer(request, net.clone(), Arc::clone(&resets)))
    });
    let mut connection = http1::Builder::new()
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(stream), answer);
    let ended = poll_fn(|context| connection.poll_without_shutdown(context)).await;
    if ended.is_err() && resets.load(Ordering::Relaxed) {
        // Closed like this a socket says RST instead of FIN.
        let _reset = connection.into_parts().io.into_inner().set_zero_linger();
    }
}

async fn answer(
    request: Request<Incoming>,
    net: Net,
    resets: Arc<AtomicBool>,
) -> Result<Response<Delivery>, Ended> {
    let (mut parts, body) = request.into_parts();
    let body = body.collect().await.map_err(|_| Ended)?.to_bytes();
    // The body is here: hyper has asked the client to go on with it.
    parts.headers.remove(header::EXPECT);
    let client = client(&parts.headers);
    match net
        .exchange(&client, Request::from_parts(parts, body))
        .await
    {
        Ok(response) => {
            resets.store(response.body().resets(), Ordering::Relaxed);
            Ok(response)
        }
        Err(Broken::Closed) => Err(Ended),
        Err(Broken::Unreachable) => {
            resets.store(true, Ordering::Relaxed);
            Err(Ended)
        }
    }
}

/// The access key of `Authorization: AWS4-HMAC-SHA256
/// Credential=key/date/region/service/aws4_request, …`
fn client(headers: &HeaderMap) -> String {
    let signed = headers
        .get(header::AUTHORIZATION)
        .and_then(|signed| signed.to_str().ok());
    let credential = signed.and_then(|signed| signed.split_once("Credential=")?.1.split_once('/'));
    credential.map_or("anonymous", |(key, _)| key).to_owned()
}

impl std::error::Error for Ended {}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ended by script")
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::time::Duration;

    use aws_sdk_s3::Client;

    use super::*;
    use crate::faults::{Effect, Fault, Place};
    use crate::journal::{Answer, Service};
    use crate::net::tests::{Stub, config};

    /// A world behind a socket, and a client that knows it only by that.
    async fn world() -> (Net, Client, JoinSet<Infallible>) {
        let net = Net::new(1);
        net.route("s3.sim", Service::S3, Stub::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let mut server = JoinSet::new();
        server.spawn(serve(listener, net.clone()));
        (
            net,
            Client::from_conf(config().endpoint_url(url).build()),
            server,
        )
    }

    async fn put(client: &Client, bytes: usize) -> bool {
        client
            .put_object()
            .bucket("b")
            .key("k")
            .body(vec![7; bytes].into())
            .send()
            .await
            .is_ok()
    }

    async fn get(client: &Client) -> Result<usize, io::ErrorKind> {
        let answer = client
            .get_object()
            .bucket("b")
            .key("k")
            .send()
            .await
            .unwrap();
        let mut body = answer.body.into_async_read();
        let mut bytes = Vec::new();
        let read = tokio::io::AsyncReadExt::read_to_end(&mut body, &mut bytes).await;
        read.map_err(|error| find(&error).unwrap_or_else(|| panic!("no I/O error in {error:?}")))
    }

    /// Returns what the socket said, which lies below what hyper and the SDK say.
    fn find(error: &io::Error) -> Option<io::ErrorKind> {
        let mut next: Option<&(dyn std::error::Error + 'static)> =
            error.get_ref().map(|inner| inner as _);
        while let Some(error) = next {
            if let Some(found) = error.downcast_ref::<io::Error>() {
                return Some(found.kind());
            }
            next = error.source();
        }
        None
    }

    #[tokio::test]
    async fn the_world_answers_over_tcp_and_writes_down_who_asked() {
        let (net, client, _server) = world().await;
        // Above 2 MiB the SDK asks to go on before it sends the body.
        assert!(put(&client, 3 << 20).await);
        assert_eq!(get(&client).await, Ok(3 << 20));
        let head = client
            .head_object()
            .bucket("b")
            .key("k")
            .send()
            .await
            .unwrap();
        assert_eq!(head.content_length, Some(3 << 20));
        let entry = &net.journal().of("PutObject")[0];
        assert_eq!(
            (
                entry.client.as_str(),
                entry.call.bytes,
                entry.call.key.as_deref()
            ),
            ("one", 3 << 20, Some("k"))
        );
    }

    #[tokio::test]
    async fn a_body_breaks_on_the_socket() {
        let (net, client, _server) = world().await;
        put(&client, 100_000).await;
        let cases = [
            (Effect::ResetAt(50_000), io::ErrorKind::ConnectionReset),
            (Effect::TruncateAt(50_000), io::ErrorKind::UnexpectedEof),
        ];
        for (effect, expected) in cases {
            net.faults()
                .add(Fault::new("broken", Place::s3("GetObject"), effect.clone()).times(1));
            assert_eq!(get(&client).await, Err(expected), "{effect:?}");
        }
        net.faults()
            .add(Fault::new("short", Place::s3("GetObject"), Effect::Shorten(50_000)).times(1));
        assert_eq!(get(&client).await, Ok(50_000));
    }

    #[tokio::test]
    async fn a_body_stalls_on_the_socket() {
        let (net, client, _server) = world().await;
        put(&client, 100_000).await;
        net.faults().add(Fault::new(
            "stalled",
            Place::s3("GetObject"),
            Effect::StallAt(50_000),
        ));
        let answer = client
            .get_object()
            .bucket("b")
            .key("k")
            .send()
            .await
            .unwrap();
        let (mut body, mut bytes) = (answer.body, 0);
        while bytes < 50_000 {
            bytes += body.try_next().await.unwrap().unwrap().len();
        }
        assert!(
            tokio::time::timeout(Duration::from_millis(300), body.try_next())
                .await
                .is_err()
        );
        assert_eq!(bytes, 50_000);
    }

    #[tokio::test]
    async fn an_answer_is_lost_on_the_socket_and_the_write_lands() {
        let (net, client, _server) = world().await;
        net.faults()
            .add(Fault::new("lost", Place::s3("PutObject"), Effect::LoseAnswer).times(1));
        assert!(!put(&client, 5).await);
        let entry = &net.journal().of("PutObject")[0];
        assert_eq!(
            (entry.answer, entry.executed.map(|(_, status)| status)),
            (Answer::Lost, Some(200))
        );
        assert_eq!(get(&client).await, Ok(5));
    }
}
