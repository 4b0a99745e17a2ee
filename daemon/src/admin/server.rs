//! The HTTP server of what the daemon says of itself. A bounded number of connections is served at a
//! time, each for a bounded time and one request, that names this daemon as its own clients do.

use std::collections::VecDeque;
use std::future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use http::header::{self, HOST};
use http::uri::Authority;
use http::{HeaderValue, StatusCode, Uri, Version};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use percent_encoding::percent_decode_str;
use replicator_config::ApiToken;
use replicator_core::object::without_commands;
use subtle::ConstantTimeEq;
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::admin::api::{self, ApiError};
use crate::admin::{Admin, Refusal, Status, bad_request, failures, json_response, unavailable};

// A scraper or two, a load balancer, and operators. Beyond that the oldest connection makes way for
// the next one, so that half-sent requests keep no client out.
const CONNECTIONS_MAX: usize = 64;

// Clients send the few lines of a request at once.
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);

// The longest answer, to a retry, is given up after a minute; the rest is for a slow reader of a
// long list.
const CONNECTION_TIMEOUT: Duration = Duration::from_secs(90);

// A key has 1,024 bytes, which a query may have to write as three each.
const HEAD_BYTES_MAX: usize = 16 << 10;

// Descriptors that ran out come back only as other connections end.
const PAUSE: Duration = Duration::from_millis(200);

/// The header that every POST has to have, but those of the API, which bear a token. A web page can
/// make a browser send it nowhere but to the page's own server.
pub(crate) const COMMAND: &str = "x-s3-replicator";

impl Admin {
    /// Serves until `stop` is cancelled.
    pub(crate) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let known_hosts = middleware::from_fn_with_state(Arc::clone(&self.hosts), refuse_foreign);
        let commands = Router::new()
            .route("/failures/retry", self.change(failures::retry_parked))
            .route("/rules/pause", self.change(api::pause))
            .route("/rules/resume", self.change(api::resume));
        let router = Router::new()
            .route("/", get(page))
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .route("/failures", get(failures::list_parked))
            .merge(commands)
            .merge(api::router(&self))
            .fallback(no_path)
            .with_state(self)
            .layer(known_hosts)
            .layer(middleware::from_fn(refuse_pages))
            .layer(middleware::from_fn(describe_refusals));
        serve(router, listener, stop).await;
    }

    /// Routes a POST to what changes something, if the request may. A path that knows no POST says
    /// that to all.
    pub(super) fn change<H: Handler<A, Self>, A: 'static>(&self, handler: H) -> MethodRouter<Self> {
        let guarded = middleware::from_fn_with_state(self.clone(), guard_change);
        post(handler).route_layer(guarded)
    }
}

/// Serves until `stop` is cancelled; requests that have arrived by then are answered.
async fn serve(router: Router, listener: TcpListener, stop: CancellationToken) {
    let mut connections = JoinSet::new();
    let mut oldest_first = VecDeque::<(AbortHandle, Arc<AtomicBool>)>::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let Ok((stream, _)) =
            accepted.inspect_err(|error| warn!(%error, "cannot take a connection"))
        else {
            tokio::time::sleep(PAUSE).await;
            continue;
        };
        while connections.try_join_next().is_some() {}
        oldest_first.retain(|(connection, _)| !connection.is_finished());
        if oldest_first.len() >= CONNECTIONS_MAX {
            // One whose request has come gets its answer, if there is another one to end.
            let is_idle = |(_, has_request): &(_, Arc<AtomicBool>)| !has_request.load(Relaxed);
            let idle = oldest_first.iter().position(is_idle).unwrap_or_default();
            if let Some((ended, _)) = oldest_first.remove(idle) {
                ended.abort();
                connections.join_next().await;
            }
        }
        let has_request = Arc::<AtomicBool>::default();
        let answered = answer(
            stream,
            router.clone(),
            Arc::clone(&has_request),
            stop.clone(),
        );
        oldest_first.push_back((connections.spawn(answered), has_request));
    }
    while connections.join_next().await.is_some() {}
}

