//! What the daemon says of itself over HTTP: metrics, health, readiness, status, failures.

mod failures;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use axum::routing::{get, post};
use replicator_core::failure::Reason;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use crate::dispatch::{Board, Question};
use crate::engine::Engine;
use crate::health::{Ailment, Poll, SILENT_AFTER};
use crate::pace::Ailing;
use replicator_core::failure::chain;

/// What the answers are made from.
#[derive(Debug, Clone)]
pub(crate) struct Admin {
    pub(crate) engine: Arc<Engine>,
    pub(crate) questions: mpsc::Sender<Question>,
    pub(crate) polls: Arc<Vec<Arc<Poll>>>,
    pub(crate) draining: CancellationToken,
}

/// The figures behind `s3-replicator status`.
#[derive(Debug, Serialize, Deserialize)]
pub struct Status {
    /// Whether every queue answers and the daemon is not about to stop.
    pub ready: bool,
    /// What is in hand.
    pub board: Board,
    /// What is parked, by rule and reason.
    pub parked: Vec<Parked>,
    /// How polling goes.
    pub queues: Vec<QueueStatus>,
    /// Buckets and keys that are spared for now.
    pub ailing: Vec<Ailing>,
}

/// How many tasks of a rule are parked for one reason.
#[derive(Debug, Serialize, Deserialize)]
pub struct Parked {
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
// whoever asked gets an answer before they give up themselves: scrapes do after 10 seconds.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

const SILENT: &str = "the dispatch does not answer";

impl Admin {
    /// Serves until told to stop.
    pub(crate) async fn run(self, listener: TcpListener, stop: CancellationToken) {
        let router = Router::new()
            .route("/", get(page))
            .route("/metrics", get(metrics))
            .route("/healthz", get(healthz))
            .route("/readyz", get(readyz))
            .route("/status", get(status))
            .route("/failures", get(failures::list))
            .route("/failures/retry", post(failures::retry))
            .with_state(self);
        let served = axum::serve(listener, router).with_graceful_shutdown(stop.cancelled_owned()).await;
        if let Err(error) = served {
            warn!(error = chain(&error), "the status server ended");
        }
    }

    /// Asks the dispatch what is in hand; `None` when it does not answer in time.
    async fn board(&self) -> Option<Board> {
        let (answer, board) = oneshot::channel();
        let asked = async {
            self.questions.send(Question::Board(answer)).await.ok()?;
            board.await.ok()
        };
        let board = tokio::time::timeout(ANSWER_TIMEOUT, asked).await.ok().flatten();
        if board.is_none() {
            warn!("{SILENT}");
        }
        board
    }

    fn is_ready(&self) -> bool {
        !self.draining.is_cancelled() && self.polls.iter().all(|poll| poll.is_ready())
    }

    /// Gathers the figures.
    pub(crate) async fn status(&self) -> Result<Status, String> {
        let board = self.board().await.ok_or(SILENT)?;
        let counts = self.engine.ledger.parked_counts().map_err(|failure| chain(&failure))?;
        let answers = |poll: &Arc<Poll>| QueueStatus { queue: poll.queue.clone(), answers: poll.is_ready() };
        Ok(Status {
            ready: self.is_ready(),
            board,
            parked: counts.into_iter().map(|((rule, reason), tasks)| Parked { rule, reason, tasks }).collect(),
            queues: self.polls.iter().map(answers).collect(),
            ailing: self.engine.pace.ailing(),
        })
    }

    /// Says what keeps the daemon from getting anywhere, if anything does.
    pub(crate) async fn ailment(&self) -> Option<String> {
        if let Some(poll) = self.polls.iter().find(|poll| poll.failing_for().is_some_and(|time| time > SILENT_AFTER)) {
            return Some(format!("queue {} cannot be polled", poll.queue));
        }
        // A dispatch that hangs settles nothing either: so it is asked only then.
        let ailment = self.engine.pulse.ailment()?;
        match (self.board().await, ailment) {
            (Some(board), Ailment::Stalled(_)) if board.messages == 0 && board.lanes == 0 => None,
            (Some(_), ailment) => Some(ailment.to_string()),
            (None, _) => Some(SILENT.to_owned()),
        }
    }
}

async fn metrics(State(admin): State<Admin>) -> Response {
    let metrics = &admin.engine.metrics;
    // Without an answer the figures are absent, which alerts can see: old ones would look alive.
    let rules = admin.board().await.map(|board| board.rules).unwrap_or_default();
    metrics.set_pending(rules.iter().map(|(rule, pending)| (rule.as_str(), pending.clone())));
    match admin.engine.ledger.parked_counts() {
        Ok(counts) => {
            metrics.set_parked(counts.iter().map(|((rule, reason), count)| (rule.as_str(), *reason, *count)));
        }
        Err(failure) => warn!(error = chain(&failure), "cannot count what is parked"),
    }
    metrics.set_memory("budget", admin.engine.budget.total_bytes());
    metrics.set_memory("used", admin.engine.budget.used_bytes());
    match metrics.render() {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
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
    let waiting = admin.polls.iter().filter(|poll| !poll.is_ready()).map(|poll| poll.queue.as_str());
    let text = match admin.draining.is_cancelled() {
        true => "draining\n".to_owned(),
        false => format!("not polling yet: {}\n", waiting.collect::<Vec<_>>().join(", ")),
    };
    (StatusCode::SERVICE_UNAVAILABLE, text).into_response()
}

async fn status(State(admin): State<Admin>) -> Response {
    match admin.status().await {
        Ok(status) => match serde_json::to_string(&status) {
            Ok(json) => ([(header::CONTENT_TYPE, "application/json")], json).into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
        },
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error).into_response(),
    }
}

async fn page(State(admin): State<Admin>) -> Response {
    match admin.status().await {
        Ok(status) => {
            let text = crate::status::table(&status);
            let text = text.replace('&', "&amp;").replace('<', "&lt;");
            Html(format!("<!doctype html><title>s3-replicator</title><pre>{text}</pre>")).into_response()
        }
        Err(error) => (StatusCode::SERVICE_UNAVAILABLE, error).into_response(),
    }
}
