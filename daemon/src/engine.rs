//! What every transfer uses: clients, ledger, budget, limits, metrics.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aws_sdk_s3::types::BucketVersioningStatus;
use parking_lot::Mutex;
use replicator_core::event::Event;
use replicator_core::failure::{Failure, FailureKind, Operation, Reason};
use replicator_core::plan::SourceVersion;
use replicator_core::rule::BucketRef;
use tokio::time::Instant;

use crate::failpoint::Failpoints;
use crate::health::{LastErrors, ProgressWatchdog};
use crate::kms::Keys;
use crate::ledger::Ledger;
use crate::ledger::records::TargetKey;
use crate::limit::concurrency::ConcurrencyControl;
use crate::limit::quotas::{Budget, MemoryPermit};
use crate::limit::quotas::{Flow, Limits};
use crate::limit::single_flight::{
    Batchers, Body, Leader, RangeClaim, RangeKey, SingleFlight, Subscriber,
};
use crate::metrics::Metrics;
use crate::other_daemons::{Predecessor, SecondDaemon};
use crate::parking::Retries;
use crate::rule_state::{Pauses, RuleActivity};
use crate::s3::accounts::error::{Side, from_sdk_error};
use crate::s3::accounts::{AccountClients, Accounts, beside_access_points};
use crate::sqs::work_queues::WorkQueues;
use crate::task::{Ruleset, Task};

/// The services that transfers share.
#[derive(Debug)]
pub(crate) struct Engine {
    pub(crate) accounts: Accounts,
    pub(crate) work_queues: WorkQueues,
    pub(crate) keys: Arc<Keys>,
    pub(crate) ledger: Ledger,
    pub(crate) predecessor: Predecessor,
    pub(crate) second_daemon: SecondDaemon,
    pub(crate) budget: Budget,
    pub(crate) single_flight: Arc<SingleFlight>,
    pub(crate) limits: Limits,
    pub(crate) concurrency: ConcurrencyControl,
    pub(crate) retries: Retries,
    pub(crate) metrics: Metrics,
    pub(crate) activity: RuleActivity,
    pub(crate) pauses: Arc<Pauses>,
    pub(crate) last_errors: LastErrors,
    pub(crate) watchdog: Arc<ProgressWatchdog>,
    pub(crate) failpoints: Failpoints,
    /// Which destinations keep versions.
    versioned: TtlSet,
    /// Where tags could be read.
    pub(crate) tags_read: TtlSet,
    /// Destinations whose uploads cannot be listed, and about which that was logged.
    pub(crate) unlistable_uploads: TtlSet,
    /// Sources that keep no versions, and about which that was logged.
    pub(crate) unversioned_sources: TtlSet,
    pub(crate) histories: Batchers<SharedHistory>,
    pub(crate) absences: Batchers<SharedHistory>,
    /// Destinations whose lists serve too few of the keys that wait, or are not answered.
    pub(crate) sparse: TtlSet,
}

/// What a copy was let in for.
#[derive(Debug)]
pub(crate) enum Due<'a> {
    /// To write what was read already.
    Have(Arc<Body>),
    /// To read, into memory that is paid for.
    Read(Leader<'a>, MemoryPermit),
}

/// Buckets of which something was seen a short while ago, and need not be read again yet.
#[derive(Debug)]
pub(crate) struct TtlSet {
    ttl: Duration,
    seen: Mutex<HashMap<BucketRef, Instant>>,
}

/// What a list for many keys has of one key.
#[derive(Debug, Clone)]
pub(crate) enum SharedHistory {
    /// Its history, newest first.
    Whole(Vec<SourceVersion>),
    /// No entry.
    Absent,
    /// Not all of it, or it cannot tell: the key has to be read alone.
    Unknown,
    /// As `Unknown`, and so it will be for others: keys lie too far apart, or no list is answered.
    Sparse,
    /// There was none because the bucket throttles: a request for each key would make it worse.
    Throttled,
}