/// Answers the one request of a connection. A client that breaks off, or takes too long, gets no
/// answer and no log line.
async fn answer(
    stream: TcpStream,
    router: Router,
    has_request: Arc<AtomicBool>,
    stop: CancellationToken,
) {
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_buf_size(HEAD_BYTES_MAX)
        .keep_alive(false);
    let note_request = move |request: Request| {
        has_request.store(true, Relaxed);
        future::ready(request)
    };
    let router = router.layer(middleware::map_request(note_request));
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(http.serve_connection(TokioIo::new(stream), service));
    let answered = async {
        tokio::select! {
            ended = connection.as_mut() => ended,
            () = stop.cancelled() => {
                // One on which nothing came yet ends at once.
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        }
    };
    let _broken_off = tokio::time::timeout(CONNECTION_TIMEOUT, answered).await;
}

/// Refuses what a browser sends for a foreign page: under a name of the page's own, which was made
/// to lead here (DNS rebinding).
async fn refuse_foreign(
    State(hosts): State<Arc<[String]>>,
    request: Request,
    next: Next,
) -> Response {
    match foreign(&request, &hosts) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

fn foreign<B>(request: &http::Request<B>, hosts: &[String]) -> Option<Response> {
    let named = request.headers().get_all(HOST);
    // https://www.rfc-editor.org/rfc/rfc9112#section-3.2
    if request.version() >= Version::HTTP_11 && named.iter().count() != 1 {
        let text = "a request has one Host header\n";
        return Some((StatusCode::BAD_REQUEST, text).into_response());
    }
    let named = named.iter().map(|host| host.to_str().unwrap_or_default());
    let mut named = named.chain(request.uri().authority().map(Authority::as_str));
    if let Some(host) = named.find(|host| !is_known(host, hosts)) {
        let text = format!(
            "host {host:?} is not served here; if your clients say so, add it to `listen_hosts`\n"
        );
        return Some((StatusCode::MISDIRECTED_REQUEST, text).into_response());
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

/// Says whether a path is for programs, whether or not there is anything at it.
fn is_api(uri: &Uri) -> bool {
    let below = uri.path().strip_prefix("/api");
    below.is_some_and(|below| below.is_empty() || below.starts_with('/'))
}

/// Refuses what a browser sends for a page of another origin, which can read no answer, and could
/// make requests that cost money: <https://www.w3.org/TR/fetch-metadata/#sec-fetch-site-header>
async fn refuse_pages(request: Request, next: Next) -> Result<Response, Refusal> {
    let sites = request.headers().get_all("sec-fetch-site");
    let is_own = sites
        .iter()
        .all(|site| site == "same-origin" || site == "none");
    if is_own || !is_api(request.uri()) {
        return Ok(next.run(request).await);
    }
    let text = "a browser sends this for a page of another origin, which is refused";
    Err((StatusCode::FORBIDDEN, text.to_owned()))
}

/// Lets a request that changes anything through if it may.
async fn guard_change(State(admin): State<Admin>, request: Request, next: Next) -> Response {
    match unauthorised(&request, admin.token.as_ref()) {
        Some(refusal) => refusal,
        None => next.run(request).await,
    }
}

/// Without a token the API reads alone, and the commands of this host need none, but a header that
/// no foreign page can send.
fn unauthorised<B>(request: &http::Request<B>, token: Option<&ApiToken>) -> Option<Response> {
    let is_api = is_api(request.uri());
    if !is_api && !request.headers().contains_key(COMMAND) {
        let text = format!("a POST needs the header {COMMAND}: 1\n");
        return Some((StatusCode::FORBIDDEN, text).into_response());
    }
    match token {
        None if is_api => {
            let text = "this API reads alone; `api_token_file` in the configuration names the \
                 token of those that may change anything";
            Some((StatusCode::FORBIDDEN, text).into_response())
        }
        Some(token) if !bears(request, token) => {
            let scheme = [(header::WWW_AUTHENTICATE, "Bearer")];
            let text = "say the token of `api_token_file`, as `Authorization: Bearer TOKEN`";
            Some((StatusCode::UNAUTHORIZED, scheme, text).into_response())
        }
        None | Some(_) => None,
    }
}

/// Compares in a time that says nothing of the token but its length. The name of a scheme is the
/// same in any case: <https://www.rfc-editor.org/rfc/rfc9110#section-11.1>
fn bears<B>(request: &http::Request<B>, token: &ApiToken) -> bool {
    let header = request.headers().get(header::AUTHORIZATION);
    let given = header.map_or(b"".as_slice(), |header| header.as_bytes());
    let Some((scheme, rest)) = given.split_at_checked(BEARER.len()) else {
        return false;
    };
    let given = rest.trim_ascii_start();
    scheme.eq_ignore_ascii_case(BEARER)
        && given.len() < rest.len()
        && token.as_str().as_bytes().ct_eq(given).into()
}

const BEARER: &[u8] = b"Bearer";

// Most objects are read within a second; the dispatch and the buckets are given up after more.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("5");

/// Gives what the API refuses in words, or without any, the form that programs read.
async fn describe_refusals(request: Request, next: Next) -> Response {
    let is_api = is_api(request.uri());
    let answer = next.run(request).await;
    if !is_api || answer.status().is_success() {
        return answer;
    }
    let (mut head, body) = answer.into_parts();
    let body = axum::body::to_bytes(body, REFUSAL_BYTES_MAX).await;
    let text = body.map(|body| String::from_utf8_lossy(&body).trim().to_owned());
    let text = text.ok().filter(|text| !text.is_empty());
    let error = text.unwrap_or_else(|| head.status.to_string());
    for replaced in [header::CONTENT_TYPE, header::CONTENT_LENGTH] {
        head.headers.remove(replaced);
    }
    let mut described = json_response(&ApiError { error });
    *described.status_mut() = head.status;
    described.headers_mut().extend(head.headers);
    if described.status() == StatusCode::SERVICE_UNAVAILABLE {
        let headers = described.headers_mut();
        headers.insert(header::RETRY_AFTER, RETRY_AFTER_SECONDS);
    }
    described
}

// A refusal names what it refuses, which is a part of the request's head.
const REFUSAL_BYTES_MAX: usize = 64 << 10;

/// Reads the pairs of a query, each name once. A plus sign is a space:
/// <https://url.spec.whatwg.org/#application/x-www-form-urlencoded>
pub(super) fn query_pairs(query: &str) -> Result<Vec<(&str, String)>, Refusal> {
    let mut pairs = Vec::<(&str, String)>::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if pairs.iter().any(|(other, _)| *other == name) {
            return Err(bad_request(format!("{name} is there twice; say it once")));
        }
        let spaced = value.replace('+', " ");
        let unreadable = |_| bad_request(format!("{name} is not UTF-8"));
        let value = percent_decode_str(&spaced).decode_utf8();
        pairs.push((name, value.map_err(unreadable)?.into_owned()));
    }
    Ok(pairs)
}

/// Answers where there is nothing.
async fn no_path(uri: Uri) -> Refusal {
    let text = match is_api(&uri) {
        true => format!("{} is no path of this API", uri.path()),
        false => format!("{} is no path here\n", uri.path()),
    };
    (StatusCode::NOT_FOUND, text)
}

/// Exports every metric in the text format of Prometheus.
#[utoipa::path(
    get,
    path = "/metrics",
    tag = "host",
    responses(
        (status = 200, description = "The metrics", body = String, content_type = "text/plain; version=0.0.4"),
        (status = 500, description = "They cannot be written down", body = String, content_type = "text/plain; charset=utf-8"),
    )
)]
pub(super) async fn metrics(State(admin): State<Admin>) -> Result<impl IntoResponse, Refusal> {
    let text = admin.metrics().await;
    let text = text.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

/// Says whether the daemon gets anywhere.
#[utoipa::path(
    get,
    path = "/healthz",
    tag = "host",
    responses(
        (status = 200, description = "It does", body = String, content_type = "text/plain; charset=utf-8"),
        (status = 503, description = "What keeps it from that", body = String, content_type = "text/plain; charset=utf-8"),
    )
)]
pub(super) async fn healthz(State(admin): State<Admin>) -> Result<&'static str, Refusal> {
    match admin.problem().await {
        None => Ok("ok\n"),
        Some(problem) => Err(unavailable(format!("{problem}\n"))),
    }
}

