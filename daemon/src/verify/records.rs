//! The ledger beside what both buckets list. `s3-replicator ledger rebuild` reads back the replicas
//! that it lacks. The daemon forgets what it has of keys that are gone for good: what is on record
//! of them is older than any message, and neither bucket lists a version or a delete marker. Then
//! no record of the key can matter: the planner asks for records of what the source lists, or of
//! what is current at the destination (docs/guarantees.md).

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt as _;
use replicator_config::Settings;
use replicator_core::failure::{Failure, Operation, error_chain};
use replicator_core::object::{Key, Timestamp};
use replicator_core::plan::VersionKind;
use replicator_core::rule::{BucketRef, Rule};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use super::keys::{KeyPairs, ListedKey};
use super::{KEYS_MAX, find_rule, keys_of};
use crate::clock;
use crate::dispatch::Command;
use crate::engine::Engine;
use crate::failpoint::Failpoints;
use crate::ledger::Ledger;
use crate::ledger::records::{Replica, TargetKey};
use crate::limit::quotas::Budget;
use crate::metrics::Metrics;
use crate::objects::list_key;
use crate::other_daemons::Predecessor;
use crate::process::{InvalidCommand, run_blocking};
use crate::reconcile::listing::KeyRange;
use crate::reconcile::{ReadBack, read_back, transient};
use crate::rule_state::Pauses;
use crate::s3::accounts::error::Side;
use crate::s3::accounts::{Accounts, AwsOverride};
use crate::sqs::work_queues::WorkQueues;
use crate::task::Ruleset;

/// Reads back what the ledger lacks of a rule's replicas. What is on record already costs no more
/// than the lists, so a rebuild that broke off goes on when it is run again.
pub async fn rebuild(
    settings: &Settings,
    rule: &str,
    given: Option<&AwsOverride>,
) -> anyhow::Result<String> {
    let rule = find_rule(settings, rule)?;
    if !rule.enabled && !rule.is_waiting() {
        bail!(InvalidCommand::new(format!(
            "rule {:?} is disabled",
            rule.id
        )));
    }
    let engine = engine_of(settings, given).await?;
    let rules = Ruleset::new(&settings.rules);
    let has_start = rule.since.is_some() || engine.ledger.known_start(&rule.id)?.is_some();
    let ends = (
        engine.access_to(&rule.source)?,
        engine.access_to(&rule.destination)?,
    );
    let listed = keys_of(KeyPairs::new(rule, ends, None)?);
    let read = listed.map(|key| async { read_key(&engine, (&rules, rule), key?).await });
    let mut read = std::pin::pin!(read.buffered(KEYS_MAX));
    let (mut keys, mut unread, mut sum) = (0_u64, 0_u64, ReadBack::default());
    while let Some(one) = read.next().await {
        let one = one.context("broken off; what was read back stays, run it again for the rest")?;
        keys += 1;
        let Some(one) = one else {
            unread += 1;
            continue;
        };
        sum.known += one.known;
        sum.found += one.found;
        sum.unproved += one.unproved;
    }
    engine.ledger.sync()?;
    let ReadBack {
        known,
        found,
        unproved,
    } = sum;
    let since = if has_start { "" } else { NO_START };
    Ok(format!(
        "{keys} keys: {found} replicas read back, {known} were on record, \
         {unproved} objects are not proved to be replicas, {unread} keys cannot be compared{since}"
    ))
}

const NO_START: &str =
    "\nsince when the rule counts is on no record: say `since` in it before the daemon starts";

/// Makes what reads versions as the daemon does, on a ledger that no daemon uses.
async fn engine_of(settings: &Settings, given: Option<&AwsOverride>) -> anyhow::Result<Engine> {
    let ledger = Ledger::open(&settings.state_dir)?;
    let metrics = Metrics::new().context("cannot register metrics")?;
    let accounts = Accounts::connect(&settings.accounts, &metrics, given).await;
    let accounts = accounts.context("cannot set up TLS")?;
    let pauses = Pauses::load(&ledger).context("cannot read the ledger")?;
    Ok(Engine::new(
        (accounts, WorkQueues::new(std::iter::empty())),
        (ledger, pauses, Predecessor::none()),
        Budget::new(settings.memory_bytes),
        metrics,
        Failpoints::default(),
    ))
}

