//! The connections that are served: a bounded number at a time, each with little time and one
//! request, that names this daemon as its own clients do. A connection that has sent no request yet
//! makes way for the next one, so that half-sent requests keep no client out.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::http::{Method, Request, StatusCode};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

/// The header that every POST has to have. A web page can make a browser send it nowhere but to the
/// page's own server.
pub(crate) const COMMAND: &str = "x-s3-replicator";

/// Takes connections and answers their requests.
#[derive(Debug)]
pub(super) struct Door {
    pub(super) router: Router,
    /// Names, in lower case, under which clients may reach this, beside addresses and localhost.
    pub(super) hosts: Arc<[String]>,
}

/// Connections that are open.
#[derive(Debug, Default)]
struct Connections {
    all: JoinSet<()>,
    /// Those that had sent no request when last looked at, oldest first.
    waiting: VecDeque<(AbortHandle, Arc<AtomicBool>)>,
}

// A scraper or two, a load balancer, and operators.
const CONNECTIONS_MAX: usize = 64;

// Clients send their few lines at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

// The longest answer, to a retry, is given up after a minute; the rest is for a slow reader of a
// long list.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(90);

// A key has 1,024 bytes, which a query may have to write as three each.
const HEAD_BYTES_MAX: usize = 16 << 10;

// Descriptors that ran out come back only as other connections end.
const PAUSE: Duration = Duration::from_millis(200);

impl Door {
    /// Serves until told to stop; requests that have arrived by then are answered.
    pub(super) async fn serve(self, listener: TcpListener, stop: CancellationToken) {
        let mut connections = Connections::default();
        while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
            let Ok((stream, _)) =
                accepted.inspect_err(|error| warn!(%error, "cannot take a connection"))
            else {
                tokio::time::sleep(PAUSE).await;
                continue;
            };
            if stop
                .run_until_cancelled(connections.make_room())
                .await
                .is_none()
            {
                break;
            }
            let asked = Arc::<AtomicBool>::default();
            let talk = self.talk(stream, Arc::clone(&asked));
            connections
                .waiting
                .push_back((connections.all.spawn(talk), asked));
        }
        while connections.evict_oldest() {}
        while connections.all.join_next().await.is_some() {}
    }

    fn talk(&self, stream: TcpStream, asked: Arc<AtomicBool>) -> impl Future<Output = ()> + use<> {
        let (hosts, router) = (
            Arc::clone(&self.hosts),
            TowerToHyperService::new(self.router.clone()),
        );
        let service = service_fn(move |request: Request<Incoming>| {
            asked.store(true, Ordering::Relaxed);
            let refusal = refuse_foreign(&request, &hosts);
            let answer = router.call(request);
            async move {
                match refusal {
                    Some(refusal) => Ok::<Response, Infallible>(refusal),
                    None => answer.await,
                }
            }
        });
        let mut http = http1::Builder::new();
        http.timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(HEAD_BYTES_MAX)
            .keep_alive(false);
        let connection = http.serve_connection(TokioIo::new(stream), service);
        async {
            // A client that breaks off, or takes too long, gets no answer and no log line.
            let _broken_off = tokio::time::timeout(CONNECTION_TIMEOUT, connection).await;
        }
    }
}

impl Connections {
    /// Waits until there is room for one more.
    async fn make_room(&mut self) {
        while self.all.try_join_next().is_some() {}
        self.waiting.retain(|(connection, asked)| {
            !connection.is_finished() && !asked.load(Ordering::Relaxed)
        });
        while self.all.len() >= CONNECTIONS_MAX {
            // Where all have sent a request, the first answer makes room.
            self.evict_oldest();
            self.all.join_next().await;
        }
    }

    /// Ends the oldest connection that has sent no request yet; `false` says that there is none.
    fn evict_oldest(&mut self) -> bool {
        while let Some((connection, asked)) = self.waiting.pop_front() {
            if !asked.load(Ordering::Relaxed) {
                connection.abort();
                return true;
            }
        }
        false
    }
}

/// Refuses what a browser sends for a foreign page: under a name of the page's own, which was made
/// to lead here (DNS rebinding), or as a command.
fn refuse_foreign<B>(request: &Request<B>, hosts: &[String]) -> Option<Response> {
    let named = request
        .headers()
        .get_all(HOST)
        .iter()
        .map(|host| host.to_str().unwrap_or_default());
    let mut named = named.chain(request.uri().authority().map(Authority::as_str));
    if let Some(host) = named.find(|host| !is_known(host, hosts)) {
        let text = format!(
            "host {host:?} is not served here; if your clients say so, add it to `listen_hosts`\n"
        );
        return Some((StatusCode::MISDIRECTED_REQUEST, text).into_response());
    }
    if request.method() == Method::POST && !request.headers().contains_key(COMMAND) {
        return Some(
            (
                StatusCode::FORBIDDEN,
                format!("a POST needs the header {COMMAND}: 1\n"),
            )
                .into_response(),
        );
    }
    None
}

/// An address is nothing that a name was made to lead to.
fn is_known(host: &str, hosts: &[String]) -> bool {
    let Ok(authority) = host.parse::<Authority>() else {
        return false;
    };
    let name = authority
        .host()
        .trim_start_matches('[')
        .trim_end_matches(']')
        .trim_end_matches('.');
    let name = name.to_ascii_lowercase();
    name.parse::<IpAddr>().is_ok() || name == "localhost" || hosts.contains(&name)
}

#[cfg(test)]
mod tests {
    use axum::http::request::Builder;

    use super::*;

    fn status(request: Builder) -> Option<StatusCode> {
        let hosts = ["replicator.internal".to_owned()];
        refuse_foreign(&request.body(()).unwrap(), &hosts).map(|answer| answer.status())
    }

    #[test]
    fn only_hosts_that_cannot_have_been_made_to_lead_here_are_answered() {
        let ours = [
            "127.0.0.1:9478",
            "10.0.0.7",
            "[::1]:9478",
            "[fe80::1]",
            "localhost:80",
            "LocalHost",
            "replicator.INTERNAL.",
        ];
        for host in ours {
            assert_eq!(
                status(Request::get("/status").header(HOST, host)),
                None,
                "{host}"
            );
        }
        let others = [
            "evil.example",
            "evil.example:9478",
            "127.0.0.1.evil.example",
            "localhost.evil.example",
            "",
            "a b",
            "@",
        ];
        for host in others {
            let refused = Some(StatusCode::MISDIRECTED_REQUEST);
            assert_eq!(
                status(Request::get("/status").header(HOST, host)),
                refused,
                "{host}"
            );
            let second = Request::get("/status")
                .header(HOST, "localhost")
                .header(HOST, host);
            assert_eq!(status(second), refused, "{host}, after another");
        }
        assert_eq!(
            status(Request::get("/status")),
            None,
            "browsers always say one"
        );
        let absolute = Request::get("http://evil.example/status").header(HOST, "localhost");
        assert_eq!(status(absolute), Some(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn a_command_has_a_header_that_no_foreign_page_can_send() {
        assert_eq!(
            status(Request::post("/failures/retry?all")),
            Some(StatusCode::FORBIDDEN)
        );
        assert_eq!(
            status(Request::post("/failures/retry?all").header(COMMAND, "1")),
            None
        );
    }
}