/// Says whether every queue answers and the daemon is not about to stop.
#[utoipa::path(
    get,
    path = "/readyz",
    tag = "host",
    responses(
        (status = 200, description = "That is so", body = String, content_type = "text/plain; charset=utf-8"),
        (status = 503, description = "What is not so", body = String, content_type = "text/plain; charset=utf-8"),
    )
)]
pub(super) async fn readyz(State(admin): State<Admin>) -> Result<&'static str, Refusal> {
    match admin.unreadiness() {
        None => Ok("ready\n"),
        Some(reason) => Err(unavailable(format!("{reason}\n"))),
    }
}

/// Tells the same as `/api/v1/status`; a refusal is text.
#[utoipa::path(
    get,
    path = "/status",
    tag = "host",
    responses(
        (status = 200, description = "The figures", body = Status),
        (status = 503, description = "The dispatch does not answer", body = String, content_type = "text/plain; charset=utf-8"),
    )
)]
pub(super) async fn status(State(admin): State<Admin>) -> Result<Response, Refusal> {
    let status = admin.status().await.map_err(unavailable)?;
    Ok(json_response(&status))
}

async fn page(State(admin): State<Admin>) -> Result<Html<String>, Refusal> {
    let status = admin.status().await.map_err(unavailable)?;
    let text = crate::admin::status::table(&status);
    let text = without_commands(&text)
        .replace('&', "&amp;")
        .replace('<', "&lt;");
    Ok(Html(format!(
        "<!doctype html><title>s3-replicator</title><pre>{text}</pre>"
    )))
}

