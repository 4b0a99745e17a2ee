//! What Prometheus scrapes: one method per thing that happens, and gauges that are derived from
//! state at scrape, never counted up and down.

use prometheus::core::Collector;
use prometheus::{
    Error, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use replicator_core::failure::Reason;
use serde::{Deserialize, Serialize};

use crate::ledger::LedgerTrouble;

/// What was done, or would have been.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    Replicated,
    Duplicate,
    Superseded,
    Skipped,
    Gone,
    Parked,
}

/// What became of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum MessageOutcome {
    Received,
    Deleted,
    DeleteFailed,
    Released,
    LeaseLost,
    Undecodable,
    UnknownBucket,
    Ignored,
    Parked,
}

/// Why nothing proves that a replica holds the source's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unproved {
    /// The source states no checksum that is known here, and its ETag is no MD5.
    NothingStated,
    /// What the source states is of its parts, and where those end is not known.
    PartsUnknown,
    /// The proof would cost a second read, or much processor time: `verify = "always"` pays that.
    CostsTooMuch,
    /// The destination's answer says nothing that can be compared.
    AnswerSilent,
    /// The destination's answer has an ETag that is not the MD5 of what was sent.
    AnswerDiffers,
}

/// How many replicas of a rule were written without a proof, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnprovedCount {
    /// The rule.
    pub rule: String,
    /// Why.
    pub cause: Unproved,
    /// How many since the daemon was started.
    pub replicas: u64,
}

/// What one rule has in flight.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct PendingFigures {
    /// Operations received and not yet settled.
    pub operations: i64,
    /// Bytes of their objects.
    pub bytes: i64,
    /// The age of the oldest event.
    pub oldest_seconds: f64,
}

/// Every metric of the daemon, registered in one registry.
#[derive(Debug, Clone)]
pub(crate) struct Metrics {
    registry: Registry,
    operations: IntCounterVec,
    bytes: IntCounterVec,
    latency: HistogramVec,
    operations_pending: IntGaugeVec,
    bytes_pending: IntGaugeVec,
    oldest_pending: prometheus::GaugeVec,
    failures: IntCounterVec,
    parked: IntGaugeVec,
    requests: IntCounterVec,
    memory: IntGaugeVec,
    ledger_up: IntGauge,
    ledger_failures: IntCounterVec,
    messages: IntCounterVec,
    task_panics: IntCounter,
    unproved: IntCounterVec,
}

// From a tenth of a second to native replication's threshold of 15 minutes and beyond.
const LATENCY_BUCKETS_SECONDS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
];

