//! The daemon put together: stations, the two channels between them, and the one order in which
//! everything stops.

mod receiving;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use replicator_config::{ApiToken, Settings};
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

use crate::admin::api::{self, OBJECTS_MAX};
use crate::admin::{self, Admin, Status};
use crate::clock;
use crate::dispatch::{Channels, Dispatch};
use crate::engine::Engine;
use crate::failpoint::Failpoints;
use crate::ledger::Ledger;
use crate::limit::quotas::Budget;
use crate::metrics::Metrics;
use crate::other_daemons::Predecessor;
use crate::process::{Request, Signals};
use crate::queue::ack::Ack;
use crate::queue::router::Router;
use crate::rule_state::Pauses;
use crate::s3::accounts::Accounts;
pub use crate::s3::accounts::AwsOverride;
use crate::sqs::work_queues::WorkQueues;
use crate::task::Ruleset;
use crate::verify::records::Forgetting;
use crate::verify::rounds::Rounds;
pub use receiving::Role;
use receiving::{Receiving, access, deliveries_max, rerouted};
use replicator_core::failure::{Failure, error_chain};

// Done messages not yet deleted: a batch round of the ack station and one to come. An SQS that does
// not answer fills this, and then the dispatch waits: that is back-pressure, since what is done
// beyond could only pile up. Work and leases go on; nothing new begins.
const SETTLEMENTS_MAX: usize = 200;

// Scrapes and health checks that wait for an answer.
const QUESTIONS_MAX: usize = 8;

// Cancelled tasks need a moment to return their messages to SQS. systemd and ECS kill what takes
// much longer than `drain_timeout`, and a kill loses no more than abandoned tasks do.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the daemon until SIGTERM or SIGINT; `is_checked` says whether it looks at its set-up.
pub async fn run(
    settings: Settings,
    config: PathBuf,
    role: Role,
    is_checked: bool,
) -> anyhow::Result<()> {
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!(
            "cannot listen on {}; is the port in use? change `listen`",
            settings.listen
        )
    })?;
    let outside = Environment {
        listener: Some(listener),
        failpoints: Failpoints::from_env()?,
        given: None,
        role,
        checked_file: is_checked.then(|| config.clone()),
    };
    let signals = Signals::new().context("cannot listen for signals")?;
    let mut daemon = Daemon::start(settings, outside).await?;
    let report = admin::report_health(daemon.admin.clone(), daemon.close.clone());
    daemon.services.spawn(report);
    admin::notify_ready();
    daemon.run_until_stopped(signals, &config).await?;
    info!("stopped");
    Ok(())
}

/// What a daemon gets from the world around it.
#[derive(Debug, Default)]
pub struct Environment {
    /// Where it says how it is, if anywhere.
    pub listener: Option<TcpListener>,
    /// Where a test ends the daemon early.
    pub failpoints: Failpoints,
    /// How it reaches AWS: by the default credential chain and real connections, unless given.
    pub given: Option<AwsOverride>,
    /// Which part of the work is its.
    pub role: Role,
    /// The file of which it looks, beside its work, whether that set-up can work.
    pub checked_file: Option<PathBuf>,
}

/// A daemon at work. Dropping it ends it as kill -9 does: at once, and nothing is tidied up.
#[derive(Debug)]
pub struct Daemon {
    engine: Arc<Engine>,
    settings: Settings,
    rules: watch::Sender<Arc<Ruleset>>,
    /// The rules in force, for the look at the set-up.
    checked: watch::Sender<Settings>,
    admin: Admin,
    /// Stops the receivers: no new work.
    drain: CancellationToken,
    /// Stops the work in flight.
    halt: CancellationToken,
    /// Stops leases and the status server, which serve the stations.
    close: CancellationToken,
    receivers: JoinSet<()>,
    work: JoinSet<()>,
    services: JoinSet<()>,
}

impl Daemon {
    /// Opens the ledger, makes the clients and sets every station to work.
    pub async fn start(settings: Settings, outside: Environment) -> anyhow::Result<Self> {
        if outside.role != Role::Both && settings.work_queues.is_empty() {
            bail!(
                "without a work_queue one daemon routes and works; name one in [[queues]], or start without --role"
            );
        }
        let token = settings.read_api_token()?;
        let metrics = Metrics::new().context("cannot register metrics")?;
        let ledger = Ledger::open(&settings.state_dir)?;
        let accounts =
            Accounts::connect(&settings.accounts, &metrics, outside.given.as_ref()).await;
        let accounts = accounts.context("cannot set up TLS")?;
        let budget = Budget::new(settings.memory_bytes);
        let queues = settings.work_queues.iter();
        let work_queues = WorkQueues::new(queues.filter_map(|queue| access(&accounts, queue)));
        let predecessor =
            Predecessor::find(&settings).context("the state directory cannot be written")?;
        let pauses = Pauses::load(&ledger).context("cannot read the ledger")?;
        let engine = Engine::new(
            (accounts, work_queues),
            (ledger, pauses, predecessor),
            budget,
            metrics,
            outside.failpoints,
        );
        let engine = Arc::new(engine);
        let rules = adopt(&engine, &settings).context("cannot write to the ledger")?;
        info!(listen = %settings.listen, rules = settings.rules.len(), queues = settings.queues.len(), "started");
        let outer = (outside.listener, outside.role, token);
        let daemon = Self::build(engine, settings, rules, outer);
        Ok(match outside.checked_file {
            Some(file) => daemon.look_at(file),
            None => daemon,
        })
    }

