//! The unit of work: bring one key at one destination up to date, because some messages said that
//! something happened to it; and the rules in force, which make tasks of events.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use replicator_core::event::{Event, EventKind, Sequencer};
use replicator_core::failure::Reason;
use replicator_core::object::{Bucket, Key, Timestamp, VersionId};
use replicator_core::plan::LateVersions;
use replicator_core::rule::{BucketRef, Mismatch, Rule, match_rules};

use crate::clock::BootInstant;
use crate::ledger::records::{ParkedTask, TargetKey};
use crate::limit::quotas::Flow;
use crate::metrics::Outcome;
use crate::sqs::work_queues::ParkedBefore;

/// What a message says about a key, without saying which.
#[derive(Debug, Clone)]
pub(crate) struct PendingEvent {
    pub(crate) action: EventKind,
    pub(crate) version: Option<VersionId>,
    pub(crate) sequencer: Option<Sequencer>,
    pub(crate) time: Option<Timestamp>,
    pub(crate) size_bytes: u64,
    /// What is known of it, if it was parked and is tried again by a message.
    pub(crate) parked: Option<ParkedBefore>,
}

/// A key at a destination, the rules that compete for it, and what was said about it.
#[derive(Debug, Clone)]
pub(crate) struct Task {
    pub(crate) target: TargetKey,
    pub(crate) source: BucketRef,
    pub(crate) source_key: Key,
    /// Highest priority first; never empty.
    pub(crate) rules: Rules,
    pub(crate) events: Vec<PendingEvent>,
    /// One of the messages was delivered before, so the ledger alone may not answer it.
    pub(crate) redelivered: bool,
    /// How often the message was delivered that was delivered most often.
    pub(crate) receive_count: u32,
    /// Since when no other worker is at the key, if one may have been: what it sent may be on its
    /// way.
    pub(crate) takes_over: Option<BootInstant>,
}

/// What replicas are of.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Original<'a> {
    pub(crate) bucket: &'a Bucket,
    pub(crate) key: &'a Key,
    /// Whether a rule has the data keys of client-side encryption wrapped anew.
    pub(crate) wraps_keys: bool,
}

impl Task {
    /// Names what its replicas are of.
    pub(crate) fn original(&self) -> Original<'_> {
        let mut rules = self.rules.iter();
        Original {
            bucket: &self.source.bucket,
            key: &self.source_key,
            wraps_keys: rules.any(|rule| !rule.client_side_keys.is_empty()),
        }
    }

    /// Says what becomes of versions that are older than what the destination shows. Beside version
    /// deletes they are not appended, whatever asks for it (protocol rule 8).
    pub(crate) fn late_versions(&self) -> LateVersions {
        let mut events = self.events.iter();
        let is_asked = events.any(|pending| pending.action == EventKind::RewriteHistory);
        match is_asked && !self.rules.iter().any(|rule| rule.version_deletes) {
            true => LateVersions::Append,
            false => LateVersions::Skip,
        }
    }

    /// Names the rule and line that a request without a body counts for.
    pub(crate) fn small_payer(&self) -> Flow<'_> {
        Flow {
            rule: &self.rules.primary,
            is_bulk: false,
        }
    }

    /// Returns what is kept of one event while it waits for an operator to act.
    pub(crate) fn parked(
        &self,
        pending: &PendingEvent,
        reason: Reason,
        now: Timestamp,
    ) -> ParkedTask {
        ParkedTask {
            target: self.target.clone(),
            rule: self.rules.primary.id.clone(),
            source: self.source.clone(),
            source_key: self.source_key.clone(),
            action: pending.action,
            version: pending.version.clone(),
            reason,
            detail: String::new(),
            since: pending.parked.map_or(now, |parked| parked.since),
            tries: pending.parked.map_or(0, |parked| parked.tries),
            due: None,
        }
    }
}

/// Competing rules, the leading one apart because there always is one.
#[derive(Debug, Clone)]
pub(crate) struct Rules {
    pub(crate) primary: Arc<Rule>,
    pub(crate) fallbacks: Vec<Arc<Rule>>,
}

impl Rules {
    /// Lists the rules, highest priority first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = &Arc<Rule>> {
        std::iter::once(&self.primary).chain(&self.fallbacks)
    }
}

