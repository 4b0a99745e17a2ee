//! The rules in force, and what an event means under them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use replicator_core::event::Event;
use replicator_core::failure::Reason;
use replicator_core::object::{Bucket, Key};
use replicator_core::rule::{BucketRef, Rule, match_rules};

use crate::ledger::records::{ParkedTask, TargetKey};
use crate::task::{PendingEvent, Rules, Task};

/// The rules of a configuration; disabled ones too, so that their buckets are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ruleset {
    rules: Vec<Rule>,
    shared: BTreeMap<String, Arc<Rule>>,
}

impl Ruleset {
    pub(crate) fn new(rules: &[Rule]) -> Self {
        let shared = rules
            .iter()
            .map(|rule| (rule.id.clone(), Arc::new(rule.clone())))
            .collect();
        Self {
            rules: rules.to_vec(),
            shared,
        }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// Says why an event cannot be acted on, if it cannot: no rule has its bucket, or a rule would
    /// give its replica a key that S3 cannot hold.
    pub(crate) fn refusal(&self, event: &Event) -> Option<(Reason, String)> {
        if !self
            .rules
            .iter()
            .any(|rule| rule.source.bucket == event.bucket)
        {
            return Some((
                Reason::BucketUnknown,
                format!("no rule has the source bucket {}", event.bucket),
            ));
        }
        let candidates = match_rules(&self.rules, &event.bucket, &event.key)
            .into_iter()
            .flat_map(|contest| contest.candidates);
        let impossible = |rule: &Rule| rule.destination_key(&event.key).err();
        let (rule, error) = candidates
            .into_iter()
            .find_map(|rule| Some((rule, impossible(rule)?)))?;
        Some((
            Reason::DstKeyTooLong,
            format!(
                "rule {:?} would write to an impossible key: {error}",
                rule.id
            ),
        ))
    }

    /// Finds the tasks of an event: one for each key it may have at each destination.
    pub(crate) fn tasks_for(&self, event: &Event) -> Vec<Task> {
        let pending = PendingEvent {
            action: event.action,
            version: event.version.clone(),
            sequencer: event.sequencer.clone(),
            time: event.time,
            size_bytes: event.size_bytes.unwrap_or(0),
            parked: None,
        };
        self.targets(&event.bucket, &event.key)
            .into_iter()
            .map(|(target, source, rules)| Task {
                target,
                source,
                source_key: event.key.clone(),
                rules,
                events: vec![pending.clone()],
                redelivered: false,
                receive_count: 0,
                takes_over: None,
            })
            .collect()
    }

    /// Makes a parked task anew under the rules of today; `None` when no rule takes it any more.
    pub(crate) fn revive(&self, parked: &ParkedTask) -> Option<Task> {
        let ParkedTask {
            target,
            source,
            source_key,
            action,
            version,
            ..
        } = parked;
        let pending = PendingEvent {
            action: *action,
            version: version.clone(),
            sequencer: None,
            time: None,
            size_bytes: 0,
            parked: None,
        };
        self.task_again((target, source, source_key), pending)
    }

    fn task_again(
        &self,
        (target, source, key): (&TargetKey, &BucketRef, &Key),
        pending: PendingEvent,
    ) -> Option<Task> {
        let targets = self.targets(&source.bucket, key);
        let (target, source, rules) = targets.into_iter().find(|(known, ..)| known == target)?;
        // It may have begun before: the ledger alone may not answer it.
        Some(Task {
            target,
            source,
            source_key: key.clone(),
            rules,
            events: vec![pending],
            redelivered: true,
            receive_count: 0,
            takes_over: None,
        })
    }

    /// Finds the keys a key may take. All rules of a contest come along with each of them: one
    /// that sends a version to another key takes it from this key.
    fn targets(&self, bucket: &Bucket, key: &Key) -> Vec<(TargetKey, BucketRef, Rules)> {
        let mut targets = Vec::new();
        for contest in match_rules(&self.rules, bucket, key) {
            let mut candidates = contest
                .candidates
                .iter()
                .filter_map(|rule| self.shared.get(&rule.id))
                .cloned();
            let Some(lead) = candidates.next() else {
                continue;
            };
            let rules = Rules {
                primary: lead,
                fallbacks: candidates.collect(),
            };
            for key in destination_keys(&rules, key) {
                let target = TargetKey {
                    destination: contest.destination.clone(),
                    key,
                };
                targets.push((target, rules.primary.source.clone(), rules.clone()));
            }
        }
        targets
    }
}

/// Lists the keys that replicas may get; one that is impossible was refused before.
fn destination_keys(rules: &Rules, key: &Key) -> BTreeSet<Key> {
    rules
        .iter()
        .filter_map(|rule| rule.destination_key(key).ok())
        .collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    pub(crate) use crate::fair_queue::tests::rules;

    #[test]
    fn a_bucket_that_no_rule_has_is_refused_by_name() {
        let ruleset = Ruleset::new(&rules(&[("orders", "orders", "replicas")]));
        let event = |bucket: &str| Event {
            bucket: Bucket::try_from(bucket).unwrap(),
            key: Key::try_from("report").unwrap(),
            version: None,
            action: replicator_core::event::EventKind::Put,
            sequencer: None,
            time: None,
            size_bytes: None,
        };
        assert_eq!(ruleset.refusal(&event("orders")), None);
        assert!(matches!(
            ruleset.refusal(&event("others")),
            Some((Reason::BucketUnknown, _))
        ));
    }
}