    /// Begins to look, beside all work, whether the set-up can work.
    fn look_at(mut self, file: PathBuf) -> Self {
        let set_up = Arc::clone(&self.admin.set_up);
        let accounts = self.engine.accounts.clone();
        let looking = set_up.watch(accounts, self.checked.subscribe(), file);
        let close = self.close.clone();
        self.services.spawn(async move {
            close.run_until_cancelled(Box::pin(looking)).await;
        });
        self
    }

    fn build(
        engine: Arc<Engine>,
        settings: Settings,
        rules: Ruleset,
        (listener, role, token): (Option<TcpListener>, Role, Option<ApiToken>),
    ) -> Self {
        let (rules, watched) = watch::channel(Arc::new(rules));
        let [drain, halt, close] = <[CancellationToken; 3]>::default();
        let [mut work, mut services] = <[JoinSet<()>; 2]>::default();
        let (deliver, deliveries) = mpsc::channel(deliveries_max(&settings));
        let (acks, settlements) = mpsc::channel(SETTLEMENTS_MAX);
        let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
        let given = (engine.as_ref(), &settings, &watched);
        let receiving = Receiving::new(given, (&drain, &close), &mut services);
        let (receivers, polls, events) = receiving.start(role, deliver);
        if let Some(deliveries) = events {
            let router = Router {
                engine: Arc::clone(&engine),
                rules: watched.clone(),
                deliveries,
                acks: acks.clone(),
            };
            work.spawn(router.run());
        }
        Forgetting::start((&engine, &watched), &ask, &drain, &mut work);
        let channels = Channels {
            rounds: Rounds::start((&engine, &watched), (&acks, &ask), &drain, &mut work),
            rules: watched,
            deliveries,
            acks,
            commands: questions,
        };
        let ack = Ack {
            engine: Arc::clone(&engine),
            requests: settlements,
        };
        work.spawn(ack.run());
        work.spawn(Dispatch::new(Arc::clone(&engine), channels, halt.clone()).run());
        let admin = Admin {
            engine: Arc::clone(&engine),
            commands: ask,
            polls: Arc::new(polls),
            draining: drain.clone(),
            set_up: Arc::default(),
            hosts: settings.listen_hosts.as_slice().into(),
            rules: rules.subscribe(),
            token,
            object_reads: Arc::new(Semaphore::new(OBJECTS_MAX)),
        };
        spawn_services(&admin, (listener, role), &close, &mut services);
        Self {
            engine,
            checked: watch::Sender::new(settings.clone()),
            settings,
            rules,
            admin,
            drain,
            halt,
            close,
            receivers,
            work,
            services,
        }
    }

    /// Says how the daemon is; an error says why it cannot.
    pub async fn status(&self) -> Result<Status, String> {
        self.admin.status().await
    }

    /// Says what `/healthz` complains of, if anything.
    pub async fn ailment(&self) -> Option<String> {
        self.admin.problem().await
    }

    /// Returns what `/metrics` shows.
    pub async fn metrics(&self) -> Result<String, String> {
        self.admin.metrics().await
    }

    /// Tells what became of an object, as JSON; an error says why it cannot.
    pub async fn object_status(&self, uri: &str) -> Result<String, String> {
        let status = api::object_status(&self.admin, uri).await;
        let status = status.map_err(|(_, why)| why)?;
        serde_json::to_string(&status).map_err(|error| error.to_string())
    }

    /// Pauses a rule; returns false if it was paused before.
    pub fn pause_rule(&self, rule: &str) -> Result<bool, Failure> {
        self.engine.pauses.pause(rule)
    }

    /// Resumes a rule; returns false if it was not paused.
    pub fn resume_rule(&self, rule: &str) -> Result<bool, Failure> {
        self.engine.resume_rule(rule)
    }

    /// Runs until SIGTERM or SIGINT, then stops.
    async fn run_until_stopped(self, mut signals: Signals, config: &Path) -> anyhow::Result<()> {
        while signals.next().await == Request::Reload {
            admin::notify_reloading();
            match replicator_config::load(config) {
                Ok(settings) => self.reload_rules(&settings),
                Err(invalid) => {
                    self.engine.metrics.reloaded(None);
                    error!(%invalid, "the configuration is not valid, the old rules stay");
                }
            }
            admin::notify_ready();
        }
        admin::notify_stopping();
        self.end().await
    }