/// What came of a task: one outcome for each event.
#[derive(Debug, Clone, Default)]
pub(crate) struct Report {
    pub(crate) outcomes: Vec<Outcome>,
    /// Versions and markers written by this run.
    pub(crate) written: u64,
    pub(crate) bytes: u64,
}

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

    pub(crate) fn as_slice(&self) -> &[Rule] {
        &self.rules
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

    /// Finds the tasks of an event: one for each key it may have at each destination. All rules of
    /// a contest come along with each of them: one that sends a version to another key takes it
    /// from this key.
    pub(crate) fn tasks_for(&self, event: &Event) -> Vec<Task> {
        let mut tasks = Vec::new();
        for contest in match_rules(&self.rules, &event.bucket, &event.key) {
            let mut candidates = contest
                .candidates
                .iter()
                .filter_map(|rule| self.shared.get(&rule.id))
                .cloned();
            let Some(primary) = candidates.next() else {
                continue;
            };
            let rules = Rules {
                primary,
                fallbacks: candidates.collect(),
            };
            // A key that is impossible was refused before.
            let keys: BTreeSet<Key> = rules
                .iter()
                .filter_map(|rule| rule.destination_key(&event.key).ok())
                .collect();
            let destination = &contest.destination;
            tasks.extend(
                keys.into_iter()
                    .map(|key| task(&rules, (destination, key), event)),
            );
        }
        tasks
    }

    /// Makes the task of a key of a rule that no message names.
    pub(crate) fn task_at(&self, rule: &Rule, key: &Key) -> Option<Task> {
        let event = Event::of_key(&rule.source.bucket, key);
        let target = rule.destination_key(key).ok()?;
        let is_meant =
            |task: &Task| task.target.destination == rule.destination && task.target.key == target;
        self.tasks_for(&event).into_iter().find(is_meant)
    }

    /// Says of each rule of an event's bucket that does not take the event what it lacks.
    pub(crate) fn mismatches(&self, event: &Event) -> impl Iterator<Item = (&Rule, Mismatch)> {
        let of_bucket = self
            .rules
            .iter()
            .filter(|rule| rule.source.bucket == event.bucket);
        of_bucket.filter_map(|rule| Some((rule, rule.admits_key(&event.key).err()?)))
    }

    /// Makes a parked task anew under the rules of today; `None` when no rule takes it any more.
    pub(crate) fn revive(&self, parked: &ParkedTask) -> Option<Task> {
        let task = self
            .tasks_for(&event_of(parked))
            .into_iter()
            .find(|task| task.target == parked.target)?;
        // It may have begun before: the ledger alone may not answer it.
        Some(Task {
            redelivered: true,
            ..task
        })
    }
}

fn task(rules: &Rules, (destination, key): (&BucketRef, Key), event: &Event) -> Task {
    Task {
        target: TargetKey {
            destination: destination.clone(),
            key,
        },
        source: rules.primary.source.clone(),
        source_key: event.key.clone(),
        rules: rules.clone(),
        events: vec![PendingEvent {
            action: event.action,
            version: event.version.clone(),
            sequencer: event.sequencer.clone(),
            time: event.time,
            size_bytes: event.size_bytes.unwrap_or(0),
            parked: None,
        }],
        redelivered: false,
        receive_count: 0,
        takes_over: None,
    }
}

/// Returns the event that a task was parked for, as far as the ledger has it.
pub(crate) fn event_of(parked: &ParkedTask) -> Event {
    Event {
        version: parked.version.clone(),
        action: parked.action,
        ..Event::of_key(&parked.source.bucket, &parked.source_key)
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use replicator_core::object::Bucket;

    use super::*;
    pub(crate) use crate::limit::quotas::tests::rules;

    #[test]
    fn a_bucket_that_no_rule_has_is_refused_by_name() {
        let ruleset = Ruleset::new(&rules(&[("orders", "orders", "replicas")]));
        let key = Key::try_from("report").unwrap();
        let event = |bucket: &str| Event::of_key(&Bucket::try_from(bucket).unwrap(), &key);
        assert_eq!(ruleset.refusal(&event("orders")), None);
        assert!(matches!(
            ruleset.refusal(&event("others")),
            Some((Reason::BucketUnknown, _))
        ));
    }
}
