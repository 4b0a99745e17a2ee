//! What the daemon knows of each rule while it runs. Whether it is paused, by command or because it
//! is disabled: its events wait in SQS then; a pause by command is on record in the ledger and lasts
//! until the rule is resumed. Which comparison of all its keys is under way. And what it saw and did
//! since the daemon was started, and what it did not take and why: so that nothing goes missing
//! without a sign in `status`, the metrics and the log.

use std::cmp::Ordering;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use parking_lot::Mutex;
use replicator_core::failure::{Failure, Reason};
use replicator_core::object::{Key, Timestamp};
use replicator_core::retry;
use replicator_core::rule::{Mismatch, Rule};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use tracing::warn;
use utoipa::ToSchema;

use crate::clock;
use crate::ledger::Ledger;
use crate::ledger::records::RulePause;
use crate::metrics::Metrics;

/// A rule that is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct PausedRule {
    /// Since when it is, if by command: otherwise it is disabled.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub since: Option<Timestamp>,
}

/// Which rules are paused.
#[derive(Debug)]
pub(crate) struct Pauses {
    ledger: Ledger,
    state: Mutex<PauseState>,
    /// Held while a change is written.
    changing: Mutex<()>,
}

#[derive(Debug)]
struct PauseState {
    /// Those of rules that were resumed are kept, too.
    by_command: BTreeMap<String, RulePause>,
    /// Rules that are disabled, and whose events wait in their work queue.
    disabled: BTreeSet<String>,
}

impl Pauses {
    /// Reads which rules were paused when the daemon stopped.
    pub(crate) fn load(ledger: &Ledger) -> Result<Self, Failure> {
        let pauses = ledger.rule_pauses()?;
        let by_command = pauses.into_iter().map(|pause| (pause.rule.clone(), pause));
        Ok(Self {
            ledger: ledger.clone(),
            state: Mutex::new(PauseState {
                by_command: by_command.collect(),
                disabled: BTreeSet::new(),
            }),
            changing: Mutex::default(),
        })
    }

    /// Takes over which rules are disabled; says whether one no longer is.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) -> bool {
        let disabled = rules.filter(|rule| rule.is_waiting());
        let disabled = disabled.map(|rule| rule.id.clone()).collect();
        let mut state = self.state.lock();
        let before = std::mem::replace(&mut state.disabled, disabled);
        !before.is_subset(&state.disabled)
    }

    /// Pauses a rule; returns false if it was paused before.
    pub(crate) fn pause(&self, rule: &str) -> Result<bool, Failure> {
        self.change(rule, false, |now| RulePause {
            rule: rule.to_owned(),
            since: now,
            resumed: None,
        })
    }

    /// Resumes a rule that was paused by command; returns false if it was not.
    pub(crate) fn resume(&self, rule: &str) -> Result<bool, Failure> {
        let since = self.state.lock().since(rule).flatten();
        self.change(rule, true, |now| RulePause {
            rule: rule.to_owned(),
            since: since.unwrap_or(now),
            resumed: Some(now),
        })
    }

    /// Makes a change durable, then takes it over.
    fn change(
        &self,
        rule: &str,
        was_paused: bool,
        record: impl FnOnce(Timestamp) -> RulePause,
    ) -> Result<bool, Failure> {
        // Every task takes the lock of the state, and a write may take a disk's time.
        let _one_at_a_time = self.changing.lock();
        if self.state.lock().is_paused_by_command(rule) != was_paused {
            return Ok(false);
        }
        let pause = record(clock::now());
        self.ledger.put_rule_pause(&pause)?;
        self.state.lock().by_command.insert(rule.to_owned(), pause);
        Ok(true)
    }

    /// Says whether a rule does no work now.
    pub(crate) fn is_paused(&self, rule: &Rule) -> bool {
        self.state.lock().since(&rule.id).is_some()
    }

    /// Lists the paused rules.
    pub(crate) fn by_rule(&self) -> BTreeMap<String, PausedRule> {
        let state = self.state.lock();
        let names = state.by_command.keys().chain(&state.disabled);
        let paused = |name: &String| {
            let since = state.since(name)?;
            Some((name.clone(), PausedRule { since }))
        };
        names.filter_map(paused).collect()
    }
}

impl PauseState {
    fn is_paused_by_command(&self, rule: &str) -> bool {
        let pause = self.by_command.get(rule);
        pause.is_some_and(RulePause::is_in_force)
    }

    /// Returns since when a rule is paused, if it is and that is known.
    fn since(&self, rule: &str) -> Option<Option<Timestamp>> {
        let pause = self.by_command.get(rule);
        match pause.filter(|pause| pause.is_in_force()) {
            Some(pause) => Some(Some(pause.since)),
            None => self.disabled.contains(rule).then_some(None),
        }
    }
}

/// The figures of the rules in force, by their ids.
#[derive(Debug, Default)]
pub(crate) struct RuleActivity(Mutex<BTreeMap<String, ActivityFigures>>);

