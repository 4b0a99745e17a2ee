//! What Prometheus scrapes: one method per thing that happens, and gauges that are derived from
//! state at scrape, never counted up and down.

use std::collections::BTreeMap;

use prometheus::{
    Error, GaugeVec, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec,
    Opts, Registry, TextEncoder,
};
use replicator_core::failure::Reason;
use replicator_core::rule::Mismatch;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Declares an enum whose variants are the values of a label.
macro_rules! labels {
    ($(#[$meta:meta])* $visibility:vis enum $name:ident {
        $($(#[$doc:meta])* $variant:ident = $label:literal,)*
    }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        $visibility enum $name {
            $($(#[$doc])* $variant,)*
        }

        impl $name {
            #[allow(dead_code, reason = "not every label is listed")]
            pub(crate) const ALL: &[Self] = &[$(Self::$variant),*];

            /// Returns the label as metrics, and records, have it.
            $visibility fn as_str(self) -> &'static str {
                match self {
                    $(Self::$variant => $label,)*
                }
            }
        }
    };
}

labels! {
    /// What was done, or would have been.
    pub(crate) enum Outcome {
        Replicated = "replicated",
        Duplicate = "duplicate",
        Superseded = "superseded",
        Skipped = "skipped",
        Gone = "gone",
        Parked = "parked",
    }
}

labels! {
    /// What became of a message.
    pub(crate) enum MessageOutcome {
        Received = "received",
        Deleted = "deleted",
        DeleteFailed = "delete_failed",
        Released = "released",
        LeaseLost = "lease_lost",
        Undecodable = "undecodable",
        UnknownBucket = "unknown_bucket",
        Ignored = "ignored",
        Parked = "parked",
    }
}

labels! {
    /// Why nothing proves that a replica holds the source's bytes.
    #[derive(Serialize, Deserialize, ToSchema)]
    #[serde(rename_all = "snake_case")]
    pub enum Unproved {
        /// The source states no checksum that is known here, and its ETag is no MD5.
        NothingStated = "nothing_stated",
        /// What the source states is of its parts, and where those end is not known.
        PartsUnknown = "parts_unknown",
        /// The proof would cost a second read, or much processor time: `verify = "always"` pays
        /// that.
        CostsTooMuch = "costs_too_much",
        /// The destination's answer says nothing that can be compared.
        AnswerSilent = "answer_silent",
        /// The destination's answer has an ETag that is not the MD5 of what was sent.
        AnswerDiffers = "answer_differs",
    }
}

labels! {
    /// What went wrong with the ledger.
    pub(crate) enum LedgerTrouble {
        /// A record could not be written, or not be made durable.
        Write = "write",
        /// A record could not be read.
        Read = "read",
        /// What was read is not what was written.
        Damage = "damage",
    }
}

/// How many replicas of a rule were written without a proof, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct UnprovedCount {
    /// The rule.
    pub rule: String,
    /// Why.
    pub cause: Unproved,
    /// How many since the daemon was started.
    pub replicas: u64,
}

/// What one rule has in flight.
#[derive(Debug, Clone, Default, Serialize, Deserialize, ToSchema)]
pub struct PendingFigures {
    /// Operations received and not yet settled.
    pub operations: i64,
    /// Bytes of their objects.
    pub bytes: i64,
    /// The age of the oldest event.
    pub oldest_seconds: f64,
    /// The age of the oldest event that is known of, handed back and parked ones included.
    #[serde(default)]
    pub oldest_known_seconds: f64,
}

/// Declares all metrics, and registers them in one registry.
macro_rules! metrics {
    ($($field:ident: $type:ty = $metric:expr;)*) => {
        /// Every metric of the daemon.
        #[derive(Debug, Clone)]
        pub(crate) struct Metrics {
            registry: Registry,
            $($field: $type,)*
        }

        impl Metrics {
            /// Registers every metric.
            pub(crate) fn new() -> Result<Self, Error> {
                let registry = Registry::new_custom(Some("s3_replicator".to_owned()), None)?;
                $(
                    let $field: $type = $metric?;
                    registry.register(Box::new($field.clone()))?;
                )*
                Ok(Self { registry, $($field,)* })
            }
        }
    };
}

metrics! {
    operations: IntCounterVec = counter("operations_total",
        "Operations by what became of them.", &["rule", "destination", "operation", "outcome"]);
    bytes: IntCounterVec = counter("bytes_total",
        "Bytes of object bodies replicated.", &["rule"]);
    latency: HistogramVec = histogram(HistogramOpts::new("replication_latency_seconds",
        "Seconds from the event's time to the replica being durable at the destination."),
        &["rule", "operation"]);
    operations_pending: IntGaugeVec = gauge("operations_pending",
        "Operations received and not yet settled.", &["rule"]);
    bytes_pending: IntGaugeVec = gauge("bytes_pending",
        "Bytes of object bodies not yet replicated.", &["rule"]);
    oldest_pending: GaugeVec = GaugeVec::new(Opts::new("oldest_pending_seconds",
        "Age in seconds of the oldest event not yet settled."), &["rule"]);
    failures: IntCounterVec = counter("failures_total",
        "Refusals, losses and failed attempts, by reason.", &["rule", "reason"]);
    parked: IntGaugeVec = gauge("parked",
        "Parked tasks by reason; they are retried on a schedule.", &["rule", "reason"]);
    requests: IntCounterVec = counter("requests_total",
        "Requests sent, by the status of the answer; 0 when none came.",
        &["service", "operation", "account", "status"]);
    check_findings: IntGaugeVec = gauge("check_findings",
        "What the last look at the set-up found.", &["rule", "check", "severity"]);
    memory: IntGaugeVec = gauge("memory_bytes",
        "Memory of object bodies: budget and use.", &["kind"]);
    ledger_up: IntGauge = IntGauge::new("ledger_up",
        "1 while the ledger takes records and none of it is damaged.");
    ledger_failures: IntCounterVec = counter("ledger_failures_total",
        "Reads and writes of the ledger that failed.", &["kind"]);
    messages: IntCounterVec = counter("queue_messages_total",
        "Messages by what became of them.", &["queue", "outcome"]);
    task_panics: IntCounter = IntCounter::new("task_panics_total",
        "Tasks that a bug in the daemon ended.");
    unproved: IntCounterVec = counter("unproved_total",
        "Replicas written without a proof that they hold the source's bytes, by cause.",
        &["rule", "cause"]);
    unmatched: IntCounterVec = counter("unmatched_total",
        "Events and versions that no rule took, by what they lack for this one.",
        &["rule", "cause"]);
    build_info: IntGaugeVec = gauge("build_info",
        "1; the label says which version runs.", &["version"]);
    queue_up: IntGaugeVec = gauge("queue_up",
        "1 while the queue answered its last poll.", &["queue"]);
    queue_yielding: IntGaugeVec = gauge("queue_yielding_seconds",
        "How long a backfill queue is not received from because its work queue has messages.",
        &["queue"]);
    reloaded: IntGauge = IntGauge::new("last_reload_successful",
        "1 if the rules were taken over at the last reload, or at the start.");
    reloaded_at: IntGauge = IntGauge::new("last_reload_success_timestamp_seconds",
        "When rules were last taken over, in Unix time.");
    oldest_known: GaugeVec = GaugeVec::new(Opts::new("oldest_known_seconds",
        "Age in seconds of the oldest event that is not settled, handed back or parked ones \
         included."), &["rule"]);
    rule_paused: IntGaugeVec = gauge("rule_paused",
        "1 while the rule is paused, by command or because it is disabled.", &["rule"]);
    last_event: IntGaugeVec = gauge("last_event_timestamp_seconds",
        "When an event last came whose key the rule takes, in Unix time.", &["rule"]);
    last_replica: IntGaugeVec = gauge("last_replica_timestamp_seconds",
        "When a version or delete marker was last written, in Unix time.", &["rule"]);
    last_reconcile: IntGaugeVec = gauge("last_reconcile_timestamp_seconds",
        "When a comparison of all keys of the rule ended in this daemon, in Unix time.", &["rule"]);
    last_reconcile_hints: IntGaugeVec = gauge("last_reconcile_hints",
        "Keys that missed something in that comparison.", &["rule"]);
}

fn counter(name: &str, help: &str, labels: &[&str]) -> Result<IntCounterVec, Error> {
    IntCounterVec::new(Opts::new(name, help), labels)
}

fn gauge(name: &str, help: &str, labels: &[&str]) -> Result<IntGaugeVec, Error> {
    IntGaugeVec::new(Opts::new(name, help), labels)
}

fn histogram(opts: HistogramOpts, labels: &[&str]) -> Result<HistogramVec, Error> {
    HistogramVec::new(opts.buckets(LATENCY_BUCKETS_SECONDS.to_vec()), labels)
}

// From a tenth of a second to native replication's threshold of 15 minutes and beyond.
const LATENCY_BUCKETS_SECONDS: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0, 3600.0, 14400.0,
];

impl Metrics {
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
        self.build_info
            .with_label_values(&[env!("CARGO_PKG_VERSION")])
            .set(1);
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
        let of_rule = |rule| Unproved::ALL.iter().map(move |cause| count(rule, *cause));
        let counts = rules.flat_map(of_rule);
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
    pub(crate) fn set_pending(&self, rules: BTreeMap<String, PendingFigures>) {
        self.operations_pending.reset();
        self.bytes_pending.reset();
        self.oldest_pending.reset();
        self.oldest_known.reset();
        for (rule, pending) in rules {
            let rule = [rule];
            self.operations_pending
                .with_label_values(&rule)
                .set(pending.operations);
            self.bytes_pending
                .with_label_values(&rule)
                .set(pending.bytes);
            self.oldest_pending
                .with_label_values(&rule)
                .set(pending.oldest_seconds);
            self.oldest_known
                .with_label_values(&rule)
                .set(pending.oldest_known_seconds);
        }
    }

    /// Replaces the figures of what is parked.
    pub(crate) fn set_parked<T>(&self, counts: BTreeMap<(String, Reason), (i64, T)>) {
        self.parked.reset();
        for ((rule, reason), (count, _)) in counts {
            self.parked
                .with_label_values(&[rule.as_str(), reason.as_str()])
                .set(count);
        }
    }

    /// Replaces what was found of the set-up: rule, check and severity of each finding.
    pub(crate) fn set_findings<'a>(&self, found: impl Iterator<Item = [&'a str; 3]>) {
        self.check_findings.reset();
        for labels in found {
            self.check_findings.with_label_values(&labels).inc();
        }
    }

    /// Replaces which rules are paused.
    pub(crate) fn set_paused<'a, T>(
        &self,
        rules: impl Iterator<Item = &'a String>,
        paused: &BTreeMap<String, T>,
    ) {
        self.rule_paused.reset();
        for rule in rules {
            let gauge = self.rule_paused.with_label_values(&[rule]);
            gauge.set(i64::from(paused.contains_key(rule)));
        }
    }

    /// Records whether rules were taken over, and when.
    pub(crate) fn reloaded(&self, taken_over: Option<i64>) {
        self.reloaded.set(i64::from(taken_over.is_some()));
        if let Some(seconds) = taken_over {
            self.reloaded_at.set(seconds);
        }
    }

    /// Takes over whether a queue answers, and for how long it has made way for its work queue.
    pub(crate) fn set_queue(&self, queue: &str, is_up: bool, yielding: time::Duration) {
        let gauge = |of: &IntGaugeVec, value| of.with_label_values(&[queue]).set(value);
        gauge(&self.queue_up, i64::from(is_up));
        gauge(&self.queue_yielding, yielding.whole_seconds());
    }

    /// Replaces the times of the last event and replica of every rule; what never happened has no
    /// series.
    pub(crate) fn set_last<'a>(&self, rules: impl Iterator<Item = (&'a str, [Option<i64>; 4])>) {
        let gauges = [
            &self.last_event,
            &self.last_replica,
            &self.last_reconcile,
            &self.last_reconcile_hints,
        ];
        gauges.iter().for_each(|gauge| gauge.reset());
        for (rule, values) in rules {
            let known = gauges.iter().zip(values);
            known
                .filter_map(|(gauge, value)| Some((gauge, value?)))
                .for_each(|(gauge, value)| gauge.with_label_values(&[rule]).set(value));
        }
    }

    /// Takes over how much of a rule's events was not taken for one cause since the start.
    pub(crate) fn set_unmatched(&self, rule: &str, cause: Mismatch, seen: u64) {
        let counter = self.unmatched.with_label_values(&[rule, cause.as_str()]);
        counter.inc_by(seen.saturating_sub(counter.get()));
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

/// What is counted of an event whose work queue does not take its work.
pub(crate) const NOT_ROUTED: &str = "NotRouted";

/// What is counted without being parked, or before it parks anything.
const RECORDED: [Reason; 8] = [
    Reason::SrcBucketUnversioned,
    Reason::SrcVersionNotFound,
    Reason::SrcObjectNotEligible,
    Reason::ArrivedLate,
    Reason::StampTooLarge,
    Reason::StampNotBorneOut,
    Reason::AnotherDaemonWrites,
    Reason::DstObjectForeign,
];
