//! What the daemon says of itself: its figures, health and readiness, over HTTP (`server`) and to
//! systemd, through the notification socket of `Type=notify-reload` (sd_notify(3)). Without
//! `NOTIFY_SOCKET` in the environment systemd is told nothing.

pub mod api;
pub mod failures;
mod server;
pub mod status;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::net::UnixDatagram;
use std::sync::Arc;
use std::time::Duration;
use std::{env, io};

use axum::response::{IntoResponse, Response};
use http::{StatusCode, header};
use replicator_config::ApiToken;
use replicator_core::failure::{Reason, error_chain};
use replicator_core::object::{escape_controls, without_commands};
use sd_notify::NotifyState;
use serde::{Deserialize, Serialize};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;
use tracing::warn;
use utoipa::ToSchema;

use crate::check::{Finding, SetUp};
use crate::clock;
use crate::dispatch::{Command, InFlightStats};
use crate::engine::Engine;
use crate::health::{LastError, LivenessFailure, PollStatus, QueueYield, SILENT_AFTER};
pub use crate::kms::{KeySide, KeyState, KeyStatus};
use crate::limit::concurrency::DegradedDependency;
pub use crate::metrics::{Unproved, UnprovedCount};
use crate::process::{self, run_blocking};
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
#[derive(Debug, Serialize, Deserialize, ToSchema)]
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
#[derive(Debug, Serialize, Deserialize, ToSchema)]
pub struct ParkedCount {
    /// The rule; empty for messages that fit none.
    pub rule: String,
    /// Why.
    #[schema(value_type = String)]
    pub reason: Reason,
    /// How many.
    pub tasks: i64,
}

/// How polling a queue goes.
#[derive(Debug, Serialize, Deserialize, ToSchema)]
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

impl Admin {
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

/// Why a request has no other answer.
pub(crate) type Refusal = (StatusCode, String);

pub(crate) fn bad_request(why: impl Into<String>) -> Refusal {
    (StatusCode::BAD_REQUEST, why.into())
}

pub(crate) fn unavailable(why: impl Into<String>) -> Refusal {
    (StatusCode::SERVICE_UNAVAILABLE, why.into())
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

const SOCKET: &str = "NOTIFY_SOCKET";

// systemd reads at once; a second is long for a start or stop to wait.
const SEND_TIMEOUT: Duration = Duration::from_secs(1);

// The line of status is read at `systemctl status`; nothing is decided by it.
const STATUS_INTERVAL: Duration = Duration::from_secs(10);

// WatchdogSec= has seconds; less would only make the daemon busy.
const WATCHDOG_INTERVAL_MIN: Duration = Duration::from_millis(100);

/// Says that every station is at work, or that a reload has ended. It does not wait for the queues
/// to answer, as `/readyz` does: after `TimeoutStartSec=` systemd would end a daemon that only has
/// to wait for them.
pub(crate) fn notify_ready() {
    notify(&[NotifyState::Ready]);
}

/// Says that a reload begins; the time tells systemd that it is a later one than its signal.
pub(crate) fn notify_reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => notify(&[NotifyState::Reloading, now]),
        Err(error) => warn!(%error, "cannot read the monotonic clock"),
    }
}

/// Says that the daemon drains.
pub(crate) fn notify_stopping() {
    notify(&[NotifyState::Stopping, NotifyState::Status("draining")]);
}

/// Keeps the line of status current and feeds the watchdog, until `stop` is cancelled.
pub(crate) async fn report_health(admin: Admin, stop: CancellationToken) {
    if env::var_os(SOCKET).is_none() {
        return;
    }
    // Half of the time that there is, as sd_watchdog_enabled(3) advises.
    let half = sd_notify::watchdog_enabled().map(|time| time / 2);
    let interval = half.map_or(STATUS_INTERVAL, |half| {
        half.clamp(WATCHDOG_INTERVAL_MIN, STATUS_INTERVAL)
    });
    let report = async || {
        let (status, is_alive) = assess(&admin).await;
        notify(&[NotifyState::Status(&status)]);
        if is_alive {
            notify(&[NotifyState::Watchdog]);
        }
        sleep(interval).await;
    };
    while stop.run_until_cancelled(report()).await.is_some() {}
}

/// Says in one line how the daemon is, and whether that feeds the watchdog.
async fn assess(admin: &Admin) -> (String, bool) {
    let problem = admin.problem().await;
    let is_alive = problem.is_none();
    let status = match (problem, admin.unreadiness()) {
        (Some(problem), _) => format!("unhealthy: {problem}"),
        (None, Some(reason)) => reason,
        (None, None) => {
            let in_flight = admin.in_flight().await.unwrap_or_default();
            let (messages, keys) = (in_flight.messages, in_flight.keys);
            format!("messages in flight: {messages}, active keys: {keys}")
        }
    };
    // Each line is a variable of its own, and a problem may name a key, which may have lines.
    (escape_controls(&status).to_string(), is_alive)
}

/// Sends variables to systemd, if it started the daemon. What it does not take is lost: the next
/// report comes soon, and the daemon works without.
fn notify(variables: &[NotifyState<'_>]) {
    let Some(socket) = env::var_os(SOCKET) else {
        return;
    };
    let text: String = variables.iter().map(|one| format!("{one}\n")).collect();
    if let Err(error) = run_blocking(|| send(&socket, &text)) {
        warn!(%error, "systemd does not take a notification");
    }
}

/// Not `sd_notify::notify`, which waits for room without end: a manager that reads nothing would
/// keep the daemon from stopping.
fn send(socket: &OsStr, text: &str) -> io::Result<usize> {
    let sender = UnixDatagram::unbound()?;
    sender.set_write_timeout(Some(SEND_TIMEOUT))?;
    sender.send_to(text.as_bytes(), socket)
}

#[cfg(test)]
pub(crate) mod tests {
    use tempfile::TempDir;
    use tokio::time::advance;

    use super::*;
    use crate::failpoint::Failpoints;
    use crate::ledger::Ledger;
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

    /// Answers as a dispatch does that has nothing in flight.
    pub(crate) async fn answer(asked: &mut mpsc::Receiver<Command>) {
        let Some(Command::Stats(asker)) = asked.recv().await else {
            panic!("no command came")
        };
        asker.send(InFlightStats::default()).unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_watchdog_is_fed_as_long_as_the_health_is_green() {
        let directory = tempfile::tempdir().unwrap();
        let (admin, mut asked) = admin(&directory).await;
        let queue = &admin.polls[0];
        let status = |text: &str, is_alive| (text.to_owned(), is_alive);
        queue.poll_failed("no answer");
        let waits = status("not polling yet: events", true);
        assert_eq!(assess(&admin).await, waits);
        advance(SILENT_AFTER + Duration::from_secs(1)).await;
        let red = status("unhealthy: queue events cannot be polled", false);
        assert_eq!(assess(&admin).await, red);
        queue.poll_succeeded();
        let (green, ()) = tokio::join!(assess(&admin), answer(&mut asked));
        assert_eq!(green, status("messages in flight: 0, active keys: 0", true));
        admin.draining.cancel();
        assert_eq!(assess(&admin).await, status("draining", true));
    }
}
