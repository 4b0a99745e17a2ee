//! The daemon put together: stations, the two channels between them, and the one order in which
//! everything stops.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::Context;
use replicator_config::Settings;
use tokio::net::TcpListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::accounts::Accounts;
use crate::ack::Ack;
use crate::admin::Admin;
use crate::budget::Budget;
use crate::clock;
use crate::dispatch::{Channels, Dispatch};
use crate::engine::Engine;
use crate::health::Poll;
use crate::intake::{self, Intake};
use crate::lease::Leases;
use crate::ledger::Ledger;
use crate::message::{Delivery, QueueAccess, Settlement};
use crate::metrics::Metrics;
use crate::ruleset::Ruleset;
use replicator_core::failure::chain;

// Messages that each queue may have on the way to the dispatch: a poll holds room for one batch
// while it waits, and another keeps the dispatch busy; more would only hide messages from daemons
// that are free.
const DELIVERIES_MAX: usize = 2 * intake::BATCH_MAX;

// Settled messages not yet acknowledged: a round of the ack station and one to come. An SQS that
// does not answer fills this, and then the dispatch waits: that is back-pressure, since what is
// settled beyond could only pile up. Work and leases go on; nothing new begins.
const SETTLEMENTS_MAX: usize = 200;

// Scrapes and health checks that wait for an answer.
const QUESTIONS_MAX: usize = 8;

// What was told to stop needs a moment to say so, to SQS among others. systemd and ECS kill what
// takes much longer than `drain_timeout`, and a kill loses no more than leaving it behind does.
const STOP_TIMEOUT: Duration = Duration::from_secs(5);

/// Runs the daemon until it is told to stop by SIGTERM or SIGINT.
pub async fn run(settings: Settings, config: PathBuf) -> anyhow::Result<()> {
    let listener = TcpListener::bind(settings.listen)
        .await
        .with_context(|| format!("cannot listen on {}; is the port in use? change `listen`", settings.listen))?;
    let metrics = Metrics::new().context("cannot register metrics")?;
    let ledger = Ledger::open(&settings.state_dir)?;
    let accounts = Accounts::connect(&settings.accounts, &metrics).await;
    let budget = Budget::new(settings.memory_bytes);
    let engine = Arc::new(Engine::new(accounts, ledger, budget, metrics));
    let rules = adopt(&engine, &settings).context("cannot write to the ledger")?;
    let signals = Signals::new().context("cannot listen for signals")?;
    info!(listen = %settings.listen, rules = settings.rules.len(), queues = settings.queues.len(), "started");
    House::build(engine, settings, rules, listener).live(signals, &config).await;
    info!("stopped");
    Ok(())
}

/// Takes over the rules of a configuration: their limits, and since when they count.
fn adopt(engine: &Engine, settings: &Settings) -> Result<Ruleset, replicator_core::failure::Failure> {
    for rule in settings.rules.iter().filter(|rule| rule.enabled) {
        engine.ledger.rule_start(&rule.id, clock::now())?;
    }
    engine.limits.replace(settings.rules.iter());
    Ok(Ruleset::new(&settings.rules))
}

/// Everything that runs.
struct House {
    engine: Arc<Engine>,
    settings: Settings,
    rules: watch::Sender<Arc<Ruleset>>,
    /// Stops the intakes: no new work.
    drain: CancellationToken,
    /// Stops the work in hand.
    halt: CancellationToken,
    /// Stops what serves the others: leases and the status server.
    close: CancellationToken,
    intakes: TaskTracker,
    work: TaskTracker,
    services: TaskTracker,
}

impl House {
    fn build(engine: Arc<Engine>, settings: Settings, rules: Ruleset, listener: TcpListener) -> Self {
        let (rules, watched) = watch::channel(Arc::new(rules));
        let house = Self {
            engine,
            settings,
            rules,
            drain: CancellationToken::new(),
            halt: CancellationToken::new(),
            close: CancellationToken::new(),
            intakes: TaskTracker::new(),
            work: TaskTracker::new(),
            services: TaskTracker::new(),
        };
        let (deliver, deliveries) = mpsc::channel::<Delivery>(DELIVERIES_MAX * house.settings.queues.len().max(1));
        let (settle, settlements) = mpsc::channel::<Settlement>(SETTLEMENTS_MAX);
        let (ask, questions) = mpsc::channel(QUESTIONS_MAX);
        let polls = house.start_intakes(&deliver);
        let channels = Channels { rules: watched, deliveries, settlements: settle, questions };
        let engine = Arc::clone(&house.engine);
        house.work.spawn(Ack { engine: Arc::clone(&engine), settlements }.run());
        house.work.spawn(Dispatch::new(Arc::clone(&engine), channels, house.halt.clone()).run());
        let admin = Admin { engine, questions: ask, polls: Arc::new(polls), draining: house.drain.clone() };
        house.services.spawn(admin.run(listener, house.close.clone()));
        house
    }

