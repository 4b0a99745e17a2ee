//! What the daemon says of itself over HTTP: metrics, health, readiness, status, failures.

mod failures;
mod listener;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use replicator_core::failure::Reason;
use replicator_core::object::without_commands;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::accounts::FarOffClock;
use crate::accounts::capabilities::DisabledFeature;
use crate::concurrency::DegradedDependency;
use crate::dispatch::{Command, InFlightStats};
use crate::engine::Engine;
use crate::health::{LivenessFailure, PollStatus, SILENT_AFTER};
pub use crate::metrics::{Unproved, UnprovedCount};
pub(crate) use listener::COMMAND;
use listener::Door;
use replicator_core::failure::error_chain;

/// What the answers are made from.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) engine: Arc<Engine>,
    pub(crate) questions: mpsc::Sender<Command>,
    pub(crate) polls: Arc<Vec<Arc<PollStatus>>>,
    pub(crate) draining: CancellationToken,
    /// Names under which clients may reach this.
    pub(crate) hosts: Arc<[String]>,
}

/// The figures behind `s3-replicator status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Whether every queue answers and the daemon is not about to stop.
    pub ready: bool,
    /// What is in flight.
    pub in_flight: InFlightStats,
    /// What is parked, by rule and reason.
    pub parked: Vec<ParkedCount>,
    /// How polling goes.
    pub queues: Vec<QueueStatus>,
    /// What was written without a proof, since the daemon was started.
    #[serde(default)]
    pub unproved: Vec<UnprovedCount>,
    /// Buckets and keys that are throttled, or whose circuit is open.
    pub degraded: Vec<DegradedDependency>,
    /// What keeps the ledger from being relied on, if anything does; what is parked may then be
    /// more than is told.
    #[serde(default)]
    pub ledger: Option<String>,
    /// What is wrong with the set-up, if another daemon was seen where there may be one only.
    #[serde(default)]
    pub second_daemon: Option<String>,
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
}

// Dispatch answers between two events. It is late when it waits for room at the ack station, and
// the client gets an answer before it gives up itself: scrapes do after 10 seconds.
const DISPATCH_TIMEOUT: Duration = Duration::from_secs(5);

const SILENT: &str = "the dispatch does not answer";

impl Admin {
    /// Serves until told to stop.
    pub(crate) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let hosts = Arc::clone(&self.hosts);
        let router = Router::new()
            .route("/", get(page))
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .route("/failures", get(failures::list))
            .route("/failures/retry", post(failures::retry))
            .with_state(self);
        Door { router, hosts }.serve(listener, stop).await;
    }

    /// Requests from the dispatch what is in flight; `None` when it does not answer in time.
    async fn ask_board(&self) -> Option<InFlightStats> {
        let (answer, board) = oneshot::channel();
        let asked = async {
            self.questions.send(Command::Stats(answer)).await.ok()?;
            board.await.ok()
        };
        let board = tokio::time::timeout(DISPATCH_TIMEOUT, asked)
            .await
            .ok()
            .flatten();
        if board.is_none() {
            warn!("{SILENT}");
        }
        board
    }

    fn is_ready(&self) -> bool {
        let is_polling = self.polls.iter().all(|poll| poll.is_ready());
        is_polling
            && !self.draining.is_cancelled()
            && self.engine.ledger.condition().ailment().is_none()
    }

    /// Gathers the figures.
    pub(crate) async fn status(&self) -> Result<Status, String> {
        let board = self.ask_board().await.ok_or(SILENT)?;
        // An unreadable count shows in the ledger's condition, and is no reason to withhold the
        // rest.
        let counts = self.engine.ledger.parked_counts().unwrap_or_default();
        let answers = |poll: &Arc<PollStatus>| QueueStatus {
            queue: poll.queue.clone(),
            answers: poll.is_ready(),
        };
        Ok(Status {
            ready: self.is_ready(),
            unproved: self
                .engine
                .metrics
                .unproved_counts(board.rules.keys().map(String::as_str)),
            in_flight: board,
            parked: counts
                .into_iter()
                .map(|((rule, reason), tasks)| ParkedCount {
                    rule,
                    reason,
                    tasks,
                })
                .collect(),
            queues: self.polls.iter().map(answers).collect(),
            degraded: self.engine.concurrency.degraded_dependencies(),
            ledger: self.engine.ledger.condition().ailment(),
            second_daemon: self.engine.second_daemon.ailment(),
            disabled_features: self.engine.accounts.missing_features(),
            clock_skew: self.engine.accounts.far_off_clocks(),
        })
    }

    /// Writes down every metric, the gauges as things are at this moment.
    pub(crate) async fn metrics(&self) -> Result<String, String> {
        let metrics = &self.engine.metrics;
        // Without an answer the figures are absent, which alerts can see: old ones would look
        // current.
        let rules = self
            .ask_board()
            .await
            .map(|board| board.rules)
            .unwrap_or_default();
        metrics.set_pending(
            rules
                .iter()
                .map(|(rule, pending)| (rule.as_str(), pending.clone())),
        );
        match self.engine.ledger.parked_counts() {
            Ok(counts) => {
                metrics.set_parked(
                    counts
                        .iter()
                        .map(|((rule, reason), count)| (rule.as_str(), *reason, *count)),
                );
            }
            Err(failure) => warn!(error = error_chain(&failure), "cannot count what is parked"),
        }
        let condition = self.engine.ledger.condition();
        metrics.set_ledger(condition.ailment().is_none(), condition.trouble_counts());
        metrics.set_memory("budget", self.engine.budget.total_bytes());
        metrics.set_memory("used", self.engine.budget.used_bytes());
        metrics.render().map_err(|error| error.to_string())
    }

    /// Says what keeps the daemon from getting anywhere, if anything does.
    pub(crate) async fn ailment(&self) -> Option<String> {
        if let Some(poll) = self
            .polls
            .iter()
            .find(|poll| poll.failing_for().is_some_and(|time| time > SILENT_AFTER))
        {
            return Some(format!("queue {} cannot be polled", poll.queue));
        }
        let ledger = self.engine.ledger.condition();
        if let Some(ailment) = ledger
            .failing_for()
            .filter(|time| *time > SILENT_AFTER)
            .and_then(|_| ledger.ailment())
        {
            return Some(ailment);
        }
        // A dispatch that hangs settles nothing either: so it is questioned only then.
        let ailment = self.engine.watchdog.ailment()?;
        match (self.ask_board().await, ailment) {
            (Some(board), LivenessFailure::Stalled(_))
                if board.messages == 0
                    && board.keys == 0
                    && !self.engine.watchdog.gave_up_lately() =>
            {
                None
            }
            (Some(_), ailment) => Some(ailment.to_string()),
            (None, _) => Some(SILENT.to_owned()),
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    match admin.metrics().await {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error).into_response(),
    }
}