#[cfg(test)]
mod tests {
    use axum::body::to_bytes;
    use http::Request;
    use http::request::Builder;
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule::BucketRef;

    use super::*;
    use crate::admin::SILENT;
    use crate::admin::tests::{admin, answer};
    use crate::health::SILENT_AFTER;
    use crate::ledger::records::TargetKey;

    /// Asks as a load balancer does.
    async fn health(admin: &Admin) -> (StatusCode, String) {
        let answer = healthz(State(admin.clone())).await.into_response();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 10).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    fn red(text: &str) -> (StatusCode, String) {
        (StatusCode::SERVICE_UNAVAILABLE, format!("{text}\n"))
    }

    fn green() -> (StatusCode, String) {
        (StatusCode::OK, "ok\n".to_owned())
    }

    #[tokio::test(start_paused = true)]
    async fn a_dead_queue_turns_the_health_red_until_it_answers() {
        let directory = tempfile::tempdir().unwrap();
        let (admin, _asked) = admin(&directory).await;
        admin.polls[0].poll_failed("no answer");
        tokio::time::advance(SILENT_AFTER).await;
        assert_eq!(health(&admin).await, green());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(health(&admin).await, red("queue events cannot be polled"));
        admin.polls[0].poll_succeeded();
        assert_eq!(health(&admin).await, green());
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_hangs_turns_the_health_red_though_others_get_on() {
        let directory = tempfile::tempdir().unwrap();
        let (admin, mut asked) = admin(&directory).await;
        let destination = BucketRef {
            account: "archive".to_owned(),
            bucket: Bucket::try_from("replicas").unwrap(),
        };
        let target = TargetKey {
            destination,
            key: Key::try_from("hangs").unwrap(),
        };
        let at_work = admin.engine.watchdog.at_work(&target);
        tokio::time::advance(Duration::from_secs(901)).await;
        admin.engine.watchdog.record_progress();
        let (answer, ()) = tokio::join!(health(&admin), answer(&mut asked));
        assert_eq!(
            answer,
            red("s3://replicas/hangs is worked on and has not moved for 901 s")
        );
        assert_eq!(
            health(&admin).await,
            red(SILENT),
            "a dispatch that hangs as well is worse"
        );
        drop(at_work);
        // The second request waited for a dispatch that never answered, which took its time.
        admin.engine.watchdog.record_progress();
        assert_eq!(health(&admin).await, green());
    }

    fn refused(request: Builder) -> Option<StatusCode> {
        let hosts = ["replicator.internal".to_owned()];
        foreign(&request.body(()).unwrap(), &hosts).map(|answer| answer.status())
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
                refused(Request::get("/status").header(HOST, host)),
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
            let misdirected = Some(StatusCode::MISDIRECTED_REQUEST);
            assert_eq!(
                refused(Request::get("/status").header(HOST, host)),
                misdirected,
                "{host}"
            );
            let second = Request::get("/status")
                .header(HOST, "localhost")
                .header(HOST, host)
                .version(Version::HTTP_10);
            assert_eq!(refused(second), misdirected, "{host}, after another");
        }
        let none = || Request::get("/status");
        assert_eq!(refused(none()), Some(StatusCode::BAD_REQUEST));
        assert_eq!(
            refused(none().version(Version::HTTP_10)),
            None,
            "browsers always say one"
        );
        let absolute = Request::get("http://evil.example/status").header(HOST, "localhost");
        assert_eq!(refused(absolute), Some(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn a_command_has_a_header_that_no_foreign_page_can_send() {
        let refused = |path: &str, header: &str| {
            let request = Request::post(path).header(header, "1").body(()).unwrap();
            unauthorised(&request, None).map(|answer| answer.status())
        };
        let path = "/failures/retry?all";
        assert_eq!(refused(path, "accept"), Some(StatusCode::FORBIDDEN));
        assert_eq!(refused(path, COMMAND), None);
        let of_api = refused("/api/v1/failures/retry?all", COMMAND);
        assert_eq!(of_api, Some(StatusCode::FORBIDDEN));
    }

    #[test]
    fn a_query_is_read_as_forms_are_written() {
        let pairs = query_pairs("uri=s3%3A%2F%2Fa%2Fb+c%2Bd&all").unwrap();
        assert_eq!(
            pairs,
            [("uri", "s3://a/b c+d".to_owned()), ("all", String::new())]
        );
        assert!(query_pairs("uri=%ff").is_err());
        let (_, twice) = query_pairs("rule=a&rule=a").unwrap_err();
        assert_eq!(twice, "rule is there twice; say it once");
    }

    const SECRET: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn only_the_whole_token_is_the_token() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(&file, SECRET).unwrap();
        let token = ApiToken::read_file(file.path()).unwrap();
        let borne = |value: &str| {
            let request = Request::post("/").header(header::AUTHORIZATION, value);
            bears(&request.body(axum::body::Body::empty()).unwrap(), &token)
        };
        for scheme in ["Bearer ", "bearer ", "BEARER  "] {
            assert!(borne(&format!("{scheme}{SECRET}")), "{scheme}");
        }
        for other in [
            "",
            "Bearer ",
            SECRET,
            &format!("Bearer{SECRET}"),
            &format!("Basic {SECRET}"),
            &format!("Bearer {SECRET}0"),
            &format!("bearer {}", &SECRET[1..]),
        ] {
            assert!(!borne(other), "{other}");
        }
        let none = Request::post("/").body(axum::body::Body::empty()).unwrap();
        assert!(!bears(&none, &token));
    }
}
