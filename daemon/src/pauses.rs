//! Rules that are paused, by command or because they are disabled: their events wait in SQS. A
//! pause by command is on record in the ledger and lasts until the rule is resumed.

use std::collections::{BTreeMap, BTreeSet};

use parking_lot::Mutex;
use replicator_core::failure::Failure;
use replicator_core::object::Timestamp;
use replicator_core::rule::Rule;
use serde::{Deserialize, Serialize};

use crate::clock;
use crate::ledger::Ledger;
use crate::ledger::records::RulePause;

/// A rule that is paused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PausedRule {
    /// Since when it is, if by command: otherwise it is disabled.
    #[serde(with = "time::serde::rfc3339::option")]
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

// What SQS keeps at the longest, and so what may have been received while a rule was paused:
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
const RETENTION_MAX: time::Duration = time::Duration::days(14);

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

    /// Takes over which rules are disabled.
    pub(crate) fn replace<'a>(&self, rules: impl Iterator<Item = &'a Rule>) {
        let disabled = rules.filter(|rule| rule.is_waiting());
        self.state.lock().disabled = disabled.map(|rule| rule.id.clone()).collect();
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

    /// Says whether messages of a rule may have been received often because it was paused.
    pub(crate) fn was_paused(&self, rule: &Rule) -> bool {
        let state = self.state.lock();
        state.by_command.get(&rule.id).is_some_and(|pause| {
            let resumed = pause.resumed.unwrap_or_else(clock::now);
            clock::now() - resumed < RETENTION_MAX
        })
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
        pause.is_some_and(|pause| pause.resumed.is_none())
    }

    /// Returns since when a rule is paused, if it is and that is known.
    fn since(&self, rule: &str) -> Option<Option<Timestamp>> {
        let pause = self.by_command.get(rule);
        match pause.filter(|pause| pause.resumed.is_none()) {
            Some(pause) => Some(Some(pause.since)),
            None => self.disabled.contains(rule).then_some(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limit::rates::tests::rules;

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
        assert!(pauses().is_paused(&orders) && pauses().was_paused(&orders));
        assert!(!pauses().is_paused(&invoices) && !pauses().was_paused(&invoices));
        assert!(pauses().resume("orders").unwrap());
        assert!(!pauses().resume("orders").unwrap());
        assert!(!pauses().is_paused(&orders) && pauses().was_paused(&orders));
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
        pauses.replace(all.iter());
        assert_eq!(
            all.each_ref().map(|rule| pauses.is_paused(rule)),
            [true, false, false]
        );
        let listed = pauses.by_rule();
        assert_eq!(
            listed.into_iter().collect::<Vec<_>>(),
            [("waits".to_owned(), PausedRule { since: None })]
        );
        pauses.replace([].iter());
        assert_eq!(pauses.by_rule().len(), 0);
    }
}