impl Metrics {
    /// Registers every metric.
    pub(crate) fn new() -> Result<Self, Error> {
        let registry = Registry::new_custom(Some("s3_replicator".to_owned()), None)?;
        let latency = HistogramOpts::new(
            "replication_latency_seconds",
            "Seconds from the event's time to the replica being durable at the destination.",
        );
        let latency = HistogramVec::new(
            latency.buckets(LATENCY_BUCKETS_SECONDS.to_vec()),
            &["rule", "operation"],
        );
        let oldest_pending = prometheus::GaugeVec::new(
            Opts::new(
                "oldest_pending_seconds",
                "Age in seconds of the oldest event not yet settled.",
            ),
            &["rule"],
        );
        let task_panics =
            IntCounter::new("task_panics_total", "Tasks that a bug in the daemon ended.");
        let counter = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntCounterVec::new(Opts::new(name, help), labels))
        };
        let gauge = |name: &str, help: &str, labels: &[&str]| {
            register(&registry, IntGaugeVec::new(Opts::new(name, help), labels))
        };
        let ledger_up = IntGauge::new(
            "ledger_up",
            "1 while the ledger takes records and none of it is damaged.",
        );
        Ok(Self {
            operations: counter(
                "operations_total",
                "Operations by what became of them.",
                &["rule", "destination", "operation", "outcome"],
            )?,
            bytes: counter(
                "bytes_total",
                "Bytes of object bodies replicated.",
                &["rule"],
            )?,
            operations_pending: gauge(
                "operations_pending",
                "Operations received and not yet settled.",
                &["rule"],
            )?,
            bytes_pending: gauge(
                "bytes_pending",
                "Bytes of object bodies not yet replicated.",
                &["rule"],
            )?,
            failures: counter(
                "failures_total",
                "Refusals, losses and failed attempts, by reason.",
                &["rule", "reason"],
            )?,
            parked: gauge(
                "parked",
                "Parked tasks by reason; they are retried on a schedule.",
                &["rule", "reason"],
            )?,
            requests: counter(
                "requests_total",
                "Requests sent, by the status of the answer; 0 when none came.",
                &["service", "operation", "account", "status"],
            )?,
            ledger_failures: counter(
                "ledger_failures_total",
                "Reads and writes of the ledger that failed.",
                &["kind"],
            )?,
            memory: gauge(
                "memory_bytes",
                "Memory of object bodies: budget and use.",
                &["kind"],
            )?,
            unproved: counter(
                "unproved_total",
                "Replicas written without a proof that they hold the source's bytes, by cause.",
                &["rule", "cause"],
            )?,
            messages: counter(
                "queue_messages_total",
                "Messages by what became of them.",
                &["queue", "outcome"],
            )?,
            latency: register(&registry, latency)?,
            oldest_pending: register(&registry, oldest_pending)?,
            ledger_up: register(&registry, ledger_up)?,
            task_panics: register(&registry, task_panics)?,
            registry,
        })
    }

    /// Creates the series that alerts query before anything happens: of a counter that begins with
    /// 1, `increase` sees nothing.
    pub(crate) fn expect<'a>(
        &self,
        queues: impl Iterator<Item = &'a str>,
        rules: impl Iterator<Item = &'a str>,
    ) {
        for queue in queues {
            for outcome in MessageOutcome::ALL {
                self.messages.with_label_values(&[queue, outcome.as_str()]);
            }
        }
        self.failures.with_label_values(&["", NOT_ROUTED]);
        for rule in rules {
            for reason in RECORDED {
                self.failures.with_label_values(&[rule, reason.as_str()]);
            }
            for cause in Unproved::ALL {
                self.unproved.with_label_values(&[rule, cause.as_str()]);
            }
        }
    }

    pub(crate) fn count_operation(
        &self,
        rule: &str,
        destination: &str,
        operation: &str,
        outcome: Outcome,
    ) {
        self.operations
            .with_label_values(&[rule, destination, operation, outcome.as_str()])
            .inc();
    }

    pub(crate) fn count_bytes(&self, rule: &str, bytes: u64) {
        self.bytes.with_label_values(&[rule]).inc_by(bytes);
    }

    pub(crate) fn latency(&self, rule: &str, operation: &str, seconds: f64) {
        self.latency
            .with_label_values(&[rule, operation])
            .observe(seconds);
    }

    pub(crate) fn count_failed(&self, rule: &str, reason: &str) {
        self.failures.with_label_values(&[rule, reason]).inc();
    }

    pub(crate) fn unproved(&self, rule: &str, cause: Unproved) {
        self.unproved
            .with_label_values(&[rule, cause.as_str()])
            .inc();
    }

    /// Lists what was written without a proof.
    pub(crate) fn unproved_counts<'a>(
        &self,
        rules: impl Iterator<Item = &'a str>,
    ) -> Vec<UnprovedCount> {
        let count = |rule: &str, cause: Unproved| UnprovedCount {
            rule: rule.to_owned(),
            cause,
            replicas: self
                .unproved
                .with_label_values(&[rule, cause.as_str()])
                .get(),
        };
        let counts = rules.flat_map(|rule| Unproved::ALL.map(|cause| count(rule, cause)));
        counts.filter(|count| count.replicas > 0).collect()
    }

    pub(crate) fn request(&self, service: &str, operation: &str, account: &str, status: u16) {
        self.requests
            .with_label_values(&[service, operation, account, &status.to_string()])
            .inc();
    }

    pub(crate) fn task_panicked(&self) {
        self.task_panics.inc();
    }

    pub(crate) fn count_message(&self, queue: &str, outcome: MessageOutcome) {
        self.messages
            .with_label_values(&[queue, outcome.as_str()])
            .inc();
    }

    /// Replaces the pending figures of every rule.
    pub(crate) fn set_pending<'a>(&self, all: impl Iterator<Item = (&'a str, PendingFigures)>) {
        self.operations_pending.reset();
        self.bytes_pending.reset();
        self.oldest_pending.reset();
        for (rule, pending) in all {
            self.operations_pending
                .with_label_values(&[rule])
                .set(pending.operations);
            self.bytes_pending
                .with_label_values(&[rule])
                .set(pending.bytes);
            self.oldest_pending
                .with_label_values(&[rule])
                .set(pending.oldest_seconds);
        }
    }

    /// Replaces the figures of what is parked.
    pub(crate) fn set_parked<'a>(&self, all: impl Iterator<Item = (&'a str, Reason, i64)>) {
        self.parked.reset();
        for (rule, reason, count) in all {
            self.parked
                .with_label_values(&[rule, reason.as_str()])
                .set(count);
        }
    }

    /// Takes over how the ledger is, and how often each trouble was seen since the start.
    pub(crate) fn set_ledger(
        &self,
        is_up: bool,
        troubles: impl Iterator<Item = (LedgerTrouble, u64)>,
    ) {
        self.ledger_up.set(i64::from(is_up));
        for (trouble, seen) in troubles {
            let counter = self.ledger_failures.with_label_values(&[trouble.as_str()]);
            counter.inc_by(seen.saturating_sub(counter.get()));
        }
    }

    pub(crate) fn set_memory(&self, kind: &str, bytes: u64) {
        self.memory
            .with_label_values(&[kind])
            .set(i64::try_from(bytes).unwrap_or(i64::MAX));
    }

    /// Writes all metrics in Prometheus' text format.
    pub(crate) fn render(&self) -> Result<String, Error> {
        TextEncoder::new().encode_to_string(&self.registry.gather())
    }
}

