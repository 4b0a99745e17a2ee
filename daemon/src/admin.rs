//! What the daemon says of itself over HTTP: metrics, health, readiness, status, failures. A
//! bounded number of connections is served at a time, each for a bounded time and one request, that
//! names this daemon as its own clients do.

pub mod api;
pub mod failures;
pub mod status;

use std::collections::{BTreeMap, VecDeque};
use std::future;
use std::net::IpAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::middleware::{self, Next};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use http::header::{self, HOST};
use http::uri::Authority;
use http::{Method, StatusCode};
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use replicator_config::ApiToken;
use replicator_core::failure::{Reason, error_chain};
use replicator_core::object::without_commands;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::check::{Finding, SetUp};
use crate::clock;
use crate::dispatch::{Command, InFlightStats};
use crate::engine::Engine;
use crate::health::{LastError, LivenessFailure, PollStatus, QueueYield, SILENT_AFTER};
pub use crate::kms::{KeySide, KeyState, KeyStatus};
use crate::limit::concurrency::DegradedDependency;
pub use crate::metrics::{Unproved, UnprovedCount};
use crate::process;
use crate::rule_state::{ActivityFigures, PausedRule};
use crate::s3::accounts::FarOffClock;
use crate::s3::accounts::capabilities::DisabledFeature;
use crate::task::Ruleset;

/// What the answers are made from.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) engine: Arc<Engine>,
    pub(crate) commands: mpsc::Sender<Command>,
    pub(crate) polls: Arc<Vec<Arc<PollStatus>>>,
    pub(crate) draining: CancellationToken,
    pub(crate) set_up: Arc<SetUp>,
    pub(crate) rules: watch::Receiver<Arc<Ruleset>>,
    /// What a request that changes anything has to bear, if that is configured.
    pub(crate) token: Option<ApiToken>,
    /// Names, in lower case, under which clients may reach this, beside addresses and localhost.
    pub(crate) hosts: Arc<[String]>,
    /// Places of the requests that read an object at both sides.
    pub(crate) object_reads: Arc<Semaphore>,
}

/// The figures behind `s3-replicator status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Whether every queue answers and the daemon is not about to stop.
    pub ready: bool,
    /// What is in flight.
    pub in_flight: InFlightStats,
    /// Paused rules.
    #[serde(default)]
    pub paused: BTreeMap<String, PausedRule>,
    /// What each rule saw, did, and did not take.
    #[serde(default)]
    pub rules: BTreeMap<String, ActivityFigures>,
    /// What is parked, by rule and reason.
    pub parked: Vec<ParkedCount>,
    /// How polling goes.
    pub queues: Vec<QueueStatus>,
    /// What was written without a proof, since the daemon was started.
    #[serde(default)]
    pub unproved: Vec<UnprovedCount>,
    /// The last errors of source and destination buckets, by their names.
    #[serde(default)]
    pub last_errors: BTreeMap<String, LastError>,
    /// Buckets and keys that are throttled, or whose circuit is open.
    pub degraded: Vec<DegradedDependency>,
    /// The KMS keys that rules use, and whether they can be used.
    #[serde(default)]
    pub keys: Vec<KeyStatus>,
    /// What keeps the ledger from being relied on, if anything does; what is parked may then be
    /// more than is shown.
    #[serde(default)]
    pub ledger: Option<String>,
    /// What is wrong with the set-up, if another daemon was seen where there may be one only.
    #[serde(default)]
    pub second_daemon: Option<String>,
    /// What the last look at the set-up found.
    #[serde(default)]
    pub findings: Vec<Finding>,
    /// What endpoints turned out not to implement.
    pub disabled_features: Vec<DisabledFeature>,
    /// Clocks of endpoints that are not used, because they, or ours, are wrong.
    #[serde(default)]
    pub clock_skew: Vec<FarOffClock>,
}

/// How many tasks of a rule are parked for one reason.
#[derive(Debug, Serialize, Deserialize)]
pub struct ParkedCount {
    /// The rule; empty for messages that fit none.
    pub rule: String,
    /// Why.
    pub reason: Reason,
    /// How many.
    pub tasks: i64,
}