    fn start_intakes(&self, deliver: &mpsc::Sender<Delivery>) -> Vec<Arc<Poll>> {
        let numbers = Arc::new(AtomicU64::new(1));
        let mut polls = Vec::new();
        for queue in &self.settings.queues {
            // The configuration was checked: a queue's account is there.
            let Some(account) = self.engine.accounts.get(&queue.account) else { continue };
            let leases = Leases::new(account.sqs.clone(), queue, self.engine.metrics.clone());
            let poll = Arc::new(Poll::new(queue.name()));
            let access = Arc::new(QueueAccess { queue: queue.clone(), client: account.sqs.clone() });
            self.services.spawn(leases.clone().run(self.close.clone()));
            let intake = Intake {
                access,
                leases,
                deliveries: deliver.clone(),
                numbers: Arc::clone(&numbers),
                poll: Arc::clone(&poll),
                patience: self.settings.drain_timeout,
                metrics: self.engine.metrics.clone(),
            };
            self.intakes.spawn(intake.run(self.drain.clone()));
            polls.push(poll);
        }
        polls
    }

    /// Lives until told to stop, then stops in this order: intakes, work in hand, what serves it.
    async fn live(self, mut signals: Signals, config: &Path) {
        while signals.next().await == Told::Reload {
            self.reload(config);
        }
        self.stop().await;
    }

    async fn stop(self) {
        info!(timeout = ?self.settings.drain_timeout, "draining");
        self.drain.cancel();
        self.intakes.close();
        self.work.close();
        self.services.close();
        let drained = async { tokio::join!(self.intakes.wait(), self.work.wait()) };
        if tokio::time::timeout(self.settings.drain_timeout, drained).await.is_err() {
            warn!("drain timeout is over, handing the rest back");
            self.halt.cancel();
            gone("work", &self.work).await;
        }
        if let Err(failure) = self.engine.ledger.sync().await {
            error!(error = chain(&failure), "the ledger cannot be synced");
        }
        self.close.cancel();
        gone("services", &self.services).await;
    }

    /// Takes over the rules of the file; a bad file changes nothing.
    fn reload(&self, config: &Path) {
        let settings = match replicator_config::load(config) {
            Ok(settings) => settings,
            Err(invalid) => return error!(%invalid, "the configuration is not valid, the old rules stay"),
        };
        let stays = settings.accounts == self.settings.accounts && settings.queues == self.settings.queues;
        if !stays {
            return error!("accounts or queues changed, which needs a restart; the old rules stay");
        }
        let Settings { state_dir, listen, memory_bytes, drain_timeout, .. } = &self.settings;
        let fixed = (state_dir, listen, memory_bytes, drain_timeout);
        if fixed != (&settings.state_dir, &settings.listen, &settings.memory_bytes, &settings.drain_timeout) {
            warn!("only rules are reloaded; the other changes need a restart");
        }
        match adopt(&self.engine, &settings) {
            Ok(rules) => {
                info!(rules = settings.rules.len(), "rules reloaded");
                self.rules.send_replace(Arc::new(rules));
            }
            Err(failure) => error!(error = chain(&failure), "the rules cannot be recorded, the old ones stay"),
        }
    }
}

/// Waits a moment for what was told to stop.
async fn gone(what: &str, tasks: &TaskTracker) {
    if tokio::time::timeout(STOP_TIMEOUT, tasks.wait()).await.is_err() {
        warn!(what, tasks = tasks.len(), "left behind, it does not stop");
    }
}

/// What a signal tells the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Told {
    Stop,
    Reload,
}

struct Signals {
    term: Signal,
    interrupt: Signal,
    hangup: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Told {
        tokio::select! {
            _ = self.term.recv() => Told::Stop,
            _ = self.interrupt.recv() => Told::Stop,
            _ = self.hangup.recv() => Told::Reload,
        }
    }
}