    /// Stops; what keeps the ledger from being durable is logged.
    pub async fn stop(self) {
        if let Err(error) = self.end().await {
            error!("{error:#}");
        }
    }

    /// Stops in this order: receivers, work in flight, ledger, what serves them.
    async fn end(mut self) -> anyhow::Result<()> {
        info!(timeout = ?self.settings.drain_timeout, "draining");
        self.drain.cancel();
        let drained =
            async { tokio::join!(join_every(&mut self.receivers), join_every(&mut self.work)) };
        let is_drained = tokio::time::timeout(self.settings.drain_timeout, drained)
            .await
            .is_ok();
        if !is_drained {
            warn!("drain timeout reached, returning messages to their queues");
            self.halt.cancel();
            join_or_abandon("work", &mut self.work).await;
        }
        let synced = self.engine.ledger.sync();
        self.close.cancel();
        join_or_abandon("services", &mut self.services).await;
        // With work queues a stop says nothing of the other daemons.
        if is_drained && self.settings.work_queues.is_empty() {
            Predecessor::leave(&self.settings.state_dir)
                .context("the state directory cannot be written")?;
        }
        synced.context("the ledger cannot be synced")
    }

    /// Takes over other rules; what is in flight goes on.
    pub fn reload_rules(&self, settings: &Settings) {
        // Until they are taken over, they are not.
        self.engine.metrics.reloaded(None);
        let stays =
            settings.accounts == self.settings.accounts && settings.queues == self.settings.queues;
        if !stays {
            return error!("accounts or queues changed, which needs a restart; the old rules stay");
        }
        if let Some(rule) = rerouted(&self.settings, settings) {
            return error!(
                rule,
                "the work queue or destination of the rule changed, which needs a restart; \
                 the old rules stay"
            );
        }
        let mut reloaded = settings.clone();
        reloaded.rules.clone_from(&self.settings.rules);
        if reloaded != self.settings {
            warn!("only rules are reloaded; the other changes need a restart");
        }
        match adopt(&self.engine, settings) {
            Ok(rules) => {
                info!(rules = settings.rules.len(), "rules reloaded");
                self.rules.send_replace(Arc::new(rules));
                self.checked.send_replace(settings.clone());
            }
            Err(failure) => error!(
                error = error_chain(&failure),
                "the rules cannot be recorded, the old ones stay"
            ),
        }
    }
}

/// Begins what serves the stations until `close` is cancelled: repairs of the ledger, questions to
/// KMS, and the HTTP endpoints.
fn spawn_services(
    admin: &Admin,
    (listener, role): (Option<TcpListener>, Role),
    close: &CancellationToken,
    services: &mut JoinSet<()>,
) {
    let engine = &admin.engine;
    services.spawn(engine.ledger.clone().reopen_after_failures(close.clone()));
    // A router works under no key.
    if role != Role::Router {
        services.spawn(Arc::clone(&engine.keys).run(close.clone()));
    }
    if let Some(listener) = listener {
        services.spawn(admin.clone().run(listener, close.clone()));
    }
}

/// Takes over the rules of a configuration: their limits, and since when they count.
fn adopt(engine: &Engine, settings: &Settings) -> Result<Ruleset, Failure> {
    let enabled = || settings.rules.iter().filter(|rule| rule.enabled);
    for rule in &settings.rules {
        if rule.enabled || rule.is_waiting() {
            engine.ledger.rule_start(&rule.id, clock::now())?;
        } else {
            warn!(
                rule = rule.id,
                "the rule is disabled and has no work queue: its events are deleted"
            );
        }
    }
    if engine.pauses.replace(settings.rules.iter()) {
        engine.retries.clear_all();
    }
    let queues = settings
        .queues
        .iter()
        .chain(&settings.work_queues)
        .chain(&settings.backfill_queues)
        .map(|queue| queue.name());
    engine
        .metrics
        .expect(queues, enabled().map(|rule| rule.id.as_str()));
    engine.activity.replace(settings.rules.iter());
    engine.limits.replace(enabled());
    engine.budget.divide_shares(enabled());
    engine.concurrency.replace(enabled());
    engine.keys.replace(enabled());
    engine.metrics.reloaded(Some(clock::now().unix_timestamp()));
    Ok(Ruleset::new(&settings.rules))
}

/// Waits until every task has ended.
async fn join_every(tasks: &mut JoinSet<()>) {
    while tasks.join_next().await.is_some() {}
}

/// Waits a moment for tasks that were cancelled.
async fn join_or_abandon(what: &str, tasks: &mut JoinSet<()>) {
    if tokio::time::timeout(STOP_TIMEOUT, join_every(tasks))
        .await
        .is_err()
    {
        warn!(
            what,
            tasks = tasks.len(),
            "tasks did not stop in time, abandoned"
        );
    }
}
