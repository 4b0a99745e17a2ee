//! The rules in force, and what a hint means under them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use replicator_core::event::{Action, Hint};
use replicator_core::failure::Reason;
use replicator_core::object::{Bucket, Key};
use replicator_core::rule::{Place, Rule, contests};

use crate::ledger::records::{Lane, ParkedTask, Upload, Whose};
use crate::task::{Rules, Task, Wish};

/// The rules of a configuration; disabled ones too, so that their buckets are known.
#[derive(Debug, Clone, Default)]
pub(crate) struct Ruleset {
    rules: Vec<Rule>,
    shared: BTreeMap<String, Arc<Rule>>,
}

impl Ruleset {
    pub(crate) fn new(rules: &[Rule]) -> Self {
        let shared = rules.iter().map(|rule| (rule.id.clone(), Arc::new(rule.clone()))).collect();
        Self { rules: rules.to_vec(), shared }
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Rule> {
        self.rules.iter()
    }

    /// Says why a hint cannot be acted on, if it cannot: no rule has its bucket, or a rule would
    /// give its replica a key that S3 cannot hold.
    pub(crate) fn refusal(&self, hint: &Hint) -> Option<(Reason, String)> {
        if !self.rules.iter().any(|rule| rule.source.bucket == hint.bucket) {
            return Some((Reason::BucketUnknown, format!("no rule has the source bucket {}", hint.bucket)));
        }
        let candidates =
            contests(&self.rules, &hint.bucket, &hint.key).into_iter().flat_map(|contest| contest.candidates);
        let impossible = |rule: &Rule| rule.destination_key(&hint.key).err();
        let (rule, error) = candidates.into_iter().find_map(|rule| Some((rule, impossible(rule)?)))?;
        Some((Reason::DstKeyTooLong, format!("rule {:?} would write to an impossible key: {error}", rule.id)))
    }

    /// Finds the tasks of a hint: one for each key it may have at each destination.
    pub(crate) fn tasks(&self, hint: &Hint) -> Vec<Task> {
        let wish = Wish {
            action: hint.action,
            version: hint.version.clone(),
            sequencer: hint.sequencer.clone(),
            time: hint.time,
            size_bytes: hint.size_bytes.unwrap_or(0),
            parked: None,
        };
        self.lanes(&hint.bucket, &hint.key)
            .into_iter()
            .map(|(lane, source, rules)| Task {
                lane,
                source,
                source_key: hint.key.clone(),
                rules,
                wishes: vec![wish.clone()],
                redelivered: false,
                receive_count: 0,
                takes_over: None,
            })
            .collect()
    }

    /// Makes a parked task anew under the rules of today; `None` when no rule takes it any more.
    pub(crate) fn revive(&self, parked: &ParkedTask) -> Option<Task> {
        let ParkedTask { lane, source, source_key, action, version, .. } = parked;
        let wish = Wish {
            action: *action,
            version: version.clone(),
            sequencer: None,
            time: None,
            size_bytes: 0,
            parked: None,
        };
        self.task_again((lane, source, source_key), wish)
    }

    /// Makes the task that ends an upload, by completing it or not; `None` when no rule takes its
    /// key any more.
    pub(crate) fn resume(&self, upload: &Upload) -> Option<Task> {
        let Whose { lane, source, source_key, size_bytes } = upload.whose.as_ref()?;
        // As the message told of it that may come again.
        let version = &upload.source;
        let wish = Wish {
            action: Action::Put,
            version: Some(version.id.clone()),
            sequencer: None,
            time: Some(version.last_modified),
            size_bytes: *size_bytes,
            parked: None,
        };
        self.task_again((lane, source, source_key), wish)
    }

    fn task_again(&self, (lane, source, key): (&Lane, &Place, &Key), wish: Wish) -> Option<Task> {
        let lanes = self.lanes(&source.bucket, key);
        let (lane, source, rules) = lanes.into_iter().find(|(known, ..)| known == lane)?;
        // It may have begun before: the ledger alone may not answer it.
        Some(Task {
            lane,
            source,
            source_key: key.clone(),
            rules,
            wishes: vec![wish],
            redelivered: true,
            receive_count: 0,
            takes_over: None,
        })
    }

    /// Finds the lanes a key may take. All rules of a contest come along with each of them: one
    /// that sends a version to another key takes it from this lane.
    fn lanes(&self, bucket: &Bucket, key: &Key) -> Vec<(Lane, Place, Rules)> {
        let mut lanes = Vec::new();
        for contest in contests(&self.rules, bucket, key) {
            let mut candidates = contest.candidates.iter().filter_map(|rule| self.shared.get(&rule.id)).cloned();
            let Some(lead) = candidates.next() else { continue };
            let rules = Rules { lead, others: candidates.collect() };
            for key in destination_keys(&rules, key) {
                let lane = Lane { destination: contest.destination.clone(), key };
                lanes.push((lane, rules.lead.source.clone(), rules.clone()));
            }
        }
        lanes
    }
}

/// Lists the keys that replicas may get; one that is impossible was refused before.
fn destination_keys(rules: &Rules, key: &Key) -> BTreeSet<Key> {
    rules.iter().filter_map(|rule| rule.destination_key(key).ok()).collect()
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    pub(crate) use crate::turns::tests::rules;

    #[test]
    fn a_bucket_that_no_rule_has_is_refused_by_name() {
        let ruleset = Ruleset::new(&rules(&[("orders", "orders", "replicas")]));
        let hint = |bucket: &str| Hint {
            bucket: Bucket::try_from(bucket).unwrap(),
            key: Key::try_from("report").unwrap(),
            version: None,
            action: replicator_core::event::Action::Put,
            sequencer: None,
            time: None,
            size_bytes: None,
        };
        assert_eq!(ruleset.refusal(&hint("orders")), None);
        assert!(matches!(ruleset.refusal(&hint("others")), Some((Reason::BucketUnknown, _))));
    }
}