impl Outcome {
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Replicated => "replicated",
            Self::Duplicate => "duplicate",
            Self::Superseded => "superseded",
            Self::Skipped => "skipped",
            Self::Gone => "gone",
            Self::Parked => "parked",
        }
    }
}

impl Unproved {
    const ALL: [Self; 5] = [
        Self::NothingStated,
        Self::PartsUnknown,
        Self::CostsTooMuch,
        Self::AnswerSilent,
        Self::AnswerDiffers,
    ];

    /// Returns its label, which is also how records have it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NothingStated => "nothing_stated",
            Self::PartsUnknown => "parts_unknown",
            Self::CostsTooMuch => "costs_too_much",
            Self::AnswerSilent => "answer_silent",
            Self::AnswerDiffers => "answer_differs",
        }
    }
}

/// Registers a metric, if it could be made.
fn register<M: Collector + Clone + 'static>(
    registry: &Registry,
    metric: Result<M, Error>,
) -> Result<M, Error> {
    let metric = metric?;
    registry.register(Box::new(metric.clone()))?;
    Ok(metric)
}

/// What is counted of an event whose work queue does not take its work.
pub(crate) const NOT_ROUTED: &str = "NotRouted";

/// What is told by a counter alone, or before it parks anything.
const RECORDED: [Reason; 7] = [
    Reason::SrcVersionNotFound,
    Reason::SrcObjectNotEligible,
    Reason::ArrivedLate,
    Reason::StampTooLarge,
    Reason::StampNotBorneOut,
    Reason::AnotherDaemonWrites,
    Reason::DstObjectForeign,
];

impl MessageOutcome {
    const ALL: [Self; 9] = [
        Self::Received,
        Self::Deleted,
        Self::DeleteFailed,
        Self::Released,
        Self::LeaseLost,
        Self::Undecodable,
        Self::UnknownBucket,
        Self::Ignored,
        Self::Parked,
    ];

    fn as_str(self) -> &'static str {
        match self {
            Self::Received => "received",
            Self::Deleted => "deleted",
            Self::DeleteFailed => "delete_failed",
            Self::Released => "released",
            Self::LeaseLost => "lease_lost",
            Self::Undecodable => "undecodable",
            Self::UnknownBucket => "unknown_bucket",
            Self::Ignored => "ignored",
            Self::Parked => "parked",
        }
    }
}
