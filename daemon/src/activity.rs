//! What each rule saw and did since the daemon was started, and what it did not take and why: so
//! that nothing goes missing without a sign in `status`, the metrics and the log.

use std::collections::BTreeMap;

use parking_lot::Mutex;
use replicator_core::failure::Reason;
use replicator_core::object::{Key, Timestamp};
use replicator_core::rule::{Mismatch, Rule};
use serde::{Deserialize, Serialize};
use tracing::warn;

use crate::clock;
use crate::metrics::Metrics;

/// The figures of the rules in force, by their ids.
#[derive(Debug, Default)]
pub(crate) struct RuleActivity(Mutex<BTreeMap<String, ActivityFigures>>);

/// What one rule saw and did since the daemon was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ActivityFigures {
    /// When an event last came whose key the rule takes.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_event: Option<Timestamp>,
    /// When a version or delete marker was last written.
    #[serde(with = "time::serde::rfc3339::option")]
    pub last_replica: Option<Timestamp>,
    /// Versions and delete markers written.
    pub replicated: u64,
    /// Versions that get no replica, by reason.
    pub skipped: BTreeMap<Reason, u64>,
    /// Events and versions that neither this rule nor another one took, by what they lack for this
    /// one.
    pub unmatched: BTreeMap<Mismatch, u64>,
}

impl RuleActivity {
    /// Takes over which rules there are. Those that stay keep their figures.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        let mut figures = self.0.lock();
        let mut before = std::mem::take(&mut *figures);
        *figures = rules
            .map(|rule| (rule.id.clone(), before.remove(&rule.id).unwrap_or_default()))
            .collect();
    }

    /// Returns the figures of every rule.
    pub(crate) fn figures(&self) -> BTreeMap<String, ActivityFigures> {
        self.0.lock().clone()
    }

    /// Brings the metrics up to date.
    pub(crate) fn export(&self, metrics: &Metrics) {
        let figures = self.0.lock();
        let seconds = |time: Option<Timestamp>| time.map(Timestamp::unix_timestamp);
        metrics.set_last(figures.iter().map(|(rule, figures)| {
            let times = [figures.last_event, figures.last_replica].map(seconds);
            (rule.as_str(), times)
        }));
        for (rule, figures) in figures.iter() {
            for cause in Mismatch::ALL {
                let seen = figures.unmatched.get(cause).copied().unwrap_or_default();
                metrics.set_unmatched(rule, *cause, seen);
            }
        }
    }

    pub(crate) fn record_event(&self, rule: &str) {
        self.update(rule, |figures| figures.last_event = Some(clock::now()));
    }

    pub(crate) fn record_replica(&self, rule: &str) {
        self.update(rule, |figures| {
            figures.last_replica = Some(clock::now());
            figures.replicated += 1;
        });
    }

    pub(crate) fn record_skipped(&self, rule: &str, reason: Reason) {
        self.update(rule, |figures| {
            *figures.skipped.entry(reason).or_default() += 1;
        });
    }

    /// Counts what no rule took. The first of each cause is logged, because a mistake in a rule
    /// refuses thousands.
    pub(crate) fn record_unmatched(&self, rule: &str, cause: Mismatch, key: &Key) {
        let seen = self.update(rule, |figures| {
            let seen = figures.unmatched.entry(cause).or_default();
            *seen += 1;
            *seen
        });
        if seen == Some(1) {
            let (key, cause) = (key.as_str(), cause.as_str());
            warn!(
                rule,
                cause, key, "not replicated, no rule takes it; more of this cause are only counted"
            );
        }
    }

    /// Changes the figures of a rule, unless a reload has removed it.
    fn update<T>(&self, rule: &str, change: impl FnOnce(&mut ActivityFigures) -> T) -> Option<T> {
        self.0.lock().get_mut(rule).map(change)
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::sync::Arc;

    use super::*;
    use crate::limit::rates::tests::rules;

    /// What was logged.
    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().extend(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn the_first_key_of_each_rule_and_cause_is_logged_and_the_others_are_counted() {
        let (activity, lines) = (RuleActivity::default(), Lines::default());
        let both = rules(&[
            ("orders", "orders", "replicas"),
            ("logs", "orders", "mirror"),
        ]);
        activity.replace(both.iter());
        let writer = lines.clone();
        let log = tracing_subscriber::fmt().with_writer(move || writer.clone());
        tracing::subscriber::with_default(log.with_ansi(false).finish(), || {
            for n in 0..3 {
                let key = Key::try_from(format!("key-{n}")).unwrap();
                activity.record_unmatched("orders", Mismatch::Prefix, &key);
                activity.record_unmatched("orders", Mismatch::Size, &key);
                activity.record_unmatched("logs", Mismatch::Prefix, &key);
                activity.record_unmatched("removed", Mismatch::Prefix, &key);
            }
        });
        let logged = String::from_utf8(lines.0.lock().clone()).unwrap();
        assert_eq!(logged.matches("key=\"key-0\"").count(), 3, "{logged}");
        assert_eq!(logged.lines().count(), 3, "{logged}");
        let figures = activity.figures();
        let counts = |rule: &str| figures[rule].unmatched.clone();
        assert_eq!(counts("logs"), BTreeMap::from([(Mismatch::Prefix, 3)]));
        assert_eq!(counts("orders").len(), 2);
        assert_eq!(
            figures.len(),
            2,
            "there is no more memory than there are rules"
        );
    }

    #[test]
    fn figures_outlast_a_reload_and_are_read_back_from_json() {
        let activity = RuleActivity::default();
        let both = rules(&[
            ("orders", "orders", "replicas"),
            ("logs", "orders", "mirror"),
        ]);
        activity.replace(both.iter());
        activity.record_event("orders");
        activity.record_replica("orders");
        activity.record_skipped("orders", Reason::ArrivedLate);
        activity.replace(both[..1].iter());
        let figures = activity.figures();
        assert_eq!(figures.len(), 1);
        assert_eq!(figures["orders"].replicated, 1);
        let json = serde_json::to_string(&figures).unwrap();
        assert_eq!(
            serde_json::from_str::<BTreeMap<String, ActivityFigures>>(&json).unwrap(),
            figures
        );
    }
}