/// Reads back one key; none that lists do not compare: the daemon parks it.
async fn read_key(
    engine: &Engine,
    (rules, rule): (&Ruleset, &Rule),
    listed: ListedKey,
) -> Result<Option<ReadBack>, Failure> {
    let ListedKey::Pair(pair) = listed else {
        return Ok(None);
    };
    let Some(task) = rules.task_at(rule, &pair.key) else {
        return Ok(None);
    };
    let mut objects = pair.shown;
    objects.retain(|entry| entry.kind == VersionKind::Object);
    objects.reverse();
    read_back(engine, &task, objects).await.map(Some)
}

/// Forgets, beside all work, what the ledger has of keys that are gone for good.
#[derive(Debug)]
pub(crate) struct Forgetting {
    engine: Arc<Engine>,
    rules: watch::Receiver<Arc<Ruleset>>,
    /// The dispatch, which knows of each key whether it has work.
    commands: mpsc::Sender<Command>,
}

/// SQS keeps no message for longer:
/// <https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html>
const IDLE_FOR: time::Duration = time::Duration::days(14);

// A daemon that starts every day comes to it too.
const FIRST_AFTER: Duration = Duration::from_secs(3600);
const SWEPT_EVERY: Duration = Duration::from_secs(24 * 3600);

// As many as a page of a list has; nothing is urgent about them.
const PAGE_KEYS: usize = 1000;
const PAGE_EVERY: Duration = Duration::from_secs(1);

impl Forgetting {
    /// Begins to look through the ledger once a day.
    pub(crate) fn start(
        (engine, rules): (&Arc<Engine>, &watch::Receiver<Arc<Ruleset>>),
        ask: &mpsc::Sender<Command>,
        drain: &CancellationToken,
        work: &mut JoinSet<()>,
    ) {
        let forgetting = Self {
            engine: Arc::clone(engine),
            rules: rules.clone(),
            commands: ask.clone(),
        };
        let drain = drain.clone();
        work.spawn(async move {
            drain.run_until_cancelled(Box::pin(forgetting.run())).await;
        });
    }

    async fn run(self) {
        let mut pause = FIRST_AFTER;
        loop {
            tokio::time::sleep(pause).await;
            pause = SWEPT_EVERY;
            let rules = Arc::clone(&self.rules.borrow());
            for rule in rules.iter().filter(|rule| self.is_at_work(rule)) {
                let swept = self.sweep(&rules, rule).await;
                report_swept(&rule.id, swept);
            }
        }
    }

    fn is_at_work(&self, rule: &Rule) -> bool {
        rule.enabled && !self.engine.pauses.is_paused(rule)
    }

    /// Goes through the keys that the ledger has of a rule, and returns how many were forgotten.
    async fn sweep(&self, rules: &Ruleset, rule: &Rule) -> Result<u64, Failure> {
        let (mut after, mut forgotten) = (None, 0);
        while self.is_at_work(rule)
            && let Some(page) = run_blocking(|| self.read_page(rule, after.as_ref()))?
        {
            for key in self.unlisted(rule, page.idle).await? {
                let destination = rule.destination.clone();
                let target = TargetKey { destination, key };
                forgotten += u64::from(self.forget(rules, target).await?);
            }
            after = Some(page.last);
            tokio::time::sleep(PAGE_EVERY).await;
        }
        Ok(forgotten)
    }

    /// Reads the next keys of a rule's destination from the ledger; none behind the last.
    fn read_page(&self, rule: &Rule, after: Option<&TargetKey>) -> Result<Option<Page>, Failure> {
        let (now, place) = (clock::now(), &rule.destination);
        let mut keys: Vec<(TargetKey, bool)> = Vec::new();
        let ledger = &self.engine.ledger;
        ledger.visit_replicas((place, after), |target, replica| {
            let (is_idle, is_full) = (is_idle(replica, now), keys.len() == PAGE_KEYS);
            match keys.last_mut() {
                Some((last, is_key_idle)) if *last == target => *is_key_idle &= is_idle,
                _ if is_full => return ControlFlow::Break(()),
                _ => keys.push((target, is_idle)),
            }
            ControlFlow::Continue(())
        })?;
        let Some((last, _)) = keys.last().cloned() else {
            return Ok(None);
        };
        let idle = keys.into_iter().filter(|(_, is_idle)| *is_idle);
        let idle = idle.map(|(target, _)| target.key);
        let idle = idle.filter(|key| original_of(rule, key).is_some());
        let idle = idle.collect();
        Ok(Some(Page { idle, last }))
    }