/// What one rule saw and did since the daemon was started.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct ActivityFigures {
    /// When an event last came whose key the rule takes.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_event: Option<Timestamp>,
    /// When a version or delete marker was last written.
    #[serde(with = "time::serde::rfc3339::option")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub last_replica: Option<Timestamp>,
    /// The last comparison of all its keys that ended here.
    #[serde(default)]
    pub last_reconcile: Option<FinishedRound>,
    /// Versions and delete markers written.
    pub replicated: u64,
    /// Versions that get no replica, by reason.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub skipped: BTreeMap<Reason, u64>,
    /// Events and versions that neither this rule nor another one took, by what they lack for this
    /// one.
    #[schema(value_type = BTreeMap<String, u64>)]
    pub unmatched: BTreeMap<Mismatch, u64>,
}

/// A comparison of all keys of a rule, and what it came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
pub struct FinishedRound {
    /// When it ended.
    #[serde(with = "time::serde::rfc3339")]
    #[schema(value_type = String, format = DateTime)]
    pub ended: Timestamp,
    /// How many keys were compared.
    pub keys: u64,
    /// How many of them missed something, and got a hint.
    pub hints: u64,
}

/// A comparison of all keys of a rule that is under way, as its messages have it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Round {
    pub(crate) rule: String,
    /// Which one it is: how many intervals the time has.
    pub(crate) number: i64,
    /// The last key that was compared.
    pub(crate) after: Option<String>,
    pub(crate) keys: u64,
    pub(crate) hints: u64,
    /// How often it failed since it came to that key.
    #[serde(default)]
    pub(crate) failures: u32,
}

/// The round of each rule that is under way, or ended last, as far as this daemon saw.
#[derive(Debug, Default)]
pub(crate) struct SeenRounds(BTreeMap<String, SeenRound>);

#[derive(Debug)]
struct SeenRound {
    number: i64,
    after: Option<String>,
    is_over: bool,
    last: Instant,
}

// A round of which no piece came for so long is under way no more, or in the hands of others: its
// pieces come every three minutes, to any of the daemons.
const SEEN_FOR: Duration = Duration::from_secs(600);

const FAILED_FIRST: Duration = Duration::from_secs(60);
const FAILED_MAX: Duration = Duration::from_secs(15 * 60);

impl Round {
    /// Begins one at the first key.
    pub(crate) fn new(rule: &str, number: i64) -> Self {
        Self {
            rule: rule.to_owned(),
            number,
            after: None,
            keys: 0,
            hints: 0,
            failures: 0,
        }
    }

    /// Returns how long it waits after its last failure, if it failed.
    pub(crate) fn backoff(&self) -> Duration {
        let doublings = self.failures.checked_sub(1);
        doublings.map_or(Duration::ZERO, |doublings| {
            let ceiling = retry::doubled(FAILED_FIRST, doublings, FAILED_MAX);
            retry::equal_jitter(ceiling, fastrand::f64())
        })
    }
}

impl SeenRounds {
    /// Takes over what a piece tells. Of two rounds under way the older one goes on, and the other is
    /// left out, so that a round may take longer than its interval.
    pub(crate) fn note(&mut self, round: &Round) {
        let replaces = |seen: &SeenRound| match round.number.cmp(&seen.number) {
            Ordering::Greater => !seen.is_alive(),
            Ordering::Less => !seen.is_over,
            Ordering::Equal => !seen.is_over && round.after >= seen.after,
        };
        if self.0.get(&round.rule).is_none_or(replaces) {
            let seen = SeenRound {
                number: round.number,
                after: round.after.clone(),
                is_over: false,
                last: Instant::now(),
            };
            self.0.insert(round.rule.clone(), seen);
        }
    }

    /// Says whether a piece is of the round under way, and was not done before.
    pub(crate) fn is_current(&self, round: &Round) -> bool {
        let is_it = |seen: &SeenRound| {
            !seen.is_over && seen.number == round.number && seen.after <= round.after
        };
        self.0.get(&round.rule).is_some_and(is_it)
    }

    /// Says whether a round of a rule is under way, or this one was, or a later one.
    pub(crate) fn is_under_way(&self, rule: &str, number: i64) -> bool {
        let seen = self.0.get(rule);
        seen.is_some_and(|seen| seen.number >= number || seen.is_alive())
    }

    /// Records that a round is through, or given up.
    pub(crate) fn end(&mut self, round: &Round) {
        if let Some(seen) = self.0.get_mut(&round.rule) {
            seen.is_over |= seen.number == round.number;
        }
    }

    /// Forgets a round whose number is greater than that of any by now.
    pub(crate) fn forget_beyond(&mut self, rule: &str, number: i64) {
        if self.0.get(rule).is_some_and(|seen| seen.number > number) {
            self.0.remove(rule);
        }
    }
}