async fn healthz(State(admin): State<Admin>) -> Response {
    match admin.ailment().await {
        None => "ok\n".into_response(),
        Some(ailment) => (StatusCode::SERVICE_UNAVAILABLE, format!("{ailment}\n")).into_response(),
    }
}

async fn readyz(State(admin): State<Admin>) -> Response {
    if admin.is_ready() {
        return "ready\n".into_response();
    }
    let waiting = admin
        .polls
        .iter()
        .filter(|poll| !poll.is_ready())
        .map(|poll| poll.queue.as_str());
    let text = match admin.engine.ledger.condition().ailment() {
        _ if admin.draining.is_cancelled() => "draining\n".to_owned(),
        Some(ailment) => format!("{ailment}\n"),
        None => format!(
            "not polling yet: {}\n",
            waiting.collect::<Vec<_>>().join(", ")
        ),
    };
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    match admin.status().await {
        Ok(status) => failures::json_response(&status),
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error).into_response(),
    }
}

async fn page(State(admin): State<Admin>) -> Response {
    match admin.status().await {
        Ok(status) => {
            let text = crate::status::table(&status);
            let text = without_commands(&text)
                .replace('&', "&amp;")
                .replace('<', "&lt;");
            Html(format!(
                "<!doctype html><title>s3-replicator</title><pre>{text}</pre>"
            ))
            .into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error).into_response(),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use axum::body::to_bytes;
    use replicator_core::object::{Bucket, Key};
    use replicator_core::rule::BucketRef;
    use tempfile::TempDir;

    use super::*;
    use crate::accounts::Accounts;
    use crate::budget::Budget;
    use crate::failpoint::Failpoints;
    use crate::ledger::Ledger;
    use crate::ledger::records::TargetKey;
    use crate::metrics::Metrics;
    use crate::other_daemons::Predecessor;
    use crate::work_queues::WorkQueues;

    /// Makes one of a daemon that has one queue, and what it asks the dispatch.
    async fn admin(directory: &TempDir) -> (Admin, mpsc::Receiver<Command>) {
        let metrics = Metrics::new().unwrap();
        let accounts = Accounts::connect(&BTreeMap::new(), &metrics, None)
            .await
            .unwrap();
        let ledger = Ledger::open(directory.path()).unwrap();
        let engine = Arc::new(Engine::new(
            (accounts, WorkQueues::default()),
            (ledger, Predecessor::none()),
            Budget::new(64 << 20),
            metrics,
            Failpoints::default(),
        ));
        let (questions, asked) = mpsc::channel(1);
        let polls = Arc::new(vec![Arc::new(PollStatus::new("events"))]);
        (
            Admin {
                engine,
                questions,
                polls,
                draining: CancellationToken::new(),
                hosts: Arc::default(),
            },
            asked,
        )
    }

    /// Asks as a load balancer does.
    async fn health(admin: &Admin) -> (StatusCode, String) {
        let answer = healthz(State(admin.clone())).await;
        let status = answer.status();
        let body = to_bytes(answer.into_body(), 1 << 10).await.unwrap();
        (status, String::from_utf8_lossy(&body).into_owned())
    }

    /// Answers as a dispatch does that has nothing in flight.
    async fn answer(asked: &mut mpsc::Receiver<Command>) {
        let Some(Command::Stats(asker)) = asked.recv().await else {
            panic!("nobody asked")
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
        admin.polls[0].poll_failed();
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
        let (told, ()) = tokio::join!(health(&admin), answer(&mut asked));
        assert_eq!(
            told,
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
}