// Versioning can be suspended, and the permission to read tags taken away, without the daemon: so
// often are they checked again.
const BUCKET_CHECKED_EVERY: Duration = Duration::from_secs(300);

// A warning that holds for all keys of a destination is logged once in this time.
const LOGGED_EVERY: Duration = Duration::from_secs(60);

// Keys come in runs: so long the next ones are far apart too.
const SPARSE_FOR: Duration = Duration::from_secs(60);

impl Engine {
    pub(crate) fn new(
        (accounts, work_queues): (Accounts, WorkQueues),
        (ledger, pauses, predecessor): (Ledger, Pauses, Predecessor),
        budget: Budget,
        metrics: Metrics,
        failpoints: Failpoints,
    ) -> Self {
        let (concurrency, single_flight, watchdog) = (
            ConcurrencyControl::default(),
            Arc::default(),
            Arc::new(ProgressWatchdog::new()),
        );
        let limits = Limits::new(Arc::clone(&watchdog));
        Self {
            keys: Arc::new(Keys::new(accounts.clone())),
            accounts,
            work_queues,
            ledger,
            predecessor,
            second_daemon: SecondDaemon::new(),
            budget,
            single_flight,
            limits,
            concurrency,
            retries: Retries::default(),
            metrics,
            activity: RuleActivity::default(),
            pauses: Arc::new(pauses),
            last_errors: LastErrors::default(),
            watchdog,
            failpoints,
            versioned: TtlSet::new(BUCKET_CHECKED_EVERY),
            tags_read: TtlSet::new(BUCKET_CHECKED_EVERY),
            unlistable_uploads: TtlSet::new(LOGGED_EVERY),
            unversioned_sources: TtlSet::new(LOGGED_EVERY),
            histories: Batchers::default(),
            absences: Batchers::default(),
            sparse: TtlSet::new(SPARSE_FOR),
        }
    }

    /// Returns the clients for a place.
    pub(crate) fn access_to(&self, place: &BucketRef) -> Result<&AccountClients, Failure> {
        self.accounts.access_to(place)
    }

    /// Finds the tasks of an event, and records which rules it reaches, or why it reaches none.
    pub(crate) fn tasks_for(&self, rules: &Ruleset, event: &Event) -> Vec<Task> {
        let tasks = rules.tasks_for(event);
        for rule in tasks.iter().flat_map(|task| task.rules.iter()) {
            self.activity.record_event(&rule.id);
        }
        if tasks.is_empty() {
            for (rule, cause) in rules.mismatches(event) {
                self.activity.record_unmatched(&rule.id, cause, &event.key);
            }
        }
        tasks
    }

    /// Says whether a task has to wait because a rule that may take its key is paused.
    pub(crate) fn is_held(&self, task: &Task) -> bool {
        task.rules.iter().any(|rule| self.pauses.is_paused(rule))
    }

    /// Lets a rule that was paused by command go on; returns false if it was not.
    pub(crate) fn resume_rule(&self, rule: &str) -> Result<bool, Failure> {
        let resumed = self.pauses.resume(rule)?;
        self.retries.clear_all();
        Ok(resumed)
    }

    /// Waits until a rule may write a piece, and memory has room for it or has it. The limits come
    /// before the memory, so that a task that waits for them holds no memory and blocks no shared
    /// read. One part of each object waits for the limits at a time, so that objects take turns.
    pub(crate) async fn admit_copy<'a>(
        &self,
        (payer, target): (Flow<'_>, &TargetKey),
        reader: &'a Subscriber,
        piece: &RangeKey,
    ) -> (Due<'a>, MemoryPermit) {
        let share = {
            let _turn = reader.turn().await;
            let limit_wait = self.watchdog.key_waits(target);
            let share = async {
                drop(limit_wait);
                self.budget.share(payer, piece.len).await
            };
            self.limits.admit_copy(payer, piece.len, share).await
        };
        let due = match reader.claim_piece(piece).await {
            RangeClaim::Have(body) => Due::Have(body),
            RangeClaim::Lead(lead) => Due::Read(lead, self.acquire_memory(payer, piece.len).await),
        };
        reader.piece_had(piece);
        (due, share)
    }