    /// Leaves those keys that neither list has.
    async fn unlisted(
        &self,
        rule: &Rule,
        mut keys: BTreeSet<Key>,
    ) -> Result<BTreeSet<Key>, Failure> {
        let Some(range) = range_of(rule, &keys) else {
            return Ok(keys);
        };
        let ends = (
            self.engine.access_to(&rule.source)?,
            self.engine.access_to(&rule.destination)?,
        );
        let pairs = KeyPairs::new(rule, ends, None)
            .map_err(|error| transient(Operation::Reconcile, error.to_string()))?;
        let mut pairs = pairs.within(&range);
        while let Some(listed) = pairs.next_pair().await? {
            let target = match listed {
                ListedKey::Pair(pair) => pair.target.as_str().to_owned(),
                ListedKey::Refused(refused) => refused.target,
            };
            // A key that the destination cannot have has no record.
            if let Ok(target) = Key::try_from(target) {
                keys.remove(&target);
            }
        }
        Ok(keys)
    }

    /// Forgets a key if each bucket, asked for it alone, has nothing of it, and if nothing came to
    /// it meanwhile: then the dispatch has work for it, or there is another record.
    async fn forget(&self, rules: &Ruleset, target: TargetKey) -> Result<bool, Failure> {
        let seen = run_blocking(|| self.engine.ledger.replicas_of(&target))?;
        let now = clock::now();
        if !seen.iter().all(|replica| is_idle(replica, now)) {
            return Ok(false);
        }
        let of_destination = rules
            .iter()
            .filter(|rule| rule.destination == target.destination);
        let originals: BTreeSet<(&BucketRef, Key)> = of_destination
            .filter_map(|rule| Some((&rule.source, original_of(rule, &target.key)?)))
            .collect();
        let here = (Side::Destination, &target.destination, &target.key);
        let there = originals
            .iter()
            .map(|(place, key)| (Side::Source, *place, key));
        for (side, place, key) in std::iter::once(here).chain(there) {
            let access = self.engine.access_to(place)?;
            let listed = list_key(access, (side, &place.bucket), key).await?;
            if !listed.is_empty() {
                return Ok(false);
            }
        }
        let (answer, forgotten) = oneshot::channel();
        let command = Command::Forget(Box::new((target, seen)), answer);
        let _dispatch_may_have_ended = self.commands.send(command).await;
        Ok(forgotten.await.unwrap_or(false))
    }
}

fn report_swept(rule: &str, forgotten: Result<u64, Failure>) {
    match forgotten {
        Ok(0) => {}
        Ok(keys) => info!(rule, keys, "forgot keys that neither bucket has any more"),
        Err(failure) => {
            let error = error_chain(&failure);
            warn!(
                rule,
                error, "cannot tell which keys neither bucket has any more"
            );
        }
    }
}

/// Keys that the ledger has, in their order.
struct Page {
    /// Those all of whose records are old.
    idle: BTreeSet<Key>,
    last: TargetKey,
}

/// Says whether no message is left of what a record is about. A message may name a time to come.
fn is_idle(replica: &Replica, now: Timestamp) -> bool {
    let times = [
        Some(replica.source.last_modified),
        replica.written,
        replica.found,
    ];
    let mut times = times.into_iter().flatten();
    times.all(|time| (now - time).abs() > IDLE_FOR)
}

/// Returns the key of the source that a rule would take to a key of its destination.
fn original_of(rule: &Rule, target: &Key) -> Option<Key> {
    let key = rule.original_key(target)?;
    rule.filter.admits_key(&key).is_ok().then_some(key)
}

/// Returns a range of the source that has the originals of these keys, and little before them: what
/// is listed comes after a key, so after one that is a letter shorter.
fn range_of(rule: &Rule, targets: &BTreeSet<Key>) -> Option<KeyRange> {
    let first = rule.original_key(targets.first()?)?;
    let last = rule.original_key(targets.last()?)?;
    let mut shorter = first.as_str().chars();
    shorter.next_back();
    let shorter = shorter.as_str().to_owned();
    Some(KeyRange {
        after: Some(shorter).filter(|key| key.starts_with(&rule.filter.prefix)),
        until: Some(last.as_str().to_owned()),
    })
}