/// How polling a queue goes.
#[derive(Debug, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Its name.
    pub queue: String,
    /// Whether it answered the last poll.
    pub answers: bool,
    /// Whether it is not polled, because its rules are paused.
    #[serde(default)]
    pub is_paused: bool,
    /// Why a poll last failed.
    #[serde(default)]
    pub last_error: Option<LastError>,
    /// Which queue it makes way for, if it is a backfill queue and its work queue has messages.
    #[serde(default)]
    pub yields: Option<QueueYield>,
}

// Dispatch answers between two events. It is late when it waits for room at the ack station, and
// the client gets an answer before it gives up itself: scrapes do after 10 seconds.
const DISPATCH_TIMEOUT: Duration = Duration::from_secs(5);

pub(crate) const SILENT: &str = "the dispatch does not answer";

/// The header that every POST has to have, but those of the API, which bear a token. A web page can make a browser send it nowhere but to the
/// page's own server.
pub(crate) const COMMAND: &str = "x-s3-replicator";

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

impl Admin {
    /// Serves until `stop` is cancelled.
    pub(crate) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let known_hosts = middleware::from_fn_with_state(Arc::clone(&self.hosts), refuse_foreign);
        let token_required = middleware::from_fn_with_state(self.clone(), api::require_token);
        let router = Router::new()
            .route("/", get(page))
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .route("/failures", get(failures::list_parked))
            .route("/failures/retry", post(failures::retry_parked))
            .route("/rules/pause", post(api::pause))
            .route("/rules/resume", post(api::resume))
            .merge(api::router())
            .fallback(api::no_path)
            .layer(token_required)
            .with_state(self)
            .layer(known_hosts)
            .layer(middleware::from_fn(api::refuse_pages))
            .layer(middleware::from_fn(api::describe_refusals));
        serve(router, listener, stop).await;
    }

    /// Requests from the dispatch what is in flight; `None` when it does not answer in time.
    pub(crate) async fn in_flight(&self) -> Option<InFlightStats> {
        let in_flight = self.command(DISPATCH_TIMEOUT, Command::Stats).await;
        if in_flight.is_none() {
            warn!("{SILENT}");
        }
        in_flight
    }

    /// Sends the dispatch a command and waits for the answer.
    pub(crate) async fn command<T>(
        &self,
        timeout: Duration,
        command: impl FnOnce(oneshot::Sender<T>) -> Command,
    ) -> Option<T> {
        let (sender, answer) = oneshot::channel();
        let answered = async {
            self.commands.send(command(sender)).await.ok()?;
            answer.await.ok()
        };
        tokio::time::timeout(timeout, answered).await.ok()?
    }

    /// Says why the daemon is not ready, if it is not.
    pub(crate) fn unreadiness(&self) -> Option<String> {
        if self.draining.is_cancelled() {
            return Some("draining".to_owned());
        }
        let waiting = self.polls.iter().filter(|poll| !poll.is_ready());
        let waiting: Vec<&str> = waiting.map(|poll| poll.queue.as_str()).collect();
        let is_waiting = !waiting.is_empty();
        let queues = is_waiting.then(|| format!("not polling yet: {}", waiting.join(", ")));
        self.engine.ledger.health().problem().or(queues)
    }

    /// Gathers the figures.
    pub(crate) async fn status(&self) -> Result<Status, String> {
        let mut in_flight = self.in_flight().await.ok_or(SILENT)?;
        // An unreadable count shows in the ledger's condition, and is no reason to withhold the
        // rest.
        let counts = self.engine.ledger.parked_counts().unwrap_or_default();
        in_flight.include_parked(&counts);
        let answers = |poll: &Arc<PollStatus>| QueueStatus {
            queue: poll.queue.clone(),
            answers: poll.is_ready(),
            is_paused: poll.is_paused(),
            last_error: poll.last_error(),
            yields: poll.yields(),
        };
        Ok(Status {
            ready: self.unreadiness().is_none(),
            unproved: self
                .engine
                .metrics
                .unproved_counts(in_flight.rules.keys().map(String::as_str)),
            in_flight,
            paused: self.engine.pauses.by_rule(),
            rules: self.engine.activity.figures(),
            parked: counts
                .into_iter()
                .map(|((rule, reason), (tasks, _))| ParkedCount {
                    rule,
                    reason,
                    tasks,
                })
                .collect(),
            queues: self.polls.iter().map(answers).collect(),
            last_errors: self.engine.last_errors.by_name(),
            degraded: self.engine.concurrency.degraded_dependencies(),
            keys: self.engine.keys.statuses(),
            ledger: self.engine.ledger.health().problem(),
            second_daemon: self.engine.second_daemon.ailment(),
            findings: self.set_up.findings(),
            disabled_features: self.engine.accounts.missing_features(),
            clock_skew: self.engine.accounts.far_off_clocks(),
        })
    }

    /// Writes down every metric, the gauges as things are at this moment.
    pub(crate) async fn metrics(&self) -> Result<String, String> {
        let metrics = &self.engine.metrics;
        // Without an answer the figures are absent, which alerts can see: old ones would look
        // current.
        let mut in_flight = self.in_flight().await;
        match self.engine.ledger.parked_counts() {
            Ok(counts) => {
                if let Some(in_flight) = &mut in_flight {
                    in_flight.include_parked(&counts);
                }
                metrics.set_parked(counts);
            }
            Err(failure) => warn!(error = error_chain(&failure), "cannot count what is parked"),
        }
        metrics.set_pending(in_flight.map(|stats| stats.rules).unwrap_or_default());
        self.engine.activity.export(metrics);
        let rules = self.engine.activity.figures();
        metrics.set_paused(rules.keys(), &self.engine.pauses.by_rule());
        let ledger = self.engine.ledger.health();
        metrics.set_ledger(ledger.problem().is_none(), ledger.trouble_counts());
        let found = self.set_up.findings();
        metrics.set_findings(found.iter().map(Finding::labels));
        metrics.set_memory("budget", self.engine.budget.total_bytes());
        metrics.set_memory("used", self.engine.budget.used_bytes());
        for poll in self.polls.iter() {
            let yields = poll.yields();
            let since = yields.map(|yields| clock::now() - yields.since);
            metrics.set_queue(&poll.queue, poll.is_ready(), since.unwrap_or_default());
        }
        let own = metrics.render().map_err(|error| error.to_string())?;
        Ok(own + &process::render_figures())
    }

    /// Says what keeps the daemon from getting anywhere, if anything does.
    pub(crate) async fn problem(&self) -> Option<String> {
        let is_long = |time: Option<Duration>| time.is_some_and(|time| time > SILENT_AFTER);
        if let Some(poll) = self.polls.iter().find(|poll| is_long(poll.failing_for())) {
            return Some(format!("queue {} cannot be polled", poll.queue));
        }
        let ledger = self.engine.ledger.health();
        if is_long(ledger.failing_for())
            && let Some(problem) = ledger.problem()
        {
            return Some(problem);
        }
        // A dispatch that hangs makes no progress either: so it is asked only then.
        let watchdog = &self.engine.watchdog;
        let failure = watchdog.liveness_failure()?;
        let Some(in_flight) = self.in_flight().await else {
            return Some(SILENT.to_owned());
        };
        let is_idle = in_flight.messages == 0 && in_flight.keys == 0 && !watchdog.returned_lately();
        let is_stalled = matches!(failure, LivenessFailure::Stalled(_));
        (!is_stalled || !is_idle).then(|| failure.to_string())
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
/// to lead here (DNS rebinding), or as a command.
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
    let is_command = request.headers().contains_key(COMMAND) || api::is_api(request.uri());
    if request.method() == Method::POST && !is_command {
        let text = format!("a POST needs the header {COMMAND}: 1\n");
        return Some((StatusCode::FORBIDDEN, text).into_response());
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

/// Why a request has no other answer.
pub(crate) type Refusal = (StatusCode, String);

pub(crate) fn bad_request(why: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, why.into())
}

pub(crate) fn unavailable(why: impl Into<String>) -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, why.into())
}