    /// Waits until memory has room for so many bytes; what is kept for later makes way.
    pub(crate) async fn acquire_memory(&self, payer: Flow<'_>, bytes: u64) -> MemoryPermit {
        if let Some(paid) = self.budget.try_pay(payer, bytes) {
            return paid;
        }
        let _pressure = self.single_flight.begin_shortage();
        while self.single_flight.drop_newest() {
            // Another task may have paid for what was dropped by now.
            if let Some(paid) = self.budget.try_pay(payer, bytes) {
                return paid;
            }
        }
        self.budget.acquire_memory(payer, bytes).await
    }

    /// Makes sure that a destination keeps versions: without them an overwrite would lose what it
    /// replaces.
    pub(crate) async fn check_versioned(&self, place: &BucketRef) -> Result<(), Failure> {
        if self.versioned.seen_recently(place) {
            return Ok(());
        }
        let answer = self
            .access_to(place)?
            .s3
            .get_bucket_versioning()
            .bucket(place.bucket.as_str())
            .customize()
            .config_override(beside_access_points())
            .send()
            .await
            .map_err(|error| {
                from_sdk_error(Side::Destination, Operation::GetBucketVersioning, error)
            })?;
        match answer.status {
            Some(BucketVersioningStatus::Enabled) => {
                self.versioned.mark_seen(place);
                Ok(())
            }
            other => {
                let seen = other
                    .as_ref()
                    .map_or("none", BucketVersioningStatus::as_str);
                let cause = format!("the bucket's versioning is {seen}, not Enabled");
                Err(Failure::with_source(
                    FailureKind::NeedsOperator(Reason::DstBucketUnversioned),
                    Operation::GetBucketVersioning,
                    cause,
                ))
            }
        }
    }

    /// Says whether an answer without a count of tags means that there are none. S3 counts them
    /// only for a principal that may read them, so that has to have been seen a short while ago.
    pub(crate) fn counts_tags(&self, place: &BucketRef) -> bool {
        let counts = self
            .access_to(place)
            .is_ok_and(|access| access.is_aws || access.capabilities.counts_tags());
        counts && self.tags_read.seen_recently(place)
    }

    /// Checks the id that a write was given. None, or `null`, may say that versioning was suspended
    /// in the meantime, and then nothing more may be written; or that the store has no versions of
    /// such a key.
    pub(crate) async fn check_written(
        &self,
        place: &BucketRef,
        during: Operation,
        version: Option<&str>,
    ) -> Result<(), Failure> {
        if version.is_some_and(|version| version != "null") {
            return Ok(());
        }
        self.versioned.unmark_seen(place);
        self.check_versioned(place).await?;
        let seen = version.map_or("without a version id", |_| "with the version id null");
        let cause = format!(
            "answered {seen}, though the bucket keeps versions: the store has none of such a key"
        );
        Err(Failure::with_source(
            FailureKind::NeedsOperator(Reason::DstVersionIdMissing),
            during,
            cause,
        ))
    }
}

impl TtlSet {
    fn new(ttl: Duration) -> Self {
        Self {
            ttl,
            seen: Mutex::default(),
        }
    }

    pub(crate) fn mark_seen(&self, place: &BucketRef) {
        self.seen.lock().insert(place.clone(), Instant::now());
    }

    /// Says whether it was seen within the time.
    pub(crate) fn seen_recently(&self, place: &BucketRef) -> bool {
        let seen = self.seen.lock();
        seen.get(place).is_some_and(|at| at.elapsed() < self.ttl)
    }

    fn unmark_seen(&self, place: &BucketRef) {
        self.seen.lock().remove(place);
    }
}