impl SeenRound {
    fn is_alive(&self) -> bool {
        !self.is_over && self.last.elapsed() < SEEN_FOR
    }
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
            let [event, replica] = [figures.last_event, figures.last_replica].map(seconds);
            let round = figures.last_reconcile.as_ref();
            let ended = round.map(|round| round.ended.unix_timestamp());
            let hints = round.and_then(|round| i64::try_from(round.hints).ok());
            (rule.as_str(), [event, replica, ended, hints])
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

    pub(crate) fn record_reconciled(&self, round: &Round) {
        let finished = FinishedRound {
            ended: clock::now(),
            keys: round.keys,
            hints: round.hints,
        };
        self.update(&round.rule, |figures| {
            figures.last_reconcile = Some(finished);
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
    use crate::limit::quotas::tests::rules;

    #[test]
    fn a_pause_is_on_record_over_a_restart_and_so_is_its_end() {
        let directory = tempfile::tempdir().unwrap();
        let pauses = || Pauses::load(&Ledger::open(directory.path()).unwrap()).unwrap();
        assert!(pauses().pause("orders").unwrap());
        assert!(!pauses().pause("orders").unwrap());
        let [orders, invoices] = ["orders", "invoices"].map(|id| {
            let mut rules = rules(&[(id, "orders", "replicas")]);
            rules.remove(0)
        });
        assert!(pauses().is_paused(&orders) && !pauses().is_paused(&invoices));
        assert!(pauses().resume("orders").unwrap());
        assert!(!pauses().resume("orders").unwrap());
        assert!(!pauses().is_paused(&orders));
    }

    #[test]
    fn a_disabled_rule_is_paused_if_its_events_have_a_work_queue_to_wait_in() {
        let directory = tempfile::tempdir().unwrap();
        let pauses = Pauses::load(&Ledger::open(directory.path()).unwrap()).unwrap();
        let [mut waits, mut drops, works] = ["waits", "drops", "works"].map(|id| {
            let mut rules = rules(&[(id, "orders", "replicas")]);
            rules.remove(0)
        });
        (waits.enabled, drops.enabled) = (false, false);
        waits.work_queue = Some("work.fifo".to_owned());
        let all = [waits, drops, works];
        assert!(!pauses.replace(all.iter()));
        assert_eq!(
            all.each_ref().map(|rule| pauses.is_paused(rule)),
            [true, false, false]
        );
        let listed = pauses.by_rule();
        assert_eq!(
            listed.into_iter().collect::<Vec<_>>(),
            [("waits".to_owned(), PausedRule { since: None })]
        );
        assert!(pauses.replace([].iter()), "one is disabled no longer");
        assert_eq!(pauses.by_rule().len(), 0);
    }

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

    fn round(number: i64, after: &str) -> Round {
        let after = (!after.is_empty()).then(|| after.to_owned());
        Round {
            after,
            ..Round::new("orders", number)
        }
    }

    #[tokio::test(start_paused = true)]
    async fn of_two_rounds_the_older_goes_on_until_it_ends_or_is_seen_no_more() {
        let mut seen = SeenRounds::default();
        let is_taken = |seen: &mut SeenRounds, number, after| {
            seen.note(&round(number, after));
            seen.is_current(&round(number, after))
        };
        assert!(is_taken(&mut seen, 2, "b"));
        assert!(!is_taken(&mut seen, 3, ""), "one is under way");
        assert!(!is_taken(&mut seen, 2, "a"), "it was done before");
        assert!(is_taken(&mut seen, 2, "b") && is_taken(&mut seen, 2, "c"));
        assert!(is_taken(&mut seen, 1, ""), "the older one");
        assert!(!is_taken(&mut seen, 2, "d"));
        tokio::time::advance(SEEN_FOR).await;
        assert!(is_taken(&mut seen, 3, ""), "no other was seen for long");
        assert!(is_taken(&mut seen, 1, "a"), "it is there after all");
        seen.end(&round(1, "b"));
        assert!(!is_taken(&mut seen, 1, "b") && !is_taken(&mut seen, 0, ""));
        assert!(seen.is_under_way("orders", 1) && !seen.is_under_way("orders", 2));
        assert!(is_taken(&mut seen, 4, ""));
        seen.forget_beyond("orders", 3);
        assert!(is_taken(&mut seen, 2, ""), "of a longer interval");
    }

    #[test]
    fn each_failure_of_a_round_doubles_its_wait() {
        let backoff = |failures| {
            let round = Round {
                failures,
                ..round(1, "a")
            };
            round.backoff()
        };
        assert_eq!(backoff(0), Duration::ZERO);
        for (failures, ceiling) in [(1, 60), (2, 120), (4, 480), (5, 900), (u32::MAX, 900)] {
            let seconds = backoff(failures).as_secs();
            assert!(
                (ceiling / 2..=ceiling).contains(&seconds),
                "{failures}: {seconds}"
            );
        }
    }

    #[test]
    fn a_round_that_counts_no_failures_is_read() {
        let body = r#"{"rule":"orders","number":1,"after":"a","keys":0,"hints":0}"#;
        assert_eq!(serde_json::from_str::<Round>(body).unwrap(), round(1, "a"));
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