async fn metrics(State(admin): State<Admin>) -> Result<impl IntoResponse, Refusal> {
    let text = admin.metrics().await;
    let text = text.map_err(|error| (StatusCode::INTERNAL_SERVER_ERROR, error))?;
    Ok(([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text))
}

async fn healthz(State(admin): State<Admin>) -> Result<&'static str, Refusal> {
    match admin.problem().await {
        None => Ok("ok\n"),
        Some(problem) => Err(unavailable(format!("{problem}\n"))),
    }
}

async fn readyz(State(admin): State<Admin>) -> Result<&'static str, Refusal> {
    match admin.unreadiness() {
        None => Ok("ready\n"),
        Some(reason) => Err(unavailable(format!("{reason}\n"))),
    }
}

async fn status(State(admin): State<Admin>) -> Result<Response, Refusal> {
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

/// Answers with a value as JSON, without what a terminal would take for a command.
pub(crate) fn json_response(value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(json) => {
            let json = without_commands(&json).into_owned();
            ([(header::CONTENT_TYPE, "application/json")], json).into_response()
        }
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use axum::body::to_bytes;
    use http::Request;
    use http::request::Builder;
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule::BucketRef;
    use tempfile::TempDir;

    use super::*;
    use crate::failpoint::Failpoints;
    use crate::ledger::Ledger;
    use crate::ledger::records::TargetKey;
    use crate::limit::quotas::Budget;
    use crate::metrics::Metrics;
    use crate::other_daemons::Predecessor;
    use crate::rule_state::Pauses;
    use crate::s3::accounts::Accounts;
    use crate::sqs::work_queues::WorkQueues;

    /// Makes one of a daemon that has one queue, and what it asks the dispatch.
    pub(crate) async fn admin(directory: &TempDir) -> (Admin, mpsc::Receiver<Command>) {
        let metrics = Metrics::new().unwrap();
        let accounts = Accounts::connect(&BTreeMap::new(), &metrics, None)
            .await
            .unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let pauses = Pauses::load(&ledger).unwrap();
        let engine = Arc::new(Engine::new(
            (accounts, WorkQueues::default()),
            (ledger, pauses, Predecessor::none()),
            Budget::new(64 << 20),
            metrics,
            Failpoints::default(),
        ));
        let (commands, asked) = mpsc::channel(1);
        let polls = Arc::new(vec![Arc::new(PollStatus::new("events"))]);
        (
            Admin {
                engine,
                commands,
                polls,
                draining: CancellationToken::new(),
                set_up: Arc::default(),
                hosts: Arc::default(),
                rules: watch::channel(Arc::default()).1,
                token: None,
                object_reads: Arc::new(Semaphore::new(api::OBJECTS_MAX)),
            },
            asked,
        )
    }

    /// Asks as a load balancer does.
    async fn health(admin: &Admin) -> (StatusCode, String) {
        let answer = healthz(State(admin.clone())).await.into_response();
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 10).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// Answers as a dispatch does that has nothing in flight.
    pub(crate) async fn answer(asked: &mut mpsc::Receiver<Command>) {
        let Some(Command::Stats(asker)) = asked.recv().await else {
            panic!("no command came")
        };
        asker.send(InFlightStats::default()).unwrap();
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
                .header(HOST, host);
            assert_eq!(refused(second), misdirected, "{host}, after another");
        }
        assert_eq!(
            refused(Request::get("/status")),
            None,
            "browsers always say one"
        );
        let absolute = Request::get("http://evil.example/status").header(HOST, "localhost");
        assert_eq!(refused(absolute), Some(StatusCode::MISDIRECTED_REQUEST));
    }

    #[test]
    fn a_command_has_a_header_that_no_foreign_page_can_send() {
        assert_eq!(
            refused(Request::post("/failures/retry?all")),
            Some(StatusCode::FORBIDDEN)
        );
        assert_eq!(
            refused(Request::post("/failures/retry?all").header(COMMAND, "1")),
            None
        );
    }
}
